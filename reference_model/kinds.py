"""The floating-point operations and bytes of an operator, by kernel family.

An `Operator` is one kernel launch. `KINDS` is the one table of what each family computes, reads and
writes; recorder tests hold it against the tensors of real calls. Free of torch.

Units: bytes, and floating-point operations with one multiply-add counted as 2. FLOPs are those of
matrix products only, as the field counts them; element-wise kernels are bound by their bytes.
Bytes are those of the tensors the kernel reads and writes, quantisation scales included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from reference_model.formats import ACTIVATIONS, BITS, weights_of

PHASES = ("forward", "recompute", "input_grad", "weight_grad")
"""Passes through a layer in order; "recompute" is its forward once more, before its backward."""

ALL_TO_ALL_KINDS = frozenset({"dispatch", "combine"})
"""Families that exchange tokens between the GPUs that hold their experts."""

COLLECTIVE_KINDS = frozenset({"gather_tokens", "scatter_sums"})
"""Families that exchange tokens, or sums over parts, between GPUs that share a layer."""

_INT32 = 4
_INT64 = 8
_FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class Operator:
    """One kernel launch. Hashable, so that a predicted duration can be memoised."""

    name: str
    """Where in the model, such as "attention.q_a_proj"; unique within a phase of a layer."""
    kind: str
    """Kernel family, a key of `KINDS`."""
    phase: str
    """The pass that issues it, one of `PHASES`."""
    segment: str
    """The schedulable part: attention, dispatch, mlp, combine, embedding, head or mtp."""
    dtype: str
    """Type of the operand that streams through (activations, or gradients in the backward)."""
    out_dtype: str
    """Type of the result."""
    sizes: tuple[tuple[str, int], ...]
    """Sorted (name, value) pairs; the names are those of the kind."""
    recompute: bool
    """True where backward repeats a forward kernel in place of saving its result."""
    accumulate: bool
    """True where the result is added into the output, which is then read as well."""

    def __getitem__(self, size: str) -> int:
        for name, value in self.sizes:
            if name == size:
                return value
        raise KeyError(size)

    @property
    def flops(self) -> int:
        """Executed floating-point operations of matrix products."""
        return KINDS[self.kind].flops(self)

    @property
    def model_flops(self) -> int:
        """FLOPs that the mathematics needs: none where recomputed, attention backward without the
        scores that a fused kernel computes a second time (twice the forward's FLOPs), and masked
        attention without the pairs that the mask hides."""
        if self.recompute:
            return 0
        if self.kind == "attention_backward":
            return 2 * _attention_flops(self, self["qk_dim"] + self["v_dim"])
        if self.kind in _MASKED:
            pairs: int = self["sequences"] * self["heads"] * selected_pairs(self)
            return _MASKED[self.kind] * 2 * pairs * (self["qk_dim"] + self["v_dim"])
        return self.flops

    @property
    def bytes_read(self) -> int:
        """Bytes of the tensors read."""
        return KINDS[self.kind].bytes_read(self)

    @property
    def bytes_written(self) -> int:
        """Bytes of the tensors written."""
        return KINDS[self.kind].bytes_written(self)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kernel family: the sizes that describe it, and its FLOPs and bytes as functions of them."""

    sizes: tuple[str, ...]
    flops: Callable[[Operator], int]
    bytes_read: Callable[[Operator], int]
    bytes_written: Callable[[Operator], int]


def _values(dtype: str, *shape: int) -> int:
    elements = 1
    for extent in shape:
        elements *= extent
    bits = elements * BITS[dtype]
    return (bits + 7) // 8


def _tiled(dtype: str, rows: int, columns: int) -> int:
    """Bytes of a matrix with its scales, as activations have them."""
    return ACTIVATIONS[dtype].stored_bytes(rows, columns)


def _blocked(dtype: str, groups: int, rows: int, columns: int) -> int:
    """Bytes of the `groups` weight matrices of a product, scales included."""
    return groups * weights_of(dtype).stored_bytes(rows, columns)


def _grouped_tiles(o: Operator, dtype: str, features: int) -> int:
    """Bytes of [features, rows] scaled in tiles along rows that restart at each group."""
    stored = ACTIVATIONS[dtype]
    tiles = -(-o["rows"] // stored.columns) + o["groups"] - 1
    scales = features * tiles * (stored.scale_bits // 8)
    return _values(dtype, features, o["rows"]) + scales


def _no_flops(_: Operator) -> int:
    return 0


def _gemm_read(o: Operator) -> int:
    # A weight gradient multiplies two activations, both scaled in 1 x 128 tiles along tokens, and
    # adds into its FP32 output; the other two GEMMs multiply by a weight scaled in blocks.
    left = _tiled(o.dtype, o["m"], o["k"])
    if o.accumulate:
        right = _tiled(o.dtype, o["n"], o["k"]) + _values(o.out_dtype, o["m"], o["n"])
    else:
        right = _blocked(o.dtype, 1, o["n"], o["k"])
    return left + right


def _grouped_gemm(rows: str) -> Kind:
    return Kind(
        sizes=(rows, "n", "k", "groups"),
        flops=lambda o: 2 * o[rows] * o["n"] * o["k"],
        bytes_read=lambda o: (
            _tiled(o.dtype, o[rows], o["k"])
            + _blocked(o.dtype, o["groups"], o["n"], o["k"])
            + o["groups"] * _INT32
        ),
        bytes_written=lambda o: _values(o.out_dtype, o[rows], o["n"]),
    )


def _attention_flops(o: Operator, dimensions: int) -> int:
    """2 x dimensions FLOPs for each visible (query, key) pair of each head.

    Causal with the queries at the end of the keys, so q (kv - q/2) pairs: half the square where
    both lengths agree, as FlashAttention counts it."""
    query, kv = o["query_length"], o["kv_length"]
    pairs_twice = query * (2 * kv - query)
    return o["sequences"] * o["heads"] * pairs_twice * dimensions


def _least(a: int, b: int) -> int:
    """The smaller one, of arrays too: a cost model asks for many operators at once."""
    return (a + b - abs(a - b)) // 2


def selected_pairs(o: Any) -> Any:
    """(query, key) pairs of one sequence and head where each query reads the `top_k` best of the
    keys that it may see; the queries are the last of the keys. `o` has the sizes, arrays too."""
    query, top_k = o["query_length"], o["top_k"]
    before = o["kv_length"] - query
    # Queries that see no more than top_k keys read all of them.
    few = _least(query, (top_k - before + abs(top_k - before)) // 2)
    return few * before + few * (few + 1) // 2 + (query - few) * top_k


_MASKED = {"attention_masked_forward": 1, "attention_masked_backward": 2}
"""{kind: products of the size of the forward's that its mathematics needs}"""


def _selection(o: Operator) -> int:
    """Bytes of the positions that each query selects."""
    return o["sequences"] * o["query_length"] * o["top_k"] * _INT32


def _attention_operands(o: Operator) -> int:
    """Bytes of Q, K and V."""
    queries = o["sequences"] * o["query_length"] * o["heads"]
    keys = o["sequences"] * o["kv_length"] * o["heads"]
    return _values(o.dtype, queries, o["qk_dim"]) + _values(o.dtype, keys, o["qk_dim"] + o["v_dim"])


def _softmax_rows(o: Operator) -> int:
    """Bytes of one FP32 number for each query and head (log-sum-exp, or sum of O x dO)."""
    return o["sequences"] * o["heads"] * o["query_length"] * _FLOAT32


def _query_gradient(o: Operator) -> int:
    """Bytes of the FP32 gradient of Q, into which attention backward adds block by block."""
    return o["sequences"] * o["query_length"] * o["heads"] * o["qk_dim"] * _FLOAT32


_ATTENTION_SIZES = ("sequences", "query_length", "kv_length", "heads", "qk_dim", "v_dim")


def _attention_written(o: Operator) -> int:
    return _values(
        o.out_dtype, o["sequences"], o["query_length"], o["heads"], o["v_dim"]
    ) + _softmax_rows(o)


def _attention_backward_flops(o: Operator) -> int:
    return _attention_flops(o, 3 * o["qk_dim"] + 2 * o["v_dim"])


def _attention_backward_read(o: Operator) -> int:
    return (
        _attention_operands(o)
        + _values(o.dtype, o["sequences"], o["query_length"], o["heads"], o["v_dim"])
        + 2 * _softmax_rows(o)
        + _query_gradient(o)
    )


def _attention_backward_written(o: Operator) -> int:
    keys = o["sequences"], o["kv_length"], o["heads"], o["qk_dim"] + o["v_dim"]
    return _query_gradient(o) + _values(o.out_dtype, *keys)


def _dense(o: Operator, dtype: str) -> int:
    return _values(dtype, o["rows"], o["columns"])


def _unary(flops: Callable[[Operator], int] = _no_flops) -> Kind:
    """[rows, columns] in, [rows, columns] out; scales where either side is quantised."""
    return Kind(
        sizes=("rows", "columns"),
        flops=flops,
        bytes_read=lambda o: _tiled(o.dtype, o["rows"], o["columns"]),
        bytes_written=lambda o: _tiled(o.out_dtype, o["rows"], o["columns"]),
    )


def _heads(o: Operator) -> int:
    return _values(o.dtype, o["rows"], o["heads"], o["dim"])


def _norm_weight(o: Operator) -> int:
    return o["columns"] * _FLOAT32


KINDS: dict[str, Kind] = {
    # -- matrix products ---------------------------------------------------------------------------
    # [m, k] x [n, k]^T -> [m, n]. Weight gradient: m = outputs, n = inputs, k = tokens, accumulate.
    "gemm": Kind(
        sizes=("m", "n", "k"),
        flops=lambda o: 2 * o["m"] * o["n"] * o["k"],
        bytes_read=_gemm_read,
        bytes_written=lambda o: _values(o.out_dtype, o["m"], o["n"]),
    ),
    # rows sorted by expert, each group of rows times its own [n, k] weight
    "grouped_gemm": _grouped_gemm("rows"),
    # the same with a fixed room of rows for each expert, of which `rows` are filled (decode)
    "masked_grouped_gemm": _grouped_gemm("rows"),
    # for each expert [m, its rows] x [n, its rows]^T, added into FP32
    "grouped_gemm_weight_grad": Kind(
        sizes=("rows", "m", "n", "groups"),
        flops=lambda o: 2 * o["rows"] * o["m"] * o["n"],
        bytes_read=lambda o: (
            _grouped_tiles(o, o.dtype, o["m"] + o["n"])
            + _values(o.out_dtype, o["groups"], o["m"], o["n"])
            + o["groups"] * _INT32
        ),
        bytes_written=lambda o: _values(o.out_dtype, o["groups"], o["m"], o["n"]),
    ),
    "batched_gemm": Kind(
        sizes=("batch", "m", "n", "k"),
        flops=lambda o: 2 * o["batch"] * o["m"] * o["n"] * o["k"],
        bytes_read=lambda o: _values(o.dtype, o["batch"], o["m"] + o["n"], o["k"]),
        bytes_written=lambda o: _values(o.out_dtype, o["batch"], o["m"], o["n"]),
    ),
    # -- attention core ----------------------------------------------------------------------------
    "attention_forward": Kind(
        sizes=_ATTENTION_SIZES,
        flops=lambda o: _attention_flops(o, o["qk_dim"] + o["v_dim"]),
        bytes_read=_attention_operands,
        bytes_written=_attention_written,
    ),
    # row sums of O x dO, and the FP32 accumulator of dQ set to zero
    "attention_backward_preprocess": Kind(
        sizes=("sequences", "query_length", "heads", "qk_dim", "v_dim"),
        flops=_no_flops,
        bytes_read=lambda o: (
            2 * _values(o.dtype, o["sequences"], o["query_length"], o["heads"], o["v_dim"])
        ),
        bytes_written=lambda o: _softmax_rows(o) + _query_gradient(o),
    ),
    # five products: S = Q K^T again, dP = dO V^T, dV = P^T dO, dQ = dS K, dK = dS^T Q
    "attention_backward": Kind(
        sizes=_ATTENTION_SIZES,
        flops=_attention_backward_flops,
        bytes_read=_attention_backward_read,
        bytes_written=_attention_backward_written,
    ),
    # absorbed form: every head reads the same latent key and value
    "mla_decode": Kind(
        sizes=("sequences", "query_length", "kv_length", "heads", "latent_dim", "rope_dim"),
        flops=lambda o: (
            2
            * o["sequences"]
            * o["query_length"]
            * o["kv_length"]
            * o["heads"]
            * (2 * o["latent_dim"] + o["rope_dim"])
        ),
        bytes_read=lambda o: _values(
            o.dtype,
            o["sequences"] * (o["query_length"] * o["heads"] + o["kv_length"]),
            o["latent_dim"] + o["rope_dim"],
        ),
        bytes_written=lambda o: (
            _values(o.out_dtype, o["sequences"], o["query_length"], o["heads"], o["latent_dim"])
            + _softmax_rows(o)
        ),
    ),
    # absorbed form over a whole prompt: causal, queries at the end of the keys
    "mla_prefill": Kind(
        sizes=("sequences", "query_length", "kv_length", "heads", "latent_dim", "rope_dim"),
        flops=lambda o: _attention_flops(o, 2 * o["latent_dim"] + o["rope_dim"]),
        bytes_read=lambda o: _values(
            o.dtype,
            o["sequences"] * (o["query_length"] * o["heads"] + o["kv_length"]),
            o["latent_dim"] + o["rope_dim"],
        ),
        bytes_written=lambda o: (
            _values(o.out_dtype, o["sequences"], o["query_length"], o["heads"], o["latent_dim"])
            + _softmax_rows(o)
        ),
    ),
    # -- sparse attention: an indexer scores all keys, each query reads the best of them -----------
    # sum over heads of weight x relu(q k^T), of every key that a query may see; FP32 weights
    "index_scores": Kind(
        sizes=("sequences", "query_length", "kv_length", "heads", "dim"),
        flops=lambda o: (
            o["sequences"]
            * o["query_length"]
            * (2 * o["kv_length"] - o["query_length"] + 1)
            * o["heads"]
            * o["dim"]
        ),
        bytes_read=lambda o: (
            _tiled(o.dtype, o["sequences"] * o["query_length"] * o["heads"], o["dim"])
            + _tiled(o.dtype, o["sequences"] * o["kv_length"], o["dim"])
            + o["sequences"] * o["query_length"] * o["heads"] * _FLOAT32
        ),
        bytes_written=lambda o: o["sequences"] * o["query_length"] * o["kv_length"] * _FLOAT32,
    ),
    # positions of the top_k largest FP32 scores of each row
    "index_topk": Kind(
        sizes=("rows", "columns", "top_k"),
        flops=_no_flops,
        bytes_read=lambda o: o["rows"] * o["columns"] * _FLOAT32,
        bytes_written=lambda o: o["rows"] * o["top_k"] * _INT32,
    ),
    # absorbed form over the selected keys of each query, each read from memory once
    "sparse_mla": Kind(
        sizes=(
            "sequences",
            "query_length",
            "kv_length",
            "heads",
            "latent_dim",
            "rope_dim",
            "top_k",
        ),
        flops=lambda o: (
            2
            * o["sequences"]
            * o["heads"]
            * selected_pairs(o)
            * (2 * o["latent_dim"] + o["rope_dim"])
        ),
        bytes_read=lambda o: (
            _values(
                o.dtype,
                o["sequences"]
                * (
                    o["query_length"] * o["heads"]
                    + _least(o["query_length"] * o["top_k"], o["kv_length"])
                ),
                o["latent_dim"] + o["rope_dim"],
            )
            + _selection(o)
        ),
        bytes_written=lambda o: (
            _values(o.out_dtype, o["sequences"], o["query_length"], o["heads"], o["latent_dim"])
            + _softmax_rows(o)
        ),
    ),
    # training: the dense products of attention_forward, keys that are not selected masked out
    "attention_masked_forward": Kind(
        sizes=(*_ATTENTION_SIZES, "top_k"),
        flops=lambda o: _attention_flops(o, o["qk_dim"] + o["v_dim"]),
        bytes_read=lambda o: _attention_operands(o) + _selection(o),
        bytes_written=_attention_written,
    ),
    "attention_masked_backward": Kind(
        sizes=(*_ATTENTION_SIZES, "top_k"),
        flops=_attention_backward_flops,
        bytes_read=lambda o: _attention_backward_read(o) + _selection(o),
        bytes_written=_attention_backward_written,
    ),
    # -- casts and copies --------------------------------------------------------------------------
    "quantize": _unary(),
    "dequantize": _unary(),
    "cast": _unary(),
    "copy": _unary(),
    "scale": _unary(),
    # [rows, columns] -> [columns, rows] quantised along what were the rows
    "quantize_transpose": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: _tiled(o.dtype, o["rows"], o["columns"]),
        bytes_written=lambda o: _tiled(o.out_dtype, o["columns"], o["rows"]),
    ),
    # the same of rows sorted by expert: tiles restart at each group
    "grouped_quantize_transpose": Kind(
        sizes=("rows", "columns", "groups"),
        flops=_no_flops,
        bytes_read=lambda o: _tiled(o.dtype, o["rows"], o["columns"]) + o["groups"] * _INT32,
        bytes_written=lambda o: _grouped_tiles(o, o.out_dtype, o["columns"]),
    ),
    # the same, gathering `rows` expanded rows out of `tokens` received ones on the way
    "quantize_transpose_gather": Kind(
        sizes=("rows", "tokens", "columns", "groups"),
        flops=_no_flops,
        bytes_read=lambda o: (
            _tiled(o.dtype, o["tokens"], o["columns"]) + (o["rows"] + o["groups"]) * _INT32
        ),
        bytes_written=lambda o: _grouped_tiles(o, o.out_dtype, o["columns"]),
    ),
    # values of a weight only; the few scales of its blocks are read transposed in place
    "transpose": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: _dense(o, o.dtype),
        bytes_written=lambda o: _dense(o, o.out_dtype),
    ),
    # [rows, dim] to every head, and its backward
    "broadcast_heads": Kind(
        sizes=("rows", "heads", "dim"),
        flops=_no_flops,
        bytes_read=lambda o: _values(o.dtype, o["rows"], o["dim"]),
        bytes_written=_heads,
    ),
    "sum_heads": Kind(
        sizes=("rows", "heads", "dim"),
        flops=_no_flops,
        bytes_read=_heads,
        bytes_written=lambda o: _values(o.dtype, o["rows"], o["dim"]),
    ),
    "concat": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: _dense(o, o.dtype),
        bytes_written=lambda o: _dense(o, o.out_dtype),
    ),
    "add": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: 2 * _dense(o, o.dtype),
        bytes_written=lambda o: _dense(o, o.out_dtype),
    ),
    # -- norms, rotary embedding, activation -------------------------------------------------------
    "rmsnorm": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: _dense(o, o.dtype) + _norm_weight(o),
        bytes_written=lambda o: _dense(o, o.out_dtype),
    ),
    # adds the update to the residual first; writes the sum and its norm
    "rmsnorm_residual": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: 2 * _dense(o, o.dtype) + _norm_weight(o),
        bytes_written=lambda o: 2 * _dense(o, o.out_dtype),
    ),
    # with mean and bias
    "layernorm": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: _dense(o, o.dtype) + 2 * _norm_weight(o),
        bytes_written=lambda o: _dense(o, o.out_dtype),
    ),
    # the weight's FP32 gradient is added to in the same pass
    "rmsnorm_backward": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: 2 * _dense(o, o.dtype) + 2 * _norm_weight(o),
        bytes_written=lambda o: _dense(o, o.out_dtype) + _norm_weight(o),
    ),
    # the same, adding the gradient that arrives along the residual
    "rmsnorm_residual_backward": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: 3 * _dense(o, o.dtype) + 2 * _norm_weight(o),
        bytes_written=lambda o: _dense(o, o.out_dtype) + _norm_weight(o),
    ),
    # in place; FP32 cosines and sines of dim/2 angles for each position of a sequence
    "rope": Kind(
        sizes=("rows", "positions", "heads", "dim"),
        flops=_no_flops,
        bytes_read=lambda o: _heads(o) + o["positions"] * o["dim"] * _FLOAT32,
        bytes_written=_heads,
    ),
    # [rows, 2 columns] -> [rows, columns]; quantises in the same pass where out_dtype is FP8
    "swiglu": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: 2 * _dense(o, o.dtype),
        bytes_written=lambda o: _tiled(o.out_dtype, o["rows"], o["columns"]),
    ),
    # the same times the routing weight of each row
    "weighted_swiglu": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: 2 * _dense(o, o.dtype) + o["rows"] * _FLOAT32,
        bytes_written=lambda o: _tiled(o.out_dtype, o["rows"], o["columns"]),
    ),
    "swiglu_quantize_transpose": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: 2 * _dense(o, o.dtype),
        bytes_written=lambda o: _tiled(o.out_dtype, o["columns"], o["rows"]),
    ),
    "swiglu_backward": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: 3 * _dense(o, o.dtype),
        bytes_written=lambda o: 2 * _dense(o, o.out_dtype),
    ),
    # recomputes the weighted activation, which the weight gradient needs, beside its gradient
    "weighted_swiglu_forward_backward": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: 3 * _dense(o, o.dtype) + o["rows"] * _FLOAT32,
        bytes_written=lambda o: 3 * _dense(o, o.out_dtype),
    ),
    # -- routing -----------------------------------------------------------------------------------
    # sigmoid, group selection, top-k and normalised weights of FP32 logits
    "gate": Kind(
        sizes=("tokens", "experts", "top_k"),
        flops=_no_flops,
        bytes_read=lambda o: (o["tokens"] + 1) * o["experts"] * _FLOAT32,
        bytes_written=lambda o: o["tokens"] * o["top_k"] * (_INT64 + _FLOAT32),
    ),
    "gate_backward": Kind(
        sizes=("tokens", "experts", "top_k"),
        flops=_no_flops,
        bytes_read=lambda o: (
            o["tokens"] * o["experts"] * _FLOAT32 + o["tokens"] * o["top_k"] * (_INT64 + _FLOAT32)
        ),
        bytes_written=lambda o: _values(o.out_dtype, o["tokens"], o["experts"]),
    ),
    # tokens for each expert, which dispatch needs before it can send
    "dispatch_layout": Kind(
        sizes=("tokens", "experts", "top_k"),
        flops=_no_flops,
        bytes_read=lambda o: o["tokens"] * o["top_k"] * _INT64,
        bytes_written=lambda o: o["experts"] * _INT32,
    ),
    # `tokens` leave this rank, `rows` arrive. top_k choices and weights travel along; top_k is 0
    # where the layout is known from the forward pass and only the payload travels.
    "dispatch": Kind(
        sizes=("tokens", "rows", "hidden", "top_k"),
        flops=_no_flops,
        bytes_read=lambda o: (
            _tiled(o.dtype, o["tokens"], o["hidden"])
            + o["tokens"] * o["top_k"] * (_INT64 + _FLOAT32)
        ),
        bytes_written=lambda o: (
            _tiled(o.out_dtype, o["rows"], o["hidden"])
            + o["rows"] * o["top_k"] * (_INT64 + _FLOAT32)
        ),
    ),
    # `rows` leave this rank and are summed into `tokens`, onto the shared expert's share of them.
    # top_k gradients of routing weights travel along in backward; 0 in forward.
    "combine": Kind(
        sizes=("tokens", "rows", "hidden", "top_k"),
        flops=_no_flops,
        bytes_read=lambda o: (
            _values(o.dtype, o["rows"] + o["tokens"], o["hidden"])
            + o["rows"] * o["top_k"] * _FLOAT32
        ),
        bytes_written=lambda o: (
            _values(o.out_dtype, o["tokens"], o["hidden"]) + o["tokens"] * o["top_k"] * _FLOAT32
        ),
    ),
    # where each received (token, choice) goes among the rows sorted by expert, and back
    "expert_mapping": Kind(
        sizes=("tokens", "rows", "groups", "top_k"),
        flops=_no_flops,
        bytes_read=lambda o: o["tokens"] * o["top_k"] * (_INT64 + _FLOAT32),
        bytes_written=lambda o: (
            o["rows"] * (_INT32 + _FLOAT32)
            + o["tokens"] * o["top_k"] * _INT32
            + o["groups"] * _INT32
        ),
    ),
    "permute": Kind(
        sizes=("rows", "tokens", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: _tiled(o.dtype, o["tokens"], o["columns"]) + o["rows"] * _INT32,
        bytes_written=lambda o: _tiled(o.out_dtype, o["rows"], o["columns"]),
    ),
    "unpermute": Kind(
        sizes=("rows", "tokens", "columns", "top_k"),
        flops=_no_flops,
        bytes_read=lambda o: _dense(o, o.dtype) + o["tokens"] * o["top_k"] * _INT32,
        bytes_written=lambda o: _values(o.out_dtype, o["tokens"], o["columns"]),
    ),
    "topk_weight_grad": Kind(
        sizes=("rows", "tokens", "columns", "top_k"),
        flops=_no_flops,
        bytes_read=lambda o: (
            2 * _dense(o, o.dtype) + o["rows"] * _FLOAT32 + o["tokens"] * o["top_k"] * _INT32
        ),
        bytes_written=lambda o: o["tokens"] * o["top_k"] * _FLOAT32,
    ),
    # -- vocabulary --------------------------------------------------------------------------------
    "embedding": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: o["rows"] * _INT64 + _dense(o, o.dtype),
        bytes_written=lambda o: _dense(o, o.out_dtype),
    ),
    # adds each row of the gradient into the FP32 row of its token
    "embedding_backward": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: o["rows"] * _INT64 + _dense(o, o.dtype) + _dense(o, o.out_dtype),
        bytes_written=lambda o: _dense(o, o.out_dtype),
    ),
    # the likeliest token of each row
    "sample": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: _dense(o, o.dtype),
        bytes_written=lambda o: o["rows"] * _INT64,
    ),
    # mean loss, and the log-sum-exp of each row for the backward
    "cross_entropy": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: _dense(o, o.dtype) + o["rows"] * _INT64,
        bytes_written=lambda o: (o["rows"] + 1) * _FLOAT32,
    ),
    "cross_entropy_backward": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: _dense(o, o.dtype) + o["rows"] * (_INT64 + _FLOAT32),
        bytes_written=lambda o: _dense(o, o.out_dtype),
    ),
    # the same of logits of a part of the vocabulary: log-sum-exp and target's logit of each row
    "cross_entropy_part": Kind(
        sizes=("rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: _dense(o, o.dtype) + o["rows"] * _INT64,
        bytes_written=lambda o: 2 * o["rows"] * _FLOAT32,
    ),
    # what `parts` GPUs found, joined to the mean loss and the log-sum-exp of each row
    "cross_entropy_merged": Kind(
        sizes=("rows", "parts"),
        flops=_no_flops,
        bytes_read=lambda o: 2 * o["rows"] * o["parts"] * _FLOAT32,
        bytes_written=lambda o: (o["rows"] + 1) * _FLOAT32,
    ),
    # -- the end of a step -------------------------------------------------------------------------
    "gradient_norm": Kind(
        sizes=("values",),
        flops=_no_flops,
        bytes_read=lambda o: _values(o.dtype, o["values"]),
        bytes_written=lambda _: _FLOAT32,
    ),
    # one pass over gradients, weights and moments: `read` and `written` bytes for each value
    "optimizer_update": Kind(
        sizes=("values", "read", "written"),
        flops=_no_flops,
        bytes_read=lambda o: o["values"] * o["read"],
        bytes_written=lambda o: o["values"] * o["written"],
    ),
    # weights of a product in their format, with the scales of their transpose as well; those of
    # several experts are read transposed
    "quantize_weight": Kind(
        sizes=("groups", "rows", "columns"),
        flops=_no_flops,
        bytes_read=lambda o: _values(o.dtype, o["groups"], o["rows"], o["columns"]),
        bytes_written=lambda o: (
            2 * _blocked(o.out_dtype, o["groups"], o["rows"], o["columns"])
            - _values(o.out_dtype, o["groups"], o["rows"], o["columns"])
        ),
    ),
    # -- between GPUs that share a layer -----------------------------------------------------------
    # `rows` are those of all `ranks` together
    "gather_tokens": Kind(
        sizes=("rows", "columns", "ranks"),
        flops=_no_flops,
        bytes_read=lambda o: _tiled(o.dtype, o["rows"] // o["ranks"], o["columns"]),
        bytes_written=lambda o: _tiled(o.out_dtype, o["rows"], o["columns"]),
    ),
    "scatter_sums": Kind(
        sizes=("rows", "columns", "ranks"),
        flops=_no_flops,
        bytes_read=lambda o: _dense(o, o.dtype),
        bytes_written=lambda o: _values(o.out_dtype, o["rows"] // o["ranks"], o["columns"]),
    ),
    # -- of other programs -------------------------------------------------------------------------
    # any kernel that reads and writes so many bytes, such as element-wise ones of a profile
    "memory_bound": Kind(
        sizes=("read", "written"),
        flops=_no_flops,
        bytes_read=lambda o: o["read"],
        bytes_written=lambda o: o["written"],
    ),
}
