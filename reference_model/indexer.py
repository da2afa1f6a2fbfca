"""The lightning indexer of sparse attention: which earlier tokens a query reads.

DeepSeek-V3.2-Exp's report, section 2.1. It reads the hidden state and the attention's query latent;
its key, one for all of its heads, is cached beside the attention's. Two forms. Where products are
FP8, queries and keys are E4M3 with a power of two as scale, and the cache holds 132 bytes per token
and layer: DeepSeek's form less the Hadamard transform, which changes no exact score. Elsewhere
scores are of queries and keys as they are: transformers' form. Both sum in float32.

The choice has no gradient, so that a training step leaves the indexer's weights as they are:
DeepSeek trains them by a loss of their own, which is not part of this model. Letters are those of
model.py; I index heads, D their dimension.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference_model import operators as ops
from reference_model.config import ModelConfig
from reference_model.layers import Angles, HighPrecisionLinear, Linear
from reference_model.operators import Site
from reference_model.precision import Operand, Recipe

_KEY_EPS = 1e-6
"""Epsilon of the key's norm, whatever `rms_norm_eps` says, as in transformers' deepseek_v32."""


class IndexQueries(NamedTuple):
    """What the tokens of a step ask for."""

    values: Tensor
    """[S, Q, I, D]"""
    scales: Tensor | None
    """float32 [S, Q, I] where values are FP8."""
    weights: Tensor
    """Of the heads, float32 [S, Q, I]."""


class LayerNorm(nn.Module):
    """(x - mean) / standard deviation of its columns x weight + bias, both float32."""

    def __init__(self, name: str, columns: int, *, eps: float, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(columns, dtype=torch.float32, device=device))
        self.bias = nn.Parameter(torch.empty(columns, dtype=torch.float32, device=device))
        self.name = name
        self.eps = eps

    def forward(self, x: Tensor, site: Site) -> Tensor:
        """Norm x [T, columns]."""
        return ops.layernorm(x, self.weight, self.bias, eps=self.eps, site=site(self.name))


class Indexer(nn.Module):
    """Projections of one layer's indexer, and its choice."""

    def __init__(self, config: ModelConfig, *, recipe: Recipe, device: torch.device) -> None:
        super().__init__()
        assert config.indexer is not None
        self.sizes = config.indexer
        self.rotated = config.qk_rope_head_dim
        self.halves = not config.indexer_rope_interleave
        self.recipe = recipe
        heads, dim = self.sizes.heads, self.sizes.dim
        self.scale = dim**-0.5 * heads**-0.5
        self.wq_b = Linear(
            "attention.indexer.q_proj", heads * dim, self.sizes.query_latent,
            recipe=recipe, device=device,
        )  # fmt: skip
        self.wk = Linear(
            "attention.indexer.k_proj", dim, config.hidden_size, recipe=recipe, device=device
        )
        self.k_norm = LayerNorm("attention.indexer.k_norm", dim, eps=_KEY_EPS, device=device)
        self.weights_proj = HighPrecisionLinear(
            "attention.indexer.weights_proj", heads, config.hidden_size,
            out_dtype=torch.float32, recipe=recipe, device=device,
        )  # fmt: skip

    def queries(self, latent: Operand, x: Tensor, angles: Angles, site: Site) -> IndexQueries:
        """Make queries of the normed query latent, as products read it, and of hidden states x
        [T, H]."""
        shape = (-1, angles.length, self.sizes.heads)  # [S, Q, I]
        values = self.wq_b(latent, site).view(*shape, self.sizes.dim)
        self._rotate(values, angles, site("attention.indexer.rope_q"))
        weights = self.weights_proj(x, site).view(shape)
        rows = self.recipe.quantize(
            values.view(-1, self.sizes.dim),
            site("attention.indexer.quantize_q"),
            power_of_two_scales=True,
        )
        scales = None if rows.scales is None else rows.scales[:, 0].view(shape)
        return IndexQueries(rows.values.view(values.shape), scales, weights)

    def keys(self, x: Operand, angles: Angles, site: Site) -> Tensor:
        """Make normed and rotated keys [T, D] of hidden states as products read them."""
        keys: Tensor = self.k_norm(self.wk(x, site), site)
        by_position = keys.view(-1, angles.length, 1, self.sizes.dim)
        self._rotate(by_position, angles, site("attention.indexer.rope_k"))
        return keys

    def quantize_keys(self, keys: Tensor, length: int, site: Site) -> Operand:
        """Bring keys [T, D] of whole sequences into the form [S, length, D] that scores read."""
        rows = self.recipe.quantize(
            keys, site("attention.indexer.quantize_k"), power_of_two_scales=True
        )
        scales = None if rows.scales is None else rows.scales[:, 0].view(-1, length)
        return Operand(rows.values.view(-1, length, self.sizes.dim), scales)

    def select(
        self, queries: IndexQueries, keys: Operand, lengths: Tensor | None, site: Site
    ) -> Tensor:
        """Positions of keys [S, length, D] that each query reads, int32 [S, Q, top_k]; queries are
        the last of the tokens, of lengths int32 [S] or of all keys."""
        scores = ops.index_scores(
            *queries[:2], queries.weights, keys.values, keys.scales, lengths,
            scale=self.scale, site=site("attention.indexer.scores"),
        )  # fmt: skip
        return ops.index_topk(scores, top_k=self.sizes.top_k, site=site("attention.indexer.select"))

    def _rotate(self, x: Tensor, angles: Angles, site: str) -> None:
        """Rotate the first dimensions of x [S, Q, heads, D] in place."""
        ops.rope_index(x[..., : self.rotated], *angles, halves=self.halves, site=site)
