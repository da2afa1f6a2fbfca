"""A kernel family, and the bytes of the matrices that it reads and writes. Free of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reference_model.formats import ACTIVATIONS, BITS, weights_of

if TYPE_CHECKING:
    from reference_model.kinds import Operator

INT32 = 4
FLOAT32 = 4
"""Bytes of a value."""


def _no_flops(_: Operator) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class Kind:
    """A kernel family: the sizes that describe it, and its FLOPs and bytes as functions of them."""

    sizes: tuple[str, ...]
    bytes_read: Callable[[Operator], int]
    bytes_written: Callable[[Operator], int]
    flops: Callable[[Operator], int] = _no_flops


def plain(dtype: str, *shape: int) -> int:
    """Bytes of a matrix of this shape without scales."""
    elements = 1
    for extent in shape:
        elements *= extent
    bits = elements * BITS[dtype]
    return (bits + 7) // 8


def tiled(dtype: str, rows: int, columns: int) -> int:
    """Bytes of a matrix with its scales, as activations have them."""
    return ACTIVATIONS[dtype].stored_bytes(rows, columns)


def blocked(dtype: str, groups: int, rows: int, columns: int) -> int:
    """Bytes of the `groups` weight matrices of a product, scales included."""
    return groups * weights_of(dtype).stored_bytes(rows, columns)
