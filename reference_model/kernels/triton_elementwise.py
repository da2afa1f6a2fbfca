# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""Element-wise operators as Triton kernels, one pass over memory each.

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
_PACKED = 8
"""Values that E5M6 packs into three 32-bit words."""


# -- norms -----------------------------------------------------------------------------------------


@triton.jit
def _rmsnorm_kernel(
    x,
    residual,
    weight,
    out,
    total,
    columns,
    x_stride,
    eps,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0)
    if RESIDUAL:
        value += tl.load(residual + row * columns + column, mask=inside, other=0.0)
        tl.store(total + row * columns + column, value, mask=inside)
    value = value.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, axis=0) / columns + eps)
    scale = tl.load(weight + column, mask=inside, other=0.0)
    result = (scale * (value * inverse)).to(out.dtype.element_ty)
    tl.store(out + row * columns + column, result, mask=inside)


def launch_rmsnorm(x: Tensor, weight: Tensor, *, eps: float, site: str) -> Tensor:
    """Run operators.rmsnorm."""
    x = _adjacent_columns(x)
    out = x.new_empty(x.shape)
    rows, columns = x.shape
    _rmsnorm_kernel[(rows,)](
        x, x, weight, out, out, columns, x.stride(0), eps,
        RESIDUAL=False, BLOCK=triton.next_power_of_2(columns), num_warps=_warps(columns),
    )  # fmt: skip
    return out


def launch_rmsnorm_residual(
    update: Tensor, residual: Tensor, weight: Tensor, *, eps: float, site: str
) -> tuple[Tensor, Tensor]:
    """Run operators.rmsnorm_residual."""
    update, residual = update.contiguous(), residual.contiguous()
    out, total = torch.empty_like(update), torch.empty_like(update)
    rows, columns = update.shape
    _rmsnorm_kernel[(rows,)](
        update, residual, weight, out, total, columns, columns, eps,
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
    grad_stride,
    x_stride,
    eps,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.arange(0, BLOCK)
    inside = column < columns
    scale = tl.load(weight + column, mask=inside, other=0.0)
    partial = tl.zeros([BLOCK], tl.float32)
    for index in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.zeros([BLOCK], tl.int64) + index
        at = row * columns + column
        value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        slope = tl.load(grad + row * grad_stride + column, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(value * value, axis=0) / columns + eps)
        normal = value * inverse
        partial += slope * normal
        slope *= scale
        result = inverse * (slope - normal * (tl.sum(slope * normal, axis=0) / columns))
        if RESIDUAL:
            result += tl.load(residual_grad + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)
    tl.store(weight_grad + tl.program_id(0) * columns + column, partial, mask=inside)


@triton.jit
def _add_partial_sums_kernel(
    partial,  # [programs, columns]
    total,  # [columns], added to
    programs,
    columns,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    part = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, programs, ROWS):
        row = start + tl.arange(0, ROWS)
        at = partial + row[:, None] * columns + column[None, :]
        part += tl.load(at, mask=(row < programs)[:, None] & inside[None, :], other=0.0)
    result = tl.load(total + column, mask=inside, other=0.0) + tl.sum(part, axis=0)
    tl.store(total + column, result, mask=inside)


def launch_rmsnorm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, weight_grad: Tensor, *, eps: float, site: str
) -> Tensor:
    """Run operators.rmsnorm_backward; two kernels, as partial sums are added up."""
    return _rmsnorm_backward(grad, None, x, weight, weight_grad, eps=eps)


def launch_rmsnorm_residual_backward(
    grad: Tensor,
    residual_grad: Tensor,
    total: Tensor,
    weight: Tensor,
    weight_grad: Tensor,
    *,
    eps: float,
    site: str,
) -> Tensor:
    """Run operators.rmsnorm_residual_backward; two kernels, as partial sums are added up."""
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
    grad, x = _adjacent_columns(grad), _adjacent_columns(x)
    rows, columns = x.shape
    out = grad.new_empty(grad.shape)
    programs = min(rows, _NORM_PROGRAMS)
    partial = x.new_empty((programs, columns), dtype=torch.float32)
    _rmsnorm_backward_kernel[(programs,)](
        grad, grad if residual_grad is None else residual_grad.contiguous(),
        x, weight, out, partial, rows, columns, grad.stride(0), x.stride(0), eps,
        RESIDUAL=residual_grad is not None,
        BLOCK=triton.next_power_of_2(columns), num_warps=_warps(columns),
    )  # fmt: skip
    _add_partial_sums_kernel[(triton.cdiv(columns, 64),)](
        partial, weight_grad, programs, columns, ROWS=32, BLOCK=64, num_warps=4
    )
    return out


def _adjacent_columns(x: Tensor) -> Tensor:
    """x itself if its columns are adjacent in memory, else a contiguous copy."""
    return x if x.stride(1) == 1 else x.contiguous()


def _warps(columns: int) -> int:
    """Warps for a row held in registers: 32 values a thread at most, by powers of two."""
    return max(1, min(16, triton.next_power_of_2(columns) // _BLOCK))


# -- transposes ------------------------------------------------------------------------------------


@triton.jit
def _transpose_kernel(
    x,  # [matrices, rows, columns], bytes
    out,  # [matrices, columns, rows]
    rows,
    columns,
    BLOCK: tl.constexpr,
):
    matrix = tl.program_id(2).to(tl.int64) * rows * columns
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    at = x + matrix + row.to(tl.int64)[:, None] * columns + column[None, :]
    values = tl.load(at, mask=inside, other=0)
    target = out + matrix + column.to(tl.int64)[:, None] * rows + row[None, :]
    tl.store(target, tl.trans(values), mask=tl.trans(inside))


def launch_transpose(x: Tensor, *, site: str) -> Tensor:
    """Run operators.transpose, tile by tile."""
    x = x.contiguous()
    rows, columns = x.shape[-2:]
    out = x.new_empty((*x.shape[:-2], columns, rows))
    _transpose_kernel[
        triton.cdiv(rows, TILE), triton.cdiv(columns, TILE), x.numel() // (rows * columns)
    ](x.view(torch.uint8), out.view(torch.uint8), rows, columns, BLOCK=TILE, num_warps=8)
    return out


# -- embedding -------------------------------------------------------------------------------------


@triton.jit
def _embedding_backward_kernel(
    table_grad,
    tokens,  # int64 [rows], sorted
    places,  # int64 [rows]: the row of grad that each is of
    grad,
    rows,
    columns,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    token = tl.load(tokens + place)
    if tl.load(tokens + place - 1, mask=place > 0, other=-1) != token:
        # The first of a token adds up all of it, in the order of the rows.
        target = table_grad + token * columns + column
        total = tl.load(target, mask=inside, other=0.0)
        same = True
        while same:
            source = grad + tl.load(places + place) * columns + column
            total += tl.load(source, mask=inside, other=0.0).to(tl.float32)
            place += 1
            same = tl.load(tokens + place, mask=place < rows, other=-1) == token
        tl.store(target, total, mask=inside)


def launch_embedding_backward(
    table_grad: Tensor, tokens: Tensor, grad: Tensor, *, site: str
) -> None:
    """Run operators.embedding_backward: tokens sorted, then one kernel that adds the rows of each
    token in their order, so that every run gives the same bits."""
    rows, columns = grad.shape
    ordered, places = torch.sort(tokens, stable=True)
    _embedding_backward_kernel[rows, triton.cdiv(columns, _BLOCK)](
        table_grad, ordered, places, grad.contiguous(), rows, columns, BLOCK=_BLOCK, num_warps=4
    )


# -- SwiGLU ----------------------------------------------------------------------------------------


@triton.jit
def _swiglu_kernel(
    gate_up,  # [rows, 2 columns]
    row_weights,  # [rows], read if WEIGHTED
    out,  # [rows, columns]
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
    result = gate * tl.sigmoid(gate) * up
    if WEIGHTED:
        result *= tl.load(row_weights + row)
    tl.store(out + row * columns + column, result.to(out.dtype.element_ty), mask=inside)


def launch_swiglu(gate_up: Tensor, *, site: str) -> Tensor:
    """Run operators.swiglu."""
    return _swiglu(gate_up, None)


def launch_weighted_swiglu(gate_up: Tensor, row_weights: Tensor, *, site: str) -> Tensor:
    """Run operators.weighted_swiglu."""
    return _swiglu(gate_up, row_weights)


def _swiglu(gate_up: Tensor, row_weights: Tensor | None) -> Tensor:
    gate_up = gate_up.contiguous()
    rows, columns = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((rows, columns))
    if rows:
        _swiglu_kernel[rows, triton.cdiv(columns, _BLOCK)](
            gate_up, gate_up if row_weights is None else row_weights, out, columns,
            WEIGHTED=row_weights is not None, BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
    return out


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


def launch_swiglu_backward(gate_up: Tensor, grad: Tensor, *, site: str) -> Tensor:
    """Run operators.swiglu_backward."""
    gate_up, grad = gate_up.contiguous(), grad.contiguous()
    out = torch.empty_like(gate_up)
    rows, columns = grad.shape
    _swiglu_backward_kernel[rows, triton.cdiv(columns, _BLOCK)](
        gate_up, grad, grad, grad, out, columns, WEIGHTED=False, BLOCK=_BLOCK, num_warps=4
    )
    return out


def launch_weighted_swiglu_forward_backward(
    gate_up: Tensor, row_weights: Tensor, grad: Tensor, *, site: str
) -> tuple[Tensor, Tensor]:
    """Run operators.weighted_swiglu_forward_backward."""
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
    weights,  # [tokens, TOP_K], read if WEIGHTED
    out,  # [tokens, columns]
    columns,
    WEIGHTED: tl.constexpr,
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
        value = tl.load(source, mask=local, other=0.0).to(tl.float32)
        if WEIGHTED:
            value *= tl.load(weights + token * TOP_K + choice)
        total += value
    target = out + token.to(tl.int64) * columns + column
    tl.store(target, total.to(out.dtype.element_ty), mask=column < columns)


def launch_unpermute(x: Tensor, choice_rows: Tensor, *, site: str) -> Tensor:
    """Run operators.unpermute; rows of other ranks' choices are not read."""
    return sum_rows(x, choice_rows, None)


def sum_rows(x: Tensor, choice_rows: Tensor, weights: Tensor | None) -> Tensor:
    """Sum the rows [R, columns] of each token's choices [T, K], by weight if there are weights."""
    x = x.contiguous()
    tokens, top_k = choice_rows.shape
    out = x.new_empty((tokens, x.shape[1]))
    _unpermute_kernel[tokens, triton.cdiv(x.shape[1], _BLOCK)](
        x, choice_rows.contiguous(), x if weights is None else weights.contiguous(), out,
        x.shape[1], WEIGHTED=weights is not None, TOP_K=top_k, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
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


def launch_quantize_e5m6(x: Tensor, *, site: str) -> tuple[Tensor, Tensor]:
    """Run operators.quantize_e5m6; columns must be a multiple of 8."""
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


def launch_dequantize_e5m6(
    packed: Tensor, scales: Tensor, *, dtype: torch.dtype, site: str
) -> Tensor:
    """Run operators.dequantize_e5m6; columns must be a multiple of 8."""
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
def _log_sum_kernel(logits, targets, log_sum, losses, columns, BLOCK: tl.constexpr):
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
    result = largest + tl.log(total)
    tl.store(log_sum + row, result)
    chosen = tl.load(logits + row * columns + tl.load(targets + row)).to(tl.float32)
    tl.store(losses + row, result - chosen)


def launch_cross_entropy(logits: Tensor, targets: Tensor, *, site: str) -> tuple[Tensor, Tensor]:
    """Run operators.cross_entropy; a second kernel averages the rows' losses."""
    logits = logits.contiguous()
    rows, columns = logits.shape
    log_sum, losses = logits.new_empty((2, rows), dtype=torch.float32)
    _log_sum_kernel[(rows,)](
        logits, targets.contiguous(), log_sum, losses, columns, BLOCK=8 * _BLOCK, num_warps=16
    )
    return losses.mean(), log_sum


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


def launch_cross_entropy_backward(
    logits: Tensor, targets: Tensor, log_sum: Tensor, *, weight: float, site: str
) -> Tensor:
    """Run operators.cross_entropy_backward."""
    logits = logits.contiguous()
    rows, columns = logits.shape
    out = torch.empty_like(logits)
    _cross_entropy_backward_kernel[rows, triton.cdiv(columns, 4 * _BLOCK)](
        logits, targets, log_sum, out, columns, weight / rows, BLOCK=4 * _BLOCK, num_warps=8
    )
    return out
