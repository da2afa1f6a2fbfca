"""The backend "mixed": cuBLAS for dense products, Triton for grouped ones and for quantisation.

cuBLAS has no grouped product with these scales: a grouped GEMM is one call for each group, so the
host has to know the sizes of the groups and waits for the GPU in every layer. Triton's grouped
kernels read the sizes on the device and take longer for the same rows. With this backend the host
waits for nothing, shapes do not depend on the routing, and a whole step can be captured.
"""

from reference_model.kernels.library import gemm_fp8, gemm_fp8_weight_grad
from reference_model.kernels.triton_gemm import (
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
