"""Recorded kernel times restated for another machine."""

from pathlib import Path
from typing import Any

import pytest
from replays import replay

from hardware_profiles.fields import ROOT
from hardware_profiles.schema import load_gpu
from simulator.analysis.profile_replay import Replay, replay_metrics

TRACE = Path(__file__).resolve().parents[4] / "shared/measured/h800/deepseek_train_profile.json"
needs_trace = pytest.mark.skipif(not TRACE.exists(), reason=f"{TRACE} is not there")


@pytest.fixture(scope="module")
def published() -> Replay:
    return replay(TRACE)


@pytest.mark.shared
@needs_trace
def test_what_ifs_of_the_published_trace_move_as_their_cause_says(published: Replay) -> None:
    def span(change: str) -> float:
        return replay(TRACE, change).span_s

    slow_nic = replay(TRACE, "cluster.node.nic.bandwidth=200 Gbit/s")
    assert slow_nic.span_s > 1.3 * published.span_s
    assert replay_metrics(slow_nic)["exposed_communication_s"] > 0.03
    assert span("communication_sms=24") > 1.01 * published.span_s
    assert span("gpu=h200_sxm") < published.span_s
    assert span("gpu=h20_sxm") > 3 * published.span_s
    assert span("host_speed=0.1") > 2 * published.span_s
    assert span("gpu.hbm_bandwidth=6.7 TB/s") < published.span_s


@pytest.mark.shared
@needs_trace
def test_waits_for_ranks_keep_their_time_in_a_what_if(published: Replay) -> None:
    changed = replay(TRACE, "gpu=b200_sxm")
    kept = [index for index, basis in enumerate(changed.basis) if "kept" in basis]
    assert len(kept) == 16  # notify
    for index in kept:
        assert changed.seconds[index] == published.trace.kernels[index].seconds
    result = replay_metrics(changed)
    assert result["what_if"]
    assert result["unmapped_share"] == replay_metrics(published)["unmapped_share"]
    assert result["rank_wait_s"] == pytest.approx(0.0326, abs=1e-4)


def seconds_there(profile: Any, path: Path, gpu: str) -> list[float]:
    """Kernel times of a profile that was recorded on an H100, restated for another GPU; us."""
    profile.device = "NVIDIA H100 80GB HBM3"
    run = replay(profile.write(path / "trace.json"), f"gpu={gpu}")
    return [1e6 * float(seconds) for seconds in run.seconds]


def elementwise(profile: Any, *, rows: int, us: float) -> None:
    """x += y of [rows, 4096] in BF16: three times 8,192 bytes per row."""
    dims = [[rows, 4096], [rows, 4096], []]
    types = ["c10::BFloat16", "c10::BFloat16", "Scalar"]
    profile.span("aten::add_", 0, 50, category="cpu_op", dims=dims, types=types)
    profile.launch("vectorized_elementwise_kernel", called=1, at=60, us=us)


def test_what_is_bound_by_memory_goes_with_the_bandwidth(profile: Any, tmp_path: Path) -> None:
    """201 MB in 60 us are all that an H100's memory gives, 3.35 TB/s; an H200's gives 4.8."""
    elementwise(profile, rows=8192, us=60)
    assert seconds_there(profile, tmp_path, "h200_sxm") == [pytest.approx(60 * 3.35 / 4.8)]


def test_what_a_kernel_takes_beyond_its_bytes_goes_with_clock_and_sms(
    profile: Any, tmp_path: Path
) -> None:
    """201,326,592 bytes take 60.098 us of 120.196 at 3.35 TB/s: half is bound by memory, which the
    H20's 4 TB/s do in 50.332 us; the rest goes with 132 SMs for 78, at clocks of both files. A GPU
    of a file has no measured kernels, so that its memory is taken at its peak."""
    text = (ROOT / "gpus/h100_sxm.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text.replace("name: h100_sxm", "name: mine"), "utf-8")
    elementwise(profile, rows=8192, us=2 * 201_326_592 / 3.35e6)
    profile.device = None
    path = profile.write(tmp_path / "trace.json")
    run = replay(path, f"recorded_gpu={tmp_path}/mine.yaml", "gpu=h20_sxm")
    one, other = load_gpu("h100_sxm"), load_gpu("h20_sxm")
    rest = 60.098 * 132 / 78 * one.sm_clock / other.sm_clock
    assert 1e6 * float(run.seconds[0]) == pytest.approx(50.332 + rest, rel=1e-4)


def test_what_fits_into_the_l2_cache_does_not(profile: Any, tmp_path: Path) -> None:
    """50 MB, of 52.4 MB of cache: on an H20 fewer SMs, at another clock, work on it."""
    elementwise(profile, rows=2048, us=15)
    assert seconds_there(profile, tmp_path, "h200_sxm") == [pytest.approx(15)]
    on_h20 = 15 * (132 * load_gpu("h100_sxm").sm_clock) / (78 * load_gpu("h20_sxm").sm_clock)
    assert seconds_there(profile, tmp_path, "h20_sxm") == [pytest.approx(on_h20)]


def test_a_split_product_is_restated_as_a_whole(profile: Any, tmp_path: Path) -> None:
    """[16, 8192] x [8192, 57344] reads 940 MB of weights. Product and reduction take 270 us, less
    than an H100's memory allows at its peak: both go with the bandwidth."""
    profile.span("aten::mm", 0, 50, category="cpu_op", dims=[[16, 8192], [8192, 57344]])
    profile.launch("nvjet_splitK", called=1, at=60, us=250, cost=1)
    profile.launch("splitKreduce_kernel", called=5, at=312, us=20, cost=1)
    assert seconds_there(profile, tmp_path, "h200_sxm") == [
        pytest.approx(250 * 3.35 / 4.8),
        pytest.approx(20 * 3.35 / 4.8),
    ]


def test_a_kernel_of_unknown_work_takes_at_most_what_can_have_been_done(
    profile: Any, tmp_path: Path
) -> None:
    """On an H200, the H100 with a faster memory, that is its own time; on an H20, whose tensor
    cores have 296 for 1,979 TFLOP/s, as many times more."""
    profile.launch("my_kernel", called=0, at=20, us=100)
    assert seconds_there(profile, tmp_path, "h200_sxm") == [pytest.approx(100)]
    assert seconds_there(profile, tmp_path, "h20_sxm") == [pytest.approx(100 * 1979 / 296)]


def test_transfers_and_copies_across_pcie_keep_their_time(profile: Any, tmp_path: Path) -> None:
    profile.launch("ncclDevKernel_AllGather_RING_LL", called=0, at=20, us=100)
    used = profile.call("cudaMemcpyAsync", 30)
    profile.kernel("Memcpy DtoH (Device -> Pinned)", stream=7, at=130, us=8, correlation=used)
    profile.events[-1]["cat"] = "gpu_memcpy"
    assert seconds_there(profile, tmp_path, "h20_sxm") == [pytest.approx(100), pytest.approx(8)]
