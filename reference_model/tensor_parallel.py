"""Share layers among GPUs: what crosses between them, and each one's part of the weights.

As Megatron-LM has it, with sequence parallelism: norms, router, residual stream and the projections
down to the latents work on a GPU's own tokens, with weights that all hold; heads, feed-forwards and
the vocabulary are split, and work on the tokens of all. Before them tokens are gathered, behind
them partial sums are added and scattered.

    attention    latents and rotary key are gathered (the hidden state, where queries have no
                 latent); o_proj gives partial sums
    dense        and shared experts: operands of gate and up are gathered, down gives partial sums
    experts      split on their own (expert tensor parallelism): dispatched rows are gathered, and
                 their sums over experts scattered before they return
    embedding    each looks up all tokens in its part of the table; the rest of them are zero
    head         the normed stream is gathered; a log-sum-exp joins those of all parts
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from reference_model import operators as ops
from reference_model.operators import Site
from reference_model.precision import Operand
from reference_model.split import Split


@dataclass(frozen=True, slots=True)
class Group:
    """GPUs among which tokens are gathered and partial sums scattered; one needs neither."""

    axis: str
    """"tensor" or "expert_tensor"."""
    ranks: int

    def rank(self) -> int:
        """This GPU's place among them; the first where there is no process group (a recording)."""
        return distributed.get_rank() if distributed.is_initialized() else 0

    def gather(self, x: Tensor, name: str, site: Site) -> Tensor:
        """Gather x [rows, columns] of all ranks."""
        return self.gather_operand(Operand(x, None), name, site).values

    def gather_operand(self, x: Operand, name: str, site: Site) -> Operand:
        """The same of an operand, with its scales."""
        if self.ranks == 1:
            return x
        found = ops.gather_tokens(
            x.values, x.scales, ranks=self.ranks, site=site(f"{name}.{self.axis}_gather")
        )
        return Operand(found[0], None if x.scales is None else found[1])

    def scatter(self, x: Tensor, name: str, site: Site) -> Tensor:
        """This rank's rows of the sum over ranks of x [rows, columns]."""
        if self.ranks == 1:
            return x
        return ops.scatter_sums(x, ranks=self.ranks, site=site(f"{name}.{self.axis}_scatter"))


def tensor_group(split: Split) -> Group:
    """Those that share heads, feed-forwards and vocabulary."""
    return Group("tensor", split.tensor)


def expert_group(split: Split) -> Group:
    """Those that share the width of each routed expert."""
    return Group("expert_tensor", split.expert_tensor)


@torch.no_grad()
def take_part(part: nn.Module, whole: nn.Module, *, rank: int) -> None:
    """Copy this rank's part of the weights of a whole module into a module that is split."""
    mine = dict(part.named_parameters())
    for name, weight in whole.named_parameters():
        mine[name].copy_(part_of_weight(name, weight, mine[name].shape, rank=rank))
    buffers = dict(part.named_buffers())
    for name, value in whole.named_buffers():
        buffers[name].copy_(value)


def part_of_weight(name: str, weight: Tensor, shape: torch.Size, *, rank: int) -> Tensor:
    """A rank's part of shape `shape` of a whole weight, or of its gradient."""
    if weight.shape == shape:
        return weight
    (dim,) = (place for place, size in enumerate(shape) if size != weight.shape[place])
    # Gate and up projections lie one after the other, and a rank has the same columns of both.
    halves = weight.chunk(2, dim) if "gate_up_proj" in name else (weight,)
    size = shape[dim] // len(halves)
    return torch.cat([half.narrow(dim, rank * size, size) for half in halves], dim)
