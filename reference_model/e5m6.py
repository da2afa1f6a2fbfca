"""E5M6: 12-bit floats in 1.5 bytes, with one power-of-two scale for each 1x128 tile of a row.

DeepSeek-V3 keeps the attention output for backward in this format (Technical Report, section
3.3.3). It is an IEEE half with four of its ten mantissa bits rounded away, so packing goes through
float16: two values share three bytes. Tensors in, tensors out; any device.
"""

import torch
from torch import Tensor

from reference_model.kernels.reference import TILE

_LARGEST_EXPONENT = 15  # values of a tile are scaled below 2^15, so rounding up cannot overflow
_DROPPED = 4  # float16 has 10 mantissa bits, E5M6 has 6


def pack_e5m6(x: Tensor) -> tuple[Tensor, Tensor]:
    """Pack x [rows, columns], columns even; returns packed uint8 [rows, 3 columns / 2] and its
    scales, float32 [rows, ceil(columns / 128)]."""
    rows, columns = x.shape
    tiles = torch.nn.functional.pad(x.float(), (0, -columns % TILE)).view(rows, -1, TILE)
    largest = tiles.abs().amax(dim=2).clamp(min=2.0**-100)
    _, exponent = torch.frexp(largest)  # largest < 2^exponent
    scales = torch.ldexp(torch.ones_like(largest), exponent - _LARGEST_EXPONENT)
    halves = (tiles / scales[:, :, None]).view(rows, -1)[:, :columns].half()
    bits = halves.contiguous().view(torch.int16).int() & 0xFFFF
    # Round to nearest, ties to even, on the bits: a carry moves into the exponent as it should.
    bits = (bits + (1 << (_DROPPED - 1)) - 1 + (bits >> _DROPPED & 1)) >> _DROPPED
    first, second = bits[:, 0::2], bits[:, 1::2]
    packed = torch.stack(
        (first & 0xFF, (first >> 8) | (second & 0xF) << 4, second >> 4), dim=2
    )  # [rows, columns / 2, 3]
    return packed.to(torch.uint8).view(rows, -1), scales


def unpack_e5m6(packed: Tensor, scales: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Undo `pack_e5m6`; returns [rows, columns] of `dtype`."""
    rows = packed.shape[0]
    low, middle, high = packed.view(rows, -1, 3).int().unbind(dim=2)
    first = low | (middle & 0xF) << 8
    second = middle >> 4 | high << 4
    bits = torch.stack((first, second), dim=2).view(rows, -1) << _DROPPED
    halves = (bits - ((bits & 0x8000) << 1)).to(torch.int16).view(torch.float16)
    spread = scales.repeat_interleave(TILE, dim=1)[:, : halves.shape[1]]
    return (halves.float() * spread).to(dtype)
