"""Turn the intervals of kernel times into 80 % intervals of simulated ones.

A graph is run for all draws of its kernel times (execution.draws) at once: order and dependencies
stay, every time is an array [samples].
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.schema import CalibrationProfile, TimeEstimate
from hardware_profiles.units import Seconds
from simulator.execution import timeline
from simulator.execution.draws import Draws, estimated, interval, scaled_seconds
from simulator.execution.pipeline import run_pipeline
from simulator.execution.serving_step import ServingStep
from simulator.execution.training import ChunkKey, ChunkRun, OptimizerStep, TrainingStep
from simulator.hardware.prediction import NORMAL_80

Array = NDArray[np.float64]


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
