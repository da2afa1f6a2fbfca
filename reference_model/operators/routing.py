"""Gate, dispatch and combine, and token permutation to experts and back."""

import torch
from torch import Tensor

from reference_model.operators.registration import like_first, operator


def gate_scores(logits: Tensor, scoring: str) -> Tensor:
    """Scores of the experts [T, experts], by `ModelConfig.scoring_func`."""
    return logits.softmax(dim=1) if scoring == "softmax" else torch.sigmoid(logits)


def gate_scores_backward(scores: Tensor, grad: Tensor, scoring: str) -> Tensor:
    """Gradient of the logits, given the scores and their gradient."""
    if scoring == "softmax":
        return scores * (grad - (grad * scores).sum(dim=1, keepdim=True))
    return grad * scores * (1 - scores)


def _gate_fake(
    logits: Tensor, _bias: Tensor | None, *, top_k: int, **_: object
) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], top_k)
    return logits.new_empty(shape, dtype=torch.int64), logits.new_empty(shape)


# About 35 kernels in the trace, most of 1 to 7 us; two of its three top-k selections and the sums
# for the auxiliary loss (which this model does not have) are among them.
@operator(fake=_gate_fake)
def gate(
    logits: Tensor,
    correction_bias: Tensor | None,
    *,
    scoring: str,
    n_group: int,
    topk_group: int,
    top_k: int,
    normalise: bool,
    scaling: float,
    site: str,
) -> tuple[Tensor, Tensor]:
    """Choose experts by logits float32 [T, experts]; returns indices int64 and weights float32
    [T, K].

    Groups are ranked by the sum of their two best biased scores (Technical Report, section 2.1.2),
    or, where scores are a softmax, by their best one (DeepSeek-V2, arXiv:2405.04434, section
    2.2.2); experts by their biased score within the chosen groups; weights are unbiased scores."""
    tokens, experts = logits.shape
    scores = gate_scores(logits, scoring)
    biased = scores if correction_bias is None else scores + correction_bias
    best = 1 if scoring == "softmax" else 2
    worth = biased.view(tokens, n_group, -1).topk(best, dim=2).values.sum(dim=2)
    groups = worth.topk(topk_group, dim=1).indices  # [T, topk_group]
    allowed = torch.zeros_like(worth, dtype=torch.bool).scatter_(1, groups, True)
    allowed = allowed.repeat_interleave(experts // n_group, dim=1)  # [T, experts]
    indices = biased.masked_fill(~allowed, float("-inf")).topk(top_k, dim=1).indices
    weights = scores.gather(1, indices)
    if normalise:
        weights = weights / (weights.sum(dim=1, keepdim=True) + 1e-20)
    return indices, weights * scaling


@operator(fake=lambda logits, _i, _w, *, dtype, **_: torch.empty_like(logits, dtype=dtype))
def gate_backward(
    logits: Tensor,
    indices: Tensor,
    weights_grad: Tensor,
    *,
    scoring: str,
    normalise: bool,
    scaling: float,
    dtype: torch.dtype,
    site: str,
) -> Tensor:
    """Gradient of the logits [T, experts], given that of the weights of the chosen experts."""
    scores = gate_scores(logits, scoring)
    chosen = scores.gather(1, indices)
    grad = weights_grad * scaling
    if normalise:
        total = chosen.sum(dim=1, keepdim=True) + 1e-20
        grad = (grad - (grad * chosen).sum(dim=1, keepdim=True) / total) / total
    scores_grad = torch.zeros_like(scores).scatter_(1, indices, grad)
    return gate_scores_backward(scores, scores_grad, scoring).to(dtype)


@operator(fake=lambda i, *, experts, **_: i.new_empty((experts,), dtype=torch.int32))
def dispatch_layout(indices: Tensor, *, experts: int, site: str) -> Tensor:
    """Count the tokens bound for each expert, int32 [experts], of choices [T, K]."""
    return torch.bincount(indices.flatten(), minlength=experts).int()


def _received(x: Tensor, rows: int) -> Tensor:
    """One device holds every expert: each token is received once, by itself."""
    _check_received(x, rows)
    return x.clone()


def _check_received(x: Tensor, rows: int) -> None:
    if rows != x.shape[0]:
        raise ValueError(
            f"received_rows = {rows}: one device that holds every expert receives each of its"
            f" {x.shape[0]} tokens once; only the meta device shows one rank of many"
        )


def _dispatch_fake(
    x: Tensor, scales: Tensor | None, indices: Tensor, weights: Tensor, *, rows: int, site: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    values, received_scales = _dispatch_cached_fake(x, scales, rows=rows, site=site)
    top_k = indices.shape[1]
    return (
        values,
        received_scales,
        indices.new_empty((rows, top_k)),
        weights.new_empty((rows, top_k)),
    )


def _dispatch_cached_fake(
    x: Tensor, scales: Tensor | None, *, rows: int, site: str
) -> tuple[Tensor, Tensor]:
    tiles = 0 if scales is None else scales.shape[1]
    received_scales = x.new_empty((tiles, rows), dtype=torch.float32).t()
    return x.new_empty((rows, x.shape[1])), received_scales


def _no_scales(x: Tensor) -> Tensor:
    """Scales of a payload that is not quantised: none, [rows, 0]."""
    return torch.empty((x.shape[0], 0), dtype=torch.float32, device=x.device)


# The kernels that exchange counts before each transfer (notify, 0.7 to 3.9 ms in the trace) mostly
# wait for the slowest rank: part of the operator here, and no cost of its own.
@operator(fake=_dispatch_fake)
def dispatch(
    x: Tensor,
    scales: Tensor | None,
    indices: Tensor,
    weights: Tensor,
    *,
    rows: int,
    site: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Send tokens x [T, hidden] to the ranks of their experts; returns what this rank receives:
    values [D, hidden], scales [D, tiles] (no tiles if not quantised), choices and weights
    [D, K]."""
    received_scales = _no_scales(x) if scales is None else _received(scales, rows)
    return _received(x, rows), received_scales, _received(indices, rows), _received(weights, rows)


@operator(fake=_dispatch_cached_fake)
def dispatch_cached(
    x: Tensor, scales: Tensor | None, *, rows: int, site: str
) -> tuple[Tensor, Tensor]:
    """Send output gradients along the layout of the forward pass: the backward of `combine`."""
    return _received(x, rows), _no_scales(x) if scales is None else _received(scales, rows)


@operator(fake=lambda _x, shared, **_: like_first(shared))
def combine(x: Tensor, shared: Tensor, *, site: str) -> Tensor:
    """Return expert outputs x [D, hidden] to their tokens and add them to the shared expert's
    output [T, hidden]."""
    _check_received(x, shared.shape[0])
    return x + shared


@operator(
    fake=lambda _x, shared, weights_grad, **_: (
        like_first(shared),
        weights_grad.new_empty((shared.shape[0], weights_grad.shape[1])),
    )
)
def combine_backward(
    x: Tensor, shared: Tensor, weights_grad: Tensor, *, site: str
) -> tuple[Tensor, Tensor]:
    """The backward of `dispatch`: input gradients x [D, hidden] return to their tokens and are
    added to the shared expert's; gradients of routing weights [D, K] travel along."""
    tokens = shared.shape[0]
    _check_received(x, tokens)
    return x + shared, _received(weights_grad, tokens)


def _expert_mapping_fake(
    indices: Tensor, weights: Tensor, *, rows: int, local_experts: int, site: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        indices.new_empty((rows,), dtype=torch.int32),
        weights.new_empty((rows,)),
        indices.new_empty(indices.shape, dtype=torch.int32),
        indices.new_empty((local_experts,), dtype=torch.int32),
    )


# Two kernels in the trace: count rows (70 us), then map them (171 us).
@operator(fake=_expert_mapping_fake)
def expert_mapping(
    indices: Tensor, weights: Tensor, *, rows: int, local_experts: int, site: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort received choices [D, K] by local expert. Choices outside 0 .. E-1 are other ranks'.

    Returns the received token of each row, int32 [R]; its routing weight, float32 [R]; the row of
    each choice, int32 [D, K], -1 for other ranks'; and the rows of each expert, int32 [E]."""
    flat = indices.flatten()
    local = (flat >= 0) & (flat < local_experts)
    group_sizes = torch.bincount(flat[local], minlength=local_experts).int()
    choices = torch.where(local, flat, local_experts).argsort(stable=True)[: int(local.sum())]
    if choices.shape[0] != rows:
        raise ValueError(f"expert_rows = {rows}, but {choices.shape[0]} choices are local")
    choice_rows = torch.full_like(flat, -1, dtype=torch.int32)
    choice_rows[choices] = torch.arange(rows, dtype=torch.int32, device=flat.device)
    row_source = (choices // indices.shape[1]).int()
    return row_source, weights.flatten()[choices], choice_rows.view_as(indices), group_sizes


# The trace copies the scales of expanded rows into contiguous memory in a kernel of 5 to 23 us
# beside each grouped GEMM that reads them; they are written contiguous here.
@operator(
    fake=lambda x, scales, row_source, **_: _dispatch_cached_fake(
        x, scales, rows=row_source.shape[0], site=""
    )
)
def permute(
    x: Tensor, scales: Tensor | None, row_source: Tensor, *, site: str
) -> tuple[Tensor, Tensor]:
    """Expand received tokens x [D, columns] to rows sorted by expert [R, columns], with scales."""
    index = row_source.long()
    # Moved as bytes: not every torch has index kernels for FP8.
    rows = x.view(torch.uint8)[index].view(x.dtype)
    if scales is None:
        return rows, _no_scales(rows)
    return rows, scales.t()[:, index].t()


@operator(fake=lambda x, choice_rows, **_: x.new_empty((choice_rows.shape[0], x.shape[1])))
def unpermute(x: Tensor, choice_rows: Tensor, *, site: str) -> Tensor:
    """Sum the rows [R, columns] of each received token to [D, columns], in float32."""
    total = torch.zeros((choice_rows.shape[0], x.shape[1]), dtype=torch.float32, device=x.device)
    for rows in choice_rows.long().unbind(dim=1):
        total += x[rows.clamp(min=0)] * (rows >= 0)[:, None]
    return total.to(x.dtype)


@operator(fake=lambda _a, _g, weights, choice_rows, **_: weights.new_empty(choice_rows.shape))
def topk_weight_grad(
    activated: Tensor, grad: Tensor, row_weights: Tensor, choice_rows: Tensor, *, site: str
) -> Tensor:
    """Gradient of the routing weights [D, K], 0 for other ranks' choices.

    `activated` [R, columns] holds the routing weight, so the product of it and its gradient,
    summed over columns, is that weight too often."""
    product = (activated.float() * grad.float()).sum(dim=1)
    rows_grad = torch.where(row_weights == 0, 0.0, product / row_weights)
    rows = choice_rows.long()
    return torch.where(rows >= 0, rows_grad[rows.clamp(min=0)], 0.0)
