"""The layers of DeepSeek-V3, each pass of them written out kernel by kernel.

A layer has three passes: `forward`, `input_grad` (which recomputes what `Block.recompute` says),
and the weight gradients, which `input_grad` returns as objects to run at once or later. The passes
of a mixture-of-experts layer fall into the segments that DualPipe schedules:

    forward      attention -> dispatch -> mlp -> combine
    input_grad   combine -> mlp -> dispatch -> attention
    weight_grad  mlp, attention

Letters of shapes are those of model.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from reference_model import operators as ops
from reference_model.attention import MultiHeadLatentAttention, SavedAttention
from reference_model.config import ModelConfig
from reference_model.layers import Angles, RMSNorm, WeightGrad
from reference_model.moe import ExpertRows, FeedForward, MoE, SavedMoE
from reference_model.operators import Site
from reference_model.precision import Operand, Recipe
from reference_model.split import WHOLE, Split

WeightGrads = dict[str, list[WeightGrad]]
"""{segment: weight gradients of one layer and micro-batch, put off}, in the order to run them."""


def run_weight_grads(weight_grads: WeightGrads) -> None:
    """Run all of them."""
    for segment, pending in weight_grads.items():
        for weight_grad in pending:
            weight_grad(Site("weight_grad", segment))


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
        return stream_grad, {"mlp": [down, gate_up], "attention": attention}


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
        return stream_grad, {"mlp": mlp, "attention": attention}

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
