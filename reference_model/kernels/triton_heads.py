# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""Operators on the heads of attention as Triton kernels, one pass over memory each.

reference_model/operators says what each computes. gpu.py puts them behind the operators.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_HEADS = 32
"""Heads of one token that a program handles at a time, at most."""


# -- rotary embedding ------------------------------------------------------------------------------


@triton.jit
def _rope_kernel(
    x,  # [sequences, length, heads, DIM], strided
    out,  # the same, or x itself
    cos,  # [length, DIM / 2], or [sequences, length, DIM / 2] if OWN_ANGLES
    sin,
    length,
    heads,
    sequence_stride,
    position_stride,
    head_stride,
    out_sequence_stride,
    out_position_stride,
    out_head_stride,
    INVERSE: tl.constexpr,
    HALVES: tl.constexpr,
    OWN_ANGLES: tl.constexpr,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,
):
    sequence = (tl.program_id(0) // length).to(tl.int64)
    position = tl.program_id(0) % length
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    start = sequence * sequence_stride + position * position_stride
    # The pairs lie side by side, or one half of them in each half of the dimensions.
    column = tl.arange(0, DIM)
    if HALVES:
        column = column // 2 + column % 2 * (DIM // 2)
    at = x + start + head[:, None] * head_stride + column[None, :]
    inside = (head < heads)[:, None]
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(value, [HEADS, DIM // 2, 2]))
    if OWN_ANGLES:
        angle = tl.program_id(0) * (DIM // 2) + tl.arange(0, DIM // 2)
    else:
        angle = position * (DIM // 2) + tl.arange(0, DIM // 2)
    cosine, sine = tl.load(cos + angle)[None, :], tl.load(sin + angle)[None, :]
    if INVERSE:
        sine = -sine
    turned = tl.join(even * cosine - odd * sine, odd * cosine + even * sine)
    turned = tl.reshape(turned, [HEADS, DIM]).to(out.dtype.element_ty)
    start = sequence * out_sequence_stride + position * out_position_stride
    target = out + start + head[:, None] * out_head_stride + column[None, :]
    tl.store(target, turned, mask=inside)


def launch_rope(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool, site: str) -> None:
    """Run operators.rope; dim must be a power of two and its values adjacent in memory."""
    _rope(x, cos, sin, x, inverse=inverse, halves=False)


def launch_rope_into(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, site: str) -> None:
    """Run decode_operators.rope_into; dim as above."""
    _rope(x, cos, sin, out, inverse=False, halves=False)


def launch_rope_index(x: Tensor, cos: Tensor, sin: Tensor, *, halves: bool, site: str) -> None:
    """Run operators.rope_index; dim as above."""
    _rope(x, cos, sin, x, inverse=False, halves=halves)


def _rope(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, inverse: bool, halves: bool) -> None:
    sequences, length, heads, dim = x.shape
    block = min(_HEADS, triton.next_power_of_2(heads))
    _rope_kernel[sequences * length, triton.cdiv(heads, block)](
        x, out, cos.contiguous(), sin.contiguous(), length, heads,
        *x.stride()[:3], *out.stride()[:3],
        INVERSE=inverse, HALVES=halves, OWN_ANGLES=cos.dim() == 3, DIM=dim, HEADS=block,
        num_warps=4 if block == _HEADS else 1,
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


def launch_broadcast_heads(x: Tensor, out: Tensor, *, site: str) -> None:
    """Run operators.broadcast_heads; the values of a head must be adjacent in memory."""
    rows, heads, dim = out.shape
    block = min(_HEADS, triton.next_power_of_2(heads))
    _broadcast_heads_kernel[rows, triton.cdiv(heads, block)](
        x.contiguous(), out, heads, dim, *out.stride()[:2],
        HEADS=block, DIM=triton.next_power_of_2(dim), num_warps=4 if block == _HEADS else 1,
    )  # fmt: skip


@triton.jit
def _copy_heads_kernel(
    x,  # [rows, heads, dim], strided
    out,  # the same
    heads,
    dim,
    row_stride,
    head_stride,
    out_row_stride,
    out_head_stride,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, DIM)
    inside = (head < heads)[:, None] & (column < dim)[None, :]
    at = x + row * row_stride + head[:, None] * head_stride + column[None, :]
    target = out + row * out_row_stride + head[:, None] * out_head_stride + column[None, :]
    tl.store(target, tl.load(at, mask=inside), mask=inside)


def launch_copy(x: Tensor, out: Tensor, *, site: str) -> None:
    """Run operators.copy; parts of wider rows or heads by a kernel, what is contiguous by
    torch's."""
    source, target = _by_row_and_head(x), _by_row_and_head(out)
    whole = x.is_contiguous() and out.is_contiguous()
    if whole or source is None or target is None or x.dtype != out.dtype:
        out.copy_(x)
        return
    rows, heads, dim = source.shape
    block = min(_HEADS, triton.next_power_of_2(heads))
    _copy_heads_kernel[rows, triton.cdiv(heads, block)](
        source, target, heads, dim, *source.stride()[:2], *target.stride()[:2],
        HEADS=block, DIM=triton.next_power_of_2(dim), num_warps=4,
    )  # fmt: skip


def _by_row_and_head(x: Tensor) -> Tensor | None:
    """x [rows, dim] or [sequences, length, heads, dim] seen as [rows, heads, dim], if strides
    allow that and the values of a head are adjacent in memory."""
    if x.stride(-1) != 1 or x.dim() not in (2, 4):
        return None
    if x.dim() == 2:
        return x[:, None, :]
    if x.shape[0] > 1 and x.stride(0) != x.shape[1] * x.stride(1):
        return None
    shape = (x.shape[0] * x.shape[1], *x.shape[2:])
    return x.as_strided(shape, x.stride()[1:])


@triton.jit
def _sum_heads_kernel(
    x,  # [rows, heads, dim], strided
    out,  # [rows, dim]
    heads,
    dim,
    row_stride,
    head_stride,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, DIM)
    total = tl.zeros([HEADS, DIM], tl.float32)
    for start in range(0, heads, HEADS):
        head = start + tl.arange(0, HEADS)
        at = x + row * row_stride + head[:, None] * head_stride + column[None, :]
        inside = (head < heads)[:, None] & (column < dim)[None, :]
        total += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    result = tl.sum(total, axis=0).to(out.dtype.element_ty)
    tl.store(out + row * dim + column, result, mask=column < dim)


def launch_sum_heads(x: Tensor, *, site: str) -> Tensor:
    """Run operators.sum_heads; the values of a head must be adjacent in memory."""
    rows, heads, dim = x.shape
    out = x.new_empty((rows, dim))
    _sum_heads_kernel[(rows,)](
        x, out, heads, dim, *x.stride()[:2],
        HEADS=min(_HEADS, triton.next_power_of_2(heads)), DIM=triton.next_power_of_2(dim),
        num_warps=4,
    )  # fmt: skip
    return out


# -- attention backward ----------------------------------------------------------------------------


@triton.jit
def _attention_preprocess_kernel(
    out,  # [sequences, length, heads, v_dim]
    out_grad,
    delta,  # [sequences, heads, length]
    q_grad,  # [sequences, length, heads, qk_dim], filled with zeros
    length,
    heads,
    v_dim,
    qk_dim,
    HEADS: tl.constexpr,
    V_DIM: tl.constexpr,
    QK_DIM: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column, wide = tl.arange(0, V_DIM), tl.arange(0, QK_DIM)
    at = (token * heads + head)[:, None] * v_dim + column[None, :]
    inside = (head < heads)[:, None] & (column < v_dim)[None, :]
    value = tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
    value *= tl.load(out_grad + at, mask=inside, other=0.0).to(tl.float32)
    place = (token // length * heads + head) * length + token % length
    tl.store(delta + place, tl.sum(value, axis=1), mask=head < heads)
    target = q_grad + (token * heads + head)[:, None] * qk_dim + wide[None, :]
    zeros = tl.zeros([HEADS, QK_DIM], tl.float32)
    tl.store(target, zeros, mask=(head < heads)[:, None] & (wide < qk_dim)[None, :])


def launch_attention_backward_preprocess(
    output: Tensor, out_grad: Tensor, *, qk_dim: int, site: str
) -> tuple[Tensor, Tensor]:
    """Run operators.attention_backward_preprocess in one kernel."""
    output, out_grad = output.contiguous(), out_grad.contiguous()
    sequences, length, heads, v_dim = output.shape
    delta = output.new_empty((sequences, heads, length), dtype=torch.float32)
    q_grad = output.new_empty((sequences, length, heads, qk_dim), dtype=torch.float32)
    block = min(_HEADS, triton.next_power_of_2(heads))
    _attention_preprocess_kernel[sequences * length, triton.cdiv(heads, block)](
        output, out_grad, delta, q_grad, length, heads, v_dim, qk_dim,
        HEADS=block, V_DIM=triton.next_power_of_2(v_dim), QK_DIM=triton.next_power_of_2(qk_dim),
        num_warps=4,
    )  # fmt: skip
    return delta, q_grad


@triton.jit
def _output_of_sums_kernel(
    out_grad,  # [sequences, length, heads, v_dim]
    delta,  # [sequences, heads, length]
    out,
    length,
    heads,
    v_dim,
    HEADS: tl.constexpr,
    V_DIM: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, V_DIM)
    at = (token * heads + head)[:, None] * v_dim + column[None, :]
    inside = (head < heads)[:, None] & (column < v_dim)[None, :]
    value = tl.load(out_grad + at, mask=inside, other=0.0).to(tl.float32)
    place = (token // length * heads + head) * length + token % length
    wanted = tl.load(delta + place, mask=head < heads, other=0.0)
    square = tl.maximum(tl.sum(value * value, axis=1), 1.1754943508222875e-38)
    result = value * (wanted / square)[:, None]
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


def output_of_sums(out_grad: Tensor, delta: Tensor) -> Tensor:
    """The shortest attention output O whose row sums of O x dO are delta: a multiple of dO.

    out_grad [sequences, length, heads, v_dim], delta [sequences, heads, length] -> like out_grad.
    """
    out_grad = out_grad.contiguous()
    sequences, length, heads, v_dim = out_grad.shape
    out = torch.empty_like(out_grad)
    block = min(_HEADS, triton.next_power_of_2(heads))
    _output_of_sums_kernel[sequences * length, triton.cdiv(heads, block)](
        out_grad, delta, out, length, heads, v_dim,
        HEADS=block, V_DIM=triton.next_power_of_2(v_dim), num_warps=4,
    )  # fmt: skip
    return out
