"""Pipeline parallelism: real ranks run a training step in the order of a schedule.

A schedule holds order only: one line a rank, whose actions (pipeline_actions.py) are separated by
spaces.

`dsv3sim show schedule dualpipe --ranks 4 --microbatches 8` prints such lines; anything up to a "|"
is a heading. Which rank runs which stage for which micro-batch follows from the order. Every rank
performs its actions one after another, waits for what arrives from other ranks, and never for what
it sends; an order that cannot be performed ends in a timeout. The two chunks of a pair run one
after the other here: there is no second processor to overlap them on.

What one rank sends another as activations, and what as gradients, goes through a lane of its own, a
process group of the two. NCCL knows no tags and keeps the order of what it sends in a lane, so
ranks receive in the order of the sender's actions. It connects two ranks when both are at the same
send, so all lanes are connected beforehand, in one order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import ProcessException

from reference_model.blocks import ResidualStream, run_weight_grads
from reference_model.config import ModelConfig
from reference_model.gpu import choose_kernels
from reference_model.layers import rotary_angles
from reference_model.model import Embedding, SavedStep, Transformer, head_input_grad, head_loss
from reference_model.moe import ExpertRows
from reference_model.operators import Site
from reference_model.pipeline_actions import Action, Chunk, parse_action
from reference_model.precision import Recipe
from reference_model.ranks import rank_device, run_ranks

PREDICTION_WEIGHT = 0.3


# -- the order -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """What every rank does, in order."""

    ranks: tuple[tuple[Action, ...], ...]
    """[rank]: actions in order."""

    @property
    def chunks(self) -> list[tuple[int, Chunk]]:
        """Rank and chunk, of every action of every rank."""
        return [
            (rank, chunk)
            for rank, actions in enumerate(self.ranks)
            for action in actions
            for chunk in action.chunks
        ]

    @property
    def stages(self) -> int:
        return 1 + max(chunk.stage for _, chunk in self.chunks)

    @property
    def microbatches(self) -> int:
        return 1 + max(chunk.microbatch for _, chunk in self.chunks)

    @property
    def rank_of(self) -> dict[tuple[int, int], int]:
        """The rank of each (stage, micro-batch)."""
        return {(c.stage, c.microbatch): rank for rank, c in self.chunks if c.work == "F"}


def parse_order(text: str, *, source: str) -> Order:
    """Read the order of all ranks; `source` is the name that errors give it.

    Raises ValueError where an action cannot be read, or a micro-batch does not pass each stage once
    forward and once backward on the same rank."""
    ranks = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        actions = line.rpartition("|")[2].split()
        try:
            ranks.append(tuple(map(parse_action, actions)))
        except ValueError as error:
            raise ValueError(f"{source}, line {number}: {error}") from None
    order = Order(tuple(ranks))
    if not order.chunks:
        raise ValueError(f"{source}: holds no action")
    _check_complete(order, source)
    return order


def _check_complete(order: Order, source: str) -> None:
    works: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for rank, chunk in order.chunks:
        works.setdefault((chunk.stage, chunk.microbatch), []).append((chunk.work, rank))
    for stage in range(order.stages):
        for microbatch in range(order.microbatches):
            found = works.get((stage, microbatch), [])
            names = "".join(sorted(work for work, _ in found))
            if names not in ("BF", "FIW") or len({rank for _, rank in found}) != 1:
                raise ValueError(
                    f"{source}: stage {stage} of micro-batch {microbatch} has"
                    f" {found or 'nothing'}; allowed: F and B, or F, I and W, on one rank"
                )


# -- one stage -------------------------------------------------------------------------------------


class Stage:
    """Some consecutive layers of a model; the first stage has the embedding as well, the last one
    norm, head and the multi-token prediction module, with an embedding that it shares."""

    def __init__(self, model: Transformer, *, stage: int, stages: int, weight: float) -> None:
        """`weight` is that of a micro-batch's mean loss."""
        config = model.config
        layers = config.num_hidden_layers
        self.first, self.last = stage == 0, stage == stages - 1
        self.index = range(stage * layers // stages, (stage + 1) * layers // stages)
        self.blocks = [model.blocks[i] for i in self.index]
        self.norm, self.head = model.norm, model.lm_head
        self.mtp = model.mtp if self.last else None
        self.embedding: Embedding = model.embed_tokens
        self.config = config
        self.weight = weight

    def modules(self) -> dict[str, nn.Module]:
        """The parts of the model that this stage has, under their names there."""
        found: dict[str, nn.Module] = {
            f"layers.{i}": block for i, block in zip(self.index, self.blocks, strict=True)
        }
        if self.first or self.mtp is not None:
            found["embed_tokens"] = self.embedding
        if self.last:
            found |= {"norm": self.norm, "lm_head": self.head}
        if self.mtp is not None:
            found["mtp"] = self.mtp
        return found

    def forward(
        self, tokens: Tensor, stream: ResidualStream | None
    ) -> tuple[ResidualStream, float | None, SavedStep]:
        """Take sequences [S, .] of a micro-batch, and the stream that entered (none enters the
        first stage), to the stream that leaves, and in the last stage the total loss."""
        inputs, angles, rows = self._inputs(tokens)
        if stream is None:
            stream = ResidualStream(self.embedding(inputs), None)
        saved = SavedStep(inputs, [], None, None, PREDICTION_WEIGHT, angles, rows)
        for block in self.blocks:
            stream, saved_block = block(stream, angles, rows)
            saved.blocks.append(saved_block)
        if not self.last:
            return stream, None, saved
        length = angles.length
        targets = [tokens[:, by : by + length].reshape(-1) for by in (1, 2)]
        loss, normed, saved.head = head_loss(self.norm, self.head, stream, targets[0])
        total = float(loss)
        if self.mtp is not None:
            predicted, saved.prediction = self.mtp.loss(
                normed, *targets, embedding=self.embedding, head=self.head, angles=angles, rows=rows
            )
            total += saved.prediction_weight * float(predicted)
        return stream, total, saved

    def input_grad(
        self, saved: SavedStep, grad: Tensor | None
    ) -> tuple[Tensor, list[Callable[[], None]]]:
        """Turn the gradient of the stream that left (none comes to the last stage) into that of the
        stream that entered [T, H], and the weight gradients, to be run in order."""
        angles, rows = saved.angles, saved.rows
        put_off: list[Callable[[], None]] = []
        if self.last:
            normed_grad = None
            if self.mtp is not None:
                assert saved.prediction is not None
                normed_grad, prediction = self.mtp.input_grad(
                    saved.prediction, self.embedding, self.head, angles, rows,
                    weight=self.weight * saved.prediction_weight,
                )  # fmt: skip
                put_off.append(partial(run_weight_grads, prediction))
            assert saved.head is not None
            grad, head = head_input_grad(
                self.norm, self.head, saved.head, weight=self.weight, normed_grad=normed_grad
            )
            put_off.append(partial(head, Site("weight_grad", "head")))
        assert grad is not None
        for block, saved_block in zip(self.blocks[::-1], saved.blocks[::-1], strict=True):
            grad, weight_grads = block.input_grad(grad, saved_block, angles, rows)
            put_off.append(partial(run_weight_grads, weight_grads))
        if self.first:
            site = Site("weight_grad", "embedding")
            put_off.append(partial(self.embedding.weight_grad, grad, saved.tokens, site))
        return grad, put_off

    def _inputs(self, tokens: Tensor) -> tuple[Tensor, Any, ExpertRows]:
        length = tokens.shape[1] - 1 - self.config.num_nextn_predict_layers
        count = tokens.shape[0] * length
        return (
            tokens[:, :length].reshape(-1),
            rotary_angles(self.config, length, device=tokens.device),
            ExpertRows(received=count, expanded=count * self.config.num_experts_per_tok),
        )


# -- one rank --------------------------------------------------------------------------------------


Lane = tuple[int, int, str]
"""From rank, to rank, and F or B."""


def lanes(order: Order) -> dict[Lane, list[Chunk]]:
    """Every lane between two ranks, with what is sent through it, in the sender's order: the works
    that wait for it, B for I too."""
    found: dict[Lane, list[Chunk]] = {}
    for rank, (work, stage, microbatch) in order.chunks:
        to = stage + 1 if work == "F" else stage - 1
        if work == "W" or not 0 <= to < order.stages:
            continue
        peer, kind = order.rank_of[to, microbatch], "F" if work == "F" else "B"
        if peer != rank:
            found.setdefault((rank, peer, kind), []).append(Chunk(kind, to, microbatch))
    return found


class _Mail:
    """Tensors on their way between stages, through other processes or within this one."""

    def __init__(self, order: Order, rank: int, device: torch.device) -> None:
        self.rank_of = order.rank_of
        self.rank = rank
        self.here: dict[Chunk, Tensor] = {}
        self.sent: list[tuple[Any, Tensor]] = []
        self.lanes = lanes(order)
        self.arrived = dict.fromkeys(self.lanes, 0)
        self.groups = {lane: distributed.new_group(sorted(lane[:2])) for lane in self.lanes}
        for (source, target, _), group in self.groups.items():
            if rank == source:
                distributed.send(torch.zeros(1, device=device), target, group=group)
            elif rank == target:
                distributed.recv(torch.zeros(1, device=device), source, group=group)

    def send(self, tensor: Tensor, to: Chunk) -> None:
        """Post what a work, F or B, needs."""
        peer = self.rank_of[to.stage, to.microbatch]
        if peer == self.rank:
            self.here[to] = tensor
        else:
            tensor, lane = tensor.contiguous(), (self.rank, peer, to.work)
            # Gloo keeps no order, but has tags.
            tag = 1 + self.lanes[lane].index(to)
            sending = distributed.isend(tensor, peer, group=self.groups[lane], tag=tag)
            self.sent.append((sending, tensor))

    def receive(self, like: Tensor, to: Chunk, *, from_stage: int) -> Tensor:
        """Wait for what a work needs; `like` has the shape and type of all that comes that way."""
        peer = self.rank_of[from_stage, to.microbatch]
        lane = (peer, self.rank, to.work)
        while to not in self.here:
            tensor, place = torch.empty_like(like), self.arrived[lane]
            distributed.recv(tensor, peer, group=self.groups[lane], tag=1 + place)
            self.here[self.lanes[lane][place]] = tensor
            self.arrived[lane] += 1
        return self.here.pop(to)

    def finish(self) -> None:
        """Wait until everything sent has been received."""
        for request, _ in self.sent:
            request.wait()


def run_rank(
    order: Order, rank: int, model: Transformer, tokens: Tensor
) -> tuple[dict[int, float], dict[str, Tensor], int]:
    """Perform the actions of `rank` on tokens [micro-batch, sequence, .]; the process group has the
    order's ranks. Returns the loss of each micro-batch that ended here, gradients of the stages
    that this rank has, under the model's names, and the most chunks whose activations were held at
    once."""
    held = {
        number: Stage(model, stage=number, stages=order.stages, weight=1 / order.microbatches)
        for number in sorted({c.stage for r, c in order.chunks if r == rank})
    }
    mail = _Mail(order, rank, tokens.device)
    hidden = model.config.hidden_size
    rows = tokens.shape[1] * (tokens.shape[2] - 1 - model.config.num_nextn_predict_layers)
    losses: dict[int, float] = {}
    saved: dict[tuple[int, int], SavedStep] = {}
    put_off: dict[tuple[int, int], list[Callable[[], None]]] = {}
    most_held = 0
    for work, number, microbatch in (c for action in order.ranks[rank] for c in action.chunks):
        stage, key = held[number], (number, microbatch)
        if work == "F":
            stream = None
            if not stage.first:
                like = tokens.new_empty((2, rows, hidden), dtype=model.recipe.dtype)
                both = mail.receive(like, Chunk("F", number, microbatch), from_stage=number - 1)
                stream = ResidualStream(both[0], both[1])
            stream, loss, saved[key] = stage.forward(tokens[microbatch], stream)
            if loss is not None:
                losses[microbatch] = loss
            else:
                assert stream.update is not None
                both = torch.stack((stream.residual, stream.update))
                mail.send(both, Chunk("F", number + 1, microbatch))
            most_held = max(most_held, len(saved) + len(put_off))
            continue
        if work in "BI":
            grad = None
            if not stage.last:
                like = tokens.new_empty((rows, hidden), dtype=model.recipe.dtype)
                grad = mail.receive(like, Chunk("B", number, microbatch), from_stage=number + 1)
            grad, put_off[key] = stage.input_grad(saved.pop(key), grad)
            if not stage.first:
                mail.send(grad, Chunk("B", number - 1, microbatch))
        if work in "BW":
            for weight_grad in put_off.pop(key):
                weight_grad()
    mail.finish()
    return losses, _gradients(held.values()), most_held


def _gradients(stages: Iterable[Stage]) -> dict[str, Tensor]:
    """Gradients of the weights of stages, each once, under the model's names."""
    modules = {name: module for stage in stages for name, module in stage.modules().items()}
    return {
        f"{prefix}.{name}": parameter.grad
        for prefix, module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


# -- against one rank ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PipelineCheck:
    """A step by a schedule's ranks beside the same step on one."""

    losses: list[float]
    """Total loss of each micro-batch."""
    serial_losses: list[float]
    largest_gradient_error: float
    """Over all weights: norm of the difference over the norm of the serial gradient."""
    weights: int
    """Tensors whose gradients were compared."""
    most_held: list[int]
    """[rank]: most chunks whose activations were held at once."""
    seconds: float
    """Wall time of the ranks, their start included."""


def check_pipeline(
    order: Order,
    config: ModelConfig,
    *,
    recipe: Recipe,
    sequences: int,
    context: int,
    seed: int,
    backend: str,
    timeout_s: float,
) -> PipelineCheck:
    """Run one step, `sequences` of `context` tokens a micro-batch, by the order's ranks, on CPUs
    over gloo or on GPUs over NCCL, and serially.

    Raises ValueError where the model has fewer layers than the order has stages, or the order has
    not been performed in time."""
    if config.num_hidden_layers < order.stages:
        raise ValueError(
            f"the order has {order.stages} stages, the model only {config.num_hidden_layers} layers"
        )
    start = time.perf_counter()
    try:
        results = run_ranks(
            _step,
            (order, config, recipe.name, recipe.kernels, sequences, context, seed, backend),
            ranks=len(order.ranks),
            backend=backend,
            timeout_s=timeout_s,
        )
    except (TimeoutError, ProcessException) as error:
        if "timed out" not in str(error).lower() and not isinstance(error, TimeoutError):
            raise
        raise ValueError(
            f"the order was not performed within {timeout_s:g} s: ranks wait for one another, or"
            " the step takes longer"
        ) from error
    seconds = time.perf_counter() - start
    gradients: dict[str, Tensor] = {}
    for _, parts, _ in results:
        for name, part in parts.items():
            gradients[name] = gradients[name] + part if name in gradients else part
    device = rank_device(backend)
    choose_kernels(recipe.kernels, device)
    model, tokens = _model_and_tokens(
        order, config, recipe, device, sequences=sequences, context=context, seed=seed
    )
    serial_losses = []
    for microbatch in tokens:
        losses, saved = model.loss(microbatch, prediction_weight=PREDICTION_WEIGHT)
        model.backward(saved, weight=1 / order.microbatches)
        serial_losses.append(float(losses.total))
    serial = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == serial.keys()
    ended = {microbatch: loss for losses, _, _ in results for microbatch, loss in losses.items()}
    return PipelineCheck(
        losses=[ended[microbatch] for microbatch in range(order.microbatches)],
        serial_losses=serial_losses,
        largest_gradient_error=max(
            float((gradients[name] - exact).norm() / exact.norm()) for name, exact in serial.items()
        ),
        weights=len(serial),
        most_held=[held for _, _, held in results],
        seconds=seconds,
    )


def _step(
    rank: int,
    ranks: int,
    order: Order,
    config: ModelConfig,
    recipe: str,
    kernels: str,
    sequences: int,
    context: int,
    seed: int,
    backend: str,
) -> tuple[dict[int, float], dict[str, Tensor], int]:
    """One rank's share of a step, in a process of its own."""
    device = rank_device(backend)
    choose_kernels(kernels, device)
    model, tokens = _model_and_tokens(
        order,
        config,
        Recipe(recipe, kernels),
        device,
        sequences=sequences,
        context=context,
        seed=seed,
    )
    with torch.no_grad():
        losses, gradients, most_held = run_rank(order, rank, model, tokens)
    return losses, {name: gradient.cpu() for name, gradient in gradients.items()}, most_held


def _model_and_tokens(
    order: Order,
    config: ModelConfig,
    recipe: Recipe,
    device: torch.device,
    *,
    sequences: int,
    context: int,
    seed: int,
) -> tuple[Transformer, Tensor]:
    """The same weights and micro-batches on every rank, drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    initial = Transformer(config, recipe=recipe, device=torch.device("cpu"))
    initial.initialize(generator)
    model = Transformer(config, recipe=recipe, device=device)
    model.load_state_dict(initial.state_dict())
    shape = (order.microbatches, sequences, context + 1 + config.num_nextn_predict_layers)
    tokens = torch.randint(config.vocab_size, shape, generator=generator)
    return model, tokens.to(device)
