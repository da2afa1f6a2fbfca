"""The backend "mixed": cuBLAS for dense products, Triton for grouped ones and for quantisation.

cuBLAS has no grouped product with these scales: a grouped GEMM is one call for each group, so the
host has to know the sizes of the groups and waits for the GPU in every layer. Triton's and Gluon's
grouped kernels read the sizes on the device. With this backend the host waits for nothing, shapes
do not depend on the routing, and a whole step can be captured.
"""

from reference_model.kernels.library import LibraryKernels
from reference_model.kernels.triton_gemm import TritonProducts


class MixedKernels(LibraryKernels):
    """The library's kernels, but for its grouped products."""

    grouped_gemm_fp8 = TritonProducts.grouped_gemm_fp8
    masked_grouped_gemm_fp8 = TritonProducts.masked_grouped_gemm_fp8
    grouped_gemm_fp8_weight_grad = TritonProducts.grouped_gemm_fp8_weight_grad


KERNELS = MixedKernels()
