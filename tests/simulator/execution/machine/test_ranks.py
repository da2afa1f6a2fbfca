"""Ranks of a group run one graph: as the timeline where nothing contends, later where it does."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from fabrics import BARE

from reference_model.trace import Operator
from simulator.execution import timeline
from simulator.execution.machine.gpu import Gpu, KernelLaunch
from simulator.execution.machine.ranks import (
    GroupTransfer,
    RankWork,
    check_bytes,
    check_times,
    run_on_ranks,
)
from simulator.hardware.network.flows import Network, make_flows
from simulator.hardware.network.routing import parse_failure
from simulator.hardware.network.topology import build_fabric
from simulator.workload.task_graph import Stream, Task, TaskGraph

FREE = partial(Gpu, sms=None, hbm=None)
COPY = Operator(
    name="copy", kind="copy", phase="forward", segment="attention", dtype="bfloat16",
    out_dtype="bfloat16", sizes=(("columns", 1), ("rows", 1)), recompute=False, accumulate=False,
)  # fmt: skip


def graph(*tasks):
    """Tasks as (letter, dependencies): c computes, m communicates, M meets all ranks, W is a
    transfer without barrier."""
    compute = {"c": Stream.COMPUTE}
    return TaskGraph(
        "test", ("layer",), (COPY,),
        tuple(
            Task(
                0, compute.get(letter, Stream.COMMUNICATION), 0, 0, "part", False,
                letter.isupper(), needs, barrier=letter != "W",
            )
            for letter, needs in tasks
        ),
    )  # fmt: skip


def timed(tasks, seconds, gap_s=0.0):
    found = run_on_ranks(graph(*tasks), RankWork(np.array(seconds, float), ()), gap_s, gpu_of=FREE)
    return found.log


def test_a_barrier_begins_when_the_last_rank_has_come():
    log = timed([("c", ()), ("M", (0,)), ("c", (1,))], [[1, 3], [2, 2], [1, 1]])
    assert log.start_s[1].tolist() == [3.0, 3.0]
    assert log.end_s[2].tolist() == [6.0, 6.0]


def test_a_transfer_without_barrier_ends_with_the_copies_of_the_last_sender():
    log = timed([("c", ()), ("W", (0,))], [[1, 3], [2, 2]])
    assert log.start_s[1].tolist() == [1.0, 3.0]
    assert log.done_s[1].tolist() == [3.0, 5.0]
    assert log.end_s[1].tolist() == [5.0, 5.0]


@pytest.mark.parametrize("seed", range(5))
def test_times_are_those_of_the_timeline_where_nothing_contends(seed):
    rng = np.random.default_rng(seed)
    tasks = [
        (str(rng.choice(list("ccmMW"))), tuple(rng.choice(n, min(n, 2), replace=False).tolist()))
        for n in range(60)
    ]
    seconds = rng.uniform(0, 1, (60, 4))
    log = timed(tasks, seconds, 0.1)
    expected = timeline.run(graph(*tasks), seconds, 0.1, rank_axis=0)
    for name in ("ready_s", "start_s", "done_s", "end_s"):
        np.testing.assert_allclose(getattr(log, name), getattr(expected, name), rtol=1e-12)


# One GPU per node, links of 1 byte/s: ranks 0 and 1 exchange bytes through their NICs.


def exchanged(
    *, sizes=(1.0, 1.0), late=0.0, beside=(), failures=(), window=0.0, hbm=0.0, delay=0.0, fill=0.0
):
    flows = make_flows(np.array([0, 1]), np.array([1, 0]), np.array(sizes))
    transfer = GroupTransfer(
        flows, np.array([0, 1]), 0, np.array([hbm, hbm]), alone_s=1.0, delay_s=delay, fill_s=fill
    )
    work = RankWork(np.array([[0.0, late], [0, 0]]), (), transfers={1: transfer})
    return run_on_ranks(
        graph(("c", ()), ("M", (0,))),
        work,
        0.0,
        gpu_of=FREE,
        network_of=lambda env: Network(env, build_fabric("fat_tree_2", BARE), window=window),
        beside=beside,
        failures=failures,
    )


def test_a_rank_ends_when_its_own_flows_and_those_to_it_have_arrived():
    assert exchanged(sizes=(1.0, 2.0), late=3.0, delay=0.5).log.end_s[1].tolist() == [5.5, 5.5]


def test_the_first_chunk_fills_the_way_before_all_links_are_busy():
    assert exchanged(delay=0.5, fill=0.25).log.end_s[1].tolist() == [1.75, 1.75]


def test_a_nic_that_drops_to_half_its_rate_doubles_the_rest():
    """Half of the byte is left at 0.5 s and takes 1 s."""
    half = parse_failure("slow:node0/nic0/up=0.5@500ms")
    assert exchanged(failures=(half,)).log.end_s[1].tolist() == [1.5, 1.5]


def test_another_job_takes_half_of_a_link_it_shares():
    """A flow from 0 to 1 shares NIC 0's link up and NIC 1's link down until 2 s."""

    def other(env, network):
        yield network.transfer(make_flows(np.array([0]), np.array([1]), np.array([1.0])))

    assert exchanged(beside=(other,)).log.end_s[1].tolist() == [2.0, 2.0]


def test_a_rank_that_is_cut_off_is_named():
    cut = parse_failure("nic:node0/nic0@500ms")
    with pytest.raises(ValueError, match=r"test: 1 of 1 flows cut off at 0\.5 s"):
        exchanged(failures=(cut,))


def test_bytes_over_the_links_are_those_of_the_flows():
    found = exchanged(sizes=(1.0, 2.0))
    fabric = found.network.fabric
    up = [fabric.nic_link(node, 0, "up") for node in (0, 1)]
    assert found.network.link_bytes()[up].tolist() == [1.0, 2.0]


def test_rates_of_links_are_noted_from_transfer_to_transfer():
    """1 byte from node 0 and 2 from node 1, both sent in the 2 s of the transfer."""
    rates = {(name, at): rate for name, at, rate in exchanged(sizes=(1.0, 2.0)).link_rates}
    assert rates["node0/nic0/up", 0.0] == pytest.approx(0.5)
    assert rates["node1/nic0/up", 0.0] == pytest.approx(1.0)
    assert rates["node0/nic0/down", 0.0] == pytest.approx(1.0)


def test_bytes_that_are_lost_end_the_run():
    network = exchanged().network
    network.carried[network.fabric.nic_link(0, 0, "up")] += 1.0
    with pytest.raises(AssertionError, match="the fabric lost bytes"):
        check_bytes(network)


def test_a_rank_that_takes_longer_than_all_its_tasks_ends_the_run():
    log = timed([("c", ())], [[1.0]])
    with pytest.raises(AssertionError, match="a rank idles for nothing"):
        check_times(replace(log, ready_s=log.ready_s + 0.5, start_s=log.start_s + 0.5))


def test_a_transfer_holds_its_sms_from_when_its_rank_is_ready():
    """2 of 10 SMs wait from 0 s for a rank that comes at 4 s and go back at 5 s; the kernel of
    8 s is done with 4 of 8 parts at 5 s, and the rest takes 4 s on all ten."""
    kernel = KernelLaunch(8.0, 10, persistent=False, hbm_bytes=0.0)
    work = RankWork(
        np.array([[0.0, 4.0], [1.0, 1.0], [0.0, 0.0]]),
        [[None, None], [None, None], [kernel, None]],
        transfer_sms=(0, 2, 0),
    )
    tasks = graph(("m", ()), ("M", ()), ("c", ()))
    log = run_on_ranks(tasks, work, 0.0, gpu_of=partial(Gpu, sms=10, hbm=None)).log
    assert log.end_s[2, 0] == pytest.approx(9.0, rel=1e-12)
