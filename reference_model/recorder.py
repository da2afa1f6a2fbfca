"""Run the model and record the operators that its layers issue.

On the meta device the layers have their full size and no values, so that DeepSeek-V3 is recorded
in seconds: each kind of layer once, at several workloads, from which every size is solved as an
affine function of the workload variables and checked at one more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from reference_model.blocks import Block, DenseBlock, MoEBlock, ResidualStream, run_weight_grads
from reference_model.calls import describe_call, tensor_bytes
from reference_model.config import ModelConfig
from reference_model.layers import RMSNorm, Weight, gradient, rotary_angles
from reference_model.model import Embedding, Head, MultiTokenPrediction, head_input_grad, head_loss
from reference_model.moe import ExpertRows
from reference_model.operators import NAMESPACE, Site
from reference_model.precision import Recipe
from reference_model.split import WHOLE, Split, part_of
from reference_model.trace import (
    LAYER_KINDS,
    PHASES,
    Affine,
    Operator,
    OperatorTemplate,
    OperatorTrace,
    Workload,
)


class OperatorRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects every custom operator that runs inside it, on meta, CPU and CUDA alike, and the
    names of all other kernels."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorded: list[Operator] = []
        self.tensor_bytes: list[tuple[int, int]] = []
        """Of each, what its tensors say that it reads and writes."""
        self.others: list[str] = []
        """ATen operators called outside the custom ones, in order."""
        self.saved: dict[str, int] = {}
        """Of a training layer: phase -> bytes kept once it is over."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == NAMESPACE:
            self.recorded.append(describe_call(func, args, kwargs or {}, result))
            self.tensor_bytes.append(tensor_bytes(func, args, kwargs or {}, result))
        else:
            self.others.append(str(func))
        return result


# -- one layer -------------------------------------------------------------------------------------


def record_layer(
    config: ModelConfig,
    layer_kind: str,
    workload: Workload,
    *,
    recipe: Recipe,
    split: Split = WHOLE,
    recompute: str = "published",
) -> OperatorRecorder:
    """Run one layer of `layer_kind` on the meta device and record what it issues.

    Where it is split, tokens and received rows of the workload are those of one GPU.

    The layer is one within the model: its residual stream comes with an update to add, which only
    the very first layer's does not. Sizes are those of the config; values do not exist."""
    meta = torch.device("meta")
    layer = LAYERS[layer_kind](config, workload, recipe, meta, split)
    layer.recompute = recompute
    choose_recomputation(layer, recompute)
    prepare_weights(layer)
    recorder = OperatorRecorder()
    with torch.no_grad(), recorder:
        recorder.saved = layer.run()
    return recorder


def choose_recomputation(module: nn.Module, recompute: str) -> None:
    """Choose what the backward of every layer computes again, one of RECOMPUTATIONS."""
    for child in module.modules():
        if isinstance(child, Block):
            child.recompute = recompute


def prepare_weights(module: nn.Module) -> None:
    """Make the working copies of all weights and the accumulators of their gradients, which a step
    does once and not for every micro-batch."""
    for child in module.modules():
        if isinstance(child, Weight):
            child.working_copy()
            gradient(child.weight)
        elif isinstance(child, RMSNorm):
            gradient(child.weight)


class Layer(nn.Module):
    """A layer and what enters it; `run` takes it through its passes."""

    recompute = "published"

    def __init__(
        self,
        config: ModelConfig,
        workload: Workload,
        recipe: Recipe,
        device: torch.device,
        split: Split = WHOLE,
    ) -> None:
        super().__init__()
        self.config = config
        self.recipe = recipe
        self.device = device
        self.split = split
        self.own_tokens = workload.tokens
        self.angles = rotary_angles(config, workload.context, device=device)
        self.rows = ExpertRows(received=workload.received_rows, expanded=workload.expert_rows)
        # Every GPU knows the tokens of all that share its layers.
        every = split.tensor * workload.tokens
        self.tokens = torch.empty((every,), dtype=torch.int64, device=device)
        self.build(workload.local_experts)

    def build(self, local_experts: int) -> None:
        """Make the modules of the layer."""
        raise NotImplementedError

    def run(self) -> dict[str, int]:
        """All passes; bytes kept after each phase."""
        raise NotImplementedError

    def hidden(self) -> Tensor:
        """Hidden states, or their gradient [T, H]."""
        shape = (self.own_tokens, self.config.hidden_size)
        return torch.empty(shape, dtype=self.recipe.dtype, device=self.device)


class _EmbeddingLayer(Layer):
    def build(self, local_experts: int) -> None:
        self.embedding = Embedding(
            self.config, recipe=self.recipe, device=self.device, split=self.split
        )

    def run(self) -> dict[str, int]:
        self.embedding(self.tokens)
        site = Site("weight_grad", "embedding")
        self.embedding.weight_grad(self.hidden(), self.tokens, site)
        return {"forward": _kept(self.tokens)}


class _BlockLayer(Layer):
    block: Any

    def run(self) -> dict[str, int]:
        stream = ResidualStream(self.hidden(), self.hidden())
        _, saved = self.block(stream, self.angles, self.rows)
        kept = {"forward": _kept(saved)}
        if self.recompute == "layer":
            saved = self.block.recomputed(saved, self.angles, self.rows)
            kept["recompute"] = _kept(saved)
        _, weight_grads = self.block.input_grad(self.hidden(), saved, self.angles, self.rows)
        kept["input_grad"] = _kept(weight_grads)
        run_weight_grads(weight_grads)
        return kept


class _DenseLayer(_BlockLayer):
    def build(self, local_experts: int) -> None:
        self.block = DenseBlock(
            self.config, recipe=self.recipe, device=self.device, split=self.split
        )


class _MoELayer(_BlockLayer):
    def build(self, local_experts: int) -> None:
        self.block = MoEBlock(
            self.config, local_experts, recipe=self.recipe, device=self.device, split=self.split
        )


class _PredictionLayer(Layer):
    def build(self, local_experts: int) -> None:
        self.mtp = MultiTokenPrediction(
            self.config, local_experts, recipe=self.recipe, device=self.device, split=self.split
        )
        self.embedding = Embedding(
            self.config, recipe=self.recipe, device=self.device, split=self.split
        )
        self.head = Head(self.config, recipe=self.recipe, device=self.device, split=self.split)

    def run(self) -> dict[str, int]:
        _, saved = self.mtp.loss(
            self.hidden(),
            self.tokens,
            self.tokens,
            embedding=self.embedding,
            head=self.head,
            angles=self.angles,
            rows=self.rows,
        )
        kept = {"forward": _kept(saved)}
        if self.recompute == "layer":
            saved.block = self.mtp.block.recomputed(saved.block, self.angles, self.rows)
            kept["recompute"] = _kept(saved)
        _, weight_grads = self.mtp.input_grad(
            saved, self.embedding, self.head, self.angles, self.rows, weight=1.0
        )
        kept["input_grad"] = _kept(weight_grads)
        run_weight_grads(weight_grads)
        return kept


class _HeadLayer(Layer):
    def build(self, local_experts: int) -> None:
        config = self.config
        self.norm = RMSNorm(
            "head.norm", config.hidden_size, eps=config.rms_norm_eps, device=self.device
        )
        self.head = Head(config, recipe=self.recipe, device=self.device, split=self.split)

    def run(self) -> dict[str, int]:
        stream = ResidualStream(self.hidden(), self.hidden())
        _, _, saved = head_loss(self.norm, self.head, stream, self.tokens, recompute=self.recompute)
        after_forward = _kept(saved)
        # A multi-token prediction module reads the normed stream too and returns its gradient. A
        # model without one issues the same less the addition (trace.py, `MTP_ALONE`).
        mtp = self.hidden()
        _, weight_grad = head_input_grad(self.norm, self.head, saved, weight=1.0, normed_grad=mtp)
        after_input_grad = _kept(weight_grad)
        weight_grad(Site("weight_grad", "head"))
        return {"forward": after_forward, "input_grad": after_input_grad}


LAYERS: dict[str, type[Layer]] = {
    "embedding": _EmbeddingLayer,
    "dense": _DenseLayer,
    "moe": _MoELayer,
    "mtp": _PredictionLayer,
    "head": _HeadLayer,
}


def _kept(value: Any) -> int:
    """Bytes of the distinct storages that hold the tensors of `value`, weights apart."""
    storages = {
        storage._cdata: storage.nbytes()
        for storage in (tensor.untyped_storage() for tensor in _tensors(value))
    }
    return sum(storages.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, nn.Module):
        return
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for item in dataclasses.fields(value):
            yield from _tensors(getattr(value, item.name))
    elif isinstance(value, partial):
        yield from _tensors((value.args, value.keywords))
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


# -- every layer -----------------------------------------------------------------------------------

POINTS = (
    Workload(256, 256, 1, 1024, 384, 2),
    Workload(512, 256, 2, 1024, 384, 2),
    Workload(512, 512, 1, 1024, 384, 2),
    Workload(1024, 512, 2, 1024, 384, 2),
    Workload(256, 256, 1, 1536, 384, 2),
    Workload(256, 256, 1, 1024, 640, 2),
    Workload(256, 256, 1, 1024, 384, 3),
)
"""Workloads from which sizes are solved: as many as an affine function of the variables needs."""

UNSEEN = Workload(1920, 640, 3, 4352, 1664, 5)
"""The workload at which the solution is checked."""


def workloads(split: Split) -> tuple[list[Workload], Workload]:
    """`POINTS` and `UNSEEN` where layers are split: sequences are those of all GPUs that share a
    layer, so that as many are longer by as much."""
    *points, unseen = (
        point._replace(context=split.tensor * point.context) for point in (*POINTS, UNSEEN)
    )
    return points, unseen


def record_trace(
    config: ModelConfig,
    *,
    model: str,
    recipe: Recipe,
    split: Split = WHOLE,
    recompute: str = "published",
) -> OperatorTrace:
    """Record one training micro-batch of every kind of layer, on the meta device.

    Where layers are split, the variables tokens and received_rows are those of one GPU.

    Kinds of which the config has no layer are recorded too, so that one recording serves all models
    of these shapes.

    `model` names the config in the trace. Raises ValueError where a size is not an affine function
    of the workload variables, and for GPUs that do not divide what they share."""
    part_of(config, split)
    points, unseen_point = workloads(split)
    templates: dict[tuple[str, str], tuple[OperatorTemplate, ...]] = {}
    saved: dict[tuple[str, str], Affine] = {}
    for kind in LAYER_KINDS:
        *records, unseen = (
            record_layer(config, kind, point, recipe=recipe, split=split, recompute=recompute)
            for point in (*points, unseen_point)
        )
        solved = solve_layer(
            kind, [record.recorded for record in records], unseen.recorded, split=split
        )
        for phase in PHASES:
            section = tuple(template for template in solved if template.phase == phase)
            if section:
                templates[kind, phase] = section
        for phase in unseen.saved:
            saved[kind, phase] = solve_affine(
                [record.saved[phase] for record in records],
                unseen.saved[phase],
                what=f"bytes that layer {kind} keeps after {phase}",
                split=split,
            )
    return OperatorTrace(
        model=model,
        shape_digest=config.shape_digest,
        job="train",
        recipe=recipe.name,
        split=split,
        recompute=recompute,
        templates=templates,
        saved=saved,
    )


def solve_layer(
    kind: str,
    points: Sequence[Sequence[Operator]],
    unseen: Sequence[Operator],
    *,
    split: Split = WHOLE,
) -> list[OperatorTemplate]:
    templates = []
    for *seen, check in zip(*points, unseen, strict=True):
        first = seen[0]
        what = f"layer {kind}, {first.phase} {first.name}"
        if any(_identity(operator) != _identity(first) for operator in (*seen, check)):
            raise ValueError(f"{what}: which operator is issued depends on the workload")
        sizes = tuple(
            (
                name,
                solve_affine(
                    [operator[name] for operator in seen],
                    check[name],
                    what=f"{what}, size {name}",
                    split=split,
                ),
            )
            for name, _ in first.sizes
        )
        template = OperatorTemplate(**(_identity(first) | {"sizes": sizes}))
        templates.append(template)
    return templates


def _identity(operator: Operator) -> dict[str, Any]:
    """Everything but the sizes."""
    return {
        item.name: getattr(operator, item.name)
        for item in dataclasses.fields(operator)
        if item.name != "sizes"
    }


def solve_affine(values: Sequence[int], unseen: int, *, what: str, split: Split = WHOLE) -> Affine:
    """The affine function of the workload variables that takes `values` at the workloads recorded,
    checked against the value `unseen` at one more. ValueError, naming `what`, if there is none."""
    points, unseen_point = workloads(split)
    rows = [
        [Fraction(1), *map(Fraction, point), Fraction(value)]
        for point, value in zip(points, values, strict=True)
    ]
    solution = _eliminate(rows)
    if any(coefficient.denominator != 1 for coefficient in solution):
        raise ValueError(f"{what}: {list(values)} is not affine in whole numbers")
    constant, *coefficients = (int(coefficient) for coefficient in solution)
    affine = Affine(
        constant=constant,
        coefficients=tuple(
            sorted((name, c) for name, c in zip(Workload._fields, coefficients, strict=True) if c)
        ),
    )
    predicted = affine.at(unseen_point._asdict())
    if predicted != unseen:
        raise ValueError(
            f"{what}: {unseen} at {unseen_point}, where the affine function through the other"
            f" workloads gives {predicted}"
        )
    return affine


def _eliminate(rows: list[list[Fraction]]) -> list[Fraction]:
    """Solve the linear system whose augmented rows these are, by Gauss-Jordan elimination."""
    for column in range(len(rows)):
        pivot = next(r for r in range(column, len(rows)) if rows[r][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for r, row in enumerate(rows):
            if r != column and row[column]:
                factor = row[column]
                rows[r] = [a - factor * b for a, b in zip(row, rows[column], strict=True)]
    return [row[-1] for row in rows]
