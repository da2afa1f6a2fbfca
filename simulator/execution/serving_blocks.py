"""Price a serving iteration as its tasks between waits, in many draws at once.

What lies between waits is one task (task_graph.collapsed), and layers that are alike share what is
the same on them. Rows of experts come from a table over the rows of a rank, linear in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.by_content import Keyed, object_key
from simulator.execution.serving_model import EXPERT_LAYERS, ServingModel
from simulator.execution.serving_rows import slot_shares
from simulator.execution.serving_step import ServingStep, distinct_slots
from simulator.execution.serving_times import expert_times
from simulator.scenario.serving import TensorParallel
from simulator.workload.iteration import WIRES, LayerOperators, section_starts
from simulator.workload.iteration_operators import collective_ranks
from simulator.workload.skew import Single
from simulator.workload.task_graph import COLLECTIVE_SEGMENTS, Stream, Task, TaskGraph, collapsed

Array = NDArray[np.float64]

BY_EXPERT_ROWS = WIRES | {"dispatch_receive", "experts", "combine_send"}
"""Parts of a layer whose times go with the rows of a rank."""

CORES = frozenset({"mla_decode", "attention_forward", "mla_prefill"})
"""Operators whose work goes with the lengths of a rank's requests."""

NODES = 33
"""Numbers of rows at which the kernels of the experts are priced."""


@dataclass(frozen=True, slots=True)
class BlockKind:
    """A block of tasks that other layers have too; seconds by draw, of mean rows and work and the
    median clock."""

    fixed: Single
    """[draws], transfers, collectives and gaps, which neither clock nor slow GPUs touch."""
    plain: Single
    """[draws], other kernels."""
    clocked: Single
    """[draws], the part of it that goes with the clock."""
    cores: Single
    """[draws], attention cores."""
    cores_clocked: Single
    micro_batch: int
    """Whose attention it is."""
    on_sms: bool
    """Whether it runs on the compute stream."""
    of_rows: Single | None
    """[NODES, draws], what goes with the rows of a rank, at rows from the fewest to the most."""
    rows_clocked: Single
    """[draws], share of that which goes with the clock."""
    sends: Single | None
    """[draws], how long a rank's own copies take to leave where all send the same."""

    def of(self, draws: slice) -> BlockKind:
        """Some of the draws."""
        cut: dict[str, Any] = {
            name: np.ascontiguousarray(value[..., draws])
            for name in type(self).__slots__
            if isinstance(value := getattr(self, name), np.ndarray)
        }
        return replace(self, **cut)


@dataclass(frozen=True, slots=True)
class ServingBlocks:
    """An iteration as its tasks between waits."""

    graph: TaskGraph
    kinds: tuple[BlockKind, ...]
    kind_of: tuple[int, ...]
    """[blocks]"""
    rows_of: tuple[tuple[int, int], ...]
    """[blocks], layer with experts and micro-batch whose rows it works on."""
    joins: tuple[tuple[int, ...], ...]
    """[blocks], axes over which it waits for others."""
    gap_s: Single
    """[draws]"""
    fewest: float
    """Rows over the mean at the first node of `of_rows`."""
    nodes_per_row: float
    """Nodes per rows over the mean."""

    def of(self, draws: slice) -> ServingBlocks:
        """Some of the draws."""
        kinds = tuple(kind.of(draws) for kind in self.kinds)
        return replace(self, kinds=kinds, gap_s=self.gap_s[draws])


@dataclass(frozen=True, slots=True)
class _Form:
    """What the blocks of an iteration are at any load."""

    graph: TaskGraph
    kinds: tuple[tuple[Task, ...], ...]
    """Tasks of blocks that differ."""
    kind_of: tuple[int, ...]
    rows_of: tuple[tuple[int, int], ...]
    joins: tuple[tuple[int, ...], ...]
    """Like those of `ServingBlocks`."""


def _form(model: ServingModel, *, spread: bool) -> _Form:
    """Worked out once for the graph of a deployment.

    Args:
        spread: whether experts are spread over ranks.
    """
    return _form_of(object_key(model.graph), model.job.tensor_parallel, spread)


@lru_cache(maxsize=4)
def _form_of(keyed: Keyed[TaskGraph], split: TensorParallel, spread: bool) -> _Form:
    whole = keyed.value
    graph, starts = collapsed(whole)
    layers = [n for n, kind in enumerate(whole.layers) if kind in EXPERT_LAYERS]
    known: dict[tuple[int, ...], int] = {}
    kinds: list[tuple[Task, ...]] = []
    kind_of, rows_of, joins = [], [], []
    for start, end in zip(starts, [*starts[1:], len(whole.tasks)], strict=True):
        block = whole.tasks[start:end]
        key = tuple(task.operator for task in block)
        if key not in known:
            known[key] = len(kinds)
            kinds.append(block)
        kind_of.append(known[key])
        by_rows = (
            (layers.index(task.layer), task.micro_batch)
            for task in block
            if spread and task.part in BY_EXPERT_ROWS and whole.layers[task.layer] in EXPERT_LAYERS
        )
        rows_of.append(next(by_rows, (-1, 0)))
        joins.append(meets(whole, split, block[0]))
    return _Form(graph, tuple(kinds), tuple(kind_of), tuple(rows_of), tuple(joins))


def serving_blocks(
    step: ServingStep, scaled: Array, gap: Array, rows: Sequence[Sequence[Single]]
) -> ServingBlocks:
    """The blocks of a step.

    Args:
        scaled: [operators, draws] seconds.
        gap: [draws], after each kernel.
        rows: [layers with experts][micro-batch], of every rank over their mean; none where experts
            are not spread.
    """
    fewest = min((float(part.min()) for layer in rows for part in layer), default=1.0)
    most = max((float(part.max()) for layer in rows for part in layer), default=1.0)
    most = max(most, fewest * (1 + 1e-6))
    spread = bool(rows)
    form = _form(step.model, spread=spread)
    of_kernels = _Kernels(step, scaled, gap, np.linspace(fewest, most, NODES), spread)
    return ServingBlocks(
        graph=form.graph,
        kinds=tuple(of_kernels.kind(block) for block in form.kinds),
        kind_of=form.kind_of,
        rows_of=form.rows_of,
        joins=form.joins,
        gap_s=gap.astype(np.float32),
        fewest=fewest,
        nodes_per_row=(NODES - 1) / (most - fewest),
    )


def meets(graph: TaskGraph, split: TensorParallel, task: Task) -> tuple[int, ...]:
    """Axes of the ranks, [GPUs of a group that shares heads, groups], over which a task waits."""
    if not task.collective:
        return ()
    operator = graph.operators[task.operator]
    of_model = operator.segment in COLLECTIVE_SEGMENTS and task.part not in WIRES
    if of_model and collective_ranks(operator, split) == split.attention:
        return (0,)
    return (0, 1)


class _Kernels:
    """Prices blocks of an iteration in every draw."""

    def __init__(
        self, step: ServingStep, scaled: Array, gap: Array, rows: Array, spread: bool
    ) -> None:
        """Args:
        rows: [NODES], over the mean, at which kernels of the experts are priced.
        spread: whether experts are spread over ranks.
        """
        self._step, self._scaled, self._gap, self._spread = step, scaled, gap, spread
        self._ratios: dict[int, Array] = {}
        """{operator: [NODES + 1]}, time at these rows, and with none, over that of the step."""
        model = step.model
        starts = section_starts(step.operators)
        for kind in EXPERT_LAYERS:
            if spread and (kind, 0) in step.operators:
                ratios = row_ratios(step, kind, rows)
                for batch in range(model.job.micro_batches):
                    start = starts[kind, batch]
                    self._ratios |= {start + place: found for place, found in ratios.items()}
        sms = model.cluster.node.gpu.sms - model.job.communication_sms
        operators = step.log.graph.operators
        self._clocked = model.kernels.costs.clocked_shares(
            operators, step.times.seconds, sms=[sms] * len(operators)
        )

    def varies(self, task: Task) -> bool:
        """Whether a task's time goes with the rows of its rank."""
        return task.operator in self._ratios

    def kind(self, block: Sequence[Task]) -> BlockKind:
        """The block of these tasks."""
        draws = self._gap.shape
        fixed = (len(block) - 1) * self._gap
        plain, clocked, cores, cores_clocked, rows_clocked, middle = np.zeros((6, *draws))
        table: Array | None = None
        sends: Array | None = None
        batch = -1
        operators = self._step.log.graph.operators
        for task in block:
            seconds, share = self._scaled[task.operator], self._clocked[task.operator]
            if self.varies(task):
                ratios = self._ratios[task.operator]
                of_rows = ratios[:-1, None] * seconds
                table = of_rows if table is None else table + of_rows
                rows_clocked = rows_clocked + share * seconds
                middle = middle + seconds
                if not task.barrier and task.part == "dispatch_wire":
                    sends = ratios[-1] * seconds
            elif task.collective:
                fixed = fixed + seconds
            elif operators[task.operator].kind in CORES:
                batch = task.micro_batch
                cores, cores_clocked = cores + seconds, cores_clocked + share * seconds
            else:
                plain, clocked = plain + seconds, clocked + share * seconds
        on_sms = block[0].stream is Stream.COMPUTE
        all_fixed = fixed.astype(np.float32)
        of_rows_s = None if table is None else table.astype(np.float32)
        if of_rows_s is not None and not on_sms and (of_rows_s == of_rows_s[0]).all():
            # The layout of dispatch takes its time whatever the rows are.
            all_fixed, of_rows_s = of_rows_s[0] + all_fixed, None
        return BlockKind(
            fixed=all_fixed,
            plain=plain.astype(np.float32),
            clocked=clocked.astype(np.float32),
            cores=cores.astype(np.float32),
            cores_clocked=cores_clocked.astype(np.float32),
            micro_batch=batch,
            on_sms=on_sms,
            of_rows=of_rows_s,
            rows_clocked=(rows_clocked / np.where(middle > 0, middle, 1.0)).astype(np.float32),
            sends=None if sends is None else sends.astype(np.float32),
        )


def row_ratios(step: ServingStep, kind: str, rows: Array) -> dict[int, Array]:
    """{place in the layer: [rows + 1]}, times of operators that go with the rows of a rank, over
    those of the step; the last with next to no rows.

    Args:
        kind: of the layer.
        rows: over the mean of the ranks.
    """
    base = step.operators[kind, 0]
    part_of = base.part_of()
    wanted = tuple(sorted(place for place, part in part_of.items() if part in BY_EXPERT_ROWS))
    sent = base.parts.get("dispatch_send", ())
    asked = (wanted, tuple(base.operators[place] for place in (*wanted, *sent)))
    return _known_ratios(object_key(step.model), Keyed(asked, base), Keyed(rows.tobytes(), rows))


@lru_cache(maxsize=32)
def _known_ratios(
    keyed: Keyed[ServingModel], layer: Keyed[LayerOperators], at: Keyed[Array]
) -> dict[int, Array]:
    """`row_ratios`, which no context changes.

    Args:
        layer: by its operators that go with the rows of a rank, and their places.
        at: rows over the mean.
    """
    model, base, rows = keyed.value, layer.value, at.value
    wanted = [place for place, part in base.part_of().items() if part in BY_EXPERT_ROWS]
    of_step = base.operators[base.parts["experts"][0]]["rows"]
    counts = np.maximum(np.rint(np.append(rows * of_step / model.even_skew, 1.0)), 1.0)
    shares = slot_shares(model)
    active = np.array(
        [distinct_slots(shares, count) for count in counts]
        + [distinct_slots(model.slot_shares, of_step)]
    )
    counts = np.append(counts, of_step)
    low, high = np.floor(active), np.ceil(active)
    asked = np.concatenate((np.stack((counts, low), 1), np.stack((counts, high), 1)))
    unique, place = np.unique(asked.astype(np.int64), axis=0, return_inverse=True)
    table = expert_times(model, base, unique, sorted(wanted))[place.reshape(2, len(counts))]
    times = table[0] + (active - low)[:, None] * (table[1] - table[0])
    ratios = times[:-1] / np.where(times[-1] > 0, times[-1], 1.0)
    return {place: ratios[:, column] for column, place in enumerate(sorted(wanted))}
