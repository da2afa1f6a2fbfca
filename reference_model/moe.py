"""Feed-forward layers, dense and mixture-of-experts, forward and backward.

DeepSeek-V3 Technical Report (arXiv:2412.19437), section 2.1.2. Letters for shapes are those of
model.py. `MoE` offers its passes in the segments that DualPipe schedules.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference_model import operators as ops
from reference_model.config import ModelConfig
from reference_model.layers import GroupedLinear, HighPrecisionLinear, Linear, WeightGrad
from reference_model.operators import Site
from reference_model.precision import Operand, Recipe
from reference_model.split import WHOLE, Split
from reference_model.tensor_parallel import expert_group, tensor_group


class ExpertRows(NamedTuple):
    """What the local experts receive, known before the rows themselves."""

    received: int
    """D"""
    expanded: int
    """R"""


class Layout(NamedTuple):
    """Who sends what to whom in one layer, for one micro-batch."""

    source: Tensor
    """int64 [rows sent], the token of each row, the rows of a peer together."""
    token_rows: Tensor
    """int64 [T, ranks], the row in which each token goes to each peer, -1 where it does not."""
    sent: list[int]
    """Rows that go to each peer in dispatch, own rank included."""
    received: list[int]
    """Rows that come from each peer."""
    first: list[int]
    """The place of this rank's first row among what each peer receives in dispatch."""
    first_back: list[int]
    """The same in combine, among the rows that a peer had sent."""
    expanded: int
    """R"""


class FeedForward(nn.Module):
    """SwiGLU feed-forward of every token: a dense layer's, or the shared experts'.

    Where its width is split, `gather` brings the tokens of all GPUs to a part of it, and `scatter`
    the sums of all parts back to a GPU's own tokens."""

    def __init__(
        self, name: str, config: ModelConfig, intermediate: int, *, recipe: Recipe,
        device: torch.device, split: Split = WHOLE,
    ) -> None:  # fmt: skip
        super().__init__()
        self.name = name
        self.recipe = recipe
        self.group = tensor_group(split)
        hidden, intermediate = config.hidden_size, intermediate // split.tensor
        self.gate_up_proj = Linear(
            f"{name}.gate_up_proj", 2 * intermediate, hidden, recipe=recipe, device=device
        )
        self.down_proj = Linear(
            f"{name}.down_proj", hidden, intermediate, recipe=recipe, device=device
        )

    def down(self, gate_up: Tensor, site: Site) -> Tensor:
        """Turn gate and up projections [T, 2 I] into the output [T, H]."""
        activated = self.recipe.swiglu(gate_up, site(f"{self.name}.swiglu"))
        return self.group.scatter(self.down_proj(activated, site), self.name, site)

    def gather(self, x: Operand, name: str, site: Site) -> Operand:
        """Gather the tokens of all GPUs from own tokens [T, H], as a product reads them."""
        return self.group.gather_operand(x, f"{self.name}.{name}", site)

    def save(self, gate_up: Tensor, site: Site) -> Operand:
        """Gate and up projections as backward finds them."""
        return self.recipe.quantize(gate_up, site(f"{self.name}.save_gate_up"))

    def down_input_grad(
        self, grad: Operand, saved: Operand, site: Site
    ) -> tuple[Tensor, WeightGrad]:
        """Turn the output gradient [T, H] into the gradient of the gate and up projections
        [T, 2 I]."""
        gate_up = self.recipe.dequantize(saved, site(f"{self.name}.load_gate_up"))
        activated_grad = self.down_proj.input_grad(grad, site)
        again = replace(site, recompute=True)
        weight_grad = partial(
            self.down_proj.weight_grad,
            self.recipe.quantize_transposed(grad, site(f"{self.down_proj.name}.transpose_grad")),
            self.recipe.swiglu_transposed(gate_up, again(f"{self.name}.swiglu")),
        )
        gate_up_grad = ops.swiglu_backward(
            gate_up, activated_grad, site=site(f"{self.name}.swiglu.input_grad")
        )
        return gate_up_grad, weight_grad

    def gate_up_input_grad(
        self, gate_up_grad: Tensor, x: Operand, site: Site
    ) -> tuple[Tensor, WeightGrad]:
        """Turn the gradient of the gate and up projections [T, 2 I], and the input as the forward
        GEMM read it, into the gradient of the input [T, H]."""
        values = self.recipe.dequantize(x, site(f"{self.gate_up_proj.name}.dequantize_input"))
        return self.gate_up_backward(gate_up_grad, values, site)

    def gate_up_backward(
        self, gate_up_grad: Tensor, x: Tensor, site: Site
    ) -> tuple[Tensor, WeightGrad]:
        """The same of an input x [T, H] that no product has read."""
        x_grad, weight_grad = self.gate_up_proj.backward(gate_up_grad, x, site)
        return self.group.scatter(x_grad, f"{self.name}.input", site), weight_grad


class Gate(nn.Module):
    """Chooses each token's experts by sigmoid scores, groups first, with a bias that balances load
    without an auxiliary loss (Report, 2.1.2). The bias takes part in the choice only and has no
    gradient. DeepSeek-V2's gate, of softmax scores, has none."""

    def __init__(self, config: ModelConfig, *, recipe: Recipe, device: torch.device) -> None:
        super().__init__()
        self.config = config
        self.recipe = recipe
        experts = config.n_routed_experts
        self.proj = HighPrecisionLinear(
            "gate.proj", experts, config.hidden_size,
            out_dtype=torch.float32, recipe=recipe, device=device,
        )  # fmt: skip
        bias = torch.zeros(experts, dtype=torch.float32, device=device)
        self.register_buffer(
            "e_score_correction_bias", bias if config.has_correction_bias else None
        )
        self.e_score_correction_bias: Tensor | None

    def forward(self, x: Tensor, site: Site) -> tuple[Tensor, Tensor, Tensor]:
        """Score x [T, H]; returns logits [T, experts], chosen experts [T, K] and their weights
        [T, K]."""
        c = self.config
        logits = self.proj(x, site)
        indices, weights = ops.gate(
            logits,
            self.e_score_correction_bias,
            scoring=c.scoring_func,
            n_group=c.n_group,
            topk_group=c.topk_group,
            top_k=c.num_experts_per_tok,
            normalise=c.norm_topk_prob,
            scaling=c.routed_scaling_factor,
            site=site("gate"),
        )
        return logits, indices, weights

    def input_grad(
        self, weights_grad: Tensor, logits: Tensor, indices: Tensor, x: Tensor, site: Site
    ) -> Tensor:
        """Turn the gradient of the weights [T, K] into the gradient of x [T, H]. The gate's weight
        gradient is small and not put off: it belongs to this pass, as in the published trace."""
        logits_grad = ops.gate_backward(
            logits,
            indices,
            weights_grad,
            scoring=self.config.scoring_func,
            normalise=self.config.norm_topk_prob,
            scaling=self.config.routed_scaling_factor,
            dtype=self.recipe.dtype,
            site=site("gate.input_grad"),
        )
        x_grad = self.proj.input_grad(logits_grad, site)
        self.proj.weight_grad(logits_grad, x, site)
        return x_grad


@dataclass(slots=True)
class SavedExperts:
    """What the backward of the routed experts needs."""

    received: Operand
    """Tokens that dispatch delivered [D, H]."""
    gate_up: Operand
    """[R, 2 I]"""
    row_source: Tensor
    """Received token of each row [R]."""
    row_weights: Tensor
    """Routing weight of each row [R]."""
    choice_rows: Tensor
    """Row of each received choice [D, K], -1 where the expert is not local."""
    group_sizes: Tensor
    """Rows of each local expert [E]."""


class Expert(nn.Module):
    """The routed experts of this rank, as grouped GEMMs over rows sorted by expert."""

    def __init__(
        self, config: ModelConfig, local_experts: int, *, recipe: Recipe, device: torch.device,
        split: Split = WHOLE,
    ) -> None:  # fmt: skip
        super().__init__()
        self.recipe = recipe
        self.local_experts = local_experts
        hidden = config.hidden_size
        intermediate = config.moe_intermediate_size // split.expert_tensor
        self.gate_up_proj = GroupedLinear(
            "experts.gate_up_proj", local_experts, 2 * intermediate, hidden,
            recipe=recipe, device=device,
        )  # fmt: skip
        self.down_proj = GroupedLinear(
            "experts.down_proj", local_experts, hidden, intermediate, recipe=recipe, device=device
        )

    def forward(
        self, received: "Received", rows: ExpertRows, site: Site
    ) -> tuple[Tensor, Tensor, SavedExperts]:
        """Run the experts on received tokens [D, H]; returns their outputs, summed over local
        experts [D, H]; the gate and up projections [R, 2 I]; and what backward needs, those
        projections not yet saved."""
        row_source, row_weights, choice_rows, group_sizes = ops.expert_mapping(
            received.indices,
            received.weights,
            rows=rows.expanded,
            local_experts=self.local_experts,
            site=site("experts.mapping"),
        )
        x = self._permute(received.x, row_source, site("experts.permute"))
        gate_up = self.gate_up_proj(x, group_sizes, site)
        activated = self.recipe.weighted_swiglu(gate_up, row_weights, site("experts.swiglu"))
        out = self.down_proj(activated, group_sizes, site)
        summed = ops.unpermute(out, choice_rows, site=site("experts.unpermute"))
        saved = SavedExperts(
            received=received.x,
            gate_up=Operand(gate_up, None),
            row_source=row_source,
            row_weights=row_weights,
            choice_rows=choice_rows,
            group_sizes=group_sizes,
        )
        return summed, gate_up, saved

    def save(self, gate_up: Tensor, site: Site) -> Operand:
        """Gate and up projections as backward finds them."""
        return self.recipe.quantize(gate_up, site("experts.save_gate_up"))

    def input_grad(
        self, grad: Operand, saved: SavedExperts, site: Site
    ) -> tuple[Tensor, Tensor, WeightGrad]:
        """Turn the output gradient of received tokens [D, H] into their input gradient [D, H] and
        that of their routing weights [D, K]."""
        r = self.recipe
        sizes = saved.group_sizes
        gate_up = r.dequantize(saved.gate_up, site("experts.load_gate_up"))
        rows_grad = self._permute(grad, saved.row_source, site("experts.permute_grad"))
        activated_grad = self.down_proj.input_grad(rows_grad, sizes, site)
        activated, gate_up_grad = ops.weighted_swiglu_forward_backward(
            gate_up, saved.row_weights, activated_grad, site=site("experts.swiglu.input_grad")
        )
        weights_grad = ops.topk_weight_grad(
            activated, activated_grad, saved.row_weights, saved.choice_rows,
            site=site("experts.topk_weight_grad"),
        )  # fmt: skip
        activated_t = r.quantize_rows_transposed(
            activated, sizes, site("experts.down_proj.transpose_input")
        )
        operand = r.quantize(gate_up_grad, site("experts.gate_up_proj.quantize_grad"))
        x_grad = self.gate_up_proj.input_grad(operand, sizes, site)
        summed = ops.unpermute(x_grad, saved.choice_rows, site=site("experts.unpermute_grad"))
        gate_up_grad_t = r.quantize_rows_transposed(
            gate_up_grad, sizes, site("experts.gate_up_proj.transpose_grad")
        )
        weight_grad = partial(
            self.weight_grad,
            grad=grad,
            x=saved.received,
            activated=activated_t,
            gate_up_grad=gate_up_grad_t,
            row_source=saved.row_source,
            group_sizes=sizes,
        )
        return summed, weights_grad, weight_grad

    def weight_grad(
        self,
        site: Site,
        *,
        grad: Operand,
        x: Operand,
        activated: Operand,
        gate_up_grad: Operand,
        row_source: Tensor,
        group_sizes: Tensor,
    ) -> None:
        """Add the gradients of both weights. Received tokens x and output gradients [D, H] were
        kept as they travelled and are expanded to rows only here, which saves their memory till
        then; the others are transposed already, [I, R] and [2 I, R]."""
        output_grad = self.recipe.gather_transposed(
            grad, row_source, group_sizes, site("experts.down_proj.transpose_grad")
        )
        self.down_proj.weight_grad(output_grad, activated, group_sizes, site)
        rows = self.recipe.gather_transposed(
            x, row_source, group_sizes, site("experts.gate_up_proj.transpose_input")
        )
        self.gate_up_proj.weight_grad(gate_up_grad, rows, group_sizes, site)

    def _permute(self, x: Operand, row_source: Tensor, site: str) -> Operand:
        values, scales = ops.permute(x.values, x.scales, row_source, site=site)
        return Operand(values, None if x.scales is None else scales)


class Routed(NamedTuple):
    """Tokens with their choice of experts, ready to be dispatched."""

    x: Operand
    """[T, H]"""
    logits: Tensor
    """[T, experts]"""
    indices: Tensor
    """[T, K]"""
    weights: Tensor
    """[T, K]"""


class Received(NamedTuple):
    """Tokens that dispatch delivered, with their choices."""

    x: Operand
    """[D, H]"""
    indices: Tensor
    """[D, K]"""
    weights: Tensor
    """[D, K]"""
    rows: ExpertRows
    layout: Layout | None
    """Where the tokens come from; None on one device, which receives its own."""


@dataclass(slots=True)
class SavedMoE:
    """What the backward of a mixture-of-experts feed-forward needs."""

    logits: Tensor
    indices: Tensor
    experts: SavedExperts
    shared_gate_up: Operand
    """[T, 2 I of the shared experts]"""
    rows: ExpertRows
    layout: Layout | None
    x: Operand | None = None
    """Input as it was dispatched [T, H]; None where it is cast again."""


class MoE(nn.Module):
    """Routed and shared experts, in the segments that a schedule overlaps. No token is dropped.

    Where the width of experts is split, GPUs that share them gather what each has received, and D
    are the rows of all of them between `mlp`'s ends."""

    def __init__(
        self, config: ModelConfig, local_experts: int, *, recipe: Recipe, device: torch.device,
        split: Split = WHOLE,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = config
        self.recipe = recipe
        self.group = expert_group(split)
        self.gate = Gate(config, recipe=recipe, device=device)
        self.experts = Expert(config, local_experts, recipe=recipe, device=device, split=split)
        self.shared_experts = FeedForward(
            "shared_experts", config, config.n_shared_experts * config.moe_intermediate_size,
            recipe=recipe, device=device, split=split,
        )  # fmt: skip

    def route(self, x: Tensor, site: Site) -> Routed:
        """Segment attention: choose experts for x [T, H] and cast it, once for dispatch and the
        shared experts."""
        logits, indices, weights = self.gate(x, site)
        return Routed(self.quantize_input(x, site), logits, indices, weights)

    def quantize_input(self, x: Tensor, site: Site) -> Operand:
        """Quantise x [T, H] as it is dispatched: with powers of two as scales (Report, 3.3.3)."""
        return self.recipe.quantize(x, site("moe.quantize_input"), power_of_two_scales=True)

    def dispatch(self, routed: Routed, rows: ExpertRows, site: Site) -> Received:
        """Segment dispatch: send tokens to the ranks of their experts."""
        ops.dispatch_layout(
            routed.indices, experts=self.config.n_routed_experts, site=site("moe.dispatch_layout")
        )
        x, scales, indices, weights = ops.dispatch(
            routed.x.values, routed.x.scales, routed.indices, routed.weights,
            rows=rows.received, site=site("moe.dispatch"),
        )  # fmt: skip
        values = Operand(x, None if routed.x.scales is None else scales)
        return Received(values, indices, weights, rows, layout=None)

    def shared_gate_up(self, routed: Routed, site: Site) -> Tensor:
        """Segment mlp, as far as it needs no dispatched tokens: gate and up projections of the
        shared experts [T, 2 I]."""
        x = self.shared_experts.gather(routed.x, "input", site)
        gate_up: Tensor = self.shared_experts.gate_up_proj(x, site)
        return gate_up

    def mlp(
        self, routed: Routed, shared_gate_up: Tensor, received: Received, site: Site
    ) -> tuple[Tensor, Tensor, SavedMoE]:
        """The rest of segment mlp: outputs of received tokens [D, H], and of the shared experts
        [T, H]."""
        out, gate_up, saved_experts = self.experts(
            self._of_group(received, site), received.rows, site
        )
        out = self.group.scatter(out, "experts", site)
        shared_out = self.shared_experts.down(shared_gate_up, site)
        saved_experts.gate_up = self.experts.save(gate_up, site)
        saved = SavedMoE(
            logits=routed.logits,
            indices=routed.indices,
            experts=saved_experts,
            shared_gate_up=self.shared_experts.save(shared_gate_up, site),
            rows=received.rows,
            layout=received.layout,
        )
        return out, shared_out, saved

    def _of_group(self, received: Received, site: Site) -> Received:
        """Tokens that all GPUs have received that share experts, with their choices."""
        gather = self.group.gather
        return received._replace(
            x=self.group.gather_operand(received.x, "experts.received", site),
            indices=gather(received.indices, "experts.choices", site),
            weights=gather(received.weights, "experts.weights", site),
        )

    def combine(self, out: Tensor, shared_out: Tensor, layout: Layout | None) -> Tensor:
        """Segment combine: outputs back at their tokens, summed [T, H]."""
        return ops.combine(out, shared_out, site=Site("forward", "combine")("moe.combine"))

    def quantize_grad(self, grad: Tensor) -> Operand:
        """Segment combine, backward: the output gradient [T, H] as it is sent to the experts."""
        site = Site("input_grad", "combine")("moe.quantize_grad")
        return self.recipe.quantize(grad, site, power_of_two_scales=True)

    def combine_input_grad(self, cast: Operand, saved: SavedMoE) -> Operand:
        """Segment combine, backward: the output gradient [T, H] at the experts [D, H], sent along
        the forward layout."""
        values, scales = ops.dispatch_cached(
            cast.values, cast.scales, rows=saved.rows.received,
            site=Site("input_grad", "combine")("moe.combine.input_grad"),
        )  # fmt: skip
        return Operand(values, None if cast.scales is None else scales)

    def mlp_input_grad(
        self, grad: Operand, received_grad: Operand, x: Tensor, saved: SavedMoE
    ) -> tuple[Tensor, Tensor, Tensor, list[WeightGrad]]:
        """Segment mlp, backward: turn output gradients of tokens [T, H] and received tokens [D, H],
        and x [T, H] again, into input gradients of received tokens [D, H] and of the shared experts
        [T, H], and gradients of routing weights [D, K]."""
        site = Site("input_grad", "mlp")
        shared = self.shared_experts
        grad = shared.gather(grad, "output", site)
        shared_grad, shared_down = shared.down_input_grad(grad, saved.shared_gate_up, site)
        received_grad = self.group.gather_operand(received_grad, "experts.received", site)
        x_grad, weights_grad, routed = self.experts.input_grad(received_grad, saved.experts, site)
        x_grad = self.group.scatter(x_grad, "experts", site)
        weights_grad = self.group.scatter(weights_grad, "experts.weights", site)
        again = replace(site, recompute=True)
        own = self.quantize_input(x, again) if saved.x is None else saved.x
        x_cast = shared.gather(own, "input", again)
        shared_x_grad, shared_gate_up = shared.gate_up_input_grad(shared_grad, x_cast, site)
        return x_grad, shared_x_grad, weights_grad, [shared_down, routed, shared_gate_up]

    def dispatch_input_grad(
        self, x_grad: Tensor, shared_x_grad: Tensor, weights_grad: Tensor, saved: SavedMoE
    ) -> tuple[Tensor, Tensor]:
        """Segment dispatch, backward: input gradients back at their tokens, summed [T, H], and
        gradients of routing weights [T, K]."""
        site = Site("input_grad", "dispatch")
        return ops.combine_backward(
            x_grad, shared_x_grad, weights_grad, site=site("moe.dispatch.input_grad")
        )
