"""Turn the intervals of kernel times into 80 % intervals of simulated ones.

Monte Carlo over what calibration left unexplained. Each sample draws one standard normal number a
kernel family, since a family's error is one error: all its kernels move together, in every chunk of
a training step and every layer of a serving step. Where a kernel is extrapolated or modelled, a
share of the variance (common_share of the calibration) is drawn once for all of them, since clocks,
power and software versions of another table are common to its kernels. A kernel's time is scaled
by exp(z w), w the logarithm of the end of its interval over its value, for positive and negative z
each. What times carry for another GPU than the calibration's moves all kernels as one.

A graph is run for all samples at once: order and dependencies stay, every time is an array
[samples].
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.schema import CalibrationProfile, TimeEstimate
from hardware_profiles.units import Seconds
from simulator.execution import timeline
from simulator.execution.pipeline import run_pipeline
from simulator.execution.serving_step import ServingStep
from simulator.execution.training import ChunkKey, ChunkRun, OptimizerStep, TrainingStep
from simulator.hardware.costs import NORMAL_80
from simulator.hardware.prediction import EXTRAPOLATED, Prediction

Array = NDArray[np.float64]

SAMPLES = 256
TAIL = 0.1
"""Share of the samples beyond either end of an 80 % interval."""


class Draws:
    """Standard normal numbers of a run: [samples] for each family, drawn when first asked for."""

    def __init__(
        self, rng: np.random.Generator, *, common_share: float, samples: int = SAMPLES
    ) -> None:
        """Store the generator; the order in which families are asked for is part of the seed.

        Args:
            common_share: of the variance of extrapolated kernels, what is common to all of them.
        """
        self._rng = rng
        self.common_share = common_share
        self._samples = samples
        self.common = rng.standard_normal(samples)
        self.gap = rng.standard_normal(samples)
        self.host = rng.standard_normal(samples)
        self.other_gpu = rng.standard_normal(samples)
        self._families: dict[Hashable, Array] = {}

    def of(self, family: Hashable) -> Array:
        """The family's own numbers."""
        if family not in self._families:
            self._families[family] = self._rng.standard_normal(self._samples)
        return self._families[family]


def scaled_seconds(times: Prediction, draws: Draws) -> Array:
    """[times, samples] seconds moved within their intervals, each family together."""
    own = np.stack([draws.of(family) for family in times.family])
    share = draws.common_share
    shared = np.sqrt(share) * draws.common + np.sqrt(1 - share) * own
    beyond = times.provenance >= EXTRAPOLATED
    normal = np.where(beyond[:, None], shared, own) / NORMAL_80
    least = np.finfo(np.float64).tiny
    value = np.maximum(times.seconds, least)
    up = np.log(np.maximum(times.high, value) / value)[:, None]
    down = np.log(value / np.clip(times.low, least, value))[:, None]
    scaled: Array = times.seconds[:, None] * np.exp(normal * np.where(normal > 0, up, down))
    if times.other_gpu.any():
        moved = np.log1p(times.other_gpu / value)
        scaled *= np.exp(moved[:, None] * draws.other_gpu / NORMAL_80)
    return scaled


def estimated(estimate: TimeEstimate, draw: Array) -> Array:
    """[samples] of an input with an interval, not below zero."""
    normal = draw / NORMAL_80
    ends = np.where(normal > 0, estimate.high - estimate.value, estimate.value - estimate.low)
    found: Array = np.maximum(estimate.value + normal * ends, 0.0)
    return found


def training_intervals(
    step: TrainingStep,
    *,
    calibration: CalibrationProfile,
    gap: TimeEstimate,
    blocking: bool,
    seed: int,
) -> dict[str, list[Seconds]]:
    """80 % intervals: {"step_time_s": [low, high], "pair_time_s": ..., "pipeline_time_s": ...}."""
    draws = Draws(np.random.default_rng(seed), common_share=calibration.common_share)
    gap_s = estimated(gap, draws.gap)

    def span(chunk: ChunkRun) -> Array:
        return timeline.run(chunk.log.graph, scaled_seconds(chunk.cost, draws), gap_s).spans_s

    pair = span(step.pair)
    of_chunk: Mapping[ChunkKey, Array] = {
        key: pair if chunk is step.pair else span(chunk) for key, chunk in step.chunks.items()
    }
    # Sends of the pipeline go as what the NICs achieve, exchanges of parameters as their own ends.
    achieved = calibration.transfers.nic
    normal = draws.of("transfers") / NORMAL_80
    ends = np.where(normal > 0, achieved.value / achieved.low, achieved.high / achieved.value)
    slower = ends**normal
    pipeline = run_pipeline(
        step.pipeline.schedule,
        np.array([of_chunk[key] for row in step.keys for key in row]),
        transfer_s={ranks: seconds * slower for ranks, seconds in step.transfers_s.items()},
        blocking_sends=blocking,
    ).makespans_s
    pipeline = np.maximum(pipeline, step.host_s)
    optimizer = np.max([exchanged(part, normal) + part.update_s for part in step.optimizer], axis=0)
    return {
        "step_time_s": interval(pipeline + optimizer, value=step.step_time_s),
        "pair_time_s": interval(pair, value=step.pair.log.span_s),
        "pipeline_time_s": interval(pipeline, value=step.pipeline_time_s),
    }


def exchanged(part: OptimizerStep, normal: Array) -> Array:
    """Draws of the time of an optimizer's reduce-scatter and all-gather.

    Args:
        normal: 1 where the draw is the upper end of an 80 % interval.
    """
    value, (low, high) = part.reduce_s + part.gather_s, part.exchange_ends_s
    if value == 0.0:
        return np.zeros_like(normal)
    drawn: Array = value * np.where(normal > 0, high / value, value / low) ** normal
    return drawn


def serving_interval(step: ServingStep, *, seed: int) -> list[Seconds]:
    """80 % interval of the time of a serving iteration, host overhead included.

    Where ranks differ, the relative width of one mean rank is that of the slowest.
    """
    model, times = step.model, step.times
    common_share = model.kernels.calibration.common_share
    draws = Draws(np.random.default_rng(seed), common_share=common_share)
    scaled = scaled_seconds(times, draws)
    gap, host = model.job.gap, model.job.host_overhead
    middle = timeline.run(model.graph, times.seconds[model.places], gap.value).span_s
    samples = timeline.run(model.graph, scaled[model.places], estimated(gap, draws.gap))
    ratio = samples.spans_s / middle
    spans = np.maximum(step.log.span_s * ratio, step.host_s)
    return interval(spans + estimated(host, draws.host), value=step.step_s)


def interval(samples: Array, *, value: float) -> list[float]:
    """Low and high end of the central 80 % of the samples, widened to hold the value itself."""
    low, high = np.quantile(samples, [TAIL, 1 - TAIL])
    return [min(float(low), value), max(float(high), value)]
