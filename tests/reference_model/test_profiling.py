"""The profile of one full-size layer, recorded on an H200 and shipped as a fixture."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from replays import replay

from reference_model.config import load_model_config
from reference_model.measure_grid import WORKLOADS
from reference_model.precision import Recipe
from reference_model.profiling import (
    match_operators,
    profile_document,
    profile_layer,
    save_profile,
    split_kernels,
)
from reference_model.recorder import record_layer
from reference_model.trace import Operator, Workload
from reference_model.train import Training, TrainingSettings

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
        WORKLOADS["train"],
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
        for o in recorded
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
    save_profile({"traceEvents": events}, path)
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


def test_a_written_profile_replays_as_it_stands(tmp_path):
    """It names its device and its launches. By hand: the first kernel starts 2 us after its launch
    at 12 us returns, at 15 us, and takes 30; the second follows after the gap of 1.4 us and takes
    4: 35.4 us in all, as recorded. The GEMM was launched by the operator, the fill by nothing that
    is known."""
    document = {
        "deviceProperties": [{"name": "NVIDIA H200", "numSms": 132}],
        "traceEvents": [
            event("cpu_op", "dsv3::gemm", 10.0, 5.0),
            event("cuda_runtime", "cudaLaunchKernel", 12.0, 1.0, 1),
            event("cuda_runtime", "cudaLaunchKernel", 17.0, 1.0, 2),
            event("kernel", "_gemm_kernel", 15.0, 30.0, 1),
            event("kernel", "fill", 46.4, 4.0, 2),
        ],
    }
    for number, made in enumerate(document["traceEvents"]):
        made |= {"ph": "X", "pid": 1, "tid": 1}
        made["args"] |= {"stream": 7, "device": 0} if number > 2 else {}
    gemm = Operator(
        "head", "gemm", "forward", "head", "bfloat16", "bfloat16",
        (("k", 1000), ("m", 1000), ("n", 1000)), False, False,
    )  # fmt: skip
    operators, outside, trace = match_operators([gemm], document)
    assert [kernels for _, _, kernels in operators] == [1]
    assert outside == pytest.approx(4e-6)
    save_profile(trace, tmp_path / "layer.json")
    run = replay(tmp_path / "layer.json")
    assert (run.recorded_gpu, run.mapping.name) == ("h200_sxm", "reference_model_profile")
    assert [place.operator for place in run.mapped] == [gemm, None]
    assert run.measured_span_s == pytest.approx(35.4e-6)
    assert run.span_s == pytest.approx(35.4e-6)


def test_a_plain_profile_of_training_maps_by_the_operators_that_the_model_issues(tmp_path):
    """A step of the debug model under torch's own profiler, with a kernel made up for each of the
    model's operators: all map, products and attention as what they are."""
    settings = TrainingSettings(
        config="debug", precision="bf16", kernels="reference", device="cpu", steps=1, sequences=1,
        first_sequences=1, context=32, peak_learning_rate=1e-3, warmup_steps=0, schedule="constant",
        gamma=0.0, balance_alpha=0.0, seed=0, initial_deviation=0.0, data="markov", symbols=16,
        concentration=1.0, data_seed=0, eager=True,
    )  # fmt: skip
    training = Training(settings)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        training.run()
    document = profile_document(profile)
    # The gradients' norm launches kernels of PyTorch's own operators on lists alone.
    issued = [
        e for e in document["traceEvents"]
        if str(e["name"]).startswith("dsv3::") and e["name"] != "dsv3::gradient_norm"
    ]  # fmt: skip
    end = max(e["ts"] + e["dur"] for e in issued)
    document["traceEvents"] = list(issued)
    for number, e in enumerate(issued):
        launch = {"ph": "X", "pid": e["pid"], "tid": e["tid"], "ts": e["ts"], "dur": 0}
        launch |= {"cat": "cuda_runtime", "name": "launch", "args": {"correlation": number}}
        kernel = {"ph": "X", "cat": "kernel", "pid": 0, "tid": 7, "ts": end + number, "dur": 1}
        kernel |= {"name": "_kernel", "args": {"stream": 7, "correlation": number}}
        document["traceEvents"] += [launch, kernel]
    (tmp_path / "step.json").write_text(json.dumps(document), encoding="utf-8")
    run = replay(tmp_path / "step.json", "recorded_gpu=h200_sxm")
    assert run.unmapped == ()
    kinds = {(place.label, place.operator.kind) for place in run.mapped}
    assert {pair for pair in kinds if pair[1] != "memory_bound"} == {
        ("dsv3::gemm", "gemm"),
        ("dsv3::gemm_weight_grad", "gemm"),
        ("dsv3::grouped_gemm", "grouped_gemm"),
        ("dsv3::grouped_gemm_weight_grad", "grouped_gemm_weight_grad"),
        ("dsv3::attention_forward", "attention_forward"),
        ("dsv3::attention_backward", "attention_backward"),
    }


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
