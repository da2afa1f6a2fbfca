"""An overlapped pair: the forward of one micro-batch beside the backward of another.

Both go through the same mixture-of-experts layers, whose experts are spread over ranks. A rank
issues the parts of the layers (attention, dispatch, mlp, combine, and the weight gradients) in an
order that is given as data (pair_order.py), on two streams of its GPU: compute, and communication
for dispatch and combine. On CPUs the parts run one after another in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from reference_model.blocks import (
    MoEBlock,
    ResidualStream,
    SavedBlock,
    WeightGrads,
    run_weight_grads,
)
from reference_model.config import ModelConfig
from reference_model.expert_parallel import ExpertParallelBlock
from reference_model.gpu import choose_kernels
from reference_model.layers import Angles, rotary_angles
from reference_model.moe import ExpertRows, SavedMoE
from reference_model.operators import Site
from reference_model.pair_order import (
    COMMUNICATION,
    COMPUTE,
    FORWARD,
    INPUT_GRAD,
    WEIGHT_GRAD,
    Part,
    layers_of,
)
from reference_model.precision import Recipe
from reference_model.ranks import rank_device, run_ranks
from reference_model.recorder import prepare_weights

UNKNOWN = ExpertRows(received=0, expanded=0)
"""What arrives is known only once the ranks have told each other."""


# -- streams ---------------------------------------------------------------------------------------


class Streams:
    """Where parts run: in turn on a CPU, on two streams of a GPU."""

    @contextmanager
    def part(self, number: int, part: Part) -> Iterator[None]:
        """Run what is issued inside on the part's stream, once what it waits for is over."""
        yield

    def join(self) -> None:
        """Let the stream that was current wait for all parts."""


class TwoStreams(Streams):
    """The current stream computes; another one, which goes first, communicates."""

    def __init__(self, communication: torch.cuda.Stream) -> None:
        self.streams = {COMPUTE: torch.cuda.current_stream(), COMMUNICATION: communication}
        self.over: dict[int, tuple[str, torch.cuda.Event]] = {}
        communication.wait_stream(self.streams[COMPUTE])

    @contextmanager
    def part(self, number: int, part: Part) -> Iterator[None]:
        """See Streams."""
        stream = self.streams[part.stream]
        for earlier in part.after:
            name, event = self.over[earlier]
            if name != part.stream:
                stream.wait_event(event)
        with torch.cuda.stream(stream):
            yield
        self.over[number] = (part.stream, stream.record_event())

    def join(self) -> None:
        """See Streams."""
        self.streams[COMPUTE].wait_stream(self.streams[COMMUNICATION])


# -- running one -----------------------------------------------------------------------------------


@dataclass(slots=True)
class PairResult:
    """What a pair computes."""

    stream: ResidualStream
    """Of the forward micro-batch, behind the last layer."""
    saved: list[SavedBlock[SavedMoE]]
    """Of its layers."""
    grad: Tensor
    """Of the stream that entered the first layer, of the backward micro-batch [T, H]."""
    running: list[Iterator[Any]]
    """Holds every tensor that goes from one stream to the other: to be dropped when all is over."""


def run_pair(
    order: Sequence[Part],
    layers: Sequence[MoEBlock],
    *,
    stream: ResidualStream,
    grad: Tensor,
    saved: Sequence[SavedBlock[SavedMoE]],
    angles: Angles,
    streams: Streams,
    each: Callable[[int, Part], None] = lambda _number, _part: None,
    rows: ExpertRows = UNKNOWN,
) -> PairResult:
    """Take `stream` forward through the layers, and `grad`, which goes with `saved`, backward.

    Weight gradients are added to those of the layers. `each` is called on the part's stream before
    a part.

    Raises ValueError where the order is of another number of layers."""
    if layers_of(order) != len(layers):
        raise ValueError(f"the order is of {layers_of(order)} layers, not of {len(layers)}")
    forward: list[Iterator[Any]] = []
    backward: list[Iterator[Any]] = []
    late: dict[tuple[int, str], list[Any]] = {}
    kept: list[SavedBlock[SavedMoE]] = []
    for number, part in enumerate(order):
        with streams.part(number, part):
            each(number, part)
            if part.phase == FORWARD:
                if part.layer == len(forward):
                    forward.append(layers[part.layer].forward_segments(stream, angles, rows))
                result = next(forward[part.layer])
                if result is not None:
                    stream, saved_block = result
                    kept.append(saved_block)
            elif part.phase == INPUT_GRAD:
                at = len(layers) - 1 - part.layer
                if part.layer == len(backward):
                    backward.append(layers[at].input_grad_segments(grad, saved[at], angles))
                result = next(backward[part.layer])
                if part.segment == "mlp":
                    late[part.layer, "mlp"] = result
                elif part.segment == "attention":
                    grad, late[part.layer, "attention"] = result
            else:
                for weight_grad in late.pop((part.layer, part.segment)):
                    weight_grad(Site(WEIGHT_GRAD, part.segment))
    streams.join()
    return PairResult(stream, kept, grad, forward + backward)


def run_forward(
    layers: Sequence[MoEBlock],
    stream: ResidualStream,
    angles: Angles,
    *,
    rows: ExpertRows = UNKNOWN,
) -> tuple[ResidualStream, list[SavedBlock[SavedMoE]]]:
    """A forward chunk that runs alone."""
    saved = []
    for layer in layers:
        stream, saved_block = layer(stream, angles, rows)
        saved.append(saved_block)
    return stream, saved


def run_backward(
    layers: Sequence[MoEBlock], grad: Tensor, saved: Sequence[SavedBlock[SavedMoE]], angles: Angles
) -> Tensor:
    """A backward chunk that runs alone, its weight gradients included."""
    for layer, saved_block in zip(reversed(layers), reversed(saved), strict=True):
        weight_grads: WeightGrads
        grad, weight_grads = layer.input_grad(grad, saved_block, angles, UNKNOWN)
        run_weight_grads(weight_grads)
    return grad


# -- against one micro-batch after another ---------------------------------------------------------


def build_layers(
    config: ModelConfig, count: int, *, recipe: Recipe, device: torch.device, rank: int,
    ranks: int, seed: int,
) -> list[ExpertParallelBlock]:  # fmt: skip
    """This rank's share of `count` layers with random weights, the same on every rank."""
    generator = torch.Generator(device).manual_seed(seed)
    layers = []
    for _ in range(count):
        whole = MoEBlock(config, config.n_routed_experts, recipe=recipe, device=device)
        with torch.no_grad():
            for parameter in whole.parameters():
                if parameter.dim() == 1:
                    parameter.fill_(1)
                else:
                    parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
        layers.append(ExpertParallelBlock(whole, rank=rank, ranks=ranks))
        prepare_weights(layers[-1])
    return layers


def random_rows(
    config: ModelConfig, tokens: int, *, recipe: Recipe, device: torch.device, seed: int
) -> Tensor:
    """Hidden states or gradients [tokens, H]."""
    generator = torch.Generator(device).manual_seed(seed)
    rows = torch.randn((tokens, config.hidden_size), generator=generator, device=device)
    return rows.to(recipe.dtype)


def check_pair(
    order: Sequence[Part], config: ModelConfig, *, recipe: Recipe, ranks: int, sequences: int,
    context: int, seed: int, backend: str, programs: int | None, timeout_s: float,
) -> tuple[float, float, float]:  # fmt: skip
    """Run forward, pair and backward of two micro-batches, and the same one after another.

    Returns the largest error of all weights' gradients on all ranks (norm of the difference over
    the norm of the gradient), of what the forward micro-batch puts out, and of the gradient that
    the backward micro-batch gives back.

    Args:
        programs: of the copy kernels that move tokens between GPUs in the pair; None leaves that to
            the process group, as it is in the run that is compared with."""
    if ranks < 1 or config.n_routed_experts % ranks:
        raise ValueError(f"ranks = {ranks} do not divide {config.n_routed_experts} routed experts")
    if programs is not None and rank_device(backend).type != "cuda":
        raise ValueError(f"copy kernels over {backend}: they need GPUs that reach each other")
    found = run_ranks(
        _check,
        (tuple(order), config, recipe.name, recipe.kernels, backend, sequences, context, seed,
         programs),
        ranks=ranks, backend=backend, timeout_s=timeout_s,
    )  # fmt: skip
    gradients, outputs, input_grads = zip(*found, strict=True)
    return max(gradients), max(outputs), max(input_grads)


def _check(
    rank: int, ranks: int, order: Sequence[Part], config: ModelConfig, recipe_name: str,
    kernels: str, backend: str, sequences: int, context: int, seed: int, programs: int | None,
) -> tuple[float, float, float]:  # fmt: skip
    """Errors of one rank, in a process of its own: of gradients, output and input gradient."""
    device = rank_device(backend)
    recipe = Recipe(recipe_name, choose_kernels(kernels, device))
    layers = build_layers(
        config, layers_of(order), recipe=recipe, device=device, rank=rank, ranks=ranks, seed=seed
    )
    angles = rotary_angles(config, context, device=device)
    hidden, hidden_grad, other, other_grad = (
        random_rows(config, sequences * context, recipe=recipe, device=device,
                    seed=seed + 10 * ranks * number + rank + 1)
        for number in range(4)
    )  # fmt: skip

    def one_by_one() -> tuple[Tensor, Tensor]:
        _, saved = run_forward(layers, ResidualStream(hidden, None), angles)
        returned = run_backward(layers, hidden_grad, saved, angles)
        stream, saved = run_forward(layers, ResidualStream(other, None), angles)
        run_backward(layers, other_grad, saved, angles)
        return _total(stream), returned

    def paired() -> tuple[Tensor, Tensor]:
        _, saved = run_forward(layers, ResidualStream(hidden, None), angles)
        result = run_pair(
            order, layers, stream=ResidualStream(other, None), grad=hidden_grad, saved=saved,
            angles=angles, streams=two_streams(device),
        )  # fmt: skip
        total = _total(result.stream)
        run_backward(layers, other_grad, result.saved, angles)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return total, result.grad

    with torch.no_grad():
        output, returned = (x.clone() for x in one_by_one())
        expected = _take_gradients(layers)
        if programs is not None:
            row = config.hidden_size * recipe.dtype.itemsize
            size = 64 * len(layers) * ranks * sequences * context * row
            from reference_model.peer_memory import share_memory, use_peer_memory

            use_peer_memory(share_memory(size, programs=programs))
        paired_output, paired_returned = paired()
        found = _take_gradients(layers)
    return (
        max(_error(mine, theirs) for mine, theirs in zip(found, expected, strict=True)),
        _error(paired_output, output),
        _error(paired_returned, returned),
    )


def two_streams(device: torch.device) -> Streams:
    """Streams for one pair on a device."""
    if device.type != "cuda":
        return Streams()
    return TwoStreams(_communication_stream())


@cache
def _communication_stream() -> torch.cuda.Stream:
    """One for a process; what it launches goes before what others do."""
    return torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]


def _total(stream: ResidualStream) -> Tensor:
    """[T, H]"""
    return stream.residual if stream.update is None else stream.residual + stream.update


def _take_gradients(layers: Sequence[MoEBlock]) -> list[Tensor]:
    """All gradients, which are zero from here on."""
    taken = []
    for parameter in (p for layer in layers for p in layer.parameters()):
        assert parameter.grad is not None
        taken.append(parameter.grad.clone())
        parameter.grad.zero_()
    return taken


def _error(found: Tensor, expected: Tensor) -> float:
    difference = (found.float() - expected.float()).norm()
    return float(difference / expected.float().norm())
