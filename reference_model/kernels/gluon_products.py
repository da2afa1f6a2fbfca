# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""Grouped FP8 products on Hopper, written in Gluon, Triton's language for one GPU's own means.

A program stays on its multiprocessor and computes tiles of 128 x 256 of D = A B^T, group after
group, whose sizes it reads on the device. Four warps do nothing but start copies, four stages
ahead; two warpgroups of four warps each compute 64 rows of the tile. For each 128 of K a warpgroup
multiplies its rows by 128 columns on the tensor cores, which keep about 14 bits of a sum (Report,
section 3.3.2), promotes them in float32, and does the same for the other 128. Neither warpgroup
waits for the other: while one promotes, the other has the tensor cores. A tile of 128 x 256 reads
half as many bytes for a product as the 64 x 128 of triton_gemm.py, whose tiles the L2 cache
cannot bring fast enough.

triton_gemm.py computes the same where kernels are interpreted, to the last bit, and products of
rows in room that is partly filled.
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

from reference_model.kernels.reference import TILE

_TILE = gl.constexpr(TILE)
_ROWS = 128
_COLUMNS = 256
_STAGES = 4
"""Operand tiles in flight: 4 stages x (128 + 256) x 128 bytes and 16 KiB of results fit 227 KiB."""
_ROW_BLOCKS_IN_TURN = 8
"""Row blocks whose tiles are computed one after another, so that B is read from L2."""
_REGISTERS = 216
"""Of a thread that multiplies: 128 sums, 64 products that are not promoted yet, and the rest."""
_REGISTERS_AT_START = 168
"""Of every thread before the warps part: 3 x 128 threads have the registers of an SM."""

# Names of Triton 3.7 and of 3.6.
_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared


@gluon.jit
def _tile_at(index, tiles_m, tiles_n, TURN: gl.constexpr):
    """(row block, column block) of a tile, going down TURN row blocks before going right."""
    turn = index // (TURN * tiles_n)
    height = gl.minimum(tiles_m - turn * TURN, TURN)
    within = index % (TURN * tiles_n)
    return turn * TURN + within % height, within // height


@gluon.jit
def _copy(
    a,
    b,
    group_sizes,
    groups,
    n,
    k_tiles,
    a_tiles,
    b_tiles,
    ready,
    empty,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    STAGES: gl.constexpr,
    TURN: gl.constexpr,
):
    """Bring the operands of every tile of this program, in order."""
    tiles_n = gl.cdiv(n, COLUMNS)
    step = 0
    place = gl.program_id(0)
    start = gl.to_tensor(0)
    for group in range(groups):
        size = gl.load(group_sizes + group).to(gl.int32)
        tiles_m = gl.cdiv(size, ROWS)
        while place < tiles_m * tiles_n:
            block_m, block_n = _tile_at(place, tiles_m, tiles_n, TURN)
            row, column = start + block_m * ROWS, group * n + block_n * COLUMNS
            for tile in range(k_tiles):
                stage = step % STAGES
                mbarrier.wait(empty.index(stage), (step // STAGES & 1) ^ 1)
                mbarrier.expect(ready.index(stage), (ROWS + COLUMNS) * _TILE)
                _load(a, [row, tile * _TILE], ready.index(stage), a_tiles.index(stage))
                _load(b, [column, tile * _TILE], ready.index(stage), b_tiles.index(stage))
                step += 1
            place += gl.num_programs(0)
        place -= tiles_m * tiles_n
        start += size


@gluon.jit
def _store(values, out, first_row, first_column, rows, n):
    """Write a tile of sums, but for what is beyond the group's rows or the n columns.

    Rows of the next group that came along in A's tile are computed and not stored."""
    written: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    row = first_row + gl.arange(0, values.shape[0], gl.SliceLayout(1, written))
    column = first_column + gl.arange(0, values.shape[1], gl.SliceLayout(0, written))
    target = out + row.to(gl.int64)[:, None] * n + column[None, :]
    rounded = gl.convert_layout(values.to(out.dtype.element_ty), written)
    gl.store(target, rounded, mask=(row < rows)[:, None] & (column < n)[None, :])


@gluon.jit
def _multiply(
    a_scales,
    b_scales,
    group_sizes,
    out,
    groups,
    n,
    k_tiles,
    a_scales_tile_stride,
    b_scales_group_stride,
    b_scales_row_stride,
    b_scales_tile_stride,
    a_tiles,
    b_tiles,
    ready,
    empty,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    STAGES: gl.constexpr,
    TURN: gl.constexpr,
    PART: gl.constexpr,
):
    """Multiply and write half PART of the rows of every tile of this program."""
    HALF: gl.constexpr = ROWS // 2
    multiplied: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 32])
    tiles_n = gl.cdiv(n, COLUMNS)
    step = 0
    place = gl.program_id(0)
    start = gl.to_tensor(0)
    none = gl.zeros([HALF, 128], gl.float32, multiplied)
    for group in range(groups):
        size = gl.load(group_sizes + group).to(gl.int32)
        tiles_m = gl.cdiv(size, ROWS)
        while place < tiles_m * tiles_n:
            block_m, block_n = _tile_at(place, tiles_m, tiles_n, TURN)
            first = block_m * ROWS + PART * HALF  # row within the group
            row = first + gl.arange(0, HALF, gl.SliceLayout(1, multiplied))
            inside = row < size
            a_at = a_scales + start + row
            b_at = b_scales + group * b_scales_group_stride
            b_at += block_n * (COLUMNS // _TILE) * b_scales_row_stride
            # Where the last tile is half one, the right half is computed and not stored.
            right_at = gl.minimum(block_n * COLUMNS + 128, n - 1) // _TILE * b_scales_row_stride
            right_at = b_scales + group * b_scales_group_stride + right_at
            left = gl.zeros([HALF, 128], gl.float32, multiplied)
            right = gl.zeros([HALF, 128], gl.float32, multiplied)
            a_scale = gl.load(a_at, mask=inside, other=0.0)
            b_left, b_right = gl.load(b_at), gl.load(right_at)
            for tile in range(k_tiles):
                stage = step % STAGES
                # The next tile's scales travel while the tensor cores work on this one.
                following = gl.minimum(tile + 1, k_tiles - 1)
                next_a_scale = gl.load(
                    a_at + following * a_scales_tile_stride, mask=inside, other=0.0
                )
                next_left = gl.load(b_at + following * b_scales_tile_stride)
                next_right = gl.load(right_at + following * b_scales_tile_stride)
                mbarrier.wait(ready.index(stage), step // STAGES & 1)
                rows, columns = a_tiles.index(stage).slice(PART * HALF, HALF), b_tiles.index(stage)
                product = warpgroup_mma(
                    rows, columns.slice(0, 128).permute((1, 0)), none, use_acc=False, is_async=True
                )
                product = warpgroup_mma_wait(0, [product])
                left += product * (a_scale * b_left)[:, None]
                product = warpgroup_mma(
                    rows,
                    columns.slice(128, 128).permute((1, 0)),
                    none,
                    use_acc=False,
                    is_async=True,
                )
                product = warpgroup_mma_wait(0, [product])
                mbarrier.arrive(empty.index(stage))
                right += product * (a_scale * b_right)[:, None]
                a_scale, b_left, b_right = next_a_scale, next_left, next_right
                step += 1
            target = out + start.to(gl.int64) * n
            column = block_n * COLUMNS
            _store(left, target, first, column, size, n)
            _store(right, target, first, column + 128, size, n)
            place += gl.num_programs(0)
        place -= tiles_m * tiles_n
        start += size


@gluon.jit
def grouped_gemm_kernel(
    a,  # descriptor of [rows, k]
    b,  # descriptor of [groups * n, k]
    a_scales,  # [rows, k tiles], column-major
    b_scales,  # [groups, n blocks, k tiles]
    group_sizes,
    out,  # [rows, n]
    groups,
    n,
    k_tiles,
    a_scales_tile_stride,
    b_scales_group_stride,
    b_scales_row_stride,
    b_scales_tile_stride,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    STAGES: gl.constexpr,
    TURN: gl.constexpr,
    REGISTERS: gl.constexpr,
):
    a_tiles = gl.allocate_shared_memory(a.dtype, [STAGES, ROWS, _TILE], a.layout)
    b_tiles = gl.allocate_shared_memory(b.dtype, [STAGES, COLUMNS, _TILE], b.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                _copy,
                (
                    a, b, group_sizes, groups, n, k_tiles, a_tiles, b_tiles, ready, empty,
                    ROWS, COLUMNS, STAGES, TURN,
                ),
            ),
            (
                _multiply,
                (
                    a_scales, b_scales, group_sizes, out, groups, n, k_tiles,
                    a_scales_tile_stride, b_scales_group_stride, b_scales_row_stride,
                    b_scales_tile_stride, a_tiles, b_tiles, ready, empty,
                    ROWS, COLUMNS, STAGES, TURN, 0,
                ),
            ),
            (
                _multiply,
                (
                    a_scales, b_scales, group_sizes, out, groups, n, k_tiles,
                    a_scales_tile_stride, b_scales_group_stride, b_scales_row_stride,
                    b_scales_tile_stride, a_tiles, b_tiles, ready, empty,
                    ROWS, COLUMNS, STAGES, TURN, 1,
                ),
            ),
        ],
        [4, 4],
        [REGISTERS, REGISTERS],
    )  # fmt: skip


def tile_layout(rows: int) -> gl.NVMMASharedLayout:
    """How an FP8 tile of so many rows of 128 lies in shared memory."""
    return gl.NVMMASharedLayout.get_default_for([rows, TILE], gl.float8e4nv)


CONSTANTS = {
    "ROWS": _ROWS, "COLUMNS": _COLUMNS, "STAGES": _STAGES, "TURN": _ROW_BLOCKS_IN_TURN,
    "REGISTERS": _REGISTERS,
}  # fmt: skip
LAUNCH = {"num_warps": 4, "maxnreg": _REGISTERS_AT_START}


def multiply_groups(
    a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, *, group_sizes: Tensor, out: Tensor,
    processors: int,
) -> None:  # fmt: skip
    """ReferenceKernels.grouped_gemm_fp8 into out [rows, n], on so many multiprocessors.

    a_scales are column-major; k is a multiple of 16."""
    groups, n, k = b.shape
    tiles = (triton.cdiv(a.shape[0], _ROWS) + groups) * triton.cdiv(n, _COLUMNS)
    grouped_gemm_kernel[(min(tiles, processors),)](
        TensorDescriptor.from_tensor(a, [_ROWS, TILE], tile_layout(_ROWS)),
        TensorDescriptor.from_tensor(b.flatten(0, 1), [_COLUMNS, TILE], tile_layout(_COLUMNS)),
        a_scales,
        b_scales,
        group_sizes,
        out,
        groups,
        n,
        triton.cdiv(k, TILE),
        a_scales.stride(1),
        *b_scales.stride(),
        **CONSTANTS,
        **LAUNCH,
    )
