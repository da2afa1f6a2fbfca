# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""AdamW as one Triton kernel: one pass over weights, gradients and moments.

optimizer.py says what a step computes. The kernel finds its tensors through a table of addresses,
so one launch serves all of them, and it leaves the gradients filled with zeros for the next step.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
_CHUNK = 16 * _BLOCK
"""Elements of one tensor that one program updates."""


@triton.jit
def _adamw_kernel(
    addresses,  # int64 [4, tensors]: of weights, gradients, first and second moments
    sizes,  # int64 [tensors]
    decays,  # float32 [tensors]: weight decay
    chunk_tensors,  # int32 [chunks]: the tensor of each chunk
    chunk_starts,  # int64 [chunks]: its first element
    factors,  # float32 [4]: learning rate, 1 - beta^steps, 1 - beta2^steps, clip
    tensors,
    BETA: tl.constexpr,
    BETA2: tl.constexpr,
    EPSILON: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tensor = tl.load(chunk_tensors + tl.program_id(0))
    start = tl.load(chunk_starts + tl.program_id(0))
    size, decay = tl.load(sizes + tensor), tl.load(decays + tensor)
    weights = tl.load(addresses + tensor).to(tl.pointer_type(tl.float32))
    gradients = tl.load(addresses + tensors + tensor).to(tl.pointer_type(tl.float32))
    firsts = tl.load(addresses + 2 * tensors + tensor).to(tl.pointer_type(tl.bfloat16))
    seconds = tl.load(addresses + 3 * tensors + tensor).to(tl.pointer_type(tl.bfloat16))
    rate, unbias = tl.load(factors), tl.load(factors + 1)
    unbias2, clip = tl.load(factors + 2), tl.load(factors + 3)
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
        weight = weight * (1 - rate * decay) - rate * update
        tl.store(weights + at, weight, mask=inside)
        tl.store(firsts + at, first.to(tl.bfloat16), mask=inside)
        tl.store(seconds + at, second.to(tl.bfloat16), mask=inside)
        tl.store(gradients + at, tl.zeros([BLOCK], tl.float32), mask=inside)


class FusedAdamW:
    """The step of AdamW over tensors that stay where they are; all contiguous."""

    def __init__(
        self,
        weights: Sequence[Tensor],
        firsts: Sequence[Tensor],
        seconds: Sequence[Tensor],
        *,
        decays: Sequence[float],
        betas: tuple[float, float],
        epsilon: float,
    ) -> None:
        self._kept = (weights, firsts, seconds)
        self._betas, self._epsilon = betas, epsilon
        self._device = weights[0].device
        sizes = [x.numel() for x in weights]
        chunks = [(i, at) for i, size in enumerate(sizes) for at in range(0, size, _CHUNK)]
        self._sizes = self._table(sizes, torch.int64)
        self._decays = self._table(list(decays), torch.float32)
        self._chunk_tensors = self._table([tensor for tensor, _ in chunks], torch.int32)
        self._chunk_starts = self._table([start for _, start in chunks], torch.int64)
        self._found_at: list[int] = []
        self._addresses = torch.empty(0)

    def step(self, gradients: Sequence[Tensor], *, rate: float, steps: int, clip: Tensor) -> None:
        """Update the weights from gradients times clip, float32 [], and clear the gradients."""
        weights, firsts, seconds = self._kept
        found_at = [x.data_ptr() for x in (*weights, *gradients, *firsts, *seconds)]
        if found_at != self._found_at:
            self._found_at, self._addresses = found_at, self._table(found_at, torch.int64)
        beta, beta2 = self._betas
        known = self._table([rate, 1 - beta**steps, 1 - beta2**steps], torch.float32)
        _adamw_kernel[(self._chunk_tensors.shape[0],)](
            self._addresses, self._sizes, self._decays, self._chunk_tensors, self._chunk_starts,
            torch.cat((known, clip.view(1))), len(weights),
            BETA=beta, BETA2=beta2, EPSILON=self._epsilon, CHUNK=_CHUNK, BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
        for weight in weights:
            torch.autograd.graph.increment_version(weight)  # torch did not see it change

    def _table(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self._device)
