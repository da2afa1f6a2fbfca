# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""Triton kernels of a decode step: KV-cache entries, and tokens routed to experts.

decode_operators.py says what each computes; gpu.py puts them behind the operators. The rows of each
expert lie in room for P of them; how many are filled stays on the device, and what is beyond them
is neither read nor written. So a decode step can be captured in a CUDA graph.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from reference_model.decode_operators import check_received
from reference_model.kernels.triton_elementwise import sum_rows
from reference_model.kernels.triton_routing import as_words

_BLOCK = 1024
"""Columns of one row that a program handles at a time."""
_SCANNED = 1024
"""Choices that a program compares with its own at a time."""


@triton.jit
def _append_cache_kernel(
    latent,  # [tokens, LATENT columns], strided
    key,  # [tokens, ROPE columns], strided
    positions,  # [sequences, queries], strided
    cache,  # [sequences, capacity, latent + rope columns]
    queries,
    latent_columns,
    rope_columns,
    latent_stride,
    key_stride,
    sequence_stride,
    query_stride,
    capacity,
    LATENT: tl.constexpr,
    ROPE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    sequence, query = token // queries, token % queries
    position = tl.load(positions + sequence * sequence_stride + query * query_stride)
    entry = cache + (sequence * capacity + position) * (latent_columns + rope_columns)
    column = tl.arange(0, LATENT)
    values = tl.load(latent + token * latent_stride + column, mask=column < latent_columns)
    tl.store(entry + column, values, mask=column < latent_columns)
    column = tl.arange(0, ROPE)
    values = tl.load(key + token * key_stride + column, mask=column < rope_columns)
    tl.store(entry + latent_columns + column, values, mask=column < rope_columns)


def launch_append_cache(
    latent: Tensor, key: Tensor, positions: Tensor, cache: Tensor, *, site: str
) -> None:
    """Run decode_operators.append_cache; the columns of each operand must be adjacent in memory."""
    latents, rope = latent.shape[1], key.shape[1]
    _append_cache_kernel[(latent.shape[0],)](
        latent, key, positions, cache, positions.shape[1], latents, rope,
        latent.stride(0), key.stride(0), *positions.stride(), cache.shape[1],
        LATENT=triton.next_power_of_2(latents), ROPE=triton.next_power_of_2(rope), num_warps=4,
    )  # fmt: skip


@triton.jit
def _receive_kernel(
    values,  # [tokens, words]
    scales,  # [tokens, tiles], strided
    indices,  # [choices]
    packed,  # [experts, room, words]
    packed_scales,  # [experts, tiles, room]
    counts,  # [experts], zeros
    source,  # [experts, room]
    choices,
    top_k,
    room,
    words,
    tiles,
    scales_row_stride,
    scales_tile_stride,
    SCANNED: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    choice = tl.program_id(0)
    token = (choice // top_k).to(tl.int64)
    expert = tl.load(indices + choice)
    earlier, later = 0, 0
    for start in range(0, choices, SCANNED):
        other = start + tl.arange(0, SCANNED)
        same = tl.load(indices + other, mask=other < choices, other=-1) == expert
        earlier += tl.sum((same & (other < choice)).to(tl.int32), axis=0)
        later += tl.sum((same & (other > choice)).to(tl.int32), axis=0)
    if later == 0:
        tl.store(counts + expert, earlier + 1)
    row = expert * room + earlier
    tl.store(source + row, choice)
    for start in range(0, words, BLOCK):
        word = start + tl.arange(0, BLOCK)
        moved = tl.load(values + token * words + word, mask=word < words)
        tl.store(packed + row * words + word, moved, mask=word < words)
    tile = tl.arange(0, TILES)
    at = scales + token * scales_row_stride + tile * scales_tile_stride
    scale = tl.load(at, mask=tile < tiles)
    target = packed_scales + (expert * tiles + tile) * room + earlier
    tl.store(target, scale, mask=tile < tiles)


def launch_dispatch_receive(
    values: Tensor,
    scales: Tensor,
    indices: Tensor,
    *,
    rows: int,
    room: int,
    local_experts: int,
    site: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run decode_operators.dispatch_receive: zeroed counts, and one kernel that places and
    copies."""
    check_received(indices, rows=rows, room=room)
    values, tiles = values.contiguous(), scales.shape[1]
    packed = values.new_empty((local_experts, room, values.shape[1]))
    packed_scales = scales.new_empty((local_experts, tiles, room)).mT
    source = indices.new_empty((local_experts, room), dtype=torch.int32)
    counts = indices.new_zeros((local_experts,), dtype=torch.int32)
    moved = as_words(values)
    _receive_kernel[(rows,)](
        moved, moved if not tiles else scales, indices.reshape(-1),
        as_words(packed.flatten(0, 1)), moved if not tiles else packed_scales, counts, source,
        rows, indices.shape[1], room, moved.shape[1], tiles, *scales.stride(),
        SCANNED=min(_SCANNED, triton.next_power_of_2(rows)), BLOCK=_BLOCK,
        TILES=triton.next_power_of_2(max(1, tiles)), num_warps=4,
    )  # fmt: skip
    return packed, packed_scales, counts, source


@triton.jit
def _copy_filled_kernel(x, out, counts, room, words, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    if row % room < tl.load(counts + row // room):
        word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        at = row.to(tl.int64) * words + word
        tl.store(out + at, tl.load(x + at, mask=word < words), mask=word < words)


def launch_combine_send(x: Tensor, group_rows: Tensor, *, rows: int, site: str) -> Tensor:
    """Run decode_operators.combine_send; it copies the filled rows only."""
    x = x.contiguous()
    out = torch.empty_like(x)
    words = as_words(x.flatten(0, 1))
    _copy_filled_kernel[words.shape[0], triton.cdiv(words.shape[1], 4 * _BLOCK)](
        words, as_words(out.flatten(0, 1)), group_rows, x.shape[1], words.shape[1],
        BLOCK=4 * _BLOCK, num_warps=8,
    )  # fmt: skip
    return out


@triton.jit
def _rows_of_choices_kernel(source, counts, choice_rows, room, slots, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    filled = row % room < tl.load(counts + row // room, mask=row < slots, other=0)
    choice = tl.load(source + row, mask=filled & (row < slots), other=0)
    tl.store(choice_rows + choice, row, mask=filled & (row < slots))


def launch_combine_receive(
    x: Tensor, source: Tensor, weights: Tensor, group_rows: Tensor, *, site: str
) -> Tensor:
    """Run decode_operators.combine_receive in two kernels: the row of each choice, and the sums."""
    room, slots = source.shape[1], source.numel()
    choice_rows = source.new_empty(weights.shape)
    _rows_of_choices_kernel[(triton.cdiv(slots, 256),)](
        source, group_rows, choice_rows, room, slots, BLOCK=256, num_warps=4
    )
    return sum_rows(x.flatten(0, 1), choice_rows, weights)
