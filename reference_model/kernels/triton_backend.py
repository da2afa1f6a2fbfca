"""The backend "triton": every function of reference.py as a Triton kernel."""

from reference_model.kernels.triton_gemm import (
    gemm_fp8,
    gemm_fp8_weight_grad,
    grouped_gemm_fp8,
    grouped_gemm_fp8_weight_grad,
    masked_grouped_gemm_fp8,
)
from reference_model.kernels.triton_quantize import (
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
