"""What ends a step: the norm of the gradients, the optimizer, and new working copies of weights.

The optimizer is one operator over all weights, which finds them through tables of addresses
(`update_tables`), and it leaves the gradients filled with zeros.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from reference_model.kernels import load_backend
from reference_model.operators.registration import operator

CHUNK = 16 * 1024
"""Elements of one tensor that one program updates."""


@operator(fake=lambda gradients, **_: gradients[0].new_empty(()))
def gradient_norm(gradients: Sequence[Tensor], *, site: str) -> Tensor:
    """Compute the norm of all gradients together, float32 []."""
    norms = torch._foreach_norm(list(gradients))
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm


def update_tables(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Tables of contiguous tensors that `adamw` updates: int64 [tensors, 6], addresses of weight,
    gradient, first and second moment, elements, and whether it decays (vectors do not); and int64
    [chunks, 2], the tensor and the first element of each `CHUNK`."""
    every = list(zip(weights, gradients, firsts, seconds, strict=True))
    rows = [[*(x.data_ptr() for x in one), one[0].numel(), int(one[0].dim() > 1)] for one in every]
    chunks = [
        [place, start]
        for place, weight in enumerate(weights)
        for start in range(0, weight.numel(), CHUNK)
    ]
    tensors, pieces = (torch.tensor(table, dtype=torch.int64) for table in (rows, chunks))
    return tensors.to(weights[0].device), pieces.to(weights[0].device)


@operator(fake=None, mutates=("weights", "gradients", "firsts", "seconds"))
def adamw(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    norm: Tensor,
    tensors: Tensor,
    chunks: Tensor,
    *,
    rate: float,
    steps: int,
    beta: float,
    beta2: float,
    epsilon: float,
    decay: float,
    clip_norm: float,
    site: str,
) -> None:
    """Move float32 weights by AdamW's step number `steps` from 1 on, with gradients clipped to a
    norm, of `norm` now, and fill the gradients with zeros. Moments are bfloat16."""
    clip = (clip_norm / norm.clamp(min=clip_norm)).item()
    for weight, gradient, first, second in zip(weights, gradients, firsts, seconds, strict=True):
        clipped = gradient * clip
        mean = first.float().lerp_(clipped, 1 - beta)
        square = second.float().lerp_(clipped.square(), 1 - beta2)
        first.copy_(mean)
        second.copy_(square)
        unbiased = mean / (1 - beta**steps)
        root = (square / (1 - beta2**steps)).sqrt_().add_(epsilon)
        if weight.dim() > 1:
            weight.mul_(1 - rate * decay)
        weight.sub_(unbiased.div_(root), alpha=rate)
        gradient.zero_()


@operator(fake=None, mutates=("out", "out_scales", "out_turned_scales"))
def quantize_weight(
    master: Tensor,
    out: Tensor,
    out_scales: Tensor,
    out_turned_scales: Tensor,
    *,
    kernels: str,
    site: str,
) -> None:
    """Quantise a float32 weight [..., rows, columns] in blocks of 128 x 128 into E4M3 values, their
    scales, and the scales of its transpose."""
    load_backend(kernels).quantize_weight(
        master, values=out, scales=out_scales, turned_scales=out_turned_scales
    )


@operator(fake=None, mutates=("out",))
def cast_weight(master: Tensor, out: Tensor, *, site: str) -> None:
    """Convert a float32 weight into its working copy in another type."""
    out.copy_(master)
