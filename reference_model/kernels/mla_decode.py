# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""Attention core of absorbed MLA decoding: queries against the latent cache they share.

In the absorbed form (DeepSeek-V2, arXiv:2405.04434, section 2.1.2) every head reads the same key,
the 512 latent and 64 rotary values of a cached token, and its value is the latent part of it. So a
cached token is read once for all heads, and both products are matrix products over heads.

Shapes: q [sequences, query_length, heads, latent + rope]; cache [sequences, capacity, latent +
rope]; lengths int32 [sequences], the cached tokens of each sequence, the query's own included: the
queries are its last query_length tokens. What the cache holds beyond a length must be finite: it is
read, and its weight is 0. Out: [sequences, query_length, heads, latent] and the
log-sum-exp of the scores, float32 [sequences, query_length, heads].
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from reference_model.kernels.device import check_device

_BLOCK_ROWS = 64
"""(query, head) pairs of one program; the least that Hopper's matrix instruction takes."""
_BLOCK_KV = 64
"""Cached tokens read at a time."""
GLUON_WIDTHS = (512, 576)
"""Latent part and whole width of a cached token, of DeepSeek-V2 and all that follow it, for which
gluon_decode.py has a kernel that is faster on Hopper."""


def mla_decode_reference(
    q: Tensor, cache: Tensor, lengths: Tensor, *, latent_dim: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The core in plain torch, sequence by sequence, in float32."""
    outs, sums = [], []
    query_length = q.shape[1]
    for sequence, length in enumerate(lengths.tolist()):
        keys = cache[sequence, :length].float()  # [length, latent + rope]
        scores = torch.einsum("qhd,kd->qhk", q[sequence].float(), keys) * scale
        last = torch.arange(length - query_length, length, device=q.device)
        hidden = torch.arange(length, device=q.device)[None, :] > last[:, None]
        scores = scores.masked_fill(hidden[:, None, :], float("-inf"))
        sums.append(scores.logsumexp(dim=2))
        outs.append(torch.einsum("qhk,kd->qhd", scores.softmax(dim=2), keys[:, :latent_dim]))
    return torch.stack(outs).to(q.dtype), torch.stack(sums)


@triton.jit
def _decode_kernel(
    q,  # [sequences, rows, LATENT + ROPE], rows = query_length * heads
    latents,  # descriptors of the cache [sequences * capacity, LATENT + ROPE], blocks of LATENT
    rotaries,  # and of ROPE columns
    lengths,
    partial_out,  # [sequences, rows, splits, LATENT] float32, or the result if there is one split
    partial_sum,  # [sequences, rows, splits] float32
    rows,
    heads,
    query_length,
    capacity,
    splits,
    scale,
    LATENT: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):
    sequence, split = tl.program_id(1), tl.program_id(2)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    latent, rope = tl.arange(0, LATENT), LATENT + tl.arange(0, ROPE)
    width = LATENT + ROPE
    q_row = q + (sequence.to(tl.int64) * rows + row)[:, None] * width
    q_latent = tl.load(q_row + latent[None, :], mask=(row < rows)[:, None], other=0.0)
    q_rope = tl.load(q_row + rope[None, :], mask=(row < rows)[:, None], other=0.0)

    length = tl.load(lengths + sequence)
    visible = length - query_length + row // heads + 1  # cached tokens that the row may see
    blocks = tl.cdiv(tl.cdiv(length, BLOCK_KV), splits)
    first = split * blocks * BLOCK_KV
    end = tl.minimum(first + blocks * BLOCK_KV, length)

    largest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    out = tl.zeros([BLOCK_ROWS, LATENT], tl.float32)
    for start in tl.range(first, end, BLOCK_KV):
        token = start + tl.arange(0, BLOCK_KV)
        keys = latents.load([sequence * capacity + start, 0])
        keys_rope = rotaries.load([sequence * capacity + start, LATENT])
        scores = tl.dot(q_latent, keys.T)
        scores = tl.dot(q_rope, keys_rope.T, scores) * scale
        seen = token[None, :] < visible[:, None]
        scores = tl.where(seen, scores, float("-inf"))
        # A row may see nothing yet of this split: then its maximum is -inf, and 0 stands for it.
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        offset = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        weights = tl.exp(scores - offset[:, None])
        shrink = tl.exp(largest - offset)
        total = total * shrink + tl.sum(weights, axis=1)
        out = out * shrink[:, None]
        out = tl.dot(weights.to(keys.dtype), keys, out)
        largest = new_largest

    position = (sequence.to(tl.int64) * rows + row) * splits + split
    # A row that saw anything has a total of at least 1, the weight of its largest score.
    divisor = tl.maximum(total, 1.0)
    log_sum = tl.where(total > 0, largest + tl.log(divisor), float("-inf"))
    out = out / divisor[:, None]
    tl.store(partial_sum + position, log_sum, mask=row < rows)
    target = partial_out + position[:, None] * LATENT + latent[None, :]
    tl.store(target, out, mask=(row < rows)[:, None])


@triton.jit
def _combine_kernel(
    partial_out,  # [rows, splits, LATENT] float32
    partial_sum,  # [rows, splits] float32
    out,  # [rows, LATENT]
    log_sums,  # [rows] float32
    splits,
    LATENT: tl.constexpr,
    SPLITS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    split, latent = tl.arange(0, SPLITS), tl.arange(0, LATENT)
    sums = tl.load(partial_sum + row * splits + split, mask=split < splits, other=float("-inf"))
    largest = tl.max(sums, axis=0)
    weights = tl.exp(sums - largest)
    total = tl.sum(weights, axis=0)
    source = partial_out + (row * splits + split)[:, None] * LATENT + latent[None, :]
    parts = tl.load(source, mask=(split < splits)[:, None], other=0.0)
    result = tl.sum(parts * weights[:, None], axis=0) / total
    tl.store(out + row * LATENT + latent, result.to(out.dtype.element_ty))
    tl.store(log_sums + row, largest + tl.log(total))


def mla_decode_triton(
    q: Tensor, cache: Tensor, lengths: Tensor, *, latent_dim: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The core as two kernels: each sequence's cache in splits, then their combination; of one
    split as the first of them alone.

    On a GPU the first is Gluon's where values are BF16 and the widths DeepSeek's. Elsewhere
    latent_dim and the rotary width must be powers of two of at least 16; lengths stay on the
    device, so the number of splits follows from the shapes alone."""
    check_device(q)
    sequences, query_length, heads, width = q.shape
    rows, capacity = query_length * heads, cache.shape[1]
    tokens = cache.contiguous().flatten(0, 1)
    row_blocks = triton.cdiv(rows, _BLOCK_ROWS)
    splits = splits_of(q, row_blocks * sequences, capacity)
    out = q.new_empty((sequences, query_length, heads, latent_dim))
    log_sums = q.new_empty((sequences, query_length, heads), dtype=torch.float32)
    partial_out, partial_sum = (
        x.view(sequences, rows, 1, *x.shape[3:]) for x in (out, log_sums)
    )  # fmt: skip
    if splits > 1:
        partial_out = q.new_empty((sequences, rows, splits, latent_dim), dtype=torch.float32)
        partial_sum = q.new_empty((sequences, rows, splits), dtype=torch.float32)
    if q.is_cuda and q.dtype == torch.bfloat16 and (latent_dim, width) == GLUON_WIDTHS:
        from reference_model.kernels.gluon_decode import decode_splits

        decode_splits(q, cache, lengths, partial_out, partial_sum, scale=scale)
    else:
        _decode_kernel[row_blocks, sequences, splits](
            q.contiguous(),
            TensorDescriptor.from_tensor(tokens, [_BLOCK_KV, latent_dim]),
            TensorDescriptor.from_tensor(tokens, [_BLOCK_KV, width - latent_dim]),
            lengths,
            partial_out,
            partial_sum,
            rows,
            heads,
            query_length,
            capacity,
            splits,
            scale,
            LATENT=latent_dim,
            ROPE=width - latent_dim,
            BLOCK_ROWS=_BLOCK_ROWS,
            BLOCK_KV=_BLOCK_KV,
            num_warps=8,
            num_stages=2,
        )
    if splits > 1:
        combine_splits(partial_out, partial_sum, out, log_sums)
    return out, log_sums


def combine_splits(partial_out: Tensor, partial_sum: Tensor, out: Tensor, log_sums: Tensor) -> None:
    """The splits of each row, float32 [..., splits, latent] and [..., splits], into out and
    log_sums."""
    splits, latent_dim = partial_out.shape[-2:]
    _combine_kernel[(log_sums.numel(),)](
        partial_out,
        partial_sum,
        out,
        log_sums,
        splits,
        LATENT=latent_dim,
        SPLITS=triton.next_power_of_2(splits),
        num_warps=4,
    )


def splits_of(q: Tensor, programs: int, capacity: int) -> int:
    """Splits of a sequence that give every multiprocessor a program, each of a few blocks."""
    if not q.is_cuda:
        return min(2, triton.cdiv(capacity, _BLOCK_KV))
    processors = torch.cuda.get_device_properties(q.device).multi_processor_count
    most = triton.cdiv(capacity, 4 * _BLOCK_KV)
    return max(1, min(processors // programs, most))
