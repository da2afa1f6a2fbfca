"""Expert placement: no worse than greedy, never better than possible, nothing lost."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_model.balance import write_expert_load
from reference_model.config import load_model_config
from simulator.workload.experts import (
    POLICIES,
    drifted,
    place_experts,
    read_popularity,
    rebalance_cost,
    share_of_tokens,
    uniform_popularity,
    zipf_popularity,
)


def greedy_bins(weights, bins):
    """Longest-processing-time packing with equally many items a bin: the published second step."""
    room = len(weights) // bins
    loads, content = [0.0] * bins, [[] for _ in range(bins)]
    for item in sorted(range(len(weights)), key=lambda i: -weights[i]):
        open_bins = [b for b in range(bins) if len(content[b]) < room]
        chosen = min(open_bins, key=lambda b: loads[b])
        content[chosen].append(item)
        loads[chosen] += weights[item]
    return content


def greedy_copies(load, slots):
    counts = [1] * len(load)
    for _ in range(slots - len(load)):
        counts[max(range(len(load)), key=lambda e: load[e] / counts[e])] += 1
    return counts


def greedy_maximum(load, slots, gpus, nodes, groups):
    """Largest GPU load of the two published greedy steps, written independently."""
    size = len(load) // groups
    sums = [sum(load[g * size : (g + 1) * size]) for g in range(groups)]
    worst = 0.0
    for chosen in greedy_bins(sums, nodes):
        local = [load[g * size + i] for g in chosen for i in range(size)]
        counts = greedy_copies(local, slots // nodes)
        weights = [local[e] / counts[e] for e in range(len(local)) for _ in range(counts[e])]
        for content in greedy_bins(weights, gpus // nodes):
            worst = max(worst, sum(weights[i] for i in content))
    return worst


@pytest.mark.parametrize("policy", ["hierarchical", "global"])
@pytest.mark.parametrize("gpus", [32, 144, 72])
@pytest.mark.parametrize("skew", [0.0, 0.8, 2.0])
def test_no_gpu_carries_more_than_under_the_greedy_steps_alone(policy, gpus, skew):
    rng = np.random.default_rng(gpus)
    nodes = 4 if gpus == 32 else 1
    load = rng.gamma(1.0, size=(4, 256)) * zipf_popularity(4, 256, exponent=skew, rng=rng) * 1e6
    placed = place_experts(load, gpus=gpus, nodes=nodes, groups=8, redundant=32, policy=policy)
    worst = placed.gpu_load(load).max(axis=1)
    grouping = (nodes, 8) if policy == "hierarchical" else (1, 1)
    for layer in range(4):
        assert worst[layer] <= greedy_maximum(load[layer], 288, gpus, *grouping) * (1 + 1e-12)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_random_load_of_any_size_is_placed_worse_than_the_greedy_steps_do(data):
    nodes = data.draw(st.sampled_from([1, 2, 4]))
    gpus = nodes * data.draw(st.integers(1, 4))
    groups = nodes * data.draw(st.integers(1, 3))
    experts = int(np.lcm(gpus, groups)) * data.draw(st.integers(1, 3))
    slots = experts + gpus * data.draw(st.integers(0, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    # Few different loads make ties, many zeros idle experts.
    load = rng.integers(0, data.draw(st.sampled_from([3, 30, 3000])), size=(1, experts)) * 1.0
    for policy, grouping in (("hierarchical", (nodes, groups)), ("global", (1, 1))):
        placed = place_experts(
            load, gpus=gpus, nodes=nodes, groups=groups, redundant=slots - experts, policy=policy
        )
        greedy = greedy_maximum(load[0], slots, gpus, *grouping)
        assert placed.gpu_load(load).max() <= greedy * (1 + 1e-12)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_placement_keeps_every_expert_and_all_rows(data):
    nodes = data.draw(st.sampled_from([1, 2, 4]))
    gpus = nodes * data.draw(st.integers(1, 4))
    groups = nodes * data.draw(st.integers(1, 2))
    experts = np.lcm(gpus, groups) * data.draw(st.integers(1, 3))
    redundant = gpus * data.draw(st.integers(0, 3))
    policy = data.draw(st.sampled_from(sorted(POLICIES)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    load = rng.integers(0, 50, size=(2, experts)).astype(float)
    placed = place_experts(
        load, gpus=gpus, nodes=nodes, groups=groups, redundant=redundant, policy=policy
    )
    assert placed.copies.min() >= 1
    assert placed.slots.shape == (2, experts + redundant)
    np.testing.assert_allclose(placed.gpu_load(load).sum(axis=1), load.sum(axis=1))
    if policy == "hierarchical":  # experts of a group stay in one node
        node = np.repeat(np.arange(nodes), placed.slots.shape[1] // nodes)
        group = placed.slots // (experts // groups)
        for layer, g in itertools.product(range(2), range(groups)):
            assert len(set(node[group[layer] == g])) == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_maximum_lies_between_the_best_possible_and_the_greedy_one(seed):
    load = np.random.default_rng(seed).integers(1, 30, size=(1, 6)).astype(float)
    placed = place_experts(load, gpus=3, nodes=1, groups=1, redundant=0, policy="global")
    pairs = (
        ((a, b), (c, d), (e, f))
        for a, b, c, d, e, f in itertools.permutations(range(6))
        if a < b and c < d and e < f and a < c < e
    )
    best = min(max(sum(load[0, i] for i in pair) for pair in split) for split in pairs)
    worst = placed.gpu_load(load).max()
    assert best <= worst <= greedy_maximum(load[0], 6, 3, 1, 1)


@pytest.mark.parametrize(
    ("gpus", "nodes", "groups", "grouping"), [(32, 4, 8, (4, 8)), (144, 18, 8, (1, 1))]
)
def test_the_open_balancer_is_the_greedy_steps_alone(gpus, nodes, groups, grouping):
    """Hierarchical where the nodes divide the groups, 4 of 8; global where not, 18 of 8."""
    rng = np.random.default_rng(5)
    load = rng.gamma(1.0, size=(3, 256)) * 1e6
    placed = place_experts(load, gpus=gpus, nodes=nodes, groups=groups, redundant=32, policy="eplb")
    for layer in range(3):
        assert placed.gpu_load(load)[layer].max() == pytest.approx(
            greedy_maximum(load[layer], 288, gpus, *grouping), rel=1e-12
        )


def test_exchanges_better_what_the_open_balancer_leaves():
    """Heaviest first on 2 GPUs of 3 slots: 10 + 7 + 3 = 20 and 9 + 8 + 1 = 18; exchanging 10 for 9
    leaves 19 and 19."""
    load = np.array([[10.0, 9.0, 8.0, 7.0, 3.0, 1.0]])
    of = {
        policy: place_experts(load, gpus=2, nodes=1, groups=1, redundant=0, policy=policy)
        for policy in ("eplb", "global")
    }
    assert sorted(of["eplb"].gpu_load(load)[0].tolist()) == [18.0, 20.0]
    assert of["global"].gpu_load(load)[0].tolist() == [19.0, 19.0]


def test_a_placement_keeps_its_slots_when_the_load_drifts():
    """Experts of 3, 1, 2 and 2 rows lie as 3 + 1 | 2 + 2: even. The next window asks 5, 1, 1 and 1
    of them: 6 | 2, where a placement for it would reach 5 | 3."""
    window, served = np.array([[3.0, 1.0, 2.0, 2.0]]), np.array([[5.0, 1.0, 1.0, 1.0]])
    placed = place_experts(window, gpus=2, nodes=1, groups=1, redundant=0, policy="eplb")
    assert placed.gpu_load(window).tolist() == [[4.0, 4.0]]
    assert sorted(placed.gpu_load(served)[0].tolist()) == [2.0, 6.0]
    assert placed.max_over_mean(served) == 1.5


def test_drift_changes_each_expert_by_a_lognormal_factor_and_keeps_the_sum():
    popularity = np.array([[0.5, 0.3, 0.2], [2.0, 1.0, 1.0]])
    later = drifted(popularity, sd=0.4, rng=np.random.default_rng(1))
    factor = np.exp(0.4 * np.random.default_rng(1).standard_normal((2, 3)))
    for layer, total in enumerate((1.0, 4.0)):
        raw = popularity[layer] * factor[layer]
        assert later[layer].tolist() == pytest.approx((raw * total / raw.sum()).tolist())
    np.testing.assert_array_equal(
        drifted(popularity, sd=0.0, rng=np.random.default_rng(1)), popularity
    )


def test_copies_go_to_the_expert_whose_copies_carry_most():
    load = np.array([[90.0, 40.0, 10.0, 20.0]])
    placed = place_experts(load, gpus=2, nodes=1, groups=1, redundant=2, policy="global")
    # 90 -> 45 + 45 -> 30 + 30 + 30, then 40 is the largest.
    assert placed.copies.tolist() == [[3, 1, 1, 1]]
    assert placed.gpu_load(load).max() == pytest.approx(80.0)


def test_redundant_experts_lower_the_maximum_over_the_mean():
    rng = np.random.default_rng(0)
    load = zipf_popularity(8, 256, exponent=0.6, rng=rng)
    ratio = {}
    for redundant in (0, 32):
        placed = place_experts(
            load, gpus=32, nodes=4, groups=8, redundant=redundant, policy="hierarchical"
        )
        per_gpu = placed.gpu_load(load)
        ratio[redundant] = (per_gpu.max(axis=1) / per_gpu.mean(axis=1)).mean()
    assert 1.0 <= ratio[32] < ratio[0]


@pytest.mark.parametrize("policy", ["global", "in_order"])
@pytest.mark.parametrize(
    ("gpus", "redundant", "most"),
    [
        # 64 half-loaded slots reach 64 GPUs at most; another one holds whole experts alone.
        (72, 32, 4 * 72 / 256),
        (144, 32, 2 * 144 / 256),
        # One slot on each GPU: 192 experts lie once.
        (320, 64, 320 / 256),
        # As many copies as experts, or none: all GPUs alike.
        (64, 256, 1.0),
        (128, 0, 1.0),
        (8, 0, 1.0),
    ],
)
def test_equal_experts_are_placed_as_evenly_as_copies_allow(policy, gpus, redundant, most):
    equal = uniform_popularity(2, 256)
    placed = place_experts(equal, gpus=gpus, nodes=1, groups=1, redundant=redundant, policy=policy)
    assert placed.max_over_mean(equal) == pytest.approx(most, rel=1e-12)


@pytest.mark.parametrize(("policy", "nodes"), [("global", 1), ("hierarchical", 4)])
def test_copies_that_fill_their_gpus_evenly_leave_nothing_to_wait_for(policy, nodes):
    equal = uniform_popularity(1, 256)
    placed = place_experts(equal, gpus=32, nodes=nodes, groups=8, redundant=32, policy=policy)
    # Each GPU has 7 whole experts and 2 halves; in order 24 GPUs have 9 whole ones.
    assert placed.max_over_mean(equal) == pytest.approx(1.0, rel=1e-12)
    in_order = place_experts(equal, gpus=32, nodes=1, groups=1, redundant=32, policy="in_order")
    assert in_order.max_over_mean(equal) == pytest.approx(9 / 8, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"redundant": 3}, "16 routed"),
        ({"policy": "best"}, "known: hierarchical"),
        ({"nodes": 3, "gpus": 4}, "3 nodes do not divide"),
    ],
)
def test_what_cannot_be_placed_is_one_clear_error(change, message):
    arguments = {"gpus": 4, "nodes": 2, "groups": 2, "redundant": 0, "policy": "hierarchical"}
    with pytest.raises(ValueError, match=message):
        place_experts(uniform_popularity(1, 16), **(arguments | change))


def destinations(slots, count):
    (shares,) = share_of_tokens(
        slots,
        experts=256,
        groups=8,
        kept_groups=4,
        top_k=8,
        group_score="two_best",
        destinations=(np.arange(len(slots)) * count // len(slots),),
        tokens=4096,
        rng=np.random.default_rng(0),
    )
    assert len(shares) == count
    return shares.sum()


def placed_slots(policy, *, redundant=0, gpus=32, nodes=4):
    load = uniform_popularity(1, 256)
    return place_experts(
        load, gpus=gpus, nodes=nodes, groups=8, redundant=redundant, policy=policy
    ).slots[0]


def test_a_token_of_v3_reaches_four_of_eight_nodes_and_three_of_four():
    count = {nodes: destinations(np.arange(256), nodes) for nodes in (4, 8, 64)}
    assert count[8] == pytest.approx(3.97, abs=0.02)  # h800_training_trace.md
    assert count[64] == pytest.approx(7.49, abs=0.04)
    # 4 of 8 groups on 4 nodes of two groups each: 4 (1 - C(6,4)/C(8,4)) = 3.143 at most.
    assert 3.05 < count[4] < 3.143


def test_spreading_groups_over_nodes_gives_up_what_node_limited_routing_saves():
    grouped, spread = (destinations(placed_slots(p), 4) for p in ("hierarchical", "global"))
    assert grouped == pytest.approx(destinations(np.arange(256), 4), abs=0.03)
    # Without groups: 4 (1 - C(192, 8) / C(256, 8)) nodes of four hold one of eight random experts.
    assert spread == pytest.approx(3.61, abs=0.03)
    # Copies of an expert in other GPUs of its node change its GPUs, not its nodes.
    assert destinations(placed_slots("hierarchical", redundant=32), 4) == pytest.approx(
        grouped, abs=0.03
    )


def test_moving_one_expert_costs_its_weights_once():
    load = np.array([[4.0, 3.0, 2.0, 1.0]])
    before = place_experts(load, gpus=2, nodes=1, groups=1, redundant=0, policy="in_order")
    after = place_experts(load, gpus=2, nodes=1, groups=1, redundant=0, policy="global")
    five_per_second = {"expert_bytes": 10.0, "seconds_of": lambda size: size / 5, "interval": 100.0}
    cost = rebalance_cost(before, after, **five_per_second)
    assert cost.bytes_per_gpu == 10.0  # {0, 1}, {2, 3} -> {0, 3}, {1, 2}
    assert cost.bytes_total == 20.0
    assert cost.seconds == 2.0
    assert cost.share == 0.02
    assert rebalance_cost(after, after, **five_per_second).bytes_total == 0.0


def test_a_histogram_file_reads_back_and_errors_name_the_line(tmp_path: Path):
    path = tmp_path / "loads.csv"
    path.write_text("layer,expert,rows\n0,0,30\n0,1,10\n1,1,5\n")
    read = read_popularity(path, layers=2, experts=2)
    assert read.tolist() == [[0.75, 0.25], [0.0, 1.0]]
    path.write_text("layer,expert,rows\n0,0,30\n0,7,10\n")
    with pytest.raises(ValueError, match=r"line 3: layer 0, expert 7"):
        read_popularity(path, layers=1, experts=2)
    path.write_text("layer,expert\n0,0\n")
    with pytest.raises(ValueError, match="columns"):
        read_popularity(path, layers=1, experts=2)


def test_the_load_that_the_reference_model_writes_is_read(tmp_path: Path):
    config = load_model_config("debug")
    load = torch.arange(1, config.num_moe_layers * config.n_routed_experts + 1)
    load = load.view(config.num_moe_layers, -1)
    write_expert_load(load, config, tmp_path / "load.csv")
    read = read_popularity(
        tmp_path / "load.csv", layers=config.num_moe_layers, experts=config.n_routed_experts
    )
    np.testing.assert_allclose(read, load / load.sum(dim=1, keepdim=True))
