"""The FP8 recipe without fine-grained scales: one scale per tensor.

For comparison only, in plain torch. Shapes of scales are those of reference.py, so that its matrix
products serve as they are; all of them hold the one scale of the tensor, of an expert's weight, or
of all rows that the experts of a rank received.
"""

import torch
from torch import Tensor

from reference_model.kernels import reference
from reference_model.kernels.reference import (
    dequantize_blocks,
    dequantize_tiles,
    gemm_fp8,
    gemm_fp8_weight_grad,
    grouped_gemm_fp8,
    grouped_gemm_fp8_weight_grad,
    masked_grouped_gemm_fp8,
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

TILE = reference.TILE


def quantize_tiles(x: Tensor, *, power_of_two_scales: bool) -> tuple[Tensor, Tensor]:
    """x [rows, columns] -> E4M3, and its scale as [rows, ceil(columns / 128)]."""
    rows, columns = x.shape
    values, scale = _quantize(x, (0, 1), power_of_two_scales=power_of_two_scales)
    return values, scale.expand(-(-columns // TILE), rows).contiguous().t()


def quantize_tiles_transposed(
    x: Tensor, *, group_sizes: Tensor | None, power_of_two_scales: bool
) -> tuple[Tensor, Tensor]:
    """x [rows, columns] -> E4M3 [columns, rows], one scale for the rows of all groups."""
    rows, columns = x.shape
    values, scale = _quantize(x.t(), (0, 1), power_of_two_scales=power_of_two_scales)
    tiles = -(-rows // TILE) + (0 if group_sizes is None else group_sizes.shape[0] - 1)
    return values, scale.expand(tiles, columns).contiguous().t()


def requantize_tiles_transposed(
    q: Tensor,
    scales: Tensor,
    *,
    row_source: Tensor | None,
    group_sizes: Tensor | None,
    power_of_two_scales: bool,
) -> tuple[Tensor, Tensor]:
    """Dequantise, expand to the rows of experts, and quantise transposed."""
    x = dequantize_tiles(q, scales, dtype=torch.float32)
    if row_source is not None:
        x = x[row_source.long()]
    return quantize_tiles_transposed(
        x, group_sizes=group_sizes, power_of_two_scales=power_of_two_scales
    )


def quantize_blocks(w: Tensor, *, power_of_two_scales: bool) -> tuple[Tensor, Tensor]:
    """w [..., rows, columns] -> E4M3 like w, and the scale of each matrix as block scales."""
    rows, columns = w.shape[-2:]
    values, scale = _quantize(w, (-2, -1), power_of_two_scales=power_of_two_scales)
    return values, scale.expand(*w.shape[:-2], -(-rows // TILE), -(-columns // TILE)).contiguous()


def swiglu_quantize(gate_up: Tensor, *, power_of_two_scales: bool) -> tuple[Tensor, Tensor]:
    """SwiGLU of gate_up [rows, 2 * intermediate], quantised."""
    return quantize_tiles(
        reference.swiglu_float32(gate_up), power_of_two_scales=power_of_two_scales
    )


def weighted_swiglu_quantize(
    gate_up: Tensor, row_weights: Tensor, *, power_of_two_scales: bool
) -> tuple[Tensor, Tensor]:
    """The same, each row times its routing weight, float32 [rows]."""
    weighted = reference.swiglu_float32(gate_up) * row_weights[:, None]
    return quantize_tiles(weighted, power_of_two_scales=power_of_two_scales)


def swiglu_quantize_transposed(
    gate_up: Tensor, *, power_of_two_scales: bool
) -> tuple[Tensor, Tensor]:
    """SwiGLU of gate_up [rows, 2 * intermediate], quantised transposed."""
    return quantize_tiles_transposed(
        reference.swiglu_float32(gate_up), group_sizes=None, power_of_two_scales=power_of_two_scales
    )


def _quantize(
    x: Tensor, dimensions: tuple[int, int], *, power_of_two_scales: bool
) -> tuple[Tensor, Tensor]:
    """E4M3 values, contiguous, and their scale, with `dimensions` kept at size 1."""
    wide = x.float()
    if not wide.numel():  # an expert-parallel rank that received nothing
        return wide.to(torch.float8_e4m3fn), wide.new_ones((1, 1))
    largest = wide.abs().amax(dim=dimensions, keepdim=True)
    scale = reference.scale_of(largest, power_of_two_scales=power_of_two_scales)
    return reference.round_to_e4m3(wide / scale).contiguous().to(torch.float8_e4m3fn), scale
