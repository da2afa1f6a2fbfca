"""The FP8 recipe without promotion: partial sums stay in the tensor cores' accumulators.

For comparison only, in plain torch. Hopper's FP8 tensor cores add 32 products at a time into a
register that keeps 13 fraction bits, the rest cut off ("Insights into DeepSeek-V3",
arXiv:2505.09343, section 3.1.1; about 14 bits in the Technical Report, section 3.3.2). The recipe
moves the sum to a float32 register every 128 elements of K; here it stays to the end, and scales
are applied before. Within 32 products the sum is float32, which flatters this variant: the hardware
aligns each product as well.
"""

import torch
from torch import Tensor

from reference_model.kernels import reference
from reference_model.kernels.reference import (
    dequantize_blocks,
    dequantize_tiles,
    quantize_blocks,
    quantize_tiles,
    quantize_tiles_transposed,
    requantize_tiles_transposed,
    swiglu_quantize,
    swiglu_quantize_transposed,
    weighted_swiglu_quantize,
)

__all__ = [
    "dequantize_blocks",
    "dequantize_tiles",
    "gemm_fp8",
    "gemm_fp8_weight_grad",
    "grouped_gemm_fp8",
    "grouped_gemm_fp8_weight_grad",
    "masked_grouped_gemm_fp8",
    "quantize_blocks",
    "quantize_tiles",
    "quantize_tiles_transposed",
    "requantize_tiles_transposed",
    "swiglu_quantize",
    "swiglu_quantize_transposed",
    "weighted_swiglu_quantize",
]

INSTRUCTION_K = 32
"""Elements of K that one FP8 tensor-core instruction of Hopper sums."""

_CUT = ~((1 << (23 - 13)) - 1)  # of float32's 23 fraction bits the register keeps 13


def gemm_fp8(
    a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, *, out_dtype: torch.dtype
) -> Tensor:
    """A [m, k] in 1x128 tiles times B [n, k] in 128x128 blocks transposed -> [m, n]."""
    left = dequantize_tiles(a, a_scales, dtype=torch.float32)
    return _accumulated(left, dequantize_blocks(b, b_scales, dtype=torch.float32)).to(out_dtype)


def gemm_fp8_weight_grad(
    a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, *, gradient: Tensor
) -> None:
    """gradient [m, n] += A [m, k] B [n, k]^T, both in 1x128 tiles."""
    left = dequantize_tiles(a, a_scales, dtype=torch.float32)
    gradient += _accumulated(left, dequantize_tiles(b, b_scales, dtype=torch.float32))


def grouped_gemm_fp8(
    a: Tensor,
    a_scales: Tensor,
    b: Tensor,
    b_scales: Tensor,
    *,
    group_sizes: Tensor,
    out_dtype: torch.dtype,
) -> Tensor:
    """Rows of A [rows, k], sorted by group, times B[group] [n, k] transposed -> [rows, n]."""
    sizes = group_sizes.tolist()
    parts = zip(torch.split(a, sizes), torch.split(a_scales, sizes), b, b_scales, strict=True)
    return torch.cat([gemm_fp8(*part, out_dtype=out_dtype) for part in parts])


def masked_grouped_gemm_fp8(
    a: Tensor,
    a_scales: Tensor,
    b: Tensor,
    b_scales: Tensor,
    *,
    group_rows: Tensor,
    out_dtype: torch.dtype,
) -> Tensor:
    """The first group_rows[g] rows of A[g] [capacity, k] times B[g]^T -> [groups, capacity, n]."""
    out = a.new_zeros((*a.shape[:2], b.shape[1]), dtype=out_dtype)
    for group, rows in enumerate(group_rows.tolist()):
        out[group, :rows] = gemm_fp8(
            a[group, :rows], a_scales[group, :rows], b[group], b_scales[group], out_dtype=out_dtype
        )
    return out


def grouped_gemm_fp8_weight_grad(
    a: Tensor,
    a_scales: Tensor,
    b: Tensor,
    b_scales: Tensor,
    *,
    group_sizes: Tensor,
    gradient: Tensor,
) -> None:
    """gradient[g] [m, n] += A[:, rows of g] B[:, rows of g]^T for every group g."""
    start = 0
    for group, size in enumerate(group_sizes.tolist()):
        if size:
            # Tiles restart at each group: see reference.quantize_tiles_transposed.
            first = start // reference.TILE + group
            rows = slice(start, start + size)
            tiles = slice(first, first - (-size // reference.TILE))
            gemm_fp8_weight_grad(
                a[:, rows], a_scales[:, tiles], b[:, rows], b_scales[:, tiles],
                gradient=gradient[group],
            )  # fmt: skip
        start += size


def _accumulated(a: Tensor, b: Tensor) -> Tensor:
    """a [m, k] times b [n, k] transposed, 32 of k at a time, cut to 13 fraction bits each time."""
    total = a.new_zeros((a.shape[0], b.shape[0]))
    for start in range(0, a.shape[1], INSTRUCTION_K):
        k = slice(start, start + INSTRUCTION_K)
        total += a[:, k] @ b[:, k].t()
        bits = total.view(torch.int32)
        bits &= _CUT
    return total
