"""Split a training step into causes; the rows sum to the step time.

Counterfactuals of the simulation, each on top of those before it: a row's effect is what the
step takes longer once its cause is there, so it depends on the order below. The chunks' part of the
step is its mean over pipeline ranks; with the mean bubble and the optimizer it makes up the step
time of every rank, so the rows sum to it. The last row shows by how much they miss it.

    arithmetic       matrix products and attention at the peak of their types, on all SMs
    recomputation    the same of what backward computes a second time
    tiles, HBM       the busiest SM's tiles at peak, and no byte faster than the HBM
    kernels          what those kernels take when each runs alone on all SMs
    other kernels    casts, norms, SwiGLU, permutations ... alone
    gaps             idle time between two kernels
    SMs, contention  the SMs that communication keeps, and memory shared with it
    exposed          dispatch and combine where nothing hides them, at the speed they have alone
    slow-down        their slow-down beside compute
    shared layers    gathers and scatters among GPUs that share layers or sequences, by axis
    state in chunks  parameters gathered and gradients reduced by layer, where nothing hides it
    bubble           waiting for other ranks, transfers between them free
    transfers        activations sent between pipeline ranks
    optimizer        gradient reduction, update, orthogonalization and gather on the slowest rank
    uncertain inputs the median over what is not known of ideal ranks, against its middle
    imbalance        waiting for ranks with more rows or longer work
    slower GPUs      waiting for GPUs of a lower clock and for slow machines
    host             waiting for hosts that pause
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Seconds
from reference_model.formats import multiplied_as
from simulator.analysis.training_expected import DOCUMENTS, cause_seconds
from simulator.execution import timeline
from simulator.execution.optimizer import OptimizerStep
from simulator.execution.pipeline import run_pipeline
from simulator.execution.training import TrainingRun
from simulator.execution.training_chunks import ChunkKey, ChunkRun
from simulator.execution.training_draws import TrainingDraws
from simulator.hardware.kernels.roofline import ideal_seconds, is_tensor
from simulator.workload.sharding import OPTIMIZERS
from simulator.workload.state_tasks import STATE
from simulator.workload.task_graph import Stream
from simulator.workload.tensor_parallel import SHARED_AXES, shared_axis

Array = NDArray[np.float64]

CHUNK_CAUSES = (
    ("arithmetic", "matrix products and attention at the tensor cores' peak, all SMs"),
    ("recomputation", "those that backward computes a second time, at peak"),
    ("tiles and HBM", "whole waves of tiles at peak; bytes at the HBM's peak"),
    ("kernel efficiency", "their kernels' own times, each alone on all SMs"),
    ("other kernels", "casts, norms, SwiGLU, permutations, each alone"),
    ("gaps between kernels", "idle time between two kernels of a stream"),
    ("SMs and memory shared", "compute on the SMs that communication leaves, beside it"),
    ("exposed all-to-all", "dispatch and combine that nothing hides, at their speed alone"),
    ("all-to-all slow-down", "dispatch and combine slower beside compute"),
)
"""Causes inside the chunks with what each adds, in order."""
STATE_CAUSE = (
    "state in chunks",
    "gathering parameters and reducing gradients layer by layer, what nothing hides",
)
"""The last of them, where chunks hold any of it."""
ORTHOGONALIZE = (
    "orthogonalization",
    "products of Newton and Schulz on the busiest owner's matrices",
)
"""Of an optimizer of whole matrices."""
ON_CPU = (
    ("PCIe", "gradients to the CPU and parameters back"),
    ("update on the CPU", "at the peak of its memory"),
)
"""Of an optimizer that is offloaded."""
_GAPS = 5
"""Place of the first counterfactual with gaps."""


_OF_DRAWS = {
    "uncertain inputs": "median over kernel errors, lone chunks' SMs, optimizer; no waiting inside",
    "imbalance": "waiting for ranks with more rows or longer work",
    DOCUMENTS: "waiting for micro-batches whose documents take more attention",
    "slower GPUs": "waiting for GPUs of a lower clock or a slow machine",
    "host": "waiting for hosts that launch nothing",
}
"""What lies between ideal ranks and those that are expected."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One row of the attribution."""

    name: str
    meaning: str
    seconds: Seconds
    """What the step takes longer because of it, after the causes before it."""


def attribute_step(run: TrainingRun, drawn: TrainingDraws | None) -> list[Cause]:
    """Causes in order, the remainder last.

    Args:
        drawn: of the run; None without, and not asked of a run without skew.
    """
    step = run.step
    of_chunk = _chunk_seconds(run)
    # [causes], chunks of one rank up to each cause, mean over ranks
    until = step.of_actions(of_chunk)
    first = np.flatnonzero(step.pipeline.index == 0)
    sums = [np.sum(of_rank, axis=0) for of_rank in np.split(until, first[1:])]
    cumulated = np.mean(sums, axis=0)
    effects = np.diff(cumulated, prepend=0.0)
    causes = [
        Cause(name, meaning, float(effect))
        for (name, meaning), effect in zip(_chunk_causes(run), effects, strict=True)
    ]
    free, sent = (
        run_pipeline(
            step.pipeline.schedule,
            until[:, -1],
            transfer_s=transfers_s,
            blocking_sends=run.job.blocking_sends,
            staggered=run.job.optimizer.post_validation,
        ).makespan_s
        for transfers_s in (dict.fromkeys(step.transfers_s, 0.0), step.transfers_s)
    )
    slowest = max(step.optimizer, key=lambda part: part.total_s)
    optimizer = OPTIMIZERS[run.job.optimizer.name].label
    causes += [
        Cause("bubble", "waiting for other ranks, mean over ranks", free - float(cumulated[-1])),
        Cause("pipeline transfers", "activations sent between ranks", sent - free),
        Cause("gradient reduction", "reduce-scatter over all copies", slowest.reduce_s),
        Cause("optimizer update", f"norm, {optimizer} on the shard, casts", slowest.update_s),
        *_of_some_optimizers(slowest),
        Cause("parameter gather", "all-gather of the BF16 parameters", slowest.gather_s),
    ]
    total = step.step_time_s
    if drawn is not None and not run.job.skew.is_none:
        added = cause_seconds(drawn, ideal_s=total)
        causes += [Cause(name, _OF_DRAWS[name], seconds) for name, seconds in added.items()]
        total = drawn.expected_s
    remainder = total - sum(cause.seconds for cause in causes)
    return [*causes, Cause("remainder", "what the rows above miss", remainder)]


def _of_some_optimizers(slowest: OptimizerStep) -> list[Cause]:
    """Rows that only some optimizers have."""
    found = []
    if slowest.products is not None:
        found.append(Cause(*ORTHOGONALIZE, slowest.orthogonalize_s))
    for name, seconds in zip(ON_CPU, slowest.on_cpu_s or (), strict=False):
        found.append(Cause(*name, seconds))
    return found


def _chunk_causes(run: TrainingRun) -> tuple[tuple[str, str], ...]:
    """CHUNK_CAUSES, with one for each axis whose GPUs share layers or sequences, and STATE_CAUSE
    where a chunk has it."""
    shared = [
        (SHARED_AXES[axis], "tokens gathered and sums scattered inside layers, beside nothing")
        for axis in _axes(run)
    ]
    state = any(key.state is not None for key in run.step.chunks)
    return (*CHUNK_CAUSES, *shared, *((STATE_CAUSE,) if state else ()))


def _axes(run: TrainingRun) -> list[str]:
    """Axes whose GPUs share layers or sequences, in the order of their causes."""
    return [axis for axis in SHARED_AXES if axis in run.costs.sharing]


def _chunk_seconds(run: TrainingRun) -> Mapping[ChunkKey, Array]:
    """{chunk: [causes] its span with each cause and all those before it}"""
    scenario, step = run.scenario, run.step
    gpu, gap_s = scenario.cluster.node.gpu, run.job.gap.value
    tiles = scenario.calibration.tiles
    chunks = list(step.chunks.values())
    computes = [chunk.log.graph.of_stream[Stream.COMPUTE].tolist() for chunk in chunks]
    operators = [
        of_task[place]
        for chunk, places in zip(chunks, computes, strict=True)
        for of_task in [chunk.log.graph.task_operators()]
        for place in places
    ]
    alone = run.costs.predict(operators, sms=gpu.sms, overlapped=False).seconds
    bounds = np.zeros((2, len(operators)))
    for kind in {operator.kind for operator in operators if is_tensor(operator.kind)}:
        for dtype in {operator.dtype for operator in operators if operator.kind == kind}:
            chosen = [
                place
                for place, operator in enumerate(operators)
                if (operator.kind, operator.dtype) == (kind, dtype)
            ]
            members = [operators[place] for place in chosen]
            flops = np.array([operator.flops for operator in members])
            bounds[0, chosen] = flops / gpu.peak(multiplied_as(dtype))
            every = np.full(len(chosen), float(gpu.sms))
            bounds[1, chosen] = ideal_seconds(kind, members, every, gpu, tiles)
    found: dict[ChunkKey, Array] = {}
    start = 0
    for chunk, places in zip(chunks, computes, strict=True):
        end = start + len(places)
        other = run.without_slowdown.chunks[chunk.key]
        part = slice(start, end)
        seconds = _counterfactuals(chunk, places, alone[part], bounds[:, part], other, _axes(run))[
            :, : len(_chunk_causes(run))
        ]
        gaps = np.where(np.arange(seconds.shape[1]) < _GAPS, 0.0, gap_s)
        spans = timeline.run(chunk.log.graph, seconds, gaps).spans_s
        spans[-1] -= sum(chunk.outside_s)
        found[chunk.key] = spans
        start = end
    return found


def _counterfactuals(
    chunk: ChunkRun,
    computes: list[int],
    alone: Array,
    bounds: Array,
    without_slowdown: ChunkRun,
    axes: Sequence[str],
) -> Array:
    """[tasks, causes] durations of a chunk's tasks with each cause and all those before it, the
    collectives of its layers and those of its state last.

    Args:
        computes: places of the compute tasks; the others exchange tokens.
        alone: [compute tasks] kernel times on all SMs with nothing beside.
        axes: whose GPUs share layers or sequences; each is a cause.
        bounds: [2, compute tasks] time at peak, and of tiles and bytes; zero off the tensor cores.
    """
    operators = chunk.log.graph.task_operators()
    again = np.array([operators[place].recompute for place in computes], dtype=np.bool_)
    tensor = np.array([is_tensor(operators[place].kind) for place in computes], dtype=np.bool_)
    at_peak, tiled = bounds
    actual = chunk.cost.seconds
    columns = [
        np.where(again, 0.0, at_peak),
        at_peak,
        tiled,
        np.where(tensor, alone, 0.0),
        alone,
        alone,
        *[actual[computes]] * (4 + len(axes)),
    ]
    seconds = np.zeros((len(operators), len(columns)))
    seconds[computes] = np.stack(columns, axis=1)
    first = len(columns) - 1 - len(axes)
    for place in computes:
        axis = shared_axis(operators[place])
        if axis is not None:
            seconds[place, : first + axes.index(axis)] = 0.0
    exchanges = sorted(set(range(len(operators))) - set(computes))
    tokens = [place for place in exchanges if operators[place].segment != STATE]
    seconds[tokens, first - 2] = without_slowdown.cost.seconds[tokens]
    seconds[tokens, first - 1 :] = actual[tokens][:, None]
    seconds[exchanges, -1] = actual[exchanges]
    return seconds
