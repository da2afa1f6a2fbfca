"""Dispatch and combine between the ranks of a process group, as torch.library custom operators.

Each takes the place of the operator of operators/routing.py that shows one rank alone, moves the
same tensors, and is the same kind of trace operator. Rows travel as bytes, FP8 values beside their
scales, choices and weights, in one all-to-all with uneven counts over the default process group;
peer_memory.py puts kernels in its place that write to the other GPUs' memory.

    source      int64 [rows sent in dispatch], the token of each row, the rows of a peer together
    token_rows  int64 [T, ranks], the row of each token among those, by peer; -1 where there is none
    sent        rows that this rank sends to each peer in this operator, its own share included
    received    rows that come from each peer
    first       the place that the first of this rank's rows has among those that a peer receives

Letters are those of operators; D rows arrive in dispatch, sorted by the rank they come from. The
published kernels add what returns to a token in float32 on the receiving side; so do these.
"""

import torch
from torch import Tensor, distributed

from reference_model.operators.registration import operator, scale_tiles


def _exchange(payload: list[Tensor], sent: list[int], received: list[int]) -> list[Tensor]:
    """Send rows of several tensors [rows, .] side by side -> the same tensors as received."""
    views = [part.contiguous().view(torch.uint8) for part in payload]
    message = torch.cat(views, dim=1)
    arrived = message.new_empty((sum(received), message.shape[1]))
    distributed.all_to_all_single(arrived, message, received, sent)
    results = [like.new_empty((arrived.shape[0], like.shape[1])) for like in payload]
    columns = torch.split(arrived, [view.shape[1] for view in views], dim=1)
    for result, part in zip(results, columns, strict=True):
        result.view(torch.uint8).copy_(part)
    return results


def _at(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x; moved as bytes, because not every torch has index kernels for FP8."""
    return x.contiguous().view(torch.uint8)[index].view(x.dtype)


def scales_or_none(scales: Tensor | None, x: Tensor) -> Tensor:
    """Scales [rows, tiles]; no tiles where x [rows, .] is not quantised."""
    return x.new_empty((x.shape[0], 0), dtype=torch.float32) if scales is None else scales


def _by_column(scales: Tensor) -> Tensor:
    """Stored column by column, as products read scales."""
    return scales.t().contiguous().t()


def _cached_fake(
    x: Tensor, scales: Tensor | None, _source: Tensor, *, received: list[int], **_: object
) -> tuple[Tensor, Tensor]:
    rows, tiles = sum(received), 0 if scales is None else scale_tiles(x.shape[1])
    return (
        x.new_empty((rows, x.shape[1])),
        x.new_empty((tiles, rows), dtype=torch.float32).t(),
    )


def _dispatch_fake(
    x: Tensor,
    scales: Tensor | None,
    indices: Tensor,
    weights: Tensor,
    source: Tensor,
    *,
    received: list[int],
    **_: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    values, received_scales = _cached_fake(x, scales, source, received=received)
    shape = (sum(received), indices.shape[1])
    return values, received_scales, indices.new_empty(shape), weights.new_empty(shape)


@operator(fake=_dispatch_fake)
def dispatch_to_peers(
    x: Tensor,
    scales: Tensor | None,
    indices: Tensor,
    weights: Tensor,
    source: Tensor,
    *,
    sent: list[int],
    received: list[int],
    first: list[int],
    local_experts: int,
    site: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Send tokens x [T, H] to every rank that holds an expert among their choices [T, K]; returns
    values [D, H], scales [D, tiles], choices and weights [D, K]. Choices arrive counted from the
    first expert of the receiving rank."""
    peers = torch.arange(len(sent), device=source.device)
    shift = peers.repeat_interleave(torch.tensor(sent, device=source.device)) * local_experts
    payload = [
        _at(x, source),
        scales_or_none(scales, x)[source],
        indices[source] - shift[:, None],
        weights[source],
    ]
    values, tiles, choices, factors = _exchange(payload, sent, received)
    return values, _by_column(tiles), choices, factors


@operator(fake=_cached_fake)
def dispatch_cached_to_peers(
    x: Tensor,
    scales: Tensor | None,
    source: Tensor,
    *,
    sent: list[int],
    received: list[int],
    first: list[int],
    site: str,
) -> tuple[Tensor, Tensor]:
    """Send output gradients x [T, H] along the layout of the forward pass: the backward of
    `combine_from_peers`."""
    payload = [_at(x, source), scales_or_none(scales, x)[source]]
    values, tiles = _exchange(payload, sent, received)
    return values, _by_column(tiles)


@operator(fake=lambda _x, shared, _rows, **_: torch.empty_like(shared))
def combine_from_peers(
    x: Tensor,
    shared: Tensor,
    token_rows: Tensor,
    *,
    sent: list[int],
    received: list[int],
    first: list[int],
    site: str,
) -> Tensor:
    """Return expert outputs x [D, H] to their tokens and add them to the shared expert's output
    [T, H]."""
    (returned,) = _exchange([x], sent, received)
    return _summed(returned, shared, token_rows)


@operator(
    fake=lambda _x, shared, weights_grad, _rows, **_: (
        torch.empty_like(shared),
        weights_grad.new_empty((shared.shape[0], weights_grad.shape[1])),
    )
)
def combine_backward_from_peers(
    x: Tensor,
    shared: Tensor,
    weights_grad: Tensor,
    token_rows: Tensor,
    *,
    sent: list[int],
    received: list[int],
    first: list[int],
    site: str,
) -> tuple[Tensor, Tensor]:
    """The backward of `dispatch_to_peers`: input gradients x [D, H] return to their tokens and are
    added to the shared expert's; gradients of routing weights [D, K] travel along."""
    returned, factors = _exchange([x, weights_grad], sent, received)
    none = factors.new_zeros((token_rows.shape[0], factors.shape[1]))
    return _summed(returned, shared, token_rows), _summed(factors, none, token_rows)


def _summed(rows: Tensor, shared: Tensor, token_rows: Tensor) -> Tensor:
    """shared [T, columns] plus the rows of each token, added in float32 in the order of ranks."""
    total = shared.float()
    for of_peer in token_rows.unbind(dim=1):
        total = total + rows[of_peer.clamp(min=0)].float() * (of_peer >= 0)[:, None]
    return total.to(shared.dtype)
