"""Without a part of the recipe products are worse where that part matters, and only there."""

import pytest
import torch

from reference_model.kernels import load_backend, reference

VARIANTS = ["per_tensor", "no_promotion"]


def operands(rows=48, k=256, columns=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, k, generator=generator) for n in (rows, columns))


@pytest.mark.parametrize("name", VARIANTS)
def test_products_of_ordinary_operands_are_as_close(name):
    kernels = load_backend(name)
    x, w = operands()
    sizes = torch.tensor([20, 0, 28], dtype=torch.int32)
    weights = w.expand(3, -1, -1).contiguous()
    a = kernels.quantize_tiles(x, power_of_two_scales=False)
    b = kernels.quantize_blocks(weights, power_of_two_scales=False)
    exact = x @ w.t()
    product = kernels.grouped_gemm_fp8(*a, *b, group_sizes=sizes, out_dtype=torch.float32)
    assert (product - exact).norm() / exact.norm() < 0.05
    packed = kernels.masked_grouped_gemm_fp8(
        a[0][None], a[1][None], b[0][:1], b[1][:1], group_rows=torch.tensor([48]),
        out_dtype=torch.float32,
    )  # fmt: skip
    assert torch.equal(packed[0], kernels.gemm_fp8(*a, b[0][0], b[1][0], out_dtype=torch.float32))


@pytest.mark.parametrize("name", VARIANTS)
def test_weight_gradients_of_ordinary_operands_are_as_close(name):
    kernels = load_backend(name)
    grad, x = (torch.randn(300, n, generator=torch.Generator().manual_seed(n)) for n in (24, 40))
    sizes = torch.tensor([130, 0, 170], dtype=torch.int32)
    left = kernels.quantize_tiles_transposed(grad, group_sizes=sizes, power_of_two_scales=False)
    cast = kernels.quantize_tiles(x, power_of_two_scales=False)
    right = kernels.requantize_tiles_transposed(
        *cast, row_source=torch.arange(300, dtype=torch.int32), group_sizes=sizes,
        power_of_two_scales=False,
    )  # fmt: skip
    gradient = torch.zeros(3, 24, 40)
    kernels.grouped_gemm_fp8_weight_grad(*left, *right, group_sizes=sizes, gradient=gradient)
    parts = zip(grad.split(sizes.tolist()), x.split(sizes.tolist()), strict=True)
    exact = torch.stack([g.t() @ part for g, part in parts])
    assert (gradient - exact).norm() / exact.norm() < 0.06
    assert gradient[1].eq(0).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_activations_are_quantised_like_their_values(name):
    kernels = load_backend(name)
    gate_up = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(6, generator=torch.Generator().manual_seed(1))
    plain = kernels.swiglu_quantize(gate_up, power_of_two_scales=False)
    weighted = kernels.weighted_swiglu_quantize(gate_up, weights, power_of_two_scales=False)
    turned = kernels.swiglu_quantize_transposed(gate_up, power_of_two_scales=False)
    expected = reference.swiglu_float32(gate_up)
    for values, wanted in (
        (plain, expected), (weighted, expected * weights[:, None]), (turned, expected.t())
    ):  # fmt: skip
        back = kernels.dequantize_tiles(*values, dtype=torch.float32)
        assert (back - wanted).norm() / wanted.norm() < 0.05
