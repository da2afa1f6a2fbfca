"""The floating-point operations and bytes of an operator, by kernel family.

An `Operator` is one kernel launch. `KINDS` is the one table of what each family computes, reads and
writes; recorder tests hold it against the tensors of real calls. Free of torch.

Units: bytes, and floating-point operations with one multiply-add counted as 2. FLOPs are those of
matrix products only, as the field counts them; element-wise kernels are bound by their bytes.
Bytes are those of the tensors the kernel reads and writes, quantisation scales included.
"""

from __future__ import annotations

from dataclasses import dataclass

from reference_model.attention_kinds import ATTENTION_KINDS, MASKED, attention_flops, selected_pairs
from reference_model.formats import ACTIVATIONS
from reference_model.kind import FLOAT32, INT32, Kind, blocked, plain, tiled

PHASES = ("forward", "recompute", "input_grad", "weight_grad")
"""Passes through a layer in order; "recompute" is its forward once more, before its backward."""

ALL_TO_ALL_KINDS = frozenset({"dispatch", "combine"})
"""Families that exchange tokens between the GPUs that hold their experts."""

COLLECTIVE_KINDS = frozenset({"gather_tokens", "scatter_sums"})
"""Families that exchange tokens, or sums over parts, between GPUs that share a layer."""

_INT64 = 8


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
            return 2 * attention_flops(self, self["qk_dim"] + self["v_dim"])
        if self.kind in MASKED:
            pairs: int = self["sequences"] * self["heads"] * selected_pairs(self)
            return MASKED[self.kind] * 2 * pairs * (self["qk_dim"] + self["v_dim"])
        return self.flops

    @property
    def bytes_read(self) -> int:
        """Bytes of the tensors read."""
        return KINDS[self.kind].bytes_read(self)

    @property
    def bytes_written(self) -> int:
        """Bytes of the tensors written."""
        return KINDS[self.kind].bytes_written(self)


def _grouped_tiles(o: Operator, dtype: str, features: int) -> int:
    """Bytes of [features, rows] scaled in tiles along rows that restart at each group."""
    stored = ACTIVATIONS[dtype]
    tiles = -(-o["rows"] // stored.columns) + o["groups"] - 1
    scales = features * tiles * (stored.scale_bits // 8)
    return plain(dtype, features, o["rows"]) + scales


def _gemm_read(o: Operator) -> int:
    # A weight gradient multiplies two activations, both scaled in 1 x 128 tiles along tokens, and
    # adds into its FP32 output; the other two GEMMs multiply by a weight scaled in blocks.
    left = tiled(o.dtype, o["m"], o["k"])
    if o.accumulate:
        right = tiled(o.dtype, o["n"], o["k"]) + plain(o.out_dtype, o["m"], o["n"])
    else:
        right = blocked(o.dtype, 1, o["n"], o["k"])
    return left + right


def _grouped_gemm(rows: str) -> Kind:
    return Kind(
        sizes=(rows, "n", "k", "groups"),
        flops=lambda o: 2 * o[rows] * o["n"] * o["k"],
        bytes_read=lambda o: (
            tiled(o.dtype, o[rows], o["k"])
            + blocked(o.dtype, o["groups"], o["n"], o["k"])
            + o["groups"] * INT32
        ),
        bytes_written=lambda o: plain(o.out_dtype, o[rows], o["n"]),
    )


def _dense(o: Operator, dtype: str) -> int:
    return plain(dtype, o["rows"], o["columns"])


def _unary() -> Kind:
    """What turns rows into rows of the same size; scales where either side is quantised."""
    return Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: tiled(o.dtype, o["rows"], o["columns"]),
        bytes_written=lambda o: tiled(o.out_dtype, o["rows"], o["columns"]),
    )


def _heads(o: Operator) -> int:
    return plain(o.dtype, o["rows"], o["heads"], o["dim"])


def _norm_weight(o: Operator) -> int:
    return o["columns"] * FLOAT32


KINDS: dict[str, Kind] = {
    # -- matrix products ---------------------------------------------------------------------------
    # [m, k] x [n, k]^T -> [m, n]. Weight gradient: m = outputs, n = inputs, k = tokens, accumulate.
    "gemm": Kind(
        sizes=("m", "n", "k"),
        flops=lambda o: 2 * o["m"] * o["n"] * o["k"],
        bytes_read=_gemm_read,
        bytes_written=lambda o: plain(o.out_dtype, o["m"], o["n"]),
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
            + plain(o.out_dtype, o["groups"], o["m"], o["n"])
            + o["groups"] * INT32
        ),
        bytes_written=lambda o: plain(o.out_dtype, o["groups"], o["m"], o["n"]),
    ),
    "batched_gemm": Kind(
        sizes=("batch", "m", "n", "k"),
        flops=lambda o: 2 * o["batch"] * o["m"] * o["n"] * o["k"],
        bytes_read=lambda o: plain(o.dtype, o["batch"], o["m"] + o["n"], o["k"]),
        bytes_written=lambda o: plain(o.out_dtype, o["batch"], o["m"], o["n"]),
    ),
    **ATTENTION_KINDS,
    # -- casts and copies --------------------------------------------------------------------------
    "quantize": _unary(),
    "dequantize": _unary(),
    "cast": _unary(),
    "copy": _unary(),
    "scale": _unary(),
    # [rows, columns] -> [columns, rows] quantised along what were the rows
    "quantize_transpose": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: tiled(o.dtype, o["rows"], o["columns"]),
        bytes_written=lambda o: tiled(o.out_dtype, o["columns"], o["rows"]),
    ),
    # the same of rows sorted by expert: tiles restart at each group
    "grouped_quantize_transpose": Kind(
        sizes=("rows", "columns", "groups"),
        bytes_read=lambda o: tiled(o.dtype, o["rows"], o["columns"]) + o["groups"] * INT32,
        bytes_written=lambda o: _grouped_tiles(o, o.out_dtype, o["columns"]),
    ),
    # the same, gathering `rows` expanded rows out of `tokens` received ones on the way
    "quantize_transpose_gather": Kind(
        sizes=("rows", "tokens", "columns", "groups"),
        bytes_read=lambda o: (
            tiled(o.dtype, o["tokens"], o["columns"]) + (o["rows"] + o["groups"]) * INT32
        ),
        bytes_written=lambda o: _grouped_tiles(o, o.out_dtype, o["columns"]),
    ),
    # values of a weight only; the few scales of its blocks are read transposed in place
    "transpose": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: _dense(o, o.dtype),
        bytes_written=lambda o: _dense(o, o.out_dtype),
    ),
    # [rows, dim] to every head, and its backward
    "broadcast_heads": Kind(
        sizes=("rows", "heads", "dim"),
        bytes_read=lambda o: plain(o.dtype, o["rows"], o["dim"]),
        bytes_written=_heads,
    ),
    "sum_heads": Kind(
        sizes=("rows", "heads", "dim"),
        bytes_read=_heads,
        bytes_written=lambda o: plain(o.dtype, o["rows"], o["dim"]),
    ),
    "concat": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: _dense(o, o.dtype),
        bytes_written=lambda o: _dense(o, o.out_dtype),
    ),
    "add": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: 2 * _dense(o, o.dtype),
        bytes_written=lambda o: _dense(o, o.out_dtype),
    ),
    # -- norms, rotary embedding, activation -------------------------------------------------------
    "rmsnorm": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: _dense(o, o.dtype) + _norm_weight(o),
        bytes_written=lambda o: _dense(o, o.out_dtype),
    ),
    # adds the update to the residual first; writes the sum and its norm
    "rmsnorm_residual": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: 2 * _dense(o, o.dtype) + _norm_weight(o),
        bytes_written=lambda o: 2 * _dense(o, o.out_dtype),
    ),
    # with mean and bias
    "layernorm": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: _dense(o, o.dtype) + 2 * _norm_weight(o),
        bytes_written=lambda o: _dense(o, o.out_dtype),
    ),
    # the weight's FP32 gradient is added to in the same pass
    "rmsnorm_backward": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: 2 * _dense(o, o.dtype) + 2 * _norm_weight(o),
        bytes_written=lambda o: _dense(o, o.out_dtype) + _norm_weight(o),
    ),
    # the same, adding the gradient that arrives along the residual
    "rmsnorm_residual_backward": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: 3 * _dense(o, o.dtype) + 2 * _norm_weight(o),
        bytes_written=lambda o: _dense(o, o.out_dtype) + _norm_weight(o),
    ),
    # in place; FP32 cosines and sines of dim/2 angles for each position of a sequence
    "rope": Kind(
        sizes=("rows", "positions", "heads", "dim"),
        bytes_read=lambda o: _heads(o) + o["positions"] * o["dim"] * FLOAT32,
        bytes_written=_heads,
    ),
    # [rows, 2 columns] -> [rows, columns]; quantises in the same pass where out_dtype is FP8
    "swiglu": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: 2 * _dense(o, o.dtype),
        bytes_written=lambda o: tiled(o.out_dtype, o["rows"], o["columns"]),
    ),
    # the same times the routing weight of each row
    "weighted_swiglu": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: 2 * _dense(o, o.dtype) + o["rows"] * FLOAT32,
        bytes_written=lambda o: tiled(o.out_dtype, o["rows"], o["columns"]),
    ),
    "swiglu_quantize_transpose": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: 2 * _dense(o, o.dtype),
        bytes_written=lambda o: tiled(o.out_dtype, o["columns"], o["rows"]),
    ),
    "swiglu_backward": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: 3 * _dense(o, o.dtype),
        bytes_written=lambda o: 2 * _dense(o, o.out_dtype),
    ),
    # recomputes the weighted activation, which the weight gradient needs, beside its gradient
    "weighted_swiglu_forward_backward": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: 3 * _dense(o, o.dtype) + o["rows"] * FLOAT32,
        bytes_written=lambda o: 3 * _dense(o, o.out_dtype),
    ),
    # -- routing -----------------------------------------------------------------------------------
    # sigmoid, group selection, top-k and normalised weights of FP32 logits
    "gate": Kind(
        sizes=("tokens", "experts", "top_k"),
        bytes_read=lambda o: (o["tokens"] + 1) * o["experts"] * FLOAT32,
        bytes_written=lambda o: o["tokens"] * o["top_k"] * (_INT64 + FLOAT32),
    ),
    "gate_backward": Kind(
        sizes=("tokens", "experts", "top_k"),
        bytes_read=lambda o: (
            o["tokens"] * o["experts"] * FLOAT32 + o["tokens"] * o["top_k"] * (_INT64 + FLOAT32)
        ),
        bytes_written=lambda o: plain(o.out_dtype, o["tokens"], o["experts"]),
    ),
    # tokens for each expert, which dispatch needs before it can send
    "dispatch_layout": Kind(
        sizes=("tokens", "experts", "top_k"),
        bytes_read=lambda o: o["tokens"] * o["top_k"] * _INT64,
        bytes_written=lambda o: o["experts"] * INT32,
    ),
    # `tokens` leave this rank, `rows` arrive. top_k choices and weights travel along; top_k is 0
    # where the layout is known from the forward pass and only the payload travels.
    "dispatch": Kind(
        sizes=("tokens", "rows", "hidden", "top_k"),
        bytes_read=lambda o: (
            tiled(o.dtype, o["tokens"], o["hidden"]) + o["tokens"] * o["top_k"] * (_INT64 + FLOAT32)
        ),
        bytes_written=lambda o: (
            tiled(o.out_dtype, o["rows"], o["hidden"]) + o["rows"] * o["top_k"] * (_INT64 + FLOAT32)
        ),
    ),
    # `rows` leave this rank and are summed into `tokens`, onto the shared expert's share of them.
    # top_k gradients of routing weights travel along in backward; 0 in forward.
    "combine": Kind(
        sizes=("tokens", "rows", "hidden", "top_k"),
        bytes_read=lambda o: (
            plain(o.dtype, o["rows"] + o["tokens"], o["hidden"]) + o["rows"] * o["top_k"] * FLOAT32
        ),
        bytes_written=lambda o: (
            plain(o.out_dtype, o["tokens"], o["hidden"]) + o["tokens"] * o["top_k"] * FLOAT32
        ),
    ),
    # where each received (token, choice) goes among the rows sorted by expert, and back
    "expert_mapping": Kind(
        sizes=("tokens", "rows", "groups", "top_k"),
        bytes_read=lambda o: o["tokens"] * o["top_k"] * (_INT64 + FLOAT32),
        bytes_written=lambda o: (
            o["rows"] * (INT32 + FLOAT32) + o["tokens"] * o["top_k"] * INT32 + o["groups"] * INT32
        ),
    ),
    "permute": Kind(
        sizes=("rows", "tokens", "columns"),
        bytes_read=lambda o: tiled(o.dtype, o["tokens"], o["columns"]) + o["rows"] * INT32,
        bytes_written=lambda o: tiled(o.out_dtype, o["rows"], o["columns"]),
    ),
    "unpermute": Kind(
        sizes=("rows", "tokens", "columns", "top_k"),
        bytes_read=lambda o: _dense(o, o.dtype) + o["tokens"] * o["top_k"] * INT32,
        bytes_written=lambda o: plain(o.out_dtype, o["tokens"], o["columns"]),
    ),
    "topk_weight_grad": Kind(
        sizes=("rows", "tokens", "columns", "top_k"),
        bytes_read=lambda o: (
            2 * _dense(o, o.dtype) + o["rows"] * FLOAT32 + o["tokens"] * o["top_k"] * INT32
        ),
        bytes_written=lambda o: o["tokens"] * o["top_k"] * FLOAT32,
    ),
    # -- vocabulary --------------------------------------------------------------------------------
    "embedding": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: o["rows"] * _INT64 + _dense(o, o.dtype),
        bytes_written=lambda o: _dense(o, o.out_dtype),
    ),
    # adds each row of the gradient into the FP32 row of its token
    "embedding_backward": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: o["rows"] * _INT64 + _dense(o, o.dtype) + _dense(o, o.out_dtype),
        bytes_written=lambda o: _dense(o, o.out_dtype),
    ),
    # the likeliest token of each row
    "sample": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: _dense(o, o.dtype),
        bytes_written=lambda o: o["rows"] * _INT64,
    ),
    # mean loss, and the log-sum-exp of each row for the backward
    "cross_entropy": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: _dense(o, o.dtype) + o["rows"] * _INT64,
        bytes_written=lambda o: (o["rows"] + 1) * FLOAT32,
    ),
    "cross_entropy_backward": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: _dense(o, o.dtype) + o["rows"] * (_INT64 + FLOAT32),
        bytes_written=lambda o: _dense(o, o.out_dtype),
    ),
    # the same of logits of a part of the vocabulary: log-sum-exp and target's logit of each row
    "cross_entropy_part": Kind(
        sizes=("rows", "columns"),
        bytes_read=lambda o: _dense(o, o.dtype) + o["rows"] * _INT64,
        bytes_written=lambda o: 2 * o["rows"] * FLOAT32,
    ),
    # what `parts` GPUs found, joined to the mean loss and the log-sum-exp of each row
    "cross_entropy_merged": Kind(
        sizes=("rows", "parts"),
        bytes_read=lambda o: 2 * o["rows"] * o["parts"] * FLOAT32,
        bytes_written=lambda o: (o["rows"] + 1) * FLOAT32,
    ),
    # -- the end of a step -------------------------------------------------------------------------
    "gradient_norm": Kind(
        sizes=("values",),
        bytes_read=lambda o: plain(o.dtype, o["values"]),
        bytes_written=lambda _: FLOAT32,
    ),
    # one pass over gradients, weights and moments: `read` and `written` bytes for each value
    "optimizer_update": Kind(
        sizes=("values", "read", "written"),
        bytes_read=lambda o: o["values"] * o["read"],
        bytes_written=lambda o: o["values"] * o["written"],
    ),
    # weights of a product in their format, with the scales of their transpose as well; those of
    # several experts are read transposed
    "quantize_weight": Kind(
        sizes=("groups", "rows", "columns"),
        bytes_read=lambda o: plain(o.dtype, o["groups"], o["rows"], o["columns"]),
        bytes_written=lambda o: (
            2 * blocked(o.out_dtype, o["groups"], o["rows"], o["columns"])
            - plain(o.out_dtype, o["groups"], o["rows"], o["columns"])
        ),
    ),
    # -- between GPUs that share a layer -----------------------------------------------------------
    # `rows` are those of all `ranks` together
    "gather_tokens": Kind(
        sizes=("rows", "columns", "ranks"),
        bytes_read=lambda o: tiled(o.dtype, o["rows"] // o["ranks"], o["columns"]),
        bytes_written=lambda o: tiled(o.out_dtype, o["rows"], o["columns"]),
    ),
    "scatter_sums": Kind(
        sizes=("rows", "columns", "ranks"),
        bytes_read=lambda o: _dense(o, o.dtype),
        bytes_written=lambda o: plain(o.out_dtype, o["rows"] // o["ranks"], o["columns"]),
    ),
    # -- of other programs -------------------------------------------------------------------------
    # any kernel that reads and writes so many bytes, such as element-wise ones of a profile
    "memory_bound": Kind(
        sizes=("read", "written"),
        bytes_read=lambda o: o["read"],
        bytes_written=lambda o: o["written"],
    ),
}
