import json
import random
from pathlib import Path
from typing import Any

import pytest

from simulator.analysis.profile_replay import ReplayRun, replay_profile

TRACE = Path(__file__).resolve().parents[4] / "shared/measured/h800/deepseek_train_profile.json"
needs_trace = pytest.mark.skipif(not TRACE.exists(), reason=f"{TRACE} is not there")


@pytest.fixture(scope="module")
def published() -> ReplayRun:
    return replay_profile(TRACE)


@pytest.mark.shared
@needs_trace
def test_the_published_trace_replays_on_its_own_gpu(published: ReplayRun) -> None:
    result = published.to_json()
    assert result["gpu"] == result["recorded_gpu"] == "h800_sxm"
    assert result["measured_span_s"] == pytest.approx(0.129012)
    assert result["span_s"] == pytest.approx(0.1290, rel=0.01)
    # 274 us before mlp(B) and 1,761 us before attn(B) of the last slot.
    assert result["measured"]["stall_s"] == pytest.approx(0.00204, abs=5e-5)
    assert result["stall_s"] == pytest.approx(0.00204, abs=0.001)
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
def test_time_is_busy_or_idle(published: ReplayRun) -> None:
    for times in (published.to_json(), published.to_json()["measured"]):
        parts = ("compute_busy_s", "stall_s", "launch_bound_s", "other_idle_s")
        assert sum(times[part] for part in parts) == pytest.approx(times["span_s"])
        assert max(times["compute_busy_s"], times["communication_busy_s"]) <= times["span_s"]


@pytest.mark.shared
@needs_trace
@pytest.mark.parametrize("kind", ["constant", "random", "index"])
def test_shifting_all_gpu_starts_in_order_changes_nothing(
    published: ReplayRun, tmp_path: Path, kind: str
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
    assert replay_profile(path).span_s == pytest.approx(published.span_s, rel=1e-9)


@pytest.mark.shared
@needs_trace
def test_the_waits_of_the_published_trace_are_those_of_dualpipe(published: ReplayRun) -> None:
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
    result = replay_profile(path, mapping=made_up_mapping).to_json()
    assert result["span_s"] == pytest.approx(result["measured_span_s"], rel=0.02)
    assert result["stall_s"] == pytest.approx(300e-6, abs=5e-6)
    assert result["unmapped_share"] == 0
    faster = replay_profile(path, mapping=made_up_mapping, gpu="b200_sxm").to_json()
    assert faster["span_s"] < result["span_s"]
    assert faster["measured_span_s"] == result["measured_span_s"]
    assert set(faster["duration_basis"]) == {"cost model", "all-to-all model"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu": "h900"}, "unknown GPU 'h900'"),
        ({"mapping": "nsys"}, "unknown mapping 'nsys'"),
        ({"source_gpu": "h200_sxm"}, r"recorded on NVIDIA H800 \(h800_sxm\), not on h200_sxm"),
        ({"host_speed": 0}, "host_speed: 0 is not allowed"),
        ({"overrides": {"hots_speed": 2}}, "hots_speed: unknown field; known: .*host_speed"),
        ({"overrides": {"communication_sms": 132}}, "132 is not allowed: h800_sxm has 132 SMs"),
        ({"overrides": {"cluster.node.nic.bandwidth": 25}}, "has no unit"),
        ({"overrides": {"cluster.node.gpu.sms": 25}}, "set gpu, the cluster takes it over"),
        ({"overrides": {"cluster.nodes.x": 25}}, "has no fields to set"),
    ],
)
def test_bad_input_is_one_line_that_names_it(
    overlapped_profile: Any,
    made_up_mapping: str,
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
) -> None:
    path = overlapped_profile.write(tmp_path / "trace.json")
    with pytest.raises(ValueError, match=message) as error:
        replay_profile(path, **{"mapping": made_up_mapping, **changes})
    assert "\n" not in str(error.value)


def test_a_trace_without_the_calls_that_launched_its_kernels_is_replayed_with_a_warning(
    profile: Any, made_up_mapping: str, tmp_path: Path
) -> None:
    profile.kernel("gemm", stream=7, at=0, us=100, correlation=1)
    profile.kernel("gemm", stream=7, at=102, us=100, correlation=2)
    run = replay_profile(profile.write(tmp_path / "trace.json"), mapping=made_up_mapping)
    assert run.span_s == pytest.approx(202e-6)
    assert run.warnings == ("2 x kernel without the call that launched it: event 0, 1",)


def test_a_what_if_says_which_share_of_the_kernel_time_it_could_not_move(
    profile: Any, made_up_mapping: str, tmp_path: Path
) -> None:
    for number, (name, us) in enumerate((("gemm", 300), ("my_fused_kernel", 100))):
        profile.launch(name, called=500.0 * number, at=500.0 * number + 20, us=us)
    path = profile.write(tmp_path / "trace.json")
    assert replay_profile(path, mapping=made_up_mapping).warnings == ()
    faster = replay_profile(path, mapping=made_up_mapping, gpu="b200_sxm")
    # 100 us stay of what were 400; the product is the faster for it.
    kept = 100e-6 / float(faster.durations.seconds.sum())
    assert kept > 0.25
    assert faster.warnings == (
        f"{kept:.1%} of the kernel time is as recorded on h800_sxm: mapping made_up names no "
        "operator for it that can be predicted on b200_sxm; name its kernels in a mapping of your "
        "own (--mapping FILE)",
    )


def test_a_profile_of_which_nothing_is_mapped_takes_the_same_time_anywhere_and_says_so(
    profile: Any, made_up_mapping: str, tmp_path: Path
) -> None:
    profile.launch("my_fused_kernel", called=0, at=20, us=100)
    path = profile.write(tmp_path / "trace.json")
    other = replay_profile(path, mapping=made_up_mapping, gpu="h20_sxm")
    assert other.span_s == pytest.approx(100e-6)
    assert other.warnings[0].startswith("100.0% of the kernel time is as recorded on h800_sxm: ")


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
    own, other = replay_profile(path), replay_profile(path, gpu="h20_sxm")
    assert own.mapping.name == "pytorch_profile"
    assert own.span_s == pytest.approx(own.measured_span_s, rel=0.01)
    # Nothing runs beside the collectives of a single stream, so none of its SMs are theirs.
    assert other.target.communication_sms == 0
    assert other.to_json()["compute_busy_s"] > 1.5 * own.to_json()["compute_busy_s"]
    assert other.span_s == pytest.approx(own.span_s, rel=0.02)
