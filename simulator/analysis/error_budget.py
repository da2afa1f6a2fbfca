"""80 % intervals of simulated times: predictions with their own intervals in, intervals out.

Monte Carlo over what calibration left unexplained. Each sample draws one standard normal number a
kernel family, since a family's error is one error: all its kernels move together, in every chunk of
the step. Where a kernel is extrapolated or modelled, half of the variance is drawn once for all of
them, since clocks, power and software versions of another table are common to its kernels
(assumed: nothing measured says how much). A kernel's time is scaled by exp(z w), w the logarithm of
the end of its interval over its value, for positive and negative z each.

A fixed graph is run for all samples at once: order and dependencies stay, every time is an array
[samples]. That gives the same times as the event engine, and takes milliseconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.schema import TimeEstimate
from hardware_profiles.units import Seconds
from simulator.execution.pipeline import PipelineRun
from simulator.execution.training import ChunkKey, ChunkRun, TrainingStep
from simulator.hardware.costs import NORMAL_80, Family, family_of
from simulator.hardware.kernel_curves import EXTRAPOLATED, PROVENANCES
from simulator.workload.schedules import dependencies
from simulator.workload.task_graph import Stream, TaskGraph

Array = NDArray[np.float64]

SAMPLES = 64
TAIL = 0.1
"""Share of the samples beyond either end of an 80 % interval."""
COMMON_SHARE = 0.5
"""Of the variance of extrapolated kernels: what is common to all of them."""


class Draws:
    """Standard normal numbers of a run: [samples] for each family, drawn when first asked for."""

    def __init__(self, rng: np.random.Generator, *, samples: int = SAMPLES) -> None:
        """Store the generator; the order in which families are asked for is part of the seed."""
        self._rng = rng
        self._samples = samples
        self.common = rng.standard_normal(samples)
        self.gap = rng.standard_normal(samples)
        self._families: dict[Family, Array] = {}

    def of(self, family: Family) -> Array:
        """The family's own numbers."""
        if family not in self._families:
            self._families[family] = self._rng.standard_normal(self._samples)
        return self._families[family]


def scaled_seconds(chunk: ChunkRun, draws: Draws) -> Array:
    """[tasks, samples] durations of a chunk's kernels, each family moved together."""
    cost = chunk.cost
    families = np.stack([draws.of(family_of(task.operator)) for task in chunk.log.graph.tasks])
    beyond = np.isin(cost.provenance, PROVENANCES[EXTRAPOLATED:])[:, None]
    shared = np.sqrt(COMMON_SHARE) * draws.common + np.sqrt(1 - COMMON_SHARE) * families
    normal = np.where(beyond, shared, families) / NORMAL_80
    value = np.maximum(cost.seconds, np.finfo(np.float64).tiny)
    up = np.log(np.maximum(cost.high, value) / value)[:, None]
    down = np.log(value / np.clip(cost.low, np.finfo(np.float64).tiny, value))[:, None]
    scaled: Array = cost.seconds[:, None] * np.exp(normal * np.where(normal > 0, up, down))
    return scaled


def spans(graph: TaskGraph, seconds: Array, gap_s: Array) -> Array:
    """Span of a graph for every sample, [samples]; the engine's rules.

    Args:
        seconds: [tasks, samples].
        gap_s: [samples] between kernels of one stream.
    """
    samples = seconds.shape[1]
    end = np.empty_like(seconds)
    free: dict[Stream, Array] = {}
    for index, task in enumerate(graph.tasks):
        last = free.get(task.stream)
        start = np.zeros(samples) if last is None else last + gap_s
        for earlier in task.depends_on:
            start = np.maximum(start, end[earlier])
        free[task.stream] = end[index] = start + seconds[index]
    return end.max(axis=0) if len(graph.tasks) else np.zeros(samples)


def makespans(
    run: PipelineRun, durations: Sequence[Sequence[Array]], *, transfer_s: Seconds, blocking: bool
) -> Array:
    """Makespan of a pipeline for every sample, [samples]; the order of actions stays.

    Args:
        durations: [rank][action] arrays [samples].
        transfer_s: of every transfer between ranks.
        blocking: whether a rank waits for its sends before its next action.
    """
    needs = dependencies(run.schedule)
    # What a rank sends at the end of one action leaves one after the other.
    sends: dict[tuple[int, int], int] = defaultdict(int)
    turn: dict[tuple[int, int, int, int], int] = {}
    for rank, row in enumerate(needs):
        for index, wanted in enumerate(row):
            for need in wanted:
                if need.rank != rank:
                    sends[need.rank, need.position] += 1
                    turn[need.rank, need.position, rank, index] = sends[need.rank, need.position]
    ends: dict[tuple[int, int], Array] = {}
    free: list[Array | float] = [0.0] * run.schedule.ranks
    latest: Array | float = 0.0
    for place in np.lexsort((run.index, run.start_s)):
        rank, index = int(run.rank[place]), int(run.index[place])
        start = free[rank]
        for need in needs[rank][index]:
            ready = ends[need.rank, need.position]
            if need.rank != rank:
                ready = ready + turn[need.rank, need.position, rank, index] * transfer_s
            start = np.maximum(start, ready)
        end = start + durations[rank][index]
        ends[rank, index] = end
        free[rank] = end + sends[rank, index] * transfer_s if blocking else end
        latest = np.maximum(latest, end)
    return np.asarray(latest, dtype=np.float64)


def training_intervals(
    step: TrainingStep, *, gap: TimeEstimate, transfer_s: Seconds, blocking: bool, seed: int
) -> dict[str, list[Seconds]]:
    """80 % intervals of pair and step time, {"step_time_s": [low, high], "pair_time_s": ...}."""
    draws = Draws(np.random.default_rng(seed))
    normal = draws.gap / NORMAL_80
    gap_s = gap.value + normal * np.where(normal > 0, gap.high - gap.value, gap.value - gap.low)
    gap_s = np.maximum(gap_s, 0.0)

    def span(chunk: ChunkRun) -> Array:
        return spans(chunk.log.graph, scaled_seconds(chunk, draws), gap_s)

    pair = span(step.pair)
    of_chunk: Mapping[ChunkKey, Array] = {
        key: pair if chunk is step.pair else span(chunk) for key, chunk in step.chunks.items()
    }
    pipeline = makespans(
        step.pipeline,
        [[of_chunk[key] for key in row] for row in step.keys],
        transfer_s=transfer_s,
        blocking=blocking,
    )
    optimizer = max(part.total_s for part in step.optimizer)
    return {
        "step_time_s": interval(pipeline + optimizer, value=step.step_time_s),
        "pair_time_s": interval(pair, value=step.pair.log.span_s),
    }


def interval(samples: Array, *, value: float) -> list[float]:
    """Low and high end of the central 80 % of the samples, widened to hold the value itself."""
    low, high = np.quantile(samples, [TAIL, 1 - TAIL])
    return [min(float(low), value), max(float(high), value)]
