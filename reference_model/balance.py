"""Balance the load of experts: expert loads, bias updates and histograms.

Without an auxiliary loss (Technical Report, section 2.1.2; arXiv:2408.15664): after each step the
bias of an expert that was chosen more often than the mean goes down by gamma, of one chosen less
often up by gamma; the bias takes part in the choice only. With one, for comparison and in small
measure beside it: the sequence-wise balance loss of the Report, equations 17 to 20.

Loads are [layers, experts], tokens that chose each expert; layers are the mixture-of-experts layers
of the main model in order, then that of the multi-token prediction module.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor

from reference_model.blocks import MoEBlock, SavedBlock
from reference_model.config import ModelConfig
from reference_model.model import SavedStep, Transformer
from reference_model.moe import Gate, SavedMoE
from reference_model.operators import Site
from reference_model.operators.routing import gate_scores, gate_scores_backward


def moe_blocks(model: Transformer) -> list[MoEBlock]:
    """The mixture-of-experts layers, that of the multi-token prediction module last."""
    blocks = [block for block in model.blocks if isinstance(block, MoEBlock)]
    return blocks if model.mtp is None else [*blocks, model.mtp.block]


def saved_choices(saved: SavedStep) -> list[SavedMoE]:
    """What the experts of `moe_blocks` kept of a micro-batch, in the same order."""
    blocks = saved.blocks
    blocks = blocks if saved.prediction is None else [*blocks, saved.prediction.block]
    kept = [block.feed_forward for block in blocks if isinstance(block, SavedBlock)]
    return [experts for experts in kept if isinstance(experts, SavedMoE)]


def expert_load(saved: SavedStep, *, experts: int) -> Tensor:
    """Tokens of a micro-batch that chose each expert, int64 [layers, experts]."""
    # Not bincount: on a GPU the host would wait for the largest choice.
    choices = torch.stack([moe.indices.flatten() for moe in saved_choices(saved)])
    load = choices.new_zeros((choices.shape[0], experts))
    return load.scatter_add_(1, choices, torch.ones_like(choices))


def maximum_violation(load: Tensor) -> Tensor:
    """(largest load - mean) / mean of each layer, [layers] (MaxVio of arXiv:2408.15664)."""
    mean = load.double().mean(dim=1)
    return (load.double().amax(dim=1) - mean) / mean


@torch.no_grad()
def step_biases(model: Transformer, load: Tensor, *, gamma: float) -> None:
    """Move the bias of every expert by gamma towards an equal load; `load` [layers, experts] is
    that of the whole batch. Gates without a bias stay as they are."""
    for block, row in zip(moe_blocks(model), load.double(), strict=True):
        direction = torch.sign(row.mean() - row).float()
        if block.mlp.gate.e_score_correction_bias is not None:
            block.mlp.gate.e_score_correction_bias += gamma * direction


# -- the auxiliary loss ----------------------------------------------------------------------------


class BalanceLossGate(Gate):
    """A gate whose backward adds the gradient of the sequence-wise balance loss."""

    def __init__(self, gate: Gate, *, alpha: float, length: int) -> None:
        """Takes over the weights of `gate`; `length` is that of one sequence."""
        super().__init__(gate.config, recipe=gate.recipe, device=torch.device("meta"))
        self.proj = gate.proj
        self.e_score_correction_bias = gate.e_score_correction_bias
        self.alpha = alpha
        self.length = length

    def input_grad(
        self, weights_grad: Tensor, logits: Tensor, indices: Tensor, x: Tensor, site: Site
    ) -> Tensor:
        """The gradient of the input as in `Gate`, with the balance loss beside what reads the
        weights."""
        x_grad = super().input_grad(weights_grad, logits, indices, x, site)
        _, logits_grad = balance_loss(
            logits, indices, length=self.length, scoring=self.config.scoring_func
        )
        logits_grad = (self.alpha * logits_grad).to(self.recipe.dtype)
        self.proj.weight_grad(logits_grad, x, site)
        return x_grad + self.proj.input_grad(logits_grad, site)


def add_balance_loss(model: Transformer, *, alpha: float, length: int) -> None:
    """Train the gates of `model` on alpha x the balance loss as well (Report: alpha = 0.0001)."""
    for block in moe_blocks(model):
        block.mlp.gate = BalanceLossGate(block.mlp.gate, alpha=alpha, length=length)


def balance_loss(
    logits: Tensor, indices: Tensor, *, length: int, scoring: str
) -> tuple[Tensor, Tensor]:
    """The balance loss, the mean over sequences of sum_i f_i P_i, and its gradient like logits.

    logits [T, experts] and chosen experts [T, K] of sequences of `length` tokens. f_i is the share
    of an expert among the choices of the sequence, 1 where all are equal, and has no gradient; P_i
    the mean of its scores, each token's scores normalised to sum 1 (Report, equations 17 to 20)."""
    value, share, scores = _balance(logits, indices, length=length, scoring=scoring)
    total = scores.sum(dim=1, keepdim=True)
    normed_grad = share.repeat_interleave(length, dim=0) / logits.shape[0]  # [T, experts]
    normed = scores / total
    scores_grad = (normed_grad - (normed_grad * normed).sum(dim=1, keepdim=True)) / total
    return value, gate_scores_backward(scores, scores_grad, scoring)


def balance_value(logits: Tensor, indices: Tensor, *, length: int, scoring: str) -> Tensor:
    """The balance loss alone; arguments as of `balance_loss`."""
    return _balance(logits, indices, length=length, scoring=scoring)[0]


def _balance(
    logits: Tensor, indices: Tensor, *, length: int, scoring: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss; f_i of each sequence [sequences, experts]; and scores like logits."""
    tokens, experts = logits.shape
    sequences = tokens // length
    chosen = torch.zeros_like(logits).scatter_(1, indices, 1.0)
    share = chosen.view(sequences, length, experts).mean(dim=1)
    share *= experts / indices.shape[1]
    scores = gate_scores(logits, scoring)
    normed = scores / scores.sum(dim=1, keepdim=True)
    loss = (share * normed.view(sequences, length, experts).mean(dim=1)).sum(dim=1).mean()
    return loss, share, scores


# -- histograms ------------------------------------------------------------------------------------


def group_imbalance(load: Tensor, *, ranks: int) -> Tensor:
    """Largest over mean load of the ranks when experts lie in order over `ranks`, [layers]."""
    layers, experts = load.shape
    if ranks < 1 or experts % ranks:
        raise ValueError(f"ranks = {ranks} do not divide {experts} experts")
    by_rank = load.double().view(layers, ranks, -1).sum(dim=2)
    return by_rank.amax(dim=1) / by_rank.mean(dim=1)


def group_sizes(experts: int) -> list[int]:
    """Expert-parallel group sizes over which the experts divide evenly, from 2 ranks on."""
    return [ranks for ranks in range(2, experts + 1) if experts % ranks == 0]


def write_expert_load(load: Tensor, config: ModelConfig, path: Path) -> None:
    """Write the load of the main model's layers as CSV: layer, expert, rows. Layers count the
    mixture-of-experts layers from 0. Simulated serving jobs read it as `experts.file`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("layer", "expert", "rows"))
        for layer, row in enumerate(load[: config.num_moe_layers].tolist()):
            writer.writerows((layer, expert, rows) for expert, rows in enumerate(row))


def write_group_imbalance(load: Tensor, config: ModelConfig, path: Path) -> None:
    """Write largest over mean load by layer and expert-parallel group size, as CSV."""
    main = load[: config.num_moe_layers]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("layer", "ep_ranks", "max_over_mean"))
        for ranks in group_sizes(config.n_routed_experts):
            for layer, value in enumerate(group_imbalance(main, ranks=ranks).tolist()):
                writer.writerow((layer, ranks, f"{value:.6f}"))
