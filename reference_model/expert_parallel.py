"""Expert parallelism: spread the experts of one rank's model over a process group.

Every rank has the attention, gate and shared experts of all layers and its own tokens, and holds an
equal share of the routed experts, in order. A token travels once to each rank that holds one of its
choices, however many (Technical Report, section 3.2.2). The layers are those of model.py but for
what crosses ranks; expert gradients are complete on their rank, all others have to be summed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from reference_model import operators as ops
from reference_model import peer_operators as peer_ops
from reference_model.config import ModelConfig
from reference_model.gpu import choose_kernels
from reference_model.layers import Angles
from reference_model.model import MoEBlock, ResidualStream, SavedMoEBlock, Transformer, WeightGrads
from reference_model.moe import ExpertRows, Received, Routed, SavedMoE
from reference_model.operators import NAMESPACE, Site
from reference_model.precision import Operand, Recipe
from reference_model.ranks import rank_device, run_ranks
from reference_model.recorder import OperatorRecorder

_EXPERT_WEIGHTS = ".experts."
"""Part of the names of the weights that ranks do not share."""


class Layout(NamedTuple):
    """Who sends what to whom in one layer, for one micro-batch."""

    source: Tensor
    """int64 [rows sent], the token of each row, the rows of a peer together."""
    sent: list[int]
    """Rows that go to each peer in dispatch, own rank included."""
    received: list[int]
    """Rows that come from each peer."""


def exchange_layout(indices: Tensor, *, local_experts: int, ranks: int) -> Layout:
    """Choices [T, K] -> the layout, after every rank has told every other how many rows come."""
    reached = torch.zeros((indices.shape[0], ranks), dtype=torch.bool, device=indices.device)
    reached.scatter_(1, indices // local_experts, True)
    _, source = torch.nonzero(reached.t(), as_tuple=True)
    sent = reached.sum(dim=0)
    received = torch.empty_like(sent)
    distributed.all_to_all_single(received, sent)
    return Layout(source, sent.tolist(), received.tolist())


@dataclass(slots=True)
class SavedParallelBlock(SavedMoEBlock):
    """What the backward of an expert-parallel layer needs."""

    layout: Layout


class ExpertParallelBlock(MoEBlock):
    """A mixture-of-experts layer that holds the experts of one rank."""

    def __init__(self, block: MoEBlock, *, rank: int, ranks: int) -> None:
        """Takes this rank's share of the weights of `block`, which holds all experts."""
        mlp = block.mlp
        self.local_experts = mlp.config.n_routed_experts // ranks
        device = mlp.gate.proj.weight.device
        super().__init__(mlp.config, self.local_experts, recipe=mlp.recipe, device=device)
        self.ranks = ranks
        own = slice(rank * self.local_experts, (rank + 1) * self.local_experts)
        self.load_state_dict(
            {
                name: tensor[own] if _EXPERT_WEIGHTS in name else tensor
                for name, tensor in block.state_dict().items()
            }
        )

    def forward(
        self, stream: ResidualStream, angles: Angles, rows: ExpertRows
    ) -> tuple[ResidualStream, SavedMoEBlock]:
        """One layer; the rows that arrive are known only once counts are exchanged."""
        normed, residual, saved = self.attention(stream, angles, Site("forward", "attention"))
        update, saved_moe, layout = self.mixture(normed)
        return ResidualStream(residual, update), SavedParallelBlock(saved, saved_moe, layout)

    def mixture(self, normed: Tensor) -> tuple[Tensor, SavedMoE, Layout]:
        """The experts' part of the layer: normed stream [T, H] -> what it adds to the stream
        [T, H], what backward needs of it, and who sent what to whom."""
        routed = self.mlp.route(normed, Site("forward", "attention"))
        layout = exchange_layout(routed.indices, local_experts=self.local_experts, ranks=self.ranks)
        received = self._dispatch(routed, layout)
        local = (received.indices >= 0) & (received.indices < self.local_experts)
        rows = ExpertRows(received=sum(layout.received), expanded=int(local.sum()))
        out, shared_out, saved = self.mlp.mlp(routed, received, rows)
        update = peer_ops.combine_from_peers(
            out, shared_out, layout.source, sent=layout.received, received=layout.sent,
            site=Site("forward", "combine")("moe.combine"),
        )  # fmt: skip
        return update, saved, layout

    def input_grad(
        self, grad: Tensor, saved: SavedMoEBlock, angles: Angles, rows: ExpertRows
    ) -> tuple[Tensor, WeightGrads]:
        """Gradient of both parts of the stream [T, H] -> that of the stream that entered."""
        assert isinstance(saved, SavedParallelBlock)
        layout = saved.layout
        site = Site("input_grad", "combine")
        cast = self.mlp.recipe.quantize(grad, site("moe.quantize_grad"), power_of_two_scales=True)
        values, scales = peer_ops.dispatch_cached_to_peers(
            cast.values, cast.scales, layout.source, sent=layout.sent, received=layout.received,
            site=site("moe.combine.input_grad"),
        )  # fmt: skip
        received_grad = Operand(values, None if cast.scales is None else scales)
        normed, residual = self.recompute_normed(saved.attention, Site("input_grad", "mlp"))
        x_grad, shared_x_grad, received_weights_grad, mlp = self.mlp.mlp_input_grad(
            cast, received_grad, normed, saved.moe
        )
        moe_grad, weights_grad = peer_ops.combine_backward_from_peers(
            x_grad, shared_x_grad, received_weights_grad, layout.source,
            sent=layout.received, received=layout.sent,
            site=Site("input_grad", "dispatch")("moe.dispatch.input_grad"),
        )  # fmt: skip
        site = Site("input_grad", "attention")
        gate_grad = self.mlp.gate.input_grad(
            weights_grad, saved.moe.logits, saved.moe.indices, normed, site
        )
        normed_grad = ops.add(moe_grad, gate_grad, site=site("moe.add_input_grads"))
        stream_grad, attention = self.attention_input_grad(
            normed_grad,
            grad,
            residual=residual,
            saved=saved.attention,
            angles=angles,
            site=site,
        )
        return stream_grad, WeightGrads(mlp=mlp, attention=attention)

    def _dispatch(self, routed: Routed, layout: Layout) -> Received:
        site = Site("forward", "dispatch")
        ops.dispatch_layout(
            routed.indices,
            experts=self.mlp.config.n_routed_experts,
            site=site("moe.dispatch_layout"),
        )
        x, scales, indices, weights = peer_ops.dispatch_to_peers(
            routed.x.values, routed.x.scales, routed.indices, routed.weights, layout.source,
            sent=layout.sent, received=layout.received, local_experts=self.local_experts,
            site=site("moe.dispatch"),
        )  # fmt: skip
        return Received(Operand(x, None if routed.x.scales is None else scales), indices, weights)


def spread_experts(model: Transformer, *, rank: int, ranks: int) -> None:
    """Put an `ExpertParallelBlock` in the place of every mixture-of-experts layer of `model`; the
    ranks divide its routed experts."""
    for index, block in enumerate(model.blocks):
        if isinstance(block, MoEBlock):
            model.layers[index] = ExpertParallelBlock(block, rank=rank, ranks=ranks)
    if model.mtp is not None:
        model.mtp.block = ExpertParallelBlock(model.mtp.block, rank=rank, ranks=ranks)


def sum_shared_gradients(model: Transformer) -> None:
    """Sum over ranks the gradients of all weights but those of routed experts."""
    for name, parameter in model.named_parameters():
        if _EXPERT_WEIGHTS not in name:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)


# -- what crosses ranks ----------------------------------------------------------------------------


class PeerTraffic(NamedTuple):
    """One dispatch or combine of one rank."""

    name: str
    phase: str
    kind: str
    """dispatch or combine."""
    dtype: str
    """Type of the values that travel."""
    bytes_to: tuple[int, ...]
    """Bytes to each rank, what stays on this one included."""


class PeerRecorder(OperatorRecorder):  # type: ignore[no-untyped-call]
    """An `OperatorRecorder` that also sees how many bytes go to which rank."""

    _PAYLOAD = ("x", "scales", "indices", "weights", "weights_grad")

    def __init__(self) -> None:
        super().__init__()
        self.traffic: list[PeerTraffic] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func.namespace == NAMESPACE:
            names = (argument.name for argument in func._schema.arguments)
            arguments = dict(zip(names, args, strict=False)) | dict(kwargs or {})
            if "sent" in arguments:
                row = sum(
                    tensor.shape[1] * tensor.element_size()
                    for tensor in map(arguments.get, self._PAYLOAD)
                    if tensor is not None
                )
                operator = self.recorded[-1].operator
                self.traffic.append(
                    PeerTraffic(
                        operator.name,
                        operator.phase,
                        operator.kind,
                        operator.dtype,
                        tuple(row * rows for rows in arguments["sent"]),
                    )
                )
        return result


# -- against one rank ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ParallelCheck:
    """An expert-parallel step beside the same step on one rank."""

    losses: list[float]
    """Total loss of each rank's tokens."""
    single_loss: float
    """Of all tokens on one rank."""
    largest_gradient_error: float
    """Over all weights: norm of the difference over the norm of the single rank's gradient."""
    traffic: list[list[PeerTraffic]]
    """[rank], in order of issue."""


def check_expert_parallel(
    config: ModelConfig,
    *,
    recipe: Recipe,
    ranks: int,
    sequences: int,
    context: int,
    seed: int,
    backend: str,
    timeout_s: float,
) -> ParallelCheck:
    """Run one step over `ranks` ranks of `sequences` each, and on one rank that has them all.

    In float32 both agree to rounding. In low precision what returns to a token is rounded on every
    rank before it is summed, as in a real deployment, which a single rank does not do; where the
    choices of each token lie on one rank there is no such sum and both agree again."""
    if ranks < 1 or config.n_routed_experts % ranks:
        raise ValueError(f"ranks = {ranks} do not divide {config.n_routed_experts} routed experts")
    results = run_ranks(
        _step,
        (config, recipe.name, recipe.kernels, backend, sequences, context, seed),
        ranks=ranks,
        backend=backend,
        timeout_s=timeout_s,
    )
    device = rank_device(backend)
    choose_kernels(recipe.kernels, device)
    model, tokens = _model_and_tokens(
        config, recipe, device, sequences=sequences * ranks, context=context, seed=seed
    )
    losses, saved = model.loss(tokens, prediction_weight=0.3)
    model.backward(saved)
    error = 0.0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        parts = [result["gradients"][name] for result in results]
        ours = torch.cat(parts) if _EXPERT_WEIGHTS in name else parts[0]
        single = parameter.grad.cpu()
        error = max(error, float((ours - single).norm() / single.norm()))
    return ParallelCheck(
        losses=[result["loss"] for result in results],
        single_loss=float(losses.total),
        largest_gradient_error=error,
        traffic=[[PeerTraffic(*row) for row in result["traffic"]] for result in results],
    )


def _step(
    rank: int,
    ranks: int,
    config: ModelConfig,
    recipe: str,
    kernels: str,
    backend: str,
    sequences: int,
    context: int,
    seed: int,
) -> dict[str, Any]:
    """One step of one rank, in a process of its own."""
    device = rank_device(backend)
    choose_kernels(kernels, device)
    model, tokens = _model_and_tokens(
        config, Recipe(recipe, kernels), device,
        sequences=sequences * ranks, context=context, seed=seed,
    )  # fmt: skip
    spread_experts(model, rank=rank, ranks=ranks)
    own = tokens[rank * sequences : (rank + 1) * sequences]
    with PeerRecorder() as recorder:
        losses, saved = model.loss(own, prediction_weight=0.3)
        model.backward(saved, weight=1 / ranks)
    sum_shared_gradients(model)
    gradients = {
        name: torch.zeros_like(p, device="cpu") if p.grad is None else p.grad.cpu()
        for name, p in model.named_parameters()
    }
    return {
        "loss": float(losses.total),
        "gradients": gradients,
        "traffic": [tuple(row) for row in recorder.traffic],
    }


def _model_and_tokens(
    config: ModelConfig, recipe: Recipe, device: torch.device, *, sequences: int, context: int,
    seed: int,
) -> tuple[Transformer, Tensor]:  # fmt: skip
    """The same weights and tokens on every rank and device."""
    generator = torch.Generator().manual_seed(seed)
    initial = Transformer(config, recipe=recipe, device=torch.device("cpu"))
    initial.initialize(generator)
    model = Transformer(config, recipe=recipe, device=device)
    model.load_state_dict(initial.state_dict())
    length = context + 1 + config.num_nextn_predict_layers
    tokens = torch.randint(config.vocab_size, (sequences, length), generator=generator)
    return model, tokens.to(device)
