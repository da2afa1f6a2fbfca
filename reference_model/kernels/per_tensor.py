"""The FP8 recipe without fine-grained scales: one scale per tensor.

For comparison only, in plain torch. Shapes of scales are those of reference.py, so that its matrix
products serve as they are; all of them hold the one scale of the tensor, of an expert's weight, or
of all rows that the experts of a rank received.
"""

import torch
from torch import Tensor

from reference_model.kernels import reference
from reference_model.kernels.reference import ReferenceKernels

TILE = reference.TILE


class PerTensorKernels(ReferenceKernels):
    """The reference's kernels with other casts."""

    def quantize_tiles(self, x: Tensor, *, power_of_two_scales: bool) -> tuple[Tensor, Tensor]:
        """Quantise x [rows, columns] to E4M3 with one scale, given as
        [rows, ceil(columns / 128)]."""
        rows, columns = x.shape
        values, scale = _quantize(x, (0, 1), power_of_two_scales=power_of_two_scales)
        return values, scale.expand(-(-columns // TILE), rows).contiguous().t()

    def quantize_tiles_transposed(
        self, x: Tensor, *, group_sizes: Tensor | None, power_of_two_scales: bool
    ) -> tuple[Tensor, Tensor]:
        """Quantise x [rows, columns] to E4M3 [columns, rows], one scale for the rows of all
        groups."""
        rows, columns = x.shape
        values, scale = _quantize(x.t(), (0, 1), power_of_two_scales=power_of_two_scales)
        tiles = -(-rows // TILE) + (0 if group_sizes is None else group_sizes.shape[0] - 1)
        return values, scale.expand(tiles, columns).contiguous().t()

    def quantize_blocks(self, w: Tensor, *, power_of_two_scales: bool) -> tuple[Tensor, Tensor]:
        """Quantise w [..., rows, columns] to E4M3 like w, with the scale of each matrix as block
        scales."""
        rows, columns = w.shape[-2:]
        values, scale = _quantize(w, (-2, -1), power_of_two_scales=power_of_two_scales)
        return values, scale.expand(
            *w.shape[:-2], -(-rows // TILE), -(-columns // TILE)
        ).contiguous()


def _quantize(
    x: Tensor, dimensions: tuple[int, int], *, power_of_two_scales: bool
) -> tuple[Tensor, Tensor]:
    """E4M3 values, contiguous, and their scale, with `dimensions` kept at size 1."""
    wide = x.float()
    if not wide.numel():  # an expert-parallel rank that received nothing
        return wide.to(torch.float8_e4m3fn), wide.new_ones((1, 1))
    largest = wide.abs().amax(dim=dimensions, keepdim=True)
    scale = reference.scale_of(largest, power_of_two_scales=power_of_two_scales)
    return reference.round_to_e4m3(wide / scale).contiguous().to(torch.float8_e4m3fn), scale


KERNELS = PerTensorKernels()
