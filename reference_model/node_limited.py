"""Node-limited routing: how many nodes and GPUs the experts of a token lie on.

A token that chose several experts of one destination travels there once, so what counts is the
number of distinct destinations (Technical Report, sections 2.1.2 and 3.2.2). Experts lie in order
over the destinations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reference_model import operators as ops
from reference_model.config import ModelConfig
from reference_model.operators import Site


def reached(indices: Tensor, *, experts: int, destinations: int) -> Tensor:
    """Whether each token goes to each destination, bool [T, destinations], by its choices [T, K]
    among `experts` that are spread evenly over them."""
    if destinations < 1 or experts % destinations:
        raise ValueError(f"destinations = {destinations} do not divide {experts} experts")
    found = torch.zeros((indices.shape[0], destinations), dtype=torch.bool)
    return found.scatter_(1, indices.cpu() // (experts // destinations), True)


def destinations_reached(indices: Tensor, *, experts: int, destinations: int) -> Tensor:
    """Distinct destinations of each token, int64 [T]."""
    return reached(indices, experts=experts, destinations=destinations).sum(dim=1)


def copies_received(indices: Tensor, *, experts: int, destinations: int) -> Tensor:
    """Tokens that travel to each destination, once each, int64 [destinations]."""
    return reached(indices, experts=experts, destinations=destinations).sum(dim=0)


def choose_on_random_logits(
    config: ModelConfig, *, tokens: int, generator: torch.Generator
) -> Tensor:
    """The choices [T, K] of the model's gate on normal logits, without a bias."""
    logits = torch.randn((tokens, config.n_routed_experts), generator=generator)
    indices, _ = ops.gate(
        logits,
        torch.zeros(config.n_routed_experts),
        scoring=config.scoring_func,
        n_group=config.n_group,
        topk_group=config.topk_group,
        top_k=config.num_experts_per_tok,
        normalise=config.norm_topk_prob,
        scaling=config.routed_scaling_factor,
        site=Site("forward", "attention")("gate"),
    )
    return indices


def choose_within_random_groups(
    config: ModelConfig, *, tokens: int, generator: torch.Generator
) -> Tensor:
    """Choices [T, K] at random within random groups, `topk_group` of them for each token."""
    groups, experts = config.n_group, config.n_routed_experts
    order = torch.rand((tokens, groups), generator=generator).argsort(dim=1)
    allowed = torch.zeros((tokens, groups), dtype=torch.bool)
    allowed.scatter_(1, order[:, : config.topk_group], True)
    scores = torch.rand((tokens, experts), generator=generator)
    scores[~allowed.repeat_interleave(experts // groups, dim=1)] = -1.0
    return scores.topk(config.num_experts_per_tok, dim=1).indices


def groups_reached_at_random(config: ModelConfig) -> float:
    """Groups that `choose_within_random_groups` reaches on average: kept x (1 - C(n - s, k) /
    C(n, k)), with n experts in the kept groups, s of them in one, and k choices."""
    size = config.n_routed_experts // config.n_group
    pool, top_k = config.topk_group * size, config.num_experts_per_tok
    return config.topk_group * (1 - math.comb(pool - size, top_k) / math.comb(pool, top_k))
