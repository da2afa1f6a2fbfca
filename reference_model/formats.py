"""How numbers are stored: bits of a value, and which values share a scale.

The type of a product names both of its operands: in most the weights are of the type that streams
through, in blocks of 128 x 128 where activations have tiles of 1 x 128, and in W4A16 products 4-bit
weights are read and multiplied in BF16. Free of torch.
"""

from __future__ import annotations

from dataclasses import dataclass

TILE = 128
"""Elements that share one FP32 scale along a row; weights share one per 128 x 128 block
(DeepSeek-V3 Technical Report, section 3.3.2)."""


@dataclass(frozen=True, slots=True)
class Format:
    """How the values of a matrix are stored."""

    bits: int
    """Of a value."""
    scale_bits: int = 0
    """Of a scale; 0 without scales, or with one for the whole matrix."""
    columns: int = 1
    """Consecutive values of a row that share a scale."""
    rows: int = 1
    """Rows that share it."""

    def stored_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a matrix, scales included."""
        scales = -(-rows // self.rows) * -(-columns // self.columns)
        return (rows * columns * self.bits + 7) // 8 + scales * (self.scale_bits // 8)

    @property
    def bytes_per_value(self) -> float:
        """Mean of a matrix of whole blocks, scales included."""
        return self.bits / 8 + self.scale_bits / 8 / (self.rows * self.columns)


_NVFP4 = Format(4, 8, 16)
"""Blocks of 16 along a row share an FP8 scale (NVIDIA Blackwell architecture technical brief); the
one FP32 scale of a whole tensor is left out."""
_MXFP8 = Format(8, 8, 32)
"""Blocks of 32 along a row share a power of two (OCP Microscaling Formats, version 1.0)."""

ACTIVATIONS: dict[str, Format] = {
    "int64": Format(64),
    "int32": Format(32),
    "int8": Format(8),
    "float16": Format(16),
    "bfloat16": Format(16),
    "float32": Format(32),
    "fp8_e4m3": Format(8, 32, TILE),
    "e5m6": Format(12, 32, TILE),
    "fp4_e2m1": _NVFP4,
    "mxfp8_e4m3": _MXFP8,
    "fp8_e4m3_tensor": Format(8),
    "w4a16_g32": Format(16),
    "w4a16_g128": Format(16),
}
"""{element or product type: how what streams through a product, or any other matrix, is stored}"""

_WEIGHTS: dict[str, Format] = {
    "fp8_e4m3": Format(8, 32, TILE, TILE),
    "e5m6": Format(12, 32, TILE, TILE),
    # Groups along a row share a BF16 scale (compressed-tensors, pack-quantized, symmetric).
    "w4a16_g32": Format(4, 16, 32),
    "w4a16_g128": Format(4, 16, 128),
}

_MULTIPLIED_AS = {
    "fp8_e4m3_tensor": "fp8_e4m3",
    "w4a16_g32": "bfloat16",
    "w4a16_g128": "bfloat16",
}

BITS = {name: stored.bits for name, stored in ACTIVATIONS.items()}
"""{element or product type: bits of a value that streams through}"""


def weights_of(dtype: str) -> Format:
    """How a product of this type has its weights."""
    return _WEIGHTS.get(dtype, ACTIVATIONS[dtype])


def multiplied_as(dtype: str) -> str:
    """The type in which the tensor cores multiply a product of this type."""
    return _MULTIPLIED_AS.get(dtype, dtype)


def nearest_type(dtype: str) -> str:
    """The type whose kernels a product's are most like, where its own were not measured."""
    return "fp8_e4m3" if dtype == "mxfp8_e4m3" else multiplied_as(dtype)
