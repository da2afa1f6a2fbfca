"""Grouped products of the operators."""

import pytest
import torch

from reference_model import operators as ops

SITE = ops.Site("forward", "mlp")("test")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def randn(generator):
    return lambda *shape: torch.randn(shape, generator=generator)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_grouped_products_equal_one_product_an_expert(randn):
    a, b = randn(10, 6), randn(3, 5, 6)
    sizes = torch.tensor([4, 0, 6], dtype=torch.int32)
    out = ops.grouped_gemm(
        a, b, None, None, sizes, out_dtype=torch.float32, kernels="reference", site=SITE
    )
    assert_close(out, torch.cat((a[:4] @ b[0].T, a[4:] @ b[2].T)))
    total = torch.ones(3, 6, 5)
    ops.grouped_gemm_weight_grad(
        total, a.t(), out.t(), None, None, sizes, kernels="reference", site=SITE
    )
    assert_close(total[0], 1 + a[:4].T @ out[:4])
    assert_close(total[1], torch.ones(6, 5))
