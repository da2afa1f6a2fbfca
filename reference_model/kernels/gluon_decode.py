# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""Attention core of absorbed MLA decoding on Hopper, in Gluon; mla_decode.py says what it computes.

The same loop over blocks of 64 cached tokens as there. Two warpgroups share 64 rows: each has half
of a block's scores and half of the columns of the result. The products of a block's scores are
queued behind those of the block before, so that the tensor cores go on; and the copy of a block
begins when the products that read its place are over, almost a whole block's time before it is
needed. In mla_decode.py it begins when the last product of the block before is queued.
"""

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

BLOCK = 64
"""(query, head) pairs of one program, and cached tokens read at a time."""
WARPS = 8
_LOG2_E = gl.constexpr(1.4426950408889634)

# Names of Triton 3.7 and of 3.6.
_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
_barrier = getattr(gl, "barrier", None) or gl.thread_barrier


@gluon.jit
def _load_block(
    latents,
    rotaries,
    row,
    keys,
    keys_rope,
    ready,
    wanted,
    LATENT: gl.constexpr,
    BYTES: gl.constexpr,
):
    mbarrier.expect(ready, BYTES, pred=wanted)
    _load(latents, [row, 0], ready, keys, pred=wanted)
    _load(rotaries, [row, LATENT], ready, keys_rope, pred=wanted)


@gluon.jit
def _queries(
    q, first_row, rows, width, first_column, ROWS: gl.constexpr, COLUMNS: gl.constexpr,
    layout: gl.constexpr,
):  # fmt: skip
    """Columns of the program's queries in shared memory, zeros beyond the last row."""
    LANES: gl.constexpr = min(32, COLUMNS // 8)
    loaded: gl.constexpr = gl.BlockedLayout([1, 8], [32 // LANES, LANES], [8, 1], [1, 0])
    row = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, loaded))
    column = first_column + gl.arange(0, COLUMNS, gl.SliceLayout(0, loaded))
    at = q + row.to(gl.int64)[:, None] * width + column[None, :]
    values = gl.load(at, mask=(row < rows)[:, None], other=0.0)
    return gl.allocate_shared_memory(gl.bfloat16, [ROWS, COLUMNS], layout, values)


@gluon.jit
def _scores(q_latent, q_rope, keys, keys_rope, none):
    """Start the products of all queries with a block of keys."""
    scores = warpgroup_mma(q_latent, keys.permute((1, 0)), none, use_acc=False, is_async=True)
    return warpgroup_mma(q_rope, keys_rope.permute((1, 0)), scores, is_async=True)


@gluon.jit
def decode_kernel(  # noqa: PLR0915 - one loop over values that stay in registers
    q,  # [sequences, rows, LATENT + ROPE], rows = query_length * heads
    latents,  # descriptors of the cache [sequences * capacity, LATENT + ROPE], blocks of LATENT
    rotaries,  # and of ROPE columns
    lengths,
    partial_out,  # [sequences, rows, splits, LATENT], float32 or BF16
    partial_sum,  # [sequences, rows, splits] float32
    rows,
    heads,
    query_length,
    capacity,
    splits,
    scale,
    LATENT: gl.constexpr,
    ROPE: gl.constexpr,
    BLOCK: gl.constexpr,
    of_queries: gl.constexpr,
    of_queries_rope: gl.constexpr,
):
    of_scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 2], [16, BLOCK // 2, 16])
    of_out: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 2], [16, LATENT // 2, 16])
    BYTES: gl.constexpr = BLOCK * (LATENT + ROPE) * 2
    sequence, split = gl.program_id(1), gl.program_id(2)
    first_row, width = gl.program_id(0) * BLOCK, LATENT + ROPE

    length = gl.load(lengths + sequence)
    of_split = gl.cdiv(gl.cdiv(length, BLOCK), splits) * BLOCK
    first = split * of_split
    end = gl.minimum(first + of_split, length)
    blocks = gl.maximum(gl.cdiv(end - first, BLOCK), 0)
    at = sequence * capacity + first

    keys = gl.allocate_shared_memory(gl.bfloat16, [2, BLOCK, LATENT], latents.layout)
    keys_rope = gl.allocate_shared_memory(gl.bfloat16, [2, BLOCK, ROPE], rotaries.layout)
    ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(2):
        mbarrier.init(ready.index(place), count=1)
    fence_async_shared()
    _barrier()
    for place in gl.static_range(2):
        _load_block(
            latents, rotaries, at + place * BLOCK, keys.index(place), keys_rope.index(place),
            ready.index(place), blocks > place, LATENT, BYTES,
        )  # fmt: skip
    of_sequence = q + sequence.to(gl.int64) * rows * width
    q_latent = _queries(of_sequence, first_row, rows, width, 0, BLOCK, LATENT, of_queries)
    q_rope = _queries(of_sequence, first_row, rows, width, LATENT, BLOCK, ROPE, of_queries_rope)
    weights_shared = gl.allocate_shared_memory(gl.bfloat16, [BLOCK, BLOCK], of_queries_rope)
    fence_async_shared()
    _barrier()

    row = first_row + gl.arange(0, BLOCK, gl.SliceLayout(1, of_scores))
    token = gl.arange(0, BLOCK, gl.SliceLayout(0, of_scores))
    # Cached tokens of this split that the row may see.
    visible = gl.minimum(length - query_length + row // heads + 1, end) - first
    largest = gl.full([BLOCK], float("-inf"), gl.float32, gl.SliceLayout(1, of_scores))
    total = gl.zeros([BLOCK, BLOCK], gl.float32, of_scores)
    none = gl.zeros([BLOCK, BLOCK], gl.float32, of_scores)
    out = gl.zeros([BLOCK, LATENT], gl.float32, of_out)
    scores = none
    if blocks > 0:
        mbarrier.wait(ready.index(0), 0)
        scores = _scores(q_latent, q_rope, keys.index(0), keys_rope.index(0), none)
        scores = warpgroup_mma_wait(0, [scores])
    for block in range(blocks):
        here, next_block = block % 2, block + 1
        seen = (block * BLOCK + token)[None, :] < visible[:, None]
        scores = gl.where(seen, scores * (scale * _LOG2_E), float("-inf"))
        # A row may see nothing yet of this split: then its maximum is -inf, and 0 stands for it.
        new_largest = gl.maximum(largest, gl.max(scores, axis=1))
        offset = gl.where(new_largest == float("-inf"), 0.0, new_largest)
        weights = gl.exp2(scores - offset[:, None])
        shrink = gl.exp2(largest - offset)
        largest = new_largest
        total = total * shrink[:, None] + weights
        weights_shared.store(weights.to(gl.bfloat16))
        out = out * gl.convert_layout(shrink, gl.SliceLayout(1, of_out))[:, None]
        fence_async_shared()
        _barrier()
        out = warpgroup_mma(weights_shared, keys.index(here), out, is_async=True)
        there = next_block % 2
        mbarrier.wait(ready.index(there), next_block // 2 & 1, pred=next_block < blocks)
        # Behind the last block these multiply what is there, and nobody reads the product.
        scores = _scores(q_latent, q_rope, keys.index(there), keys_rope.index(there), none)
        out = warpgroup_mma_wait(2, [out])  # all but the two products behind it
        _barrier()
        _load_block(
            latents, rotaries, at + (block + 2) * BLOCK, keys.index(here), keys_rope.index(here),
            ready.index(here), block + 2 < blocks, LATENT, BYTES,
        )  # fmt: skip
        scores = warpgroup_mma_wait(0, [scores])

    # A row that saw anything has a total of at least 1, the weight of its largest score.
    summed = gl.sum(total, axis=1)
    divisor = gl.maximum(summed, 1.0)
    log_sum = gl.where(summed > 0, (largest + gl.log2(divisor)) / _LOG2_E, float("-inf"))
    position = (sequence.to(gl.int64) * rows + row) * splits + split
    gl.store(partial_sum + position, log_sum, mask=row < rows)
    _store(
        out / gl.convert_layout(divisor, gl.SliceLayout(1, of_out))[:, None],
        partial_out + (sequence.to(gl.int64) * rows * splits + split) * LATENT,
        first_row, rows, splits * LATENT, of_out,
    )  # fmt: skip


@gluon.jit
def _store(values, at, first_row, rows, row_stride, layout: gl.constexpr):
    """Write the rows that there are."""
    row = first_row + gl.arange(0, values.shape[0], gl.SliceLayout(1, layout))
    column = gl.arange(0, values.shape[1], gl.SliceLayout(0, layout))
    target = at + row.to(gl.int64)[:, None] * row_stride + column[None, :]
    gl.store(target, values.to(at.dtype.element_ty), mask=(row < rows)[:, None])


def block_layout(columns: int) -> gl.NVMMASharedLayout:
    """How a block of 64 rows of so many BF16 columns lies in shared memory."""
    return gl.NVMMASharedLayout.get_default_for([BLOCK, columns], gl.bfloat16)


def constants(latent_dim: int, rope: int) -> dict[str, object]:
    """What the kernel is compiled for."""
    return {
        "LATENT": latent_dim, "ROPE": rope, "BLOCK": BLOCK,
        "of_queries": block_layout(latent_dim), "of_queries_rope": block_layout(rope),
    }  # fmt: skip


def decode_splits(
    q: Tensor, cache: Tensor, lengths: Tensor, partial_out: Tensor, partial_sum: Tensor, *,
    scale: float,
) -> None:  # fmt: skip
    """The core of mla_decode.py split by split, into float32 or BF16 [sequences, rows, splits,
    latent] and float32 [sequences, rows, splits].

    BF16, a latent of 512 and a rotary part of 64 columns."""
    sequences, query_length, heads, width = q.shape
    rows, capacity = query_length * heads, cache.shape[1]
    splits, latent_dim = partial_out.shape[-2:]
    tokens = cache.contiguous().flatten(0, 1)
    decode_kernel[triton.cdiv(rows, BLOCK), sequences, splits](
        q.contiguous(),
        TensorDescriptor.from_tensor(tokens, [BLOCK, latent_dim], block_layout(latent_dim)),
        TensorDescriptor.from_tensor(
            tokens, [BLOCK, width - latent_dim], block_layout(width - latent_dim)
        ),
        lengths,
        partial_out,
        partial_sum,
        rows,
        heads,
        query_length,
        capacity,
        splits,
        scale,
        **constants(latent_dim, width - latent_dim),
        num_warps=WARPS,
    )
