"""Chunks and pairs of the shipped training steps as events: as the timeline where nothing
contends, and with no ratio of the calibration as input where they do."""

import numpy as np
import pytest
from shipped_scenarios import with_job

from simulator.analysis.run import simulate
from simulator.execution.machine.training import contending_step_s, run_group
from simulator.scenario.files import load_scenario

TRAINING = with_job("training")
MAIN = "dualpipe_h800_2048"
FACTOR_2 = "{value: 2.0, low: 2.0, high: 2.0, source: test, in_rows: %s}"


def result(*changes, name=MAIN):
    return simulate(load_scenario(name, changes)).result


@pytest.fixture(scope="module")
def shipped():
    return result()


@pytest.fixture(scope="module")
def pair(shipped):
    return run_group(shipped, shipped.step.pair)


@pytest.mark.parametrize("name", TRAINING)
def test_without_contention_every_chunk_is_as_on_the_timeline(name):
    run = result(name=name)
    for chunk in (run.step.pair, *run.step.chunks.values()):
        log = run_group(run, chunk, ()).machine.log
        for of_events, of_timeline in (
            (log.start_s[:, 0], chunk.log.start_s),
            (log.end_s[:, 0], chunk.log.end_s),
        ):
            np.testing.assert_allclose(of_events, of_timeline, rtol=1e-9, atol=0)


def test_sms_make_the_slow_downs_that_sms_explain(pair):
    """132 / 112 SMs; a second wave of the CTAs of a norm; 132 / 20 SMs beside a GEMM of 112."""
    medians = {effect.name: float(np.median(found)) for effect, found in pair.ratios().items()}
    assert medians["GEMM"] == pytest.approx(1.0, abs=1e-9)
    assert medians["MEMORY_BOUND"] == pytest.approx(132 / 112, rel=1e-6)
    assert medians["NORM"] == pytest.approx(2.0, rel=1e-6)
    assert medians["CAST"] == pytest.approx(132 / 20, rel=1e-6)


def test_no_slow_down_of_the_calibration_is_an_input(pair):
    """All of them doubled, as dials that a run turns."""
    changed = result(
        *(
            f"calibration.overlap.{kind}={FACTOR_2 % held}"
            for kind, held in (("gemm", 1.045), ("attention", 1.045), ("memory_bound", 1.15))
        ),
        "calibration.all_to_all.beside_compute={value: 2.0, low: 2.0, high: 2.0, source: test}",
    )
    found = run_group(changed, changed.step.pair)
    np.testing.assert_array_equal(found.machine.log.end_s, pair.machine.log.end_s)
    assert found.timeline.span_s > 1.2 * pair.timeline.span_s


def test_every_gpu_keeps_within_its_sms_and_hbm(shipped, pair):
    gpu = shipped.scenario.cluster.node.gpu
    for one in pair.machine.gpus:
        assert max(sms for _, sms, _ in one.history) <= gpu.sms
        assert max(rate for _, _, rate in one.history) <= gpu.hbm_bandwidth


def test_skew_is_a_channel_of_its_own(shipped, pair):
    without = run_group(shipped, shipped.step.pair, ("sms", "hbm", "nvlink", "nic", "links"))
    ends = without.machine.log.end_s
    assert np.ptp(ends[-1]) == pytest.approx(0.0, abs=1e-6)
    assert without.span_s < pair.span_s


def test_a_nic_that_drops_to_half_its_rate_lengthens_the_pair(pair):
    changes = ["fidelity=events", "events.failures=[slow:node3/nic1/up=0.5@40ms]"]
    slow = simulate(load_scenario(MAIN, changes)).events
    assert slow.span_s > pair.span_s + 1e-3


SMALL = (
    "cluster.nodes=4", "training.pp=2", "training.ep=16", "training.global_batch_sequences=128",
    "model.num_hidden_layers=6", "cluster.node.gpu.hbm_capacity=192 GB",
)  # fmt: skip


def test_a_step_without_contention_is_that_of_the_timeline():
    run = result(*SMALL)
    assert contending_step_s(run, ()) == pytest.approx(run.step.step_time_s, rel=1e-9)


def test_a_step_without_skew_has_the_durations_of_its_chunks():
    """Kernels and transfers contend, ranks are alike: the step of events that the run prints."""
    changes = ["fidelity=events", "events.of=step", "events.contention=[sms]", *SMALL]
    events = simulate(load_scenario(MAIN, changes)).quick_metrics["events"]
    run = result(*SMALL)
    assert events["timeline_step_time_s"] == pytest.approx(run.step.step_time_s, rel=1e-12)
    assert events["step_time_s"] == pytest.approx(contending_step_s(run, ("sms",)), rel=1e-12)
