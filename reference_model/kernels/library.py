"""The backend "library": block-scaled GEMMs by cuBLAS through torch, the rest by Triton.

torch.nn.functional.scaled_mm multiplies 1x128 tiles by 128x128 blocks or by 1x128 tiles with
promoted accumulation, on Hopper only. It has no grouped form with such scales and does not add
into its output, so a grouped GEMM is one call for each group, which reads the group sizes on the
host, and a weight gradient is a GEMM and an addition. Quantisation has no library form: those
functions are the Triton ones.

cuBLAS takes row counts that are multiples of 4 and, along K, multiples of 16 elements: rows and K
of a group that are not are copied and filled up with zeros.
"""

import torch
from torch import Tensor
from torch.nn import functional

from reference_model.kernels.device import check_device, check_multiple
from reference_model.kernels.reference import SCALE_ROW, TILE, aligned_scale_rows
from reference_model.kernels.triton_backend import TritonKernels

_ROW_MULTIPLE = 4
_K_MULTIPLE = 16
_TILES = functional.ScalingType.BlockWise1x128
_BLOCKS = functional.ScalingType.BlockWise128x128


class LibraryKernels(TritonKernels):
    """Products by cuBLAS, all else by Triton."""

    def gemm_fp8(
        self, a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, *, out_dtype: torch.dtype
    ) -> Tensor:
        """See ReferenceKernels.gemm_fp8; k must be a multiple of 16."""
        _check(a)
        check_multiple(k=a.shape[1])
        m = a.shape[0]
        if not m:
            return a.new_empty((0, b.shape[0]), dtype=out_dtype)
        if m % _ROW_MULTIPLE:
            a, a_scales = (
                _fill(a, rows=-m % _ROW_MULTIPLE),
                _fill(a_scales, rows=-m % _ROW_MULTIPLE),
            )
        return functional.scaled_mm(
            a,
            b.t(),
            _column_major(a_scales),
            _TILES,
            _block_scales(b_scales),
            _BLOCKS,
            output_dtype=out_dtype,
        )[:m]

    def gemm_fp8_weight_grad(
        self, a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, *, gradient: Tensor
    ) -> None:
        """See ReferenceKernels.gemm_fp8_weight_grad; two kernels, the GEMM and the addition."""
        _check(a)
        gradient += tile_product(a, a_scales, b, b_scales)

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
        """See ReferenceKernels.grouped_gemm_fp8; one GEMM for each group that has rows."""
        _check(a)
        check_multiple(k=a.shape[1])
        out = a.new_empty((a.shape[0], b.shape[1]), dtype=out_dtype)
        start = 0
        for group, size in enumerate(_host_sizes(group_sizes, a.shape[0])):
            rows = slice(start, start + size)
            if size % _ROW_MULTIPLE:
                out[rows] = self.gemm_fp8(
                    a[rows], a_scales[rows], b[group], b_scales[group], out_dtype=out_dtype
                )
            elif size:
                _gemm_into(out[rows], a[rows], a_scales[rows], b[group], b_scales[group])
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
        """See ReferenceKernels.masked_grouped_gemm_fp8; computes every row of the capacity.

        group_rows stay on the device, so that the calls can be captured in a CUDA graph; the
        capacity must be a multiple of 4."""
        _check(a)
        groups, capacity, k = a.shape
        check_multiple(k=k)
        if capacity % _ROW_MULTIPLE:
            raise ValueError(f"capacity = {capacity}: backend 'library' allows multiples of 4")
        out = a.new_empty((groups, capacity, b.shape[1]), dtype=out_dtype)
        for group in range(groups):
            _gemm_into(out[group], a[group], a_scales[group], b[group], b_scales[group])
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
        """See ReferenceKernels.grouped_gemm_fp8_weight_grad; a GEMM and an addition per group."""
        _check(a)
        start = 0
        for group, size in enumerate(_host_sizes(group_sizes, a.shape[1])):
            if size:
                first = start // TILE + group
                rows, tiles = slice(start, start + size), slice(first, first - (-size // TILE))
                gradient[group] += tile_product(
                    a[:, rows], a_scales[:, tiles], b[:, rows], b_scales[:, tiles]
                )
            start += size


def tile_product(a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor) -> Tensor:
    """A B^T in float32; A [m, k], B [n, k], both in 1x128 tiles along k."""
    k = a.shape[1]
    unaligned = k % _K_MULTIPLE or a.data_ptr() % _K_MULTIPLE or b.data_ptr() % _K_MULTIPLE
    if unaligned or a.stride(0) % _K_MULTIPLE or b.stride(0) % _K_MULTIPLE:
        a, b = _fill(a, columns=-k % _K_MULTIPLE), _fill(b, columns=-k % _K_MULTIPLE)
    return functional.scaled_mm(
        a,
        b.t(),
        _column_major(a_scales),
        _TILES,
        _column_major(b_scales),
        _TILES,
        output_dtype=torch.float32,
    )


def _gemm_into(out: Tensor, a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor) -> None:
    """The GEMM of gemm_fp8 into out [m, n]; scaled_mm itself offers no output argument."""
    torch.ops.aten._scaled_mm_v2.out(
        a,
        b.t(),
        [_column_major(a_scales)],
        [_TILES.value],
        [],
        [_block_scales(b_scales)],
        [_BLOCKS.value],
        [],
        None,
        out.dtype,
        [],
        False,
        out=out,
    )


def _check(x: Tensor) -> None:
    check_device(x)
    if not x.is_cuda:
        raise ValueError(f"backend 'library' on device {x.device}: allowed cuda")


def _host_sizes(group_sizes: Tensor, rows: int) -> list[int]:
    sizes: list[int] = group_sizes.tolist()
    if sum(sizes) != rows:
        raise ValueError(f"group_sizes {sizes}: {rows} rows need sizes that sum to {rows}")
    return sizes


def _fill(x: Tensor, *, rows: int = 0, columns: int = 0) -> Tensor:
    """A contiguous copy of x [rows, columns] with rows and columns of zeros added."""
    values = x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x
    return functional.pad(values, (0, columns, 0, rows)).contiguous().view(x.dtype)


def _column_major(scales: Tensor) -> Tensor:
    """Tile scales with strides (1, rows), copied only where a slice has others."""
    if scales.stride() == (1, scales.shape[0]):
        return scales
    # Not contiguous(): one tile a row is contiguous whatever the stride that torch would check.
    return scales.t().clone(memory_format=torch.contiguous_format).t()


def _block_scales(scales: Tensor) -> Tensor:
    """Block scales [n blocks, k blocks] as cuBLAS wants them: transposed, k filled to 4.

    Scales whose rows lie at such multiples (see reference.SCALE_ROW) are read where they are."""
    room = scales.shape[1] + -scales.shape[1] % SCALE_ROW
    if scales.stride() != (room, 1):
        scales = aligned_scale_rows(scales)
    return scales.as_strided((scales.shape[0], room), (room, 1)).t()


KERNELS = LibraryKernels()
