"""Flows in simulated time: closed forms, conservation, several jobs, failures."""

from dataclasses import replace

import numpy as np
import pytest
from fabrics import BARE, NODES, check_conservation, run
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.hardware.network.fairness import max_min_rates
from simulator.hardware.network.flows import make_flows
from simulator.hardware.network.routing import route
from simulator.hardware.network.topology import build_fabric


def test_two_flows_into_one_gpu_share_its_link():
    fabric = build_fabric("fat_tree_2", BARE)
    flows = make_flows(np.array([0, 1]), np.array([2, 2]), np.array([1.0, 2.0]))
    done, network, _ = run(fabric, (0.0, flows, 0))
    # Half each until the small one is done at 2; the rest of the large one alone: 1 more.
    assert done[0].finish.tolist() == pytest.approx([2.0, 3.0])
    assert (network.solves, network.solved_again) == (2, 1)
    check_conservation(fabric, network, [flows])


def test_the_last_byte_arrives_one_route_latency_later():
    fabric = build_fabric(
        "fat_tree_2", replace(BARE, same_leaf_latency=0.2, cross_leaf_latency=0.4)
    )
    flows = make_flows(np.array([0, 4]), np.array([1, 9]), 1.0)
    done, _, _ = run(fabric, (0.0, flows, 0))
    assert done[0].finish.tolist() == pytest.approx([1.2, 1.4])


def test_a_row_of_three_identical_flows_is_three_rows():
    fabric = build_fabric("fat_tree_2", BARE)
    one = make_flows(np.array([0, 1]), np.array([2, 2]), 1.0, multiplicity=np.array([3.0, 1.0]))
    four = make_flows(np.array([0, 0, 0, 1]), np.array([2, 2, 2, 2]), 1.0)
    folded, network, _ = run(fabric, (0.0, one, 0))
    unfolded, other, _ = run(fabric, (0.0, four, 0))
    assert folded[0].seconds == pytest.approx(unfolded[0].seconds)
    np.testing.assert_allclose(network.link_bytes(), other.link_bytes())


@pytest.mark.parametrize("routing", ["adaptive", "ecmp", "static"])
@pytest.mark.parametrize("oversubscription", [1.0, 3.0])
def test_completion_times_equal_a_step_by_step_solution(routing, oversubscription):
    inputs = replace(
        BARE, nodes=24, switch_ports=8, routing=routing, oversubscription=oversubscription
    )
    fabric = build_fabric("fat_tree_2", inputs)
    rng = np.random.default_rng(5)
    source = rng.integers(0, 24, 60)
    destination = (source + rng.integers(1, 24, 60)) % 24
    size = rng.uniform(0.5, 4.0, 60)
    flows = make_flows(source, destination, size)
    done, network, _ = run(fabric, (0.0, flows, 0))
    paths = route(fabric, source, destination).paths
    left, now, expected = size.copy(), 0.0, np.zeros(60)
    while (left > 0).any():
        busy = left > 0
        rates = max_min_rates(paths[busy], fabric.capacity)
        step = (left[busy] / rates).min()
        left[busy] -= rates * step
        left[left < 1e-9] = 0.0
        now += step
        expected[busy & (left == 0)] = now
    np.testing.assert_allclose(done[0].finish, expected, rtol=1e-6)
    check_conservation(fabric, network, [flows])


def brute_force_finish(paths, size, capacity):
    """Completion times by water filling in plain Python, one resource and one flow at a time."""
    left = dict(enumerate(size))
    finish, now = {}, 0.0
    while left:
        rate, todo, spare = {}, set(left), list(capacity)
        while todo:
            share, tight = min(
                (spare[r] / n, r)
                for r in range(len(spare))
                if (n := sum(r in paths[f] for f in todo))
            )
            for flow in [f for f in todo if tight in paths[f]]:
                rate[flow] = share
                todo.remove(flow)
                for r in paths[flow]:
                    spare[r] -= share
        step = min(left[f] / rate[f] for f in left)
        now += step
        for flow in list(left):
            left[flow] -= rate[flow] * step
            if left[flow] < 1e-9:
                finish[flow] = now
                del left[flow]
    return [finish[f] for f in range(len(size))]


@settings(max_examples=60, deadline=None)
@given(
    topology=st.sampled_from(["fat_tree_2", "fat_tree_3", "dragonfly", "slim_fly"]),
    routing=st.sampled_from(["adaptive", "ecmp", "static"]),
    flows=st.lists(
        st.tuples(st.integers(0, 15), st.integers(1, 15), st.floats(0.1, 5.0)),
        min_size=1,
        max_size=12,
    ),
    link=st.floats(0.3, 2.0),
)
def test_completion_times_equal_an_independent_solver_on_random_traffic(
    topology, routing, flows, link
):
    sizes = {
        "dragonfly": {"groups": 4, "group_switches": 2, "switch_nics": 2, "global_ports": 2},
        "slim_fly": {"order": 4},
    }
    inputs = replace(BARE, routing=routing, link_bandwidth=link, **sizes.get(topology, {}))
    fabric = build_fabric(topology, inputs)
    source = np.array([s for s, _, _ in flows])
    destination = (source + np.array([d for _, d, _ in flows])) % 16
    size = np.array([b for *_, b in flows])
    batch = make_flows(source, destination, size)
    done, network, _ = run(fabric, (0.0, batch, 0))
    paths = [set(p[p >= 0].tolist()) for p in route(fabric, source, destination).paths]
    used = sorted(set().union(*paths))
    place = {resource: number for number, resource in enumerate(used)}
    expected = brute_force_finish(
        [{place[r] for r in p} for p in paths], size, fabric.capacity[used]
    )
    np.testing.assert_allclose(done[0].finish, expected, rtol=1e-6)
    check_conservation(fabric, network, [batch])


def test_one_solve_an_instant_however_many_jobs_start():
    fabric = build_fabric("fat_tree_2", BARE)
    jobs = [(1.0, make_flows(np.array([g]), np.array([(g + 4) % 16]), 1.0), 0) for g in range(16)]
    done, network, _ = run(fabric, *jobs)
    assert len(done) == 16
    assert network.solves == 1


def test_jobs_that_arrive_later_change_the_rates_of_those_they_meet_only():
    fabric = build_fabric("fat_tree_2", BARE)
    first = make_flows(np.array([0, 8]), np.array([1, 9]), 2.0)
    later = make_flows(np.array([2]), np.array([1]), 1.0)
    done, network, end = run(fabric, (0.0, first, 0), (1.0, later, 0))
    by_start = {t.start: t for t in done}
    # 0 -> 1 alone for 1 s, shared for 2 s; 8 -> 9 undisturbed.
    assert by_start[0.0].finish.tolist() == pytest.approx([3.0, 2.0])
    assert by_start[1.0].finish.tolist() == pytest.approx([3.0])
    assert end == pytest.approx(3.0)
    check_conservation(fabric, network, [first, later])


def test_a_higher_traffic_class_is_not_slowed_by_incast():
    fabric = build_fabric("fat_tree_2", BARE)
    burst = make_flows(np.arange(1, 9), np.zeros(8, dtype=int), 1.0)
    ring = make_flows(np.array([9]), np.array([0]), 1.0)
    together, _, _ = run(fabric, (0.0, burst, 0), (0.0, ring, 0))
    isolated, network, _ = run(fabric, (0.0, burst, 0), (0.0, ring, 1))
    assert {len(t.finish): t.seconds for t in together}[1] == pytest.approx(9.0)
    assert {len(t.finish): t.seconds for t in isolated}[1] == pytest.approx(1.0)
    assert {len(t.finish): t.seconds for t in isolated}[8] == pytest.approx(9.0)
    check_conservation(fabric, network, [burst, ring])


def test_merged_completions_are_late_by_at_most_a_few_windows_and_never_early():
    fabric = build_fabric("fat_tree_2", BARE)
    rng = np.random.default_rng(3)
    source = np.repeat(np.arange(16), 15)
    destination = (source + np.tile(np.arange(1, 16), 16)) % 16
    flows = make_flows(source, destination, rng.uniform(0.1, 1.0, len(source)))
    exact, all_solves, _ = run(fabric, (0.0, flows, 0))
    merged, few_solves, _ = run(fabric, (0.0, flows, 0), window=0.05)
    assert few_solves.solves < all_solves.solves / 2
    assert exact[0].seconds <= merged[0].seconds <= exact[0].seconds * 1.03
    np.testing.assert_allclose(few_solves.link_bytes(), all_solves.link_bytes())


def test_ecmp_collides_where_adaptive_and_static_do_not():
    times = {}
    for routing in ("adaptive", "ecmp", "static"):
        fabric = build_fabric(
            "fat_tree_2", replace(BARE, nodes=512, switch_ports=32, routing=routing)
        )
        # Every GPU sends to the one two leaves on.
        source = np.arange(512)
        done, network, _ = run(fabric, (0.0, make_flows(source, (source + 32) % 512, 1.0), 0))
        times[routing] = float(np.mean(done[0].finish))
        check_conservation(fabric, network, [done[0].flows])
    assert times["ecmp"] > 1.3 * times["adaptive"]
    assert times["static"] == pytest.approx(times["adaptive"])


def test_doubling_every_bandwidth_halves_the_time():
    rng = np.random.default_rng(1)
    source = rng.integers(0, 16, 40)
    flows = make_flows(source, (source + rng.integers(1, 16, 40)) % 16, rng.uniform(1, 2, 40))
    slow = run(build_fabric("fat_tree_2", BARE), (0.0, flows, 0))[0][0]
    fast = run(
        build_fabric("fat_tree_2", replace(BARE, nic_bandwidth=2.0, link_bandwidth=2.0)),
        (0.0, flows, 0),
    )[0][0]
    np.testing.assert_allclose(fast.finish, slow.finish / 2)


# --- failures


def across(fabric):
    """Every GPU sends to the GPU of its index in the next node."""
    source = np.arange(fabric.gpus)
    return make_flows(source, (source + fabric.inputs.gpus_per_node) % fabric.gpus, 1.0)


def test_a_failed_plane_is_detoured_over_nvlink_and_the_other_planes():
    fabric = build_fabric("multi_plane_fat_tree", NODES)
    flows = across(fabric)
    healthy, _, _ = run(fabric, (0.0, flows, 0))
    before, network, _ = run(fabric, (0.0, flows, 0), failures=["plane:3"])
    during, later, _ = run(fabric, (0.0, flows, 0), failures=["plane:3@0.5s"])
    assert healthy[0].seconds == pytest.approx(1.0)
    assert 1.3 <= before[0].seconds <= 2.0
    assert 1.1 <= during[0].seconds < before[0].seconds
    dead = slice(fabric.plane_start[3], fabric.plane_start[4])
    assert network.link_bytes()[dead].sum() == 0
    # Half of the traffic had gone through plane 3 when it failed: 4 flows of half a byte, 2 links.
    assert later.link_bytes()[dead].sum() == pytest.approx(4.0)
    assert network.link_bytes()[: 2 * fabric.gpus].sum() > 0
    check_conservation(fabric, later, [flows])


def test_bytes_that_went_over_a_plane_before_it_failed_stay_on_its_links():
    inputs = replace(NODES, nodes=16, switch_ports=8)
    fabric = build_fabric("multi_plane_fat_tree", inputs)
    source = np.arange(fabric.gpus)
    flows = make_flows(source, (source + 32) % fabric.gpus, 1.0)
    _, network, _ = run(fabric, (0.0, flows, 0), failures=["plane:3@0.5s"])
    start = fabric.plane_start[3] + 2 * fabric.planes[3].end_ports
    cables = network.link_bytes()[start : start + fabric.planes[3].links]
    # 16 NICs, half a byte each, up to a spine and down again.
    assert cables.sum() == pytest.approx(16.0)
    assert np.isfinite(network.link_bytes()).all()
    check_conservation(fabric, network, [flows])


def test_the_reference_without_failures_is_never_slower():
    for failure in ("nic:node1/nic2", "switch:plane0/leaf0", "link:node0/nic0/up"):
        fabric = build_fabric("multi_plane_fat_tree", NODES)
        done, network, _ = run(fabric, (0.0, across(fabric), 0), failures=[failure])
        assert done[0].seconds > 1.0
        check_conservation(fabric, network, [done[0].flows])


def test_a_cut_during_the_run_stalls_its_flows_and_says_so():
    fabric = build_fabric("fat_tree_2", BARE)
    flows = make_flows(np.array([0, 1]), np.array([9, 2]), 2.0)
    done, network, _ = run(fabric, (0.0, flows, 0), failures=["switch:plane0/leaf2@1s"])
    assert not done
    assert network.stalled == [
        "1 of 2 flows cut off at 1 s: no live path from node0/gpu0 to node9/gpu0"
    ]


def test_a_slow_link_slows_what_crosses_it_and_adaptive_routing_less():
    failure = "slow:plane0/leaf0/up1=0.5"
    times = {}
    for routing in ("adaptive", "static"):
        fabric = build_fabric("fat_tree_2", replace(BARE, routing=routing))
        source = np.arange(4)
        flows = make_flows(source, source + 4, 1.0)
        done, _, _ = run(fabric, (0.0, flows, 0), failures=[failure])
        times[routing] = done[0].seconds
    assert times["static"] == pytest.approx(2.0)
    assert times["adaptive"] == pytest.approx(4 / 3.5)
