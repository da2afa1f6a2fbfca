"""Describe a custom operator's call as an `Operator` of a trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reference_model.kinds import KINDS, Operator

_DTYPES = {
    torch.float8_e4m3fn: "fp8_e4m3",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.int64: "int64",
}


_WRITTEN_ONLY = ("out", "out_scales", "out_turned_scales")
"""Arguments that an operator does not read."""

Arguments = Mapping[str, Any]
CallResults = Sequence[Tensor]
Sizes = Callable[[Arguments, CallResults], dict[str, int]]


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

    def sizes(a: Arguments, _: CallResults) -> dict[str, int]:
        x: Tensor = a[name]
        return {"rows": x.numel() // x.shape[-1], "columns": x.shape[-1]}

    return sizes


def _flat_heads(a: Arguments, _: CallResults) -> dict[str, int]:
    """A copy of [..., heads, dim] seen as tokens x (heads x dim)."""
    x: Tensor = a["x"]
    columns = x.shape[-1] if x.dim() == 2 else x.shape[-1] * x.shape[-2]
    return {"rows": x.numel() // columns, "columns": columns}


def _attention(a: Arguments, _: CallResults) -> dict[str, int]:
    sequences, length, heads, qk_dim = a["q"].shape
    return {
        "sequences": sequences,
        "query_length": length,
        "kv_length": a["k"].shape[1],
        "heads": heads,
        "qk_dim": qk_dim,
        "v_dim": a["v"].shape[3],
    }


def _mla_decode(a: Arguments, _: CallResults) -> dict[str, int]:
    sequences, length, heads, width = a["q"].shape
    return {
        "sequences": sequences,
        "query_length": length,
        "kv_length": a["cache"].shape[1],
        "heads": heads,
        "latent_dim": a["latent_dim"],
        "rope_dim": width - a["latent_dim"],
    }


def _sparse_mla(a: Arguments, r: CallResults) -> dict[str, int]:
    return _mla_decode(a, r) | {"top_k": a["selected"].shape[2]}


def _masked_attention(a: Arguments, r: CallResults) -> dict[str, int]:
    return _attention(a, r) | {"top_k": a["selected"].shape[2]}


def _index_scores(a: Arguments, _: CallResults) -> dict[str, int]:
    sequences, length, heads, dim = a["q"].shape
    return {
        "sequences": sequences,
        "query_length": length,
        "kv_length": a["keys"].shape[1],
        "heads": heads,
        "dim": dim,
    }


def _attention_preprocess(a: Arguments, _: CallResults) -> dict[str, int]:
    sequences, length, heads, v_dim = a["output"].shape
    return {
        "sequences": sequences,
        "query_length": length,
        "heads": heads,
        "qk_dim": a["qk_dim"],
        "v_dim": v_dim,
    }


def _rope(a: Arguments, _: CallResults) -> dict[str, int]:
    sequences, length, heads, dim = a["x"].shape
    return {"rows": sequences * length, "positions": length, "heads": heads, "dim": dim}


def _activation(a: Arguments, _: CallResults) -> dict[str, int]:
    rows, columns = a["gate_up"].shape
    return {"rows": rows, "columns": columns // 2}


def _gate(a: Arguments, r: CallResults) -> dict[str, int]:
    tokens, experts = a["logits"].shape
    return {"tokens": tokens, "experts": experts, "top_k": a.get("top_k") or a["indices"].shape[1]}


def _dispatch(a: Arguments, r: CallResults) -> dict[str, int]:
    tokens, hidden = a["x"].shape
    top_k = a["indices"].shape[1] if "indices" in a else 0
    return {"tokens": tokens, "rows": r[0].shape[0], "hidden": hidden, "top_k": top_k}


def _combine(a: Arguments, _: CallResults) -> dict[str, int]:
    tokens, hidden = a["shared"].shape
    top_k = a["weights_grad"].shape[1] if "weights_grad" in a else 0
    return {"tokens": tokens, "rows": a["x"].shape[0], "hidden": hidden, "top_k": top_k}


def _grouped(a: Arguments, _: CallResults) -> dict[str, int]:
    return {
        "rows": a["a"].shape[0],
        "n": a["b"].shape[1],
        "k": a["b"].shape[2],
        "groups": a["b"].shape[0],
    }


def _update(a: Arguments, _: CallResults) -> dict[str, int]:
    state = [a[name][0].element_size() for name in ("weights", "firsts", "seconds")]
    moved = a["gradients"][0].element_size() + sum(state)
    values = sum(weight.numel() for weight in a["weights"])
    return {"values": values, "read": moved, "written": moved}


def _weight(a: Arguments, _: CallResults) -> dict[str, int]:
    *leading, rows, columns = a["master"].shape
    return {"groups": math.prod(leading), "rows": rows, "columns": columns}


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
    # -- sparse attention (operators/sparse.py) ----------------------------------------------------
    "layernorm": _Description("layernorm", _matrix()),
    "rope_index": _Description("rope", _rope, result="x"),
    "append_index": _Description("quantize", _matrix("keys"), operand="keys", result="cache"),
    "index_scores": _Description("index_scores", _index_scores, operand="q"),
    "index_topk": _Description(
        "index_topk",
        lambda a, _: _matrix("scores")(a, _) | {"top_k": a["top_k"]},
        operand="scores",
        out_dtype="int32",
    ),
    "sparse_mla": _Description("sparse_mla", _sparse_mla, operand="q"),
    "attention_masked_forward": _Description(
        "attention_masked_forward", _masked_attention, operand="q"
    ),
    "attention_masked_backward": _Description(
        "attention_masked_backward", _masked_attention, operand="q"
    ),
    # -- between ranks (peer_operators.py) ---------------------------------------------------------
    "dispatch_to_peers": _Description("dispatch", _dispatch),
    "dispatch_cached_to_peers": _Description("dispatch", _dispatch),
    "combine_from_peers": _Description("combine", _combine),
    "combine_backward_from_peers": _Description("combine", _combine),
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
    # -- the end of a step -------------------------------------------------------------------------
    "gradient_norm": _Description(
        "gradient_norm",
        lambda a, _: {"values": sum(gradient.numel() for gradient in a["gradients"])},
        operand="gradients",
    ),
    "adamw": _Description("optimizer_update", _update, operand="gradients", result="weights"),
    "quantize_weight": _Description("quantize_weight", _weight, operand="master", result="out"),
    "cast_weight": _Description("cast", _matrix("master"), operand="master", result="out"),
    # -- a part of the vocabulary ------------------------------------------------------------------
    "embedding_part": _Description(
        "embedding",
        lambda _, r: {"rows": r[0].shape[0], "columns": r[0].shape[1]},
        operand="table",
    ),
    "embedding_backward_part": _Description(
        "embedding_backward", _matrix("grad"), operand="grad", result="table_grad", accumulate=True
    ),
    "cross_entropy_part": _Description("cross_entropy_part", _matrix("logits"), operand="logits"),
    "cross_entropy_merged": _Description(
        "cross_entropy_merged",
        lambda a, r: {"rows": r[1].shape[0], "parts": a["ranks"]},
        operand="parts",
    ),
    "cross_entropy_backward_part": _Description(
        "cross_entropy_backward", _matrix("logits"), operand="logits"
    ),
    # -- between GPUs that share a layer -----------------------------------------------------------
    "gather_tokens": _Description(
        "gather_tokens",
        lambda a, r: _matrix()(a, r) | {"rows": r[0].shape[0], "ranks": a["ranks"]},
    ),
    "scatter_sums": _Description(
        "scatter_sums", lambda a, r: _matrix()(a, r) | {"ranks": a["ranks"]}
    ),
}
"""Name of a custom operator -> its trace operator."""


def describe_call(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> Operator:
    """Describe a call of a custom operator (`func`, an OpOverload) as an operator of a trace."""
    arguments, results = arguments_of(func, args, kwargs), _results(result)
    description = _DESCRIPTIONS[func._schema.name.split("::")[1]]
    phase, segment, name, *recompute = arguments["site"].split(":")
    result_tensor = arguments[description.result] if description.result else None
    operator = Operator(
        name=name,
        kind=description.kind,
        phase=phase,
        segment=segment,
        dtype=description.dtype or _type_of(arguments[description.operand]),
        out_dtype=description.out_dtype
        or _type_of(results[0] if result_tensor is None else result_tensor),
        sizes=tuple(sorted(description.sizes(arguments, results).items())),
        recompute=bool(recompute),
        accumulate=description.accumulate,
    )
    assert {size for size, _ in operator.sizes} == set(KINDS[operator.kind].sizes), operator
    return operator


def tensor_bytes(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> tuple[int, int]:
    """Bytes of the tensors that go into a call and that come out of it; of a whole table, where
    only some rows are read."""
    arguments = arguments_of(func, args, kwargs)
    read, written = 0, sum(map(_bytes, _results(result)))
    for argument in func._schema.arguments:
        value = arguments.get(argument.name)
        for tensor in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(tensor, Tensor):
                continue
            if argument.name not in _WRITTEN_ONLY:
                read += _bytes(tensor)
            if argument.alias_info is not None and argument.alias_info.is_write:
                written += _bytes(tensor)
    return read, written


def arguments_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """{name: value} of a call of a custom operator."""
    names = (argument.name for argument in func._schema.arguments)
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def _results(result: Any) -> list[Tensor]:
    if result is None:
        return []
    return [result] if isinstance(result, Tensor) else list(result)


def _type_of(value: Tensor | Sequence[Tensor]) -> str:
    """Of a tensor, or of each of several."""
    return _DTYPES[(value if isinstance(value, Tensor) else value[0]).dtype]


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
