# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""Quantisation to E4M3 and back as Triton kernels.

One program quantises one or a few tiles, so a tile is read once and its scale never leaves the
chip. Values are rounded to the E4M3 grid in float32 before the cast, which is then exact: Triton's
interpreter casts without rounding or saturating, and the numbers must not depend on who runs it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from reference_model.kernels.device import check_device
from reference_model.kernels.reference import TILE, TRANSFER, empty_scale_rows

_TILE = tl.constexpr(TILE)
_SMALLEST_SCALE = tl.constexpr(2.0**-126)
_ROWS = 32
"""Rows of 1x128 tiles that one program quantises: 8 KiB of bfloat16 in flight."""
_COLUMNS = 32
"""Columns of 128x1 tiles that one program quantises; within one source tile, so one scale a row."""
_WARPS = 4


@triton.jit
def _round_to_e4m3(x):
    """Nearest E4M3 value, ties to even, saturating at 448; float32 in and out."""
    magnitude = tl.abs(x)
    # Adding 2^(e + 20), where 2^e <= |x| < 2^(e + 1), leaves exactly 3 mantissa bits and rounds
    # the rest away; subtracting it again is exact. Below 2^-6 (biased 121) the step stays 2^-9.
    exponent = tl.maximum(magnitude.to(tl.int32, bitcast=True) >> 23, 121)
    exponent = tl.minimum(exponent, 200)  # NaN and infinity: whatever keeps the shift finite
    shift = ((exponent + 20) << 23).to(tl.float32, bitcast=True)
    rounded = tl.minimum((magnitude + shift) - shift, 448.0, tl.PropagateNan.ALL)
    return tl.where(x < 0, -rounded, rounded)


@triton.jit
def _scale_of(amax, POWER_OF_TWO: tl.constexpr):
    """amax / 448 as float32, never below the smallest normal number, rounded up to 2^n if asked."""
    scale = tl.maximum(tl.div_rn(amax, tl.full(amax.shape, 448.0, tl.float32)), _SMALLEST_SCALE)
    if POWER_OF_TWO:
        scale = ((scale.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000).to(
            tl.float32, bitcast=True
        )
    return scale


@triton.jit
def _swiglu(gate, up):
    """silu(gate) * up in float32."""
    gate = gate.to(tl.float32)
    return gate * tl.sigmoid(gate) * up.to(tl.float32)


@triton.jit
def _quantize_tiles_kernel(
    x,  # [rows, columns], or [rows, 2 columns] with gate first if SWIGLU
    row_weights,  # [rows] float32, read if WEIGHTED
    quantized,  # [rows, columns]
    scales,  # [rows, tiles], column-major
    rows,
    columns,
    x_row_stride,
    group_rows,  # [rows / capacity] filled rows of each group, read if MASKED
    capacity,
    BLOCK_ROWS: tl.constexpr,
    SWIGLU: tl.constexpr,
    WEIGHTED: tl.constexpr,
    MASKED: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * _TILE + tl.arange(0, _TILE)
    filled = row < rows
    if MASKED:
        filled &= row % capacity < tl.load(group_rows + row // capacity, mask=filled, other=0)
    inside = filled[:, None] & (column < columns)[None, :]
    source = x + row.to(tl.int64)[:, None] * x_row_stride + column[None, :]
    tile = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    if SWIGLU:
        tile = _swiglu(tile, tl.load(source + columns, mask=inside, other=0.0))
    if WEIGHTED:
        tile *= tl.load(row_weights + row, mask=filled, other=0.0)[:, None]
    scale = _scale_of(tl.max(tl.abs(tile), axis=1), POWER_OF_TWO)
    tile = _round_to_e4m3(tl.div_rn(tile, tl.broadcast_to(scale[:, None], tile.shape)))
    target = quantized + row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(target, tile.to(tl.float8e4nv), mask=inside)
    tl.store(scales + tl.program_id(1) * rows + row, scale, mask=filled)


@triton.jit
def _group_starts(group_sizes, groups, GROUPS: tl.constexpr):
    """Indices [GROUPS], first rows and sizes of the groups; GROUPS is a power of two >= groups."""
    index = tl.arange(0, GROUPS)
    sizes = tl.load(group_sizes + index, mask=index < groups, other=0)
    return index, tl.cumsum(sizes, axis=0) - sizes, sizes


@triton.jit
def _pick(values, index, wanted):
    """values[wanted] of a vector held in registers."""
    return tl.sum(tl.where(index == wanted, values, 0), axis=0)


@triton.jit
def _rows_of_tile(tile_index, group_sizes, groups, GROUPS: tl.constexpr):
    """Rows [128] of a tile of rows, and which of them it holds; tiles restart at each group."""
    index, starts, sizes = _group_starts(group_sizes, groups, GROUPS)
    first_tiles = starts // _TILE + index
    group = tl.sum(((first_tiles <= tile_index) & (index < groups)).to(tl.int32), axis=0) - 1
    offset = (tile_index - _pick(first_tiles, index, group)) * _TILE + tl.arange(0, _TILE)
    return _pick(starts, index, group) + offset, offset < _pick(sizes, index, group)


@triton.jit
def _rows_of_whole(tile_index, rows):
    """The same where all rows are one group."""
    row = tile_index * _TILE + tl.arange(0, _TILE)
    return row, row < rows


@triton.jit
def _quantize_tiles_transposed_kernel(
    x,  # [source rows, columns], or [source rows, 2 columns] with gate first if SWIGLU
    x_scales,  # [source rows, tiles], read if SCALED
    row_source,  # [rows] int32, the source row of each row, read if GATHER
    group_sizes,  # [groups] int32, read if GROUPS
    quantized,  # [columns, rows]
    scales,  # [columns, row tiles], column-major
    rows,
    columns,
    groups,
    x_row_stride,
    x_scales_row_stride,
    x_scales_tile_stride,
    quantized_stride,
    GROUPS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    SCALED: tl.constexpr,
    GATHER: tl.constexpr,
    SWIGLU: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
):
    tile_index = tl.program_id(0)
    if GROUPS:
        row, filled = _rows_of_tile(tile_index, group_sizes, groups, GROUPS)
    else:
        row, filled = _rows_of_whole(tile_index, rows)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = filled[:, None] & (column < columns)[None, :]
    source_row = row
    if GATHER:
        source_row = tl.load(row_source + row, mask=filled, other=0)
    source_row = source_row.to(tl.int64)
    source = x + source_row[:, None] * x_row_stride + column[None, :]
    tile = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    if SWIGLU:
        tile = _swiglu(tile, tl.load(source + columns, mask=inside, other=0.0))
    if SCALED:
        # BLOCK_COLUMNS divides 128: the whole block lies in one source tile.
        source_tile = tl.program_id(1) * BLOCK_COLUMNS // _TILE
        source_scales = x_scales + source_row * x_scales_row_stride
        scale = tl.load(source_scales + source_tile * x_scales_tile_stride, mask=filled, other=0.0)
        tile *= scale[:, None]

    scale = _scale_of(tl.max(tl.abs(tile), axis=0), POWER_OF_TWO)
    tile = _round_to_e4m3(tl.div_rn(tile, tl.broadcast_to(scale[None, :], tile.shape)))
    target = quantized + column.to(tl.int64)[:, None] * quantized_stride + row[None, :]
    tl.store(target, tl.trans(tile.to(tl.float8e4nv)), mask=tl.trans(inside))
    unused = tl.max(filled.to(tl.int32), axis=0) == 0
    scale = tl.where(unused, 0.0, scale)
    tl.store(scales + tile_index * columns + column, scale, mask=column < columns)


@triton.jit
def _quantize_blocks_kernel(
    w,  # [groups, rows, columns], strided
    quantized,
    scales,  # [groups, row blocks, column blocks], rows `room` apart
    turned_scales,  # [groups, column blocks, row blocks], rows `turned_room` apart, if TURNED
    rows,
    columns,
    room,
    turned_room,
    group_stride,
    row_stride,
    column_stride,
    POWER_OF_TWO: tl.constexpr,
    TURNED: tl.constexpr,
):
    row = tl.program_id(1) * _TILE + tl.arange(0, _TILE)
    column = tl.program_id(2) * _TILE + tl.arange(0, _TILE)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    group = tl.program_id(0).to(tl.int64)
    source = w + group * group_stride + row.to(tl.int64)[:, None] * row_stride
    source += column.to(tl.int64)[None, :] * column_stride
    block = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    offset = (group * rows + row)[:, None] * columns + column[None, :]
    amax = tl.max(tl.max(tl.abs(block), axis=1, keep_dims=True), axis=0, keep_dims=True)
    scale = _scale_of(amax, POWER_OF_TWO)  # [1, 1]
    block = _round_to_e4m3(tl.div_rn(block, tl.broadcast_to(scale, block.shape)))
    tl.store(quantized + offset, block.to(tl.float8e4nv), mask=inside)
    target = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * room
    one = tl.arange(0, 1)
    tl.store(scales + target + tl.program_id(2) + one[:, None] + one[None, :], scale)
    if TURNED:
        place = (tl.program_id(0) * tl.num_programs(2) + tl.program_id(2)) * turned_room
        tl.store(turned_scales + place + tl.program_id(1) + one[:, None] + one[None, :], scale)


@triton.jit
def _dequantize_kernel(
    quantized,  # [groups, rows, columns]
    scales,
    out,
    rows,
    columns,
    scales_group_stride,
    scales_row_stride,
    scales_tile_stride,
    BLOCK_ROWS: tl.constexpr,
    ROWS_PER_SCALE: tl.constexpr,
):
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(2) * _TILE + tl.arange(0, _TILE)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    offset = (tl.program_id(0).to(tl.int64) * rows + row)[:, None] * columns + column[None, :]
    tile = tl.load(quantized + offset, mask=inside, other=0.0).to(tl.float32)
    position = row // ROWS_PER_SCALE * scales_row_stride + tl.program_id(2) * scales_tile_stride
    source = scales + tl.program_id(0) * scales_group_stride + position
    scale = tl.load(source, mask=row < rows, other=0.0)
    tl.store(out + offset, (tile * scale[:, None]).to(out.dtype.element_ty), mask=inside)


class TritonCasts:
    """The quantisation of the backend "triton"."""

    def quantize_tiles(self, x: Tensor, *, power_of_two_scales: bool) -> tuple[Tensor, Tensor]:
        """See ReferenceKernels.quantize_tiles."""
        return _quantize_rows(x, None, swiglu=False, power_of_two_scales=power_of_two_scales)

    def swiglu_quantize(
        self, gate_up: Tensor, *, power_of_two_scales: bool
    ) -> tuple[Tensor, Tensor]:
        """See ReferenceKernels.swiglu_quantize."""
        return _quantize_rows(gate_up, None, swiglu=True, power_of_two_scales=power_of_two_scales)

    def weighted_swiglu_quantize(
        self, gate_up: Tensor, row_weights: Tensor, *, power_of_two_scales: bool
    ) -> tuple[Tensor, Tensor]:
        """See ReferenceKernels.weighted_swiglu_quantize."""
        return _quantize_rows(
            gate_up, row_weights, swiglu=True, power_of_two_scales=power_of_two_scales
        )

    def quantize_tiles_transposed(
        self, x: Tensor, *, group_sizes: Tensor | None, power_of_two_scales: bool
    ) -> tuple[Tensor, Tensor]:
        """See ReferenceKernels.quantize_tiles_transposed; wrong group_sizes go unnoticed."""
        return _quantize_columns(
            x,
            None,
            None,
            group_sizes=group_sizes,
            swiglu=False,
            power_of_two_scales=power_of_two_scales,
        )

    def requantize_tiles_transposed(
        self,
        q: Tensor,
        scales: Tensor,
        *,
        row_source: Tensor | None,
        group_sizes: Tensor | None,
        power_of_two_scales: bool,
    ) -> tuple[Tensor, Tensor]:
        """See ReferenceKernels.requantize_tiles_transposed."""
        return _quantize_columns(
            q,
            scales,
            row_source,
            group_sizes=group_sizes,
            swiglu=False,
            power_of_two_scales=power_of_two_scales,
        )

    def swiglu_quantize_transposed(
        self, gate_up: Tensor, *, power_of_two_scales: bool
    ) -> tuple[Tensor, Tensor]:
        """See ReferenceKernels.swiglu_quantize_transposed."""
        return _quantize_columns(
            gate_up,
            None,
            None,
            group_sizes=None,
            swiglu=True,
            power_of_two_scales=power_of_two_scales,
        )

    def quantize_blocks(self, w: Tensor, *, power_of_two_scales: bool) -> tuple[Tensor, Tensor]:
        """See ReferenceKernels.quantize_blocks; reads transposed weights where they lie."""
        quantized = w.new_empty(w.shape, dtype=torch.float8_e4m3fn)
        blocks = (triton.cdiv(extent, TILE) for extent in w.shape[-2:])
        scales = empty_scale_rows(w, *w.shape[:-2], *blocks)
        _quantize_blocks(w, quantized, scales, None, power_of_two_scales=power_of_two_scales)
        return quantized, scales

    def quantize_weight(
        self, w: Tensor, *, values: Tensor, scales: Tensor, turned_scales: Tensor
    ) -> None:
        """See ReferenceKernels.quantize_weight; everything in one kernel."""
        _quantize_blocks(w, values, scales, turned_scales, power_of_two_scales=False)

    def dequantize_tiles(self, q: Tensor, scales: Tensor, *, dtype: torch.dtype) -> Tensor:
        """See ReferenceKernels.dequantize_tiles."""
        return _dequantize(q, scales[None], rows_per_scale=1, dtype=dtype)

    def dequantize_blocks(self, q: Tensor, scales: Tensor, *, dtype: torch.dtype) -> Tensor:
        """See ReferenceKernels.dequantize_blocks."""
        flat = scales.reshape(-1, *scales.shape[-2:])
        return _dequantize(q, flat, rows_per_scale=TILE, dtype=dtype)


def _quantize_blocks(
    w: Tensor,
    quantized: Tensor,
    scales: Tensor,
    turned_scales: Tensor | None,
    *,
    power_of_two_scales: bool,
) -> None:
    """Quantise w [..., rows, columns], which may be transposed, into what is given, scales with
    `empty_scale_rows`."""
    check_device(w)
    rows, columns = w.shape[-2:]
    source = w.reshape(-1, rows, columns)
    blocks = (triton.cdiv(rows, TILE), triton.cdiv(columns, TILE))
    turned = scales if turned_scales is None else turned_scales
    _quantize_blocks_kernel[source.shape[0], *blocks](
        source, quantized, scales, turned, rows, columns, scales.stride(-2), turned.stride(-2),
        *source.stride(),
        POWER_OF_TWO=power_of_two_scales, TURNED=turned_scales is not None, num_warps=8,
    )  # fmt: skip


def masked_swiglu_quantize(
    gate_up: Tensor, *, group_rows: Tensor, power_of_two_scales: bool
) -> tuple[Tensor, Tensor]:
    """Run swiglu_quantize on the first group_rows[g] of gate_up [groups, capacity, 2 columns];
    returns [groups, capacity, columns] and [groups, capacity, tiles]; the rest is unspecified."""
    groups, capacity, _ = gate_up.shape
    values, scales = _quantize_rows(
        gate_up.flatten(0, 1),
        None,
        swiglu=True,
        power_of_two_scales=power_of_two_scales,
        group_rows=group_rows,
    )
    # The scales of all rows lie tile after tile: a view by group is [groups, capacity, tiles].
    by_group = scales.t().view(-1, groups, capacity).permute(1, 2, 0)
    return values.view(groups, capacity, -1), by_group


def _quantize_rows(
    x: Tensor,
    row_weights: Tensor | None,
    *,
    swiglu: bool,
    power_of_two_scales: bool,
    group_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    check_device(x)
    x = _unit_stride(x)
    rows, columns = x.shape[0], x.shape[1] // (2 if swiglu else 1)
    tiles = triton.cdiv(columns, TILE)
    quantized = x.new_empty((rows, columns), dtype=torch.float8_e4m3fn)
    scales = x.new_empty((tiles, rows), dtype=torch.float32).t()
    if rows:
        _quantize_tiles_kernel[triton.cdiv(rows, _ROWS), tiles](
            x,
            x if row_weights is None else row_weights,
            quantized,
            scales,
            rows,
            columns,
            x.stride(0),
            x if group_rows is None else group_rows,
            1 if group_rows is None else rows // group_rows.shape[0],
            BLOCK_ROWS=_ROWS,
            SWIGLU=swiglu,
            WEIGHTED=row_weights is not None,
            MASKED=group_rows is not None,
            POWER_OF_TWO=power_of_two_scales,
            num_warps=4,
        )
    return quantized, scales


def _quantize_columns(
    x: Tensor,
    x_scales: Tensor | None,
    row_source: Tensor | None,
    *,
    group_sizes: Tensor | None,
    swiglu: bool,
    power_of_two_scales: bool,
) -> tuple[Tensor, Tensor]:
    check_device(x)
    x = _unit_stride(x)
    rows = x.shape[0] if row_source is None else row_source.shape[0]
    columns = x.shape[1] // (2 if swiglu else 1)
    groups = 1 if group_sizes is None else group_sizes.shape[0]
    tiles = triton.cdiv(rows, TILE) + groups - 1
    # Rows of the result begin at multiples of 16 bytes, which the bulk tensor copy engine needs.
    room = triton.cdiv(rows, TRANSFER) * TRANSFER
    quantized = x.new_empty((columns, room), dtype=torch.float8_e4m3fn)[:, :rows]
    scales = x.new_empty((tiles, columns), dtype=torch.float32).t()
    if rows:
        _quantize_tiles_transposed_kernel[tiles, triton.cdiv(columns, _COLUMNS)](
            x,
            x if x_scales is None else x_scales,
            x if row_source is None else row_source,
            x if group_sizes is None else group_sizes,
            quantized,
            scales,
            rows,
            columns,
            groups,
            x.stride(0),
            0 if x_scales is None else x_scales.stride(0),
            0 if x_scales is None else x_scales.stride(1),
            quantized.stride(0),
            GROUPS=0 if group_sizes is None else triton.next_power_of_2(groups),
            BLOCK_COLUMNS=_COLUMNS,
            SCALED=x_scales is not None,
            GATHER=row_source is not None,
            SWIGLU=swiglu,
            POWER_OF_TWO=power_of_two_scales,
            num_warps=_WARPS,
        )
    return quantized, scales


def _dequantize(q: Tensor, scales: Tensor, *, rows_per_scale: int, dtype: torch.dtype) -> Tensor:
    check_device(q)
    q = q.contiguous()
    rows, columns = q.shape[-2:]
    out = torch.empty_like(q, dtype=dtype)
    if rows:
        _dequantize_kernel[scales.shape[0], triton.cdiv(rows, _ROWS), triton.cdiv(columns, TILE)](
            q,
            scales,
            out,
            rows,
            columns,
            *scales.stride(),
            BLOCK_ROWS=_ROWS,
            ROWS_PER_SCALE=rows_per_scale,
            num_warps=4,
        )
    return out


def _unit_stride(x: Tensor) -> Tensor:
    """x itself if its columns are adjacent in memory, else a contiguous copy."""
    return x if x.stride(1) == 1 else x.contiguous()
