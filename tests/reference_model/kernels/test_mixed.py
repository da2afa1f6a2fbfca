"""Which kernels the mixed backend takes from where."""

from reference_model.kernels.library import LibraryKernels
from reference_model.kernels.mixed import MixedKernels
from reference_model.kernels.triton_gemm import TritonProducts
from reference_model.kernels.triton_quantize import TritonCasts


def test_dense_products_are_the_librarys_and_grouped_ones_tritons():
    assert MixedKernels.gemm_fp8 is LibraryKernels.gemm_fp8
    assert MixedKernels.gemm_fp8_weight_grad is LibraryKernels.gemm_fp8_weight_grad
    assert MixedKernels.grouped_gemm_fp8 is TritonProducts.grouped_gemm_fp8
    assert MixedKernels.grouped_gemm_fp8_weight_grad is TritonProducts.grouped_gemm_fp8_weight_grad
    assert MixedKernels.masked_grouped_gemm_fp8 is TritonProducts.masked_grouped_gemm_fp8
    assert MixedKernels.quantize_tiles is TritonCasts.quantize_tiles
