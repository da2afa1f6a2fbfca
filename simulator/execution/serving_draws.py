"""Run a serving iteration on all of its ranks, which differ, in many draws at once.

A draw is one whole iteration: errors of kernel times, values of the priors of the job's skew, and
one realisation of what they are the width of: clocks of GPUs, rows of every rank and layer, lengths
of contexts, pauses of hosts. Ranks and draws are axes of the timeline, so that every rank runs its
own series of tasks, and at each transfer and collective they wait as its kind says: normal kernels
begin together, low-latency ones end with the last sender, collectives of tensor parallelism join
the GPUs of their group.

What lies between waits is one task (serving_blocks). Times are float32: a step of 4,000 tasks is
then right to some hundred-thousandths.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.estimates import Estimate
from hardware_profiles.units import Seconds
from reference_model.trace import ALL_TO_ALL_KINDS
from simulator.execution import timeline
from simulator.execution.draws import SAMPLES, Draws, drawn, estimated, scaled_seconds
from simulator.execution.serving_blocks import NODES, BlockKind, ServingBlocks, serving_blocks
from simulator.execution.serving_model import EXPERT_LAYERS
from simulator.execution.serving_rows import BALANCED_LAYERS, rows_over_mean, slot_shares
from simulator.execution.serving_step import ServingStep, distinct_slots
from simulator.execution.serving_times import asked_kernels, kernel_times
from simulator.hardware.prediction import Prediction
from simulator.scenario.inputs import Skew
from simulator.workload.skew import Single, clock_times, slow_machines
from simulator.workload.task_graph import Stream

Array = NDArray[np.float64]

TRANSFERS = ALL_TO_ALL_KINDS | {"dispatch_layout"}
"""Operators that normal dispatch and combine are made of."""

AT_ONCE = 2**14
"""GPUs times draws that run in one pass, about, so that what they take stays in the cache."""

ATTRIBUTED = 64
"""Draws that run again with GPUs that are alike, to tell slower GPUs from the rest."""


@dataclass(frozen=True, slots=True)
class StepDraws:
    """An iteration in every draw."""

    step_s: Array
    """[draws]"""
    inputs: Mapping[str, Array]
    """[draws] of what each draw was made with: standard normal numbers of the priors, and
    "kernels": what their errors alone make of ideal ranks."""
    waited_s: Array
    """[ranks], time in which a rank waits for others, mean over draws, least first."""
    active_experts: float
    """Local experts that have rows, mean over ranks, layers, micro-batches and draws."""
    causes_s: Mapping[str, Seconds]
    """What the expected time has beyond that of ideal ranks, by cause; empty if not asked for."""
    ranks: ServingRanks | None
    """As drawn; None of ranks that are alike."""

    @property
    def expected_s(self) -> Seconds:
        """The median."""
        return float(np.median(self.step_s))


@dataclass(frozen=True, slots=True)
class ServingRanks:
    """One realisation of all ranks in each draw; axes [GPUs of a group that shares heads, groups,
    draws]: the GPUs that meet most often come first, so that what they take lies in one piece."""

    clock: Single
    """Time of work that is bound by compute over that of the median GPU."""
    slow: Single
    """The same of any kernel."""
    work: tuple[Single, ...]
    """Of each micro-batch: attention over the mean, [1, groups, draws]."""
    pause_s: Single
    rows: Sequence[Sequence[Single]]
    """Rows over the mean, by layer that has experts and micro-batch; empty where each rank has a
    part of every expert."""

    @property
    def max_over_mean(self) -> float:
        """Rows of the busiest rank over the mean, mean over layers, micro-batches and draws."""
        busiest = [float(part.max(axis=(0, 1)).mean()) for layer in self.rows for part in layer]
        return float(np.mean(busiest)) if busiest else 1.0

    def of(self, draws: slice) -> ServingRanks:
        """Some of the draws."""
        return ServingRanks(
            np.ascontiguousarray(self.clock[..., draws]),
            np.ascontiguousarray(self.slow[..., draws]),
            tuple(work[..., draws] for work in self.work),
            np.ascontiguousarray(self.pause_s[..., draws]),
            [[rows[..., draws] for rows in layer] for layer in self.rows],
        )

    def alike(self) -> ServingRanks:
        """The same on GPUs that are alike."""
        ones = np.ones_like(self.clock)
        return replace(self, clock=ones, slow=ones)


def priors_of(skew: Skew) -> dict[str, Estimate]:
    """{dotted name below `skew`: prior} of all that is drawn."""
    found: dict[str, Estimate | None] = {
        "rows.max_over_mean": skew.rows.max_over_mean,
        "rows.zipf_exponent": skew.rows.zipf_exponent,
        "rows.drift": skew.rows.drift,
        "rows_sd": skew.rows_sd,
        "clock_sd": skew.clock_sd,
        "work_sd": skew.work_sd,
        "host_pause.rate": skew.host_pause.rate,
        "host_pause.seconds": skew.host_pause.seconds,
        "slow_gpus.share": skew.slow_gpus.share,
        "slow_gpus.slowdown": skew.slow_gpus.slowdown,
    }
    return {name: prior for name, prior in found.items() if prior is not None}


def step_draws(
    step: ServingStep,
    *,
    seed: int,
    samples: int = SAMPLES,
    attributed: bool = True,
    ranks: ServingRanks | None = None,
) -> StepDraws:
    """Draw a serving iteration; the same seed gives the same draws.

    Args:
        step: of ideal ranks.
        ranks: those of the same job on other kernels; without them they are drawn.
        attributed: whether to say what its time beyond theirs comes from: its causes, what errors
            of kernels alone make of ideal ranks, and the experts that are active.
    """
    model = step.model
    job = model.job
    draws = Draws(
        np.random.default_rng(seed),
        common_share=model.kernels.calibration.common_share,
        samples=samples,
    )
    scaled = scaled_seconds(step.times, draws)
    gap, host = estimated(job.gap, draws.gap), estimated(job.host_overhead, draws.host)
    inputs = {"gap": draws.gap, "host_overhead": draws.host}
    if attributed or job.skew.is_none:
        durations = scaled[model.places]
        passed = timeline.each(
            model.graph,
            zip(durations, durations, strict=True),
            gap,
            axes=gap.shape,
            rank_axis=None,
        )
        kernels = np.maximum(timeline.last_end(model.graph, passed), step.host_s) + host
        inputs = {"kernels": kernels} | inputs
    if job.skew.is_none:
        active = step.active_experts
        return StepDraws(kernels, inputs, np.zeros(job.gpus), active, {}, None)
    priors: dict[str, Array] = {}
    for name, prior in priors_of(job.skew).items():
        normal = draws.of(("skew", name))
        priors[name] = drawn(prior, normal)
        if prior.high > prior.low:
            inputs[f"skew.{name}"] = normal
    if ranks is None:
        ranks = draw_ranks(step, priors, np.random.default_rng((seed, 1)))
    times = times_without_waiting(step)
    if times is not step.times:
        scaled = scaled_seconds(times, draws)
    blocks = serving_blocks(step, scaled, gap, ranks.rows)
    ends, waited = _run(blocks, ranks, waits=attributed)
    step_s = np.maximum(ends, step.host_s) + host
    causes: dict[str, Seconds] = {}
    if attributed:
        few = min(samples, ATTRIBUTED)
        some = slice(few)
        alike, _ = _run(blocks.of(some), ranks.of(some).alike(), waits=False)
        causes = _causes(
            step_s,
            ideal_s=step.step_s,
            kernels_s=inputs["kernels"],
            slower=1 - float(np.median((alike + host[:few]) / step_s[:few])),
            paused_s=float(np.median(ranks.pause_s.max(axis=(0, 1)))),
        )
    return StepDraws(
        step_s=step_s,
        inputs=inputs,
        waited_s=waited,
        active_experts=_active_experts(step, ranks) if attributed else step.active_experts,
        causes_s=causes,
        ranks=ranks,
    )


def expected_s(step: ServingStep, ranks: ServingRanks | None = None) -> Seconds:
    """The median time of a serving iteration, of the ranks that its job's skew states.

    Args:
        ranks: as of `step_draws`.
    """
    if step.model.job.skew.is_none:
        return step.step_s
    return step_draws(step, seed=step.model.seed, attributed=False, ranks=ranks).expected_s


def _active_experts(step: ServingStep, ranks: ServingRanks) -> float:
    """Local experts that have rows, mean over ranks, draws and the first layers."""
    if not ranks.rows:
        return step.active_experts
    some = np.concatenate(
        [part.ravel() for layer in ranks.rows[:BALANCED_LAYERS] for part in layer]
    )
    counts = np.linspace(float(some.min()), float(some.max()), NODES)
    shares = slot_shares(step.model)
    active = [distinct_slots(shares, rows * step.mean_rows) for rows in counts]
    return float(np.interp(some, counts, active).mean())


def _causes(
    step_s: Array, *, ideal_s: Seconds, kernels_s: Array, slower: float, paused_s: Seconds
) -> dict[str, Seconds]:
    """What the median has beyond the ideal time, by cause.

    Args:
        slower: share of the time that GPUs that are alike would not take.
    """
    expected = float(np.median(step_s))
    known = {
        "slower GPUs": expected * slower,
        "host": paused_s,
        "uncertain inputs": float(np.median(kernels_s)) - ideal_s,
    }
    return {"imbalance": expected - ideal_s - sum(known.values())} | known


def times_without_waiting(step: ServingStep) -> Prediction:
    """Times of the iteration's operators with dispatch and combine as of ranks that never wait;
    what was measured beside compute holds waiting, which is simulated here."""
    model = step.model
    freed = model.kernels.calibration.all_to_all.without_waiting
    if freed is None or not model.job.normal_transfers or model.job.overlap == "none":
        return step.times
    asked = asked_kernels(model, step.operators)
    known = {key: model.kernels.predicted[key] for key in asked if key[0].kind not in TRANSFERS}
    kernels = replace(model.kernels, costs=model.kernels.costs.without_waiting(), predicted=known)
    return kernel_times(replace(model, kernels=kernels), step.operators)


# -- ranks -----------------------------------------------------------------------------------------


def draw_ranks(
    step: ServingStep, priors: Mapping[str, Array], rng: np.random.Generator
) -> ServingRanks:
    """One realisation of the ranks of a deployment for each draw of the priors."""
    model = step.model
    job = model.job
    tp = job.attention_tp
    groups, samples = job.gpus // tp, len(priors["clock_sd"])

    def of_groups(ranks: Single) -> Single:
        """What [ranks, draws] are with the neighbours of a group on an axis of their own."""
        return ranks.reshape(groups, tp, samples).swapaxes(0, 1)

    clock = clock_times(priors["clock_sd"], gpus=job.gpus, rng=rng)
    slow = slow_machines(
        priors["slow_gpus.share"],
        priors["slow_gpus.slowdown"],
        gpus=job.gpus,
        per_machine=model.cluster.node.gpus,
        rng=rng,
    )
    pauses = np.floor(priors["host_pause.rate"] + rng.random((job.gpus, samples)))
    pause = (pauses * priors["host_pause.seconds"]).astype(np.float32)
    work = [
        np.maximum(1 + priors["work_sd"] * rng.standard_normal((1, groups, samples)), 0.0).astype(
            np.float32
        )
        for _ in range(job.micro_batches)
    ]
    rows: list[list[Single]] = []
    if model.expert_ranks == job.gpus > 1:
        layers = sum(kind in EXPERT_LAYERS for kind in model.graph.layers)
        drawn_rows = rows_over_mean(
            model, layers=layers, mean_rows=step.mean_rows, priors=priors, rng=rng
        )
        rows = [[of_groups(part) for part in layer] for layer in drawn_rows]
    return ServingRanks(
        of_groups(clock),
        of_groups(slow),
        # Layers that run on the whole batch, micro-batch -1, have what both have.
        (*work, np.mean(work, axis=0)),
        of_groups(pause),
        rows,
    )


# -- runs ------------------------------------------------------------------------------------------


def _run(blocks: ServingBlocks, ranks: ServingRanks, *, waits: bool) -> tuple[Array, Array]:
    """[draws], the end of the last rank; and [ranks], the time that a rank waits for others, mean
    over draws, least first.

    Args:
        waits: whether to work out the latter.
    """
    draws = ranks.clock.shape[-1]
    # A power of two, so that their draws fill whole vectors of a processor.
    pieces = 2 ** max(0, round(math.log2(ranks.clock.size / AT_ONCE)))
    edges = [draws * piece // pieces for piece in range(pieces + 1)]
    passes = [
        _run_at_once(blocks.of(slice(*ends)), ranks.of(slice(*ends)), waits)
        for ends in pairwise(edges)
    ]
    ends = np.concatenate([ends for ends, _ in passes])
    by_rank = np.concatenate([waited for _, waited in passes], axis=1).mean(axis=1)
    return ends.astype(np.float64), by_rank.astype(np.float64)


def _run_at_once(blocks: ServingBlocks, ranks: ServingRanks, waits: bool) -> tuple[Single, Single]:
    """[draws], the end of the last rank; and [ranks, draws], the time that a rank waits for others,
    least first, 0 if it is not asked for."""
    axes = ranks.clock.shape
    tasks = blocks.graph.tasks
    gap = np.broadcast_to(blocks.gap_s, axes).copy()
    waited, free, beyond = np.zeros((3, *axes), dtype=np.float32)
    # A stream runs one task at a time, so that its last one ends last.
    ends_of: dict[Stream, Single] = {}
    own: dict[int, Single] = {}
    passed = timeline.in_turn(
        blocks.graph, _durations(blocks, ranks), gap, axes=axes, ranks=blocks.joins
    )
    for place, (task, (ready, start, done, end)) in enumerate(zip(tasks, passed, strict=True)):
        if waits and task.stream is Stream.COMMUNICATION:
            # When it would have ended had nobody been waited for.
            own[place] = done if start is ready else done - (start - ready)
        elif waits:
            could = ready
            for earlier in task.depends_on:
                if earlier in own:
                    if could is ready:
                        could = np.add(ends_of[Stream.COMPUTE], gap, out=free)
                    # What waits for it again begins behind what waited first.
                    np.maximum(could, own.pop(earlier), out=could)
            if could is not start:
                waited += np.subtract(start, could, out=beyond)
        ends_of[task.stream] = end
    last = reduce(np.maximum, ends_of.values())
    ends = last.max(axis=(0, 1))
    of_ranks = (waited.size // len(ends), len(ends))
    if waits:
        waited += ends - last
        waited = np.sort(waited.reshape(of_ranks), axis=0)
    return ends, waited.reshape(of_ranks)


def _durations(blocks: ServingBlocks, ranks: ServingRanks) -> Iterator[tuple[Single, Single]]:
    """Seconds of each block in turn, and how long a rank's own copies take to leave; what
    broadcasts to [GPUs of a group, groups, draws]."""
    slower = ranks.clock - 1
    any_slow = bool((ranks.slow != 1).any())
    draws = np.arange(ranks.clock.shape[-1], dtype=np.float32)
    same: dict[int, Single] = {}
    rises: dict[int, Single] = {}
    clocked: dict[int, Single] = {}
    nodes: dict[int, tuple[tuple[int, int], Single, NDArray[np.intp]]] = {}
    paused = False
    for place, number in enumerate(blocks.kind_of):
        kind = blocks.kinds[number]
        if number not in same:
            same[number] = _same_on_layers(kind, ranks, slower)
            if kind.of_rows is not None:
                rises[number] = np.diff(kind.of_rows, axis=0)
                clocked[number] = 1 + kind.rows_clocked * slower
        took = same[number]
        if kind.of_rows is not None:
            layer, batch = at = blocks.rows_of[place]
            if batch not in nodes or nodes[batch][0] != at:
                # Views of rows lie otherwise in memory than what is worked out here.
                beyond = np.subtract(
                    ranks.rows[layer][batch], blocks.fewest, out=np.empty_like(slower)
                )
                beyond *= blocks.nodes_per_row
                node = np.floor(beyond)
                np.minimum(node, np.float32(NODES - 2), out=node)
                beyond -= node
                node *= np.float32(len(draws))
                node += draws
                nodes[batch] = (at, beyond, node.astype(np.intp))
            _, share, flat = nodes[batch]
            # All places lie within: none is checked.
            of_rows = rises[number].take(flat, mode="wrap")
            of_rows *= share
            of_rows += kind.of_rows.take(flat, mode="wrap")
            if kind.on_sms:
                of_rows *= clocked[number]
                if any_slow:
                    of_rows *= ranks.slow
            if kind.on_sms or took.any():
                of_rows += took
            took = of_rows
        if not paused and kind.on_sms:
            took, paused = took + ranks.pause_s, True
        yield took, took if kind.sends is None else kind.sends


def _same_on_layers(kind: BlockKind, ranks: ServingRanks, slower: Single) -> Single:
    """What a block takes on every rank, but for what goes with rows."""
    if not kind.on_sms:
        return kind.fixed
    work = ranks.work[kind.micro_batch]
    kernels = kind.plain + kind.clocked * slower + work * (kind.cores + kind.cores_clocked * slower)
    return np.asarray(kind.fixed + kernels * ranks.slow)
