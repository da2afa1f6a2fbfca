"""Recorded kernel times restated for another machine."""

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
def test_what_ifs_of_the_published_trace_move_as_their_cause_says(published: ReplayRun) -> None:
    def span(**changes: Any) -> float:
        return replay_profile(TRACE, **changes).span_s

    slow_nic = replay_profile(TRACE, overrides={"cluster.node.nic.bandwidth": "200 Gbit/s"})
    assert slow_nic.span_s > 1.3 * published.span_s
    assert slow_nic.to_json()["stall_s"] > 0.03
    assert span(overrides={"communication_sms": 24}) > 1.01 * published.span_s
    assert span(gpu="h200_sxm") < published.span_s
    assert span(gpu="h20_sxm") > 3 * published.span_s
    assert span(host_speed=0.1) > 2 * published.span_s
    assert span(overrides={"gpu.hbm_bandwidth": "6.7 TB/s"}) < published.span_s


@pytest.mark.shared
@needs_trace
def test_ranks_and_unmapped_kernels_keep_their_time_in_a_what_if(published: ReplayRun) -> None:
    changed = replay_profile(TRACE, gpu="b200_sxm")
    kept = [index for index, basis in enumerate(changed.durations.basis) if "kept" in basis]
    assert len(kept) == 16 + 8 + 3  # notify; arange and tensor-map descriptors
    for index in kept:
        assert changed.durations.seconds[index] == published.trace.kernels[index].seconds
    result = changed.to_json()
    assert result["what_if"]
    assert result["unmapped_share"] == published.to_json()["unmapped_share"]
    assert result["rank_wait_s"] == pytest.approx(0.0326, abs=1e-4)
