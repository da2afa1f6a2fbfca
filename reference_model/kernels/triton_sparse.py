# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""Triton kernels of sparse attention: the indexer's, and the core over selected tokens.

operators/sparse.py says what each computes; gpu.py puts them behind the operators. Nothing is read
by the host, so that a step can be captured in a CUDA graph. The core gathers the entries of the
cache that a query selected; DeepSeek's kernels do so with the bulk copy engine.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reference_model import operators as ops
from reference_model.kernels.mla_decode import combine_splits, splits_of
from reference_model.kernels.triton_quantize import _round_to_e4m3, _scale_of

_BLOCK_KEYS = 128
_MOST_QUERIES = 32
"""Queries that a program of index scores takes one after another, its keys in registers."""
_BLOCK_ROWS = 64
_BLOCK_SELECTED = 64
_WARPS, _STAGES = 8, 2


# -- indexer ---------------------------------------------------------------------------------------


@triton.jit
def _layernorm_kernel(x, weight, bias, out, columns, row_stride, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    value = tl.load(x + row * row_stride + column, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, value - tl.sum(value) / columns, 0.0)
    normal = centred * tl.rsqrt(tl.sum(centred * centred) / columns + eps)
    scaled = normal * tl.load(weight + column, mask=inside) + tl.load(bias + column, mask=inside)
    tl.store(out + row * columns + column, scaled.to(out.dtype.element_ty), mask=inside)


def launch_layernorm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, site: str) -> Tensor:
    """Run operators.layernorm; a row's values must be adjacent in memory."""
    rows, columns = x.shape
    out = x.new_empty((rows, columns))
    _layernorm_kernel[(rows,)](
        x, weight, bias, out, columns, x.stride(0), eps,
        BLOCK=triton.next_power_of_2(columns), num_warps=1,
    )  # fmt: skip
    return out


@triton.jit
def _append_index_kernel(
    keys,  # [tokens, columns]
    positions,  # [sequences, queries], strided
    cache,  # [sequences, capacity, columns] E4M3
    cache_scales,  # [sequences, capacity]
    queries,
    columns,
    key_stride,
    sequence_stride,
    query_stride,
    capacity,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    sequence, query = token // queries, token % queries
    position = tl.load(positions + sequence * sequence_stride + query * query_stride)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    value = tl.load(keys + token * key_stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = _scale_of(tl.max(tl.abs(value)), POWER_OF_TWO=True)
    rounded = _round_to_e4m3(value / scale).to(cache.dtype.element_ty)
    entry = sequence * capacity + position
    tl.store(cache_scales + entry, scale)
    tl.store(cache + entry * columns + column, rounded, mask=inside)


def launch_append_index(
    keys: Tensor, positions: Tensor, cache: Tensor, cache_scales: Tensor, *, site: str
) -> None:
    """Run operators.append_index; a key's values must be adjacent in memory."""
    tokens, columns = keys.shape
    _append_index_kernel[(tokens,)](
        keys, positions, cache, cache_scales, positions.shape[1], columns,
        keys.stride(0), *positions.stride(), cache.shape[1],
        BLOCK=triton.next_power_of_2(columns), num_warps=1,
    )  # fmt: skip


@triton.jit
def _index_scores_kernel(
    q,  # [sequences, queries, HEADS, DIM]
    q_scales,  # [sequences, queries, HEADS], if SCALED
    weights,  # [sequences, queries, HEADS]
    keys,  # [sequences, length, DIM], sequences strided
    key_scales,  # [sequences, length], sequences strided, if SCALED
    lengths,  # [sequences], if OWN_LENGTHS
    out,  # [sequences, queries, length]
    queries,
    length,
    keys_stride,
    scales_stride,
    scale,
    SCALED: tl.constexpr,
    OWN_LENGTHS: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
):
    sequence = tl.program_id(2).to(tl.int64)
    first_key = tl.program_id(0) * BLOCK_KEYS
    key = first_key + tl.arange(0, BLOCK_KEYS)
    head, dim = tl.arange(0, HEADS), tl.arange(0, DIM)
    inside = key < length
    at = keys + sequence * keys_stride + key[:, None].to(tl.int64) * DIM + dim[None, :]
    k = tl.load(at, mask=inside[:, None], other=0.0)
    if SCALED:
        k_scale = tl.load(key_scales + sequence * scales_stride + key, mask=inside, other=0.0)
    end = length
    if OWN_LENGTHS:
        end = tl.load(lengths + sequence)
    first = tl.program_id(1) * BLOCK_QUERIES
    for query in range(first, tl.minimum(first + BLOCK_QUERIES, queries)):
        last = end - queries + query
        row = sequence * queries + query
        total = tl.full([BLOCK_KEYS], float("-inf"), tl.float32)
        if first_key <= last:
            turned = tl.load(q + row * HEADS * DIM + head[None, :] * DIM + dim[:, None])
            weight = tl.load(weights + row * HEADS + head) * scale
            if SCALED:
                # Positive, so that it may be applied after the cut at zero.
                weight *= tl.load(q_scales + row * HEADS + head)
            products = tl.dot(k, turned)
            total = tl.sum(tl.maximum(products, 0.0) * weight[None, :], axis=1)
            if SCALED:
                total *= k_scale
            total = tl.where(key <= last, total, float("-inf"))
        tl.store(out + row * length + key, total, mask=inside)


def launch_index_scores(
    q: Tensor,
    q_scales: Tensor | None,
    weights: Tensor,
    keys: Tensor,
    key_scales: Tensor | None,
    lengths: Tensor | None,
    *,
    scale: float,
    site: str,
) -> Tensor:
    """Run operators.index_scores; heads and dim must be powers of two of at least 16. Products
    would round float32 to TF32: its own body computes that."""
    if q.dtype == torch.float32:
        plain: Any = ops.index_scores
        return plain._init_fn(
            q, q_scales, weights, keys, key_scales, lengths, scale=scale, site=site
        )
    return index_scores_triton(q, q_scales, weights, keys, key_scales, lengths, scale=scale)


def index_scores_triton(
    q: Tensor,
    q_scales: Tensor | None,
    weights: Tensor,
    keys: Tensor,
    key_scales: Tensor | None,
    lengths: Tensor | None,
    *,
    scale: float,
) -> Tensor:
    """The scores by one kernel, each block of keys against up to `_MOST_QUERIES` queries."""
    sequences, queries, heads, dim = q.shape
    length = keys.shape[1]
    out = q.new_empty((sequences, queries, length), dtype=torch.float32)
    block = min(_MOST_QUERIES, triton.next_power_of_2(queries))
    grid = (triton.cdiv(length, _BLOCK_KEYS), triton.cdiv(queries, block), sequences)
    _index_scores_kernel[grid](
        q.contiguous(),
        q_scales if q_scales is None else q_scales.contiguous(),
        weights.contiguous(),
        keys,
        key_scales,
        lengths,
        out,
        queries,
        length,
        keys.stride(0),
        0 if key_scales is None else key_scales.stride(0),
        scale,
        SCALED=q_scales is not None,
        OWN_LENGTHS=lengths is not None,
        HEADS=heads,
        DIM=dim,
        BLOCK_KEYS=_BLOCK_KEYS,
        BLOCK_QUERIES=block,
        num_warps=4,
        num_stages=2,
    )
    return out


@triton.jit
def _positions_kernel(
    values,  # [rows, found]
    indices,  # [rows, found] int64
    out,  # [rows, top_k]
    found,
    top_k,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    at = row * found + place
    value = tl.load(values + at, mask=place < found, other=float("-inf"))
    index = tl.load(indices + at, mask=place < found, other=-1)
    position = tl.where(value == float("-inf"), -1, index)
    tl.store(out + row * top_k + place, position.to(tl.int32), mask=place < top_k)


def launch_index_topk(scores: Tensor, *, top_k: int, site: str) -> Tensor:
    """Run operators.index_topk by torch's selection, whose results one kernel narrows and fills up.
    A radix selection of one Triton program a row took 1.3 to 5.7 times as long on an H100."""
    found = min(top_k, scores.shape[2])
    values, indices = scores.topk(found, dim=2, sorted=False)
    out = scores.new_empty((*scores.shape[:2], top_k), dtype=torch.int32)
    _positions_kernel[(scores.shape[0] * scores.shape[1],)](
        values, indices, out, found, top_k, BLOCK=triton.next_power_of_2(top_k), num_warps=4
    )
    return out


# -- core ------------------------------------------------------------------------------------------


@triton.jit
def _sparse_kernel(
    q,  # [queries of all sequences, heads, LATENT + ROPE]
    cache,  # [sequences, capacity, LATENT + ROPE]
    selected,  # [queries of all sequences, top_k]
    partial_out,  # [queries of all sequences, heads, splits, LATENT]
    partial_sum,  # [queries of all sequences, heads, splits] float32
    heads,
    queries,
    capacity,
    top_k,
    splits,
    scale,
    LATENT: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SELECTED: tl.constexpr,
):
    row_blocks = tl.cdiv(heads, BLOCK_ROWS)
    query = (tl.program_id(0) // row_blocks).to(tl.int64)
    split = tl.program_id(1)
    head = tl.program_id(0) % row_blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    latent, rope = tl.arange(0, LATENT), LATENT + tl.arange(0, ROPE)
    width = LATENT + ROPE
    inside = (head < heads)[:, None]
    q_row = q + (query * heads + head)[:, None] * width
    q_latent = tl.load(q_row + latent[None, :], mask=inside, other=0.0)
    q_rope = tl.load(q_row + rope[None, :], mask=inside, other=0.0)
    blocks = tl.cdiv(tl.cdiv(top_k, BLOCK_SELECTED), splits)
    first = split * blocks * BLOCK_SELECTED
    end = tl.minimum(first + blocks * BLOCK_SELECTED, top_k)

    largest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    out = tl.zeros([BLOCK_ROWS, LATENT], tl.float32)
    for start in tl.range(first, end, BLOCK_SELECTED):
        place = start + tl.arange(0, BLOCK_SELECTED)
        token = tl.load(selected + query * top_k + place, mask=place < end, other=-1)
        entry = (query // queries * capacity + tl.maximum(token, 0)) * width
        keys = tl.load(cache + entry[:, None] + latent[None, :])
        keys_rope = tl.load(cache + entry[:, None] + rope[None, :])
        scores = tl.dot(q_latent, keys.T)
        scores = tl.dot(q_rope, keys_rope.T, scores) * scale
        scores = tl.where((token >= 0)[None, :], scores, float("-inf"))
        # Nothing may be selected in this split yet: then the maximum is -inf, and 0 stands for it.
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        offset = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        weights = tl.exp(scores - offset[:, None])
        shrink = tl.exp(largest - offset)
        total = total * shrink + tl.sum(weights, axis=1)
        out = out * shrink[:, None]
        out = tl.dot(weights.to(keys.dtype), keys, out)
        largest = new_largest

    position = (query * heads + head) * splits + split
    divisor = tl.maximum(total, 1.0)
    log_sum = tl.where(total > 0, largest + tl.log(divisor), float("-inf"))
    out = out / divisor[:, None]
    tl.store(partial_sum + position, log_sum, mask=head < heads)
    target = partial_out + position[:, None] * LATENT + latent[None, :]
    tl.store(target, out.to(partial_out.dtype.element_ty), mask=inside)


def launch_sparse_mla(
    q: Tensor, cache: Tensor, selected: Tensor, *, latent_dim: int, scale: float, site: str
) -> tuple[Tensor, Tensor]:
    """Run operators.sparse_mla; products would round float32 to TF32: its own body computes
    that."""
    if q.dtype == torch.float32:
        plain: Any = ops.sparse_mla
        return plain._init_fn(q, cache, selected, latent_dim=latent_dim, scale=scale, site=site)
    return sparse_mla_triton(q, cache, selected, latent_dim=latent_dim, scale=scale)


def sparse_mla_triton(
    q: Tensor, cache: Tensor, selected: Tensor, *, latent_dim: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The core by one kernel, and where few queries leave processors idle by two: the selected
    tokens in splits, then their combination. Widths must be powers of two of at least 16."""
    sequences, queries, heads, width = q.shape
    rows, top_k = sequences * queries, selected.shape[2]
    row_blocks = triton.cdiv(heads, _BLOCK_ROWS)
    splits = splits_of(q, row_blocks * rows, top_k)
    out = q.new_empty((*q.shape[:3], latent_dim))
    log_sums = q.new_empty(q.shape[:3], dtype=torch.float32)
    parts = out, log_sums
    if splits > 1:
        shape = (rows * heads, splits)
        parts = (
            q.new_empty((*shape, latent_dim), dtype=torch.float32),
            q.new_empty(shape, dtype=torch.float32),
        )
    _sparse_kernel[row_blocks * rows, splits](
        q.contiguous(),
        cache.contiguous(),
        selected.contiguous(),
        *parts,
        heads,
        queries,
        cache.shape[1],
        top_k,
        splits,
        scale,
        LATENT=latent_dim,
        ROPE=width - latent_dim,
        BLOCK_ROWS=_BLOCK_ROWS,
        BLOCK_SELECTED=_BLOCK_SELECTED,
        num_warps=_WARPS,
        num_stages=_STAGES,
    )
    if splits > 1:
        combine_splits(*parts, out, log_sums)
    return out, log_sums
