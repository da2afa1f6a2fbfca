"""The FP8 recipe without promotion: partial sums stay in the tensor cores' accumulators.

For comparison only, in plain torch. Hopper's FP8 tensor cores add 32 products at a time into a
register that keeps 13 fraction bits, the rest cut off ("Insights into DeepSeek-V3",
arXiv:2505.09343, section 3.1.1; about 14 bits in the Technical Report, section 3.3.2). The recipe
moves the sum to a float32 register every 128 elements of K; here it stays to the end, and scales
are applied before. Within 32 products the sum is float32, which flatters this variant: the hardware
aligns each product as well.
"""

import torch
from torch import Tensor

from reference_model.kernels.reference import ReferenceKernels

INSTRUCTION_K = 32
"""Elements of K that one FP8 tensor-core instruction of Hopper sums."""

_CUT = ~((1 << (23 - 13)) - 1)  # of float32's 23 fraction bits the register keeps 13


class NoPromotionKernels(ReferenceKernels):
    """The reference's kernels with other matrix products."""

    def gemm_fp8(
        self, a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, *, out_dtype: torch.dtype
    ) -> Tensor:
        """Multiply A [m, k] in 1x128 tiles by B [n, k] in 128x128 blocks transposed; returns
        [m, n]."""
        left = self.dequantize_tiles(a, a_scales, dtype=torch.float32)
        return _accumulated(left, self.dequantize_blocks(b, b_scales, dtype=torch.float32)).to(
            out_dtype
        )

    def gemm_fp8_weight_grad(
        self, a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, *, gradient: Tensor
    ) -> None:
        """Add A [m, k] B [n, k]^T, both in 1x128 tiles, into gradient [m, n]."""
        left = self.dequantize_tiles(a, a_scales, dtype=torch.float32)
        gradient += _accumulated(left, self.dequantize_tiles(b, b_scales, dtype=torch.float32))


def _accumulated(a: Tensor, b: Tensor) -> Tensor:
    """a [m, k] times b [n, k] transposed, 32 of k at a time, cut to 13 fraction bits each time."""
    total = a.new_zeros((a.shape[0], b.shape[0]))
    for start in range(0, a.shape[1], INSTRUCTION_K):
        k = slice(start, start + INSTRUCTION_K)
        total += a[:, k] @ b[:, k].t()
        bits = total.view(torch.int32)
        bits &= _CUT
    return total


KERNELS = NoPromotionKernels()
