"""Multi-head latent attention, forward and backward.

DeepSeek-V3 Technical Report (arXiv:2412.19437), section 2.1.1. Letters for shapes are those of
model.py; QK and V are the query-key and the value dimension of a head.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference_model import operators as ops
from reference_model.config import ModelConfig
from reference_model.indexer import Indexer
from reference_model.layers import (
    Angles,
    Linear,
    RMSNorm,
    WeightGrad,
    attention_scale,
)
from reference_model.operators import Site
from reference_model.precision import Operand, Recipe
from reference_model.split import WHOLE, Split
from reference_model.tensor_parallel import tensor_group

_LATENT_EPS = 1e-6
"""Epsilon of the norms of both latents, whatever `rms_norm_eps` says: so DeepSeek's published
modeling code and transformers' deepseek_v3 have it."""


@dataclass(slots=True)
class SavedAttention:
    """What the backward of multi-head latent attention needs."""

    queries: Tensor
    """The query latent [T, q_lora_rank], or rotated queries [S, L, N, QK] where there is none."""
    kv_latent: Tensor | None
    """[T, kv_lora_rank + rope], before norm and rotation; None where `heads` are kept."""
    heads: "_Heads | None"
    """Queries, keys and values of all heads; None where the up-projection is recomputed."""
    out: Operand | None
    """Attention output [T, N x V], in E5M6 in the FP8 recipe; None where it is recomputed."""
    log_sum: Tensor | None
    """Log-sum-exp of the scores [S, N, L]; None likewise."""
    selected: Tensor | None
    """Positions that each query reads, int32 [S, L, top_k], with sparse attention."""


class MultiHeadLatentAttention(nn.Module):
    """Queries, keys and values through low-rank latents; one rotary key is shared by all heads.

    With an indexer each query reads the tokens that it selects: here by a mask on dense products,
    as transformers has it.

    Where heads are split, a GPU projects its own tokens to the latents and expands those of all
    into its own heads; T are its own tokens outside, and those of all GPUs between the two."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        recipe: Recipe,
        device: torch.device,
        split: Split = WHOLE,
    ) -> None:
        super().__init__()
        self.config = config
        self.group = tensor_group(split)
        self.recipe = recipe
        self.scale = attention_scale(config)

        def linear(name: str, out_features: int, in_features: int) -> Linear:
            return Linear(
                f"attention.{name}", out_features, in_features, recipe=recipe, device=device
            )

        def norm(name: str, columns: int) -> RMSNorm:
            return RMSNorm(f"attention.{name}", columns, eps=_LATENT_EPS, device=device)

        c = config
        heads = self.heads = c.num_attention_heads // split.tensor
        if c.q_lora_rank is None:
            self.q_proj = linear("q_proj", heads * c.qk_head_dim, c.hidden_size)
        else:
            self.q_a_proj = linear("q_a_proj", c.q_lora_rank, c.hidden_size)
            self.q_a_layernorm = norm("q_a_norm", c.q_lora_rank)
            self.q_b_proj = linear("q_b_proj", heads * c.qk_head_dim, c.q_lora_rank)
        self.kv_a_proj_with_mqa = linear(
            "kv_a_proj", c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size
        )
        self.kv_a_layernorm = norm("kv_a_norm", c.kv_lora_rank)
        self.kv_b_proj = linear(
            "kv_b_proj", heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank
        )
        self.o_proj = linear("o_proj", c.hidden_size, heads * c.v_head_dim)
        self.indexer = None if c.indexer is None else Indexer(config, recipe=recipe, device=device)

    def forward(
        self,
        x: Tensor,
        angles: Angles,
        site: Site,
        *,
        keep_heads: bool = False,
        keep_out: bool = True,
    ) -> tuple[Tensor, SavedAttention]:
        """Attend from normed hidden states [T, H]; returns the output [T, H].

        Args:
            keep_heads: queries, keys and values for backward, which else expands latents again.
            keep_out: the output of the core for backward, which else computes it again.
        """
        latent = self.config.q_lora_rank is not None
        query_layer = self.q_a_proj if latent else self.q_proj
        operand = query_layer.quantize_input(x, site)
        if not latent:
            operand = self.group.gather_operand(operand, "attention.q_input", site)
        queries = query_layer(operand, site)
        kv_layer = self.kv_a_proj_with_mqa
        kv_latent = kv_layer(kv_layer.quantize_input(x, site), site)
        q, q_normed, q_operand = self._expand_queries(queries, angles, site)
        k, v, kv, kv_normed = self._expand_keys_values(kv_latent, angles, site)
        selected = None
        if self.indexer is not None and q_operand is not None:
            index_queries = self.indexer.queries(q_operand, x, angles, site)
            keys = self.indexer.keys(operand, angles, site)
            selected = self.indexer.select(
                index_queries, self.indexer.quantize_keys(keys, angles.length, site), None, site
            )
        out, log_sum = self._core(q, k, v, selected, site)
        flat = out.view(out.shape[0] * out.shape[1], -1)  # [T, N x V]
        kept = None
        if keep_out:
            kept = self.recipe.keep_attention_output(flat, site("attention.core.save_output"))
        # Kept and consumed both in powers of two, so that backward can turn the tiles around
        # without a further error (Report, 3.3.3).
        operand = self.o_proj.quantize_input(flat, site, power_of_two_scales=True)
        summed = self.group.scatter(self.o_proj(operand, site), "attention.o_proj", site)
        update = self.recipe.scale_attention_output(summed, site("attention.o_proj.scale"))
        return update, SavedAttention(
            queries=queries if latent else q,
            kv_latent=None if keep_heads else kv_latent,
            heads=_Heads(q, q_normed, k, v, kv, kv_normed) if keep_heads else None,
            out=kept,
            log_sum=log_sum if keep_out else None,
            selected=selected,
        )

    def _core(
        self, q: Tensor, k: Tensor, v: Tensor, selected: Tensor | None, site: Site
    ) -> tuple[Tensor, Tensor]:
        """Queries, keys and values -> output [S, L, N, V], log-sum-exp of the scores [S, N, L]."""
        core = site("attention.core")
        if selected is None:
            return ops.attention_forward(q, k, v, scale=self.scale, site=core)
        return ops.attention_masked_forward(q, k, v, selected, scale=self.scale, site=core)

    def _heads_again(self, saved: SavedAttention, angles: Angles, site: Site) -> "_Heads":
        """Queries, keys and values of all heads, as kept or expanded once more."""
        if saved.heads is not None:
            return saved.heads
        assert saved.kv_latent is not None
        if self.config.q_lora_rank is None:
            q, q_normed = saved.queries, None
        else:
            q, q_normed, _ = self._expand_queries(saved.queries, angles, site)
        return _Heads(q, q_normed, *self._expand_keys_values(saved.kv_latent, angles, site))

    def core_input_grad(
        self, grad: Tensor, saved: SavedAttention, angles: Angles, site: Site
    ) -> tuple[Tensor, Tensor, list[WeightGrad]]:
        """Turn the output gradient [T, H] into the gradients of what the layers that read x wrote:
        query latent (or queries) and key-value latent."""
        c = self.config
        grad = self.recipe.scale_attention_output(grad, site("attention.o_proj.scale_grad"))
        grad = self.group.gather(grad, "attention.o_proj", site)
        tokens = grad.shape[0]
        again = replace(site, recompute=True)
        if saved.out is None:
            q, q_normed, k, v, kv, kv_normed = self._heads_again(saved, angles, again)
            core_out, log_sum = self._core(q, k, v, saved.selected, again)
            out = core_out.view(tokens, -1)
            out_grad, o_weight_grad = self.o_proj.backward(grad, out, site)
        else:
            assert saved.log_sum is not None
            log_sum = saved.log_sum
            out = self.recipe.kept_attention_output(saved.out, site("attention.core.load_output"))
            out_grad, o_weight_grad = self.o_proj.backward(grad, out, site)
            q, q_normed, k, v, kv, kv_normed = self._heads_again(saved, angles, again)

        by_head = (*q.shape[:3], c.v_head_dim)
        delta, q_grad_total = ops.attention_backward_preprocess(
            out.view(by_head),
            out_grad.view(by_head),
            qk_dim=c.qk_head_dim,
            site=site("attention.core.preprocess_grad"),
        )
        core = site("attention.core.input_grad")
        gradients = (out_grad.view(by_head), log_sum, delta)
        if saved.selected is None:
            k_grad, v_grad = ops.attention_backward(
                q_grad_total, q, k, v, *gradients, scale=self.scale, site=core
            )
        else:
            k_grad, v_grad = ops.attention_masked_backward(
                q_grad_total, q, k, v, saved.selected, *gradients, scale=self.scale, site=core
            )
        q_grad = q_grad_total
        if q_grad.dtype != self.recipe.dtype:
            q_grad = ops.cast(
                q_grad, dtype=self.recipe.dtype, site=site("attention.core.convert_query_grad")
            )

        weight_grads: list[WeightGrad] = [o_weight_grad]
        rope_site = site("attention.rope_q.input_grad")
        ops.rope(q_grad[..., c.qk_nope_head_dim :], *angles, inverse=True, site=rope_site)
        queries_grad = q_grad.view(tokens, -1)  # [T, N x QK]
        if q_normed is not None:
            q_normed_grad, q_weight_grad = self.q_b_proj.backward(queries_grad, q_normed, site)
            weight_grads.append(q_weight_grad)
        kv_normed_grad, kv_weight_grad, k_rope_grad = self._keys_values_input_grad(
            k_grad, v_grad, kv_normed, angles, site
        )
        weight_grads.insert(1, kv_weight_grad)  # the published order: o, kv_b, q_b
        kv_normed_grad = self.group.scatter(kv_normed_grad, "attention.kv_latent", site)
        k_rope_grad = self.group.scatter(k_rope_grad, "attention.k_rope", site)
        kv_grad = self.kv_a_layernorm.backward(kv_normed_grad, kv, site)
        if q_normed is not None:
            q_normed_grad = self.group.scatter(q_normed_grad, "attention.q_latent", site)
            queries_grad = self.q_a_layernorm.backward(q_normed_grad, saved.queries, site)
        kv_latent_grad = ops.concat(kv_grad, k_rope_grad, site=site("attention.kv_latent.concat"))
        return queries_grad, kv_latent_grad, weight_grads

    def latent_input_grad(
        self, queries_grad: Tensor, kv_latent_grad: Tensor, x: Tensor, site: Site
    ) -> tuple[Tensor, list[WeightGrad]]:
        """Turn the gradients that `core_input_grad` returned, and x [T, H] again, into the gradient
        of x."""
        query_layer = self.q_proj if self.config.q_lora_rank is None else self.q_a_proj
        from_kv, kv_weight_grad = self.kv_a_proj_with_mqa.backward(kv_latent_grad, x, site)
        if self.config.q_lora_rank is None:
            x = self.group.gather(x, "attention.q_input", site)
        from_q, q_weight_grad = query_layer.backward(queries_grad, x, site)
        if self.config.q_lora_rank is None:
            from_q = self.group.scatter(from_q, "attention.q_input", site)
        x_grad = ops.add(from_q, from_kv, site=site("attention.add_input_grads"))
        return x_grad, [kv_weight_grad, q_weight_grad]

    def _expand_queries(
        self, queries: Tensor, angles: Angles, site: Site
    ) -> tuple[Tensor, Tensor | None, Operand | None]:
        """Query latent [T, q_lora_rank] -> rotated queries [S, L, N, QK], and the normed latent as
        it is and as products read it.
        Without a latent: queries [T, N x QK] -> the same, rotated in place."""
        c = self.config
        normed, operand = None, None
        if c.q_lora_rank is not None:
            normed = self.group.gather(
                self.q_a_layernorm(queries, site), "attention.q_latent", site
            )
            operand = self.q_b_proj.quantize_input(normed, site)
            queries = self.q_b_proj(operand, site)
        q = queries.view(-1, angles.length, self.heads, c.qk_head_dim)
        rotated = q[..., c.qk_nope_head_dim :]
        ops.rope(rotated, *angles, inverse=False, site=site("attention.rope_q"))
        return q, normed, operand

    def _expand_keys_values(
        self, kv_latent: Tensor, angles: Angles, site: Site
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[T, kv_lora_rank + rope] -> keys [S, L, N, QK], values [S, L, N, V], and the latent
        [T, kv_lora_rank] as it is and normed."""
        c = self.config
        tokens, heads, nope = kv_latent.shape[0], self.heads, c.qk_nope_head_dim
        latent = kv_latent.new_empty((tokens, c.kv_lora_rank))
        ops.copy(kv_latent[:, : c.kv_lora_rank], latent, site=site("attention.kv_latent.copy"))
        normed = self.group.gather(self.kv_a_layernorm(latent, site), "attention.kv_latent", site)
        k_rope = kv_latent.new_empty((tokens, c.qk_rope_head_dim))
        ops.copy(kv_latent[:, c.kv_lora_rank :], k_rope, site=site("attention.k_rope.copy"))
        k_rope = self.group.gather(k_rope, "attention.k_rope", site)
        kv = self.kv_b_proj(self.kv_b_proj.quantize_input(normed, site), site)
        kv = kv.view(-1, angles.length, heads, nope + c.v_head_dim)  # [S, L, N, nope + V]
        by_position = k_rope.view(-1, angles.length, 1, c.qk_rope_head_dim)
        ops.rope(by_position, *angles, inverse=False, site=site("attention.rope_k"))
        k = kv.new_empty((*kv.shape[:3], c.qk_head_dim))
        ops.copy(kv[..., :nope], k[..., :nope], site=site("attention.k_nope.copy"))
        by_token = k.view(k_rope.shape[0], heads, c.qk_head_dim)
        ops.broadcast_heads(k_rope, by_token[..., nope:], site=site("attention.k_rope.broadcast"))
        return k, kv[..., nope:], latent, normed

    def _keys_values_input_grad(
        self, k_grad: Tensor, v_grad: Tensor, normed: Tensor, angles: Angles, site: Site
    ) -> tuple[Tensor, WeightGrad, Tensor]:
        """Gradients of keys and values -> gradients of the normed latent and of the rotary key."""
        c = self.config
        tokens, nope = normed.shape[0], c.qk_nope_head_dim
        by_token = k_grad.view(tokens, self.heads, c.qk_head_dim)
        k_rope_grad = ops.sum_heads(by_token[..., nope:], site=site("attention.k_rope.sum_grads"))
        by_position = k_rope_grad.view(-1, angles.length, 1, c.qk_rope_head_dim)
        rope_site = site("attention.rope_k.input_grad")
        ops.rope(by_position, *angles, inverse=True, site=rope_site)
        kv_grad = k_grad.new_empty((*k_grad.shape[:3], nope + c.v_head_dim))
        ops.copy(k_grad[..., :nope], kv_grad[..., :nope], site=site("attention.k_nope.copy_grad"))
        ops.copy(v_grad, kv_grad[..., nope:], site=site("attention.v.copy_grad"))
        normed_grad, weight_grad = self.kv_b_proj.backward(kv_grad.view(tokens, -1), normed, site)
        return normed_grad, weight_grad, k_rope_grad


class _Heads(NamedTuple):
    """Queries, keys and values of all heads, with what their backward needs."""

    q: Tensor
    """[S, L, N, QK]"""
    q_normed: Tensor | None
    """[T, q_lora_rank]"""
    k: Tensor
    """[S, L, N, QK]"""
    v: Tensor
    """[S, L, N, V]"""
    kv: Tensor
    """Their latent [T, kv_lora_rank]."""
    kv_normed: Tensor
