import copy
import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.workload.profile.kineto import read_kineto


def test_json_and_gzip_read_the_same(overlapped_profile: Any, tmp_path: Path) -> None:
    plain = read_kineto(overlapped_profile.write(tmp_path / "trace.json"))
    packed = read_kineto(overlapped_profile.write(tmp_path / "trace.json.gz"))
    assert plain.kernels == packed.kernels
    assert plain.calls == packed.calls
    assert len(plain.kernels) == 8
    assert plain.devices == ("NVIDIA H800",)
    assert plain.sms == 132
    assert plain.measured_span_s == pytest.approx(1510e-6)


def test_a_list_of_events_is_a_trace_too(profile: Any, tmp_path: Path) -> None:
    profile.launch("gemm", called=0, at=10, us=20)
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(profile.events), encoding="utf-8")
    assert read_kineto(path).kernels[0].seconds == pytest.approx(20e-6)


def test_a_file_cut_short_says_so(overlapped_profile: Any, tmp_path: Path) -> None:
    whole = json.dumps(overlapped_profile.document())
    path = tmp_path / "cut.json"
    for length in (len(whole) // 3, len(whole) // 2, len(whole) - 2):
        path.write_text(whole[:length], encoding="utf-8")
        with pytest.raises(ValueError, match=r"cut\.json: cut short: line 1"):
            read_kineto(path)
    packed = tmp_path / "cut.json.gz"
    packed.write_bytes(gzip.compress(whole.encode())[:-20])
    with pytest.raises(ValueError, match="cut short"):
        read_kineto(packed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"kernel,us\ngemm,3\n", "not JSON: line 1"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"{}", "no list 'traceEvents'"),
        (b"3", "no list 'traceEvents'"),
        (b'{"traceEvents": []}', "no GPU kernel in 0 events"),
        (b"\x1f\x8b\x08\x00rubbish that is no gzip", "gzip"),
        (b"[" * 100_000, "not a trace"),
    ],
)
def test_a_file_that_is_no_trace_is_one_clear_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "wrong.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_kineto(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_kineto(tmp_path / "none.json")


def test_kernels_of_two_gpus_are_an_error(profile: Any, tmp_path: Path) -> None:
    profile.launch("gemm", called=0, at=10, us=20)
    profile.launch("gemm", called=5, at=10, us=20, device=1)
    with pytest.raises(ValueError, match=r"several GPUs \(device 0: 1, device 1: 1\)"):
        read_kineto(profile.write(tmp_path / "trace.json"))


def test_broken_events_are_counted_and_named(profile: Any, tmp_path: Path) -> None:
    profile.launch("gemm", called=0, at=10, us=20)
    profile.launch("negative", called=10, at=40, us=-3)
    profile.kernel("no launch", stream=7, at=60, us=1, correlation=9999)
    shared = profile.call("cudaLaunchKernel", 70)
    profile.kernel("one", stream=7, at=80, us=1, correlation=shared)
    profile.kernel("two", stream=7, at=90, us=1, correlation=shared)
    profile.call("cudaLaunchKernel", 95, correlation=shared)
    profile.events.append({"ph": "X", "cat": "kernel", "name": "no time", "args": {"stream": 7}})
    profile.events.append("not an object")
    trace = read_kineto(profile.write(tmp_path / "trace.json"))
    assert [kernel.name for kernel in trace.kernels] == ["gemm", "no launch", "one", "two"]
    told = {problem.what: problem.events for problem in trace.problems}
    assert told == {
        "kernel with a negative duration": (3,),
        "kernel whose 'ts' is not a number": (9,),
        "event that is not an object": (10,),
        "call with the correlation id of an earlier call": (8,),
        "kernel without the call that launched it": (4,),
        "kernel with the correlation id of an earlier kernel": (7,),
    }
    assert str(trace.problems[0]) == "1 x kernel with a negative duration: event 3"


def test_one_graph_launch_may_start_many_kernels(profile: Any, tmp_path: Path) -> None:
    shared = profile.call("cudaGraphLaunch", 0)
    for at in (10, 20, 30):
        profile.kernel("node", stream=7, at=at, us=5, correlation=shared)
    trace = read_kineto(profile.write(tmp_path / "trace.json"))
    assert trace.problems == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("correlation", 10**400),
        ("grid", [10**400, 1, 1]),
        ("Input Dims", [[10**400, 4], [True]]),
        ("kind", ["gemm"]),
        ("dtype", "fp8"),
    ],
)
def test_an_argument_of_any_type_leaves_the_event_what_it_can_be(
    profile: Any, tmp_path: Path, field: str, value: object
) -> None:
    profile.launch("gemm", called=0, at=10, us=20)
    described = {"kind": "gemm", "dtype": "bfloat16", "out_dtype": "bfloat16", "operator": "x"}
    sizes = {"m": 1, "n": 2, "k": 3}
    for event in profile.events:
        event["args"] |= described | {"sizes": sizes} | {field: value}
    trace = read_kineto(profile.write(tmp_path / "trace.json"))
    assert [kernel.seconds for kernel in trace.kernels] == pytest.approx([20e-6])


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.just(10**400),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(-2, 2), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_an_event_says_no_kernel_is_lost_in_silence(
    overlapped_profile: Any, tmp_path: Path, data: st.DataObject
) -> None:
    document = copy.deepcopy(overlapped_profile.document())
    events = document["traceEvents"]
    for _ in range(data.draw(st.integers(1, 4))):
        event = events[data.draw(st.integers(0, len(events) - 1))]
        place = event["args"] if data.draw(st.booleans()) else event
        field = data.draw(
            st.sampled_from(sorted(place) or ["args"]) | st.sampled_from(["ts", "dur", "args"])
        )
        place[field] = data.draw(values)
        if not isinstance(event.get("args"), dict):
            event["args"] = {}
    path = tmp_path / "fuzzed.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    kernels = {
        index
        for index, event in enumerate(events)
        if event.get("cat") == "kernel" and event.get("ph") == "X"
    }
    try:
        trace = read_kineto(path)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    kept = {kernel.event for kernel in trace.kernels}
    named = {event for problem in trace.problems for event in problem.events}
    assert kernels <= kept | named
    assert all(math.isfinite(k.seconds) and k.seconds >= 0 for k in trace.kernels)
