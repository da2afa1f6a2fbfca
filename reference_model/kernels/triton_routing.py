# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""The gate, and token permutation to experts and back, as Triton kernels.

operators/routing.py says what each computes; gpu.py puts them behind the operators. Counts and
positions stay on the device: nothing here waits for the GPU, so all of it can be captured.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
"""Columns of one row that a program handles at a time."""
_CHOICES = 64
"""Choices that one program counts or places."""
_ROWS = 32
"""Rows that one program moves, with 512 bytes of each."""
_WORDS = 128


# -- the gate --------------------------------------------------------------------------------------


@triton.jit
def _scores(logits, inside, SOFTMAX: tl.constexpr):
    """Scores of the logits of one token, 0 outside."""
    if SOFTMAX:
        logits = tl.where(inside, logits, float("-inf"))
        powers = tl.exp(logits - tl.max(logits))
        return powers / tl.sum(powers)
    else:
        return tl.where(inside, tl.sigmoid(logits), 0.0)


@triton.jit
def _gate_kernel(
    logits,  # [tokens, experts]
    bias,  # [experts], or None
    indices,  # [tokens, TOP_K] int64
    weights,  # [tokens, TOP_K]
    experts,
    groups,
    members,  # experts of a group
    topk_group,
    scaling,
    GROUPS: tl.constexpr,
    MEMBERS: tl.constexpr,
    TOP_K: tl.constexpr,
    CHOICES: tl.constexpr,
    SOFTMAX: tl.constexpr,
    NORMALISE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    group, member = tl.arange(0, GROUPS), tl.arange(0, MEMBERS)
    expert = group[:, None] * members + member[None, :]
    inside = (group < groups)[:, None] & (member < members)[None, :]
    logit = tl.load(logits + token * experts + expert, mask=inside, other=0.0)
    score = _scores(logit, inside, SOFTMAX)
    biased = score
    if bias is not None:
        biased += tl.load(bias + expert, mask=inside, other=0.0)
    biased = tl.where(inside, biased, float("-inf"))

    worth = tl.max(biased, axis=1)
    if not SOFTMAX:
        # The two best of each group: the best, and the best of what is left without it.
        at = tl.min(tl.where(biased == worth[:, None], member[None, :], MEMBERS), axis=1)
        rest = tl.where(member[None, :] == at[:, None], float("-inf"), biased)
        worth += tl.max(rest, axis=1)
    ahead = worth[None, :] > worth[:, None]
    ahead |= (worth[None, :] == worth[:, None]) & (group[None, :] < group[:, None])
    allowed = tl.sum(ahead.to(tl.int32), axis=1) < topk_group
    biased = tl.where(allowed[:, None], biased, float("-inf"))

    choice = tl.arange(0, CHOICES)
    chosen = tl.zeros([CHOICES], tl.int32)
    picked = tl.zeros([CHOICES], tl.float32)
    for k in tl.static_range(TOP_K):
        largest = tl.max(tl.max(biased, axis=1), axis=0)
        candidates = tl.where((biased == largest) & inside, expert, experts - 1)
        first = tl.min(tl.min(candidates, axis=1), axis=0)
        this = (expert == first) & inside
        value = tl.sum(tl.sum(tl.where(this, score, 0.0), axis=1), axis=0)
        chosen = tl.where(choice == k, first, chosen)
        picked = tl.where(choice == k, value, picked)
        biased = tl.where(this, float("-inf"), biased)
    if NORMALISE:
        picked = picked / (tl.sum(picked, axis=0) + 1e-20)
    target = token * TOP_K + choice
    tl.store(indices + target, chosen.to(tl.int64), mask=choice < TOP_K)
    tl.store(weights + target, picked * scaling, mask=choice < TOP_K)


def launch_gate(
    logits: Tensor,
    correction_bias: Tensor | None,
    *,
    scoring: str,
    n_group: int,
    topk_group: int,
    top_k: int,
    normalise: bool,
    scaling: float,
    site: str,
) -> tuple[Tensor, Tensor]:
    """Run operators.gate in one kernel."""
    logits = logits.contiguous()
    tokens, experts = logits.shape
    indices = logits.new_empty((tokens, top_k), dtype=torch.int64)
    weights = logits.new_empty((tokens, top_k))
    groups = triton.next_power_of_2(n_group)
    members = triton.next_power_of_2(experts // n_group)
    _gate_kernel[(tokens,)](
        logits, correction_bias, indices, weights,
        experts, n_group, experts // n_group, topk_group, scaling,
        GROUPS=groups, MEMBERS=members, TOP_K=top_k, CHOICES=triton.next_power_of_2(top_k),
        SOFTMAX=scoring == "softmax", NORMALISE=normalise,
        num_warps=max(1, min(4, groups * members // 256)),
    )  # fmt: skip
    return indices, weights


@triton.jit
def _gate_backward_kernel(
    logits,  # [tokens, experts]
    indices,  # [tokens, top_k]
    weights_grad,  # [tokens, top_k]
    out,  # [tokens, experts]
    experts,
    top_k,
    scaling,
    EXPERTS: tl.constexpr,
    CHOICES: tl.constexpr,
    SOFTMAX: tl.constexpr,
    NORMALISE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    expert, choice = tl.arange(0, EXPERTS), tl.arange(0, CHOICES)
    at = token * experts + expert
    score = _scores(
        tl.load(logits + at, mask=expert < experts, other=0.0), expert < experts, SOFTMAX
    )
    real = choice < top_k
    index = tl.load(indices + token * top_k + choice, mask=real, other=-1)
    slope = tl.load(weights_grad + token * top_k + choice, mask=real, other=0.0) * scaling
    matches = (index[:, None] == expert[None, :]) & real[:, None]
    if NORMALISE:
        chosen = tl.sum(tl.where(matches, score[None, :], 0.0), axis=1)
        total = tl.sum(chosen, axis=0) + 1e-20
        slope = (slope - tl.sum(slope * chosen, axis=0) / total) / total
    grad = tl.sum(tl.where(matches, slope[:, None], 0.0), axis=0)
    if SOFTMAX:
        result = score * (grad - tl.sum(grad * score, axis=0))
    else:
        result = grad * score * (1 - score)
    tl.store(out + at, result.to(out.dtype.element_ty), mask=expert < experts)


def launch_gate_backward(
    logits: Tensor,
    indices: Tensor,
    weights_grad: Tensor,
    *,
    scoring: str,
    normalise: bool,
    scaling: float,
    dtype: torch.dtype,
    site: str,
) -> Tensor:
    """Run operators.gate_backward in one kernel."""
    logits = logits.contiguous()
    tokens, experts = logits.shape
    out = torch.empty_like(logits, dtype=dtype)
    padded = triton.next_power_of_2(experts)
    _gate_backward_kernel[(tokens,)](
        logits, indices.contiguous(), weights_grad.contiguous(), out,
        experts, indices.shape[1], scaling,
        EXPERTS=padded, CHOICES=triton.next_power_of_2(indices.shape[1]),
        SOFTMAX=scoring == "softmax", NORMALISE=normalise,
        num_warps=max(1, min(4, padded // 256)),
    )  # fmt: skip
    return out


# -- rows of experts -------------------------------------------------------------------------------


@triton.jit
def _dispatch_layout_kernel(indices, counts, choices, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(indices + at, mask=at < choices, other=0)
    tl.atomic_add(counts + expert, 1, mask=at < choices)


def launch_dispatch_layout(indices: Tensor, *, experts: int, site: str) -> Tensor:
    """Run operators.dispatch_layout: zeros, and a kernel that counts into them."""
    counts = indices.new_zeros((experts,), dtype=torch.int32)
    flat = indices.reshape(-1)
    if flat.shape[0]:
        _dispatch_layout_kernel[(triton.cdiv(flat.shape[0], 256),)](
            flat, counts, flat.shape[0], BLOCK=256, num_warps=4
        )
    return counts


@triton.jit
def _count_kernel(
    indices, counts, choices, experts, BLOCK: tl.constexpr, EXPERTS: tl.constexpr
):  # counts [blocks, experts]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    chosen = tl.load(indices + at, mask=at < choices, other=-1)
    expert = tl.arange(0, EXPERTS)
    count = tl.sum((chosen[:, None] == expert[None, :]).to(tl.int32), axis=0)
    tl.store(counts + tl.program_id(0) * experts + expert, count, mask=expert < experts)


@triton.jit
def _place_kernel(
    indices,  # [choices]
    weights,  # [choices]
    counted,  # [blocks, experts]: choices of each expert up to the end of a block
    row_source,
    row_weights,
    choice_rows,
    group_sizes,
    choices,
    experts,
    top_k,
    rows,
    BLOCK: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    block = tl.program_id(0)
    expert = tl.arange(0, EXPERTS)
    real = expert < experts
    sizes = tl.load(counted + (tl.num_programs(0) - 1) * experts + expert, mask=real, other=0)
    earlier_blocks = expert < tl.where(block > 0, experts, 0)
    before = tl.load(counted + (block - 1) * experts + expert, mask=earlier_blocks, other=0)
    first = tl.cumsum(sizes, axis=0) - sizes + before
    if block == 0:
        tl.store(group_sizes + expert, sizes, mask=real)
    position = tl.arange(0, BLOCK)
    at = block * BLOCK + position
    chosen = tl.load(indices + at, mask=at < choices, other=-1).to(tl.int32)
    local = (chosen >= 0) & (chosen < experts)
    row = tl.sum(tl.where(chosen[:, None] == expert[None, :], first[None, :], 0), axis=1)
    earlier = (chosen[:, None] == chosen[None, :]) & (position[None, :] < position[:, None])
    row += tl.sum(earlier.to(tl.int32), axis=1)
    tl.store(choice_rows + at, tl.where(local, row, -1), mask=at < choices)
    placed = local & (row < rows)
    tl.store(row_source + row, at // top_k, mask=placed)
    weight = tl.load(weights + at, mask=at < choices, other=0.0)
    tl.store(row_weights + row, weight, mask=placed)


def launch_expert_mapping(
    indices: Tensor, weights: Tensor, *, rows: int, local_experts: int, site: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run operators.expert_mapping in three kernels: counts by block, their running sum, and
    places.

    A number of local choices other than `rows` goes unnoticed: it is known on the device only."""
    choices, top_k = indices.numel(), indices.shape[1]
    row_source = indices.new_empty((rows,), dtype=torch.int32)
    choice_rows = indices.new_empty(indices.shape, dtype=torch.int32)
    row_weights = weights.new_empty((rows,))
    group_sizes = indices.new_empty((local_experts,), dtype=torch.int32)
    blocks = max(1, triton.cdiv(choices, _CHOICES))
    counts = indices.new_empty((blocks, local_experts), dtype=torch.int32)
    padded = triton.next_power_of_2(local_experts)
    flat = indices.reshape(-1)
    warps = 4 if padded <= 256 else 8
    _count_kernel[(blocks,)](
        flat, counts, choices, local_experts, BLOCK=_CHOICES, EXPERTS=padded, num_warps=warps
    )
    _place_kernel[(blocks,)](
        flat, weights.reshape(-1), counts.cumsum(dim=0, dtype=torch.int32),
        row_source, row_weights, choice_rows, group_sizes,
        choices, local_experts, top_k, rows,
        BLOCK=_CHOICES, EXPERTS=padded, num_warps=warps,
    )  # fmt: skip
    return row_source, row_weights, choice_rows, group_sizes


@triton.jit
def _permute_kernel(
    x,  # [tokens, words]
    scales,  # [tokens, tiles], column-major
    row_source,  # [rows]
    out,  # [rows, words]
    out_scales,  # [rows, tiles], column-major
    rows,
    words,
    tiles,
    scales_tile_stride,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    TILES: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    source = tl.load(row_source + row, mask=row < rows, other=0)
    blocks = tl.cdiv(words, WORDS)
    if tl.program_id(1) < blocks:
        word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
        inside = (row < rows)[:, None] & (word < words)[None, :]
        values = tl.load(x + source.to(tl.int64)[:, None] * words + word[None, :], mask=inside)
        tl.store(out + row.to(tl.int64)[:, None] * words + word[None, :], values, mask=inside)
    else:
        tile = (tl.program_id(1) - blocks) * TILES + tl.arange(0, TILES)
        real = (row < rows)[:, None] & (tile < tiles)[None, :]
        at = scales + source[:, None] + tile.to(tl.int64)[None, :] * scales_tile_stride
        moved = tl.load(at, mask=real)
        tl.store(out_scales + row[:, None] + tile.to(tl.int64)[None, :] * rows, moved, mask=real)


_TILES = 8
"""Scales of a row that one program moves."""


def launch_permute(
    x: Tensor, scales: Tensor | None, row_source: Tensor, *, site: str
) -> tuple[Tensor, Tensor]:
    """Run operators.permute in one kernel, values and scales."""
    x = x.contiguous()
    rows = row_source.shape[0]
    out = x.new_empty((rows, x.shape[1]))
    words, target = as_words(x), as_words(out)
    if scales is not None and scales.stride(0) != 1:
        scales = scales.t().contiguous().t()
    tiles = 0 if scales is None else scales.shape[1]
    out_scales = x.new_empty((tiles, rows), dtype=torch.float32).t()
    if not rows:
        return out, out_scales
    columns = triton.cdiv(words.shape[1], _WORDS) + triton.cdiv(tiles, _TILES)
    _permute_kernel[triton.cdiv(rows, _ROWS), columns](
        words, words if scales is None else scales, row_source, target,
        words if scales is None else out_scales,
        rows, words.shape[1], tiles, 0 if scales is None else scales.stride(1),
        ROWS=_ROWS, WORDS=_WORDS, TILES=_TILES, num_warps=4,
    )  # fmt: skip
    return (out, out.new_empty((rows, 0), dtype=torch.float32)) if not tiles else (out, out_scales)


def as_words(x: Tensor) -> Tensor:
    """A contiguous x [rows, columns] as the widest integers that its rows are whole numbers of."""
    size = x.shape[1] * x.element_size()
    return x.view(torch.int32 if not size % 4 else torch.uint8)


@triton.jit
def _topk_weight_grad_kernel(
    activated,  # [rows, columns]
    grad,  # [rows, columns]
    row_weights,  # [rows]
    choice_rows,  # [tokens x top_k]
    out,  # [tokens x top_k]
    columns,
    BLOCK: tl.constexpr,
):
    choice = tl.program_id(0)
    row = tl.load(choice_rows + choice)
    result = 0.0
    if row >= 0:
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            at = row.to(tl.int64) * columns + column
            value = tl.load(activated + at, mask=column < columns, other=0.0).to(tl.float32)
            total += value * tl.load(grad + at, mask=column < columns, other=0.0).to(tl.float32)
        weight = tl.load(row_weights + row)
        product = tl.sum(total, axis=0)
        result = tl.where(weight == 0.0, 0.0, product / tl.where(weight == 0.0, 1.0, weight))
    tl.store(out + choice, result)


def launch_topk_weight_grad(
    activated: Tensor, grad: Tensor, row_weights: Tensor, choice_rows: Tensor, *, site: str
) -> Tensor:
    """Run operators.topk_weight_grad in one kernel; rows of other ranks' choices are not read."""
    activated, grad, choice_rows = (x.contiguous() for x in (activated, grad, choice_rows))
    out = row_weights.new_empty(choice_rows.shape)
    _topk_weight_grad_kernel[(choice_rows.numel(),)](
        activated, grad, row_weights, choice_rows, out, activated.shape[1],
        BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    return out
