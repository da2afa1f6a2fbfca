import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from replays import replay

from simulator.analysis.every_metric import METRICS, metric_of
from simulator.analysis.profile_replay import Replay, replay_metrics, replay_scenario
from simulator.analysis.run import simulate
from simulator.scenario.files import load_scenario, write_resolved

TRACE = Path(__file__).resolve().parents[4] / "shared/measured/h800/deepseek_train_profile.json"
needs_trace = pytest.mark.skipif(not TRACE.exists(), reason=f"{TRACE} is not there")


IDLE = ("exposed_communication_s", "waiting_for_ranks_s", "launch_bound_s", "other_idle_s")
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def published() -> Replay:
    return replay(TRACE)


@pytest.mark.shared
@needs_trace
def test_the_published_trace_replays_on_its_own_gpu(published: Replay) -> None:
    result = replay_metrics(published)
    assert result["gpu"] == result["recorded_gpu"] == "h800_sxm"
    assert result["measured_span_s"] == pytest.approx(0.129012)
    assert result["span_s"] == pytest.approx(0.1290, rel=0.01)
    # 274 us before mlp(B) and 1,761 us before attn(B) of the last slot.
    for times in (result["measured"], result):
        stalled = times["exposed_communication_s"] + times["waiting_for_ranks_s"]
        assert stalled == pytest.approx(0.00204, abs=0.001)
    assert result["measured"]["compute_busy_s"] == pytest.approx(0.12429, abs=1e-5)
    assert result["communication_busy_s"] == pytest.approx(0.11452, abs=1e-5)
    # 0.48 ms before the first compute kernel and 0.42 ms bound by launches.
    assert result["launch_bound_s"] == pytest.approx(0.0009, abs=1e-4)
    assert result["order_inversions"] == 0
    assert result["stream_wait_calls"] == 56
    assert not result["what_if"]
    assert result["duration_basis"] == {"recorded": pytest.approx(1.0)}
    json.dumps(result, allow_nan=False)


@pytest.mark.shared
@needs_trace
def test_time_is_busy_or_idle(published: Replay) -> None:
    for times in (replay_metrics(published), replay_metrics(published)["measured"]):
        parts = ("compute_busy_s", *IDLE)
        assert sum(times[part] for part in parts) == pytest.approx(times["span_s"])
        assert max(times["compute_busy_s"], times["communication_busy_s"]) <= times["span_s"]


@pytest.mark.shared
@needs_trace
@pytest.mark.parametrize("kind", ["constant", "random", "index"])
def test_shifting_all_gpu_starts_in_order_changes_nothing(
    published: Replay, tmp_path: Path, kind: str
) -> None:
    document = json.loads(TRACE.read_text(encoding="utf-8"))
    on_gpu = ("kernel", "gpu_memcpy", "gpu_memset")
    kernels = [event for event in document["traceEvents"] if event.get("cat") in on_gpu]
    kernels.sort(key=lambda event: event["ts"])
    generator = random.Random(3)
    at = kernels[0]["ts"]
    for number, event in enumerate(kernels):
        at += generator.randint(1, 400)
        shifted = {"constant": event["ts"] + 12_345, "random": at, "index": 10_000_000 + number}
        event["ts"] = shifted[kind]
    path = tmp_path / "shifted.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert replay(path).span_s == pytest.approx(published.span_s, rel=1e-9)


@pytest.mark.shared
@needs_trace
def test_the_waits_of_the_published_trace_are_those_of_dualpipe(published: Replay) -> None:
    """Each phase waits for what its data needs: mlp(B) for combine(B),
    mlp(F) for dispatch(F), attn(B) for dispatch(B), the next attn(F) for combine(F)."""
    mapped, kernels = published.mapped, published.graph.kernels
    across = {
        (mapped[later].annotation, mapped[earlier].annotation)
        for later, waits in enumerate(published.graph.waits)
        for earlier in waits
        if 27 in (kernels[later].stream, kernels[earlier].stream)
    }
    assert across == {
        ("mlp(B)", "combine(B)"),
        ("mlp(F)", "dispatch(F)"),
        ("attn(B)", "dispatch(B)"),
        ("attn(F)", "combine(F)"),
        ("dispatch(F)", "attn(F)"),
        ("dispatch(B)", "mlp(B)"),
        ("combine(F)", "mlp(F)"),
        ("combine(B)", "attn(B)"),
    }


def test_a_made_up_profile_replays_and_says_what_it_rests_on(
    overlapped_profile: Any, made_up_mapping: str, tmp_path: Path
) -> None:
    path = overlapped_profile.write(tmp_path / "trace.json.gz")
    result = replay_metrics(replay(path, f"mapping={made_up_mapping}"))
    assert result["span_s"] == pytest.approx(result["measured_span_s"], rel=0.02)
    assert result["exposed_communication_s"] == pytest.approx(300e-6, abs=5e-6)
    assert result["unmapped_share"] == 0
    faster = replay_metrics(replay(path, f"mapping={made_up_mapping}", "gpu=b200_sxm"))
    # The transfers are those of the other GPU's own kernels on as many SMs.
    assert faster["compute_busy_s"] < result["compute_busy_s"]
    assert faster["measured_span_s"] == result["measured_span_s"]
    assert set(faster["duration_basis"]) == {"ceilings of both GPUs", "all-to-all model"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("gpu=h900", "unknown GPU 'h900'"),
        ("mapping=nsys", "unknown mapping 'nsys'"),
        ("recorded_gpu=h200_sxm", r"recorded on NVIDIA H800 \(h800_sxm\), not on h200_sxm"),
        ("host_speed=0", "host_speed: 0 is not allowed"),
        ("hots_speed=2", r"'hots_speed'; did you mean replay\.host_speed\?$"),
        ("communication_sms=132", "132 is not allowed: h800_sxm has 132 SMs"),
        ("cluster.node.nic.bandwidth=25", "has no unit"),
        ("cluster.node.gpu.sms=25", "set gpu, the cluster takes it over"),
        ("cluster.nodes.x=25", "has no fields to set"),
        ("gpu.hbm=25", "hbm: unknown field"),
    ],
)
def test_bad_input_is_one_line_that_names_it(
    overlapped_profile: Any, made_up_mapping: str, tmp_path: Path, change: str, message: str
) -> None:
    path = overlapped_profile.write(tmp_path / "trace.json")
    with pytest.raises(ValueError, match=message) as error:
        replay(path, f"mapping={made_up_mapping}", change)
    assert "\n" not in str(error.value)


def test_a_replay_is_a_run_of_a_scenario_like_any_other(
    overlapped_profile: Any, made_up_mapping: str, tmp_path: Path
) -> None:
    """Its scenario is named by its changes and reads back; every figure is a metric."""
    path = overlapped_profile.write(tmp_path / "trace.json")
    changes = [f"mapping={made_up_mapping}", "gpu=b200_sxm", "host_speed=2"]
    scenario = replay_scenario(path, changes)
    assert scenario.changes == ("gpu=b200_sxm", "replay.host_speed=2", f"replay.{changes[0]}")
    assert scenario.directory_name.startswith("replay_trace+gpu=b200_sxm+replay.host_speed=2")
    run = simulate(scenario)
    assert run.to_json()["scenario"]["job"] == "replay"
    (tmp_path / "again.yaml").write_text(write_resolved(scenario), encoding="utf-8")
    again = simulate(load_scenario(str(tmp_path / "again.yaml")))
    assert again.metrics == run.metrics
    of_every_job = set.intersection(*(set(table) for table in METRICS.values()))
    figures = [path for path, value in leaves(run.metrics) if not isinstance(value, bool | str)]
    printed = {metric_of(figure, "replay") for figure in figures}
    assert None not in printed
    unmapped = {"unmapped.kernels", "unmapped.seconds"}  # nothing is, here
    names = {metric.name for metric in printed if metric is not None}
    assert set(METRICS["replay"]) - names - of_every_job == unmapped


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of all that is in a run's metrics."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, f"{path}[]")
    else:
        yield path, value


def test_a_change_inside_the_recorded_machine_is_made_there(
    overlapped_profile: Any, made_up_mapping: str, tmp_path: Path
) -> None:
    """The profile names the GPU and the mapping the cluster that the changes are made inside of."""
    path = overlapped_profile.write(tmp_path / "trace.json")
    run = replay(
        path, f"mapping={made_up_mapping}", "gpu.sms=66", "cluster.node.nic.bandwidth=200 Gbit/s"
    )
    assert (run.source.gpu.sms, run.target.gpu.sms) == (132, 66)
    assert run.target.cluster is not None
    assert run.target.cluster.node.gpu == run.target.gpu
    assert run.target.cluster.node.nic_bandwidth_per_gpu == 25e9


def test_a_trace_without_the_calls_that_launched_its_kernels_is_replayed_with_a_warning(
    profile: Any, made_up_mapping: str, tmp_path: Path
) -> None:
    profile.kernel("gemm", stream=7, at=0, us=100, correlation=1)
    profile.kernel("gemm", stream=7, at=102, us=100, correlation=2)
    run = replay(profile.write(tmp_path / "trace.json"), f"mapping={made_up_mapping}")
    assert run.span_s == pytest.approx(202e-6)
    assert run.warnings == ("2 x kernel without the call that launched it: event 0, 1",)


def test_kernels_that_nothing_is_known_of_are_counted_and_warned_of_from_a_tenth(
    profile: Any, made_up_mapping: str, tmp_path: Path
) -> None:
    """60 us of 660 are 9.1%, 100 us of 700 are 14.3%."""
    for number, (name, us) in enumerate((("gemm", 600), ("ns::my_kernel<int>(int)", 60))):
        profile.launch(name, called=900.0 * number, at=900.0 * number + 20, us=us)
    path = profile.write(tmp_path / "trace.json")
    run = replay(path, f"mapping={made_up_mapping}")
    assert run.unmapped_share == pytest.approx(60 / 660)
    assert run.warnings == ()
    profile.launch("other", called=2000, at=2020, us=40)
    run = replay(profile.write(tmp_path / "trace.json"), f"mapping={made_up_mapping}")
    assert run.unmapped_share == pytest.approx(100 / 700)
    assert run.warnings == (
        "nothing is known of 14.3% of the kernel time (my_kernel, other): on another GPU it is at "
        "most what the recorded one can have done in it; record with record_shapes=True, or name "
        "the kernels in a mapping of your own (--mapping FILE)",
    )


def test_a_profile_without_a_device_is_replayed_on_the_gpu_that_it_is_said_to_be_from(
    profile: Any, tmp_path: Path
) -> None:
    profile.device = None
    profile.launch("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", called=0, at=10, us=100)
    path = profile.write(tmp_path / "trace.json")
    with pytest.raises(ValueError, match=r"names no device; .*--recorded-gpu.*h100_sxm"):
        replay(path, "gpu=h800_sxm")
    run = replay(path, "gpu=h800_sxm", "recorded_gpu=h100_sxm")
    result = replay_metrics(run)
    assert (result["recorded_gpu"], result["gpu"]) == ("h100_sxm", "h800_sxm")
    assert result["unmapped_share"] == 0
    assert result["duration_basis"] == {"kept: transfer": 1.0}
    assert result["communication_busy_s"] == pytest.approx(100e-6)


@pytest.mark.parametrize(("gpu", "recorded_ms"), [("h100", 123.736), ("h200", 119.830)])
def test_a_training_step_of_plain_pytorch_replays_on_its_own_gpu_within_one_percent(
    gpu: str, recorded_ms: float
) -> None:
    """Own profiles of 2026-11-28, one step each: docs/replay_predictions.md."""
    run = replay(DATA / f"pytorch_training_{gpu}.json.gz")
    assert run.recorded_gpu == f"{gpu}_sxm"
    assert run.measured_span_s * 1e3 == pytest.approx(recorded_ms, abs=1e-3)
    assert run.span_s == pytest.approx(run.measured_span_s, rel=0.01)
    assert run.unmapped_share == 0
    assert run.warnings == ()


@pytest.mark.parametrize(
    ("gpu", "other", "wall_ms"), [("h100", "h200", 118.387), ("h200", "h100", 123.652)]
)
def test_a_training_step_restated_for_another_gpu_is_within_a_tenth_of_its_run_there(
    gpu: str, other: str, wall_ms: float
) -> None:
    """Beside the profile that was recorded there, and beside the step without the profiler there,
    median of 40 by events."""
    there = replay(DATA / f"pytorch_training_{other}.json.gz")
    restated = replay(DATA / f"pytorch_training_{gpu}.json.gz", f"gpu={other}_sxm")
    assert restated.span_s == pytest.approx(there.measured_span_s, rel=0.1)
    assert restated.span_s * 1e3 == pytest.approx(wall_ms, rel=0.1)
    assert set(replay_metrics(restated)["duration_basis"]) == {
        "ceilings of both GPUs",
        "kept: transfer",
    }


def test_a_third_party_profile_takes_the_mapping_that_fits_and_stays_host_bound(
    profile: Any, tmp_path: Path
) -> None:
    profile.device = "NVIDIA H100 80GB HBM3"
    for number in range(20):
        at = 1000.0 * number
        profile.span("aten::mm", at, at + 20, category="cpu_op", dims=[[2048, 7168], [7168, 2112]])
        profile.launch("gemm_bf16", called=at + 2, at=at + 30, us=90)
        profile.launch("ncclDevKernel_AllReduce", called=at + 200, at=at + 230, us=60, grid=128)
    path = profile.write(tmp_path / "trace.json")
    own, other = replay(path), replay(path, "gpu=h20_sxm")
    assert own.mapping.name == "pytorch_profile"
    assert own.span_s == pytest.approx(own.measured_span_s, rel=0.01)
    # Nothing runs beside the collectives of a single stream, so none of its SMs are theirs.
    assert other.target.communication_sms == 0
    assert replay_metrics(other)["compute_busy_s"] > 1.5 * replay_metrics(own)["compute_busy_s"]
    assert other.span_s == pytest.approx(own.span_s, rel=0.02)


@pytest.mark.parametrize(
    ("host", "dims"),
    [
        ("aten::mm", [[0, 512], [512, 0]]),
        ("aten::mm", [[2**62, 2**62], [2**62, 2**62]]),
        ("aten::mm", [[1e400, "x"], {}]),
        ("aten::_grouped_mm", [[0, 0], [0, 0, 0]]),
        ("aten::_cudnn_attention_forward", [[0, 0, 0, 0]] * 3),
        ("aten::mul", [[-5, 3], [[], [2**80]]]),
        ("aten::add_", "no list"),
    ],
)
def test_shapes_that_are_none_leave_a_time_for_every_kernel(
    profile: Any, tmp_path: Path, host: str, dims: Any
) -> None:
    profile.span(host, 0, 50, category="cpu_op", dims=dims)
    profile.launch("kernel", called=1, at=60, us=9)
    run = replay(profile.write(tmp_path / "trace.json"), "gpu=h20_sxm")
    assert 1e-6 < run.span_s < 1e-4
    json.dumps(replay_metrics(run), allow_nan=False)


def test_kernels_of_decode_restated_for_another_gpu_are_within_a_tenth_of_those_there() -> None:
    """Own profile of 2026-11-28, eight tokens in eager mode, bound by the host: the H200's machine
    had a slower one, so that its kernels are compared, 18.177 ms there and 24.896 ms here."""
    path = DATA / "pytorch_decode_h100.json.gz"
    own, there = replay(path), replay(path, "gpu=h200_sxm")
    assert own.span_s == pytest.approx(own.measured_span_s, rel=0.01)
    assert own.seconds.sum() * 1e3 == pytest.approx(24.896, abs=1e-3)
    assert there.seconds.sum() * 1e3 == pytest.approx(18.177, rel=0.1)
    assert own.unmapped_share == 0
    reductions = [
        place
        for kernel, place in zip(own.trace.kernels, own.mapped, strict=True)
        if "splitKreduce" in kernel.name
    ]
    assert len(reductions) == 64
    assert {place.operator.kind for place in reductions if place.operator} == {"gemm"}
