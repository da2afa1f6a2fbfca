"""Lower the layers of a training chunk, or of an overlapped pair, to a TaskGraph.

The orders are those that DeepSeek draws and that the published H800 trace shows (profile-data,
training figure). In an overlapped pair each slot joins one layer of the forward chunk with one of
the backward chunk (pair_slots), compute stream: attn(F), mlp(B), mlp(W), mlp(F), attn(B), attn(W);
communication stream: combine(B), dispatch(F), dispatch(B), combine(F). combine(B) carries the
output gradients to the experts and dispatch(B) the input gradients back. Waits:

    dispatch(F) for attn(F)              routed part of mlp(F) for dispatch(F)
    combine(F) for mlp(F)                next attn(F) for combine(F)
    combine(B) for the attn(B) before    mlp(B) for combine(B)
    dispatch(B) for mlp(B)               attn(B) for dispatch(B)

The input gradient of a head, which has no mlp, takes the place of mlp(B). A chunk that runs alone
keeps the waits and loses the other chunk's cover. A layer that is recomputed whole passes through
attention, dispatch and mlp once more before its combine(B), with nothing of the other chunk beside
its dispatch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from reference_model.trace import PHASES, Operator, OperatorTrace
from simulator.workload.layout import StageLayers, kind_of
from simulator.workload.load import Load
from simulator.workload.state_tasks import (
    GRADIENTS,
    PARAMETERS,
    StateLowering,
    StateTasks,
    is_state_collective,
)
from simulator.workload.task_graph import GraphBuilder, Stream, TaskGraph

FORWARD, RECOMPUTE, INPUT_GRAD, WEIGHT_GRAD = PHASES

Operators = Sequence[Operator]

OperatorsOf = Callable[[str, str], Operators]
"""(layer kind, phase) -> the operators of one layer in issue order."""


def with_state(operators: OperatorsOf, state: Mapping[tuple[str, str], Operators]) -> OperatorsOf:
    """The operators with those that exchange and cast a layer's state.

    Args:
        state: as `state_tasks.state_operators` gives them.
    """

    def lookup(layer_kind: str, phase: str) -> Operators:
        own = state.get((layer_kind, phase))
        return operators(layer_kind, phase) if own is None else own

    return lookup


def operators_of(trace: OperatorTrace, load: Load) -> OperatorsOf:
    """The trace's operators at the sizes of `load`, each (layer kind, phase) evaluated once."""
    known: dict[tuple[str, str], Operators] = {}

    def lookup(layer_kind: str, phase: str) -> Operators:
        key = (layer_kind, phase)
        if key not in known:
            known[key] = trace.operators(layer_kind, phase, load.workload)
        return known[key]

    return lookup


def exchanged_kinds(unit: Sequence[str], alone: Sequence[str]) -> tuple[str, ...]:
    """Kinds whose parameters are exchanged with those of the layers that share a slot.

    Args:
        alone: held for multi-token prediction alone.
    """
    return (*unit, *(alone if "mtp" in map(kind_of, unit) else ()))


def units_of(stage: StageLayers) -> list[tuple[str, ...]]:
    """What shares a slot of a pair: one layer, the embedding joined with the layer after it."""
    units: list[tuple[str, ...]] = []
    for kind in stage:
        if units and units[-1] == ("embedding",):
            units[-1] += (kind,)
        else:
            units.append((kind,))
    return units


ATTENTION, DISPATCH, MLP, COMBINE = "attention", "dispatch", "mlp", "combine"


def segments_of(operators: Operators) -> dict[str, list[Operator]]:
    """Split one layer's operators of one phase by segment; what is neither communication nor
    mlp (attention, embedding, head) counts as attention."""
    parts: dict[str, list[Operator]] = {ATTENTION: [], DISPATCH: [], MLP: [], COMBINE: []}
    for operator in operators:
        parts[operator.segment if operator.segment in parts else ATTENTION].append(operator)
    return parts


def routed_start(mlp: Sequence[Operator]) -> int:
    """Index of the first operator of mlp(F) that reads dispatched rows; the shared expert's
    operators before it need only the rank's own tokens."""
    for index, operator in enumerate(mlp):
        if "shared" not in operator.name:
            return index
    return len(mlp)


def matrix_of(operator: Operator) -> str:
    """The parameter matrix that a weight-gradient operator works for: "attention.kv_b_proj"."""
    return operator.name.rpartition(".")[0]


def deferred(operators: Operators, immediate: Collection[str]) -> list[Operator]:
    """Those of one layer's weight gradients that an input-only backward leaves to a W chunk."""
    return [operator for operator in operators if matrix_of(operator) not in immediate]


Slot = tuple[int | None, int | None]
"""Units of the forward and of the backward chunk that run side by side, by their positions."""


def pair_slots(forward: Sequence[bool], backward: Sequence[bool]) -> tuple[Slot, ...]:
    """Which units of an overlapped pair run side by side: slots in order, each chunk in its own.

    As few units as possible communicate with nothing of the other chunk beside them. Then as many
    slots as possible hold two units that communicate, for which the order of a slot is made. Then
    slots are as few, and those of two units as early, as possible.

    Args:
        forward: whether each unit of the forward chunk communicates, in the order they run.
        backward: the same of the backward chunk.
    """

    def before(forward_at: int | None, backward_at: int | None, rest: _Slots) -> _Slots:
        (alone, both, count), slots = rest
        talks = (
            forward_at is not None and forward[forward_at],
            backward_at is not None and backward[backward_at],
        )
        lone = forward_at is None or backward_at is None
        cost = (alone + (lone and any(talks)), both - all(talks), count + 1)
        return cost, ((forward_at, backward_at), *slots)

    best: dict[tuple[int, int], _Slots] = {(len(forward), len(backward)): ((0, 0, 0), ())}
    """{(units of either chunk that have run): the best slots for those that are left}"""
    for i in range(len(forward), -1, -1):
        for j in range(len(backward), -1, -1):
            options = []
            if i < len(forward) and j < len(backward):
                options.append(before(i, j, best[i + 1, j + 1]))
            if i < len(forward):
                options.append(before(i, None, best[i + 1, j]))
            if j < len(backward):
                options.append(before(None, j, best[i, j + 1]))
            if options:
                best[i, j] = min(options, key=lambda option: option[0])
    return best[0, 0][1]


_Slots = tuple[tuple[int, int, int], tuple[Slot, ...]]
"""((units that communicate alone, minus slots in which two do, slots), the slots)"""


def lower_chunk(
    name: str,
    operators: OperatorsOf,
    *,
    forward: StageLayers = (),
    backward: StageLayers = (),
    defer_weights: bool = False,
    immediate: Collection[str] = (),
    state: StateTasks | None = None,
) -> TaskGraph:
    """The tasks of a forward chunk, a backward chunk, or both as an overlapped pair.

    Args:
        forward: layers of the forward chunk's stage in forward order; empty for none.
        backward: layers of the backward chunk's stage in forward order; run in reverse.
        defer_weights: whether the backward chunk leaves its weight gradients to a W chunk (I)
            or computes them (B).
        immediate: matrices whose weight gradient is not deferred even so.
        state: collectives of parameters and gradients inside it, if any; their operators are then
            among `operators`.
    """

    def weights(kind: str) -> Operators:
        every = operators(kind, WEIGHT_GRAD)
        later = deferred(every, immediate) if defer_weights else []
        return [operator for operator in every if operator not in later]

    build = GraphBuilder()
    pair = bool(forward) and bool(backward)
    backward_number = 1 if pair else 0
    combined: int | None = None
    """Last combine(F): the next layer's forward input."""
    returned: int | None = None
    """Last attn(B): the next (lower) layer's output gradient."""
    units_f, units_b = units_of(forward), units_of(backward)[::-1]

    def communicates(units: list[tuple[str, ...]]) -> list[bool]:
        return [
            any(o.segment in (DISPATCH, COMBINE) for kind in unit for o in operators(kind, FORWARD))
            for unit in units
        ]

    slots = [
        (at_f, at_b, () if at_f is None else units_f[at_f], () if at_b is None else units_b[at_b])
        for at_f, at_b in pair_slots(communicates(units_f), communicates(units_b))
    ]
    tasks = state or StateTasks()

    def of_state(units: Sequence[tuple[str, ...]], what: str, wanted: bool) -> list[list[Operator]]:
        return [_state_of(operators, unit, what, tasks) if wanted else [] for unit in units]

    in_slots_f, in_slots_b = [slot[2] for slot in slots], [slot[3] for slot in slots]
    gathered_f = of_state(in_slots_f, PARAMETERS, tasks.gather_forward)
    gathered_b = of_state(in_slots_b, PARAMETERS, tasks.gather_backward)
    exchange = StateLowering(
        build,
        tasks,
        [
            [operator for operator in (*ahead, *back) if is_state_collective(operator)]
            for ahead, back in zip(gathered_f, gathered_b, strict=True)
        ],
        of_state(in_slots_b, GRADIENTS, tasks.reduce),
    )

    for slot, (at_f, at_b, forward_unit, backward_unit) in enumerate(slots):
        both = pair and bool(forward_unit) and bool(backward_unit)
        ahead = [segments_of(operators(kind, FORWARD)) for kind in forward_unit]
        back = [segments_of(operators(kind, INPUT_GRAD)) for kind in reversed(backward_unit)]
        if not any(part[MLP] for part in back):
            # A head's input gradient goes where an mlp's does: under dispatch(F), while its weight
            # gradient is left for combine(F).
            back = [part | {MLP: part[ATTENTION], ATTENTION: []} for part in back]
        late = [segments_of(weights(kind)) for kind in reversed(backward_unit)]
        layer_b = build.layer(f"{'+'.join(backward_unit)} B{at_b}") if backward_unit else None
        layer_f = build.layer(f"{'+'.join(forward_unit)} F{at_f}") if forward_unit else None

        layer = layer_b if layer_f is None else layer_f
        ready = exchange.begin(slot, layer)
        communicates_b = bool(_gather(back, COMBINE))
        communicates_f = bool(_gather(ahead, DISPATCH))
        # Communication is covered when the other chunk computes meanwhile, or when this chunk's
        # own weight gradients run under its transfers.
        again = [o for kind in reversed(backward_unit) for o in operators(kind, RECOMPUTE)]
        stored = _casts(gathered_b[slot])
        recomputed = _again(
            build, again, stored, layer_b, micro_batch=backward_number, after=(returned, *ready)
        )
        carried = build.add(
            build.block(_gather(back, COMBINE)),
            Stream.COMMUNICATION,
            layer_b,
            micro_batch=backward_number,
            after=(returned, recomputed),
            overlapped=both,
        )
        exchange.alongside(slot, layer)
        attended = build.add(
            build.block([*_casts(gathered_f[slot]), *_gather(ahead, ATTENTION)]),
            Stream.COMPUTE,
            layer_f,
            micro_batch=0,
            after=(combined, *ready),
            overlapped=both and communicates_b,
        )
        sent = build.add(
            build.block(_gather(ahead, DISPATCH)),
            Stream.COMMUNICATION,
            layer_f,
            micro_batch=0,
            after=(attended,),
            overlapped=both,
        )
        computed_b = build.add(
            build.block([*([] if again else stored), *_gather(back, MLP)]),
            Stream.COMPUTE,
            layer_b,
            micro_batch=backward_number,
            after=(carried, *ready),
            overlapped=both and communicates_f,
        )
        received = build.add(
            build.block(_gather(back, DISPATCH)),
            Stream.COMMUNICATION,
            layer_b,
            micro_batch=backward_number,
            after=(computed_b,),
            overlapped=both or bool(_gather(late, MLP)),
        )
        build.add(
            build.block(_gather(late, MLP)),
            Stream.COMPUTE,
            layer_b,
            micro_batch=backward_number,
            overlapped=communicates_b,
        )
        mlp = _gather(ahead, MLP)
        own = routed_start(mlp) if communicates_f else 0
        build.add(
            build.block(mlp[:own]),
            Stream.COMPUTE,
            layer_f,
            micro_batch=0,
            after=(attended,),
            overlapped=communicates_b if both else True,
        )
        computed_f = build.add(
            build.block(mlp[own:]),
            Stream.COMPUTE,
            layer_f,
            micro_batch=0,
            after=(attended, sent),
            overlapped=both and communicates_b,
        )
        combined = build.add(
            build.block(_gather(ahead, COMBINE)),
            Stream.COMMUNICATION,
            layer_f,
            micro_batch=0,
            after=(computed_f,),
            overlapped=both,
        )
        returned = build.add(
            build.block(_gather(back, ATTENTION)),
            Stream.COMPUTE,
            layer_b,
            micro_batch=backward_number,
            after=(computed_b, received),
            overlapped=both and communicates_f,
        )
        build.add(
            build.block(_gather(late, ATTENTION)),
            Stream.COMPUTE,
            layer_b,
            micro_batch=backward_number,
            overlapped=communicates_b and both,
        )
        exchange.end(slot, layer)
    return build.graph(name)


def _state_of(
    operators: OperatorsOf, unit: Sequence[str], what: str, tasks: StateTasks
) -> list[Operator]:
    """What exchanges the parameters or gradients of the layers that share a slot."""
    kinds = exchanged_kinds(unit, tasks.with_mtp)
    return [operator for kind in kinds for operator in operators(kind, what)]


def _gather(parts: Sequence[Mapping[str, list[Operator]]], segment: str) -> list[Operator]:
    """The operators of a segment, layer after layer."""
    return [operator for part in parts for operator in part[segment]]


def _casts(operators: Operators) -> list[Operator]:
    """Of what exchanges and casts a layer's state, the casts."""
    return [operator for operator in operators if not is_state_collective(operator)]


def _again(
    build: GraphBuilder,
    operators: Operators,
    stored: Operators,
    layer: int | None,
    *,
    micro_batch: int,
    after: Sequence[int | None],
) -> int | None:
    """The forward of layers once more, part by part, after the casts of weights that it reads; the
    last of its tasks, None where nothing is repeated."""
    parts = segments_of(operators)
    parts[ATTENTION] = [*stored, *parts[ATTENTION]]
    done = None
    for segment, stream in (
        (ATTENTION, Stream.COMPUTE),
        (DISPATCH, Stream.COMMUNICATION),
        (MLP, Stream.COMPUTE),
    )[: 3 if operators else 0]:
        done = build.add(
            build.block(parts[segment]),
            stream,
            layer,
            micro_batch=micro_batch,
            after=after,
            overlapped=False,
        )
        after = (done,)
    return done


def lower_weights(
    name: str,
    operators: OperatorsOf,
    stage: StageLayers,
    *,
    immediate: Collection[str],
    state: StateTasks | None = None,
) -> TaskGraph:
    """The tasks of a W chunk: weight gradients deferred by an input-only backward chunk, layers in
    the order in which the backward chunk met them; compute, and the reductions of `state`."""
    build = GraphBuilder()
    tasks = state or StateTasks()
    kinds = stage[::-1]
    exchange = StateLowering(
        build,
        tasks,
        (),
        [_state_of(operators, (kind,), GRADIENTS, tasks) for kind in kinds if tasks.reduce],
    )
    for number, kind in enumerate(kinds):
        layer = build.layer(f"{kind} W{number}")
        ready = exchange.begin(number, layer)
        exchange.alongside(number, layer)
        build.add(
            build.block(deferred(operators(kind, WEIGHT_GRAD), immediate)),
            Stream.COMPUTE,
            layer,
            micro_batch=0,
            after=ready,
            overlapped=False,
        )
        exchange.end(number, layer)
    return build.graph(name)
