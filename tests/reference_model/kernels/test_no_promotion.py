"""Sums that stay in the tensor cores."""

import torch

from reference_model.kernels import load_backend


def test_sums_that_stay_in_tensor_cores_lose_more_the_longer_they_are():
    kernels = load_backend("no_promotion")
    errors = []
    for k in (128, 2048, 32768):
        x = torch.ones(4, k)
        a = kernels.quantize_tiles(x, power_of_two_scales=False)
        b = kernels.quantize_blocks(x * 1.1, power_of_two_scales=False)
        whole = load_backend("reference").gemm_fp8(*a, *b, out_dtype=torch.float32)
        product = kernels.gemm_fp8(*a, *b, out_dtype=torch.float32)
        assert (product <= whole).all()  # cut off, never rounded up
        errors.append(float((whole - product).max() / whole.max()))
    assert errors[0] < 1e-3
    assert errors[2] > 10 * errors[0]
