"""Run the model and record the operators it issues: layers in, an OperatorTrace out.

Every custom operator is one event to a TorchDispatchMode, on meta, CPU and CUDA alike. On the meta
device the layers have their full size and no values, so that DeepSeek-V3 is recorded in seconds:
each kind of layer once, at several workloads, from which every size is solved as an affine function
of the workload variables and checked at one more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from reference_model import operators
from reference_model.config import ModelConfig
from reference_model.layers import RMSNorm, Weight, gradient, rotary_angles
from reference_model.model import (
    DenseBlock,
    Embedding,
    MoEBlock,
    MultiTokenPrediction,
    Stream,
    head_input_grad,
    head_loss,
    output_head,
)
from reference_model.moe import ExpertRows
from reference_model.operators import Site
from reference_model.precision import Recipe
from reference_model.trace import (
    KINDS,
    PHASES,
    VARIABLES,
    Affine,
    Operator,
    OperatorTemplate,
    OperatorTrace,
)

_DTYPES = {
    torch.float8_e4m3fn: "fp8_e4m3",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
}


# -- from a call to an Operator --------------------------------------------------------------------

Arguments = Mapping[str, Any]
Results = Sequence[Tensor]
Sizes = Callable[[Arguments, Results], dict[str, int]]


@dataclass(frozen=True, slots=True)
class _Description:
    """How a custom operator's call becomes a trace operator."""

    kind: str
    sizes: Sizes
    operand: str = "x"
    """Argument whose type is the operator's dtype."""
    result: str | None = None
    """Argument whose type is the out_dtype, where the operator works in place."""
    accumulate: bool = False
    dtype: str | None = None
    """The operand's type where its tensor does not show it (12-bit floats travel as bytes)."""
    out_dtype: str | None = None


def _matrix(name: str = "x") -> Sizes:
    """rows and columns of an argument, leading dimensions counted as rows."""

    def sizes(a: Arguments, _: Results) -> dict[str, int]:
        x: Tensor = a[name]
        return {"rows": x.numel() // x.shape[-1], "columns": x.shape[-1]}

    return sizes


def _flat_heads(a: Arguments, _: Results) -> dict[str, int]:
    """A copy of [..., heads, dim] seen as tokens x (heads x dim)."""
    x: Tensor = a["x"]
    columns = x.shape[-1] if x.dim() == 2 else x.shape[-1] * x.shape[-2]
    return {"rows": x.numel() // columns, "columns": columns}


def _attention(a: Arguments, _: Results) -> dict[str, int]:
    sequences, length, heads, qk_dim = a["q"].shape
    return {
        "sequences": sequences,
        "query_length": length,
        "kv_length": a["k"].shape[1],
        "heads": heads,
        "qk_dim": qk_dim,
        "v_dim": a["v"].shape[3],
    }


def _mla_decode(a: Arguments, _: Results) -> dict[str, int]:
    sequences, length, heads, width = a["q"].shape
    return {
        "sequences": sequences,
        "query_length": length,
        "kv_length": a["cache"].shape[1],
        "heads": heads,
        "latent_dim": a["latent_dim"],
        "rope_dim": width - a["latent_dim"],
    }


def _attention_preprocess(a: Arguments, _: Results) -> dict[str, int]:
    sequences, length, heads, v_dim = a["output"].shape
    return {
        "sequences": sequences,
        "query_length": length,
        "heads": heads,
        "qk_dim": a["qk_dim"],
        "v_dim": v_dim,
    }


def _rope(a: Arguments, _: Results) -> dict[str, int]:
    sequences, length, heads, dim = a["x"].shape
    return {"rows": sequences * length, "positions": length, "heads": heads, "dim": dim}


def _activation(a: Arguments, _: Results) -> dict[str, int]:
    rows, columns = a["gate_up"].shape
    return {"rows": rows, "columns": columns // 2}


def _gate(a: Arguments, r: Results) -> dict[str, int]:
    tokens, experts = a["logits"].shape
    return {"tokens": tokens, "experts": experts, "top_k": a.get("top_k") or a["indices"].shape[1]}


def _dispatch(a: Arguments, r: Results) -> dict[str, int]:
    tokens, hidden = a["x"].shape
    top_k = a["indices"].shape[1] if "indices" in a else 0
    return {"tokens": tokens, "rows": r[0].shape[0], "hidden": hidden, "top_k": top_k}


def _combine(a: Arguments, _: Results) -> dict[str, int]:
    tokens, hidden = a["shared"].shape
    top_k = a["weights_grad"].shape[1] if "weights_grad" in a else 0
    return {"tokens": tokens, "rows": a["x"].shape[0], "hidden": hidden, "top_k": top_k}


def _grouped(a: Arguments, _: Results) -> dict[str, int]:
    return {
        "rows": a["a"].shape[0],
        "n": a["b"].shape[1],
        "k": a["b"].shape[2],
        "groups": a["b"].shape[0],
    }


_DESCRIPTIONS: dict[str, _Description] = {
    "gemm": _Description(
        "gemm",
        lambda a, _: {"m": a["a"].shape[0], "n": a["b"].shape[0], "k": a["a"].shape[1]},
        operand="a",
    ),
    "gemm_weight_grad": _Description(
        "gemm",
        lambda a, _: {"m": a["a"].shape[0], "n": a["b"].shape[0], "k": a["a"].shape[1]},
        operand="a",
        result="accumulator",
        accumulate=True,
    ),
    "grouped_gemm": _Description("grouped_gemm", _grouped, operand="a"),
    "grouped_gemm_weight_grad": _Description(
        "grouped_gemm_weight_grad",
        lambda a, _: {
            "rows": a["a"].shape[1],
            "m": a["a"].shape[0],
            "n": a["b"].shape[0],
            "groups": a["accumulator"].shape[0],
        },
        operand="a",
        result="accumulator",
        accumulate=True,
    ),
    "attention_forward": _Description("attention_forward", _attention, operand="q"),
    "attention_backward_preprocess": _Description(
        "attention_backward_preprocess", _attention_preprocess, operand="output"
    ),
    "attention_backward": _Description("attention_backward", _attention, operand="q"),
    "quantize": _Description("quantize", _matrix()),
    "quantize_transpose": _Description("quantize_transpose", _matrix()),
    "grouped_quantize_transpose": _Description(
        "grouped_quantize_transpose",
        lambda a, r: _matrix()(a, r) | {"groups": a["group_sizes"].shape[0]},
    ),
    "quantize_transpose_gather": _Description(
        "quantize_transpose_gather",
        lambda a, _: {
            "rows": a["row_source"].shape[0],
            "tokens": a["x"].shape[0],
            "columns": a["x"].shape[1],
            "groups": a["group_sizes"].shape[0],
        },
    ),
    "dequantize": _Description("dequantize", _matrix()),
    "quantize_e5m6": _Description("quantize", _matrix(), out_dtype="e5m6"),
    "dequantize_e5m6": _Description(
        "dequantize",
        lambda _, r: {"rows": r[0].shape[0], "columns": r[0].shape[1]},
        operand="packed",
        dtype="e5m6",
    ),
    "transpose": _Description("transpose", _matrix()),
    "cast": _Description("cast", _flat_heads),
    "copy": _Description("copy", _flat_heads, result="out"),
    "broadcast_heads": _Description(
        "broadcast_heads",
        lambda a, _: {
            "rows": a["out"].shape[0],
            "heads": a["out"].shape[1],
            "dim": a["out"].shape[2],
        },
        result="out",
    ),
    "sum_heads": _Description(
        "sum_heads",
        lambda a, _: {"rows": a["x"].shape[0], "heads": a["x"].shape[1], "dim": a["x"].shape[2]},
    ),
    "concat": _Description(
        "concat",
        lambda _, r: {"rows": r[0].shape[0], "columns": r[0].shape[1]},
        operand="a",
    ),
    "add": _Description("add", _matrix("a"), operand="a"),
    "scale": _Description("scale", _matrix()),
    "rmsnorm": _Description("rmsnorm", _matrix()),
    "rmsnorm_residual": _Description("rmsnorm_residual", _matrix("update"), operand="update"),
    "rmsnorm_backward": _Description("rmsnorm_backward", _matrix()),
    "rmsnorm_residual_backward": _Description(
        "rmsnorm_residual_backward", _matrix("total"), operand="total"
    ),
    "rope": _Description("rope", _rope, result="x"),
    "swiglu": _Description("swiglu", _activation, operand="gate_up"),
    "weighted_swiglu": _Description("weighted_swiglu", _activation, operand="gate_up"),
    "swiglu_quantize": _Description("swiglu", _activation, operand="gate_up"),
    "weighted_swiglu_quantize": _Description("weighted_swiglu", _activation, operand="gate_up"),
    "swiglu_quantize_transpose": _Description(
        "swiglu_quantize_transpose", _activation, operand="gate_up"
    ),
    "swiglu_backward": _Description("swiglu_backward", _activation, operand="gate_up"),
    "weighted_swiglu_forward_backward": _Description(
        "weighted_swiglu_forward_backward", _activation, operand="gate_up"
    ),
    "gate": _Description("gate", _gate, operand="logits", out_dtype="float32"),
    "gate_backward": _Description("gate_backward", _gate, operand="logits"),
    "dispatch_layout": _Description(
        "dispatch_layout",
        lambda a, _: {
            "tokens": a["indices"].shape[0],
            "experts": a["experts"],
            "top_k": a["indices"].shape[1],
        },
        operand="indices",
        dtype="int64",
        out_dtype="int32",
    ),
    "dispatch": _Description("dispatch", _dispatch),
    "dispatch_cached": _Description("dispatch", _dispatch),
    "combine": _Description("combine", _combine),
    "combine_backward": _Description("combine", _combine),
    "expert_mapping": _Description(
        "expert_mapping",
        lambda a, r: {
            "tokens": a["indices"].shape[0],
            "rows": r[0].shape[0],
            "groups": r[3].shape[0],
            "top_k": a["indices"].shape[1],
        },
        operand="indices",
        dtype="int64",
        out_dtype="int32",
    ),
    "permute": _Description(
        "permute",
        lambda a, r: {
            "rows": r[0].shape[0],
            "tokens": a["x"].shape[0],
            "columns": a["x"].shape[1],
        },
    ),
    "unpermute": _Description(
        "unpermute",
        lambda a, _: {
            "rows": a["x"].shape[0],
            "tokens": a["choice_rows"].shape[0],
            "columns": a["x"].shape[1],
            "top_k": a["choice_rows"].shape[1],
        },
    ),
    "topk_weight_grad": _Description(
        "topk_weight_grad",
        lambda a, _: {
            "rows": a["activated"].shape[0],
            "tokens": a["choice_rows"].shape[0],
            "columns": a["activated"].shape[1],
            "top_k": a["choice_rows"].shape[1],
        },
        operand="activated",
    ),
    "embedding": _Description(
        "embedding",
        lambda _, r: {"rows": r[0].shape[0], "columns": r[0].shape[1]},
        operand="table",
    ),
    "embedding_backward": _Description(
        "embedding_backward", _matrix("grad"), operand="grad", result="table_grad", accumulate=True
    ),
    # -- inference only (decode_operators.py) ------------------------------------------------------
    "batched_gemm_into": _Description(
        "batched_gemm",
        lambda a, _: {
            "batch": a["a"].shape[0],
            "m": a["a"].shape[1],
            "n": a["b"].shape[1],
            "k": a["a"].shape[2],
        },
        operand="a",
        result="out",
    ),
    "rope_into": _Description("rope", _rope, result="out"),
    "append_cache": _Description(
        "copy",
        lambda a, _: {"rows": a["latent"].shape[0], "columns": a["cache"].shape[-1]},
        operand="latent",
        result="cache",
    ),
    "mla_decode": _Description("mla_decode", _mla_decode, operand="q"),
    "dispatch_send": _Description("quantize", _matrix()),
    "dispatch_receive": _Description(
        "copy",
        lambda a, _: {"rows": a["rows"], "columns": a["values"].shape[1]},
        operand="values",
    ),
    "masked_grouped_gemm": _Description(
        "masked_grouped_gemm", lambda a, r: _grouped(a, r) | {"rows": a["rows"]}, operand="a"
    ),
    "masked_swiglu": _Description(
        "swiglu",
        lambda a, _: {"rows": a["rows"], "columns": a["gate_up"].shape[-1] // 2},
        operand="gate_up",
    ),
    "combine_send": _Description(
        "copy", lambda a, _: {"rows": a["rows"], "columns": a["x"].shape[-1]}
    ),
    "combine_receive": _Description(
        "unpermute",
        lambda a, _: {
            "rows": a["weights"].numel(),
            "tokens": a["weights"].shape[0],
            "columns": a["x"].shape[-1],
            "top_k": a["weights"].shape[1],
        },
    ),
    "sample": _Description("sample", _matrix("logits"), operand="logits", out_dtype="int64"),
    # -- loss --------------------------------------------------------------------------------------
    "cross_entropy": _Description("cross_entropy", _matrix("logits"), operand="logits"),
    "cross_entropy_backward": _Description(
        "cross_entropy_backward", _matrix("logits"), operand="logits"
    ),
}
"""Name of a custom operator -> its trace operator."""


class Recorded(NamedTuple):
    """One call of a custom operator."""

    operator: Operator
    bytes_read: int
    """Bytes of the tensors that went in; of a whole table, where only some rows are read."""
    bytes_written: int


class OperatorRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects every custom operator that runs inside it, and the names of all other kernels."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorded: list[Recorded] = []
        self.others: list[str] = []
        """ATen operators called outside the custom ones, in order."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == operators.NAMESPACE:
            self.recorded.append(_record(func, args, kwargs or {}, result))
        else:
            self.others.append(str(func))
        return result


def _record(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Recorded:
    schema = func._schema.arguments
    arguments = dict(zip((argument.name for argument in schema), args, strict=False)) | dict(kwargs)
    results: list[Tensor] = []
    if result is not None:
        results = [result] if isinstance(result, Tensor) else list(result)
    description = _DESCRIPTIONS[func._schema.name.split("::")[1]]

    read, written = 0, sum(map(_bytes, results))
    for argument in schema:
        value = arguments.get(argument.name)
        if isinstance(value, Tensor):
            if argument.name != "out":
                read += _bytes(value)
            if argument.alias_info is not None and argument.alias_info.is_write:
                written += _bytes(value)

    phase, segment, name, *recompute = arguments["site"].split(":")
    result_tensor = arguments[description.result] if description.result else None
    operator = Operator(
        name=name,
        kind=description.kind,
        phase=phase,
        segment=segment,
        dtype=description.dtype or _DTYPES[arguments[description.operand].dtype],
        out_dtype=description.out_dtype
        or _DTYPES[(results[0] if result_tensor is None else result_tensor).dtype],
        sizes=tuple(sorted(description.sizes(arguments, results).items())),
        recompute=bool(recompute),
        accumulate=description.accumulate,
    )
    assert {size for size, _ in operator.sizes} == set(KINDS[operator.kind].sizes), operator
    return Recorded(operator, read, written)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


# -- one layer -------------------------------------------------------------------------------------


class Workload(NamedTuple):
    """A value for each variable of a trace (see trace.py)."""

    tokens: int
    context: int
    sequences: int
    expert_rows: int
    received_rows: int
    local_experts: int


class LayerRecord(NamedTuple):
    """One layer's three passes."""

    recorded: list[Recorded]
    others: list[str]
    """ATen operators called outside the custom ones."""
    saved: dict[str, int]
    """Phase -> bytes kept once it is over."""


def record_layer(
    config: ModelConfig, layer_kind: str, workload: Workload, *, recipe: Recipe
) -> LayerRecord:
    """Run one layer of `layer_kind` on the meta device and record what it issues.

    The layer is one within the model: its residual stream comes with an update to add, which only
    the very first layer's does not. Sizes are those of the config; values do not exist."""
    meta = torch.device("meta")
    layer = _LAYERS[layer_kind](config, workload, recipe, meta)
    prepare(layer)
    with torch.no_grad(), OperatorRecorder() as recorder:
        saved = layer.run()
    return LayerRecord(recorder.recorded, recorder.others, saved)


def prepare(module: nn.Module) -> None:
    """Make the working copies of all weights and the accumulators of their gradients, which a step
    does once and not for every micro-batch."""
    for child in module.modules():
        if isinstance(child, Weight):
            child.working_copy()
            gradient(child.weight)
        elif isinstance(child, RMSNorm):
            gradient(child.weight)


class _Layer(nn.Module):
    """A layer and what enters it; `run` takes it through its passes."""

    def __init__(
        self, config: ModelConfig, workload: Workload, recipe: Recipe, device: torch.device
    ) -> None:
        super().__init__()
        self.config = config
        self.recipe = recipe
        self.device = device
        self.angles = rotary_angles(config, workload.context, device=device)
        self.rows = ExpertRows(received=workload.received_rows, expanded=workload.expert_rows)
        self.tokens = torch.empty((workload.tokens,), dtype=torch.int64, device=device)
        self.build(workload.local_experts)

    def build(self, local_experts: int) -> None:
        """Make the modules of the layer."""
        raise NotImplementedError

    def run(self) -> dict[str, int]:
        """All passes; bytes kept after each phase."""
        raise NotImplementedError

    def hidden(self) -> Tensor:
        """Hidden states, or their gradient [T, H]."""
        shape = (self.tokens.shape[0], self.config.hidden_size)
        return torch.empty(shape, dtype=self.recipe.dtype, device=self.device)


class _EmbeddingLayer(_Layer):
    def build(self, local_experts: int) -> None:
        self.embedding = Embedding(self.config, recipe=self.recipe, device=self.device)

    def run(self) -> dict[str, int]:
        self.embedding(self.tokens)
        self.embedding.weight_grad(self.hidden(), self.tokens)
        return {"forward": _kept(self.tokens)}


class _BlockLayer(_Layer):
    block: Any

    def run(self) -> dict[str, int]:
        stream = Stream(self.hidden(), self.hidden())
        _, saved = self.block(stream, self.angles, self.rows)
        after_forward = _kept(saved)
        _, weight_grads = self.block.input_grad(self.hidden(), saved, self.angles, self.rows)
        after_input_grad = _kept(weight_grads)
        weight_grads.run()
        return {"forward": after_forward, "input_grad": after_input_grad}


class _DenseLayer(_BlockLayer):
    def build(self, local_experts: int) -> None:
        self.block = DenseBlock(self.config, recipe=self.recipe, device=self.device)


class _MoELayer(_BlockLayer):
    def build(self, local_experts: int) -> None:
        self.block = MoEBlock(self.config, local_experts, recipe=self.recipe, device=self.device)


class _PredictionLayer(_Layer):
    def build(self, local_experts: int) -> None:
        self.mtp = MultiTokenPrediction(
            self.config, local_experts, recipe=self.recipe, device=self.device
        )
        self.embedding = Embedding(self.config, recipe=self.recipe, device=self.device)
        self.head = output_head(self.config, recipe=self.recipe, device=self.device)

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
        after_forward = _kept(saved)
        _, weight_grads = self.mtp.input_grad(
            saved, self.embedding, self.head, self.angles, self.rows, weight=1.0
        )
        after_input_grad = _kept(weight_grads)
        weight_grads.run()
        return {"forward": after_forward, "input_grad": after_input_grad}


class _HeadLayer(_Layer):
    def build(self, local_experts: int) -> None:
        config = self.config
        self.norm = RMSNorm(
            "head.norm", config.hidden_size, eps=config.rms_norm_eps, device=self.device
        )
        self.head = output_head(config, recipe=self.recipe, device=self.device)

    def run(self) -> dict[str, int]:
        stream = Stream(self.hidden(), self.hidden())
        _, _, saved = head_loss(self.norm, self.head, stream, self.tokens)
        after_forward = _kept(saved)
        # A multi-token prediction module reads the normed stream too and returns its gradient.
        mtp = self.hidden() if self.config.num_nextn_predict_layers else None
        _, weight_grad = head_input_grad(self.norm, self.head, saved, weight=1.0, normed_grad=mtp)
        after_input_grad = _kept(weight_grad)
        weight_grad.run(Site("weight_grad", "head"))
        return {"forward": after_forward, "input_grad": after_input_grad}


_LAYERS: dict[str, type[_Layer]] = {
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
    elif isinstance(value, list | tuple):
        for item in value:
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


def layer_kinds(config: ModelConfig) -> list[str]:
    """The kinds of layer that a model of this config has."""
    kinds = ["embedding"]
    if config.first_k_dense_replace:
        kinds.append("dense")
    if config.num_moe_layers:
        kinds.append("moe")
    if config.num_nextn_predict_layers:
        kinds.append("mtp")
    return [*kinds, "head"]


def record_trace(config: ModelConfig, *, model: str, recipe: Recipe) -> OperatorTrace:
    """Record one training micro-batch of every layer kind on the meta device.

    `model` names the config in the trace. Raises ValueError where a size is not an affine function
    of the workload variables."""
    templates: dict[tuple[str, str], tuple[OperatorTemplate, ...]] = {}
    saved: dict[tuple[str, str], Affine] = {}
    for kind in layer_kinds(config):
        records = [record_layer(config, kind, point, recipe=recipe) for point in POINTS]
        unseen = record_layer(config, kind, UNSEEN, recipe=recipe)
        solved = solve_layer(kind, [record.recorded for record in records], unseen.recorded)
        for phase in PHASES:
            section = tuple(template for template in solved if template.phase == phase)
            if section:
                templates[kind, phase] = section
        for phase in unseen.saved:
            saved[kind, phase] = solve_affine(
                [record.saved[phase] for record in records],
                unseen.saved[phase],
                what=f"bytes that layer {kind} keeps after {phase}",
            )
    return OperatorTrace(
        model=model,
        config_digest=config.digest,
        job="train",
        recipe=recipe.name,
        templates=templates,
        saved=saved,
    )


def solve_layer(
    kind: str, points: Sequence[Sequence[Recorded]], unseen: Sequence[Recorded]
) -> list[OperatorTemplate]:
    templates = []
    for *calls, check in zip(*points, unseen, strict=True):
        first = calls[0].operator
        what = f"layer {kind}, {first.phase} {first.name}"
        if any(_identity(call.operator) != _identity(first) for call in (*calls, check)):
            raise ValueError(f"{what}: which operator is issued depends on the workload")
        sizes = tuple(
            (
                name,
                solve_affine(
                    [call.operator[name] for call in calls],
                    check.operator[name],
                    what=f"{what}, size {name}",
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


def solve_affine(values: Sequence[int], unseen: int, *, what: str) -> Affine:
    """The affine function of the workload variables that takes `values` at the workloads recorded,
    checked against the value `unseen` at one more. ValueError, naming `what`, if there is none."""
    rows = [
        [Fraction(1), *map(Fraction, point), Fraction(value)]
        for point, value in zip(POINTS, values, strict=True)
    ]
    solution = _eliminate(rows)
    if any(coefficient.denominator != 1 for coefficient in solution):
        raise ValueError(f"{what}: {list(values)} is not affine in whole numbers")
    constant, *coefficients = (int(coefficient) for coefficient in solution)
    affine = Affine(
        constant=constant,
        coefficients=tuple(
            sorted((name, c) for name, c in zip(VARIABLES, coefficients, strict=True) if c)
        ),
    )
    predicted = affine.at(UNSEEN._asdict())
    if predicted != unseen:
        raise ValueError(
            f"{what}: {unseen} at {UNSEEN}, where the affine function through the other"
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
