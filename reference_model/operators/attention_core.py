"""Causal attention of decompressed queries, keys and values, forward and backward."""

from collections.abc import Iterable

import torch
from torch import Tensor

from reference_model.operators.registration import operator


def causal_scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Causal scores of one sequence, float32 [heads, query, key], of q, k [length, heads, dim]."""
    scores = torch.einsum("qhd,khd->hqk", q.float(), k.float()) * scale
    visible = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device)
    visible = visible.tril(scores.shape[2] - scores.shape[1])  # queries are the last of the keys
    return scores.masked_fill(~visible, float("-inf"))


def attention_forward_fake(q: Tensor, k: Tensor, v: Tensor, **_: object) -> tuple[Tensor, Tensor]:
    sequences, length, heads, _dim = q.shape
    out = q.new_empty((sequences, length, heads, v.shape[3]))
    return out, q.new_empty((sequences, heads, length), dtype=torch.float32)


@operator(fake=attention_forward_fake)
def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, site: str
) -> tuple[Tensor, Tensor]:
    """Causal attention of q, k [sequences, length, heads, qk_dim], v [..., v_dim]; returns a tensor
    like v, and the log-sum-exp of each row, float32 [sequences, heads, length]."""
    return attention_of_scores(
        (causal_scores(q_s, k_s, scale) for q_s, k_s in zip(q, k, strict=True)), v
    )


def attention_of_scores(scores: Iterable[Tensor], v: Tensor) -> tuple[Tensor, Tensor]:
    """What `attention_forward` returns, of the scores of each sequence [heads, query, key]."""
    outs, sums = [], []
    for one, v_s in zip(scores, v, strict=True):
        log_sum = one.logsumexp(dim=2)
        weights = torch.exp(one - log_sum[:, :, None])
        outs.append(torch.einsum("hqk,khd->qhd", weights, v_s.float()).to(v.dtype))
        sums.append(log_sum)
    return torch.stack(outs), torch.stack(sums)


def _attention_preprocess_fake(
    output: Tensor, out_grad: Tensor, *, qk_dim: int, **_: object
) -> tuple[Tensor, Tensor]:
    sequences, length, heads, _dim = output.shape
    delta = output.new_empty((sequences, heads, length), dtype=torch.float32)
    return delta, output.new_empty((sequences, length, heads, qk_dim), dtype=torch.float32)


@operator(fake=_attention_preprocess_fake)
def attention_backward_preprocess(
    output: Tensor, out_grad: Tensor, *, qk_dim: int, site: str
) -> tuple[Tensor, Tensor]:
    """Sums of output x out_grad over v_dim, float32 [sequences, heads, length], and an accumulator
    of the query gradient filled with zeros, float32 [sequences, length, heads, qk_dim]."""
    delta = torch.einsum("sqhd,sqhd->shq", output.float(), out_grad.float())
    return delta.contiguous(), torch.zeros(
        (*output.shape[:3], qk_dim), dtype=torch.float32, device=output.device
    )


def attention_backward_fake(
    q_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object
) -> tuple[Tensor, Tensor]:
    return k.new_empty(k.shape), v.new_empty(v.shape)


@operator(fake=attention_backward_fake, mutates=("q_grad",))
def attention_backward(
    q_grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out_grad: Tensor,
    log_sum: Tensor,
    delta: Tensor,
    *,
    scale: float,
    site: str,
) -> tuple[Tensor, Tensor]:
    """Adds dQ into q_grad (float32) and returns dK, dV like k and v, contiguous."""
    scores = (causal_scores(q_s, k_s, scale) for q_s, k_s in zip(q, k, strict=True))
    return gradients_of_scores(
        scores, q_grad, q, k, v, out_grad=out_grad, log_sum=log_sum, delta=delta, scale=scale
    )


def gradients_of_scores(
    scores: Iterable[Tensor],
    q_grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    out_grad: Tensor,
    log_sum: Tensor,
    delta: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """What `attention_backward` adds and returns, of the scores of each sequence."""
    k_grads, v_grads = [], []
    for s, one in enumerate(scores):
        weights = torch.exp(one - log_sum[s][:, :, None])
        grad = out_grad[s].float()
        v_grads.append(torch.einsum("hqk,qhd->khd", weights, grad).to(v.dtype))
        weights_grad = torch.einsum("qhd,khd->hqk", grad, v[s].float())
        scores_grad = weights * (weights_grad - delta[s][:, :, None]) * scale
        q_grad[s] += torch.einsum("hqk,khd->qhd", scores_grad, k[s].float())
        k_grads.append(torch.einsum("hqk,qhd->khd", scores_grad, q[s].float()).to(k.dtype))
    return torch.stack(k_grads), torch.stack(v_grads)
