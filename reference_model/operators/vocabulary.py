"""Token embedding and cross-entropy, forward and backward."""

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
    """logits [T, vocabulary], targets int64 [T] -> mean loss [], log-sum-exp of each row [T]."""
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
