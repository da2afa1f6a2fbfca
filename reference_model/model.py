"""DeepSeek-V3 (arXiv:2412.19437): the whole model, with losses and gradients.

Readable first and on one device, which holds every expert; on the meta device the same code shows
what one rank of an expert-parallel group issues. Each layer has three passes, written out kernel by
kernel: `forward`, `input_grad` (which recomputes what `Block.recompute` says), and the weight
gradients, which `input_grad` returns as objects to run at once or later. The passes of a
mixture-of-experts layer fall into the segments that DualPipe schedules:

    forward      attention -> dispatch -> mlp -> combine
    input_grad   combine -> mlp -> dispatch -> attention
    weight_grad  mlp, attention

Shape legend
    T  tokens of the micro-batch, sequence after sequence     H  hidden size
    S  sequences, L tokens of one (T = S x L)                 N  attention heads
    D  tokens received by dispatch, one a (token, rank)       I  intermediate size
    R  rows of the local experts, one a (token, expert)       E  local experts
    K  experts a token chooses                                V  vocabulary
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from reference_model import operators as ops
from reference_model.attention import MultiHeadLatentAttention, SavedAttention
from reference_model.config import ModelConfig
from reference_model.layers import (
    Angles,
    HighPrecisionLinear,
    Linear,
    RMSNorm,
    Weight,
    WeightGrad,
    gradient,
    rotary_angles,
)
from reference_model.moe import ExpertRows, FeedForward, MoE, SavedMoE
from reference_model.operators import Site
from reference_model.precision import Operand, Recipe
from reference_model.split import WHOLE, Split
from reference_model.tensor_parallel import tensor_group


@dataclass(slots=True)
class WeightGrads:
    """The weight gradients of one layer and micro-batch, put off."""

    of_segment: dict[str, list[WeightGrad]]
    """By segment, in the order to run them."""

    def run(self) -> None:
        """Run all of them."""
        for segment, pending in self.of_segment.items():
            for weight_grad in pending:
                weight_grad(Site("weight_grad", segment))


# -- layers ----------------------------------------------------------------------------------------


class ResidualStream(NamedTuple):
    """The residual stream between two layers, whose sum the next layer's norm computes."""

    residual: Tensor
    """[T, H]"""
    update: Tensor | None
    """What the last layer adds [T, H]; None where nothing is to be added."""


class Normed(NamedTuple):
    """What both norms of a layer wrote [T, H]."""

    attention: Tensor
    """Input of attention."""
    feed_forward: Tensor
    """Input of the feed-forward."""
    residual: Tensor
    """Residual stream before the feed-forward."""


@dataclass(slots=True)
class SavedBlockAttention:
    """What the backward of a layer's first half needs."""

    residual: Tensor
    """Residual stream that entered the layer [T, H]."""
    update: Tensor | None
    """What attention added to it [T, H]; None where `normed` is kept."""
    attention: SavedAttention
    normed: Normed | None
    """None where norms are recomputed."""


FeedForwardT = TypeVar("FeedForwardT")


@dataclass(slots=True)
class SavedBlock(Generic[FeedForwardT]):
    """What the backward of a layer needs."""

    attention: SavedBlockAttention
    feed_forward: FeedForwardT
    """Gate and up projections of a dense one, `SavedMoE` of a mixture of experts."""


SavedLayer = SavedBlock[Operand] | SavedBlock[SavedMoE] | Tensor
"""The same of any layer; of one that is recomputed whole the stream that entered it [T, H]."""


class Block(nn.Module):
    """A transformer layer's first half: norm, attention, and the norm before the feed-forward."""

    recompute = "published"
    """What backward computes again, one of trace.RECOMPUTATIONS."""

    def __init__(
        self, config: ModelConfig, *, recipe: Recipe, device: torch.device, split: Split = WHOLE
    ) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm("attention.input_norm", hidden, eps=eps, device=device)
        self.self_attn = MultiHeadLatentAttention(config, recipe=recipe, device=device, split=split)
        self.post_attention_layernorm = RMSNorm("mlp_norm", hidden, eps=eps, device=device)

    def attention(
        self, stream: ResidualStream, angles: Angles, site: Site
    ) -> tuple[Tensor, Tensor, SavedBlockAttention]:
        """Run the first half; returns the feed-forward's normed input [T, H], and the residual
        stream [T, H]."""
        x, residual = self.input_layernorm.add(stream.update, stream.residual, site)
        keeps = self.recompute in ("none", "layer")
        update, saved = self.self_attn(
            x, angles, site, keep_heads=keeps, keep_out=self.recompute != "attention"
        )
        normed, total = self.post_attention_layernorm.add(update, residual, site)
        if keeps:
            kept = SavedBlockAttention(residual, None, saved, Normed(x, normed, total))
        else:
            kept = SavedBlockAttention(residual, update, saved, None)
        return normed, total, kept

    def feed_forward_input(self, saved: SavedBlockAttention, site: Site) -> tuple[Tensor, Tensor]:
        """The feed-forward's normed input [T, H], and the residual stream before it."""
        if saved.normed is not None:
            return saved.normed.feed_forward, saved.normed.residual
        again = replace(site, recompute=True)
        return self.post_attention_layernorm.add(saved.update, saved.residual, again)

    def attention_input_grad(
        self,
        normed_grad: Tensor,
        residual_grad: Tensor,
        *,
        residual: Tensor,
        saved: SavedBlockAttention,
        angles: Angles,
        site: Site,
    ) -> tuple[Tensor, list[WeightGrad]]:
        """Turn the gradients of what `attention` returned, and its residual stream again, into the
        gradient of both parts of the stream that entered the layer [T, H]."""
        grad = self.post_attention_layernorm.add_backward(
            normed_grad, residual_grad, residual, site
        )
        queries_grad, kv_latent_grad, up_grads = self.self_attn.core_input_grad(
            grad, saved.attention, angles, site
        )
        if saved.normed is None:
            x = self.input_layernorm(saved.residual, replace(site, recompute=True))
        else:
            x = saved.normed.attention
        x_grad, down_grads = self.self_attn.latent_input_grad(queries_grad, kv_latent_grad, x, site)
        stream_grad = self.input_layernorm.add_backward(x_grad, grad, saved.residual, site)
        return stream_grad, up_grads + down_grads


class DenseBlock(Block):
    """A layer whose feed-forward is dense."""

    def __init__(
        self, config: ModelConfig, *, recipe: Recipe, device: torch.device, split: Split = WHOLE
    ) -> None:
        super().__init__(config, recipe=recipe, device=device, split=split)
        self.mlp = FeedForward(
            "mlp", config, config.intermediate_size, recipe=recipe, device=device, split=split
        )

    def forward(
        self, stream: ResidualStream, angles: Angles, rows: ExpertRows
    ) -> tuple[ResidualStream, SavedBlock[Operand] | Tensor]:
        """One layer; `rows` matter to mixture-of-experts layers only."""
        stream, saved = self._run(stream, angles, "forward")
        whole = self.recompute == "layer"
        return stream, saved.attention.residual if whole else saved

    def _run(
        self, stream: ResidualStream, angles: Angles, phase: str
    ) -> tuple[ResidualStream, SavedBlock[Operand]]:
        normed, residual, saved = self.attention(stream, angles, Site.of(phase, "attention"))
        site = Site.of(phase, "mlp")
        gate_up_proj = self.mlp.gate_up_proj
        x = self.mlp.gather(gate_up_proj.quantize_input(normed, site), "input", site)
        gate_up = gate_up_proj(x, site)
        update = self.mlp.down(gate_up, site)
        return ResidualStream(residual, update), SavedBlock(saved, self.mlp.save(gate_up, site))

    def recomputed(
        self, saved: SavedBlock[Operand] | Tensor, angles: Angles, rows: ExpertRows
    ) -> SavedBlock[Operand]:
        """What backward needs, from the layer's forward once more where all that was kept is the
        stream that entered it."""
        if isinstance(saved, SavedBlock):
            return saved
        return self._run(ResidualStream(saved, None), angles, "recompute")[1]

    def input_grad(
        self, grad: Tensor, saved: SavedBlock[Operand] | Tensor, angles: Angles, rows: ExpertRows
    ) -> tuple[Tensor, WeightGrads]:
        """Turn the gradient of both parts of the stream [T, H] into that of the stream that
        entered."""
        saved = self.recomputed(saved, angles, rows)
        site = Site("input_grad", "mlp")
        # In powers of two: the weight gradient turns the tiles around (see operators/casts.py).
        operand = self.mlp.down_proj.quantize_grad(grad, site, power_of_two_scales=True)
        operand = self.mlp.gather(operand, "output", site)
        gate_up_grad, down = self.mlp.down_input_grad(operand, saved.feed_forward, site)
        normed, residual = self.feed_forward_input(saved.attention, site)
        x = self.mlp.gather(Operand(normed, None), "input", replace(site, recompute=True))
        normed_grad, gate_up = self.mlp.gate_up_backward(gate_up_grad, x.values, site)
        stream_grad, attention = self.attention_input_grad(
            normed_grad,
            grad,
            residual=residual,
            saved=saved.attention,
            angles=angles,
            site=Site("input_grad", "attention"),
        )
        return stream_grad, WeightGrads({"mlp": [down, gate_up], "attention": attention})


class MoEBlock(Block):
    """A layer whose feed-forward is a mixture of experts."""

    def __init__(
        self, config: ModelConfig, local_experts: int, *, recipe: Recipe, device: torch.device,
        split: Split = WHOLE,
    ) -> None:  # fmt: skip
        super().__init__(config, recipe=recipe, device=device, split=split)
        self.mlp = MoE(config, local_experts, recipe=recipe, device=device, split=split)

    def forward(
        self, stream: ResidualStream, angles: Angles, rows: ExpertRows
    ) -> tuple[ResidualStream, SavedBlock[SavedMoE] | Tensor]:
        """One layer, its segments one after another."""
        *_, (stream, saved) = self.forward_segments(stream, angles, rows)
        whole = self.recompute == "layer"
        return stream, saved.attention.residual if whole else saved

    def recomputed(
        self, saved: SavedBlock[SavedMoE] | Tensor, angles: Angles, rows: ExpertRows
    ) -> SavedBlock[SavedMoE]:
        """What backward needs, from the layer's forward once more where all that was kept is the
        stream that entered it; the combine is not repeated, as nothing needs its result."""
        if isinstance(saved, SavedBlock):
            return saved
        stream = ResidualStream(saved, None)
        found: SavedBlock[SavedMoE]
        *_, found = self.forward_segments(stream, angles, rows, "recompute")
        return found

    def input_grad(
        self, grad: Tensor, saved: SavedBlock[SavedMoE] | Tensor, angles: Angles, rows: ExpertRows
    ) -> tuple[Tensor, WeightGrads]:
        """Turn the gradient of both parts of the stream [T, H] into that of the stream that
        entered."""
        saved = self.recomputed(saved, angles, rows)
        _, mlp, _, (stream_grad, attention) = self.input_grad_segments(grad, saved, angles)
        return stream_grad, WeightGrads({"mlp": mlp, "attention": attention})

    def forward_segments(
        self, stream: ResidualStream, angles: Angles, rows: ExpertRows, phase: str = "forward"
    ) -> Iterator[Any]:
        """One layer as the parts that a schedule places, each issued when asked for: attention,
        dispatch, mlp as far as it needs no dispatched tokens, the rest of it, combine.

        Yields None, and at last what `forward` returns; before a backward, which does not need the
        stream that leaves, what backward needs, after mlp. Until it is dropped, it keeps every
        tensor that goes from one part to another: parts may run on different streams."""
        site = Site.of(phase, "attention")
        normed, residual, saved = self.attention(stream, angles, site)
        routed = self.mlp.route(normed, site)
        yield None
        received = self.mlp.dispatch(routed, rows, Site.of(phase, "dispatch"))
        yield None
        shared_gate_up = self.mlp.shared_gate_up(routed, Site.of(phase, "mlp"))
        yield None
        out, shared_out, saved_moe = self.mlp.mlp(
            routed, shared_gate_up, received, Site.of(phase, "mlp")
        )
        if saved.normed is not None:
            saved_moe.x = routed.x
        kept = SavedBlock(saved, saved_moe)
        if phase == "recompute":
            yield kept
            return
        yield None
        update = self.mlp.combine(out, shared_out, received.layout)
        yield ResidualStream(residual, update), kept

    def input_grad_segments(
        self, grad: Tensor, saved: SavedBlock[SavedMoE], angles: Angles
    ) -> Iterator[Any]:
        """The input gradient likewise: combine, mlp, dispatch, attention.

        Yields the weight gradients of mlp after that part, at last the gradient of the stream that
        entered [T, H] and the weight gradients of attention, and None otherwise."""
        cast = self.mlp.quantize_grad(grad)
        received_grad = self.mlp.combine_input_grad(cast, saved.feed_forward)
        yield None
        normed, residual = self.feed_forward_input(saved.attention, Site("input_grad", "mlp"))
        x_grad, shared_x_grad, received_weights_grad, mlp = self.mlp.mlp_input_grad(
            cast, received_grad, normed, saved.feed_forward
        )
        yield mlp
        moe_grad, weights_grad = self.mlp.dispatch_input_grad(
            x_grad, shared_x_grad, received_weights_grad, saved.feed_forward
        )
        yield None
        site = Site("input_grad", "attention")
        gate_grad = self.mlp.gate.input_grad(
            weights_grad, saved.feed_forward.logits, saved.feed_forward.indices, normed, site
        )
        normed_grad = ops.add(moe_grad, gate_grad, site=site("moe.add_input_grads"))
        yield self.attention_input_grad(
            normed_grad,
            grad,
            residual=residual,
            saved=saved.attention,
            angles=angles,
            site=site,
        )


# -- vocabulary ------------------------------------------------------------------------------------


class Embedding(Weight):
    """Table of token embeddings, shared with the multi-token prediction module.

    Of a part of the vocabulary it takes the tokens of all GPUs and returns a GPU's own."""

    def __init__(
        self, config: ModelConfig, *, recipe: Recipe, device: torch.device, split: Split = WHOLE
    ) -> None:
        shape = (config.vocab_size // split.tensor, config.hidden_size)
        super().__init__("embedding", shape, recipe=recipe, device=device)
        self.group = tensor_group(split)

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up tokens int64 [T]; returns [T, H]."""
        site = Site("forward", "embedding")
        table = self.working_copy().values
        if self.group.ranks == 1:
            return ops.embedding(tokens, table, site=site("embedding"))
        first = self.group.rank() * table.shape[0]
        mine = ops.embedding_part(tokens, table, first=first, site=site("embedding"))
        return self.group.scatter(mine, "embedding", site)

    def weight_grad(self, grad: Tensor, tokens: Tensor, site: Site) -> None:
        """Add the gradient of the embeddings [T, H] into the rows of their tokens."""
        grad = self.group.gather(grad, "embedding", site)
        total, name = gradient(self.weight), site("embedding.weight_grad")
        if self.group.ranks == 1:
            ops.embedding_backward(total, tokens, grad, site=name)
        else:
            first = self.group.rank() * total.shape[0]
            ops.embedding_backward_part(total, tokens, grad, first=first, site=name)


@dataclass(slots=True)
class SavedHead:
    """What the backward of norm, head and loss needs."""

    total: Tensor
    """Residual stream [T, H]."""
    normed: Tensor | None
    """The same normed [T, H]; None where norms are recomputed."""
    logits: Tensor
    """[T, V]"""
    targets: Tensor
    log_sum: Tensor


class Head(HighPrecisionLinear):
    """The projection of the normed stream onto the vocabulary, and the cross-entropy of it.

    Of a part of the vocabulary it takes a GPU's own tokens, and projects those of all."""

    def __init__(
        self, config: ModelConfig, *, recipe: Recipe, device: torch.device, split: Split = WHOLE
    ) -> None:
        super().__init__(
            "head.proj", config.vocab_size // split.tensor, config.hidden_size,
            out_dtype=recipe.dtype, recipe=recipe, device=device,
        )  # fmt: skip
        self.group = tensor_group(split)

    def gather(self, normed: Tensor, site: Site) -> Tensor:
        """Gather the tokens of all GPUs from own tokens of the normed stream [T, H]."""
        return self.group.gather(normed, "head", site)

    def loss(self, logits: Tensor, targets: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        """Compute of logits [T, V] the mean loss of `targets` [T], and the log-sum-exp of each row
        [T]."""
        if self.group.ranks == 1:
            return ops.cross_entropy(logits, targets, site=site("cross_entropy"))
        parts = ops.cross_entropy_part(
            logits, targets, first=self._first(logits), site=site("cross_entropy")
        )
        return ops.cross_entropy_merged(
            self.group.gather(parts, "cross_entropy", site),
            ranks=self.group.ranks, site=site("cross_entropy.merged"),
        )  # fmt: skip

    def loss_backward(self, saved: "SavedHead", site: str, *, weight: float) -> Tensor:
        """Gradient of `weight` x the mean loss, like the logits."""
        arguments = (saved.logits, saved.targets, saved.log_sum)
        if self.group.ranks == 1:
            return ops.cross_entropy_backward(*arguments, weight=weight, site=site)
        first = self._first(saved.logits)
        return ops.cross_entropy_backward_part(*arguments, first=first, weight=weight, site=site)

    def _first(self, logits: Tensor) -> int:
        return self.group.rank() * logits.shape[1]


def head_loss(
    norm: RMSNorm,
    head: Head,
    stream: ResidualStream,
    targets: Tensor,
    *,
    recompute: str = "published",
) -> tuple[Tensor, Tensor, SavedHead]:
    """Apply norm, head and cross-entropy of `targets` [T]; returns mean loss and normed stream
    [T, H]."""
    site = Site("forward", "head")
    normed, total = norm.add(stream.update, stream.residual, site)
    logits = head(head.gather(normed, site), site)
    loss, log_sum = head.loss(logits, targets, site)
    kept = normed if recompute == "none" else None
    return loss, normed, SavedHead(total, kept, logits, targets, log_sum)


def head_input_grad(
    norm: RMSNorm,
    head: Head,
    saved: SavedHead,
    *,
    weight: float,
    normed_grad: Tensor | None,
) -> tuple[Tensor, WeightGrad]:
    """Compute the gradient of both parts of the stream [T, H], of `weight` x the mean loss plus
    whatever else reads the normed stream, whose gradient is `normed_grad`; and the head's weight
    gradient."""
    site = Site("input_grad", "head")
    again = replace(site, recompute=True)
    own = norm(saved.total, again) if saved.normed is None else saved.normed
    normed = head.gather(own, again)
    logits_grad = head.loss_backward(saved, site("cross_entropy.input_grad"), weight=weight)
    grad = head.group.scatter(head.input_grad(logits_grad, site), "head", site)
    if normed_grad is not None:
        grad = ops.add(grad, normed_grad, site=site("head.add_input_grads"))
    weight_grad = partial(head.weight_grad, logits_grad, normed)
    return norm.backward(grad, saved.total, site), weight_grad


# -- multi-token prediction ------------------------------------------------------------------------


@dataclass(slots=True)
class SavedPrediction:
    """What the backward of the multi-token prediction module needs."""

    hidden: Tensor
    """Normed stream of the main model [T, H]."""
    embedded: Tensor
    """Embeddings of the next tokens [T, H]."""
    joined: Tensor | None
    """Both normed, side by side [T, 2 H]; None where norms are recomputed."""
    tokens: Tensor
    block: SavedBlock[SavedMoE] | Tensor
    head: SavedHead


class MultiTokenPrediction(nn.Module):
    """Predicts the token after the next from the main model's stream and the next token's
    embedding (Report, 2.2): both normed, joined, projected from 2 H to H, and one more layer.
    Embedding and head are the main model's and passed in."""

    def __init__(
        self, config: ModelConfig, local_experts: int, *, recipe: Recipe, device: torch.device,
        split: Split = WHOLE,
    ) -> None:  # fmt: skip
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = RMSNorm("mtp.embedding_norm", hidden, eps=eps, device=device)
        self.hnorm = RMSNorm("mtp.hidden_norm", hidden, eps=eps, device=device)
        self.eh_proj = Linear("mtp.projection", hidden, 2 * hidden, recipe=recipe, device=device)
        self.block = MoEBlock(config, local_experts, recipe=recipe, device=device, split=split)
        self.norm = RMSNorm("head.norm", hidden, eps=eps, device=device)

    def forward(
        self, hidden: Tensor, embedded: Tensor, angles: Angles, rows: ExpertRows
    ) -> tuple[ResidualStream, SavedBlock[SavedMoE] | Tensor, Tensor]:
        """Join the normed stream [T, H] of the main model with embeddings of the next tokens
        [T, H] into the stream that `norm` and the shared head turn into logits of the tokens
        after those."""
        site = Site("forward", "mtp")
        joined = self._joined(hidden, embedded, site)
        projected = self.eh_proj(self.eh_proj.quantize_input(joined, site), site)
        stream: ResidualStream
        stream, saved = self.block(ResidualStream(projected, None), angles, rows)
        return stream, saved, joined

    def loss(
        self,
        hidden: Tensor,
        tokens: Tensor,
        targets: Tensor,
        *,
        embedding: Embedding,
        head: Head,
        angles: Angles,
        rows: ExpertRows,
    ) -> tuple[Tensor, SavedPrediction]:
        """Mean loss of `targets` [T], the tokens after `tokens` [T], which follow those of
        `hidden` [T, H]."""
        embedded = embedding(tokens)
        stream, saved_block, joined = self.forward(hidden, embedded, angles, rows)
        recompute = self.block.recompute
        loss, _, saved_head = head_loss(self.norm, head, stream, targets, recompute=recompute)
        kept = joined if recompute == "none" else None
        return loss, SavedPrediction(hidden, embedded, kept, tokens, saved_block, saved_head)

    def input_grad(
        self,
        saved: SavedPrediction,
        embedding: Embedding,
        head: Head,
        angles: Angles,
        rows: ExpertRows,
        *,
        weight: float,
    ) -> tuple[Tensor, WeightGrads]:
        """Compute the gradient of the main model's normed stream [T, H], of `weight` x the mean
        loss."""
        grad, head_grad = head_input_grad(
            self.norm, head, saved.head, weight=weight, normed_grad=None
        )
        grad, block_grads = self.block.input_grad(grad, saved.block, angles, rows)
        site = Site("input_grad", "mtp")
        joined = saved.joined
        if joined is None:
            joined = self._joined(saved.hidden, saved.embedded, replace(site, recompute=True))
        joined_grad, projection = self.eh_proj.backward(grad, joined, site)
        columns = saved.hidden.shape[1]
        embedded_grad = self.enorm.backward(joined_grad[:, :columns], saved.embedded, site)
        hidden_grad = self.hnorm.backward(joined_grad[:, columns:], saved.hidden, site)
        return hidden_grad, WeightGrads(
            {"head": [head_grad]}
            | block_grads.of_segment
            | {
                "mtp": [projection],
                "embedding": [partial(embedding.weight_grad, embedded_grad, saved.tokens)],
            }
        )

    def _joined(self, hidden: Tensor, embedded: Tensor, site: Site) -> Tensor:
        """Both inputs normed, side by side [T, 2 H]; the embedding first, as in the checkpoint."""
        return ops.concat(
            self.enorm(embedded, site), self.hnorm(hidden, site), site=site("mtp.concat")
        )


# -- the whole model -------------------------------------------------------------------------------


class Losses(NamedTuple):
    """Mean cross-entropy of a micro-batch, in nats a token."""

    main: Tensor
    """Of the next token."""
    mtp: Tensor | None
    """Of the token after it, where the model has a multi-token prediction module."""
    total: Tensor
    """main + weight x mtp: what is differentiated."""


@dataclass(slots=True)
class SavedStep:
    """What the backward of a micro-batch needs, of the whole model or of one pipeline stage."""

    tokens: Tensor
    """Those that the embedding read [T]."""
    blocks: list[SavedLayer]
    head: SavedHead | None
    """None where another stage has it."""
    prediction: SavedPrediction | None
    prediction_weight: float
    angles: Angles
    rows: ExpertRows


class Transformer(nn.Module):
    """The model: embedding, layers, norm, head, and a multi-token prediction module that shares
    embedding and head."""

    def __init__(
        self, config: ModelConfig, *, recipe: Recipe, device: torch.device, split: Split = WHOLE
    ) -> None:
        super().__init__()
        self.config = config
        self.recipe = recipe
        self.device = device
        self.split = split
        experts = config.n_routed_experts
        self.embed_tokens = Embedding(config, recipe=recipe, device=device, split=split)
        self.layers = nn.ModuleList(
            DenseBlock(config, recipe=recipe, device=device, split=split)
            if layer < config.first_k_dense_replace
            else MoEBlock(config, experts, recipe=recipe, device=device, split=split)
            for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm("head.norm", config.hidden_size, eps=config.rms_norm_eps, device=device)
        self.lm_head = Head(config, recipe=recipe, device=device, split=split)
        self.mtp = (
            MultiTokenPrediction(config, experts, recipe=recipe, device=device, split=split)
            if config.num_nextn_predict_layers
            else None
        )

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Random weights: matrices normal with variance 1 / fan-in, norms 1, biases 0."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(0 if name.endswith("bias") else 1)
            else:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        """Read tokens int64 [S, L]; returns logits [S, L, V] of the token after each."""
        stream, _, _, _ = self._run_layers(tokens)
        site = Site("forward", "head")
        normed, _ = self.norm.add(stream.update, stream.residual, site)
        logits: Tensor = self.lm_head(normed, site)
        return logits.view(*tokens.shape, -1)

    @torch.no_grad()
    def loss(self, tokens: Tensor, *, prediction_weight: float) -> tuple[Losses, SavedStep]:
        """Losses of sequences of L + 1 tokens (L + 2 with multi-token prediction, int64 [S, .]):
        each of the first L tokens predicts the next, and the one after the next.

        `prediction_weight` is the Report's lambda, 0.3 and later 0.1 (section 4.2)."""
        length = tokens.shape[1] - (1 if self.mtp is None else 2)
        stream, blocks, angles, rows = self._run_layers(tokens[:, :length])

        def shifted(by: int) -> Tensor:
            return tokens[:, by : by + length].reshape(-1)

        main, normed, head = head_loss(self.norm, self.lm_head, stream, shifted(1))
        prediction, mtp, total = None, None, main
        if self.mtp is not None:
            mtp, prediction = self.mtp.loss(
                normed,
                shifted(1),
                shifted(2),
                embedding=self.embed_tokens,
                head=self.lm_head,
                angles=angles,
                rows=rows,
            )
            total = main + prediction_weight * mtp
        saved = SavedStep(shifted(0), blocks, head, prediction, prediction_weight, angles, rows)
        return Losses(main, mtp, total), saved

    @torch.no_grad()
    def backward(self, saved: SavedStep, *, weight: float = 1.0) -> None:
        """Add the gradient of `weight` x the total loss into every parameter's `.grad`."""
        angles, rows = saved.angles, saved.rows
        normed_grad = None
        if self.mtp is not None and saved.prediction is not None:
            normed_grad, prediction_grads = self.mtp.input_grad(
                saved.prediction, self.embed_tokens, self.lm_head, angles, rows,
                weight=weight * saved.prediction_weight,
            )  # fmt: skip
            prediction_grads.run()
        assert saved.head is not None, "the whole model has it"
        grad, head_grad = head_input_grad(
            self.norm, self.lm_head, saved.head, weight=weight, normed_grad=normed_grad
        )
        head_grad(Site("weight_grad", "head"))
        for block, saved_block in zip(self.blocks[::-1], saved.blocks[::-1], strict=True):
            grad, weight_grads = block.input_grad(grad, saved_block, angles, rows)
            weight_grads.run()
        self.embed_tokens.weight_grad(grad, saved.tokens, Site("weight_grad", "embedding"))

    @property
    def blocks(self) -> list[Any]:
        """The layers in order, each a `DenseBlock` or a `MoEBlock`."""
        return list(self.layers)

    def _run_layers(
        self, tokens: Tensor
    ) -> tuple[
        ResidualStream,
        list[SavedLayer],
        Angles,
        ExpertRows,
    ]:
        if tokens.dim() != 2 or tokens.shape[1] < 1:
            raise ValueError(
                f"tokens of shape {list(tokens.shape)} are not [sequences, length of at least 1]"
            )
        angles = rotary_angles(self.config, tokens.shape[1], device=self.device)
        # One device holds every expert, or its part of each: it receives each of its own tokens
        # once, for all of its choices.
        count = tokens.numel() // self.split.tensor
        expanded = self.split.expert_tensor * count * self.config.num_experts_per_tok
        rows = ExpertRows(received=count, expanded=expanded)
        stream = ResidualStream(self.embed_tokens(tokens.reshape(-1)), None)
        saved = []
        for block in self.blocks:
            stream, saved_block = block(stream, angles, rows)
            saved.append(saved_block)
        return stream, saved, angles, rows
