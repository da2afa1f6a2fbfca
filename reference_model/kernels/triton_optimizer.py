# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""AdamW as one Triton kernel: one pass over weights, gradients and moments."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from reference_model.operators.updating import CHUNK

_BLOCK = 1024


@triton.jit
def _adamw_kernel(
    tensors,  # int64 [tensors, 6], as operators.update_tables makes it
    chunks,  # int64 [chunks, 2]
    norm,  # float32 []
    rate,
    unbias,  # 1 - beta ^ steps
    unbias2,
    decay,
    clip_norm,
    BETA: tl.constexpr,
    BETA2: tl.constexpr,
    EPSILON: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tensors + tl.load(chunks + 2 * tl.program_id(0)) * 6
    start = tl.load(chunks + 2 * tl.program_id(0) + 1)
    weights = tl.load(row).to(tl.pointer_type(tl.float32))
    gradients = tl.load(row + 1).to(tl.pointer_type(tl.float32))
    firsts = tl.load(row + 2).to(tl.pointer_type(tl.bfloat16))
    seconds = tl.load(row + 3).to(tl.pointer_type(tl.bfloat16))
    size = tl.load(row + 4)
    kept = 1 - rate * decay * tl.load(row + 5).to(tl.float32)
    clip = clip_norm / tl.maximum(tl.load(norm), clip_norm)
    for offset in range(0, CHUNK, BLOCK):
        at = start + offset + tl.arange(0, BLOCK)
        inside = at < size
        gradient = tl.load(gradients + at, mask=inside, other=0.0) * clip
        first = tl.load(firsts + at, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(seconds + at, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(weights + at, mask=inside, other=0.0)
        first += (1 - BETA) * (gradient - first)
        second += (1 - BETA2) * (gradient * gradient - second)
        update = (first / unbias) / (tl.sqrt(second / unbias2) + EPSILON)
        weight = weight * kept - rate * update
        tl.store(weights + at, weight, mask=inside)
        tl.store(firsts + at, first.to(tl.bfloat16), mask=inside)
        tl.store(seconds + at, second.to(tl.bfloat16), mask=inside)
        tl.store(gradients + at, tl.zeros([BLOCK], tl.float32), mask=inside)


def launch_adamw(
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
    """Run operators.adamw; the tensors are found through the tables."""
    _adamw_kernel[(chunks.shape[0],)](
        tensors, chunks, norm,
        rate, 1 - beta**steps, 1 - beta2**steps, decay, clip_norm,
        BETA=beta, BETA2=beta2, EPSILON=epsilon, CHUNK=CHUNK, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
