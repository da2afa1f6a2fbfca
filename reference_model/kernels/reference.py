"""DeepSeek-V3's FP8 arithmetic in plain torch, for any device.

These functions define the numerics; the Triton kernels and the library path are held against
them. They follow the DeepSeek-V3 technical report, section 3.3 (arXiv:2412.19437): E4M3
everywhere, one float32 scale for each 1x128 tile of an activation and each 128x128 block of a
weight, and accumulation in float32 every 128 elements of K.

Shapes. A matrix of [rows, columns] in 1x128 tiles has scales [rows, ceil(columns / 128)]; in
128x128 blocks [ceil(rows / 128), ceil(columns / 128)]. A last tile may be narrower than 128: it
is a tile of what is left, nothing is padded in memory. Tile scales are stored column by column
(strides (1, rows)), as Hopper's GEMM kernels read them; block scales are row-major, in rows that
begin at multiples of 16 bytes (`SCALE_ROW`).
"""

import torch
from torch import Tensor
from torch.nn import functional

TILE = 128
"""Elements along K that share a scale, and rows of a weight block (Report, section 3.3.2)."""

TRANSFER = 16
"""FP8 elements of one memory transfer of 16 bytes: rows of an operand begin at multiples of it."""

SCALE_ROW = 4
"""Rows of block scales begin at multiples of so many float32 values: 16 bytes, as cuBLAS reads
them. Between the blocks of a row and the next multiple lie zeros."""

E4M3_MAX = 448.0
"""Largest finite value of torch.float8_e4m3fn."""

_MIN_SCALE = 2.0**-126
"""Smallest normal float32: a tile of zeros has this scale and still divides."""


def round_to_e4m3(x: Tensor) -> Tensor:
    """Round to the nearest E4M3 value, ties to even, saturating at 448, as float32.

    The result is exact in E4M3, so every later cast to float8_e4m3fn is exact too: torch, Triton
    on a GPU and Triton's interpreter round and overflow differently, and none gets to choose.
    """
    x = x.float()
    # |x| = mantissa * 2^exponent with mantissa in [0.5, 1): 3 stored mantissa bits make the
    # step 2^(exponent - 4). Below 2^-6 E4M3 is subnormal and the step stays 2^-9.
    _, exponent = torch.frexp(x)
    step = torch.ldexp(torch.ones_like(x), exponent.clamp(min=-5) - 4)
    return (torch.round(x / step) * step).clamp(-E4M3_MAX, E4M3_MAX)


def scale_of(amax: Tensor, *, power_of_two_scales: bool) -> Tensor:
    """Scale that maps a tile's largest magnitude onto 448, rounded up to 2^n if asked; float32."""
    scale = (amax.float() / E4M3_MAX).clamp(min=_MIN_SCALE)
    if not power_of_two_scales:
        return scale
    # Adding all mantissa bits carries into the exponent unless the mantissa is already zero.
    bits = scale.view(torch.int32)
    return ((bits + 0x7FFFFF) & 0x7F800000).view(torch.float32)


class ReferenceKernels:
    """The FP8 kernels in plain torch; what each computes, every backend computes."""

    def quantize_tiles(self, x: Tensor, *, power_of_two_scales: bool) -> tuple[Tensor, Tensor]:
        """Quantise x [rows, columns] in 1x128 tiles; returns E4M3 [rows, columns], scales as
        above."""
        rows, columns = x.shape
        tiles = _tiled(x.float())  # [rows, tiles, 128]
        scales = scale_of(tiles.abs().amax(dim=2), power_of_two_scales=power_of_two_scales)
        quantized = round_to_e4m3(tiles / scales[:, :, None])
        quantized = quantized.reshape(rows, -1)[:, :columns].contiguous()
        return quantized.to(torch.float8_e4m3fn), _column_major(scales)

    def quantize_tiles_transposed(
        self, x: Tensor, *, group_sizes: Tensor | None, power_of_two_scales: bool
    ) -> tuple[Tensor, Tensor]:
        """Quantise x [rows, columns] in 128x1 tiles; returns E4M3 x^T [columns, rows] and its
        scales.

        A weight gradient contracts over rows, so its operands are tiled along them. Rows are sorted
        by group (expert) and tiles restart at each group, whatever its size; group_sizes is int32
        [groups] and sums to rows (None for a dense GEMM: all rows are one group). Scales are
        [columns, ceil(rows / 128) + groups - 1]: group g begins at tile start_row // 128 + g, so
        the shape does not depend on the routing; the tiles that no group fills hold zero.
        """
        rows, columns = x.shape
        sizes = [rows] if group_sizes is None else _group_sizes(group_sizes, rows)
        quantized = x.new_empty((columns, rows), dtype=torch.float8_e4m3fn)
        tiles = -(-rows // TILE) + len(sizes) - 1
        scales = x.new_zeros((tiles, columns), dtype=torch.float32).t()
        start = 0
        for group, size in enumerate(sizes):
            if size:
                part, part_scales = self.quantize_tiles(
                    x[start : start + size].t(), power_of_two_scales=power_of_two_scales
                )
                first = start // TILE + group
                quantized[:, start : start + size] = part
                scales[:, first : first + part_scales.shape[1]] = part_scales
            start += size
        return quantized, scales

    def requantize_tiles_transposed(
        self,
        q: Tensor,
        scales: Tensor,
        *,
        row_source: Tensor | None,
        group_sizes: Tensor | None,
        power_of_two_scales: bool,
    ) -> tuple[Tensor, Tensor]:
        """Apply quantize_tiles_transposed to what quantize_tiles gave: q [tokens, columns], its
        scales.

        Row r of the input is q[row_source[r]], int32 [rows], or q[r] if None: expanding received
        tokens to rows of experts, transposing and quantising along rows are one pass over memory.
        """
        x = self.dequantize_tiles(q, scales, dtype=torch.float32)
        if row_source is not None:
            x = x[row_source.long()]
        return self.quantize_tiles_transposed(
            x, group_sizes=group_sizes, power_of_two_scales=power_of_two_scales
        )

    def quantize_blocks(self, w: Tensor, *, power_of_two_scales: bool) -> tuple[Tensor, Tensor]:
        """Quantise w [..., rows, columns] in 128x128 blocks; returns E4M3 like w, and block
        scales."""
        rows, columns = w.shape[-2:]
        padded = functional.pad(w.float(), (0, -columns % TILE, 0, -rows % TILE))
        row_blocks, column_blocks = padded.shape[-2] // TILE, padded.shape[-1] // TILE
        blocks = padded.view(*w.shape[:-2], row_blocks, TILE, column_blocks, TILE)
        scales = scale_of(blocks.abs().amax(dim=(-3, -1)), power_of_two_scales=power_of_two_scales)
        quantized = round_to_e4m3(blocks / scales[..., :, None, :, None])
        quantized = quantized.reshape(padded.shape)[..., :rows, :columns].contiguous()
        return quantized.to(torch.float8_e4m3fn), aligned_scale_rows(scales)

    def quantize_weight(
        self, w: Tensor, *, values: Tensor, scales: Tensor, turned_scales: Tensor
    ) -> None:
        """Put what quantize_blocks makes of w [..., rows, columns], with any scales, into values
        and scales, and the scales of the transpose into turned_scales."""
        quantized, found = self.quantize_blocks(w, power_of_two_scales=False)
        # Moved as bytes: not every torch has copy kernels for FP8.
        values.view(torch.uint8).copy_(quantized.view(torch.uint8))
        scales.copy_(found)
        turned_scales.copy_(found.mT)

    def dequantize_tiles(self, q: Tensor, scales: Tensor, *, dtype: torch.dtype) -> Tensor:
        """Undo quantize_tiles of q [rows, columns], scales [rows, ceil(columns / 128)]; returns
        dtype."""
        return (q.float() * _spread(scales, 1, q.shape[1])).to(dtype)

    def dequantize_blocks(self, q: Tensor, scales: Tensor, *, dtype: torch.dtype) -> Tensor:
        """Undo quantize_blocks of q [..., rows, columns] and its block scales; returns dtype."""
        spread = _spread(_spread(scales, -1, q.shape[-1]), -2, q.shape[-2])
        return (q.float() * spread).to(dtype)

    def gemm_fp8(
        self, a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, *, out_dtype: torch.dtype
    ) -> Tensor:
        """Multiply D = A B^T: A [m, k] in 1x128 tiles, B [n, k] in 128x128 blocks; returns D
        [m, n].

        Forward: A is the activation, B the weight. Input gradient: A is the output gradient, B the
        transposed weight (its block scales transposed with it).
        """
        return _promoted(a, a_scales, b, _spread(b_scales, 0, b.shape[0])).to(out_dtype)

    def gemm_fp8_weight_grad(
        self, a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, *, gradient: Tensor
    ) -> None:
        """Add A B^T into gradient [m, n] in float32; A [m, k], B [n, k], both in 1x128 tiles along
        k.

        m are output features, n input features and k tokens: A and B come from
        quantize_tiles_transposed of the output gradient and of the input.
        """
        gradient += _promoted(a, a_scales, b, b_scales)

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
        """Multiply rows of A [rows, k], contiguous by group, by B[group]^T; returns [rows, n].

        B is [groups, n, k] in 128x128 blocks, scales [groups, ceil(n / 128), ceil(k / 128)];
        group_sizes is int32 [groups] and sums to rows. Groups need no padding.
        """
        out = a.new_empty((a.shape[0], b.shape[1]), dtype=out_dtype)
        start = 0
        for group, size in enumerate(_group_sizes(group_sizes, a.shape[0])):
            part = slice(start, start + size)
            out[part] = self.gemm_fp8(
                a[part], a_scales[part], b[group], b_scales[group], out_dtype=out_dtype
            )
            start += size
        return out

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
        """Masked grouped GEMM: the first group_rows[g] rows of A[g] [capacity, k] times B[g]^T.

        A [groups, capacity, k] with scales [groups, capacity, ceil(k / 128)], B as in
        grouped_gemm_fp8 -> [groups, capacity, n]. The shape never depends on the routing, so a
        decode step can be captured in a CUDA graph. Rows from group_rows[g] on are unspecified.
        """
        groups, capacity, _ = a.shape
        out = a.new_zeros((groups, capacity, b.shape[1]), dtype=out_dtype)
        for group, rows in enumerate(group_rows.tolist()):
            if not 0 <= rows <= capacity:
                raise ValueError(
                    f"group_rows[{group}] = {rows}: allowed 0 to {capacity}, the capacity"
                )
            out[group, :rows] = self.gemm_fp8(
                a[group, :rows],
                a_scales[group, :rows],
                b[group],
                b_scales[group],
                out_dtype=out_dtype,
            )
        return out

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
        """Add A[:, rows of g] B[:, rows of g]^T into gradient[g] [m, n] in float32, for every group
        g.

        A [m, rows], B [n, rows] and their scales come from quantize_tiles_transposed with the same
        group_sizes; gradient is float32 [groups, m, n].
        """
        start = 0
        for group, size in enumerate(_group_sizes(group_sizes, a.shape[1])):
            if size:
                first = start // TILE + group
                rows, tiles = slice(start, start + size), slice(first, first - (-size // TILE))
                self.gemm_fp8_weight_grad(
                    a[:, rows],
                    a_scales[:, tiles],
                    b[:, rows],
                    b_scales[:, tiles],
                    gradient=gradient[group],
                )
            start += size

    def swiglu_quantize(
        self, gate_up: Tensor, *, power_of_two_scales: bool
    ) -> tuple[Tensor, Tensor]:
        """SwiGLU of gate_up [rows, 2 * intermediate], quantised without a BF16 copy."""
        return self.quantize_tiles(swiglu_float32(gate_up), power_of_two_scales=power_of_two_scales)

    def weighted_swiglu_quantize(
        self, gate_up: Tensor, row_weights: Tensor, *, power_of_two_scales: bool
    ) -> tuple[Tensor, Tensor]:
        """The same, each row times its routing weight, float32 [rows]."""
        return self.quantize_tiles(
            swiglu_float32(gate_up) * row_weights[:, None], power_of_two_scales=power_of_two_scales
        )

    def swiglu_quantize_transposed(
        self, gate_up: Tensor, *, power_of_two_scales: bool
    ) -> tuple[Tensor, Tensor]:
        """SwiGLU of gate_up [rows, 2 * intermediate] as quantize_tiles_transposed of one group."""
        return self.quantize_tiles_transposed(
            swiglu_float32(gate_up), group_sizes=None, power_of_two_scales=power_of_two_scales
        )


def aligned_scale_rows(scales: Tensor) -> Tensor:
    """Block scales [..., row blocks, column blocks] with rows that begin at multiples of 4."""
    room = empty_scale_rows(scales, *scales.shape)
    room.copy_(scales)
    return room


def empty_scale_rows(like: Tensor, *shape: int) -> Tensor:
    """Float32 zeros of this shape on a tensor's device, with rows that begin at multiples of 4."""
    *leading, columns = shape
    room = like.new_zeros((*leading, columns + -columns % SCALE_ROW), dtype=torch.float32)
    return room[..., :columns]


def swiglu_float32(gate_up: Tensor) -> Tensor:
    """Compute silu(gate) * up in float32, of gate_up [rows, 2 * intermediate], gate first."""
    gate, up = gate_up.float().chunk(2, dim=1)
    return functional.silu(gate) * up


def _promoted(a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor) -> Tensor:
    """A B^T in float32, each 128 of K summed and scaled on its own; scales [m or n, k tiles]."""
    total = a.new_zeros((a.shape[0], b.shape[0]), dtype=torch.float32)
    for tile, start in enumerate(range(0, a.shape[1], TILE)):
        k = slice(start, start + TILE)
        scale = a_scales[:, tile, None] * b_scales[None, :, tile]  # [m, n]
        total += (a[:, k].float() @ b[:, k].float().t()) * scale
    return total


def _tiled(x: Tensor) -> Tensor:
    """[rows, columns] -> [rows, tiles, 128], the last tile filled up with zeros."""
    padded = functional.pad(x, (0, -x.shape[1] % TILE))
    return padded.view(x.shape[0], -1, TILE)


def _spread(scales: Tensor, dim: int, size: int) -> Tensor:
    """Repeat each scale over its 128 elements of dim, cut to size."""
    return scales.repeat_interleave(TILE, dim=dim).narrow(dim, 0, size)


def _column_major(scales: Tensor) -> Tensor:
    """The same values with strides (1, rows)."""
    return scales.t().contiguous().t()


def _group_sizes(group_sizes: Tensor, rows: int) -> list[int]:
    """Sizes of the groups on the host; they must cover every row."""
    sizes: list[int] = group_sizes.tolist()
    if min(sizes, default=0) < 0 or sum(sizes) != rows:
        raise ValueError(
            f"group_sizes {sizes}: {rows} rows need sizes that are not negative and sum to {rows}"
        )
    return sizes


KERNELS = ReferenceKernels()
