"""Rows are conserved, machines are slow as a whole, and one seed draws one thing."""

import numpy as np
import pytest

from simulator.workload.experts import ExpertPlacement, place_experts, uniform_popularity
from simulator.workload.skew import DrawnRows, clock_times, random_gate_sd, slow_machines


def rng(seed=0):
    return np.random.default_rng(seed)


def test_gpus_differ_by_the_sd_of_their_draw_and_not_at_all_without_one():
    times = clock_times(np.array([0.0, 0.02]), gpus=20_000, rng=rng())
    assert times[:, 0].tolist() == [1.0] * 20_000
    # The logarithm of 20,000 normals has an sd within 3 x 0.02 / sqrt(40,000) of theirs.
    assert np.log(times[:, 1]).std() == pytest.approx(0.02, abs=3e-4)


def test_gpus_of_one_machine_are_slow_together():
    every, none = 1.0, 0.0
    times = slow_machines(
        np.array([none, every]), np.array([0.5, 0.25]), gpus=6, per_machine=4, rng=rng()
    )
    assert times.tolist() == [[1.0, 1.25]] * 6
    some = slow_machines(np.array([0.5]), np.array([0.1]), gpus=4000, per_machine=4, rng=rng())
    of_machines = some.reshape(1000, 4)
    assert (of_machines == of_machines[:, :1]).all()
    assert 400 < (of_machines[:, 0] > 1).sum() < 600


def test_a_machine_is_drawn_for_every_four_gpus_and_one_for_the_rest():
    """So that what is drawn next is the same whichever GPUs of the last machine there are."""
    drawn, expected = rng(), rng()
    slow_machines(np.array([0.5]), np.array([0.1]), gpus=6, per_machine=4, rng=drawn)
    expected.random((2, 1), dtype=np.float32)
    assert drawn.random() == expected.random()


def test_two_ranks_deviate_by_the_sd_though_what_one_gets_the_other_does_not():
    shares = DrawnRows(np.array([0.1])).shares(ranks=2, cases=(20_000,), rng=rng())
    assert shares[0] + shares[1] == pytest.approx(2.0)
    # 20,000 deviations of one rank: within 3 x 0.1 / sqrt(40,000).
    assert shares[0].std() == pytest.approx(0.1, abs=1.5e-3)


def test_a_random_gate_leaves_what_different_choices_leave():
    # 64 ranks of 4 of 256 experts, 8 choices of 4,096 tokens: variance of a hypergeometric number.
    expected = ((1 - 4 / 256) * (256 - 8) / (256 - 1) / 32768) ** 0.5
    found = random_gate_sd(choices=32768, top_k=8, experts=256, local=4)
    assert found == pytest.approx(expected, rel=1e-12)
    assert random_gate_sd(choices=32768, top_k=8, experts=256, local=256) == 0.0
    # No rows deviate by nothing, and the only expert has them all.
    assert random_gate_sd(choices=0, top_k=8, experts=256, local=4) == 0.0
    assert random_gate_sd(choices=5, top_k=1, experts=1, local=1) == 0.0


def test_what_one_rank_gets_others_do_not():
    sd = np.array([0.0, 0.1, 0.1])
    shares = DrawnRows(sd).shares(ranks=64, cases=(5, 2), rng=rng())
    assert shares.shape == (64, 5, 2, 3)
    assert shares.mean(axis=0) == pytest.approx(1.0, abs=1e-5)
    assert (shares[..., 0] == 1.0).all()
    # 64 ranks in 20 cases: 1,280 deviations.
    assert shares[..., 1:].std() == pytest.approx(0.1, rel=0.06)
    assert (DrawnRows(sd).shares(ranks=1, cases=(2,), rng=rng()) == 1.0).all()


def test_the_busy_rank_gets_what_is_stated_and_is_another_in_every_case():
    rows = DrawnRows(np.zeros(50), most=np.full(50, 1.3))
    shares = rows.shares(ranks=4, cases=(2,), rng=rng())
    # Of 4 rows 1.3 on one rank leave 2.7 for three.
    assert np.sort(shares, axis=0)[:, 0, 0] == pytest.approx([0.9, 0.9, 0.9, 1.3])
    two = rows.shares(ranks=2, cases=(1,), rng=rng())
    assert np.sort(two, axis=0)[:, 0, 0] == pytest.approx([0.7, 1.3])
    busiest = shares.argmax(axis=0)
    assert set(busiest.ravel().tolist()) == {0, 1, 2, 3}
    assert (busiest[0] != busiest[1]).any()


def placement(gpus, experts):
    equal = uniform_popularity(1, experts)
    return place_experts(equal, gpus=gpus, nodes=1, groups=1, redundant=0, policy="global")


def test_popular_experts_make_their_ranks_busy():
    known = DrawnRows(
        np.zeros(3), popularity=np.array([[0.5, 0.1, 0.2, 0.2]]), placement=placement(2, 4)
    )
    shares = known.shares(ranks=2, cases=(1,), rng=rng())
    by_rank = [
        sum(known.popularity[0][expert] for expert in experts) * 2
        for experts in known.placement.slots[0].reshape(2, 2).tolist()
    ]
    assert shares[:, 0, 0] == pytest.approx(by_rank, rel=1e-6)


def test_copies_of_a_popular_expert_share_its_rows():
    """Half of all rows lie on expert 0, half of which each GPU has: 0.25 + 0.2 and 0.25 + 0.3."""
    placed = ExpertPlacement(gpus=2, experts=3, slots=np.array([[0, 1, 0, 2]]))
    known = DrawnRows(np.zeros(1), popularity=np.array([[0.5, 0.2, 0.3]]), placement=placed)
    shares = known.shares(ranks=2, cases=(1,), rng=rng())
    assert shares[:, 0, 0] == pytest.approx([0.9, 1.1], rel=1e-6)


def test_ranks_of_fewer_experts_differ_more():
    zipf = [
        DrawnRows(np.zeros(200), zipf_exponent=np.full(200, 0.3), placement=placement(gpus, 64))
        .shares(ranks=gpus, cases=(1,), rng=rng())
        .max(axis=0)
        .mean()
        for gpus in (4, 16, 64)
    ]
    assert zipf == sorted(zipf)
    # Alone on its rank the most popular expert has 64 times its share of 1/1^0.3 + 1/2^0.3 + ...
    assert zipf[-1] == pytest.approx(64 / sum(r**-0.3 for r in range(1, 65)), rel=1e-6)


def test_one_seed_draws_one_thing():
    rows = DrawnRows(np.full(4, 0.1))
    first, again, other = (rows.shares(ranks=8, cases=(1,), rng=rng(seed)) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
