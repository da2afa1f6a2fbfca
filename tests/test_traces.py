"""Traces of every job read back as Perfetto reads them: pairs closed, arrows bound, units there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trace_reader import Trace

from reports.jobs import JOB_REPORTS
from simulator.analysis.run import simulate
from simulator.scenario.files import load_scenario


def trace_of(name: str, changes: list[str], where: Path, file: str = "perfetto.json") -> Trace:
    run = simulate(load_scenario(name, changes))
    JOB_REPORTS[run.scenario.job_name]().write(run, run.quick_metrics, where)
    return Trace(where / file)


def test_a_training_step_has_sends_between_ranks_waits_between_streams_and_memory(tmp_path):
    trace = trace_of("dualpipe_h800_2048", [], tmp_path / "run")
    assert trace.faults() == []
    assert trace.processes[1] == "pipeline rank 0 (stages 0, 15)"
    names = {event["name"] for event in trace.of("s")}
    assert names == {"send activations", "send gradients", "waits for"}
    # 120 micro-batches pass the 15 borders between 16 ranks, forwards and backwards.
    sends = [event for event in trace.of("s") if event["name"].startswith("send")]
    assert len(sends) == 2 * 120 * 15
    assert trace.counters() == {
        "memory (bytes)", "HBM of compute kernels (bytes/s)", "payload of transfers (bytes/s)",
        "SMs of communication (SMs)",
    }  # fmt: skip


def test_memory_over_time_reaches_the_peak_of_every_rank(tmp_path):
    trace = trace_of("dualpipe_h800_2048", ["skew=none"], tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for rank, memory in enumerate(metrics["memory"]):
        held = [sum(e["args"].values()) for e in trace.of("C")
                if e["pid"] == rank + 1 and e["name"] == "memory (bytes)"]  # fmt: skip
        assert max(held) == pytest.approx(memory["total"], rel=1e-12)


def test_a_serving_step_has_waits_between_streams_and_its_kv_cache(tmp_path):
    trace = trace_of("decode_ep144_day6", [], tmp_path / "run")
    assert trace.faults() == []
    assert trace.processes == {1: "one rank: decode"}
    assert list(trace.threads.values()) == ["compute", "communication"]
    assert len(trace.of("s")) > 0
    assert "KV cache (tokens)" in trace.counters()


def test_a_fleet_has_its_instances_requests_and_what_moves_between_them(tmp_path):
    changes = ["requests.limit=60", "sample_interval=1 s", "published=[]"]
    trace = trace_of("mooncake_conversation", changes, tmp_path / "run")
    assert trace.faults() == []
    assert list(trace.processes.values())[-1] == "requests"
    assert {"instance prefill 0", "instance decode 0"} <= set(trace.processes.values())
    assert trace.counters() == {
        "KV cache (tokens)", "KV cache (% in use)", "batch (requests)", "prefill queue (requests)",
    }  # fmt: skip
    arrows = {event["id"] for event in trace.of("s")}
    assert len(arrows) > 50
    assert {event["name"] for event in trace.of("s")} == {"KV cache of a request"}


def test_a_collective_has_its_phases_and_what_flows_and_links_carry(tmp_path):
    trace = trace_of("all_to_all_64", [], tmp_path / "run")
    assert trace.faults() == []
    assert trace.processes == {1: "fat_tree_2 of 64 GPUs"}
    assert "flows of all_to_all (bytes/s)" in trace.counters()
    assert "link node0/nic0/up (% of capacity, mean)" in trace.counters()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"ph": "X", "pid": 9, "tid": 0, "name": "a", "ts": 0, "dur": 1}, "has no name"),
        ({"ph": "X", "pid": 1, "tid": 0, "name": "a", "ts": 3, "dur": 9}, "crosses another"),
        ({"ph": "s", "pid": 1, "tid": 0, "name": "a", "cat": "a", "id": 7, "ts": 1}, "has ends"),
        ({"ph": "C", "pid": 1, "tid": 0, "name": "a", "ts": 1, "args": {"a": 1.0}}, "no unit"),
        ({"ph": "b", "pid": 1, "tid": 0, "name": "a", "cat": "a", "id": 7, "ts": 1}, "never ends"),
    ],
)
def test_the_reader_sees_a_fault(fault, said, tmp_path):
    whole = [
        {"ph": "M", "pid": 1, "tid": 0, "name": "process_name", "args": {"name": "p"}},
        {"ph": "M", "pid": 1, "tid": 0, "name": "thread_name", "args": {"name": "t"}},
        {"ph": "X", "pid": 1, "tid": 0, "name": "slice", "ts": 0, "dur": 5},
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": whole}))
    assert Trace(path).faults() == []
    path.write_text(json.dumps({"traceEvents": [*whole, fault]}))
    assert any(said in fault for fault in Trace(path).faults())
