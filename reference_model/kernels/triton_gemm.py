# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""Block-scaled FP8 matrix products as Triton kernels.

Every product is D = A B^T with both operands K-contiguous in E4M3. A program computes tiles of
64 x 128 of D. For each 128 of K it multiplies on the tensor cores, which keep about 14 bits of a
sum (Report, section 3.3.2), and promotes: scales that partial sum and adds it in float32.

Three programs of 4 warps share a multiprocessor: while one promotes on the CUDA cores, another
has the tensor cores. This ran faster on an H200 than one program with tiles of 128 x 128, whose
tensor cores wait for every promotion. Operand tiles arrive through the bulk tensor copy engine,
which fills what lies outside the matrix with zeros, so no size needs padding. It takes columns
from multiples of 16 bytes on: where experts' rows are columns, in their weight gradients, they are
copied to such places first. Grouped products of rows that lie close together go to
gluon_products.py on a GPU; what is here computes them where they are interpreted.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from reference_model.kernels.device import check_device, check_multiple
from reference_model.kernels.reference import TILE
from reference_model.kernels.triton_quantize import _group_starts, _pick, _rows_of_tile

_TILE = tl.constexpr(TILE)
_BLOCK_M = 64
_BLOCK_N = 128
_ROW_BLOCKS_IN_TURN = 8
"""Row blocks whose tiles are computed one after another, so that B is read from L2."""
_WEIGHT_GRAD_REGISTERS = 168
"""Of a thread, so that three programs fit where B has a scale for each of its rows: some values go
to local memory, which costs less than a third program that waits for the first two."""
_BLOCK_COPIED = 32
"""Rows of an operand of a grouped weight gradient that one program copies."""
_PROGRAMS_PER_SM = 3
_STAGES = 3
"""Operand tiles in flight: 3 stages x (64 + 128) x 128 bytes x 3 programs fit 228 KiB."""


@triton.jit
def _tile_at(index, tiles_m, tiles_n, TURN: tl.constexpr):
    """(row block, column block) of a tile, going down TURN row blocks before going right."""
    turn = index // (TURN * tiles_n)
    height = tl.minimum(tiles_m - turn * TURN, TURN)
    within = index % (TURN * tiles_n)
    return turn * TURN + within % height, within // height


@triton.jit
def _promoted_product(
    a,
    b,
    a_row,
    b_row,
    k_start,
    k_tiles,
    a_scales,  # pointers [BLOCK_M] to the scales of the first tile
    a_inside,
    a_step,
    b_scales,  # pointers [BLOCK_N] if B_IN_TILES, else one pointer: the block's scale
    b_inside,
    b_step,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    B_IN_TILES: tl.constexpr,
):
    """Sum over k_tiles of scaled 128-element products, float32 [BLOCK_M, BLOCK_N]."""
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    a_scale = tl.load(a_scales, mask=a_inside, other=0.0)
    if B_IN_TILES:  # noqa: SIM108 - Triton evaluates only the branch that is taken
        b_scale = tl.load(b_scales, mask=b_inside, other=0.0)
    else:
        b_scale = tl.load(b_scales)
    for tile in tl.range(0, k_tiles):
        # The next tile's scales travel while the tensor cores work on this one.
        following = tl.minimum(tile + 1, k_tiles - 1)
        next_a_scale = tl.load(a_scales + following * a_step, mask=a_inside, other=0.0)
        if B_IN_TILES:
            next_b_scale = tl.load(b_scales + following * b_step, mask=b_inside, other=0.0)
        else:
            next_b_scale = tl.load(b_scales + following * b_step)
        k = k_start + tile * _TILE
        product = tl.dot(a.load([a_row, k]), b.load([b_row, k]).T)
        if B_IN_TILES:
            total += product * a_scale[:, None] * b_scale[None, :]
        else:
            total += product * (a_scale * b_scale)[:, None]
        a_scale = next_a_scale
        b_scale = next_b_scale
    return total


@triton.jit
def _gemm_kernel(
    a,  # descriptor of [m, k]
    b,  # descriptor of [n, k]
    a_scales,
    b_scales,
    out,
    m,
    n,
    k_tiles,
    a_scales_stride,
    b_scales_row_stride,
    b_scales_tile_stride,
    out_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TURN: tl.constexpr,
    B_IN_TILES: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    tiles_m, tiles_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    for index in range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        block_m, block_n = _tile_at(index, tiles_m, tiles_n, TURN)
        row = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
        column = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
        if B_IN_TILES:
            b_scales_at = b_scales + column * b_scales_row_stride
        else:
            b_scales_at = b_scales + block_n * BLOCK_N // _TILE * b_scales_row_stride
        total = _promoted_product(
            a,
            b,
            block_m * BLOCK_M,
            block_n * BLOCK_N,
            0,
            k_tiles,
            a_scales + row,
            row < m,
            a_scales_stride,
            b_scales_at,
            column < n,
            b_scales_tile_stride,
            BLOCK_M,
            BLOCK_N,
            B_IN_TILES,
        )
        target = out + row.to(tl.int64)[:, None] * out_stride + column[None, :]
        inside = (row < m)[:, None] & (column < n)[None, :]
        if ACCUMULATE:
            total += tl.load(target, mask=inside, other=0.0)
        tl.store(target, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _grouped_gemm_kernel(
    a,  # descriptor of [rows, k]
    b,  # descriptor of [groups * n, k]
    a_scales,
    b_scales,
    group_sizes,
    out,
    groups,
    capacity,
    n,
    k_tiles,
    a_scales_row_stride,
    a_scales_tile_stride,
    a_scales_group_stride,
    b_scales_group_stride,
    b_scales_row_stride,
    b_scales_tile_stride,
    GROUPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TURN: tl.constexpr,
    MASKED: tl.constexpr,
):
    index, starts, sizes = _group_starts(group_sizes, groups, GROUPS)
    if MASKED:
        starts = index * capacity
    tiles_n = tl.cdiv(n, BLOCK_N)
    group_tiles = tl.cdiv(sizes, BLOCK_M) * tiles_n
    tile_ends = tl.cumsum(group_tiles, axis=0)
    for tile in range(tl.program_id(0), tl.sum(group_tiles, axis=0), tl.num_programs(0)):
        group = tl.sum((tile_ends <= tile).to(tl.int32), axis=0)
        size = _pick(sizes, index, group)
        start = _pick(starts, index, group)
        within = tile - _pick(tile_ends - group_tiles, index, group)
        block_m, block_n = _tile_at(within, tl.cdiv(size, BLOCK_M), tiles_n, TURN)
        row = block_m * BLOCK_M + tl.arange(0, BLOCK_M)  # within the group
        column = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
        if MASKED:
            a_scales_at = a_scales + group.to(tl.int64) * a_scales_group_stride
            a_scales_at += row * a_scales_row_stride
        else:
            a_scales_at = a_scales + (start + row) * a_scales_row_stride
        b_scales_at = b_scales + group * b_scales_group_stride
        b_scales_at += block_n * BLOCK_N // _TILE * b_scales_row_stride
        total = _promoted_product(
            a,
            b,
            start + block_m * BLOCK_M,
            group * n + block_n * BLOCK_N,
            0,
            k_tiles,
            a_scales_at,
            row < size,
            a_scales_tile_stride,
            b_scales_at,
            column < n,
            b_scales_tile_stride,
            BLOCK_M,
            BLOCK_N,
            False,
        )
        # Rows of the next group that came along in A's tile are computed and not stored.
        target = out + (start + row).to(tl.int64)[:, None] * n + column[None, :]
        inside = (row < size)[:, None] & (column < n)[None, :]
        tl.store(target, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _align_groups_kernel(
    x,  # [columns, rows], bytes
    aligned,  # [columns, 128 tiles]
    group_sizes,
    groups,
    columns,
    x_stride,
    aligned_stride,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0)
    row, filled = _rows_of_tile(tile, group_sizes, groups, GROUPS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (column < columns)[:, None]
    source = x + column.to(tl.int64)[:, None] * x_stride + row[None, :]
    values = tl.load(source, mask=inside & filled[None, :], other=0)
    place = tile * _TILE + tl.arange(0, _TILE)
    target = aligned + column.to(tl.int64)[:, None] * aligned_stride + place[None, :]
    tl.store(target, values, mask=inside)


@triton.jit
def _grouped_weight_grad_kernel(
    a,  # descriptor of [m, 128 tiles], every group beginning at a tile and filled with zeros
    b,  # descriptor of [n, 128 tiles]
    a_scales,  # [m, tiles], column-major
    b_scales,  # [n, tiles], column-major
    group_sizes,
    gradient,  # [groups, m, n]
    groups,
    m,
    n,
    GROUPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TURN: tl.constexpr,
):
    indices, starts, sizes = _group_starts(group_sizes, groups, GROUPS)
    tiles_m, tiles_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    group_tiles = tiles_m * tiles_n
    for tile in range(tl.program_id(0), groups * group_tiles, tl.num_programs(0)):
        group = tile // group_tiles
        size = _pick(sizes, indices, group)
        start = _pick(starts, indices, group)
        if size > 0:
            block_m, block_n = _tile_at(tile % group_tiles, tiles_m, tiles_n, TURN)
            row = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
            column = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
            first_tile = start // _TILE + group
            total = _promoted_product(
                a,
                b,
                block_m * BLOCK_M,
                block_n * BLOCK_N,
                first_tile * _TILE,
                tl.cdiv(size, _TILE),
                a_scales + first_tile * m + row,
                row < m,
                m,
                b_scales + first_tile * n + column,
                column < n,
                n,
                BLOCK_M,
                BLOCK_N,
                True,
            )
            target = group.to(tl.int64) * m * n + row.to(tl.int64)[:, None] * n + column[None, :]
            inside = (row < m)[:, None] & (column < n)[None, :]
            total += tl.load(gradient + target, mask=inside, other=0.0)
            tl.store(gradient + target, total, mask=inside)


class TritonProducts:
    """The matrix products of the backend "triton"."""

    def gemm_fp8(
        self, a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, *, out_dtype: torch.dtype
    ) -> Tensor:
        """See ReferenceKernels.gemm_fp8; k must be a multiple of 16."""
        check_multiple(k=a.shape[1])
        out = a.new_empty((a.shape[0], b.shape[0]), dtype=out_dtype)
        _gemm(a, a_scales, b, b_scales, out, b_in_tiles=False, accumulate=False)
        return out

    def gemm_fp8_weight_grad(
        self, a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, *, gradient: Tensor
    ) -> None:
        """See ReferenceKernels.gemm_fp8_weight_grad; any k, rows begin at multiples of 16."""
        check_multiple(a_row_stride=a.stride(0), b_row_stride=b.stride(0))
        _gemm(a, a_scales, b, b_scales, gradient, b_in_tiles=True, accumulate=True)

    def grouped_gemm_fp8(
        self,
        a: Tensor,
        a_scales: Tensor,
        b: Tensor,
        b_scales: Tensor,
        *,
        group_sizes: Tensor,
        out_dtype: torch.dtype,
    ) -> Tensor:
        """See ReferenceKernels.grouped_gemm_fp8; group_sizes stay on the device, unchecked."""
        return _grouped_gemm(
            a,
            a_scales[None],
            b,
            b_scales,
            group_sizes=group_sizes,
            capacity=None,
            out_dtype=out_dtype,
        )

    def masked_grouped_gemm_fp8(
        self,
        a: Tensor,
        a_scales: Tensor,
        b: Tensor,
        b_scales: Tensor,
        *,
        group_rows: Tensor,
        out_dtype: torch.dtype,
    ) -> Tensor:
        """See ReferenceKernels.masked_grouped_gemm_fp8; group_rows stay on the GPU, unchecked."""
        groups, capacity, _ = a.shape
        out = _grouped_gemm(
            a.flatten(0, 1),
            a_scales,
            b,
            b_scales,
            group_sizes=group_rows,
            capacity=capacity,
            out_dtype=out_dtype,
        )
        return out.view(groups, capacity, -1)

    def grouped_gemm_fp8_weight_grad(
        self,
        a: Tensor,
        a_scales: Tensor,
        b: Tensor,
        b_scales: Tensor,
        *,
        group_sizes: Tensor,
        gradient: Tensor,
    ) -> None:
        """See ReferenceKernels.grouped_gemm_fp8_weight_grad; group_sizes go unchecked.

        They stay on the device. Two kernels copy the operands, so that every group begins at a
        tile, and a third multiplies."""
        check_device(a)
        (m, rows), n, groups = a.shape, b.shape[0], group_sizes.shape[0]
        if not rows:
            return
        a, b = _align_groups(a, group_sizes), _align_groups(b, group_sizes)
        tiles = groups * triton.cdiv(m, _BLOCK_M) * triton.cdiv(n, _BLOCK_N)
        _grouped_weight_grad_kernel[(_programs(a, tiles),)](
            TensorDescriptor.from_tensor(a, [_BLOCK_M, TILE]),
            TensorDescriptor.from_tensor(b, [_BLOCK_N, TILE]),
            _column_major(a_scales),
            _column_major(b_scales),
            group_sizes,
            gradient,
            groups,
            m,
            n,
            GROUPS=triton.next_power_of_2(groups),
            BLOCK_M=_BLOCK_M,
            BLOCK_N=_BLOCK_N,
            TURN=_ROW_BLOCKS_IN_TURN,
            num_warps=4,
            num_stages=_STAGES,
            maxnreg=_WEIGHT_GRAD_REGISTERS,
        )


def _gemm(
    a: Tensor,
    a_scales: Tensor,
    b: Tensor,
    b_scales: Tensor,
    out: Tensor,
    *,
    b_in_tiles: bool,
    accumulate: bool,
) -> None:
    check_device(a)
    (m, k), n = a.shape, b.shape[0]
    a_scales = _column_major(a_scales)
    if b_in_tiles:
        b_scales = _column_major(b_scales)
    if not m:
        return
    tiles = triton.cdiv(m, _BLOCK_M) * triton.cdiv(n, _BLOCK_N)
    _gemm_kernel[(_programs(a, tiles),)](
        TensorDescriptor.from_tensor(a, [_BLOCK_M, TILE]),
        TensorDescriptor.from_tensor(b, [_BLOCK_N, TILE]),
        a_scales,
        b_scales,
        out,
        m,
        n,
        triton.cdiv(k, TILE),
        a_scales.stride(1),
        *b_scales.stride(),
        out.stride(0),
        BLOCK_M=_BLOCK_M,
        BLOCK_N=_BLOCK_N,
        TURN=_ROW_BLOCKS_IN_TURN,
        B_IN_TILES=b_in_tiles,
        ACCUMULATE=accumulate,
        num_warps=4,
        num_stages=_STAGES,
        maxnreg=_WEIGHT_GRAD_REGISTERS if b_in_tiles else None,
    )


def _grouped_gemm(
    a: Tensor,
    a_scales: Tensor,
    b: Tensor,
    b_scales: Tensor,
    *,
    group_sizes: Tensor,
    capacity: int | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """The masked form if there is a capacity, else the contiguous one; a is [rows, k] in both."""
    check_device(a)
    rows, (groups, n, k) = a.shape[0], b.shape
    check_multiple(k=k)
    out = a.new_empty((rows, n), dtype=out_dtype)
    if not rows:
        return out
    if a.is_cuda and capacity is None:
        from reference_model.kernels.gluon_products import multiply_groups

        multiply_groups(
            a, a_scales[0], b, b_scales, group_sizes=group_sizes, out=out,
            processors=_processors(a),
        )  # fmt: skip
        return out
    most_tiles = (triton.cdiv(rows, _BLOCK_M) + groups) * triton.cdiv(n, _BLOCK_N)
    _grouped_gemm_kernel[(_programs(a, most_tiles),)](
        TensorDescriptor.from_tensor(a, [_BLOCK_M, TILE]),
        TensorDescriptor.from_tensor(b.flatten(0, 1), [_BLOCK_N, TILE]),
        a_scales,
        b_scales,
        group_sizes,
        out,
        groups,
        0 if capacity is None else capacity,
        n,
        triton.cdiv(k, TILE),
        a_scales.stride(1),
        a_scales.stride(2),
        a_scales.stride(0),
        *b_scales.stride(),
        GROUPS=triton.next_power_of_2(groups),
        BLOCK_M=_BLOCK_M,
        BLOCK_N=_BLOCK_N,
        TURN=_ROW_BLOCKS_IN_TURN,
        MASKED=capacity is not None,
        num_warps=4,
        num_stages=_STAGES,
    )
    return out


def _align_groups(x: Tensor, group_sizes: Tensor) -> Tensor:
    """x [columns, rows] with group g from row 128 (start_g // 128 + g) on, and zeros between.

    The bulk tensor copy engine stops a kernel that asks it for columns which do not begin at a
    multiple of 16 bytes, and groups begin anywhere."""
    (columns, rows), groups = x.shape, group_sizes.shape[0]
    tiles = triton.cdiv(rows, TILE) + groups - 1
    aligned = x.new_empty((columns, tiles * TILE))
    _align_groups_kernel[tiles, triton.cdiv(columns, _BLOCK_COPIED)](
        x.view(torch.uint8),
        aligned.view(torch.uint8),
        group_sizes,
        groups,
        columns,
        x.stride(0),
        aligned.stride(0),
        GROUPS=triton.next_power_of_2(groups),
        BLOCK=_BLOCK_COPIED,
        num_warps=4,
    )
    return aligned


def _programs(x: Tensor, tiles: int) -> int:
    """Programs to launch: three for each multiprocessor that matrix products may use.

    torch's SM carveout, which cuBLAS obeys as well, sets multiprocessors aside."""
    return min(tiles, _PROGRAMS_PER_SM * (_processors(x) if x.is_cuda else 1))


def _processors(x: Tensor) -> int:
    """Multiprocessors that matrix products may use."""
    set_aside = torch._C._get_sm_carveout_experimental() or 0
    return torch.cuda.get_device_properties(x.device).multi_processor_count - set_aside


def _column_major(scales: Tensor) -> Tensor:
    """Scales with adjacent rows; they come so from quantisation, and a slice may need a copy."""
    return scales if scales.stride(0) == 1 else scales.t().contiguous().t()
