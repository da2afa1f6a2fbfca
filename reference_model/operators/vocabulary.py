"""Token embedding and cross-entropy, forward and backward.

Those named *_part work on a table or on logits of which a GPU holds some entries of the vocabulary
only, from `first` on."""

import torch
from torch import Tensor
from torch.nn import functional

from reference_model.operators.registration import like_first, operator


@operator(fake=lambda tokens, table, **_: table.new_empty((tokens.shape[0], table.shape[1])))
def embedding(tokens: Tensor, table: Tensor, *, site: str) -> Tensor:
    """Rows of table [vocabulary, hidden] of tokens int64 [T]."""
    return functional.embedding(tokens, table)


@operator(fake=None, mutates=("table_grad",))
def embedding_backward(table_grad: Tensor, tokens: Tensor, grad: Tensor, *, site: str) -> None:
    """Adds grad [T, hidden] into the rows of table_grad (float32) of tokens."""
    table_grad.index_add_(0, tokens, grad.float())


@operator(
    fake=lambda logits, _t, **_: (
        logits.new_empty((), dtype=torch.float32),
        logits.new_empty((logits.shape[0],), dtype=torch.float32),
    )
)
def cross_entropy(logits: Tensor, targets: Tensor, *, site: str) -> tuple[Tensor, Tensor]:
    """Compute of logits [T, vocabulary] and targets int64 [T] the mean loss [], and the log-sum-exp
    of each row [T]."""
    wide = logits.float()
    log_sum = wide.logsumexp(dim=1)
    return (log_sum - wide.gather(1, targets[:, None])[:, 0]).mean(), log_sum


@operator(fake=like_first)
def cross_entropy_backward(
    logits: Tensor, targets: Tensor, log_sum: Tensor, *, weight: float, site: str
) -> Tensor:
    """Gradient of weight x the mean loss, like logits."""
    grad = torch.exp(logits.float() - log_sum[:, None])
    grad[torch.arange(grad.shape[0], device=grad.device), targets] -= 1
    return (grad * (weight / grad.shape[0])).to(logits.dtype)


# -- a part of the vocabulary ----------------------------------------------------------------------


def _mine(tokens: Tensor, first: int, size: int) -> tuple[Tensor, Tensor]:
    """Places of tokens in a part of the vocabulary, and which of them lie in it."""
    place = tokens - first
    inside = (place >= 0) & (place < size)
    return torch.where(inside, place, 0), inside


@operator(fake=lambda tokens, table, **_: table.new_empty((tokens.shape[0], table.shape[1])))
def embedding_part(tokens: Tensor, table: Tensor, *, first: int, site: str) -> Tensor:
    """Rows of table [part of the vocabulary, hidden] of tokens int64 [T]; zeros of other tokens."""
    place, inside = _mine(tokens, first, table.shape[0])
    return functional.embedding(place, table) * inside[:, None]


@operator(fake=None, mutates=("table_grad",))
def embedding_backward_part(
    table_grad: Tensor, tokens: Tensor, grad: Tensor, *, first: int, site: str
) -> None:
    """Adds grad [T, hidden] into the rows of table_grad (float32) of those tokens that it has."""
    place, inside = _mine(tokens, first, table_grad.shape[0])
    table_grad.index_add_(0, place, grad.float() * inside[:, None])


@operator(fake=lambda logits, _t, **_: logits.new_empty((logits.shape[0], 2), dtype=torch.float32))
def cross_entropy_part(logits: Tensor, targets: Tensor, *, first: int, site: str) -> Tensor:
    """Compute of logits [T, part of the vocabulary] and targets int64 [T] each row's log-sum-exp
    and the target's logit, 0 where another part has it [T, 2]."""
    place, inside = _mine(targets, first, logits.shape[1])
    wide = logits.float()
    target = wide.gather(1, place[:, None])[:, 0] * inside
    return torch.stack((wide.logsumexp(dim=1), target), dim=1)


@operator(
    fake=lambda parts, *, ranks, **_: (
        parts.new_empty(()),
        parts.new_empty((parts.shape[0] // ranks,)),
    )
)
def cross_entropy_merged(parts: Tensor, *, ranks: int, site: str) -> tuple[Tensor, Tensor]:
    """Merge what `cross_entropy_part` returned on all ranks, one after the other [ranks x T, 2],
    into the mean loss [] and the log-sum-exp of each row [T]."""
    log_sums, targets = parts.view(ranks, -1, 2).unbind(dim=2)
    log_sum = log_sums.logsumexp(dim=0)
    return (log_sum - targets.sum(dim=0)).mean(), log_sum


@operator(fake=like_first)
def cross_entropy_backward_part(
    logits: Tensor, targets: Tensor, log_sum: Tensor, *, first: int, weight: float, site: str
) -> Tensor:
    """Gradient of weight x the mean loss, like logits [T, part of the vocabulary]."""
    place, inside = _mine(targets, first, logits.shape[1])
    grad = torch.exp(logits.float() - log_sum[:, None])
    grad.scatter_add_(1, place[:, None], -inside.float()[:, None])
    return (grad * (weight / grad.shape[0])).to(logits.dtype)
