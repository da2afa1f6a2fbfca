"""Run a training step on all of its ranks, which differ, in many draws at once.

Every expert-parallel group, one for each pipeline rank and replica, runs each distinct chunk of its
rank with the clocks of its own GPUs and with rows drawn for every layer. A chunk is its tasks
between waits (task_graph.collapsed), the ranks of its group are an axis of the timeline, and at
every dispatch and combine they wait for the last. The pipeline then runs each replica by itself: a
group has its own series of chunks, sends go from rank to rank, and replicas meet at the optimizer.

What stays for the whole step is drawn once: a GPU's clock, whether its machine is slow, and rows
where they do not change within a step. What changes is drawn anew: each group runs a chunk with two
patterns of rows, which tell what all of its chunks have in common from what differs between them.
Of the mean of both the part that is chance is taken out, by the difference between both; each
action then gets chance of its own of the same size.

Replicas whose chunks exchange parameters or gradients wait for each other as well, and where every
micro-batch does, all replicas are one series of chunks.

Simplifications. Ranks start a chunk together, when the last of their group has ended the one
before, which is later than they would: test_training_ranks states by how much. Rows that stay for a
step are drawn for each group by itself, though replicas have the same experts.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Seconds
from reference_model.trace import ALL_TO_ALL_KINDS, COLLECTIVE_KINDS, Operator
from simulator.execution import timeline
from simulator.execution.draws import TAIL
from simulator.execution.timeline import Times
from simulator.execution.training import TrainingRun
from simulator.workload.experts import place_experts, read_popularity, uniform_popularity
from simulator.workload.layout import StageLayers
from simulator.workload.skew import DrawnRows, Single, random_gate_sd
from simulator.workload.state_tasks import is_state_collective
from simulator.workload.task_graph import Stream, TaskGraph, collapsed

Array = NDArray[np.float64]
KeyT = TypeVar("KeyT", bound=Hashable)

PATTERNS = 2
"""Patterns of rows that each group runs a chunk with."""

AT_ONCE = 2**16
"""Ranks times patterns times draws that run in one pass, so that they stay in the cache."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A chunk or pair as its tasks between waits; arrays [blocks, draws]."""

    graph: TaskGraph
    seconds: Array
    """On a rank of mean rows and median clock, gaps inside."""
    clocked: Single
    """Share of the time that goes with the SM clock."""
    more: Single
    """What it gains, relative, for rows above the mean, per rows over the mean."""
    fewer: Single
    """What it loses for rows below the mean, likewise."""
    attention: Single
    """Share of the attention cores."""
    kernels: Single
    """Share of the kernels of a block that begins with a collective."""
    gap_s: Single
    """[draws]"""
    layers: tuple[tuple[StageLayers, int] | None, ...]
    """[layers of the graph]: the stage and the place in it that a layer is of, None of a layer
    without rows."""


def blocks_of(
    graph: TaskGraph,
    scaled: Array,
    gap_s: Array,
    *,
    clocked: Array,
    more: Array,
    fewer: Array,
    layers: Sequence[tuple[StageLayers, int] | None],
) -> Blocks:
    """Join what lies between waits.

    Args:
        scaled: [tasks, draws] seconds.
        gap_s: [draws] between two tasks of a stream.
        clocked: [tasks], as of Blocks, and so are `more` and `fewer`.
    """
    joined, first = collapsed(graph)
    operators = graph.task_operators()
    attention = np.array([operator.kind.startswith("attention") for operator in operators])

    def summed(values: Array) -> Array:
        return np.asarray(np.add.reduceat(values, first, axis=0))

    between = np.diff(np.append(first, len(graph.tasks))) - 1
    seconds = summed(scaled) + between[:, None] * gap_s
    whole = np.where(seconds > 0, seconds, 1.0)

    def share(of_task: Array) -> Single:
        return (summed(scaled * of_task[:, None]) / whole).astype(np.float32)

    return Blocks(
        graph=joined,
        seconds=seconds,
        clocked=share(clocked),
        more=share(more),
        fewer=share(fewer),
        attention=share(attention.astype(np.float64)),
        kernels=share(np.array([float(is_kernel(operator)) for operator in operators])),
        gap_s=np.asarray(gap_s, dtype=np.float32),
        layers=tuple(layers),
    )


KnownRows = dict[Hashable, Single]
"""{what rows follow from: rows over their mean}"""

MOST_KNOWN = 512
"""Rows that are kept, each of a layer of as many groups as run in one pass."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """How the GPUs of a job differ."""

    clock: Single
    """[pipeline ranks, replicas, ranks of a group, draws], time of compute-bound work over that of
    the median GPU."""
    slow: Single
    """The same of any kernel, of the machine that it runs on."""
    rows: DrawnRows
    lasting: bool
    """Whether rows stay for the whole step."""
    work_sd: Array
    """[draws], of attention work of a rank's micro-batch, relative."""
    seed: int
    places: int
    """Of a group, those with rows of their own; ranks that share experts share the rows as well."""
    teams: Mapping[str, int]
    """{axis whose GPUs share layers: how many, next to each other}"""
    documents: Single | None = None
    """[micro-batches], attention work of packed documents over its mean; each micro-batch of each
    rank is one of them. None where all have the same."""
    sharing: int = 1
    """Ranks next to each other that share sequences, and so documents, those that share layers
    counted once."""
    known: KnownRows | None = None
    """Rows that were drawn before."""

    @property
    def patterns(self) -> int:
        """Patterns of rows of a chunk: one where nothing changes within a step."""
        return 1 if self.lasting else PATTERNS

    def with_equal_documents(self) -> Ranks:
        """The same ranks where every micro-batch has the same attention work."""
        return replace(self, documents=None)

    def without_slower_gpus(self) -> Ranks:
        """The same ranks on GPUs that are alike."""
        alike = np.broadcast_to(np.float32(1), self.clock.shape)
        return replace(self, clock=alike, slow=alike)


def group_spans(
    blocks: Blocks, cases: Sequence[Ranks], pipeline_ranks: Sequence[int]
) -> list[Single]:
    """Seconds of a chunk on each group of some pipeline ranks, from the common start of its ranks
    to the end of the last; [pipeline ranks, replicas, patterns, draws] of each case.

    Replicas that exchange parameters or gradients inside the chunk start together, and wait for
    each other there.

    Args:
        cases: ranks that have the same rows.
    """
    _, replicas, group, draws = cases[0].clock.shape
    patterns = cases[0].patterns
    places = [(rank, replica) for rank in pipeline_ranks for replica in range(replicas)]
    meet = any(map(is_state_collective, blocks.graph.task_operators()))
    once = replicas if meet else max(1, AT_ONCE // (group * patterns * draws))
    found: list[list[Single]] = [[] for _ in cases]
    for start in range(0, len(places), once):
        some = places[start : start + once]
        rows = RowsOfLayers(blocks, cases[0], some)
        axes = (group, len(some), patterns, draws)
        for parts, ranks in zip(found, cases, strict=True):
            passed = timeline.each(
                blocks.graph,
                ((took, took) for took in durations(blocks, ranks, some, rows)),
                blocks.gap_s,
                axes=axes,
                rank_axis=0,
                replica_axis=1 if meet else None,
                teams=ranks.teams,
            )
            # Weight gradients that are all computed at once leave a chunk of their own no task.
            ends = np.broadcast_to(timeline.last_end(blocks.graph, passed), axes)
            parts.append(np.asarray(ends.max(axis=0), dtype=np.float32))
    shape = (len(pipeline_ranks), replicas, patterns, draws)
    return [np.concatenate(parts).reshape(shape) for parts in found]


@dataclass(frozen=True, slots=True)
class PairWaiting:
    """Where the ranks of one group wait in the profiled pair, mean over draws."""

    by_rank_s: Array
    """[ranks], sorted."""
    notify_s: Array
    """[slots, all-to-alls of a slot], of a rank before each, mean over ranks."""
    mean_ends_s: tuple[Seconds, Seconds]
    """80% interval of what one rank waits before an all-to-all of its pair, on average."""
    kernel_s: Array
    """Likewise, of the all-to-all itself, the least of its notify kernel inside."""


def pair_waiting(
    pair: Blocks, ranks: Ranks, place: tuple[int, int], *, group: int, draws: int
) -> PairWaiting:
    """What the ranks of one group wait for each other in a pair.

    Args:
        place: (pipeline rank, replica) of the group.
        group: its ranks.
    """
    axes = (group, 1, ranks.patterns, draws)
    rows = RowsOfLayers(pair, ranks, [place])
    took = durations(pair, ranks, [place], rows)
    passed = timeline.each(
        pair.graph,
        ((each, each) for each in took),
        pair.gap_s,
        axes=axes,
        rank_axis=0,
        teams=ranks.teams,
    )
    waits, lasted = np.zeros((2, len(pair.graph.tasks), axes[0]), dtype=np.float32)
    alone = np.zeros(axes, dtype=np.float32)
    for number, (ready, start, _, end) in enumerate(passed):
        waited = start - ready
        waits[number] = waited.mean(axis=(1, 2, 3))
        lasted[number] = (end - start).mean(axis=(1, 2, 3))
        if pair.graph.tasks[number].stream is Stream.COMMUNICATION:
            alone += waited
    order = pair.graph.of_stream[Stream.COMMUNICATION]
    parts: list[tuple[int, str]] = []
    sums: list[tuple[float, float]] = []
    for block in order.tolist():
        task = pair.graph.tasks[block]
        part = (task.layer, task.part)
        found = (float(waits[block].mean()), float(lasted[block].mean()))
        if parts and parts[-1] == part:
            sums[-1] = (sums[-1][0] + found[0], found[1])
        else:
            parts.append(part)
            sums.append(found)
    each = np.array(sums).reshape(-1, 2)
    slots = len(each) // 4 if len(each) % 4 == 0 and len(each) else 1
    table = each.reshape(slots, -1, 2)
    alone /= max(1, len(each))
    low, high = np.quantile(alone, [TAIL, 1 - TAIL]).tolist()
    return PairWaiting(
        by_rank_s=np.sort(waits[order].sum(axis=0)),
        notify_s=table[:, :, 0],
        mean_ends_s=(low, high),
        kernel_s=table[:, :, 1],
    )


def durations(
    blocks: Blocks, ranks: Ranks, places: Sequence[tuple[int, int]], rows: RowsOfLayers
) -> Iterator[NDArray[np.float32]]:
    """Seconds of each block in turn, what broadcasts to [ranks of a group, groups, patterns,
    draws].

    Args:
        places: (pipeline rank, replica) of each group.
    """

    def of_places(values: Single) -> Single:
        chosen = np.stack([values[place] for place in places], axis=1)
        return chosen[:, :, None, :]

    slower = of_places(ranks.clock) - 1
    slow = of_places(ranks.slow)
    any_slower, any_slow = bool(slower.any()), bool((slow != 1).any())
    seconds = blocks.seconds.astype(np.float32)
    rng = _rng(ranks.seed, blocks.graph.name, places[0], "work")
    work: dict[int, Single] = {}
    for number, task in enumerate(blocks.graph.tasks):
        took: Single = seconds[number]
        own = is_kernel(blocks.graph.operators[task.operator])
        share = blocks.kernels[number]
        if own or share.any():
            if any_slower:
                longer = slower * (blocks.clocked[number] * took)
                longer += took
                took = longer
            if any_slow:
                took = took * (slow if own else 1 + (slow - 1) * share)
            differs = ranks.work_sd.any() or ranks.documents is not None
            if differs and blocks.attention[number].any():
                if task.micro_batch not in work:
                    # GPUs that share layers work on the same tokens.
                    team = ranks.teams.get("tensor", 1)
                    ways, groups, _, draws = slower.shape
                    shape = (ways // team, groups, ranks.patterns, draws)
                    work[task.micro_batch] = np.repeat(_more_work(ranks, shape, rng), team, axis=0)
                more_work = blocks.attention[number] * work[task.micro_batch]
                more_work += 1
                np.maximum(more_work, 0, out=more_work)
                more_work *= took
                took = more_work
        if blocks.more[number].any() or blocks.fewer[number].any():
            above, below = rows.of(task.layer)
            change = above * blocks.more[number]
            if blocks.fewer[number].any():
                change += below * blocks.fewer[number]
            change += 1
            change *= took
            took = change
        yield took


def _more_work(ranks: Ranks, shape: tuple[int, ...], rng: np.random.Generator) -> Single:
    """Attention work of one micro-batch of each rank, relative, less 1.

    Args:
        shape: [ranks of a group, groups, patterns, draws], those that share layers once.
    """
    beyond: Single = np.zeros(shape, dtype=np.float32)
    if ranks.work_sd.any():
        beyond += rng.standard_normal(shape, dtype=np.float32) * ranks.work_sd.astype(np.float32)
    if ranks.documents is not None:
        groups = -(-shape[0] // ranks.sharing)
        chosen = rng.integers(len(ranks.documents), size=(groups, *shape[1:]))
        beyond += np.repeat(ranks.documents[chosen] - 1, ranks.sharing, axis=0)[: shape[0]]
    return beyond


def is_kernel(operator: Operator) -> bool:
    """Whether a GPU by itself decides how long an operator takes: no transfer and no collective."""
    return not (
        operator.kind in ALL_TO_ALL_KINDS
        or operator.kind in COLLECTIVE_KINDS
        or is_state_collective(operator)
    )


class RowsOfLayers:
    """Rows of a chunk's layers, drawn when first asked for."""

    def __init__(self, blocks: Blocks, ranks: Ranks, places: Sequence[tuple[int, int]]) -> None:
        self._blocks, self._ranks, self._places = blocks, ranks, places
        self._known: dict[int, tuple[Single, Single]] = {}
        self._mark = b"" if ranks.known is None else ranks.rows.mark

    def of(self, layer: int) -> tuple[Single, Single]:
        """Rows over the mean less 1, [ranks, groups, patterns, draws], above and below it."""
        if layer not in self._known:
            beyond = self._shares(layer) - 1
            self._known[layer] = np.maximum(beyond, 0), np.minimum(beyond, 0)
        return self._known[layer]

    def _shares(self, layer: int) -> Single:
        ranks, where = self._ranks, self._blocks.layers[layer]
        if not ranks.lasting:
            what = (self._blocks.graph.name, self._places[0], layer)
            return self._drawn((len(self._places), ranks.patterns), what)
        return np.stack([self._drawn((1,), (place, where)) for place in self._places], axis=1)

    def _drawn(self, cases: tuple[int, ...], what: tuple[object, ...]) -> Single:
        """Rows that belong to a thing, drawn where they are not known."""
        ranks = self._ranks
        if ranks.known is None:
            return _spread(ranks, cases, _rng(ranks.seed, *what))
        shape = (ranks.clock.shape, tuple(ranks.teams.items()), ranks.places)
        key = (self._mark, shape, cases, ranks.seed, repr(what))
        found = ranks.known.get(key)
        if found is None:
            found = _spread(ranks, cases, _rng(ranks.seed, *what))
            if len(ranks.known) < MOST_KNOWN:
                ranks.known[key] = found
        return found


def drawn_rows(run: TrainingRun, priors: Mapping[str, Array]) -> DrawnRows:
    """How the rows of ranks are drawn, by the form that the job states.

    Args:
        priors: {path below `training` of a prior: [draws] values}.
    """
    job, rows, layout = run.job, run.job.skew.rows, run.layout
    model = run.scenario.model
    sd = priors["skew.rows_sd"]
    if rows.form in ("random", "popularity"):
        top_k = model.num_experts_per_tok
        gate = random_gate_sd(
            choices=layout.etp * job.micro_batch_tokens * top_k,
            top_k=top_k,
            experts=layout.routed_experts,
            local=layout.routed_experts // layout.ep,
        )
        sd = np.hypot(sd, gate)
    popularity = placement = None
    if rows.form == "popularity":
        placement = place_experts(
            uniform_popularity(1, layout.routed_experts),
            gpus=layout.ep,
            nodes=1,
            groups=1,
            redundant=layout.redundant_experts,
            policy="global",
        )
    if rows.file is not None:
        layers = model.num_hidden_layers - model.first_k_dense_replace
        popularity = read_popularity(Path(rows.file), layers=layers, experts=layout.routed_experts)
    return DrawnRows(
        sd,
        most=priors.get("skew.rows.max_over_mean"),
        popularity=popularity,
        zipf_exponent=priors.get("skew.rows.zipf_exponent"),
        placement=placement,
    )


def _spread(ranks: Ranks, cases: tuple[int, ...], rng: np.random.Generator) -> Single:
    """[ranks of a group, *cases, draws], rows over their mean where each place of an
    expert-parallel group has its own, and all ranks that share its experts have the same."""
    group, sharing = ranks.clock.shape[2], ranks.teams.get("expert_tensor", 1)
    several = group // (ranks.places * sharing)
    shares = ranks.rows.shares(ranks=ranks.places, cases=(several, *cases), rng=rng)
    return np.repeat(shares.swapaxes(0, 1), sharing, axis=1).reshape(group, *cases, -1)


def _rng(seed: int, *what: object) -> np.random.Generator:
    """Random numbers that belong to a thing, whatever else is drawn."""
    return np.random.default_rng([seed, zlib.crc32(repr(what).encode())])


@dataclass(frozen=True, slots=True)
class Series:
    """How long the chunks of each group take in a step; [pipeline ranks, replicas, draws]."""

    places: Mapping[int, int]
    """{pipeline rank that runs them: its place among the first axis}"""
    mean: Array
    """What all chunks of a group have in common."""
    spread: Array
    """What a chunk takes more or less than that, as often one as the other."""

    @classmethod
    def known(cls, seconds: Array, ranks: Sequence[int]) -> Series:
        """Chunks that all take the same on all of some ranks: [1, replicas, draws]."""
        return cls(dict.fromkeys(ranks, 0), seconds, np.zeros_like(seconds))


def series_of(spans: Single, ranks: Sequence[int]) -> Series:
    """Tell what the chunks of a group have in common from what differs between them.

    With two patterns a and b of each group the variance of one is (a - b)^2 / 2, and so is twice
    what is chance in their mean. Means of groups are drawn together by as much as leaves them the
    variance that chance does not explain.

    Args:
        spans: [pipeline ranks, replicas, patterns, draws].
        ranks: which these are.
    """
    places = {rank: place for place, rank in enumerate(ranks)}
    values = spans.astype(np.float64)
    mean = values.mean(axis=2)
    if values.shape[2] == 1:
        return Series(places, mean, np.zeros_like(mean))
    half = np.abs(values[:, :, 0] - values[:, :, 1]) / 2
    of_chance = (half**2).mean(axis=(0, 1))
    over = mean.mean(axis=(0, 1))
    groups = mean.shape[0] * mean.shape[1]
    between = mean.var(axis=(0, 1)) * groups / max(groups - 1, 1)
    kept = np.sqrt(np.clip(1 - of_chance / np.where(between > 0, between, np.inf), 0, 1))
    kept = np.where(between > 0, kept, 1.0)
    spread = np.broadcast_to(np.sqrt(2 * of_chance), mean.shape)
    return Series(places, over + kept * (mean - over), spread)


def action_seconds(
    series: Mapping[KeyT, Series],
    keys: Sequence[Sequence[KeyT]],
    *,
    rng: np.random.Generator,
) -> Times:
    """[actions, replicas, draws], seconds of every action of every replica.

    Args:
        series: of each chunk.
        keys: [rank][action], chunk of the action.
    """
    found = []
    for rank, row in enumerate(keys):
        distinct = {key: number for number, key in enumerate(dict.fromkeys(row))}
        chosen = np.array([distinct[key] for key in row])
        parts = [series[key] for key in distinct]
        mean = np.stack([one.mean[one.places[rank]] for one in parts])
        spread = np.stack([one.spread[one.places[rank]] for one in parts])
        signs = rng.integers(2, size=(len(row), *mean.shape[1:]), dtype=np.int8) * 2 - 1
        found.append(np.maximum(mean[chosen] + signs * spread[chosen], 0.0))
    return np.concatenate(found)
