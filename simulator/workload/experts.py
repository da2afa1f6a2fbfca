"""Place routed experts on GPUs, balance their load, and count the cost of moving them.

A slot holds one copy of one expert; GPU g holds the slots g x slots_per_gpu and following. Copies
of an expert share its load equally. Three policies, after DeepSeek's expert-parallel load balancer
(Report, section 3.4; deepseek-ai/EPLB):

    hierarchical  expert groups are spread over nodes, so that the experts of one group stay within
                  a node and node-limited routing keeps its few nodes; copies are made and spread
                  within each node
    global        copies are made and spread over all GPUs, whatever the groups
    eplb          what the open balancer computes: hierarchical where the nodes divide the groups,
                  else global, by the greedy steps alone

Each gives each further copy to the expert whose copies carry most, which makes the largest load
of a copy as small as any choice of copies can, and puts slots on GPUs heaviest first, each on the
GPU with the least load that still has room: the greedy steps. After them the first two exchange
slots of the heaviest GPU with slots of others as long as that lowers it, and the hierarchical
policy keeps the better of two ways to spread its groups, with and without such exchanges. So no
result is worse than that of the greedy steps alone, on the load that it was computed for. What is
served later has drifted from it, which no placement knows beforehand.

Loads are rows, one for each (token, expert) pair. Random numbers come from a passed generator.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Bytes, Seconds
from hardware_profiles.whole_files import read_text
from simulator.workload.gating import GroupScore, random_scores, select_experts

RowCounts = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ExpertPlacement:
    """Which expert each slot of each layer holds."""

    gpus: int
    experts: int
    """Routed experts of one layer."""
    slots: Indices
    """[layers, slots], the expert in each slot."""

    @property
    def slots_per_gpu(self) -> int:
        return int(self.slots.shape[1]) // self.gpus

    @property
    def copies(self) -> Indices:
        """[layers, experts], how many slots hold each expert."""
        return np.stack([np.bincount(row, minlength=self.experts) for row in self.slots])

    def slot_load(self, load: RowCounts) -> RowCounts:
        """[layers, slots], rows that each slot computes; `load` is [layers, experts]."""
        share: RowCounts = load / self.copies
        return np.take_along_axis(share, self.slots, axis=1)

    def gpu_load(self, load: RowCounts) -> RowCounts:
        """[layers, gpus], rows that each GPU computes; `load` is [layers, experts]."""
        total: RowCounts = self.slot_load(load).reshape(len(load), self.gpus, -1).sum(axis=2)
        return total

    def max_over_mean(self, load: RowCounts) -> float:
        """Rows of the slowest GPU over the mean, mean over layers; `load` is [layers, experts].

        Even loads may not reach 1: 256 experts of equal load in 288 slots of 72 GPUs are 32 experts
        with two copies, whose 64 half-loaded slots reach at most 64 GPUs, so that at least 8 GPUs
        hold four whole experts where the mean is 256 / 72: 4 x 72 / 256 = 1.125.
        """
        rows = self.gpu_load(load)
        return float((rows.max(axis=1) / rows.mean(axis=1)).mean())

    def most_over_mean(self, choices: int) -> float:
        """Largest load of a GPU over the mean if every token makes so many distinct choices, as
        many of them on that GPU as it has slots."""
        return self.gpus * min(choices, self.slots_per_gpu) / choices


def place_experts(
    load: RowCounts, *, gpus: int, nodes: int, groups: int, redundant: int, policy: str
) -> ExpertPlacement:
    """Place the experts of every layer for the `load` they are expected to carry.

    Args:
        load: [layers, experts], rows.
        groups: expert groups of node-limited routing, consecutive experts each.
        redundant: slots beyond one for each expert.
        policy: a key of `POLICIES`.

    Raises:
        ValueError: experts + redundant are not spread evenly by the GPUs, or the policy asks for
            nodes or groups that do not divide.
    """
    layers, experts = load.shape
    slots = experts + redundant
    if policy not in POLICIES:
        raise ValueError(f"policy {policy!r} is not known; known: {', '.join(POLICIES)}")
    check_slots(experts, redundant, gpus)
    if redundant < 0 or not np.all(load >= 0):
        raise ValueError("redundant experts and loads must not be negative")
    rows = np.ascontiguousarray(load, dtype=np.float64)
    return ExpertPlacement(
        gpus=gpus,
        experts=experts,
        slots=np.stack(
            [
                _placed_layer(policy, rows[layer].tobytes(), slots, gpus, nodes, groups)
                for layer in range(layers)
            ]
        ),
    )


@lru_cache(maxsize=1024)
def _placed_layer(
    policy: str, load: bytes, slots: int, gpus: int, nodes: int, groups: int
) -> Indices:
    """The expert in each slot of one layer; the grid points of a fleet, which draw the same
    popularity, place it once."""
    return POLICIES[policy](np.frombuffer(load, dtype=np.float64), slots, gpus, nodes, groups)


def check_slots(experts: int, redundant: int, gpus: int) -> None:
    """Raise ValueError, naming a number of redundant experts that would do, where `gpus` GPUs
    cannot hold equally many slots."""
    slots = experts + redundant
    if slots % gpus:
        raise ValueError(
            f"{experts} routed + {redundant} redundant experts = {slots} slots; {gpus} GPUs do "
            f"not divide them; allowed: {-experts % gpus} redundant experts, or {gpus}, "
            f"{2 * gpus}, ... more; or {math.gcd(slots, gpus)} GPUs"
        )


def _in_order(load: RowCounts, slots: int, gpus: int, nodes: int, groups: int) -> Indices:
    """Experts in order of their number, then the first ones again as copies."""
    del gpus, nodes, groups
    return np.arange(slots) % len(load)


def _global(load: RowCounts, slots: int, gpus: int, nodes: int, groups: int) -> Indices:
    del nodes, groups
    return _copy_and_spread(load, slots, gpus, exchanged=True)


def _hierarchical(load: RowCounts, slots: int, gpus: int, nodes: int, groups: int) -> Indices:
    for name, count in (("expert groups", groups), ("GPUs", gpus), ("slots", slots)):
        if count % nodes:
            raise ValueError(
                f"hierarchical placement: {nodes} nodes do not divide {count} {name}; "
                "allowed: a divisor, or policy global"
            )
    if len(load) % groups:
        raise ValueError(
            f"{groups} expert groups do not divide {len(load)} experts; allowed: policy global"
        )
    group_load = load.reshape(groups, -1).sum(axis=1)
    greedy = _spread(group_load, nodes)
    # Nodes of more equal load do not promise GPUs of more equal load, so both ways are tried.
    results = [
        _within_nodes(load, spread, slots, gpus, exchanged=True)
        for spread in (greedy, _exchange(group_load, greedy))
    ]
    return min(results, key=lambda experts: _heaviest(load, experts, gpus))


def _eplb(load: RowCounts, slots: int, gpus: int, nodes: int, groups: int) -> Indices:
    if groups % nodes or gpus % nodes or slots % nodes or len(load) % groups:
        return _copy_and_spread(load, slots, gpus, exchanged=False)
    spread = _spread(load.reshape(groups, -1).sum(axis=1), nodes)
    return _within_nodes(load, spread, slots, gpus, exchanged=False)


def _within_nodes(
    load: RowCounts, spread: Indices, slots: int, gpus: int, *, exchanged: bool
) -> Indices:
    """Experts of the slots [slots], with the groups that `spread` [nodes, groups / nodes] gives to
    each node copied and spread within it."""
    nodes = len(spread)
    local = np.arange(len(load)).reshape(spread.size, -1)[spread].reshape(nodes, -1)
    placed = [
        node[_copy_and_spread(load[node], slots // nodes, gpus // nodes, exchanged=exchanged)]
        for node in local
    ]
    return np.concatenate(placed)


def _heaviest(load: RowCounts, experts: Indices, gpus: int) -> float:
    """Largest load of a GPU when its slots hold `experts` [slots]."""
    share = load / np.bincount(experts, minlength=len(load))
    return float(share[experts].reshape(gpus, -1).sum(axis=1).max())


POLICIES: dict[str, Callable[[RowCounts, int, int, int, int], Indices]] = {
    "hierarchical": _hierarchical,
    "global": _global,
    "eplb": _eplb,
    "in_order": _in_order,
}
"""Policy name -> function of the load [experts] of one layer, slots, GPUs, nodes, groups."""


def _copy_and_spread(load: RowCounts, slots: int, gpus: int, *, exchanged: bool) -> Indices:
    """Experts of the slots [slots], those of a GPU together."""
    experts = _copies(load, slots)
    share = load / np.bincount(experts, minlength=len(load))
    weights = share[experts]
    spread = _spread(weights, gpus)
    return experts[_exchange(weights, spread) if exchanged else spread].ravel()


def _copies(load: RowCounts, slots: int) -> Indices:
    """The expert of each slot, before slots have a place: each expert once, then the further
    copies, each for the expert whose copies carry most."""
    chosen = list(range(len(load)))
    counts = np.ones(len(load))
    for _ in range(slots - len(load)):
        expert = int(np.argmax(load / counts))
        counts[expert] += 1
        chosen.append(expert)
    return np.array(chosen)


def _spread(weights: RowCounts, bins: int) -> Indices:
    """[bins, items / bins], indices of the items that share a bin, equally many in each."""
    room = len(weights) // bins
    if room == 1:
        return np.arange(len(weights)).reshape(bins, 1)
    content: list[list[int]] = [[] for _ in range(bins)]
    total = np.zeros(bins)
    for item in np.argsort(-weights, kind="stable"):
        lightest = int(np.argmin(total))
        content[lightest].append(int(item))
        # A full bin is no choice any more, whatever it weighs.
        total[lightest] = (
            np.inf if len(content[lightest]) == room else total[lightest] + weights[item]
        )
    return np.array(content)


def _exchange(weights: RowCounts, content: Indices) -> Indices:
    """Exchange items of the heaviest bin with items of other bins while that lowers it."""
    content = content.copy()
    bins, room = content.shape
    total = weights[content].sum(axis=1)
    tolerance = np.finfo(np.float64).eps * total.max(initial=0.0) * room
    while bins > 1:
        heaviest = int(np.argmax(total))
        # [item of the heaviest bin, bin, item of that bin]: what leaves minus what comes.
        given = weights[content[heaviest]][:, None, None] - weights[content][None, :, :]
        worst = np.maximum(total[heaviest] - given, total[None, :, None] + given)
        worst[:, heaviest, :] = np.inf
        best = int(np.argmin(worst))
        if worst.flat[best] >= total[heaviest] - tolerance:
            break
        mine, other, theirs = np.unravel_index(best, worst.shape)
        swapped = content[other, theirs]
        content[other, theirs], content[heaviest, mine] = content[heaviest, mine], swapped
        total[heaviest] = weights[content[heaviest]].sum()
        total[other] = weights[content[other]].sum()
    return content


# -- loads -----------------------------------------------------------------------------------------


def uniform_popularity(layers: int, experts: int) -> RowCounts:
    """[layers, experts], every expert equally likely."""
    return np.full((layers, experts), 1.0 / experts)


def zipf_popularity(
    layers: int, experts: int, *, exponent: float, rng: np.random.Generator
) -> RowCounts:
    """[layers, experts], the r-th most popular expert in proportion to r^-exponent; which expert
    that is, is drawn anew in each layer."""
    ranked = ranked_popularity(experts, exponent)
    return np.stack([rng.permutation(ranked) for _ in range(layers)])


def ranked_popularity(experts: int, exponent: float) -> RowCounts:
    """[experts], most popular first, in proportion to r^-exponent; sums to 1."""
    ranked: RowCounts = np.arange(1, experts + 1, dtype=np.float64) ** -exponent
    ranked /= ranked.sum()
    return ranked


def read_popularity(path: Path, *, layers: int, experts: int) -> RowCounts:
    """[layers, experts] from a CSV file with the columns layer, expert and rows.

    Layers count the mixture-of-experts layers from 0; an expert that is not listed has no rows.

    Raises ValueError naming file, line and value.
    """
    load = np.zeros((layers, experts))
    reader = csv.DictReader(read_text(path, where=str(path)).splitlines())
    wanted = ["layer", "expert", "rows"]
    if sorted(reader.fieldnames or []) != sorted(wanted):
        raise ValueError(f"{path}: columns {reader.fieldnames}; allowed: {', '.join(wanted)}")
    for number, line in enumerate(reader, start=2):
        try:
            layer, expert, rows = int(line["layer"]), int(line["expert"]), float(line["rows"])
        except (TypeError, ValueError):
            raise ValueError(f"{path}: line {number}: {line} are not three numbers") from None
        if not (0 <= layer < layers and 0 <= expert < experts and 0 <= rows < np.inf):
            raise ValueError(
                f"{path}: line {number}: layer {layer}, expert {expert}, rows {rows}; allowed: "
                f"layer below {layers}, expert below {experts}, rows not negative"
            )
        load[layer, expert] += rows
    total = load.sum(axis=1)
    if not np.all(total > 0):
        raise ValueError(f"{path}: layer {int(np.argmin(total))} has no rows")
    popularity: RowCounts = load / total[:, None]
    return popularity


def drifted(popularity: RowCounts, *, sd: float, rng: np.random.Generator) -> RowCounts:
    """The popularity of a later window, in which that of each expert has changed by a factor whose
    logarithm has this standard deviation; [layers, experts] as given, each layer's sum kept."""
    later = popularity * np.exp(sd * rng.standard_normal(popularity.shape))
    scaled: RowCounts = later * (popularity.sum(axis=1) / later.sum(axis=1))[:, None]
    return scaled


def share_of_tokens(
    slots: Indices,
    *,
    experts: int,
    groups: int,
    kept_groups: int,
    top_k: int,
    group_score: GroupScore,
    destinations: Sequence[Indices],
    tokens: int,
    rng: np.random.Generator,
) -> tuple[RowCounts, ...]:
    """Share of the tokens that reach each destination (node, GPU), own included, when the model's
    gate chooses on random scores; one [destinations] for each way to number them.

    Of several copies of an expert a token takes any.

    Args:
        slots: [slots], the expert in each.
        kept_groups: expert groups that a token may choose from.
        group_score: what ranks them. Whether scores are sigmoids or a softmax decides no choice:
            either is larger where the logit is.
        destinations: [slots] each, number of the destination that a slot lies in.
    """
    scores = random_scores(tokens, experts, kind="sigmoid", rng=rng)
    chosen = select_experts(
        scores, top_k=top_k, groups=groups, kept_groups=kept_groups, group_score=group_score
    )
    copies = np.bincount(slots, minlength=experts)
    first = np.concatenate(([0], np.cumsum(copies)[:-1]))
    copy = (rng.random(chosen.shape) * copies[chosen]).astype(np.int64)
    slot = np.argsort(slots, kind="stable")[first[chosen] + copy]
    shares = []
    for destination in destinations:
        reached = np.zeros((tokens, int(destination.max()) + 1), dtype=bool)
        reached[np.arange(tokens)[:, None], destination[slot]] = True
        shares.append(reached.mean(axis=0))
    return tuple(shares)


# -- rebalancing -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RebalanceCost:
    """What going from one placement to another costs."""

    bytes_per_gpu: Bytes
    """Weights that the GPU receives which receives most."""
    bytes_total: Bytes
    seconds: Seconds
    """Time of the transfer to that GPU."""
    share: float
    """That time over the interval between two rebalancings."""


def rebalance_cost(
    before: ExpertPlacement,
    after: ExpertPlacement,
    *,
    expert_bytes: Bytes,
    seconds_of: Callable[[Bytes], Seconds],
    interval: Seconds,
) -> RebalanceCost:
    """Cost of loading the experts that a GPU did not hold before, from other GPUs.

    A slot whose expert already lies on the same GPU moves nothing off it.

    Args:
        seconds_of: time of the bytes that one GPU receives.
    """
    if before.slots.shape != after.slots.shape or before.gpus != after.gpus:
        raise ValueError("placements of different shape cannot follow each other")
    layers = len(after.slots)
    gpu = np.repeat(np.arange(after.gpus), after.slots_per_gpu)
    held = np.zeros((layers, after.gpus, after.experts))
    wanted = np.zeros_like(held)
    for layer in range(layers):
        np.add.at(held[layer], (gpu, before.slots[layer]), 1)
        np.add.at(wanted[layer], (gpu, after.slots[layer]), 1)
    # Two copies of one expert on one GPU are one transfer.
    received = ((wanted > 0) & (held == 0)).sum(axis=(0, 2)) * expert_bytes
    seconds = seconds_of(float(received.max()))
    return RebalanceCost(
        bytes_per_gpu=float(received.max()),
        bytes_total=float(received.sum()),
        seconds=seconds,
        share=seconds / interval,
    )
