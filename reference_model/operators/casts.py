"""Quantisation, transposes, copies and sums.

In the published trace the scales of each quantised GEMM operand pass through a transposing kernel
of 2 to 19 us; the kernels here write scales in the layout that the GEMM reads.

Tiles along rows, which weight gradients read, have powers of two as scales: an operand that was
quantised once along columns with such scales keeps its values when the tiles are turned around,
but for those far below the largest of their new tile (Technical Report, section 3.3.3).
"""

import torch
from torch import Tensor

from reference_model import e5m6
from reference_model.kernels import load_backend
from reference_model.operators.registration import like_first, operator, scale_tiles


def quantize_fake(x: Tensor, **_: object) -> tuple[Tensor, Tensor]:
    """Empty E4M3 [rows, columns] and its tile scales."""
    rows, columns = x.shape
    scales = x.new_empty((scale_tiles(columns), rows), dtype=torch.float32).t()
    return x.new_empty((rows, columns), dtype=torch.float8_e4m3fn), scales


@operator(fake=quantize_fake)
def quantize(
    x: Tensor, *, power_of_two_scales: bool, kernels: str, site: str
) -> tuple[Tensor, Tensor]:
    """Quantise x [rows, columns] to E4M3 and scales [rows, ceil(columns / 128)]."""
    return load_backend(kernels).quantize_tiles(x, power_of_two_scales=power_of_two_scales)


def _quantize_transpose_fake(
    x: Tensor, scales: Tensor | None, *, kernels: str, site: str
) -> tuple[Tensor, Tensor]:
    return quantize_fake(x.t())


@operator(fake=_quantize_transpose_fake)
def quantize_transpose(
    x: Tensor, scales: Tensor | None, *, kernels: str, site: str
) -> tuple[Tensor, Tensor]:
    """Quantise x [rows, columns], bfloat16 or E4M3 with scales, to E4M3 [columns, rows], tiled
    along rows."""
    backend = load_backend(kernels)
    if scales is None:
        return backend.quantize_tiles_transposed(x, group_sizes=None, power_of_two_scales=True)
    return backend.requantize_tiles_transposed(
        x, scales, row_source=None, group_sizes=None, power_of_two_scales=True
    )


def _grouped_transpose_fake(x: Tensor, group_sizes: Tensor, **_: object) -> tuple[Tensor, Tensor]:
    return _transposed_rows(x, x.shape[0], group_sizes.shape[0])


def _transposed_rows(x: Tensor, rows: int, groups: int) -> tuple[Tensor, Tensor]:
    """Empty E4M3 [columns, rows] and scales of tiles that restart at each group."""
    tiles = scale_tiles(rows) + groups - 1
    scales = x.new_empty((tiles, x.shape[1]), dtype=torch.float32).t()
    return x.new_empty((x.shape[1], rows), dtype=torch.float8_e4m3fn), scales


@operator(fake=_grouped_transpose_fake)
def grouped_quantize_transpose(
    x: Tensor, group_sizes: Tensor, *, kernels: str, site: str
) -> tuple[Tensor, Tensor]:
    """Quantise x [R, columns] sorted by expert to E4M3 [columns, R], tiles restarting at each
    expert."""
    return load_backend(kernels).quantize_tiles_transposed(
        x, group_sizes=group_sizes, power_of_two_scales=True
    )


@operator(
    fake=lambda x, _s, row_source, group_sizes, **_: _transposed_rows(
        x, row_source.shape[0], group_sizes.shape[0]
    )
)
def quantize_transpose_gather(
    x: Tensor,
    scales: Tensor,
    row_source: Tensor,
    group_sizes: Tensor,
    *,
    kernels: str,
    site: str,
) -> tuple[Tensor, Tensor]:
    """Received E4M3 x [D, columns] expanded to rows, transposed and tiled anew: [columns, R]."""
    return load_backend(kernels).requantize_tiles_transposed(
        x, scales, row_source=row_source, group_sizes=group_sizes, power_of_two_scales=True
    )


@operator(fake=lambda x, _s, *, dtype, **_: torch.empty_like(x, dtype=dtype))
def dequantize(x: Tensor, scales: Tensor, *, dtype: torch.dtype, kernels: str, site: str) -> Tensor:
    """Restore dtype from E4M3 x [rows, columns] and its tile scales."""
    return load_backend(kernels).dequantize_tiles(x, scales, dtype=dtype)


def _quantize_e5m6_fake(x: Tensor, *, site: str) -> tuple[Tensor, Tensor]:
    rows, columns = x.shape
    packed = x.new_empty((rows, columns * 3 // 2), dtype=torch.uint8)
    return packed, x.new_empty((rows, scale_tiles(columns)), dtype=torch.float32)


@operator(fake=_quantize_e5m6_fake)
def quantize_e5m6(x: Tensor, *, site: str) -> tuple[Tensor, Tensor]:
    """Pack x [rows, columns] as 12-bit floats with power-of-two scales (see e5m6.py)."""
    return e5m6.pack_e5m6(x)


@operator(
    fake=lambda packed, _s, *, dtype, **_: packed.new_empty(
        (packed.shape[0], packed.shape[1] * 2 // 3), dtype=dtype
    )
)
def dequantize_e5m6(packed: Tensor, scales: Tensor, *, dtype: torch.dtype, site: str) -> Tensor:
    """Unpack 12-bit floats [rows, 3 columns / 2] to [rows, columns]."""
    return e5m6.unpack_e5m6(packed, scales, dtype=dtype)


@operator(fake=lambda x, **_: torch.empty_like(x.mT, memory_format=torch.contiguous_format))
def transpose(x: Tensor, *, site: str) -> Tensor:
    """Transpose the E4M3 values of a weight [..., rows, columns] to [..., columns, rows]."""
    # Moved as bytes: not every torch has copy kernels for FP8.
    return x.view(torch.uint8).mT.contiguous().view(x.dtype)


@operator(fake=lambda x, *, dtype, **_: torch.empty_like(x, dtype=dtype))
def cast(x: Tensor, *, dtype: torch.dtype, site: str) -> Tensor:
    """Convert x to another type."""
    return x.to(dtype, copy=True)


@operator(fake=None, mutates=("out",))
def copy(x: Tensor, out: Tensor, *, site: str) -> None:
    """Copy x into out, a view of the same shape."""
    out.copy_(x)


@operator(fake=None, mutates=("out",))
def broadcast_heads(x: Tensor, out: Tensor, *, site: str) -> None:
    """Copy x [T, dim] into every head of out [T, heads, dim]."""
    out.copy_(x[:, None, :].expand_as(out))


@operator(fake=lambda x, **_: x.new_empty((x.shape[0], x.shape[2])))
def sum_heads(x: Tensor, *, site: str) -> Tensor:
    """Sum x [T, heads, dim] over heads to [T, dim], accumulated in float32."""
    return x.sum(dim=1, dtype=torch.float32).to(x.dtype)


@operator(fake=lambda a, b, **_: a.new_empty((a.shape[0], a.shape[1] + b.shape[1])))
def concat(a: Tensor, b: Tensor, *, site: str) -> Tensor:
    """Join a [T, n] and b [T, m] to [T, n + m]."""
    return torch.cat((a, b), dim=1)


@operator(fake=like_first)
def add(a: Tensor, b: Tensor, *, site: str) -> Tensor:
    """Add a and b of equal shapes."""
    return a + b


@operator(fake=like_first)
def scale(x: Tensor, *, factor: float, site: str) -> Tensor:
    """Multiply x by a factor."""
    return x * factor
