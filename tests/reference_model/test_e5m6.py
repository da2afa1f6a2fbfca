"""Twelve bits keep what a half keeps, but for four bits of mantissa."""

import math

import torch

from reference_model.e5m6 import pack_e5m6, unpack_e5m6


def test_e5m6_keeps_six_bits_of_mantissa():
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    x = x * torch.tensor([1e-3, 1.0, 1e4, 1e30, 0.0])[:, None]
    packed, scales = pack_e5m6(x)
    assert packed.dtype == torch.uint8
    assert packed.shape == (5, 256 * 3 // 2)
    assert torch.equal(scales, torch.exp2(scales.log2().round()))  # powers of two
    back = unpack_e5m6(packed, scales, dtype=torch.float32)
    # Half a unit of the last of 6 mantissa bits; far below the tile's largest the exponent ends.
    floor = x.abs().amax(dim=1, keepdim=True) * math.ldexp(1, -28)
    assert ((back - x).abs() <= x.abs() * 2**-7 + floor).all()
    assert torch.equal(back[4], torch.zeros(256))


def test_e5m6_is_exact_on_its_own_values():
    """Every mantissa of 6 bits and every exponent of 5 but the subnormal ones, both signs."""
    mantissas = 1 + torch.arange(64) / 64
    exponents = torch.exp2(torch.arange(-14.0, 15.0))
    values = (mantissas[:, None] * exponents).flatten()
    values = torch.cat((values, -values))
    values = torch.stack((values, torch.full_like(values, 2.0**14)), dim=1).view(1, -1)
    packed, scales = pack_e5m6(values)
    assert torch.equal(scales, torch.ones_like(scales))
    back = unpack_e5m6(packed, scales, dtype=torch.float32)
    assert torch.equal(back, values)
