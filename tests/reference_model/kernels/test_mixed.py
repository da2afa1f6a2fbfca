"""Which kernels the mixed backend takes from where."""

from reference_model.kernels import library, mixed, triton_gemm, triton_quantize


def test_dense_products_are_the_librarys_and_grouped_ones_tritons():
    assert mixed.gemm_fp8 is library.gemm_fp8
    assert mixed.gemm_fp8_weight_grad is library.gemm_fp8_weight_grad
    assert mixed.grouped_gemm_fp8 is triton_gemm.grouped_gemm_fp8
    assert mixed.grouped_gemm_fp8_weight_grad is triton_gemm.grouped_gemm_fp8_weight_grad
    assert mixed.masked_grouped_gemm_fp8 is triton_gemm.masked_grouped_gemm_fp8
    assert mixed.quantize_tiles is triton_quantize.quantize_tiles
