"""Inference with a latent KV cache: prefill and decode steps.

Prefill runs the attention core decompressed, as in training; decode runs it absorbed: the key part
of the up-projection is applied to the queries and the value part to the output, so that the core
reads the cache as it is, kv_lora_rank + rope values per token and layer (DeepSeek-V2,
arXiv:2405.04434, section 2.1.2; DeepSeek-V3's report, section 3.4). Both write the same cache.
With sparse attention both run absorbed, over the tokens that the indexer selects.

Against training: weights are cast once and lie as the products read them; the two projections out
of the hidden state are one product (2,112 features in DeepSeek-V3); nothing is kept for a backward.
Decode sends tokens through low-latency dispatch and combine and computes the experts with masked
grouped products. Segments: "attention", "dispatch", "mlp", "combine", and in decode the core and
what follows it in "attention" as well; shared experts are the operators of "mlp" so named.

Letters are those of model.py; Q tokens of one sequence in one step, P room for rows of an expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference_model import decode_operators as decode_ops
from reference_model import operators as ops
from reference_model.blocks import Block, DenseBlock, MoEBlock, ResidualStream
from reference_model.config import ModelConfig
from reference_model.layers import UPDATE, Angles, RMSNorm, rotary_angles
from reference_model.model import Embedding, MultiTokenPrediction, Transformer
from reference_model.moe import ExpertRows, FeedForward, MoE
from reference_model.operators import Site
from reference_model.precision import Operand, Recipe

ATTENTION = Site("forward", "attention")
MLP = Site("forward", "mlp")
HEAD = Site("forward", "head")
MTP = Site("forward", "mtp")


@dataclass(slots=True)
class LatentCache:
    """Keys and values of one layer's past tokens."""

    values: Tensor
    """[S, capacity, kv_lora_rank + rope]: the normed latent and the rotated key."""
    index: Operand | None = None
    """Keys of the indexer [S, capacity, D], where they are FP8 with scales float32 [S, capacity];
    None without sparse attention."""


@dataclass(frozen=True, slots=True)
class Positions:
    """Where the tokens of a step stand in their sequences."""

    index: Tensor
    """int64 [S, Q]"""
    angles: Angles
    """float32 [S, Q, rope / 2] each."""
    lengths: Tensor
    """int32 [S], tokens of each sequence, those of the step included."""


def empty_cache(
    config: ModelConfig, *, sequences: int, capacity: int, recipe: Recipe, device: torch.device
) -> LatentCache:
    """Room for `capacity` tokens of each sequence, in one layer."""

    def zeros(*width: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros((sequences, capacity, *width), dtype=dtype, device=device)

    values = zeros(config.kv_lora_rank + config.qk_rope_head_dim, dtype=recipe.dtype)
    if config.indexer is None:
        return LatentCache(values)
    keys = zeros(config.indexer.dim, dtype=torch.float8_e4m3fn if recipe.fp8 else recipe.dtype)
    scales = zeros(dtype=torch.float32) if recipe.fp8 else None
    return LatentCache(values, Operand(keys, scales))


class _Latents(NamedTuple):
    """What the down projections make of the hidden states."""

    queries: Tensor
    """[T, N x QK]"""
    kv_latent: Tensor
    """Before norm and rotation [T, latent + rope]."""
    residual: Tensor
    """The residual stream [T, H]."""
    x: Tensor
    """Normed hidden states [T, H]."""
    operand: Operand
    """The same as products read them."""
    query_operand: Operand | None
    """The normed query latent as products read it, where there is one."""


class InferenceAttention:
    """Multi-head latent attention with its weights arranged for inference."""

    def __init__(self, block: Block) -> None:
        attention = block.self_attn
        self.norm = block.input_layernorm
        self.attention = attention
        self.config = attention.config
        self.recipe = attention.recipe
        c = self.config
        latent_queries = c.q_lora_rank is not None
        first = attention.q_a_proj if latent_queries else attention.q_proj
        self.query_width = first.weight.shape[0]
        down = torch.cat((first.weight, attention.kv_a_proj_with_mqa.weight))
        self.down = self.recipe.weight(down, UPDATE("attention.down_proj.working_copy"))
        by_head = attention.kv_b_proj.weight.to(self.recipe.dtype).view(
            c.num_attention_heads, c.qk_nope_head_dim + c.v_head_dim, c.kv_lora_rank
        )
        # [N, latent, nope] and [N, V, latent]: what absorbs the up-projection.
        self.key_up = by_head[:, : c.qk_nope_head_dim].mT.contiguous()
        self.value_up = by_head[:, c.qk_nope_head_dim :].contiguous()

    def prefill(
        self, stream: ResidualStream, angles: Angles, index: Tensor, cache: LatentCache
    ) -> tuple[Tensor, Tensor]:
        """Attend within whole prompts [T, H] at positions `index` = 0 .. L-1 [S, L]; returns
        attention output and residual stream [T, H]."""
        c, site = self.config, ATTENTION
        latents = self._latents(stream)
        if cache.index is not None:
            return self._sparse(latents, angles, index, None, cache), latents.residual
        length, heads, nope = angles.length, c.num_attention_heads, c.qk_nope_head_dim
        q = latents.queries.view(-1, length, heads, c.qk_head_dim)
        ops.rope(q[..., nope:], *angles, inverse=False, site=site("attention.rope_q"))
        normed, k_rope = self._cached(latents.kv_latent, angles, index, cache)
        sequences = q.shape[0]
        kv_b = self.attention.kv_b_proj
        kv = kv_b(kv_b.quantize_input(normed, site), site)
        kv = kv.view(sequences, length, heads, nope + c.v_head_dim)
        k = kv.new_empty((sequences, length, heads, c.qk_head_dim))
        ops.copy(kv[..., :nope], k[..., :nope], site=site("attention.k_nope.copy"))
        by_token = k.view(-1, heads, c.qk_head_dim)
        ops.broadcast_heads(k_rope, by_token[..., nope:], site=site("attention.k_rope.broadcast"))
        out, _ = ops.attention_forward(
            q, k, kv[..., nope:], scale=self.attention.scale, site=site("attention.core")
        )
        return self._output(out.view(q.shape[0] * length, -1)), latents.residual

    def decode(
        self, stream: ResidualStream, positions: Positions, cache: LatentCache
    ) -> tuple[Tensor, Tensor]:
        """Attend from the next Q tokens of every sequence [S x Q, H]; returns attention output and
        residual."""
        latents = self._latents(stream)
        angles, index, lengths = positions.angles, positions.index, positions.lengths
        if cache.index is not None:
            return self._sparse(latents, angles, index, lengths, cache), latents.residual
        absorbed = self._absorbed(latents, angles, index, cache)
        out, _ = decode_ops.mla_decode(
            absorbed, cache.values, lengths,
            latent_dim=self.config.kv_lora_rank, scale=self.attention.scale,
            site=ATTENTION("attention.core"),
        )  # fmt: skip
        return self._values(out), latents.residual

    def _sparse(
        self,
        latents: _Latents,
        angles: Angles,
        index: Tensor,
        lengths: Tensor | None,
        cache: LatentCache,
    ) -> Tensor:
        """Tokens at positions `index` [S, Q] over what they select -> attention output [T, H].

        Whole prompts have no `lengths`. Both run the absorbed form, which reads an entry of the
        cache for all heads of a query."""
        indexer, site = self.attention.indexer, ATTENTION
        assert indexer is not None
        assert latents.query_operand is not None
        assert cache.index is not None
        queries = indexer.queries(latents.query_operand, latents.x, angles, site)
        keys = indexer.keys(latents.operand, angles, site)
        append = site("attention.indexer.append_cache")
        cached, scales = cache.index.values, cache.index.scales
        if scales is None:
            rotated = indexer.rotated
            decode_ops.append_cache(
                keys[:, :rotated], keys[:, rotated:], index, cached, site=append
            )
        else:
            ops.append_index(keys, index, cached, scales, site=append)
        absorbed = self._absorbed(latents, angles, index, cache)
        if lengths is None:
            cached = cached[:, : angles.length]
            scales = None if scales is None else scales[:, : angles.length]
        selected = indexer.select(queries, Operand(cached, scales), lengths, site)
        out, _ = ops.sparse_mla(
            absorbed, cache.values, selected,
            latent_dim=self.config.kv_lora_rank, scale=self.attention.scale,
            site=site("attention.core"),
        )  # fmt: skip
        return self._values(out)

    def _absorbed(
        self, latents: _Latents, angles: Angles, index: Tensor, cache: LatentCache
    ) -> Tensor:
        """Queries [S, Q, N, latent + rope] that read the cache as it is; appends to it."""
        c, site = self.config, ATTENTION
        sequences, length = index.shape
        heads, nope, latent = c.num_attention_heads, c.qk_nope_head_dim, c.kv_lora_rank
        q = latents.queries.view(sequences, length, heads, c.qk_head_dim)
        absorbed = q.new_empty((sequences, length, heads, latent + c.qk_rope_head_dim))
        decode_ops.rope_into(
            q[..., nope:], *angles, absorbed[..., latent:], site=site("attention.rope_q")
        )
        self._cached(latents.kv_latent, angles, index, cache)
        tokens = sequences * length
        decode_ops.batched_gemm_into(
            q.view(tokens, heads, -1)[..., :nope].transpose(0, 1),
            self.key_up,
            absorbed.view(tokens, heads, -1)[..., :latent].transpose(0, 1),
            site=site("attention.key_up"),
        )
        return absorbed

    def _values(self, out: Tensor) -> Tensor:
        """What the absorbed core gave [S, Q, N, latent] -> attention output [T, H]."""
        c = self.config
        tokens, heads = out.shape[0] * out.shape[1], c.num_attention_heads
        values = out.new_empty((tokens, heads, c.v_head_dim))
        decode_ops.batched_gemm_into(
            out.view(tokens, heads, c.kv_lora_rank).transpose(0, 1),
            self.value_up,
            values.transpose(0, 1),
            site=ATTENTION("attention.value_up"),
        )
        return self._output(values.view(tokens, -1))

    def _latents(self, stream: ResidualStream) -> _Latents:
        """The stream's norm through the down projections."""
        site, attention = ATTENTION, self.attention
        x, residual = self.norm.add(stream.update, stream.residual, site)
        operand = self.recipe.quantize(x, site("attention.qkv_a_proj.quantize_input"))
        joined = self.recipe.gemm(operand, self.down, site("attention.qkv_a_proj"))
        queries, kv_latent = joined[:, : self.query_width], joined[:, self.query_width :]
        query_operand = None
        if self.config.q_lora_rank is not None:
            normed = attention.q_a_layernorm(queries, site)
            layer = attention.q_b_proj
            query_operand = layer.quantize_input(normed, site)
            queries = layer(query_operand, site)
        return _Latents(queries, kv_latent, residual, x, operand, query_operand)

    def _cached(
        self, kv_latent: Tensor, angles: Angles, index: Tensor, cache: LatentCache
    ) -> tuple[Tensor, Tensor]:
        """Normed latent [T, latent] and rotated key [T, rope] of the tokens at positions `index`
        [S, Q], which the cache then holds."""
        c, site = self.config, ATTENTION
        normed = self.attention.kv_a_layernorm(kv_latent[:, : c.kv_lora_rank], site)
        k_rope = kv_latent.new_empty((*index.shape, 1, c.qk_rope_head_dim))
        decode_ops.rope_into(
            kv_latent[:, c.kv_lora_rank :].view(k_rope.shape), *angles, k_rope,
            site=site("attention.rope_k"),
        )  # fmt: skip
        by_token = k_rope.view(-1, c.qk_rope_head_dim)
        decode_ops.append_cache(
            normed, by_token, index, cache.values, site=site("attention.append_cache")
        )
        return normed, by_token

    def _output(self, flat: Tensor) -> Tensor:
        """Attention output by head [T, N x V] -> [T, H]."""
        layer, site = self.attention.o_proj, ATTENTION
        out: Tensor = layer(layer.quantize_input(flat, site), site)
        return out


class InferenceExperts:
    """The mixture of experts of one layer with its weights as the products read them."""

    def __init__(self, moe: MoE) -> None:
        self.moe = moe
        self.recipe = moe.recipe
        experts = moe.experts
        self.local_experts = experts.local_experts
        self.gate_up, self.down = (
            self.recipe.weight(layer.weight, UPDATE(f"{layer.name}.working_copy"))
            for layer in (experts.gate_up_proj, experts.down_proj)
        )

    def prefill(self, x: Tensor, rows: ExpertRows) -> Tensor:
        """Send x [T, H] through the experts by normal dispatch and combine; returns [T, H]."""
        moe, recipe = self.moe, self.recipe
        routed = moe.route(x, ATTENTION)
        shared = feed_forward(moe.shared_experts, routed.x)
        received = moe.dispatch(routed, rows, Site("forward", "dispatch"))
        row_source, row_weights, choice_rows, group_sizes = ops.expert_mapping(
            received.indices, received.weights,
            rows=received.rows.expanded, local_experts=self.local_experts,
            site=MLP("experts.mapping"),
        )  # fmt: skip
        values, scales = ops.permute(
            received.x.values, received.x.scales, row_source, site=MLP("experts.permute")
        )
        operand = Operand(values, None if received.x.scales is None else scales)
        gate_up = recipe.grouped_gemm(
            operand, self.gate_up, group_sizes, MLP("experts.gate_up_proj")
        )
        activated = recipe.weighted_swiglu(gate_up, row_weights, MLP("experts.swiglu"))
        out = recipe.grouped_gemm(activated, self.down, group_sizes, MLP("experts.down_proj"))
        summed = ops.unpermute(out, choice_rows, site=MLP("experts.unpermute"))
        return moe.combine(summed, shared, received.layout)

    def decode(self, x: Tensor, rows: int) -> Tensor:
        """Send x [T, H] through the experts by low-latency dispatch and combine; returns [T, H].

        Args:
            rows: R that the local experts receive, known before the rows themselves.
        """
        moe, recipe = self.moe, self.recipe
        _, indices, weights = moe.gate(x, ATTENTION)
        dispatch = Site("forward", "dispatch")
        values, scales = decode_ops.dispatch_send(
            x, indices, fp8=recipe.fp8, kernels=recipe.kernels, site=dispatch("moe.dispatch_send")
        )
        shared_x = recipe.quantize(x, MLP("shared_experts.quantize_input"))
        shared = feed_forward(moe.shared_experts, shared_x)
        packed, packed_scales, counts, source = decode_ops.dispatch_receive(
            values, scales, indices,
            rows=rows, room=x.shape[0], local_experts=self.local_experts,
            site=dispatch("moe.dispatch_receive"),
        )  # fmt: skip
        gate_up = self._masked(
            packed, packed_scales, self.gate_up, counts=counts, rows=rows, name="gate_up_proj"
        )
        activated, tiles = decode_ops.masked_swiglu(
            gate_up, counts,
            rows=rows, fp8=recipe.fp8, kernels=recipe.kernels, site=MLP("experts.swiglu"),
        )  # fmt: skip
        out = self._masked(activated, tiles, self.down, counts=counts, rows=rows, name="down_proj")
        combine = Site("forward", "combine")
        sent = decode_ops.combine_send(out, counts, rows=rows, site=combine("moe.combine_send"))
        routed = decode_ops.combine_receive(
            sent, source, weights, counts, site=combine("moe.combine_receive")
        )
        return ops.add(routed, shared, site=combine("moe.add_shared"))

    def _masked(
        self,
        values: Tensor,
        scales: Tensor,
        weight: Operand,
        *,
        counts: Tensor,
        rows: int,
        name: str,
    ) -> Tensor:
        return decode_ops.masked_grouped_gemm(
            values, weight.values, scales if self.recipe.fp8 else None, weight.scales, counts,
            rows=rows, out_dtype=self.recipe.dtype, kernels=self.recipe.kernels,
            site=MLP(f"experts.{name}"),
        )  # fmt: skip


def feed_forward(layer: FeedForward, x: Operand) -> Tensor:
    """Run a dense feed-forward on x [T, H], as the product reads it; returns [T, H]."""
    return layer.down(layer.gate_up_proj(x, MLP), MLP)


class InferenceBlock:
    """One layer, dense or mixture of experts."""

    def __init__(self, block: DenseBlock | MoEBlock) -> None:
        self.attention = InferenceAttention(block)
        self.norm = block.post_attention_layernorm
        self.block = block
        self.experts = InferenceExperts(block.mlp) if isinstance(block, MoEBlock) else None

    def prefill(
        self,
        stream: ResidualStream,
        angles: Angles,
        index: Tensor,
        cache: LatentCache,
        rows: ExpertRows,
    ) -> ResidualStream:
        """Whole prompts [T, H] at positions `index` = 0 .. L-1 [S, L]; fills the cache."""
        update, residual = self.attention.prefill(stream, angles, index, cache)
        normed, total = self.norm.add(update, residual, ATTENTION)
        if self.experts is None:
            return ResidualStream(total, self._dense(normed))
        return ResidualStream(total, self.experts.prefill(normed, rows))

    def decode(
        self, stream: ResidualStream, positions: Positions, cache: LatentCache, rows: int
    ) -> ResidualStream:
        """The next tokens [T, H]; appends them to the cache."""
        update, residual = self.attention.decode(stream, positions, cache)
        normed, total = self.norm.add(update, residual, ATTENTION)
        if self.experts is None:
            return ResidualStream(total, self._dense(normed))
        return ResidualStream(total, self.experts.decode(normed, rows))

    def _dense(self, x: Tensor) -> Tensor:
        assert isinstance(self.block, DenseBlock)
        layer = self.block.mlp
        return feed_forward(layer, layer.gate_up_proj.quantize_input(x, MLP))


def next_tokens(norm: RMSNorm, head: nn.Module, stream: ResidualStream) -> tuple[Tensor, Tensor]:
    """Norm the stream's rows [T, H], apply the output head and sample greedily; returns logits
    [T, V] and the likeliest token of each, int64 [T]."""
    normed, _ = norm.add(stream.update, stream.residual, HEAD)
    logits: Tensor = head(normed, HEAD)
    return logits, decode_ops.sample(logits, site=HEAD("head.sample"))


def draft_input(
    mtp: MultiTokenPrediction, hidden: Tensor, tokens: Tensor, embedding: Embedding
) -> ResidualStream:
    """What the multi-token prediction module's layer reads: normed stream of the main model [T, H]
    and the tokens that follow it, int64 [T], joined and projected."""
    embedded = embedding(tokens)
    joined = ops.concat(mtp.enorm(embedded, MTP), mtp.hnorm(hidden, MTP), site=MTP("mtp.concat"))
    projected = mtp.eh_proj(mtp.eh_proj.quantize_input(joined, MTP), MTP)
    return ResidualStream(projected, None)


class InferenceModel:
    """A Transformer that serves: all experts on one device."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.config = model.config
        self.blocks = [InferenceBlock(block) for block in model.blocks]

    def new_caches(self, *, sequences: int, capacity: int) -> list[LatentCache]:
        """One empty cache a layer."""
        return [
            empty_cache(
                self.config,
                sequences=sequences,
                capacity=capacity,
                recipe=self.model.recipe,
                device=self.model.device,
            )
            for _ in self.blocks
        ]

    @torch.no_grad()
    def prefill(self, tokens: Tensor, caches: list[LatentCache]) -> Tensor:
        """Read prompts int64 [S, L]; returns logits of the token after each prompt [S, V]."""
        sequences, length = tokens.shape
        angles = rotary_angles(self.config, length, device=self.model.device)
        rows = ExpertRows(
            received=tokens.numel(), expanded=tokens.numel() * self.config.num_experts_per_tok
        )
        stream = ResidualStream(self.model.embed_tokens(tokens.reshape(-1)), None)
        index = torch.arange(length, device=self.model.device).expand(sequences, -1)
        for block, cache in zip(self.blocks, caches, strict=True):
            stream = block.prefill(stream, angles, index, cache, rows)
        last = torch.arange(1, sequences + 1, device=self.model.device) * length - 1
        assert stream.update is not None
        ends = ResidualStream(stream.residual[last], stream.update[last])
        return next_tokens(self.model.norm, self.model.lm_head, ends)[0]

    @torch.no_grad()
    def decode(self, tokens: Tensor, lengths: Tensor, caches: list[LatentCache]) -> Tensor:
        """Read the next Q tokens of each sequence, int64 [S, Q], after `lengths` int [S] cached
        ones; returns logits of the token after each [S, Q, V]."""
        rows = tokens.numel() * self.config.num_experts_per_tok
        capacity = caches[0].values.shape[1]
        positions = decode_positions(
            self.config, lengths, tokens.shape[1], capacity, device=self.model.device
        )
        stream = ResidualStream(self.model.embed_tokens(tokens.reshape(-1)), None)
        for block, cache in zip(self.blocks, caches, strict=True):
            stream = block.decode(stream, positions, cache, rows)
        logits, _ = next_tokens(self.model.norm, self.model.lm_head, stream)
        return logits.view(*tokens.shape, -1)


def decode_positions(
    config: ModelConfig, lengths: Tensor, queries: int, capacity: int, *, device: torch.device
) -> Positions:
    """Positions of the next `queries` tokens of sequences that hold `lengths` tokens, int [S].

    Raises ValueError where the cache has no room for them; lengths on a GPU are not looked at, as
    the host would wait for them."""
    index = lengths[:, None].long() + torch.arange(queries, device=device)
    if index.device.type == "cpu" and int(index.max()) >= capacity:
        raise ValueError(
            f"a sequence of {int(lengths.max())} tokens and {queries} new ones does not fit a "
            f"cache of {capacity}"
        )
    table = rotary_angles(config, capacity, device=device)
    angles = Angles(table.cos[index], table.sin[index])
    return Positions(index=index, angles=angles, lengths=(lengths + queries).int())
