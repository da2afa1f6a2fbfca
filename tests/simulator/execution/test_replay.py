from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from simulator.execution.replay import (
    IDLE,
    ReplayLog,
    ReplayMachine,
    execute_replay,
    idle_time,
    measured_times,
)
from simulator.workload.profile.kineto import read_kineto
from simulator.workload.profile.recording import Trace
from simulator.workload.profile.replay_graph import Role, build_replay

US = 1e-6
MACHINE = ReplayMachine(
    host_speed=1.0, launch_latency_s=2 * US, kernel_gap_s=2 * US, sms=None, sm_limits=None
)


def run(trace: Trace, machine: ReplayMachine = MACHINE, faster_gpu: float = 1.0) -> ReplayLog:
    roles = [
        Role.COMMUNICATION if "all_to_all" in kernel.name else Role.COMPUTE
        for kernel in trace.kernels
    ]
    graph = build_replay(trace, roles=roles, polled=["counts" in k.name for k in trace.kernels])
    seconds = [kernel.seconds / faster_gpu for kernel in trace.kernels]
    return execute_replay(graph, seconds, [k.blocks for k in trace.kernels], machine)


def test_an_overlapped_pair_replays_to_its_recorded_span_and_stall(
    overlapped_profile: Any, tmp_path: Path
) -> None:
    trace = read_kineto(overlapped_profile.write(tmp_path / "trace.json"))
    log = run(trace)
    assert log.span_s == pytest.approx(trace.measured_span_s, rel=0.02)
    assert idle_time(log)["exposed_communication_s"] == pytest.approx(300 * US, abs=5 * US)
    measured = measured_times(log.graph, trace, MACHINE)
    assert idle_time(measured)["exposed_communication_s"] == pytest.approx(300 * US, abs=5 * US)


def test_waiting_for_other_ranks_is_told_from_exposed_communication(
    profile: Any, tmp_path: Path
) -> None:
    """The compute stream ends at 100 us and goes on at 702: a barrier holds until 402, then the
    transfer itself takes 300 us. By hand: 302 us of waiting for ranks and 298 of communication, as
    the 2 us before the next kernel are a gap and no waiting."""
    profile.launch("first", called=0, at=10, us=100)
    profile.call("cudaStreamWaitEvent", 8, 1)
    profile.launch("barrier", called=12, at=112, us=300, stream=27)
    profile.launch("all_to_all", called=20, at=412, us=300, stream=27)
    profile.call("cudaStreamWaitEvent", 30, 1)
    profile.launch("second", called=34, at=714, us=50)
    trace = read_kineto(profile.write(tmp_path / "trace.json"))
    roles = [Role.COMPUTE, Role.RANK_WAIT, Role.COMMUNICATION, Role.COMPUTE]
    graph = build_replay(trace, roles=roles)
    times = measured_times(graph, trace, MACHINE)
    idle = idle_time(times)
    assert idle["exposed_communication_s"] == pytest.approx(302 * US)
    assert idle["waiting_for_ranks_s"] == pytest.approx(300 * US)
    assert idle["launch_bound_s"] == 0
    assert idle["other_idle_s"] == pytest.approx(2 * US)
    # The first launch is called 10 us before its kernel, and takes 5.
    assert times.call_start_s[0] == pytest.approx(-10 * US)
    assert times.call_end_s[0] == pytest.approx(-5 * US)


def test_a_collective_of_the_compute_stream_and_a_transfer_at_the_end_are_exposed(
    profile: Any, tmp_path: Path
) -> None:
    """As on the timeline. The compute stream computes for 400 us, takes part in a collective for
    200, waits in a barrier for 50, computes for 50, and ends 100 us before a transfer."""
    profile.launch("first", called=0, at=10, us=400)
    profile.launch("all_to_all", called=12, at=410, us=406, stream=27)
    profile.launch("all_reduce", called=16, at=412, us=200)
    profile.launch("barrier", called=20, at=614, us=50)
    profile.launch("second", called=24, at=666, us=50)
    trace = read_kineto(profile.write(tmp_path / "trace.json"))
    of_name = {"all_to_all": Role.COMMUNICATION, "all_reduce": Role.COMMUNICATION}
    of_name["barrier"] = Role.RANK_WAIT
    roles = [of_name.get(kernel.name, Role.COMPUTE) for kernel in trace.kernels]
    graph = build_replay(trace, roles=roles)
    assert graph.communication_streams == {27}
    idle = idle_time(measured_times(graph, trace, MACHINE))
    found = [idle[name] for name in IDLE]
    assert found == pytest.approx([300 * US, 50 * US, 0.0, 6 * US], abs=1e-12)


def test_recorded_gpu_starts_do_not_matter_only_their_order(
    overlapped_profile: Any, tmp_path: Path
) -> None:
    spans = [run(read_kineto(overlapped_profile.write(tmp_path / "trace.json"))).span_s]
    kernels = [event for event in overlapped_profile.events if event["cat"] == "kernel"]
    kernels.sort(key=lambda event: event["ts"])
    for number, event in enumerate(kernels):
        event["ts"] = 50_000 + 3 * number
    spans.append(run(read_kineto(overlapped_profile.write(tmp_path / "moved.json"))).span_s)
    assert spans[0] == spans[1]


def test_a_host_bound_trace_stays_host_bound_on_a_faster_gpu(profile: Any, tmp_path: Path) -> None:
    for number in range(50):
        profile.launch("small", called=20.0 * number, at=20.0 * number + 8, us=4)
    trace = read_kineto(profile.write(tmp_path / "trace.json"))
    recorded = run(trace)
    faster_gpu = run(trace, faster_gpu=10.0)
    faster_host = run(trace, replace(MACHINE, host_speed=2.0))
    assert recorded.span_s == pytest.approx(trace.measured_span_s, rel=0.01)
    assert faster_gpu.span_s > 0.98 * recorded.span_s
    assert faster_host.span_s == pytest.approx(recorded.span_s / 2, rel=0.02)
    # 20 us from launch to launch, less 4 us of kernel and 2 us of gap.
    assert idle_time(recorded)["launch_bound_s"] == pytest.approx(49 * 14 * US)


def test_a_thread_that_polls_launches_sooner_when_the_gpu_is_faster(
    profile: Any, tmp_path: Path
) -> None:
    profile.launch("counts", called=0, at=10, us=1000)
    profile.launch("next", called=1030, at=1040, us=10)
    trace = read_kineto(profile.write(tmp_path / "trace.json"))
    assert run(trace).start_s[1] == pytest.approx(1007 * US)
    assert run(trace, faster_gpu=2.0).start_s[1] == pytest.approx(507 * US)


def test_a_synchronising_call_holds_the_thread_until_the_gpu_is_done(
    profile: Any, tmp_path: Path
) -> None:
    profile.launch("long", called=0, at=7, us=500)
    profile.call("cudaDeviceSynchronize", 10, 500)
    profile.launch("next", called=520, at=530, us=10)
    trace = read_kineto(profile.write(tmp_path / "trace.json"))
    # 10 us from the call's end to the next, 5 us of call, 2 us of latency.
    assert run(trace).start_s[1] == pytest.approx(517 * US)
    assert run(trace, faster_gpu=5.0).start_s[1] == pytest.approx(117 * US)


def test_two_persistent_kernels_of_two_streams_run_one_after_the_other(
    profile: Any, tmp_path: Path
) -> None:
    whole_sm = {"grid": 132, "threads": 384, "registers": 168, "shared": 200_000}
    profile.launch("one", called=0, at=7, us=100, stream=7, **whole_sm)
    profile.launch("two", called=5, at=107, us=100, stream=8, **whole_sm)
    trace = read_kineto(profile.write(tmp_path / "trace.json"))
    limited = replace(MACHINE, sms=trace.sms, sm_limits=trace.sm_limits)
    assert run(trace, limited).span_s == pytest.approx(200 * US)
    assert run(trace).span_s == pytest.approx(105 * US)


def test_every_kernel_respects_its_stream_its_launch_and_its_waits(
    overlapped_profile: Any, tmp_path: Path
) -> None:
    times = run(read_kineto(overlapped_profile.write(tmp_path / "trace.json")))
    for bound in (
        times.stream_ready_s,
        times.launched_s,
        times.compute_ready_s,
        times.communication_ready_s,
    ):
        assert (times.start_s >= bound - 1e-12).all()
    assert not np.isnan(times.end_s).any()


def test_durations_must_fit_the_kernels(overlapped_profile: Any, tmp_path: Path) -> None:
    log = run(read_kineto(overlapped_profile.write(tmp_path / "trace.json")))
    with pytest.raises(ValueError, match="3 durations for 8 kernels"):
        execute_replay(log.graph, [1.0] * 3, [1] * 8, MACHINE)


steps = st.tuples(
    st.sampled_from(["wait", "launch", "launch", "launch", "sync", "device sync", "counts"]),
    st.sampled_from([7, 23, 27]),
    st.integers(1, 2),
    st.integers(0, 40),
    st.integers(0, 90),
    st.integers(0, 200),
)


WAIT = ("wait", 7, 1, 0, 0, 0)
# The last kernel is launched after a host that waits for what stands before it in its group.
BACKWARD = [
    *[WAIT] * 7, ("launch", 23, 1, 0, 0, 0), *[WAIT] * 2, ("launch", 7, 1, 0, 0, 1),
    ("sync", 7, 1, 0, 0, 0), ("launch", 27, 1, 0, 0, 0), ("launch", 23, 1, 0, 0, 0),
]  # fmt: skip


@example(made_up=BACKWARD)
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(made_up=st.lists(steps, min_size=1, max_size=25))
def test_any_mixture_of_streams_threads_waits_and_syncs_runs_to_its_end(
    profile: Any, tmp_path: Path, made_up: list[tuple[str, int, int, int, int, int]]
) -> None:
    profile.events.clear()
    profile.launch("work", called=0, at=10, us=3)
    at = 10.0
    for what, stream, thread, pause, us, start in made_up:
        at += pause
        if what == "wait":
            profile.call("cudaStreamWaitEvent", at, 1, thread)
        elif what == "sync":
            profile.call("cudaStreamSynchronize", at, 9, thread)
        elif what == "device sync":
            profile.call("cudaDeviceSynchronize", at, 9, thread)
        else:
            name = "all_to_all" if stream == 27 else what
            kernel = {"grid": 112, "threads": 384, "registers": 168, "shared": 200_000}
            profile.launch(name, called=at, at=start, us=us, stream=stream, thread=thread, **kernel)
    trace = read_kineto(profile.write(tmp_path / "trace.json"))
    log = run(trace, replace(MACHINE, sms=trace.sms, sm_limits=trace.sm_limits))
    total = sum(kernel.seconds for kernel in trace.kernels)
    # Times of a profile are differences of microseconds since its start, rounded in the last digit.
    longest = max(kernel.seconds for kernel in trace.kernels)
    assert log.span_s >= longest * (1 - 1e-12)
    host = sum(action.cpu_before_s + action.cpu_s for action in log.graph.actions)
    assert log.span_s <= total + host + 4 * US * (len(trace.kernels) + 1)
    for stream in log.graph.streams.values():
        ends = log.end_s[list(stream)]
        assert (np.diff(ends) >= 0).all()
