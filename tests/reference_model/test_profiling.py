"""The profile of one full-size layer, recorded on an H200 and shipped as a fixture."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from reference_model.config import load_model_config
from reference_model.measure_grid import WORKLOADS
from reference_model.precision import Recipe
from reference_model.profiling import LayerProfile, profile_layer, save_profile, split_kernels
from reference_model.recorder import Workload, record_layer

FIXTURE = Path(__file__).parent / "data" / "moe_layer_h200.json"


@pytest.fixture(scope="module")
def events() -> list[dict]:
    return json.loads(FIXTURE.read_text(encoding="utf-8"))["traceEvents"]


@pytest.fixture(scope="module")
def on_meta() -> list[dict]:
    """What the same layer issues on the meta device."""
    recorded = record_layer(
        load_model_config("deepseek_v3"),
        "moe",
        Workload(**WORKLOADS["train"]),
        recipe=Recipe("fp8", "reference"),
    ).recorded
    return [
        {
            "operator": o.name,
            "kind": o.kind,
            "phase": o.phase,
            "segment": o.segment,
            "recompute": o.recompute,
            "dtype": o.dtype,
            "out_dtype": o.out_dtype,
            "sizes": dict(o.sizes),
        }
        for o in (r.operator for r in recorded)
    ]


def test_operators_recorded_on_cuda_equal_those_recorded_on_meta(events, on_meta):
    assert [e["args"] for e in events if e["cat"] == "cpu_op"] == on_meta


def test_every_operator_launched_a_kernel(events):
    operators = {e["args"]["operator"] for e in events if e["cat"] == "cpu_op"}
    assert {e["args"]["operator"] for e in events if e["cat"] != "cpu_op"} == operators
    assert all(e["dur"] > 0 for e in events)


def test_a_kernel_belongs_to_one_stream_and_does_not_overlap_the_next(events):
    kernels = [e for e in events if e["cat"] != "cpu_op"]
    assert len({e["args"]["stream"] for e in kernels}) == 1
    for earlier, later in pairwise(kernels):
        assert later["ts"] >= earlier["ts"] + earlier["dur"] - 0.01


def test_a_profile_is_written_one_event_a_line(tmp_path, events):
    path = tmp_path / "profile.json"
    save_profile(LayerProfile([], 0.0, {"traceEvents": events}), path)
    assert json.loads(path.read_text(encoding="utf-8"))["traceEvents"] == events
    assert path.read_text(encoding="utf-8").count("\n") == len(events) + 2


def event(category: str, name: str, start: float, duration: float, correlation: int | None = None):
    arguments = {} if correlation is None else {"correlation": correlation}
    return {"cat": category, "name": name, "ts": start, "dur": duration, "args": arguments}


def test_kernels_belong_to_the_operator_that_was_open_when_they_were_launched():
    """Two kernels of an operator, 3 and 4 us; a copy between operators, 5 us; and a kernel of a
    graph, 6 us, whose launch no operator holds."""
    events = [
        event("cpu_op", "dsv3::gemm", 10.0, 5.0),
        event("cpu_op", "aten::mm", 11.0, 2.0),
        event("cuda_runtime", "cudaLaunchKernel", 11.5, 1.0, 1),
        event("cuda_runtime", "cudaLaunchKernel", 14.0, 1.0, 2),
        event("cuda_runtime", "cudaMemcpyAsync", 16.0, 1.0, 3),
        event("cuda_runtime", "cudaGraphLaunch", 17.0, 1.0, 4),
        event("kernel", "first", 30.0, 3.0, 1),
        event("kernel", "second", 40.0, 4.0, 2),
        event("gpu_memcpy", "copy", 50.0, 5.0, 3),
        event("kernel", "replayed", 60.0, 6.0, 4),
    ]
    split = split_kernels(events)
    assert split.kernels == 4
    assert split.inside == {"gemm": pytest.approx(7e-6)}
    assert split.outside == {"copy": pytest.approx(5e-6), "replayed": pytest.approx(6e-6)}
    assert split.total == pytest.approx(18e-6)


def test_of_equal_repetitions_the_last_one_counts():
    events = [event("kernel", "one", at, 1.0 + at, number) for number, at in enumerate((0, 5, 9))]
    events += [event("kernel", "two", at, 2.0, number) for number, at in enumerate((2, 7, 20))]
    split = split_kernels(events, repetitions=3)
    assert split.kernels == 2
    assert split.outside == {"one": pytest.approx(10e-6), "two": pytest.approx(2e-6)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
def test_without_a_gpu_the_command_says_so():
    with pytest.raises(ValueError, match="no CUDA device found"):
        profile_layer(
            load_model_config("debug"),
            "moe",
            Workload(256, 256, 1, 512, 384, 2),
            recipe=Recipe("fp8", "library"),
            seed=0,
        )
