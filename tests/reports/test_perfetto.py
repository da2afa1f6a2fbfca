"""Events of the trace format, one at a time."""

import json

from reports.perfetto import (
    arrow,
    counter,
    name_process,
    name_thread,
    slice_of,
    within,
    write_trace,
)


def test_a_slice_is_in_microseconds_and_whole_nanoseconds():
    assert slice_of((1, 2), "gemm", (1e-6, 3.5004e-6), {"layer": "moe"}) == {
        "ph": "X", "pid": 1, "tid": 2, "name": "gemm", "ts": 1.0, "dur": 2.5,
        "args": {"layer": "moe"},
    }  # fmt: skip


def test_an_arrow_begins_inside_one_slice_and_ends_at_another():
    start, end = arrow(7, "send", within((0.0, 2e-6), (1, 0)), ((2, 0), 3e-6))
    assert (start["ph"], start["id"], start["pid"], start["ts"]) == ("s", 7, 1, 1.999)
    assert (end["ph"], end["bp"], end["id"], end["pid"], end["ts"]) == ("f", "e", 7, 2, 3.0)


def test_a_counter_says_its_values_from_an_instant_on():
    assert counter(3, "memory (bytes)", 1.0, {"bytes": 5}) == {
        "ph": "C", "pid": 3, "tid": 0, "name": "memory (bytes)", "ts": 1e6, "args": {"bytes": 5.0},
    }  # fmt: skip


def test_processes_and_threads_have_names_and_an_order(tmp_path):
    write_trace([*name_process(4, "rank 4"), *name_thread((4, 1), "compute")], tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert [(e["name"], e["args"]) for e in events] == [
        ("process_name", {"name": "rank 4"}),
        ("process_sort_index", {"sort_index": 4}),
        ("thread_name", {"name": "compute"}),
        ("thread_sort_index", {"sort_index": 1}),
    ]
