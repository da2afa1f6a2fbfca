"""Draw the rows of every rank of a deployment, by layer and micro-batch, over their mean.

Where experts lie makes some of it: 288 slots on 72 GPUs hold no equal shares of equally popular
experts. The rest is what the job's skew states. Of a popularity, experts are placed for one window
of it and serve another, each expert's share changed by a lognormal factor (drift). Tokens then
choose by themselves, so that rows also differ by chance.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.by_content import profile_key
from simulator.execution.serving_model import ServingModel, placed_experts, with_shared
from simulator.workload.experts import (
    ExpertPlacement,
    drifted,
    ranked_popularity,
    read_popularity,
    zipf_popularity,
)
from simulator.workload.skew import DrawnRows, Single, random_gate_sd

Array = NDArray[np.float64]

STRATA = 8
"""Values of a popularity's exponent that experts are placed for, of equally many draws each."""
BALANCED_LAYERS = 8
"""Layers whose balance is shown, the first ones."""
ORDERS = 4
"""Orders of the experts of different layers, where their groups matter to a placement."""


def rows_over_mean(
    model: ServingModel,
    *,
    layers: int,
    mean_rows: float,
    priors: Mapping[str, Array],
    rng: np.random.Generator,
) -> list[list[Single]]:
    """[layers][micro-batches] of [ranks, draws], rows over the mean of the ranks.

    Args:
        layers: that have experts.
        mean_rows: of a rank in one layer and micro-batch.
        priors: {name: [draws]} of the job's skew.
    """
    rows = model.job.skew.rows
    ranks, batches = model.expert_ranks, model.job.micro_batches
    sd = np.sqrt(priors["rows_sd"] ** 2 + _chance_sd(model, mean_rows) ** 2)
    lasting = rows.changes != "micro_batch"
    if rows.form != "popularity":
        most = priors.get("rows.max_over_mean")
        shares = DrawnRows(sd, most).shares(
            ranks=ranks, cases=(layers, 1 if lasting else batches), rng=rng
        )
        placed = _of_equal_experts(model)[:, None, None, None] * shares
        return [
            [
                np.ascontiguousarray(placed[:, layer, 0 if lasting else batch])
                for batch in range(batches)
            ]
            for layer in range(layers)
        ]
    found: list[list[Single]] = []
    known = _known_layers(_what_decides(model, layers, priors, rng))
    if len(known) < layers:
        known.clear()
    served = _before_chance(model, priors, rng)
    for layer in range(layers):
        if layer == len(known):
            drawn = [next(served)] * batches if lasting else list(islice(served, batches))
            normal = [rng.standard_normal(part.shape, dtype=np.float32) for part in drawn]
            known.append(tuple(zip(drawn, normal, strict=True)))
        found.append([_by_chance(shares, normal, sd) for shares, normal in known[layer]])
    return found


def _chance_sd(model: ServingModel, mean_rows: float) -> float:
    """Relative sd of rows for the choices of tokens alone, where they choose at random."""
    if model.job.skew.rows.form not in ("random", "popularity"):
        return 0.0
    experts = model.config.n_routed_experts
    return random_gate_sd(
        choices=mean_rows,
        top_k=model.config.num_experts_per_tok,
        experts=experts,
        local=max(1, experts // model.expert_ranks),
    )


def _by_chance(shares: Single, normal: Single, sd: Array) -> Single:
    """Shares of ranks with the deviations of chance, larger for ranks with fewer rows."""
    rows: Single = normal * sd.astype(np.float32)
    rows *= np.sqrt(shares)
    rows += shares
    np.maximum(rows, 0.0, out=rows)
    return rows


def _of_equal_experts(model: ServingModel) -> Single:
    """[ranks], rows over the mean that the placement makes of equally popular experts."""
    placement, carried = placed_experts(model, None)
    rows = placement.gpu_load(carried)[0]
    over_mean: Single = (rows / rows.mean()).astype(np.float32)
    return over_mean


_OfLayer: TypeAlias = tuple[tuple[Single, Single], ...]
"""[micro-batches] of [ranks, draws] each: rows over their mean before chance, and the standard
normal numbers of chance."""


def _what_decides(
    model: ServingModel, layers: int, priors: Mapping[str, Array], rng: np.random.Generator
) -> Hashable:
    """What rows before chance, and its random numbers, follow from: those of a deployment are the
    same at any batch, context and on any kernels."""
    of_rows = [priors.get(name) for name in ("rows.zipf_exponent", "rows.drift")]
    return (
        profile_key(model.job).key,
        profile_key(model.cluster).key,
        model.config,
        model.seed,
        layers,
        len(priors["rows_sd"]),
        repr(rng.bit_generator.state),
        *(None if prior is None else prior.tobytes() for prior in of_rows),
    )


@lru_cache(maxsize=4)
def _known_layers(what_decides: Hashable) -> list[_OfLayer]:
    """Layers that were drawn before, filled as they are drawn."""
    return []


def _before_chance(
    model: ServingModel, priors: Mapping[str, Array], rng: np.random.Generator
) -> Iterator[Single]:
    """[ranks, draws] of one layer after the other without end, before chance."""
    strata = _strata(model, priors, rng)
    order = np.concatenate([chosen for chosen, _, _ in strata])
    back = np.argsort(order)
    drift = priors.get("rows.drift", np.zeros(len(order)))[order].astype(np.float32)
    experts, top_k = model.config.n_routed_experts, model.config.num_experts_per_tok
    change = np.empty((experts, len(order)), dtype=np.float32)
    layer = 0
    while True:
        rng.standard_normal(dtype=np.float32, out=change)
        change *= drift
        np.exp(change, out=change)
        of_strata, start = [], 0
        for chosen, placement, served in strata:
            place = layer % len(served)
            slots = placement.slots[place]
            copies = np.bincount(slots, minlength=placement.experts).astype(np.float32)
            popularity = served[place].astype(np.float32)
            load = change[:, start : start + len(chosen)] * popularity[:, None]
            load *= top_k / load.sum(axis=0)
            if len(copies) > experts:
                # A shared expert that travels like the routed ones.
                load = np.concatenate((load, np.ones_like(load[:1])))
            of_slots = (load / copies[:, None])[slots]
            of_strata.append(of_slots.reshape(model.expert_ranks, -1, len(chosen)).sum(axis=1))
            start += len(chosen)
        rows = np.concatenate(of_strata, axis=1)[:, back]
        yield np.ascontiguousarray(rows / rows.mean(axis=0))
        layer += 1


def _strata(
    model: ServingModel, priors: Mapping[str, Array], rng: np.random.Generator
) -> list[tuple[NDArray[np.intp], ExpertPlacement, Array]]:
    """Draws that share a placement, it, and the popularity served before drift, [layers, experts];
    layers beyond these have the same in turn."""
    exponent = priors.get("rows.zipf_exponent")
    if exponent is None:
        before, served = windows(model)
        placement, _ = placed_experts(model, before)
        every = np.arange(len(priors["rows_sd"]))
        return [(every, placement, served)]
    experts = model.config.n_routed_experts
    found: list[tuple[NDArray[np.intp], ExpertPlacement, Array]] = []
    for chosen in np.array_split(np.argsort(exponent, kind="stable"), STRATA):
        if len(chosen):
            ranked = ranked_popularity(experts, float(np.median(exponent[chosen])))
            layers = np.stack([rng.permutation(ranked) for _ in range(ORDERS)])
            placement, _ = placed_experts(model, layers)
            found.append((chosen, placement, layers))
    return found


def windows(model: ServingModel) -> tuple[Array, Array]:
    """[layers, experts] each: the popularity that experts are placed for, and the one served before
    drift, of the files that the job names or at the value of its exponent.

    Raises ValueError naming file, line and value.
    """
    rows, config = model.job.skew.rows, model.config
    layers, experts = config.num_moe_layers, config.n_routed_experts
    if rows.zipf_exponent is not None:
        rng = np.random.default_rng(model.seed)
        of_layers = zipf_popularity(layers, experts, exponent=rows.zipf_exponent.value, rng=rng)
        return of_layers, of_layers
    assert rows.file is not None, "the form's validator wants an exponent or a file"
    before, served = (
        read_popularity(Path(name), layers=layers, experts=experts)
        for name in (rows.placed_for or rows.file, rows.file)
    )
    return before, served


def slot_shares(model: ServingModel) -> Array:
    """[slots of a rank], share of a rank's rows that each of its slots has, heaviest first, mean
    over ranks: what decides how many of its experts have rows at all."""
    if model.job.skew.rows.form != "popularity":
        return model.slot_shares
    before, served = (window[:BALANCED_LAYERS] for window in windows(model))
    placement, _ = placed_experts(model, before)
    carried = with_shared(model.job, served * model.config.num_experts_per_tok, tokens=1)
    loads = np.sort(placement.slot_load(carried).reshape(-1, placement.slots_per_gpu))[:, ::-1]
    shares: Array = (loads / np.maximum(loads.sum(axis=1, keepdims=True), 1e-300)).mean(axis=0)
    return shares


def placement_balance(model: ServingModel) -> dict[str, tuple[float, float]]:
    """{policy: rows of the busiest rank over the mean, mean over layers, before chance, in the
    window that experts were placed for and in the window served} of experts of unequal popularity:
    in order of their number, as the open balancer places them, and as the job's policy does; empty
    where all are equally popular.

    At the values of the priors, over as many layers as have an order of their own.
    """
    rows = model.job.skew.rows
    if rows.form != "popularity" or model.expert_ranks == 1:
        return {}
    before, served = (window[:BALANCED_LAYERS] for window in windows(model))
    if rows.drift is not None:
        served = drifted(served, sd=rows.drift.value, rng=np.random.default_rng(model.seed))
    top_k = model.config.num_experts_per_tok
    found: dict[str, tuple[float, float]] = {}
    for policy in dict.fromkeys(("in_order", "eplb", model.job.experts.placement)):
        experts = model.job.experts.model_copy(update={"placement": policy})
        job = model.job.model_copy(update={"experts": experts})
        placement, carried = placed_experts(replace(model, job=job), before)
        later = with_shared(job, served * top_k, tokens=1)
        found[policy] = placement.max_over_mean(carried), placement.max_over_mean(later)
    return found
