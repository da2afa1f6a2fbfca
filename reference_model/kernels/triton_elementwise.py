# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""Element-wise operators as Triton kernels on CUDA tensors, one pass over memory each.

operators.py and e5m6.py say what each computes. gpu.py puts them behind the operators.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from reference_model.kernels.reference import TILE

_TILE = tl.constexpr(TILE)
_BLOCK = 1024
"""Columns of one row that a program handles at a time."""
_NORM_PROGRAMS = 528
"""Programs that share the rows of a norm's backward, four a multiprocessor: each leaves one partial
sum of the weight gradient."""
_HEADS = 32
_PACKED = 8
"""Values that E5M6 packs into three 32-bit words."""


# -- norms -----------------------------------------------------------------------------------------


@triton.jit
def _rmsnorm_kernel(
    x, residual, weight, out, total, columns, eps, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    value = tl.load(x + row * columns + column, mask=inside, other=0.0)
    if RESIDUAL:
        value += tl.load(residual + row * columns + column, mask=inside, other=0.0)
        tl.store(total + row * columns + column, value, mask=inside)
    value = value.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, axis=0) / columns + eps)
    scale = tl.load(weight + column, mask=inside, other=0.0)
    result = (scale * (value * inverse)).to(out.dtype.element_ty)
    tl.store(out + row * columns + column, result, mask=inside)


def rmsnorm(x: Tensor, weight: Tensor, *, eps: float, site: str) -> Tensor:
    """operators.rmsnorm."""
    x = x.contiguous()
    out = torch.empty_like(x)
    rows, columns = x.shape
    _rmsnorm_kernel[(rows,)](
        x, x, weight, out, out, columns, eps,
        RESIDUAL=False, BLOCK=triton.next_power_of_2(columns), num_warps=_warps(columns),
    )  # fmt: skip
    return out


def rmsnorm_residual(
    update: Tensor, residual: Tensor, weight: Tensor, *, eps: float, site: str
) -> tuple[Tensor, Tensor]:
    """operators.rmsnorm_residual."""
    update, residual = update.contiguous(), residual.contiguous()
    out, total = torch.empty_like(update), torch.empty_like(update)
    rows, columns = update.shape
    _rmsnorm_kernel[(rows,)](
        update, residual, weight, out, total, columns, eps,
        RESIDUAL=True, BLOCK=triton.next_power_of_2(columns), num_warps=_warps(columns),
    )  # fmt: skip
    return out, total


@triton.jit
def _rmsnorm_backward_kernel(
    grad,
    residual_grad,
    x,
    weight,
    out,
    weight_grad,  # partial sums [programs, columns]
    rows,
    columns,
    eps,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.arange(0, BLOCK)
    inside = column < columns
    scale = tl.load(weight + column, mask=inside, other=0.0)
    partial = tl.zeros([BLOCK], tl.float32)
    for index in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = (tl.zeros([BLOCK], tl.int64) + index) * columns + column
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        slope = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(value * value, axis=0) / columns + eps)
        normal = value * inverse
        partial += slope * normal
        slope *= scale
        result = inverse * (slope - normal * (tl.sum(slope * normal, axis=0) / columns))
        if RESIDUAL:
            result += tl.load(residual_grad + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)
    tl.store(weight_grad + tl.program_id(0) * columns + column, partial, mask=inside)


def rmsnorm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, weight_grad: Tensor, *, eps: float, site: str
) -> Tensor:
    """operators.rmsnorm_backward; three kernels, as partial sums are added up."""
    return _rmsnorm_backward(grad, None, x, weight, weight_grad, eps=eps)


def rmsnorm_residual_backward(
    grad: Tensor,
    residual_grad: Tensor,
    total: Tensor,
    weight: Tensor,
    weight_grad: Tensor,
    *,
    eps: float,
    site: str,
) -> Tensor:
    """operators.rmsnorm_residual_backward; three kernels, as partial sums are added up."""
    return _rmsnorm_backward(grad, residual_grad, total, weight, weight_grad, eps=eps)


def _rmsnorm_backward(
    grad: Tensor,
    residual_grad: Tensor | None,
    x: Tensor,
    weight: Tensor,
    weight_grad: Tensor,
    *,
    eps: float,
) -> Tensor:
    grad, x = grad.contiguous(), x.contiguous()
    rows, columns = x.shape
    out = torch.empty_like(grad)
    programs = min(rows, _NORM_PROGRAMS)
    partial = x.new_empty((programs, columns), dtype=torch.float32)
    _rmsnorm_backward_kernel[(programs,)](
        grad, grad if residual_grad is None else residual_grad.contiguous(),
        x, weight, out, partial, rows, columns, eps,
        RESIDUAL=residual_grad is not None,
        BLOCK=triton.next_power_of_2(columns), num_warps=_warps(columns),
    )  # fmt: skip
    weight_grad += partial.sum(dim=0)
    return out


def _warps(columns: int) -> int:
    """Warps for a row held in registers: 32 values a thread at most, by powers of two."""
    return max(1, min(16, triton.next_power_of_2(columns) // _BLOCK))


# -- rotary embedding ------------------------------------------------------------------------------


@triton.jit
def _rope_kernel(
    x,  # [sequences, length, heads, DIM], strided
    cos,  # [length, DIM / 2]
    sin,
    length,
    heads,
    sequence_stride,
    position_stride,
    head_stride,
    INVERSE: tl.constexpr,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
):
    position = tl.program_id(0) % length
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    start = tl.program_id(0) // length * sequence_stride.to(tl.int64) + position * position_stride
    at = x + start + head[:, None] * head_stride + tl.arange(0, DIM)[None, :]
    inside = (head < heads)[:, None]
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(value, [HEADS, DIM // 2, 2]))
    angle = position * (DIM // 2) + tl.arange(0, DIM // 2)
    cosine, sine = tl.load(cos + angle)[None, :], tl.load(sin + angle)[None, :]
    if INVERSE:
        sine = -sine
    turned = tl.join(even * cosine - odd * sine, odd * cosine + even * sine)
    turned = tl.reshape(turned, [HEADS, DIM]).to(x.dtype.element_ty)
    tl.store(at, turned, mask=inside)


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool, site: str) -> None:
    """operators.rope; dim must be a power of two and its values adjacent in memory."""
    sequences, length, heads, dim = x.shape
    block = min(_HEADS, triton.next_power_of_2(heads))
    _rope_kernel[sequences * length, triton.cdiv(heads, block)](
        x, cos.contiguous(), sin.contiguous(), length, heads, *x.stride()[:3],
        INVERSE=inverse, DIM=dim, HEADS=block, num_warps=4 if block == _HEADS else 1,
    )  # fmt: skip


# -- one rotary key for every head -----------------------------------------------------------------


@triton.jit
def _broadcast_heads_kernel(
    x,  # [rows, dim]
    out,  # [rows, heads, dim], strided
    heads,
    dim,
    row_stride,
    head_stride,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, DIM)
    value = tl.load(x + row * dim + column, mask=column < dim, other=0.0)
    target = out + row * row_stride + head[:, None] * head_stride + column[None, :]
    inside = (head < heads)[:, None] & (column < dim)[None, :]
    tl.store(target, tl.broadcast_to(value[None, :], [HEADS, DIM]), mask=inside)


def broadcast_heads(x: Tensor, out: Tensor, *, site: str) -> None:
    """operators.broadcast_heads; the values of a head must be adjacent in memory."""
    rows, heads, dim = out.shape
    block = min(_HEADS, triton.next_power_of_2(heads))
    _broadcast_heads_kernel[rows, triton.cdiv(heads, block)](
        x.contiguous(), out, heads, dim, *out.stride()[:2],
        HEADS=block, DIM=triton.next_power_of_2(dim), num_warps=4 if block == _HEADS else 1,
    )  # fmt: skip


# -- SwiGLU backward -------------------------------------------------------------------------------


@triton.jit
def _swiglu_backward_kernel(
    gate_up,  # [rows, 2 columns]
    row_weights,  # [rows], read if WEIGHTED
    grad,  # [rows, columns]
    activated,  # [rows, columns], written if WEIGHTED
    out,  # [rows, 2 columns]
    columns,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    gate_at = row * 2 * columns + column
    gate = tl.load(gate_up + gate_at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + gate_at + columns, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(grad + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    if WEIGHTED:
        weight = tl.load(row_weights + row)
        slope *= weight
        result = (silu * up * weight).to(activated.dtype.element_ty)
        tl.store(activated + row * columns + column, result, mask=inside)
    gate_grad = slope * up * (sigmoid * (1 + gate * (1 - sigmoid)))
    up_grad = slope * silu
    tl.store(out + gate_at, gate_grad.to(out.dtype.element_ty), mask=inside)
    tl.store(out + gate_at + columns, up_grad.to(out.dtype.element_ty), mask=inside)


def swiglu_backward(gate_up: Tensor, grad: Tensor, *, site: str) -> Tensor:
    """operators.swiglu_backward."""
    gate_up, grad = gate_up.contiguous(), grad.contiguous()
    out = torch.empty_like(gate_up)
    rows, columns = grad.shape
    _swiglu_backward_kernel[rows, triton.cdiv(columns, _BLOCK)](
        gate_up, grad, grad, grad, out, columns, WEIGHTED=False, BLOCK=_BLOCK, num_warps=4
    )
    return out


def weighted_swiglu_forward_backward(
    gate_up: Tensor, row_weights: Tensor, grad: Tensor, *, site: str
) -> tuple[Tensor, Tensor]:
    """operators.weighted_swiglu_forward_backward."""
    gate_up, grad = gate_up.contiguous(), grad.contiguous()
    out, activated = torch.empty_like(gate_up), torch.empty_like(grad)
    rows, columns = grad.shape
    _swiglu_backward_kernel[rows, triton.cdiv(columns, _BLOCK)](
        gate_up, row_weights, grad, activated, out, columns,
        WEIGHTED=True, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    return activated, out


# -- rows back to tokens ---------------------------------------------------------------------------


@triton.jit
def _unpermute_kernel(
    x,  # [rows, columns]
    choice_rows,  # [tokens, TOP_K]
    out,  # [tokens, columns]
    columns,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for choice in tl.static_range(TOP_K):
        row = tl.load(choice_rows + token * TOP_K + choice)
        local = column < tl.where(row >= 0, columns, 0)
        source = x + row.to(tl.int64) * columns + column
        total += tl.load(source, mask=local, other=0.0).to(tl.float32)
    target = out + token.to(tl.int64) * columns + column
    tl.store(target, total.to(out.dtype.element_ty), mask=column < columns)


def unpermute(x: Tensor, choice_rows: Tensor, *, site: str) -> Tensor:
    """operators.unpermute; rows of other ranks' choices are not read."""
    x = x.contiguous()
    tokens, top_k = choice_rows.shape
    out = x.new_empty((tokens, x.shape[1]))
    _unpermute_kernel[tokens, triton.cdiv(x.shape[1], _BLOCK)](
        x, choice_rows.contiguous(), out, x.shape[1], TOP_K=top_k, BLOCK=_BLOCK, num_warps=4
    )
    return out


# -- E5M6 ------------------------------------------------------------------------------------------


@triton.jit
def _quantize_e5m6_kernel(
    x,  # [rows, columns]
    packed,  # [rows, 3 columns / 8] words
    scales,  # [rows, tiles]
    columns,
    BLOCK_ROWS: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    tile, tiles = tl.program_id(1), tl.num_programs(1)
    column = tile * _TILE + tl.arange(0, _TILE)
    at = row.to(tl.int64)[:, None] * columns + column[None, :]
    value = tl.load(x + at, mask=(column < columns)[None, :], other=0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(value), axis=1), 7.888609052210118e-31)  # 2^-100
    # largest < 2^(exponent - 126), and the scale is 2^15 below that.
    exponent = largest.to(tl.int32, bitcast=True) >> 23
    scale = ((exponent - 14) << 23).to(tl.float32, bitcast=True)
    inverse = ((268 - exponent) << 23).to(tl.float32, bitcast=True)
    bits = (value * inverse[:, None]).to(tl.float16).to(tl.int16, bitcast=True)
    bits = bits.to(tl.int32) & 0xFFFF
    bits = (bits + 7 + ((bits >> 4) & 1)) >> 4  # nearest, ties to even
    evens, odds = tl.split(tl.reshape(bits, [BLOCK_ROWS, _TILE // 8, 2, 2, 2]))
    v04, v26 = tl.split(evens)
    v15, v37 = tl.split(odds)
    v0, v4 = tl.split(v04)
    v2, v6 = tl.split(v26)
    v1, v5 = tl.split(v15)
    v3, v7 = tl.split(v37)
    group = tile * (_TILE // 8) + tl.arange(0, _TILE // 8)
    word = packed + row.to(tl.int64)[:, None] * (columns // 8 * 3) + group[None, :] * 3
    inside = (group < columns // 8)[None, :]
    tl.store(word, v0 | (v1 << 12) | (v2 << 24), mask=inside)
    tl.store(word + 1, (v2 >> 8) | (v3 << 4) | (v4 << 16) | (v5 << 28), mask=inside)
    tl.store(word + 2, (v5 >> 4) | (v6 << 8) | (v7 << 20), mask=inside)
    tl.store(scales + row * tiles + tile, scale)


def quantize_e5m6(x: Tensor, *, site: str) -> tuple[Tensor, Tensor]:
    """operators.quantize_e5m6; columns must be a multiple of 8."""
    x = x.contiguous()
    rows, columns = x.shape
    _check_packed(columns)
    packed = x.new_empty((rows, columns * 3 // 2), dtype=torch.uint8)
    scales = x.new_empty((rows, triton.cdiv(columns, TILE)), dtype=torch.float32)
    block = 16 if rows % 16 == 0 else 1
    _quantize_e5m6_kernel[rows // block, scales.shape[1]](
        x, packed.view(torch.int32), scales, columns, BLOCK_ROWS=block, num_warps=4
    )
    return packed, scales


@triton.jit
def _half(bits):
    """The float32 of 12-bit floats whose dropped bits are zero."""
    return (bits << 4).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _dequantize_e5m6_kernel(
    packed,  # [rows, 3 columns / 8] words
    scales,
    out,  # [rows, columns]
    columns,
    BLOCK_ROWS: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    tile, tiles = tl.program_id(1), tl.num_programs(1)
    group = tile * (_TILE // 8) + tl.arange(0, _TILE // 8)
    inside = (group < columns // 8)[None, :]
    word = packed + row.to(tl.int64)[:, None] * (columns // 8 * 3) + group[None, :] * 3
    a = tl.load(word, mask=inside, other=0)
    b = tl.load(word + 1, mask=inside, other=0)
    c = tl.load(word + 2, mask=inside, other=0)
    v04 = tl.join(_half(a & 0xFFF), _half((b >> 16) & 0xFFF))
    v15 = tl.join(_half((a >> 12) & 0xFFF), _half(((b >> 28) & 0xF) | ((c & 0xFF) << 4)))
    v26 = tl.join(_half(((a >> 24) & 0xFF) | ((b & 0xF) << 8)), _half((c >> 8) & 0xFFF))
    v37 = tl.join(_half((b >> 4) & 0xFFF), _half((c >> 20) & 0xFFF))
    value = tl.join(tl.join(v04, v26), tl.join(v15, v37))  # [rows, groups, 2, 2, 2]
    value = tl.reshape(value, [BLOCK_ROWS, _TILE])
    scale = tl.load(scales + row * tiles + tile)
    column = tile * _TILE + tl.arange(0, _TILE)
    at = row.to(tl.int64)[:, None] * columns + column[None, :]
    result = (value * scale[:, None]).to(out.dtype.element_ty)
    tl.store(out + at, result, mask=(column < columns)[None, :])


def dequantize_e5m6(packed: Tensor, scales: Tensor, *, dtype: torch.dtype, site: str) -> Tensor:
    """operators.dequantize_e5m6; columns must be a multiple of 8."""
    rows, columns = packed.shape[0], packed.shape[1] * 2 // 3
    _check_packed(columns)
    out = packed.new_empty((rows, columns), dtype=dtype)
    block = 16 if rows % 16 == 0 else 1
    _dequantize_e5m6_kernel[rows // block, scales.shape[1]](
        packed.contiguous().view(torch.int32), scales.contiguous(), out, columns,
        BLOCK_ROWS=block, num_warps=4,
    )  # fmt: skip
    return out


def _check_packed(columns: int) -> None:
    if columns % _PACKED:
        raise ValueError(f"E5M6 with columns = {columns}: allowed multiples of {_PACKED}")


# -- cross-entropy ---------------------------------------------------------------------------------


@triton.jit
def _log_sum_kernel(logits, log_sum, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    largest = float("-inf")
    total = 0.0
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(logits + row * columns + column, mask=column < columns, other=float("-inf"))
        value = value.to(tl.float32)
        new_largest = tl.maximum(largest, tl.max(value, axis=0))
        total = total * tl.exp(largest - new_largest)
        total += tl.sum(tl.exp(value - new_largest), axis=0)
        largest = new_largest
    tl.store(log_sum + row, largest + tl.log(total))


def cross_entropy(logits: Tensor, targets: Tensor, *, site: str) -> tuple[Tensor, Tensor]:
    """operators.cross_entropy; the mean of the rows' losses is a few small kernels more."""
    logits = logits.contiguous()
    rows, columns = logits.shape
    log_sum = logits.new_empty((rows,), dtype=torch.float32)
    _log_sum_kernel[(rows,)](logits, log_sum, columns, BLOCK=8 * _BLOCK, num_warps=16)
    chosen = logits.gather(1, targets[:, None])[:, 0].float()
    return (log_sum - chosen).mean(), log_sum


@triton.jit
def _cross_entropy_backward_kernel(
    logits, targets, log_sum, out, columns, factor, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at, inside = row * columns + column, column < columns
    value = tl.load(logits + at, mask=inside, other=0.0).to(tl.float32)
    grad = tl.exp(value - tl.load(log_sum + row))
    grad = tl.where(column == tl.load(targets + row), grad - 1, grad) * factor
    tl.store(out + at, grad.to(out.dtype.element_ty), mask=inside)


def cross_entropy_backward(
    logits: Tensor, targets: Tensor, log_sum: Tensor, *, weight: float, site: str
) -> Tensor:
    """operators.cross_entropy_backward."""
    logits = logits.contiguous()
    rows, columns = logits.shape
    out = torch.empty_like(logits)
    _cross_entropy_backward_kernel[rows, triton.cdiv(columns, 4 * _BLOCK)](
        logits, targets, log_sum, out, columns, weight / rows, BLOCK=4 * _BLOCK, num_warps=8
    )
    return out
