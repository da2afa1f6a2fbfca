"""Who holds what: layers -> pipeline stages, ranks -> pipeline, data and expert groups.

A stage is a tuple of layer kinds in forward order, e.g. ("embedding", "dense", "moe"). The default
puts the embedding, the dense layers and the first MoE layers on the first stage and the last MoE
layer, the head and the multi-token prediction on the last, with equal numbers of MoE layers
between (the layout that DeepSeek-V3's report implies: embedding and head share a pipeline rank).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from reference_model.config import ModelConfig
from simulator.workload.experts import check_slots

LAYER_KINDS = ("embedding", "dense", "moe", "mtp", "head")

Stage = tuple[str, ...]


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


def parse_stage(text: str) -> list[Stage]:
    """Read "embedding + 3 dense + 1 moe", or "14 x (4 moe)" for fourteen equal stages.

    Raises:
        ValueError: the text has another form or names an unknown layer kind.
    """
    allowed = (
        f'allowed: "N kind + N kind", optionally "N x (...)", of the kinds {", ".join(LAYER_KINDS)}'
    )
    repeated = re.fullmatch(r"\s*(\d+)\s*x\s*\((.*)\)\s*", text)
    times, body = (int(repeated[1]), repeated[2]) if repeated else (1, text)
    layers: list[str] = []
    for part in body.split("+"):
        matched = re.fullmatch(r"\s*(?:(\d+)\s+)?([a-z]+)\s*", part)
        if matched is None or matched[2] not in LAYER_KINDS:
            raise ValueError(f"stage {text!r}: cannot read {part.strip()!r}; {allowed}")
        layers += [matched[2]] * int(matched[1] or 1)
    return [tuple(layers)] * times


def explicit_stages(texts: Sequence[str], *, config: ModelConfig, stages: int) -> list[Stage]:
    """The stages that a scenario spells out, checked to hold the whole model once, in order.

    Raises:
        ValueError: wrong number of stages, or layers missing, superfluous or out of order.
    """
    layout = [stage for text in texts for stage in parse_stage(text)]
    if len(layout) != stages:
        raise ValueError(f"stages: {len(layout)} are listed; the pipeline has {stages}")
    found, wanted = Counter(kind for stage in layout for kind in stage), layer_counts(config)
    for kind, count in wanted.items():
        if found[kind] != count:
            raise ValueError(f"stages: {found[kind]} {kind} layers listed; the model has {count}")
    rank_of = {"embedding": 0, "dense": 1, "moe": 2, "head": 3, "mtp": 3}
    order = [rank_of[kind] for stage in layout for kind in stage]
    if order != sorted(order):
        raise ValueError(
            "stages: layers out of order; allowed: embedding, dense, moe, then head and mtp"
        )
    return layout


def default_stages(config: ModelConfig, stages: int) -> list[Stage]:
    """Spread the layers as the published run does; MoE layers as evenly as the count allows.

    The first stage counts its dense layers, and the last its head and MTP, as if each of the two
    groups were all of a stage but one MoE layer. With 61 layers, 3 of them dense, and 16 stages
    this gives embedding + 3 dense + 1 moe, fourteen times 4 moe, 1 moe + head + mtp.

    Raises:
        ValueError: fewer layers than stages.
    """
    counts = layer_counts(config)
    first: Stage = ("embedding",) + ("dense",) * counts["dense"]
    last: Stage = ("head",) + ("mtp",) * counts["mtp"]
    moe = counts["moe"]
    if stages == 1:
        return [first + ("moe",) * moe + last]
    if moe < stages:
        raise ValueError(
            f"pp={stages}: the pipeline has more stages than the model has MoE layers ({moe}); "
            f"allowed: at most {moe} stages"
        )
    # One MoE layer at each end, the others evenly; what does not divide goes to the ends first,
    # which are the lighter ones, then to the stages after the first.
    inner = stages - 2
    if not inner:
        shares = [moe - moe // 2, moe // 2]
    else:
        each = (moe - 2) // inner
        shares = [1] + [each] * inner + [1]
        for extra in range(moe - sum(shares)):
            shares[1 + extra % inner] += 1
    layout = [("moe",) * share for share in shares]
    return [first + layout[0], *layout[1:-1], layout[-1] + last]


def cut_stage(stage: Stage, parts: int, cost: Callable[[str], float]) -> list[Stage]:
    """Cut a stage where the summed `cost` of the layers before is nearest to an equal share.

    Raises:
        ValueError: the stage has fewer layers than parts.
    """
    if len(stage) < parts:
        raise ValueError(
            f"stage ({', '.join(stage)}): {len(stage)} layers cannot be cut into the {parts} "
            f"stages that each rank holds in this schedule; allowed: at least {parts} layers per "
            "stage, so fewer training.pp or training.virtual_stages, or schedule 1f1b"
        )
    before = [0.0, *accumulate(cost(kind) for kind in stage)]
    places = [0]
    for part in range(1, parts):
        possible = range(places[-1] + 1, len(stage) - (parts - part) + 1)
        share = before[-1] * part / parts
        places.append(min(possible, key=lambda place: abs(before[place] - share)))
    return [stage[start:end] for start, end in pairwise([*places, len(stage)])]


def domain_parts(gpus: int, per_domain: int, *, first: int = 0) -> tuple[int, ...]:
    """How many of consecutive GPUs lie in each NVLink domain, `first` being the first one's place
    in its domain: 12 from place 4 of domains of 8 are (4, 8)."""
    edges = [first, *range(per_domain, first + gpus, per_domain), first + gpus]
    return tuple(end - start for start, end in pairwise(edges))


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """How many GPUs work on what; GPU = (pipeline rank, data rank), the data rank varying fastest.

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

    def __post_init__(self) -> None:
        for name in ("pp", "ep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: allowed: 1 or more")
        if self.gpus % self.pp:
            raise ValueError(
                f"pp={self.pp}: does not divide the {self.gpus} GPUs; allowed: a divisor of them"
            )
        if self.dp % self.ep:
            raise ValueError(
                f"ep={self.ep}: does not divide the {self.dp} data-parallel ranks "
                f"({self.gpus} GPUs / pp {self.pp}); allowed: a divisor of them"
            )
        check_slots(self.routed_experts, self.redundant_experts, self.ep)

    @property
    def dp(self) -> int:
        return self.gpus // self.pp

    @property
    def local_experts(self) -> int:
        """Routed and redundant experts of one layer on one GPU."""
        return (self.routed_experts + self.redundant_experts) // self.ep

    @property
    def expert_parts(self) -> tuple[int, ...]:
        """GPUs that an expert-parallel group has in each of its domains; of groups that lie
        differently, the one with the smallest part, whose NICs receive most."""
        starts = {first % self.gpus_per_domain for first in range(0, self.gpus, self.ep)}
        parts = [domain_parts(self.ep, self.gpus_per_domain, first=first) for first in starts]
        return min(parts, key=min)

    @property
    def expert_replicas(self) -> int:
        """Data-parallel copies of an expert within one pipeline direction."""
        return self.dp // self.ep
