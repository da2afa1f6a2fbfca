# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""Dispatch and combine as Triton kernels that write to the memory of other GPUs.

Each launches as many programs as it may keep SMs, and every program works through rows: what a rank
sends goes in one pass from where it lies to where its receiver reads it. peer_memory.py puts them
behind the operators of peer_operators.py. Part p of what is sent begins at starts[p] and ends at
starts[p + 1]; it becomes the receiver's rows from firsts[p] on.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import globaltimer

from reference_model.kernels.triton_routing import as_words

_IN_FLIGHT = 8192
"""Elements that a program loads before it stores them: 32 KiB of words."""
_MOST_ROWS = 64
_WARPS = 16


@triton.jit
def _send_rows_kernel(
    x,  # [rows, COLUMNS], strided
    index,  # [sent rows], the row of x that each is; unused if not INDEXED
    starts,  # [RANKS + 1]
    firsts,  # [RANKS]
    addresses,  # [RANKS], of the memory of each rank
    offset,  # bytes from there to the receiver's first row
    longest,  # rows of the longest part
    rank,
    row_stride,
    column_stride,
    shift,  # subtracted from what goes to rank 1, twice this for rank 2, ..., if SHIFTED
    RANKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    INDEXED: tl.constexpr,
    SHIFTED: tl.constexpr,
):
    column = tl.arange(0, BLOCK)
    for block in range(tl.program_id(0), tl.cdiv(longest, ROWS), tl.num_programs(0)):
        # Every program sends to all ranks in turn, the own one last, so that no link is idle.
        for step in range(RANKS):
            peer = (rank + 1 + step) % RANKS
            begin, end = tl.load(starts + peer), tl.load(starts + peer + 1)
            row = begin + block * ROWS + tl.arange(0, ROWS)
            mask = (row < end)[:, None] & (column < COLUMNS)[None, :]
            taken = tl.load(index + row, mask=row < end, other=0) if INDEXED else row
            source = taken.to(tl.int64)[:, None] * row_stride
            values = tl.load(x + source + column[None, :] * column_stride, mask=mask)
            if SHIFTED:
                values -= peer * shift
            there = (tl.load(addresses + peer) + offset).to(tl.pointer_type(x.dtype.element_ty))
            there = tl.multiple_of(there, 16)
            arrived = (tl.load(firsts + peer) + row - begin).to(tl.int64)[:, None] * COLUMNS
            tl.store(there + arrived + column[None, :], values, mask=mask)


def send_rows(
    x: Tensor,
    index: Tensor | None,
    *,
    starts: Tensor,
    firsts: Tensor,
    longest: int,
    addresses: Tensor,
    offset: int,
    rank: int,
    programs: int,
    shift: int = 0,
) -> None:
    """Write rows of x [rows, columns], all of them or those of `index`, to other ranks' memory.

    Args:
        addresses: int64 [ranks], where each rank's memory begins.
        offset: bytes from there to the first row that the ranks receive, a multiple of 16.
        shift: times the receiving rank, subtracted from whole numbers.
    """
    words = x if shift or x.element_size() >= 4 else as_words(x)
    columns = words.shape[1]
    block = triton.next_power_of_2(columns)
    _send_rows_kernel[(programs,)](
        words,
        starts if index is None else index,
        starts,
        firsts,
        addresses,
        offset,
        longest,
        rank,
        words.stride(0),
        words.stride(1),
        shift,
        RANKS=firsts.shape[0],
        COLUMNS=columns,
        BLOCK=block,
        ROWS=min(_MOST_ROWS, max(1, _IN_FLIGHT // block)),
        INDEXED=index is not None,
        SHIFTED=shift != 0,
        num_warps=_WARPS,
    )


@triton.jit
def _sum_returned_kernel(
    returned,  # [rows, COLUMNS]
    shared,  # [tokens, COLUMNS], unused without ADDED
    token_rows,  # [tokens, RANKS]
    total,  # [tokens, COLUMNS]
    tokens,
    RANKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    ADDED: tl.constexpr,
):
    column = tl.arange(0, BLOCK).to(tl.int64)
    mask = column < COLUMNS
    for token in range(tl.program_id(0), tokens, tl.num_programs(0)):
        place = token * COLUMNS + column
        if ADDED:
            values = tl.load(shared + place, mask=mask, other=0.0).to(tl.float32)
        else:
            values = tl.zeros([BLOCK], tl.float32)
        for peer in tl.static_range(RANKS):
            row = tl.load(token_rows + token * RANKS + peer)
            there = mask & (column + row >= column)  # row is -1 where there is none
            part = tl.load(returned + row * COLUMNS + column, mask=there, other=0.0)
            values += part.to(tl.float32)
        tl.store(total + place, values.to(total.dtype.element_ty), mask=mask)


def sum_returned(
    returned: Tensor, shared: Tensor | None, token_rows: Tensor, total: Tensor, *, programs: int
) -> None:
    """Write to total [T, columns] the sum of shared [T, columns] and the rows of each token, added
    in float32."""
    columns = returned.shape[1]
    _sum_returned_kernel[(programs,)](
        returned,
        returned if shared is None else shared,
        token_rows,
        total,
        total.shape[0],
        RANKS=token_rows.shape[1],
        COLUMNS=columns,
        BLOCK=triton.next_power_of_2(columns),
        ADDED=shared is not None,
        num_warps=_WARPS,
    )


@triton.jit
def _by_column_kernel(
    x,  # [rows, columns]
    out,  # [columns, rows]
    rows,
    columns,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    column = tl.arange(0, BLOCK)
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = block * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        values = tl.load(x + row[:, None] * columns + column[None, :], mask=mask)
        tl.store(out + column[None, :] * rows + row[:, None], values, mask=mask)


def by_column(x: Tensor, out: Tensor, *, programs: int) -> None:
    """Write x [rows, columns] to out [columns, rows], turned around."""
    rows, columns = x.shape
    _by_column_kernel[(programs,)](
        x, out, rows, columns, BLOCK=triton.next_power_of_2(columns), ROWS=_MOST_ROWS, num_warps=8
    )


@triton.jit
def _note_time_kernel(times, place):
    tl.store(times + place, globaltimer().to(tl.int64))


def note_time(times: Tensor, place: int) -> None:
    """Write the time that the GPU's clock shows, in ns, to times[place], int64."""
    _note_time_kernel[(1,)](times, place, num_warps=1)
