"""One scale per tensor."""

import torch

from reference_model.kernels import load_backend


def operands(rows=48, k=256, columns=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, k, generator=generator) for n in (rows, columns))


def test_one_scale_a_tensor_loses_rows_far_below_the_largest():
    x, _ = operands()
    x[0] *= 1e6
    errors = {}
    for name in ("reference", "per_tensor"):
        kernels = load_backend(name)
        cast = kernels.quantize_tiles(x, power_of_two_scales=False)
        back = kernels.dequantize_tiles(*cast, dtype=torch.float32)[1:]
        errors[name] = (back - x[1:]).norm() / x[1:].norm()
    assert errors["reference"] < 0.05
    assert errors["per_tensor"] > 0.5


def test_no_rows_at_all_are_quantised():
    """What a rank of few tokens may receive."""
    values, scales = load_backend("per_tensor").quantize_tiles(
        torch.empty(0, 256), power_of_two_scales=False
    )
    assert values.shape == (0, 256)
    assert scales.shape == (0, 2)
