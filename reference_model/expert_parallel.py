"""Expert parallelism: spread the experts of one rank's model over a process group.

Every rank has the attention, gate and shared experts of all layers and its own tokens, and holds an
equal share of the routed experts, in order. A token travels once to each rank that holds one of its
choices, however many (Technical Report, section 3.2.2). The layers are those of blocks.py but for
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
from reference_model.blocks import MoEBlock
from reference_model.calls import arguments_of
from reference_model.config import ModelConfig
from reference_model.gpu import choose_kernels
from reference_model.model import Transformer
from reference_model.moe import ExpertRows, Layout, MoE, Received, Routed, SavedMoE
from reference_model.operators import NAMESPACE, Site
from reference_model.precision import Operand, Recipe
from reference_model.ranks import rank_device, run_ranks
from reference_model.recorder import OperatorRecorder

_EXPERT_WEIGHTS = ".experts."
"""Part of the names of the weights that ranks do not share."""


def exchange_layout(indices: Tensor, *, local_experts: int, ranks: int) -> Layout:
    """The layout of choices [T, K], after every rank has told every other how many rows come."""
    reached = torch.zeros((indices.shape[0], ranks), dtype=torch.bool, device=indices.device)
    homes = indices // local_experts
    reached.scatter_(1, homes, True)
    choices = homes.flatten().bincount(minlength=ranks)
    mine = torch.stack((reached.sum(dim=0), choices))
    told = [torch.empty_like(mine) for _ in range(ranks)]
    distributed.all_gather(told, mine)
    counts, expanded = torch.stack(told, dim=1).tolist()  # [from rank][to rank]
    return layout_of(reached, counts, expanded, rank=distributed.get_rank())


def layout_of(
    reached: Tensor, counts: list[list[int]], choices: list[list[int]], *, rank: int
) -> Layout:
    """The layout of one rank whose tokens reach ranks as `reached`, bool [T, ranks], says.

    Args:
        counts: [from rank][to rank], tokens that travel.
        choices: [from rank][to rank], chosen experts.
    """
    peers, source = torch.nonzero(reached.t(), as_tuple=True)
    token_rows = torch.full_like(reached, -1, dtype=torch.int64)
    token_rows[source, peers] = torch.arange(source.shape[0], device=source.device)
    return Layout(
        source,
        token_rows,
        sent=counts[rank],
        received=[row[rank] for row in counts],
        first=[sum(row[peer] for row in counts[:rank]) for peer in range(len(counts))],
        first_back=[sum(row[:rank]) for row in counts],
        expanded=sum(row[rank] for row in choices),
    )


class PeerMoE(MoE):
    """The feed-forward of a rank that holds some of the experts: what crosses ranks goes through
    peer_operators.py."""

    def __init__(
        self, config: ModelConfig, local_experts: int, *, recipe: Recipe, device: torch.device
    ) -> None:
        super().__init__(config, local_experts, recipe=recipe, device=device)
        self.local_experts = local_experts
        self.layout: Layout | None = None
        """Of all micro-batches, where it is known beforehand: then no rank asks the others."""

    def dispatch(self, routed: Routed, rows: ExpertRows, site: Site) -> Received:
        """Segment dispatch; how many rows arrive is known only once counts are exchanged."""
        layout = self.layout or exchange_layout(
            routed.indices, local_experts=self.local_experts, ranks=distributed.get_world_size()
        )
        ops.dispatch_layout(
            routed.indices, experts=self.config.n_routed_experts, site=site("moe.dispatch_layout")
        )
        x, scales, indices, weights = peer_ops.dispatch_to_peers(
            routed.x.values, routed.x.scales, routed.indices, routed.weights, layout.source,
            sent=layout.sent, received=layout.received, first=layout.first,
            local_experts=self.local_experts, site=site("moe.dispatch"),
        )  # fmt: skip
        values = Operand(x, None if routed.x.scales is None else scales)
        rows = ExpertRows(received=sum(layout.received), expanded=layout.expanded)
        return Received(values, indices, weights, rows, layout)

    def combine(self, out: Tensor, shared_out: Tensor, layout: Layout | None) -> Tensor:
        """See MoE."""
        assert layout is not None
        return peer_ops.combine_from_peers(
            out, shared_out, layout.token_rows, sent=layout.received, received=layout.sent,
            first=layout.first_back, site=Site("forward", "combine")("moe.combine"),
        )  # fmt: skip

    def combine_input_grad(self, cast: Operand, saved: SavedMoE) -> Operand:
        """See MoE."""
        layout = saved.layout
        assert layout is not None
        values, scales = peer_ops.dispatch_cached_to_peers(
            cast.values, cast.scales, layout.source, sent=layout.sent, received=layout.received,
            first=layout.first, site=Site("input_grad", "combine")("moe.combine.input_grad"),
        )  # fmt: skip
        return Operand(values, None if cast.scales is None else scales)

    def dispatch_input_grad(
        self, x_grad: Tensor, shared_x_grad: Tensor, weights_grad: Tensor, saved: SavedMoE
    ) -> tuple[Tensor, Tensor]:
        """See MoE."""
        layout = saved.layout
        assert layout is not None
        return peer_ops.combine_backward_from_peers(
            x_grad, shared_x_grad, weights_grad, layout.token_rows,
            sent=layout.received, received=layout.sent, first=layout.first_back,
            site=Site("input_grad", "dispatch")("moe.dispatch.input_grad"),
        )  # fmt: skip


class ExpertParallelBlock(MoEBlock):
    """A mixture-of-experts layer that holds the experts of one rank."""

    mlp: PeerMoE

    def __init__(self, block: MoEBlock, *, rank: int, ranks: int) -> None:
        """Takes this rank's share of the weights of `block`, which holds all experts."""
        config, recipe = block.mlp.config, block.mlp.recipe
        local_experts = config.n_routed_experts // ranks
        device = block.mlp.gate.proj.weight.device
        super().__init__(config, 0, recipe=recipe, device=device)
        self.mlp = PeerMoE(config, local_experts, recipe=recipe, device=device)
        own = slice(rank * local_experts, (rank + 1) * local_experts)
        self.load_state_dict(
            {
                name: tensor[own] if _EXPERT_WEIGHTS in name else tensor
                for name, tensor in block.state_dict().items()
            }
        )


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
            arguments = arguments_of(func, args, kwargs or {})
            if "sent" in arguments:
                row = sum(
                    tensor.shape[1] * tensor.element_size()
                    for tensor in map(arguments.get, self._PAYLOAD)
                    if tensor is not None
                )
                operator = self.recorded[-1]
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
