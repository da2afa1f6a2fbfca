"""Node-limited routing: what the gate selects, and how far tokens then spread."""

import numpy as np
import pytest

from simulator.hardware.network.collectives import count_copies
from simulator.workload.gating import random_scores, select_experts


def spread(gate, kind, *, nodes=8, tokens=20_000, seed=0):
    rng = np.random.default_rng(seed)
    scores = random_scores(tokens, 256, kind=kind, rng=rng)
    chosen = select_experts(scores, top_k=8, groups=nodes, kept_groups=4, group_score=gate)
    ranks = nodes * 8
    node = chosen // (256 // nodes)
    gpu = chosen // (256 // ranks)
    distinct = [np.mean([len(set(row)) for row in table[:4000]]) for table in (node, gpu)]
    return chosen, distinct


def test_v3s_gate_reaches_the_published_number_of_nodes_and_gpus():
    # Counted independently: 3.97 nodes and 7.49 GPUs of 64 a token, on random logits.
    _, (nodes, gpus) = spread("two_best", "sigmoid")
    assert nodes == pytest.approx(3.97, abs=0.01)
    assert gpus == pytest.approx(7.49, abs=0.02)


def test_deepeps_test_gate_reaches_the_published_number_of_nodes():
    for nodes, expected in ((2, 1.99), (4, 3.61), (8, 3.98), (16, 4.00)):
        assert spread("maximum", "absolute", nodes=nodes)[1][0] == pytest.approx(
            expected, abs=0.015
        )


def test_random_experts_of_random_groups_have_the_closed_form():
    # 4 (1 - C(96, 8) / C(128, 8)) = 3.629: no gate, only a check of the counting.
    rng = np.random.default_rng(0)
    tokens = 6000
    groups = np.argsort(rng.random((tokens, 8)), axis=1)[:, :4]
    places = np.argsort(rng.random((tokens, 128)), axis=1)[:, :8]
    experts = np.take_along_axis(groups, places // 32, axis=1) * 32 + places % 32
    copies = count_copies(
        np.array_split(experts, 64), expert_rank=np.arange(256) // 4, ranks_per_node=8
    )
    assert copies.to_node.sum() / tokens == pytest.approx(3.629, abs=0.02)
    assert copies.to_expert.sum() == tokens * 8


@pytest.mark.parametrize("gate", ["two_best", "maximum"])
def test_no_token_reaches_more_than_its_kept_groups(gate):
    chosen, _ = spread(gate, "sigmoid", tokens=3000)
    assert max(len(set(row)) for row in chosen // 32) == 4
    assert all(len(set(row)) == 8 for row in chosen)


def test_the_gate_keeps_the_groups_and_experts_that_score_best():
    scores = np.array([[9.0, 0.0, 5.0, 5.5, 4.0, 4.1, 1.0, 1.1]])
    by_two = select_experts(scores, top_k=2, groups=4, kept_groups=2, group_score="two_best")
    assert sorted(by_two[0]) == [0, 3]  # groups 1 (10.5) and 0 (9); 9 and 5.5 are the best there
    by_best = select_experts(scores, top_k=2, groups=4, kept_groups=1, group_score="maximum")
    assert sorted(by_best[0]) == [0, 1]


def test_groups_that_do_not_fit_are_one_clear_error():
    scores = np.zeros((1, 8))
    with pytest.raises(ValueError, match="3 groups do not divide 8 experts"):
        select_experts(scores, top_k=2, groups=3, kept_groups=1, group_score="maximum")
    with pytest.raises(ValueError, match="hold fewer than top_k 4"):
        select_experts(scores, top_k=4, groups=4, kept_groups=1, group_score="maximum")


def test_a_draw_that_fits_no_memory_is_refused_with_the_tokens_that_fit():
    with pytest.raises(ValueError, match=r"take 122 GiB; allowed: at most 2097152 tokens per GPU"):
        random_scores(128_000_000, 256, kind="sigmoid", rng=np.random.default_rng(0))
