"""Gathering, transposing and quantising anew."""

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


def test_received_tokens_are_gathered_transposed_and_tiled_anew(randn):
    x = randn(6, 128)
    values, scales = ops.quantize(x, power_of_two_scales=True, kernels="reference", site=SITE)
    source = torch.tensor([0, 0, 3, 5, 1], dtype=torch.int32)
    sizes = torch.tensor([3, 2], dtype=torch.int32)
    gathered, gathered_scales = ops.quantize_transpose_gather(
        values, scales, source, sizes, kernels="reference", site=SITE
    )
    plain = ops.dequantize(values, scales, dtype=torch.float32, kernels="reference", site=SITE)
    expected, expected_scales = ops.grouped_quantize_transpose(
        plain[source.long()], sizes, kernels="reference", site=SITE
    )
    assert torch.equal(gathered.float(), expected.float())
    assert torch.equal(gathered_scales, expected_scales)


def test_tiles_that_are_turned_around_for_a_weight_gradient_are_not_rounded_again(randn):
    x = randn(200, 256)
    values, scales = ops.quantize(x, power_of_two_scales=True, kernels="reference", site=SITE)
    rounded = ops.dequantize(values, scales, dtype=torch.float32, kernels="reference", site=SITE)
    from_fp8 = ops.quantize_transpose(values, scales, kernels="reference", site=SITE)
    from_wide = ops.quantize_transpose(rounded, None, kernels="reference", site=SITE)
    for turned, turned_scales in (from_fp8, from_wide):
        again = ops.dequantize(
            turned, turned_scales, dtype=torch.float32, kernels="reference", site=SITE
        )
        assert (again.t() - rounded).norm() < 1e-4 * rounded.norm()
