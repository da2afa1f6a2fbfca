from pathlib import Path
from typing import Any

import pytest

from simulator.workload.profile.kineto import read_kineto
from simulator.workload.profile.replay_graph import ReplayGraph, Role, build_replay


def graph_of(profile: Any, folder: Path) -> ReplayGraph:
    trace = read_kineto(profile.write(folder / "trace.json"))
    roles = [
        Role.COMMUNICATION
        if "all_to_all" in kernel.name
        else Role.RANK_WAIT
        if "barrier" in kernel.name
        else Role.COMPUTE
        for kernel in trace.kernels
    ]
    return build_replay(trace, roles=roles, polled=["counts" in k.name for k in trace.kernels])


def named_waits(graph: ReplayGraph) -> set[tuple[str, str]]:
    return {
        (graph.kernels[index].name, graph.kernels[earlier].name)
        for index, waits in enumerate(graph.waits)
        for earlier in waits
    }


def test_an_exchange_waits_for_what_was_launched_before_it_and_is_waited_for_once(
    overlapped_profile: Any, tmp_path: Path
) -> None:
    graph = graph_of(overlapped_profile, tmp_path)
    waits = {index: found for index, found in enumerate(graph.waits) if found}
    names = [kernel.name for kernel in graph.kernels]
    assert names == ["cast", "all_to_all", "gemm", "cast"] * 2
    assert waits == {1: (0,), 3: (1,), 5: (4,), 7: (5,)}
    assert graph.communication_streams == {27}
    assert (graph.wait_calls, graph.idle_waits) == (4, 0)


def test_a_fork_waits_only_for_what_started_before_it_though_more_was_launched(
    profile: Any, tmp_path: Path
) -> None:
    # The event was recorded after "early"; the wait call comes when "late" is launched already.
    profile.launch("early", called=0, at=10, us=50)
    profile.call("cudaStreamWaitEvent", 8, 1)
    profile.launch("late", called=10, at=62, us=100)
    profile.launch("late", called=16, at=164, us=100)
    profile.call("cudaStreamWaitEvent", 30, 1)
    profile.launch("all_to_all", called=35, at=63, us=80, stream=27)
    assert named_waits(graph_of(profile, tmp_path)) == {("all_to_all", "early")}


def test_two_joins_after_two_exchanges_take_one_each_in_order(profile: Any, tmp_path: Path) -> None:
    profile.launch("work", called=0, at=10, us=10)
    profile.call("cudaStreamWaitEvent", 10, 1)
    profile.launch("all_to_all one", called=12, at=22, us=10, stream=27)
    profile.call("cudaStreamWaitEvent", 20, 1)
    profile.launch("all_to_all two", called=22, at=34, us=90, stream=27)
    profile.call("cudaStreamWaitEvent", 30, 1)
    profile.launch("needs one", called=32, at=40, us=10)
    profile.call("cudaStreamWaitEvent", 40, 1)
    profile.launch("needs two", called=42, at=126, us=10)
    waits = named_waits(graph_of(profile, tmp_path))
    assert ("needs one", "all_to_all one") in waits
    assert ("needs two", "all_to_all two") in waits
    assert ("needs one", "all_to_all two") not in waits


def test_recorded_synchronisation_events_take_the_place_of_the_rule(
    profile: Any, tmp_path: Path
) -> None:
    profile.launch("early", called=0, at=10, us=50)
    record = profile.call("cudaEventRecord", 6, 1)
    profile.launch("late", called=10, at=62, us=100)
    wait = profile.call("cudaStreamWaitEvent", 18, 1)
    profile.launch("all_to_all", called=25, at=163, us=80, stream=27)
    profile.events.append(
        {
            "ph": "X",
            "cat": "cuda_sync",
            "name": "Stream Wait Event",
            "ts": 18,
            "dur": 1,
            "args": {
                "correlation": wait,
                "stream": 27,
                "wait_on_stream": 7,
                "wait_on_cuda_event_record_corr_id": record,
            },
        }
    )
    assert named_waits(graph_of(profile, tmp_path)) == {("all_to_all", "early")}


def test_threads_that_never_call_at_once_take_turns(profile: Any, tmp_path: Path) -> None:
    profile.launch("forward", called=0, at=10, us=10, thread=1)
    profile.launch("backward", called=100, at=110, us=10, thread=2)
    profile.launch("after", called=200, at=210, us=10, thread=1)
    actions = graph_of(profile, tmp_path).actions
    assert [action.after for action in actions] == [None, 0, 1]
    assert [action.cpu_before_s for action in actions] == pytest.approx([0.0, 95e-6, 95e-6])


def test_threads_that_call_at_once_run_side_by_side(profile: Any, tmp_path: Path) -> None:
    profile.launch("a", called=0, at=10, us=10, thread=1)
    profile.launch("b", called=3, at=20, us=10, thread=2)
    profile.launch("c", called=50, at=60, us=10, thread=1)
    actions = graph_of(profile, tmp_path).actions
    assert [action.after for action in actions] == [None, None, 0]


def test_polling_for_a_kernel_is_no_cpu_time(profile: Any, tmp_path: Path) -> None:
    profile.launch("barrier counts", called=0, at=10, us=900, stream=27)
    profile.span("aten::empty", 905, 915, category="cpu_op")
    profile.launch("all_to_all", called=920, at=930, us=10, stream=27)
    action = graph_of(profile, tmp_path).actions[1]
    assert action.polls == (0,)
    assert action.cpu_before_s == pytest.approx(15e-6)


def test_a_synchronising_call_waits_for_the_gpu_and_has_no_time_of_its_own(
    profile: Any, tmp_path: Path
) -> None:
    profile.launch("a", called=0, at=10, us=900)
    profile.launch("b", called=10, at=20, us=30, stream=8)
    profile.call("cudaStreamSynchronize", 20, 60)
    profile.call("cudaDeviceSynchronize", 100, 820)
    actions = graph_of(profile, tmp_path).actions
    assert actions[2].blocks_until == (1,)
    assert set(actions[3].blocks_until) == {0, 1}
    assert actions[2].cpu_s == actions[3].cpu_s == 0.0


def test_nested_calls_are_counted_once(profile: Any, tmp_path: Path) -> None:
    profile.call("cudaLaunchCooperativeKernel", 0, 10)
    profile.launch("a", called=2, at=10, us=10, cost=3)
    profile.launch("b", called=12, at=30, us=10, cost=3)
    actions = graph_of(profile, tmp_path).actions
    total = sum(action.cpu_before_s + action.cpu_s for action in actions)
    assert total == pytest.approx(15e-6)


def test_a_trace_with_unclear_launches_is_not_replayed(profile: Any, tmp_path: Path) -> None:
    profile.launch("a", called=0, at=10, us=10)
    profile.launch("b", called=10, at=30, us=-1)
    with pytest.raises(ValueError, match="cannot be replayed: 1 x kernel with a negative duration"):
        graph_of(profile, tmp_path)
