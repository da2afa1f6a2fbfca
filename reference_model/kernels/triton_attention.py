# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"
"""A Triton kernel of the query gradient of causal attention that adds in one order.

cuDNN's backward adds the query gradient from many thread blocks in any order, so that a few of 1e8
values differ in their last bit from run to run. Here one program owns a block of queries of a head
and takes the keys from the first to the last, so that the same input gives the same bits.
"""

import triton
import triton.language as tl
from torch import Tensor

_BLOCK_QUERIES = 128
_BLOCK_KEYS = 64
_LEAST = 16
"""Rows, columns and depth of a product, at least."""


@triton.jit
def _query_gradient_kernel(
    q_grad,  # [sequences, length, heads, QK] float32, added to
    q,  # [sequences, length, heads, QK]
    k,  # like q
    v,  # [sequences, length, heads, V]
    out_grad,  # like v
    log_sum,  # [sequences, heads, length] float32
    delta,  # like log_sum
    length,
    heads,
    scale,
    QK: tl.constexpr,
    V: tl.constexpr,
    FRONT: tl.constexpr,  # of QK's values, a power of two
    BACK: tl.constexpr,  # at least the rest
    WIDE: tl.constexpr,  # at least V
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    first = tl.program_id(0) * BLOCK_QUERIES
    head = (tl.program_id(1) % heads).to(tl.int64)
    sequence = (tl.program_id(1) // heads).to(tl.int64)
    query = first + tl.arange(0, BLOCK_QUERIES)
    front, back, wide = tl.arange(0, FRONT), FRONT + tl.arange(0, BACK), tl.arange(0, WIDE)
    known = query < length
    in_back, in_wide = (back < QK)[None, :], (wide < V)[None, :]

    row = ((sequence * length + query) * heads + head)[:, None]
    q_front = tl.load(q + row * QK + front[None, :], mask=known[:, None], other=0.0)
    q_back = tl.load(q + row * QK + back[None, :], mask=known[:, None] & in_back, other=0.0)
    grad = tl.load(out_grad + row * V + wide[None, :], mask=known[:, None] & in_wide, other=0.0)
    at = (sequence * heads + head) * length + query
    # Of queries beyond the last, weights are exp(-inf) = 0.
    sums = tl.load(log_sum + at, mask=known, other=float("inf"))
    means = tl.load(delta + at, mask=known, other=0.0)

    front_grad = tl.zeros([BLOCK_QUERIES, FRONT], tl.float32)
    back_grad = tl.zeros([BLOCK_QUERIES, BACK], tl.float32)
    for start in tl.range(0, tl.minimum(first + BLOCK_QUERIES, length), BLOCK_KEYS):
        key = start + tl.arange(0, BLOCK_KEYS)
        there = (key < length)[:, None]
        entry = ((sequence * length + key) * heads + head)[:, None]
        k_front = tl.load(k + entry * QK + front[None, :], mask=there, other=0.0)
        k_back = tl.load(k + entry * QK + back[None, :], mask=there & in_back, other=0.0)
        values = tl.load(v + entry * V + wide[None, :], mask=there & in_wide, other=0.0)
        scores = tl.dot(q_front, k_front.T)
        scores = tl.dot(q_back, k_back.T, scores) * scale
        seen = (key[None, :] <= query[:, None]) & known[:, None]
        weights = tl.where(seen, tl.exp(scores - sums[:, None]), 0.0)
        slope = weights * (tl.dot(grad, values.T) - means[:, None]) * scale
        slope = slope.to(k_front.dtype)
        front_grad = tl.dot(slope, k_front, front_grad)
        back_grad = tl.dot(slope, k_back, back_grad)

    target = q_grad + row * QK + front[None, :]
    tl.store(target, tl.load(target, mask=known[:, None]) + front_grad, mask=known[:, None])
    target, inside = q_grad + row * QK + back[None, :], known[:, None] & in_back
    tl.store(target, tl.load(target, mask=inside) + back_grad, mask=inside)


def add_query_gradient(
    q_grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out_grad: Tensor,
    log_sum: Tensor,
    delta: Tensor,
    *,
    scale: float,
) -> None:
    """Add dQ of operators.attention_backward into q_grad, the same bits each time; arguments as
    there.

    Raises ValueError where q and k have no more than 16 values a head."""
    sequences, length, heads, width = q.shape
    if width <= _LEAST:
        raise ValueError(f"heads of {width} values: a deterministic step takes more than {_LEAST}")
    front = 1 << (width - 1).bit_length() - 1
    grid = (triton.cdiv(length, _BLOCK_QUERIES), sequences * heads)
    _query_gradient_kernel[grid](
        q_grad, *(x.contiguous() for x in (q, k, v, out_grad, log_sum, delta)),
        length, heads, scale, QK=width, V=v.shape[3], FRONT=front,
        BACK=max(_LEAST, triton.next_power_of_2(width - front)),
        WIDE=max(_LEAST, triton.next_power_of_2(v.shape[3])),
        BLOCK_QUERIES=_BLOCK_QUERIES, BLOCK_KEYS=_BLOCK_KEYS, num_warps=8, num_stages=2,
    )  # fmt: skip
