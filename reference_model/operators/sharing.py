"""All-gather and reduce-scatter of tokens among the GPUs that share a layer.

The ranks are all of the default process group. Rows of the ranks follow each other, as the tokens
of a sequence do that is split over them. What is summed is added in float32 in the order of ranks,
so that a test sees the same sum every time; NCCL adds on the way.
"""

import torch
from torch import Tensor, distributed

from reference_model.operators.registration import operator, scale_tiles


def _gather_fake(x: Tensor, scales: Tensor | None, *, ranks: int, **_: object) -> list[Tensor]:
    rows = ranks * x.shape[0]
    values = x.new_empty((rows, *x.shape[1:]))
    if scales is None:
        return [values]
    tiles = scale_tiles(x.shape[1])
    return [values, x.new_empty((tiles, rows), dtype=torch.float32).t()]


@operator(fake=_gather_fake)
def gather_tokens(x: Tensor, scales: Tensor | None, *, ranks: int, site: str) -> list[Tensor]:
    """Gather x [rows, columns] of every rank, one after the other, and its scales where it has
    some."""
    parts = [x] if scales is None else [x, scales]
    found = []
    for part in parts:
        own = part.contiguous().view(torch.uint8)
        every = own.new_empty((_checked(ranks) * own.shape[0], *own.shape[1:]))
        distributed.all_gather(list(every.chunk(ranks)), own)
        found.append(every.view(part.dtype))
    # Scales are stored column by column, as products read them.
    return [found[0], *(scale.t().contiguous().t() for scale in found[1:])]


@operator(fake=lambda x, *, ranks, **_: x.new_empty((x.shape[0] // ranks, *x.shape[1:])))
def scatter_sums(x: Tensor, *, ranks: int, site: str) -> Tensor:
    """Each rank's share of the rows of x [rows, columns], summed over ranks."""
    sent = x.contiguous().view(torch.uint8)
    received = torch.empty_like(sent)
    distributed.all_to_all_single(received, sent)
    terms = received.view(x.dtype).chunk(_checked(ranks))
    total = terms[0].float()
    for term in terms[1:]:
        total = total + term.float()
    return total.to(x.dtype)


def _checked(ranks: int) -> int:
    world = distributed.get_world_size()
    if world != ranks:
        raise ValueError(f"{ranks} GPUs share a layer, and the process group has {world} ranks")
    return ranks
