"""Map layers to pipeline stages, and ranks to pipeline, data and expert groups.

A stage is a tuple of layers in forward order, each a layer kind, e.g. ("embedding", "dense",
"moe"), with a slash and what it recomputes where that is not the job's choice: "moe/layer". A
scenario spells the stages out, or leaves the choice to execution.stages, which looks among the
splits that `even_splits` finds for the one whose step is shortest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import groupby, pairwise, product
from math import lcm

import numpy as np
from numpy.typing import NDArray

from reference_model.config import ModelConfig
from reference_model.trace import RECOMPUTATIONS
from simulator.workload.experts import check_slots

LAYER_KINDS = ("embedding", "dense", "moe", "mtp", "head")

StageLayers = tuple[str, ...]


def kind_of(layer: str) -> str:
    """The kind of a layer of a stage: "moe" of "moe/layer"."""
    return layer.partition("/")[0]


def recomputations_of(stages: Iterable[StageLayers]) -> tuple[str, ...]:
    """What layers of the stages recompute that say so: "layer" of "moe/layer"."""
    found = (layer.partition("/")[2] for stage in stages for layer in stage)
    return tuple(dict.fromkeys(choice for choice in found if choice))


def layer_counts(config: ModelConfig) -> dict[str, int]:
    """How many layers of each kind the whole model has."""
    dense = config.first_k_dense_replace
    return {
        "embedding": 1,
        "dense": dense,
        "moe": config.num_hidden_layers - dense,
        "mtp": config.num_nextn_predict_layers,
        "head": 1,
    }


def parse_stage(text: str) -> list[StageLayers]:
    """Read "embedding + 3 dense + 1 moe", or "14 x (4 moe)" for fourteen equal stages.

    Raises:
        ValueError: the text has another form or names an unknown layer kind.
    """
    allowed = (
        f'allowed: "N kind + N kind", optionally "N x (...)", of the kinds '
        f"{', '.join(LAYER_KINDS)}; after dense, moe and mtp optionally what the layer recomputes: "
        f'"moe/layer", of {", ".join(RECOMPUTATIONS)}'
    )
    repeated = re.fullmatch(r"\s*(\d+)\s*x\s*\((.*)\)\s*", text)
    times, body = (int(repeated[1]), repeated[2]) if repeated else (1, text)
    layers: list[str] = []
    for part in body.split("+"):
        matched = re.fullmatch(r"\s*(?:(\d+)\s+)?([a-z]+)(?:/([a-z]+))?\s*", part)
        if (
            matched is None
            or matched[2] not in LAYER_KINDS
            or (matched[3] and matched[2] not in ("dense", "moe", "mtp"))
            or (matched[3] and matched[3] not in RECOMPUTATIONS)
        ):
            raise ValueError(f"stage {text!r}: cannot read {part.strip()!r}; {allowed}")
        layer = f"{matched[2]}/{matched[3]}" if matched[3] else matched[2]
        count = int(matched[1] or 1)
        if max(times, count) > _MOST_LAYERS:
            raise ValueError(
                f"stage {text!r}: {max(times, count)}; allowed: at most {_MOST_LAYERS}"
            )
        layers += [layer] * count
    return [tuple(layers)] * times


_OF_LETTER = {"E": "embedding", "t": "layer", "m": "mtp", "L": "head"}
"""Layers as Megatron-LM's `--pipeline-model-parallel-layout` writes them; t is dense or MoE."""


_MOST_LAYERS = 10_000
"""Of a part of such a text, which no model needs."""


def megatron_stages(text: str, config: ModelConfig) -> list[StageLayers]:
    """Read a pipeline layout of Megatron-LM: "Et*3|(tt|)*29,m|L".

    A bar ends a stage, x*3 is xxx, brackets group, and commas say nothing. Stages are in the order
    in which a micro-batch passes them.

    Raises:
        ValueError: the text has another form, a stage is empty, or the model has fewer layers.
    """
    flat = re.sub(r"[\s,]", "", text)
    while (grouped := re.sub(r"\(([^()]*)\)(?:\*(\d+))?", _repeated, flat)) != flat:
        flat = grouped
    flat = re.sub(r"([EtmL|])\*(\d+)", _repeated, flat)
    unread = re.search(r"[^EtmL|]", flat)
    if unread is not None:
        raise ValueError(
            f"stages: {text!r}: cannot read {unread[0]!r}; allowed: the letters E, t, m and L of "
            "Megatron-LM's pipeline layout, bars, brackets and *number"
        )
    kinds = iter(["dense"] * config.first_k_dense_replace + ["moe"] * len(flat))
    stages = [
        tuple(next(kinds) if letter == "t" else _OF_LETTER[letter] for letter in stage)
        for stage in flat.split("|")
    ]
    if () in stages:
        raise ValueError(
            f"stages: {text!r}: stage {stages.index(())} is empty; allowed: a layer in every stage"
        )
    return stages


def _repeated(found: re.Match[str]) -> str:
    if len(found[1]) * int(found[2] or 1) > _MOST_LAYERS:
        raise ValueError(
            f"stages: {found[0]!r} stands for more than {_MOST_LAYERS} letters; allowed: fewer"
        )
    return found[1] * int(found[2] or 1)


def explicit_stages(texts: Sequence[str], *, config: ModelConfig, stages: int) -> list[StageLayers]:
    """The stages that a scenario spells out, checked to hold the whole model once, in order.

    Args:
        texts: of `parse_stage`, or one text of `megatron_stages`.

    Raises:
        ValueError: wrong number of stages, or layers missing, superfluous or out of order.
    """
    if len(texts) == 1 and "|" in texts[0]:
        layout = megatron_stages(texts[0], config)
    else:
        layout = [stage for text in texts for stage in parse_stage(text)]
    if len(layout) != stages:
        raise ValueError(
            f"stages: {len(layout)} are listed; the pipeline has {stages}; "
            "stages=default chooses them"
        )
    placed = [kind_of(layer) for stage in layout for layer in stage]
    found, wanted = Counter(placed), layer_counts(config)
    for kind, count in wanted.items():
        if found[kind] != count:
            raise ValueError(
                f"stages: {found[kind]} {kind} layers listed; allowed: all {count} of the model; "
                "stages=default places them"
            )
    rank_of = {"embedding": 0, "dense": 1, "moe": 2, "head": 3, "mtp": 3}
    order = [rank_of[kind] for kind in placed]
    if order != sorted(order):
        raise ValueError(
            "stages: layers out of order; allowed: embedding, dense, moe, then head and mtp"
        )
    return layout


def stage_text(stage: StageLayers) -> str:
    """The text of one stage, as parse_stage reads it: "embedding + 3 dense + moe"."""
    counts = Counter(stage)
    return " + ".join(kind if count == 1 else f"{count} {kind}" for kind, count in counts.items())


def stage_texts(stages: Sequence[StageLayers]) -> tuple[str, ...]:
    """The texts of a split, equal neighbours as one, as `explicit_stages` reads them."""
    found = ((stage_text(stage), len(list(same))) for stage, same in groupby(stages))
    return tuple(text if times == 1 else f"{times} x ({text})" for text, times in found)


def model_layers(config: ModelConfig) -> StageLayers:
    """Every layer of the model in forward order.

    Multi-token prediction comes last: it reads what the last layer passes to the head.
    """
    counts = layer_counts(config)
    return tuple(
        kind for kind in ("embedding", "dense", "moe", "head", "mtp") for _ in range(counts[kind])
    )


def even_splits(
    layers: StageLayers,
    held: Sequence[tuple[int, ...]],
    cost: Mapping[str, float],
    fits: Callable[[int, Sequence[StageLayers]], bool],
) -> list[tuple[StageLayers, ...]]:
    """Splits of a model into stages in which no rank, or no stage, costs more than it must.

    Args, and what it raises: as of `each_even_split`.

    Returns:
        Splits in which the equal layers found room; none where there is no such split.
    """
    return list(dict.fromkeys(each_even_split(layers, held, cost, fits)))


def each_even_split(
    layers: StageLayers,
    held: Sequence[tuple[int, ...]],
    cost: Mapping[str, float],
    fits: Callable[[int, Sequence[StageLayers]], bool],
) -> Iterator[tuple[StageLayers, ...]]:
    """`even_splits` one by one, some of them more than once.

    Most layers of a model are of one kind. These are handed out one at a time to where the cost is
    lowest so far and memory is left, which for equal layers gives the lowest maximum: the cost of
    the stage, or of the rank that holds it beside others. What comes before and after them is cut
    at the ends of the pipeline into every number of pieces, as even as contiguous pieces can be.
    With one stage on each rank, the best of these splits has the least maximum of all. Where a rank
    holds several, its step depends on more than their sum, and every way is among the splits.

    Args:
        held: stages of each rank, once for ranks that hold the same ones.
        cost: {layer kind: cost of one layer}, in any unit.
        fits: (stage, layers of every stage) -> whether the ranks that hold the stage have room.

    Raises:
        ValueError: fewer layers than stages.
    """
    stages = sum(map(len, held))
    if len(layers) < stages:
        raise ValueError(
            f"the pipeline has {stages} stages and the model {len(layers)} layers (embedding, head "
            "and multi-token prediction counted); allowed: at most one stage per layer, so fewer "
            "training.pp or training.virtual_stages"
        )
    bulk, number = Counter(layers).most_common(1)[0]
    start = layers.index(bulk)
    before, after = layers[:start], layers[start + number :]
    together = {stage: of_rank for of_rank in held for stage in of_rank}
    for front, back in product(
        list(_cuts(before, stages - 1, cost)), list(_cuts(after[::-1], stages - 1, cost))
    ):
        first, last = len(front) - 1, stages - len(back)
        if first > last:
            continue
        ahead = [*front, *[()] * (stages - len(front))]
        behind = [*[()] * last, *(piece[::-1] for piece in reversed(back))]
        ends = list(zip(ahead, behind, strict=True))
        for order in _FILLS:
            split = _fill(
                ends, (bulk,) * number, range(first, last + 1), together, cost, fits, order
            )
            if split is not None:
                yield tuple(split)


_FILLS: tuple[Callable[[float, float, int], tuple[float, ...]], ...] = (
    lambda stage, rank, count: (stage,),
    lambda stage, rank, count: (stage, rank),
    lambda stage, rank, count: (rank, stage),
    lambda stage, rank, count: (rank, count),
)
"""(cost of a stage, of its rank, equal layers on the stage) -> what is lowest gets the next one.
The last keeps the stages of a rank alike, so that a chunk finds all-to-all to hide behind."""


def _cuts(
    run: StageLayers, most: int, cost: Mapping[str, float]
) -> Iterator[tuple[StageLayers, ...]]:
    """Ways to put a run of layers on the stages 0, 1, ...: the last piece, which may be empty,
    shares its stage with the layers that follow the run; at most `most` others do not."""
    for own in range(len(run) + 1):
        for pieces in range(min(own, 1), min(own, most) + 1):
            yield (*_even_pieces(run[:own], pieces, cost), run[own:])


def _even_pieces(
    run: StageLayers, pieces: int, cost: Mapping[str, float]
) -> tuple[StageLayers, ...]:
    """A run of layers in contiguous pieces, of which the dearest costs as little as it can."""
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, (0,))}
    for piece in range(pieces):
        best = {
            end: min(
                (max(dearest, _sum(run[cuts[-1] : end], cost)), (*cuts, end))
                for dearest, cuts in best.values()
                if cuts[-1] < end
            )
            for end in range(piece + 1, len(run) + 1)
        }
    return tuple(run[start:end] for start, end in pairwise(best[len(run)][1]))


def _fill(
    ends: Sequence[tuple[StageLayers, StageLayers]],
    equal: StageLayers,
    open_stages: Sequence[int],
    together: Mapping[int, Sequence[int]],
    cost: Mapping[str, float],
    fits: Callable[[int, Sequence[StageLayers]], bool],
    order: Callable[[float, float, int], tuple[float, ...]],
) -> list[StageLayers] | None:
    """Hand equal layers out to the open stages, each to the first in `order` that has room.

    Args:
        ends: [stage], the layers before and those after the equal ones.
        together: {stage: all stages of its rank}.

    Returns:
        The layers of every stage; None where room runs out, or layers before every stage has one.
    """
    empty = [stage for stage in open_stages if ends[stage] == ((), ())]
    counts = [0] * len(ends)
    split = [ahead + behind for ahead, behind in ends]
    of_ends = [_sum(stage, cost) for stage in split]
    costs = list(of_ends)
    places: dict[int, tuple[tuple[float, ...], int]] = {}
    """{stage: its place in the order}, once all empty ones have a layer"""

    def give(stage: int) -> bool:
        """One layer more, if it fits."""
        ahead, behind = ends[stage]
        before = split[stage]
        split[stage] = ahead + equal[: counts[stage] + 1] + behind
        if not fits(stage, split):
            split[stage] = before
            return False
        counts[stage] += 1
        costs[stage] = of_ends[stage] + counts[stage] * cost[equal[0]]
        if stage in places:
            put(stage)
        return True

    def put(stage: int) -> None:
        """Put the stages that share a rank with a stage where they belong now."""
        rank = sum([costs[other] for other in together[stage]])
        for other in together[stage]:
            places[other] = order(costs[other], rank, counts[other]), other

    if len(empty) > len(equal) or not all(map(give, empty)):
        return None
    # Costs only rise: an entry that is out of date comes up too early, and is put back. Room only
    # shrinks: a stage without room is done.
    for stage in open_stages:
        put(stage)
    queue = [places[stage] for stage in open_stages]
    heapify(queue)
    while sum(counts) < len(equal):
        if not queue:
            return None
        entry = heappop(queue)
        stage = entry[1]
        if entry != places[stage] or give(stage):
            heappush(queue, places[stage])
    return split


def _sum(layers: StageLayers, cost: Mapping[str, float]) -> float:
    return sum(cost[kind] for kind in layers)


def domain_parts(gpus: int, per_domain: int, *, first: int = 0) -> tuple[int, ...]:
    """How many of consecutive GPUs lie in each NVLink domain, `first` being the first one's place
    in its domain: 12 from place 4 of domains of 8 are (4, 8)."""
    edges = [first, *range(per_domain, first + gpus, per_domain), first + gpus]
    return tuple(end - start for start, end in pairwise(edges))


AXES = ("tensor", "context", "expert", "data", "pipeline")
"""Axes of a layout, by default from those whose GPUs are next to each other outwards."""

Gpus = NDArray[np.int64]


def _divisors(of: int, *, near: int) -> str:
    """ "a divisor of them, such as 4 or 8": those on both sides of a number that is none."""
    divisors = [number for number in range(1, of + 1) if of % number == 0]
    below = [number for number in divisors if number < near][-1:]
    above = [number for number in divisors if number > near][:1]
    return f"a divisor of them, such as {' or '.join(map(str, (*below, *above)))}"


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """How many GPUs work on what, and which of them.

    The GPUs are laid out twice. For what is not a routed expert they are pipeline ranks x data x
    context x tensor ranks, and for the experts pipeline ranks x copies x expert x expert-tensor
    ranks, of the same GPUs for each pipeline rank (Megatron-LM's parallel folding). `axes` says
    which lie next to each other: those of the first axis are consecutive GPUs.

    Consecutive GPUs fill the NVLink domains (nodes, or racks), so that an expert-parallel group of
    64 is 8 whole nodes of 8 GPUs (Report, section 3.2). Pipeline ranks may share a domain, and a
    group may straddle domains that it does not fill.
    """

    gpus: int
    gpus_per_domain: int
    pp: int
    """Ranks of a pipeline."""
    ep: int
    """GPUs over which the routed experts of a layer are spread."""
    routed_experts: int
    redundant_experts: int
    tp: int = 1
    """GPUs that share heads, feed-forwards and vocabulary, and the tokens between them."""
    cp: int = 1
    """GPUs that share sequences, each for its tp GPUs."""
    etp: int = 1
    """GPUs that share the width of each routed expert."""
    axes: tuple[str, ...] = AXES
    """From the innermost out; "tensor" stands for expert tensor ranks among the experts' axes."""

    def __post_init__(self) -> None:
        for name in ("pp", "ep", "tp", "cp", "etp"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: allowed: 1 or more")
        if self.gpus % self.pp:
            raise ValueError(
                f"pp={self.pp}: does not divide the {self.gpus} GPUs; allowed: "
                f"{_divisors(self.gpus, near=self.pp)}"
            )
        stage = f"{self.stage_gpus} GPUs of a pipeline rank ({self.gpus} GPUs / pp {self.pp})"
        if self.stage_gpus % self.tp:
            raise ValueError(
                f"training.tensor_parallel: {self.tp} does not divide the {stage}; allowed: a "
                "divisor of them, or another training.pp"
            )
        if self.stage_gpus % (self.tp * self.cp):
            raise ValueError(
                f"training.context_parallel: {self.cp} does not divide the "
                f"{self.stage_gpus // self.tp} data-parallel ranks ({self.gpus} GPUs / pp {self.pp}"
                f"{f' / tp {self.tp}' if self.tp > 1 else ''}); allowed: a divisor of them"
            )
        if self.stage_gpus % (self.ep * self.etp):
            what = f"ep={self.ep}" + (f" x expert_tensor_parallel={self.etp}" * (self.etp > 1))
            near = _divisors(self.stage_gpus, near=self.ep * self.etp)
            raise ValueError(f"{what}: does not divide the {stage}; allowed: {near}")
        check_slots(self.routed_experts, self.redundant_experts, self.ep)
        if sorted(self.axes) != sorted(AXES):
            raise ValueError(
                f"training.axes: {', '.join(self.axes)}: allowed: each of {', '.join(AXES)} once"
            )
        dense, experts = (
            np.sort(grid.reshape(self.pp, -1)) for grid in (self.dense_grid, self.expert_grid)
        )
        if not np.array_equal(dense, experts):
            raise ValueError(
                f"training.axes: {', '.join(self.axes)}: puts the experts of a pipeline rank on "
                "other GPUs than the rest of its layers; allowed: pipeline first or last, or "
                "equal numbers of GPUs in the axes before it"
            )

    @property
    def stage_gpus(self) -> int:
        """GPUs of a pipeline rank."""
        return self.gpus // self.pp

    @property
    def dp(self) -> int:
        """Pipelines that work on sequences of their own."""
        return self.stage_gpus // (self.tp * self.cp)

    @property
    def dense_copies(self) -> int:
        """GPUs of a pipeline rank that hold the same parameters outside the experts."""
        return self.stage_gpus // self.tp

    @property
    def expert_replicas(self) -> int:
        """GPUs of a pipeline rank that hold the same experts."""
        return self.stage_gpus // (self.ep * self.etp)

    @property
    def group(self) -> int:
        """GPUs that wait for each other inside a layer: an expert-parallel group, with all that
        share layers with its members."""
        return lcm(self.tp, self.ep * self.etp)

    @property
    def groups(self) -> int:
        """Such groups of a pipeline rank."""
        return self.stage_gpus // self.group

    @property
    def local_experts(self) -> int:
        """Routed and redundant experts of one layer of which a GPU holds some or all columns."""
        return (self.routed_experts + self.redundant_experts) // self.ep

    @property
    def dense_grid(self) -> Gpus:
        """[pp, dp, cp, tp], the GPU at each place outside the experts."""
        sizes = {"pipeline": self.pp, "data": self.dp, "context": self.cp, "tensor": self.tp}
        return self._grid(sizes)

    @property
    def expert_grid(self) -> Gpus:
        """[pp, copies, ep, etp], the GPU at each place of the experts."""
        return self._grid(
            {"pipeline": self.pp, "data": self.expert_replicas, "expert": self.ep}
            | {"tensor": self.etp}
        )

    def _grid(self, sizes: Mapping[str, int]) -> Gpus:
        """The GPUs by the axes of `sizes`, in their order."""
        outwards = [axis for axis in self.axes if axis in sizes]
        inwards = outwards[::-1]
        grid = np.arange(self.gpus).reshape([sizes[axis] for axis in inwards])
        return grid.transpose([inwards.index(axis) for axis in sizes])

    def groups_of(self, axis: str) -> Gpus:
        """[groups, ranks], the GPUs of each group of an axis: one of AXES, or "expert_tensor"."""
        experts = axis in ("expert", "expert_tensor")
        grid = self.expert_grid if experts else self.dense_grid
        order = ("pipeline", "data", "expert", "expert_tensor")
        place = (order if experts else ("pipeline", "data", "context", "tensor")).index(axis)
        return np.moveaxis(grid, place, -1).reshape(-1, grid.shape[place])

    def parts_of(self, axis: str) -> tuple[int, ...]:
        """GPUs that a group of an axis has in each of its NVLink domains; of groups that lie
        differently, the one with the smallest part, whose NICs receive most."""
        return _parts_of(self, axis)

    @property
    def expert_parts(self) -> tuple[int, ...]:
        """The same of an expert-parallel group."""
        return self.parts_of("expert")

    @property
    def name(self) -> str:
        """ "PP16, DP128, EP64", with what else has more than one GPU."""
        inner = {"TP": self.tp, "CP": self.cp}
        sizes = {"PP": self.pp, **{name: size for name, size in inner.items() if size > 1}}
        sizes |= {"DP": self.dp, "EP": self.ep}
        sizes |= {"ETP": self.etp} if self.etp > 1 else {}
        return ", ".join(f"{name}{size}" for name, size in sizes.items())

    @property
    def in_domains(self) -> str:
        """Which axes lie in an NVLink domain: "tensor 2 of 2, expert 8 of 64"."""
        sizes = {"tensor": self.tp, "context": self.cp, "expert": self.ep}
        sizes |= {"data": self.dp, "pipeline": self.pp}
        found = [
            f"{axis} {max(self.parts_of(axis))} of {sizes[axis]}"
            for axis in self.axes
            if sizes[axis] > 1
        ]
        if self.etp > 1:
            found.append(f"expert tensor {max(self.parts_of('expert_tensor'))} of {self.etp}")
        return (
            f"of {self.gpus_per_domain} GPUs each, filled by {', '.join(self.axes)}: "
            f"{', '.join(found) or 'one GPU'}"
        )


@lru_cache(maxsize=256)
def _parts_of(layout: ParallelLayout, axis: str) -> tuple[int, ...]:
    """`ParallelLayout.parts_of`, worked out once."""
    groups = layout.groups_of(axis)
    shapes = {
        tuple(number for _, number in sorted(Counter(domains).items()))
        for domains in set(map(tuple, (groups // layout.gpus_per_domain).tolist()))
    }
    return min(sorted(shapes), key=min)
