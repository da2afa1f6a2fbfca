"""Lower recorded prefill and decode layers to the TaskGraph of one serving iteration.

The orders are those that DeepSeek draws (profile-data figures). With two micro-batches, compute
stream of one mixture-of-experts layer:

    prefill  ATTN(mb1), SHARED(mb0) of the layer before, ATTN(mb0), MLP(mb1), MLP(mb0), SHARED(mb1)
             COMBINE(mb0) runs under the first two, DISPATCH(mb1) under ATTN(mb0), DISPATCH(mb0)
             under MLP(mb1), COMBINE(mb1) under MLP(mb0) and SHARED(mb1); so combine cannot add what
             the shared expert gave, as recorded: a kernel of its own does, before ATTN
    decode   SHARED(mb0), ATTN-0(mb1), MLP(mb0), ATTN-1(mb1), and the same with both exchanged
             DISPATCH under SHARED and ATTN-0, COMBINE under ATTN-1

ATTN-1 begins at the attention core. Low-latency dispatch and combine are a send kernel on the
compute stream, a wire that takes no SM, and a receive kernel on the compute stream just before its
rows are needed; normal ones are one kernel on the communication stream. Dense layers, embedding and
head run on all tokens of the GPU at once, before and after. Drafting follows the head: the
prediction layer takes all verified tokens ("mtp"), further drafts the last of each request
("mtp_next"), and a head over one token of each request ("mtp_head") ends every draft.

A task points to its place in the operators of all sections, a section being a layer kind and a
micro-batch, so that one order serves every batch size and context of a deployment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Literal

from reference_model.trace import Operator
from simulator.workload.task_graph import COLLECTIVE_SEGMENTS, GraphBuilder, Stream, TaskGraph

Overlap = Literal["two_micro_batches", "shared_expert", "none"]

WHOLE_BATCH = -1
"""Micro-batch number of layers that run on all tokens of the GPU at once."""

PARTS = (
    "gather", "attention_0", "attention_1", "scatter", "shared", "dispatch_send", "dispatch_wire",
    "shared_gathered", "dispatch_receive", "experts", "combine_send", "combine_wire",
    "combine_receive", "dense_gather", "dense", "dense_scatter",
)  # fmt: skip
"""Schedulable parts of a layer. Those with gather or scatter in the name exist with tensor
parallelism only; a layer that has neither attention nor experts is all attention_0."""

WIRES = frozenset({"dispatch_wire", "combine_wire"})

_CORE_BEGINS = ("attention_forward", "mla_decode", "index_scores")
"""Kinds of which one begins ATTN-1: the core, or the scores of an indexer before it."""


@dataclass(frozen=True, slots=True)
class LayerOperators:
    """One layer's operators in issue order, and which of them make which part."""

    operators: tuple[Operator, ...]
    parts: Mapping[str, tuple[int, ...]]
    """Part -> positions in `operators`."""

    def part_of(self) -> dict[int, str]:
        """The part that each position belongs to."""
        return {place: part for part, places in self.parts.items() for place in places}


def split_layer(
    kind: str,
    operators: Sequence[Operator],
    *,
    low_latency: bool,
    expert_parallel: bool,
    shared_gathered: bool,
) -> LayerOperators:
    """Assign a recorded layer's operators to parts, and add the wires of low-latency transfers.

    Without `expert_parallel` the tokens of all GPUs are gathered before the experts and their
    results scattered afterwards: dispatch and combine of the recording become those collectives. A
    decode step then casts the gathered tokens and sums each token's rows before the scatter. With
    `shared_gathered` the shared expert runs on the gathered tokens too, and its result is added to
    theirs before the scatter.
    """
    if not expert_parallel:
        operators = _gathered(operators)
    if shared_gathered:
        operators = _added_before_scatter(operators)
    kept: list[Operator] = []
    parts: dict[str, list[int]] = {}
    core_seen = False

    def keep(operator: Operator, part: str) -> None:
        parts.setdefault(part, []).append(len(kept))
        kept.append(operator)

    for operator in operators:
        core_seen |= operator.kind in _CORE_BEGINS
        segment = operator.segment
        if segment in COLLECTIVE_SEGMENTS and operator.name.startswith("attention."):
            keep(operator, segment)
        elif segment in COLLECTIVE_SEGMENTS and operator.name.startswith("mlp."):
            keep(operator, f"dense_{segment}")
        elif segment == "mlp":
            shared = "shared_gathered" if shared_gathered else "shared"
            routed = "dense" if kind == "dense" else "experts"
            keep(operator, shared if "shared" in operator.name else routed)
        elif segment in ("dispatch", "combine"):
            part = _transfer_part(operator, expert_parallel, shared_gathered)
            if part is not None:
                keep(operator, part)
            if expert_parallel and operator.name.endswith("_send"):
                keep(_wire(operator, segment), f"{segment}_wire")
        else:
            keep(operator, "attention_1" if core_seen else "attention_0")
    if low_latency and kind in ("moe", "mtp") and "dispatch_send" not in parts:
        raise ValueError(
            "low-latency all-to-all needs a decode trace; prefill is recorded with normal kernels"
        )
    return LayerOperators(tuple(kept), {part: tuple(places) for part, places in parts.items()})


def _transfer_part(operator: Operator, expert_parallel: bool, shared_gathered: bool) -> str | None:
    """Part of an operator of dispatch or combine; None where a gather or scatter needs none."""
    segment = operator.segment
    if operator.kind == "add" and shared_gathered:
        return "combine_send"
    if operator.kind == "add" or operator.name.endswith("_receive"):
        return f"{segment}_receive"
    if operator.name.endswith("_send"):
        return f"{segment}_send"
    if expert_parallel or operator.kind in ("dispatch", "combine", "copy"):
        return f"{segment}_wire"
    return None


def _gathered(operators: Sequence[Operator]) -> list[Operator]:
    """A decode layer's operators where the tokens of all GPUs meet at every GPU.

    Low-latency kernels give way to a gather, a cast, a copy to the experts' rows, a sum over each
    token's rows and a scatter. Other layers, and recordings with normal kernels, stay.
    """
    by_name = {operator.name: operator for operator in operators}
    if "moe.dispatch_send" not in by_name:
        return list(operators)
    summed, rows = by_name["moe.combine_receive"], by_name["moe.combine_send"]["rows"]
    tokens = max(1, rows // summed["top_k"])
    cast = _with_sizes(by_name["moe.dispatch_send"], rows=tokens)
    moved = replace(cast, kind="copy", out_dtype=cast.dtype)
    # Where the recipe quantises nothing, the send kernel of the recording casts nothing.
    casts = (replace(cast, name="moe.quantize_receive"),) if cast.dtype != cast.out_dtype else ()
    instead = {
        "moe.dispatch_send": (
            replace(moved, name="moe.dispatch_wire"),
            *casts,
        ),
        "moe.combine_send": (),
        "moe.combine_receive": (
            replace(_with_sizes(summed, rows=rows, tokens=tokens), name="moe.sum_send"),
            replace(moved, name="moe.combine_wire", segment="combine"),
        ),
    }
    return [new for operator in operators for new in instead.get(operator.name, (operator,))]


def _added_before_scatter(operators: Sequence[Operator]) -> list[Operator]:
    """A layer's operators with the shared expert's partial sums added to those of the routed ones
    just before the scatter."""
    down_proj = next((op for op in operators if op.name == "shared_experts.down_proj"), None)
    if down_proj is None:
        return list(operators)
    kept = [op for op in operators if op.name != "moe.add_shared"]
    scatter = next(
        place for place, op in enumerate(kept) if op.name in ("moe.combine", "moe.combine_wire")
    )
    return [*kept[:scatter], _shared_added(down_proj), *kept[scatter:]]


def _shared_added(down_proj: Operator) -> Operator:
    """The kernel that adds the shared expert's result to that of the routed ones."""
    return replace(
        down_proj,
        name="moe.add_shared",
        kind="add",
        segment="combine",
        dtype=down_proj.out_dtype,
        sizes=(("columns", down_proj["n"]), ("rows", down_proj["m"])),
    )


def _with_sizes(operator: Operator, **sizes: int) -> Operator:
    changed = tuple((name, sizes.get(name, value)) for name, value in operator.sizes)
    return replace(operator, sizes=changed)


def _wire(send: Operator, segment: str) -> Operator:
    """The transfer that a send kernel starts, listed as an operator of its own."""
    return replace(send, name=f"moe.{segment}_wire", kind="copy")


def with_shared_added(layer: LayerOperators) -> LayerOperators:
    """The layer with a kernel that adds the shared expert's result to what combine returned, where
    the recording has combine do it: between two micro-batches the shared expert ends after combine
    has begun."""
    if "shared" not in layer.parts or "combine_receive" in layer.parts:
        return layer
    added = _shared_added(layer.operators[layer.parts["shared"][-1]])
    place = len(layer.operators)
    return LayerOperators((*layer.operators, added), {**layer.parts, "combine_receive": (place,)})


Sections = Mapping[tuple[str, int], LayerOperators]
"""{(layer kind, micro-batch): its operators}; a graph has them in this order, one after another."""


def section_starts(sections: Sections) -> dict[tuple[str, int], int]:
    """Place of each section's first operator in those of the graph."""
    sizes = [len(layer.operators) for layer in sections.values()]
    return dict(zip(sections, accumulate(sizes, initial=0), strict=False))


def joined_operators(sections: Sections) -> tuple[Operator, ...]:
    """The operators of a graph whose sections these are."""
    return tuple(operator for layer in sections.values() for operator in layer.operators)


@dataclass(frozen=True, slots=True)
class _Iteration:
    """An iteration's graph, to which parts of its layers are appended."""

    graph: GraphBuilder
    sections: Sections
    starts: Mapping[tuple[str, int], int]

    def add(
        self,
        layer: int | None,
        micro_batch: int,
        *parts: str,
        stream: Stream = Stream.COMPUTE,
        after: Iterable[int | None] = (),
        barrier: bool = True,
    ) -> int | None:
        """Append parts of a layer; the first task waits for `after`. Returns the last task."""
        block: list[tuple[int, str]] = []
        overlapped = False
        if layer is not None:
            kind = self.graph.layers[layer]
            overlapped = (kind, 1) in self.sections
            places = self.sections[kind, micro_batch].parts
            start = self.starts[kind, micro_batch]
            block = [(start + place, part) for part in parts for place in places.get(part, ())]
        return self.graph.add(
            block,
            stream,
            layer,
            micro_batch=micro_batch,
            overlapped=overlapped,
            after=after,
            barrier=barrier,
        )

    def wire(
        self, layer: int, micro_batch: int, part: str, *, after: Iterable[int | None]
    ) -> int | None:
        """Append the transfers of a layer, as `add` does. Low-latency ones, which start from a send
        kernel, know no barrier: copies leave as soon as their own GPU has them."""
        sends = "dispatch_send" in self.sections[self.graph.layers[layer], micro_batch].parts
        return self.add(
            layer, micro_batch, part, stream=Stream.COMMUNICATION, after=after, barrier=not sends
        )


_ATTENTION = ("gather", "attention_0", "attention_1", "scatter")
_DENSE = ("dense_gather", "dense", "dense_scatter")
# What follows the arrival of tokens.
_EXPERTS = ("shared_gathered", "dispatch_receive", "experts", "combine_send")


def lower_step(
    name: str,
    sections: Sections,
    *,
    dense_layers: int,
    moe_layers: int,
    draft_layers: int,
    head: bool,
    decode: bool,
    overlap: Overlap,
) -> TaskGraph:
    """The tasks of one iteration in issue order.

    Args:
        sections: of every kind that the iteration has, its micro-batches 0 and 1 where two run
            together, 0 where it dispatches on its own, else WHOLE_BATCH.
        draft_layers: passes through a multi-token prediction layer after the head, each followed by
            a head of its own.
        decode: whether sends and receives are kernels of their own.
    """
    graph = GraphBuilder(operators=list(joined_operators(sections)))
    build = _Iteration(graph, sections, section_starts(sections))
    new_layer = graph.layer

    if head:
        build.add(new_layer("embedding"), WHOLE_BATCH, "attention_0")
    for _ in range(dense_layers):
        build.add(new_layer("dense"), WHOLE_BATCH, *_ATTENTION, *_DENSE)
    ends = _sparse_layers(build, [new_layer("moe") for _ in range(moe_layers)], decode, overlap)
    if head:
        ends = [build.add(new_layer("head"), WHOLE_BATCH, "attention_0", after=ends)]
        for number in range(draft_layers):
            drafts = [new_layer("mtp_next" if number else "mtp")]
            ends = _sparse_layers(build, drafts, decode, overlap, after=ends)
            ends = [build.add(new_layer("mtp_head"), WHOLE_BATCH, "attention_0", after=ends)]
    return graph.graph(name)


def _sparse_layers(
    build: _Iteration,
    layers: Sequence[int],
    decode: bool,
    overlap: Overlap,
    after: Sequence[int | None] = (),
) -> list[int | None]:
    """Append mixture-of-experts layers one after another; returns what the next layer waits for."""
    if not layers:
        return list(after)
    if overlap == "two_micro_batches":
        two = _two_in_decode if decode else _two_in_prefill
        return two(build, layers, after)
    return _one_at_a_time(build, layers, after, shared_hides=overlap == "shared_expert")


def _one_at_a_time(
    build: _Iteration, layers: Sequence[int], after: Sequence[int | None], *, shared_hides: bool
) -> list[int | None]:
    """One micro-batch; its shared expert runs under dispatch, or before it."""
    combined: list[int | None] = list(after)
    for layer in layers:
        attended = build.add(layer, 0, *_ATTENTION, after=combined)
        if not shared_hides:
            attended = build.add(layer, 0, "shared", after=(attended,))
        sent = build.add(layer, 0, "dispatch_send", after=(attended,))
        arrived = build.wire(layer, 0, "dispatch_wire", after=(sent,))
        if shared_hides:
            build.add(layer, 0, "shared")
        done = build.add(layer, 0, *_EXPERTS, after=(arrived,))
        back = build.wire(layer, 0, "combine_wire", after=(done,))
        combined = [build.add(layer, 0, "combine_receive", after=(back,))]
    return combined


def _two_in_decode(
    build: _Iteration, layers: Sequence[int], after: Sequence[int | None]
) -> list[int | None]:
    attended = {0: build.add(layers[0], 0, *_ATTENTION, after=after)}
    following = dict(pairwise(layers))
    back: dict[int, tuple[int, int | None] | None] = {0: None, 1: None}

    def receive(micro_batch: int) -> int | None:
        """Take in the combine of a micro-batch that is still out."""
        pending, back[micro_batch] = back[micro_batch], None
        if pending is None:
            return None
        layer, arrived = pending
        return build.add(layer, micro_batch, "combine_receive", after=(arrived,))

    for layer in layers:
        for one, other in ((0, 1), (1, 0)):
            sent = build.add(layer, one, "dispatch_send", after=(attended[one],))
            arrived = build.wire(layer, one, "dispatch_wire", after=(sent,))
            build.add(layer, one, "shared")
            attends = layer if one == 0 else following.get(layer)
            if attends is not None:
                receive(other)
                build.add(attends, other, "gather", "attention_0")
            done = build.add(layer, one, *_EXPERTS, after=(arrived,))
            back[one] = (layer, build.wire(layer, one, "combine_wire", after=(done,)))
            if attends is not None:
                attended[other] = build.add(attends, other, "attention_1", "scatter")
    return [receive(0), receive(1)]


def _two_in_prefill(
    build: _Iteration, layers: Sequence[int], after: Sequence[int | None]
) -> list[int | None]:
    start = max((index for index in after if index is not None), default=None)
    combined: dict[int, int | None] = {0: start, 1: start}
    before: int | None = None
    for layer in layers:
        # The first layer has none before it whose results are still to come.
        received = build.add(before, 1, "combine_receive", after=(combined[1],))
        attended = {1: build.add(layer, 1, *_ATTENTION, after=(received,))}
        build.add(before, 0, "shared")
        dispatched = {1: build.wire(layer, 1, "dispatch_wire", after=(attended[1],))}
        received = build.add(before, 0, "combine_receive", after=(combined[0],))
        attended[0] = build.add(layer, 0, *_ATTENTION, after=(received,))
        dispatched[0] = build.wire(layer, 0, "dispatch_wire", after=(attended[0],))
        done = build.add(layer, 1, *_EXPERTS, after=(dispatched[1],))
        combined[1] = build.wire(layer, 1, "combine_wire", after=(done,))
        done = build.add(layer, 0, *_EXPERTS, after=(dispatched[0],))
        build.add(layer, 1, "shared")
        combined[0] = build.wire(layer, 0, "combine_wire", after=(done,))
        before = layer
    build.add(before, 0, "shared")
    return [
        build.add(before, micro_batch, "combine_receive", after=(combined[micro_batch],))
        for micro_batch in (1, 0)
    ]
