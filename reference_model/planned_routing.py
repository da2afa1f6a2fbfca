"""Routing that is known beforehand: which experts a token chooses is drawn by a seed.

Experts are drawn from a popularity that falls by exp(-skew) from the first to the last. So the rows
of each rank, and what they should take, can be worked out before a step runs, no rank asks another
how many come, and a step can be captured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reference_model.config import ModelConfig
from reference_model.expert_parallel import ExpertParallelBlock, layout_of
from reference_model.moe import Gate
from reference_model.operators import Site


def planned_choices(config: ModelConfig, *, tokens: int, skew: float, seed: int) -> Tensor:
    """Each token's experts, int64 [tokens, K], drawn without replacement; groups are not looked
    at."""
    generator = torch.Generator().manual_seed(seed)
    experts = config.n_routed_experts
    uniform = torch.rand((tokens, experts), generator=generator, dtype=torch.float64)
    popularity = -skew * torch.arange(experts, dtype=torch.float64) / (experts - 1)
    # The largest of these are a draw in proportion to exp(popularity): the Gumbel trick.
    return (popularity - torch.log(-torch.log(uniform))).topk(config.num_experts_per_tok).indices


class LayerPlan(NamedTuple):
    """What every rank's tokens choose in one layer."""

    choices: list[Tensor]
    """[rank], int64 [tokens, K]"""
    reached: list[Tensor]
    """[rank], bool [tokens, ranks], the ranks that hold a choice."""
    sent: Tensor
    """int64 [from rank, to rank], tokens that travel in dispatch."""
    expanded: Tensor
    """int64 [from rank, to rank], rows of experts that they become: one a choice."""


def plan_layer(
    config: ModelConfig, *, tokens: int, skew: float, ranks: int, layer: int
) -> LayerPlan:
    """The plan of a layer, of `tokens` tokens of each rank; the ranks divide the experts."""
    local = config.n_routed_experts // ranks
    choices = [
        planned_choices(config, tokens=tokens, skew=skew, seed=1000 * layer + rank)
        for rank in range(ranks)
    ]
    homes = [chosen // local for chosen in choices]
    reached = [
        torch.zeros((tokens, ranks), dtype=torch.bool).scatter_(1, home, True) for home in homes
    ]
    return LayerPlan(
        choices,
        reached,
        torch.stack([of_rank.sum(dim=0) for of_rank in reached]),
        torch.stack([home.flatten().bincount(minlength=ranks) for home in homes]),
    )


class PlannedGate(Gate):
    """A gate that computes its choice and then takes the planned one."""

    def __init__(self, gate: Gate, choices: Tensor) -> None:
        super().__init__(gate.config, recipe=gate.recipe, device=choices.device)
        self.proj = gate.proj
        self.choices = choices

    def forward(self, x: Tensor, site: Site) -> tuple[Tensor, Tensor, Tensor]:
        """See Gate."""
        logits, _, weights = super().forward(x, site)
        return logits, self.choices, weights


def plan_routing(
    layers: Sequence[ExpertParallelBlock], *, tokens: int, skew: float, rank: int, ranks: int
) -> None:
    """Let every layer's gate choose as planned, and tell it the layout."""
    for number, layer in enumerate(layers):
        plan = plan_layer(layer.mlp.config, tokens=tokens, skew=skew, ranks=ranks, layer=number)
        layout = layout_of(
            plan.reached[rank], plan.sent.tolist(), plan.expanded.tolist(), rank=rank
        )
        device = layer.mlp.gate.proj.weight.device
        layer.mlp.layout = layout._replace(
            source=layout.source.to(device), token_rows=layout.token_rows.to(device)
        )
        layer.mlp.gate = PlannedGate(layer.mlp.gate, plan.choices[rank].to(device))
