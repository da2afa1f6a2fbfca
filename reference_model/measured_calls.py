"""Make a call that can be timed from an Operator, with fresh random inputs.

One builder a kind, in `BUILDERS`. Values are random: zeros would let the chip draw less power and
clock higher. FP8 values fill the range that quantisation gives them. The call runs the custom
operator that the model issues, so what is timed is what the model runs on the backend named.
"""

from collections.abc import Callable
from math import gcd
from typing import Any

import torch
from torch import Tensor

from reference_model import decode_operators
from reference_model import operators as ops
from reference_model.kernels.reference import TILE
from reference_model.precision import Recipe
from reference_model.trace import Operator

Call = Callable[[], object]

DTYPES = {
    "fp8_e4m3": torch.float8_e4m3fn,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "int64": torch.int64,
}
_SITE = "forward:measure:call"
_EPS = 1e-6
_FP8_DEVIATION = 448 / 2.8
"""Standard deviation of FP8 values: the largest of 128 normal values is about 2.8 of theirs."""


def build(operator: Operator, *, kernels: str, device: torch.device) -> Call:
    """Inputs on device and a call that runs the operator on them, with FP8 kernels of a backend.

    Raises ValueError for a kind that has no kernel of its own (dispatch and combine need peers)."""
    if operator.kind not in BUILDERS:
        raise ValueError(f"kind {operator.kind!r} is not one of {sorted(BUILDERS)}")
    return BUILDERS[operator.kind](operator, _Inputs(device), kernels)


class _Inputs:
    """Random tensors on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=self.device)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.device)

    def fp8(self, *shape: int) -> Tensor:
        x = torch.randn(shape, dtype=torch.bfloat16, device=self.device)
        return x.mul_(_FP8_DEVIATION).clamp_(-448, 448).to(torch.float8_e4m3fn)

    def tile_scales(self, rows: int, columns: int) -> Tensor:
        return self.positive(-(-columns // TILE), rows).t()

    def positive(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.device).add_(0.5)

    def tiled(self, dtype: str, rows: int, columns: int) -> tuple[Tensor, Tensor | None]:
        """[rows, columns] with tile scales if FP8."""
        if dtype == "fp8_e4m3":
            return self.fp8(rows, columns), self.tile_scales(rows, columns)
        return self.normal(rows, columns, dtype=DTYPES[dtype]), None

    def blocked(self, dtype: str, *shape: int) -> tuple[Tensor, Tensor | None]:
        """[..., rows, columns] with block scales if FP8."""
        if dtype == "fp8_e4m3":
            blocks = (*shape[:-2], -(-shape[-2] // TILE), -(-shape[-1] // TILE))
            return self.fp8(*shape), self.positive(*blocks)
        return self.normal(*shape, dtype=DTYPES[dtype]), None

    def group_sizes(self, rows: int, groups: int) -> Tensor:
        """Even shares of rows, int32 [groups]."""
        sizes = [rows // groups + (group < rows % groups) for group in range(groups)]
        return torch.tensor(sizes, dtype=torch.int32, device=self.device)

    def below(self, limit: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(limit, shape, device=self.device).to(dtype)


def _gemm(o: Operator, i: _Inputs, kernels: str) -> Call:
    m, n, k = o["m"], o["n"], o["k"]
    if o.accumulate:
        total = i.zeros(m, n)
        if o.dtype == "fp8_e4m3":
            (a, a_scales), (b, b_scales) = i.tiled(o.dtype, m, k), i.tiled(o.dtype, n, k)
        else:
            # Outside FP8 the operands are transposed views of [tokens, features].
            a, b = (i.normal(k, size, dtype=DTYPES[o.dtype]).t() for size in (m, n))
            a_scales = b_scales = None
        return lambda: ops.gemm_weight_grad(
            total, a, b, a_scales, b_scales, kernels=kernels, site=_SITE
        )
    (a, a_scales), (b, b_scales) = i.tiled(o.dtype, m, k), i.blocked(o.dtype, n, k)
    return lambda: ops.gemm(
        a, b, a_scales, b_scales, out_dtype=DTYPES[o.out_dtype], kernels=kernels, site=_SITE
    )


def _host_if_library(sizes: Tensor, kernels: str) -> Tensor:
    """Group sizes where the backend reads them, so that no copy stands between two kernels."""
    return sizes.cpu() if kernels == "library" else sizes


def _grouped_gemm(o: Operator, i: _Inputs, kernels: str) -> Call:
    rows, n, k, groups = o["rows"], o["n"], o["k"], o["groups"]
    (a, a_scales), (b, b_scales) = i.tiled(o.dtype, rows, k), i.blocked(o.dtype, groups, n, k)
    sizes = _host_if_library(i.group_sizes(rows, groups), kernels)
    return lambda: ops.grouped_gemm(
        a, b, a_scales, b_scales, sizes,
        out_dtype=DTYPES[o.out_dtype], kernels=kernels, site=_SITE,
    )  # fmt: skip


def _grouped_gemm_weight_grad(o: Operator, i: _Inputs, kernels: str) -> Call:
    rows, m, n, groups = o["rows"], o["m"], o["n"], o["groups"]
    total = i.zeros(groups, m, n)
    a, b = i.fp8(m, rows), i.fp8(n, rows)
    tiles = -(-rows // TILE) + groups - 1
    a_scales, b_scales = i.positive(tiles, m).t(), i.positive(tiles, n).t()
    sizes = _host_if_library(i.group_sizes(rows, groups), kernels)
    return lambda: ops.grouped_gemm_weight_grad(
        total, a, b, a_scales, b_scales, sizes, kernels=kernels, site=_SITE
    )


def _attention(o: Operator, i: _Inputs) -> tuple[Tensor, Tensor, Tensor]:
    shape = (o["sequences"], o["query_length"], o["heads"])
    q, k = i.normal(*shape, o["qk_dim"]), i.normal(*shape, o["qk_dim"])
    return q, k, i.normal(*shape, o["v_dim"])


def _attention_forward(o: Operator, i: _Inputs, kernels: str) -> Call:
    q, k, v = _attention(o, i)
    scale = float(o["qk_dim"]) ** -0.5
    return lambda: ops.attention_forward(q, k, v, scale=scale, site=_SITE)


def _attention_backward_preprocess(o: Operator, i: _Inputs, kernels: str) -> Call:
    shape = (o["sequences"], o["query_length"], o["heads"], o["v_dim"])
    out, grad = i.normal(*shape), i.normal(*shape)
    return lambda: ops.attention_backward_preprocess(out, grad, qk_dim=o["qk_dim"], site=_SITE)


def _attention_backward(o: Operator, i: _Inputs, kernels: str) -> Call:
    q, k, v = _attention(o, i)
    scale = float(o["qk_dim"]) ** -0.5
    out, log_sum = ops.attention_forward(q, k, v, scale=scale, site=_SITE)
    grad = torch.randn_like(out)
    delta, q_grad = ops.attention_backward_preprocess(out, grad, qk_dim=o["qk_dim"], site=_SITE)
    return lambda: ops.attention_backward(
        q_grad, q, k, v, grad, log_sum, delta, scale=scale, site=_SITE
    )


def _quantize(o: Operator, i: _Inputs, kernels: str) -> Call:
    x = i.normal(o["rows"], o["columns"], dtype=DTYPES[o.dtype])
    if o.out_dtype == "e5m6":
        return lambda: ops.quantize_e5m6(x, site=_SITE)
    return lambda: ops.quantize(x, power_of_two_scales=False, kernels=kernels, site=_SITE)


def _dequantize(o: Operator, i: _Inputs, kernels: str) -> Call:
    rows, columns, dtype = o["rows"], o["columns"], DTYPES[o.out_dtype]
    if o.dtype == "e5m6":
        packed = i.below(256, rows, columns * 3 // 2, dtype=torch.uint8)
        scales = i.positive(rows, -(-columns // TILE))
        return lambda: ops.dequantize_e5m6(packed, scales, dtype=dtype, site=_SITE)
    x, scales = i.fp8(rows, columns), i.tile_scales(rows, columns)
    return lambda: ops.dequantize(x, scales, dtype=dtype, kernels=kernels, site=_SITE)


def _quantize_transpose(o: Operator, i: _Inputs, kernels: str) -> Call:
    x, scales = i.tiled(o.dtype, o["rows"], o["columns"])
    return lambda: ops.quantize_transpose(x, scales, kernels=kernels, site=_SITE)


def _grouped_quantize_transpose(o: Operator, i: _Inputs, kernels: str) -> Call:
    x = i.normal(o["rows"], o["columns"], dtype=DTYPES[o.dtype])
    sizes = i.group_sizes(o["rows"], o["groups"])
    return lambda: ops.grouped_quantize_transpose(x, sizes, kernels=kernels, site=_SITE)


def _quantize_transpose_gather(o: Operator, i: _Inputs, kernels: str) -> Call:
    x, scales = i.fp8(o["tokens"], o["columns"]), i.tile_scales(o["tokens"], o["columns"])
    source = i.below(o["tokens"], o["rows"], dtype=torch.int32)
    sizes = i.group_sizes(o["rows"], o["groups"])
    return lambda: ops.quantize_transpose_gather(
        x, scales, source, sizes, kernels=kernels, site=_SITE
    )


def _transpose(o: Operator, i: _Inputs, kernels: str) -> Call:
    x = i.fp8(o["rows"], o["columns"])
    return lambda: ops.transpose(x, site=_SITE)


def _cast(o: Operator, i: _Inputs, kernels: str) -> Call:
    x = i.normal(o["rows"], o["columns"], dtype=DTYPES[o.dtype])
    return lambda: ops.cast(x, dtype=DTYPES[o.out_dtype], site=_SITE)


def _copy(o: Operator, i: _Inputs, kernels: str) -> Call:
    x, _ = i.tiled(o.dtype, o["rows"], o["columns"])
    out = torch.empty_like(x)
    return lambda: ops.copy(x, out, site=_SITE)


def _scale(o: Operator, i: _Inputs, kernels: str) -> Call:
    x = i.normal(o["rows"], o["columns"], dtype=DTYPES[o.dtype])
    return lambda: ops.scale(x, factor=1.0, site=_SITE)


def _broadcast_heads(o: Operator, i: _Inputs, kernels: str) -> Call:
    x, out = i.normal(o["rows"], o["dim"]), i.normal(o["rows"], o["heads"], o["dim"])
    return lambda: ops.broadcast_heads(x, out, site=_SITE)


def _sum_heads(o: Operator, i: _Inputs, kernels: str) -> Call:
    x = i.normal(o["rows"], o["heads"], o["dim"])
    return lambda: ops.sum_heads(x, site=_SITE)


def _concat(o: Operator, i: _Inputs, kernels: str) -> Call:
    left = o["columns"] // 2
    a, b = i.normal(o["rows"], left), i.normal(o["rows"], o["columns"] - left)
    return lambda: ops.concat(a, b, site=_SITE)


def _add(o: Operator, i: _Inputs, kernels: str) -> Call:
    a, b = (i.normal(o["rows"], o["columns"], dtype=DTYPES[o.dtype]) for _ in range(2))
    return lambda: ops.add(a, b, site=_SITE)


def _rmsnorm(o: Operator, i: _Inputs, kernels: str) -> Call:
    x, weight = i.normal(o["rows"], o["columns"]), i.positive(o["columns"])
    return lambda: ops.rmsnorm(x, weight, eps=_EPS, site=_SITE)


def _rmsnorm_residual(o: Operator, i: _Inputs, kernels: str) -> Call:
    update, residual = i.normal(o["rows"], o["columns"]), i.normal(o["rows"], o["columns"])
    weight = i.positive(o["columns"])
    return lambda: ops.rmsnorm_residual(update, residual, weight, eps=_EPS, site=_SITE)


def _rmsnorm_backward(o: Operator, i: _Inputs, kernels: str) -> Call:
    grad, x = i.normal(o["rows"], o["columns"]), i.normal(o["rows"], o["columns"])
    weight, total = i.positive(o["columns"]), i.zeros(o["columns"])
    return lambda: ops.rmsnorm_backward(grad, x, weight, total, eps=_EPS, site=_SITE)


def _rmsnorm_residual_backward(o: Operator, i: _Inputs, kernels: str) -> Call:
    grad, residual_grad, x = (i.normal(o["rows"], o["columns"]) for _ in range(3))
    weight, total = i.positive(o["columns"]), i.zeros(o["columns"])
    return lambda: ops.rmsnorm_residual_backward(
        grad, residual_grad, x, weight, total, eps=_EPS, site=_SITE
    )


def _rope(o: Operator, i: _Inputs, kernels: str) -> Call:
    positions = o["positions"]
    x = i.normal(o["rows"] // positions, positions, o["heads"], o["dim"])
    cos, sin = i.positive(positions, o["dim"] // 2), i.positive(positions, o["dim"] // 2)
    return lambda: ops.rope(x, cos, sin, inverse=False, site=_SITE)


def _swiglu(o: Operator, i: _Inputs, kernels: str) -> Call:
    x = i.normal(o["rows"], 2 * o["columns"])
    if o.out_dtype == "fp8_e4m3":
        return lambda: ops.swiglu_quantize(x, kernels=kernels, site=_SITE)
    return lambda: ops.swiglu(x, site=_SITE)


def _weighted_swiglu(o: Operator, i: _Inputs, kernels: str) -> Call:
    x, weights = i.normal(o["rows"], 2 * o["columns"]), i.positive(o["rows"])
    if o.out_dtype == "fp8_e4m3":
        return lambda: ops.weighted_swiglu_quantize(x, weights, kernels=kernels, site=_SITE)
    return lambda: ops.weighted_swiglu(x, weights, site=_SITE)


def _swiglu_quantize_transpose(o: Operator, i: _Inputs, kernels: str) -> Call:
    x = i.normal(o["rows"], 2 * o["columns"])
    return lambda: ops.swiglu_quantize_transpose(x, kernels=kernels, site=_SITE)


def _swiglu_backward(o: Operator, i: _Inputs, kernels: str) -> Call:
    x, grad = i.normal(o["rows"], 2 * o["columns"]), i.normal(o["rows"], o["columns"])
    return lambda: ops.swiglu_backward(x, grad, site=_SITE)


def _weighted_swiglu_forward_backward(o: Operator, i: _Inputs, kernels: str) -> Call:
    x, grad = i.normal(o["rows"], 2 * o["columns"]), i.normal(o["rows"], o["columns"])
    weights = i.positive(o["rows"])
    return lambda: ops.weighted_swiglu_forward_backward(x, weights, grad, site=_SITE)


def _gate(o: Operator, i: _Inputs, kernels: str) -> Call:
    logits = i.normal(o["tokens"], o["experts"], dtype=torch.float32)
    bias = i.normal(o["experts"], dtype=torch.float32)
    groups = max(1, o["experts"] // 32)
    return lambda: ops.gate(
        logits, bias,
        scoring="sigmoid", n_group=groups, topk_group=-(-groups // 2), top_k=o["top_k"],
        normalise=True, scaling=2.5, site=_SITE,
    )  # fmt: skip


def _choices(i: _Inputs, tokens: int, experts: int, top_k: int) -> Tensor:
    """top_k different experts for each token, int64 [tokens, top_k]."""
    return torch.rand(tokens, experts, device=i.device).topk(top_k, dim=1).indices


def _gate_backward(o: Operator, i: _Inputs, kernels: str) -> Call:
    logits = i.normal(o["tokens"], o["experts"], dtype=torch.float32)
    indices = _choices(i, o["tokens"], o["experts"], o["top_k"])
    grad = i.normal(o["tokens"], o["top_k"], dtype=torch.float32)
    return lambda: ops.gate_backward(
        logits, indices, grad,
        scoring="sigmoid", normalise=True, scaling=2.5, dtype=DTYPES[o.out_dtype], site=_SITE,
    )  # fmt: skip


def _dispatch_layout(o: Operator, i: _Inputs, kernels: str) -> Call:
    indices = _choices(i, o["tokens"], o["experts"], o["top_k"])
    return lambda: ops.dispatch_layout(indices, experts=o["experts"], site=_SITE)


def _local_choices(o: Operator, i: _Inputs, local_experts: int) -> Tensor:
    from reference_model.gpu import local_choices

    return local_choices(
        torch.empty((1, o["top_k"]), dtype=torch.int64, device=i.device),
        rows=o["tokens"],
        local_experts=local_experts,
        expert_rows=o["rows"],
    )


def _expert_mapping(o: Operator, i: _Inputs, kernels: str) -> Call:
    indices = _local_choices(o, i, o["groups"])
    weights = i.positive(o["tokens"], o["top_k"])
    return lambda: ops.expert_mapping(
        indices, weights, rows=o["rows"], local_experts=o["groups"], site=_SITE
    )


def _permute(o: Operator, i: _Inputs, kernels: str) -> Call:
    x, scales = i.tiled(o.dtype, o["tokens"], o["columns"])
    # Every so many tokens, and every one before any comes again: a step that divides their number
    # would read a part of them, from the cache.
    step = next(number for number in range(7, o["tokens"] + 8) if gcd(number, o["tokens"]) == 1)
    source = (torch.arange(o["rows"], device=i.device) * step % o["tokens"]).int()
    return lambda: ops.permute(x, scales, source, site=_SITE)


def _choice_rows(o: Operator, i: _Inputs) -> Tensor:
    """The row of each received choice, int32 [tokens, top_k], -1 where it is not local."""
    choices = _local_choices(o, i, o["top_k"])
    local = choices >= 0
    rows = torch.full_like(choices, -1)
    rows[local] = torch.randperm(o["rows"], device=i.device)
    return rows.int()


def _unpermute(o: Operator, i: _Inputs, kernels: str) -> Call:
    x, rows = i.normal(o["rows"], o["columns"]), _choice_rows(o, i)
    return lambda: ops.unpermute(x, rows, site=_SITE)


def _topk_weight_grad(o: Operator, i: _Inputs, kernels: str) -> Call:
    activated, grad = i.normal(o["rows"], o["columns"]), i.normal(o["rows"], o["columns"])
    weights, rows = i.positive(o["rows"]), _choice_rows(o, i)
    return lambda: ops.topk_weight_grad(activated, grad, weights, rows, site=_SITE)


_VOCABULARY = 129_280
"""Rows of the embedding table (config.json); they are not a size of the operator."""


def _embedding(o: Operator, i: _Inputs, kernels: str) -> Call:
    table = i.normal(_VOCABULARY, o["columns"], dtype=DTYPES[o.dtype])
    tokens = i.below(_VOCABULARY, o["rows"])
    return lambda: ops.embedding(tokens, table, site=_SITE)


def _embedding_backward(o: Operator, i: _Inputs, kernels: str) -> Call:
    total, tokens = i.zeros(_VOCABULARY, o["columns"]), i.below(_VOCABULARY, o["rows"])
    grad = i.normal(o["rows"], o["columns"])
    return lambda: ops.embedding_backward(total, tokens, grad, site=_SITE)


def _cross_entropy(o: Operator, i: _Inputs, kernels: str) -> Call:
    logits = i.normal(o["rows"], o["columns"], dtype=DTYPES[o.dtype])
    targets = i.below(o["columns"], o["rows"])
    return lambda: ops.cross_entropy(logits, targets, site=_SITE)


def _cross_entropy_backward(o: Operator, i: _Inputs, kernels: str) -> Call:
    logits = i.normal(o["rows"], o["columns"], dtype=DTYPES[o.dtype])
    targets, sums = i.below(o["columns"], o["rows"]), i.normal(o["rows"], dtype=torch.float32)
    return lambda: ops.cross_entropy_backward(logits, targets, sums, weight=1.0, site=_SITE)


def _gradient_norm(o: Operator, i: _Inputs, kernels: str) -> Call:
    gradients = [i.normal(o["values"], dtype=torch.float32)]
    return lambda: ops.gradient_norm(gradients, site=_SITE)


def _optimizer_update(o: Operator, i: _Inputs, kernels: str) -> Call:
    from reference_model.optimizer import AdamW

    optimizer = AdamW([torch.nn.Parameter(i.normal(o["values"], dtype=torch.float32))])
    moved = [x.element_size() for x in (*optimizer.parameters, *optimizer.first, *optimizer.second)]
    each = sum(moved) + torch.float32.itemsize
    if (o["read"], o["written"]) != (each, each):
        raise ValueError(
            f"read={o['read']} and written={o['written']}: the model's optimizer moves {each} bytes"
            " of a value each way"
        )
    gradients = [i.normal(o["values"], dtype=torch.float32)]
    optimizer.second[0].copy_(gradients[0].square())
    norm = i.positive()
    return lambda: optimizer.update(gradients, norm, learning_rate=1e-4)


def _quantize_weight(o: Operator, i: _Inputs, kernels: str) -> Call:
    groups, rows, columns = o["groups"], o["rows"], o["columns"]
    if groups == 1:
        master = i.normal(rows, columns, dtype=torch.float32)
    else:
        master = i.normal(groups, columns, rows, dtype=torch.float32).mT
    recipe = Recipe("fp8", kernels)
    copied = recipe.weight(master, _SITE)
    return lambda: recipe.weight(master, _SITE, copied)


def _sample(o: Operator, i: _Inputs, kernels: str) -> Call:
    logits = i.normal(o["rows"], o["columns"], dtype=DTYPES[o.dtype])
    return lambda: decode_operators.sample(logits, site=_SITE)


def _batched_gemm(o: Operator, i: _Inputs, kernels: str) -> Call:
    a, b = i.normal(o["batch"], o["m"], o["k"]), i.normal(o["batch"], o["n"], o["k"])
    out = i.normal(o["batch"], o["m"], o["n"])
    return lambda: decode_operators.batched_gemm_into(a, b, out, site=_SITE)


def _mla_decode(o: Operator, i: _Inputs, kernels: str) -> Call:
    width = o["latent_dim"] + o["rope_dim"]
    q = i.normal(o["sequences"], o["query_length"], o["heads"], width)
    cache = i.normal(o["sequences"], o["kv_length"], width)
    lengths = torch.full((o["sequences"],), o["kv_length"], dtype=torch.int32, device=i.device)
    scale = float(width) ** -0.5
    return lambda: decode_operators.mla_decode(
        q, cache, lengths, latent_dim=o["latent_dim"], scale=scale, site=_SITE
    )


def _layernorm(o: Operator, i: _Inputs, kernels: str) -> Call:
    x, weight, bias = (
        i.normal(o["rows"], o["columns"]),
        i.zeros(o["columns"]),
        i.zeros(o["columns"]),
    )
    return lambda: ops.layernorm(x, weight, bias, eps=_EPS, site=_SITE)


def _index_scores(o: Operator, i: _Inputs, kernels: str) -> Call:
    sequences, queries, heads, dim = (
        o[name] for name in ("sequences", "query_length", "heads", "dim")
    )
    weights = i.normal(sequences, queries, heads, dtype=torch.float32)
    q, keys = (sequences, queries, heads, dim), (sequences, o["kv_length"], dim)
    lengths = torch.full((sequences,), o["kv_length"], dtype=torch.int32, device=i.device)
    if o.dtype != "fp8_e4m3":
        return _scores_of(i.normal(*q), None, weights, i.normal(*keys), None, lengths)
    scales = i.positive(*q[:3]), i.positive(*keys[:2])
    return _scores_of(i.fp8(*q), scales[0], weights, i.fp8(*keys), scales[1], lengths)


def _scores_of(*operands: Tensor | None) -> Call:
    scores: Any = ops.index_scores
    return lambda: scores(*operands, scale=1.0, site=_SITE)


def _index_topk(o: Operator, i: _Inputs, kernels: str) -> Call:
    scores = i.normal(o["rows"], 1, o["columns"], dtype=torch.float32)
    return lambda: ops.index_topk(scores, top_k=o["top_k"], site=_SITE)


def _sparse_mla(o: Operator, i: _Inputs, kernels: str) -> Call:
    width = o["latent_dim"] + o["rope_dim"]
    q = i.normal(o["sequences"], o["query_length"], o["heads"], width)
    cache = i.normal(o["sequences"], o["kv_length"], width)
    selected = _spread_selection(o, i)
    return lambda: ops.sparse_mla(
        q, cache, selected, latent_dim=o["latent_dim"], scale=float(width) ** -0.5, site=_SITE
    )


def _spread_selection(o: Operator, i: _Inputs) -> Tensor:
    """For each query one of every few tokens that it sees, at random; all where they are few."""
    queries, top_k = o["query_length"], o["top_k"]
    visible = torch.arange(queries, device=i.device) + (o["kv_length"] - queries + 1)
    strides = visible.clamp(min=top_k) / top_k
    places = torch.arange(top_k, device=i.device)
    offsets = torch.rand(o["sequences"], queries, top_k, device=i.device)
    selected = ((places + offsets * 0.999) * strides[:, None]).int()
    few = visible[:, None] <= top_k
    selected = torch.where(few, places.int(), selected)
    return selected.masked_fill(selected >= visible[:, None], -1)


def _masked_grouped_gemm(o: Operator, i: _Inputs, kernels: str) -> Call:
    from reference_model.kernels import load_backend

    groups, n, k = o["groups"], o["n"], o["k"]
    room = -(-o["rows"] // groups // TILE) * TILE or TILE
    a, a_scales = i.fp8(groups, room, k), i.positive(groups, -(-k // TILE), room).mT
    b, b_scales = i.fp8(groups, n, k), i.positive(groups, -(-n // TILE), -(-k // TILE))
    sizes = i.group_sizes(o["rows"], groups)
    backend = load_backend(kernels)
    return lambda: backend.masked_grouped_gemm_fp8(
        a, a_scales, b, b_scales, group_rows=sizes, out_dtype=DTYPES[o.out_dtype]
    )


BUILDERS: dict[str, Callable[[Operator, Any, str], Call]] = {
    "add": _add,
    "attention_backward": _attention_backward,
    "attention_backward_preprocess": _attention_backward_preprocess,
    "attention_forward": _attention_forward,
    "batched_gemm": _batched_gemm,
    "broadcast_heads": _broadcast_heads,
    "cast": _cast,
    "concat": _concat,
    "copy": _copy,
    "cross_entropy": _cross_entropy,
    "cross_entropy_backward": _cross_entropy_backward,
    "dequantize": _dequantize,
    "dispatch_layout": _dispatch_layout,
    "embedding": _embedding,
    "embedding_backward": _embedding_backward,
    "expert_mapping": _expert_mapping,
    "gate": _gate,
    "gate_backward": _gate_backward,
    "gemm": _gemm,
    "gradient_norm": _gradient_norm,
    "grouped_gemm": _grouped_gemm,
    "grouped_gemm_weight_grad": _grouped_gemm_weight_grad,
    "grouped_quantize_transpose": _grouped_quantize_transpose,
    "index_scores": _index_scores,
    "index_topk": _index_topk,
    "layernorm": _layernorm,
    "masked_grouped_gemm": _masked_grouped_gemm,
    "mla_decode": _mla_decode,
    "optimizer_update": _optimizer_update,
    "permute": _permute,
    "quantize": _quantize,
    "quantize_transpose": _quantize_transpose,
    "quantize_transpose_gather": _quantize_transpose_gather,
    "quantize_weight": _quantize_weight,
    "rmsnorm": _rmsnorm,
    "rmsnorm_backward": _rmsnorm_backward,
    "rmsnorm_residual": _rmsnorm_residual,
    "rmsnorm_residual_backward": _rmsnorm_residual_backward,
    "rope": _rope,
    "sample": _sample,
    "scale": _scale,
    "sparse_mla": _sparse_mla,
    "sum_heads": _sum_heads,
    "swiglu": _swiglu,
    "swiglu_backward": _swiglu_backward,
    "swiglu_quantize_transpose": _swiglu_quantize_transpose,
    "topk_weight_grad": _topk_weight_grad,
    "transpose": _transpose,
    "unpermute": _unpermute,
    "weighted_swiglu": _weighted_swiglu,
    "weighted_swiglu_forward_backward": _weighted_swiglu_forward_backward,
}
