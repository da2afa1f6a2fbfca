"""Quantisation by Triton against reference.py."""

import pytest
import torch

from reference_model.kernels.reference import KERNELS as reference
from reference_model.kernels.reference import round_to_e4m3
from reference_model.kernels.triton_backend import KERNELS as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

E4M3 = torch.float8_e4m3fn


def random_with_outliers(*shape: int, seed: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    x = x * torch.where(torch.rand(shape, generator=generator) < 0.01, 100.0, 1.0)
    return x.to(DEVICE, dtype)


def sizes_of(*sizes: int) -> torch.Tensor:
    return torch.tensor(sizes, dtype=torch.int32, device=DEVICE)


def assert_quantized_alike(got, expected):
    """Equal scales, and values that differ only where a float32 result fell on the other side."""
    assert got[0].shape == expected[0].shape
    assert got[1].stride() == expected[1].stride()
    torch.testing.assert_close(got[1], expected[1], rtol=1e-6, atol=0)
    different = got[0].float() != expected[0].float()
    assert different.float().mean() < 1e-3


def test_every_e4m3_code_survives_and_midpoints_round_to_even():
    codes = torch.arange(256, dtype=torch.uint8).view(E4M3).float()
    values = codes[codes.isfinite()].unique().sort().values
    middle = (values[:-1] + values[1:]) / 2
    probes = torch.cat(
        (values, middle, torch.nextafter(middle, values[1:]), torch.nextafter(middle, values[:-1]))
    )
    # 448 in every tile makes its scale 1, so that the probe itself is rounded.
    x = torch.full((len(probes), 128), 448.0)
    x[:, 1] = probes
    q, scales = kernels.quantize_tiles(x.to(DEVICE), power_of_two_scales=False)
    assert (scales == 1).all()
    assert torch.equal(q[:, 1].float().cpu(), round_to_e4m3(probes))


@pytest.mark.parametrize("power_of_two_scales", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles(power_of_two_scales, dtype):
    x = random_with_outliers(70, 320, seed=1, dtype=dtype)
    x[3, 128:256] = 0
    options = {"power_of_two_scales": power_of_two_scales}
    q, scales = kernels.quantize_tiles(x, **options)
    assert_quantized_alike((q, scales), reference.quantize_tiles(x, **options))
    back = kernels.dequantize_tiles(q, scales, dtype=torch.float32)
    assert torch.equal(back, reference.dequantize_tiles(q, scales, dtype=torch.float32))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device; the interpreter casts NaN to 384")
def test_a_nan_stays_one():
    x = random_with_outliers(2, 128, seed=2)
    x[1, 5] = float("nan")
    q, _ = kernels.quantize_tiles(x, power_of_two_scales=False)
    assert q[1, 5].float().isnan()
    assert not q[0].float().isnan().any()


@pytest.mark.parametrize("sizes", [(300,), (130, 0, 170), (0, 256, 44)])
def test_transposed_tiles(sizes):
    x = random_with_outliers(300, 100, seed=3, dtype=torch.bfloat16)
    options = {"group_sizes": sizes_of(*sizes), "power_of_two_scales": False}
    assert_quantized_alike(
        kernels.quantize_tiles_transposed(x, **options),
        reference.quantize_tiles_transposed(x, **options),
    )


@pytest.mark.parametrize("gather", [False, True])
def test_transposed_tiles_of_a_quantised_matrix(gather):
    q, scales = reference.quantize_tiles(
        random_with_outliers(150, 200, seed=4), power_of_two_scales=True
    )
    row_source = torch.randint(150, (150,), generator=torch.Generator().manual_seed(0))
    options = {
        "row_source": row_source.int().to(DEVICE) if gather else None,
        "group_sizes": sizes_of(20, 130),
        "power_of_two_scales": False,
    }
    assert_quantized_alike(
        kernels.requantize_tiles_transposed(q, scales, **options),
        reference.requantize_tiles_transposed(q, scales, **options),
    )


def test_blocks():
    w = random_with_outliers(2, 192, 200, seed=5)
    q, scales = kernels.quantize_blocks(w, power_of_two_scales=False)
    expected = reference.quantize_blocks(w, power_of_two_scales=False)
    assert_quantized_alike((q, scales), expected)
    back = kernels.dequantize_blocks(q, scales, dtype=torch.float32)
    assert torch.equal(back, reference.dequantize_blocks(q, scales, dtype=torch.float32))


def test_fused_swiglu():
    gate_up = random_with_outliers(40, 400, seed=6, dtype=torch.bfloat16)
    weights = random_with_outliers(40, seed=7)
    options = {"power_of_two_scales": False}
    assert_quantized_alike(
        kernels.swiglu_quantize(gate_up, **options), reference.swiglu_quantize(gate_up, **options)
    )
    assert_quantized_alike(
        kernels.weighted_swiglu_quantize(gate_up, weights, **options),
        reference.weighted_swiglu_quantize(gate_up, weights, **options),
    )
    assert_quantized_alike(
        kernels.swiglu_quantize_transposed(gate_up, **options),
        reference.swiglu_quantize_transposed(gate_up, **options),
    )
