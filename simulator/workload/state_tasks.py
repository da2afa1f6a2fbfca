"""Collectives of parameters and gradients inside a chunk, layer by layer, as tasks of its graph.

They run on the communication stream beside dispatch and combine, one transfer after the other,
since both take the same NVLink and NICs. What is exchanged at once is what shares a slot of the
chunk: one layer, the embedding with the layer after it.

    gathered as needed    the gather waits for the layer before, the layer for the gather
    gathered ahead        while the layer before computes, once the one before that has ended: two
                          layers are there at a time
    reduced as computed   the next layer waits for the reduction
    reduced beside        the next layer's backward, after its combine(B), which nothing may delay

A chunk's first gather and last reduction have nothing of the same chunk beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hardware_profiles.units import Bytes
from reference_model.trace import Operator
from simulator.workload.sharding import BF16_BYTES, HeldParameters, Sharding, type_bytes
from simulator.workload.task_graph import GraphBuilder, Stream
from simulator.workload.update import working_copies

STATE = "state"
"""Segment of the operators that exchange parameters and gradients, and of the kernels they need."""

PARAMETERS, GRADIENTS = "state_parameters", "state_gradients"
"""What takes the place of a phase where the operators of a layer's state are asked for."""

Units = Sequence[tuple[str, ...]]


def is_state_collective(operator: Operator) -> bool:
    """Whether an operator is a collective of parameters or gradients."""
    return operator.segment == STATE and operator.kind == "copy"


def collective_of(operator: Operator) -> tuple[str, bool]:
    """Which collective operation it is, and whether it is one over copies of experts."""
    _, operation, over = operator.name.split(".")
    return operation, over == "experts"


def state_operators(
    parameters: Mapping[str, HeldParameters], sharding: Sharding, *, accumulates: bool
) -> dict[tuple[str, str], tuple[Operator, ...]]:
    """{(layer kind, PARAMETERS or GRADIENTS): operators}: gather one layer's parameters and cast
    them to their working copies; reduce its gradients, and add them to the shard's.

    An all-reduce is a reduce-scatter and an all-gather, as a ring does it.

    Args:
        parameters: of one layer of each kind.
        accumulates: whether gradients of several micro-batches add up where they are shared.
    """
    gradients = sharding.types.gradients
    every_gradient = ("reduce_scatter",) if sharding.zero else ("reduce_scatter", "all_gather")

    def exchanged(
        held: HeldParameters, what: str, operations: Sequence[str], dtype: str
    ) -> list[Operator]:
        return [
            _operator(f"{what}.{operation}.{over}", "copy", dtype, part.count)
            for operation in operations
            for over, part, copies in (
                ("replicated", held.replicated, sharding.copies),
                ("experts", held.experts, sharding.expert_copies),
            )
            if copies > 1 and part.count
        ]

    found: dict[tuple[str, str], tuple[Operator, ...]] = {}
    for kind, held in parameters.items():
        shared = sharding.shared(held)
        gathers = exchanged(held, "parameters", ("all_gather",), "bfloat16")
        reductions = exchanged(held, "gradients", every_gradient, gradients)
        gathers += (
            replace(copy, name="parameters.cast", segment=STATE)
            for copy in working_copies(shared.weights, source="bfloat16")
        )
        if accumulates and reductions:
            own = sharding.shard(held).count - sharding.alone(held).count
            reductions.append(addition("gradients.add", 3 * own * type_bytes(gradients)))
        found[kind, PARAMETERS] = tuple(gathers)
        found[kind, GRADIENTS] = tuple(reductions)
    return found


def addition(name: str, traffic: Bytes) -> Operator:
    """An element-wise addition that reads and writes `traffic` bytes."""
    columns = 1024
    rows = max(1, round(traffic / (3 * BF16_BYTES * columns)))
    return _operator(name, "add", "bfloat16", rows, columns=columns)


def _operator(name: str, kind: str, dtype: str, rows: int, *, columns: int = 1) -> Operator:
    return Operator(
        name=name,
        kind=kind,
        phase="weight_grad",
        segment=STATE,
        dtype=dtype,
        out_dtype=dtype,
        sizes=(("columns", columns), ("rows", rows)),
        recompute=False,
        accumulate=False,
    )


@dataclass(frozen=True, slots=True)
class StateTasks:
    """Which collectives of parameters and gradients a chunk holds."""

    gather_forward: bool = False
    """Parameters of the forward chunk's layers."""
    gather_backward: bool = False
    reduce: bool = False
    """Gradients of the backward chunk's layers."""
    ahead: bool = False
    """Whether parameters are gathered while the layer before computes."""
    beside: bool = False
    """Whether gradients are reduced while the next layer computes."""
    with_mtp: tuple[str, ...] = ()
    """Kinds that the GPU holds for multi-token prediction alone."""

    def __str__(self) -> str:
        gathers = self.gather_forward or self.gather_backward
        return f"{', gather' if gathers else ''}{', reduction' if self.reduce else ''}"

    @property
    def beside_compute(self) -> bool:
        """Whether any of them has kernels beside it."""
        return (self.ahead and (self.gather_forward or self.gather_backward)) or (
            self.beside and self.reduce
        )


@dataclass(slots=True)
class StateLowering:
    """Adds a chunk's collectives of parameters and gradients to its graph, slot by slot."""

    build: GraphBuilder
    tasks: StateTasks
    gathers: Sequence[Sequence[Operator]]
    """[slots], collectives that gather the parameters of each."""
    reductions: Sequence[Sequence[Operator]]
    """[slots], what reduces the gradients of each."""
    _ends: list[int | None] = field(default_factory=list)
    """[slots], the last kernel of each slot that has ended."""
    _gathered: dict[int, int | None] = field(default_factory=dict)
    _reduced: int | None = None
    """The last reduction that compute waits for."""

    def begin(self, slot: int, layer: int | None) -> tuple[int | None, ...]:
        """What a slot's first kernels wait for; called before anything of it."""
        if slot == 0 or not self.tasks.ahead:
            self._gather(slot, layer, after=(self._end(slot - 1), self._reduced))
        return self._gathered.get(slot), self._reduced

    def alongside(self, slot: int, layer: int | None) -> None:
        """What runs beside a slot's kernels; called after its combine(B)."""
        if self.tasks.beside and slot:
            self._reduce(slot - 1, layer)
        if self.tasks.ahead:
            self._gather(slot + 1, layer, after=(self._end(slot - 1),))

    def end(self, slot: int, layer: int | None) -> None:
        """What follows a slot's kernels."""
        self._ends.append(self.build.last_of(Stream.COMPUTE))
        last = slot + 1 == max(len(self.gathers), len(self.reductions))
        if not self.tasks.beside or last:
            self._reduced = self._reduce(slot, layer)

    def _end(self, slot: int) -> int | None:
        return self._ends[slot] if slot >= 0 else None

    def _gather(self, slot: int, layer: int | None, *, after: tuple[int | None, ...]) -> None:
        if slot < len(self.gathers):
            self._gathered[slot] = self._add(self.gathers[slot], layer, after)

    def _reduce(self, slot: int, layer: int | None) -> int | None:
        if slot < len(self.reductions):
            return self._add(self.reductions[slot], layer, (self._end(slot),))
        return None

    def _add(
        self, operators: Sequence[Operator], layer: int | None, after: tuple[int | None, ...]
    ) -> int | None:
        if not operators:
            return None
        return self.build.add(
            self.build.block(operators),
            Stream.COMMUNICATION,
            layer,
            micro_batch=-1,
            after=after,
            overlapped=self.tasks.beside_compute,
        )
