"""Sparse attention: an indexer scores every earlier token, and each query reads the best of them.

DeepSeek-V3.2-Exp's report, section 2.1: index score of query t and token s = sum over index heads
of weight x relu(q . k), in float32; the `top_k` best tokens are read, all of them where there are
no more. The indexer has one key for all of its heads.

I index heads, D their dimension; -1 stands for a position that a query has too few tokens to fill.
"""

import torch
from torch import Tensor

from reference_model.kernels.reference import round_to_e4m3, scale_of
from reference_model.operators.attention_core import (
    attention_backward_fake,
    attention_forward_fake,
    attention_of_scores,
    causal_scores,
    gradients_of_scores,
)
from reference_model.operators.registration import like_first, operator


@operator(fake=like_first)
def layernorm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, site: str) -> Tensor:
    """Norm x [T, columns]: less its mean, over its standard deviation, times weight plus bias
    (float32)."""
    wide = torch.nn.functional.layer_norm(x.float(), x.shape[1:], weight, bias, eps)
    return wide.to(x.dtype)


@operator(fake=None, mutates=("x",))
def rope_index(x: Tensor, cos: Tensor, sin: Tensor, *, halves: bool, site: str) -> None:
    """Rotate pairs of x [S, Q, I, dim] by the angles of its positions, in place: dimensions i and
    dim / 2 + i where `halves` (DeepSeek-V3.2), else 2 i and 2 i + 1 (GLM-5); cos, sin are float32
    [Q, dim / 2] or, where sequences stand at different positions, [S, Q, dim / 2]."""
    cosine, sine = (a.view(-1, x.shape[1], 1, a.shape[-1]) for a in (cos, sin))
    half = x.shape[-1] // 2
    pairs = x.float().view(*x.shape[:-1], *((2, half) if halves else (half, 2)))
    first, second = pairs.unbind(-2 if halves else -1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    x.copy_(torch.stack(turned, -2 if halves else -1).flatten(-2))


@operator(fake=None, mutates=("cache", "cache_scales"))
def append_index(
    keys: Tensor, positions: Tensor, cache: Tensor, cache_scales: Tensor, *, site: str
) -> None:
    """Write index keys [T, D] at positions int64 [S, Q] of cache E4M3 [S, capacity, D], with one
    power of two each as scale, cache_scales float32 [S, capacity]."""
    by_position = keys.view(*positions.shape, -1).float()
    scales = scale_of(by_position.abs().amax(dim=2), power_of_two_scales=True)
    cache_scales.scatter_(1, positions, scales)
    # Moved as bytes: not every torch has scatter kernels for FP8.
    entries = round_to_e4m3(by_position / scales[:, :, None]).to(cache.dtype).view(torch.uint8)
    target = positions[:, :, None].expand_as(entries)
    cache.view(torch.uint8).scatter_(1, target, entries)


@operator(
    fake=lambda q, _qs, _w, keys, *_, **__: q.new_empty(
        (*q.shape[:2], keys.shape[1]), dtype=torch.float32
    )
)
def index_scores(
    q: Tensor,
    q_scales: Tensor | None,
    weights: Tensor,
    keys: Tensor,
    key_scales: Tensor | None,
    lengths: Tensor | None,
    *,
    scale: float,
    site: str,
) -> Tensor:
    """Score q [S, Q, I, D], weights float32 [S, Q, I], against keys [S, length, D]; returns float32
    [S, Q, length], -inf of tokens that a query may not see; of E4M3 operands scales float32
    [S, Q, I] and [S, length].

    Queries are the last of the tokens: of lengths int32 [S], or of all keys where it is None."""
    products = torch.einsum("sqhd,skd->sqhk", q.float(), keys.float())
    if q_scales is not None:
        products = products * q_scales[..., None]
    total = torch.einsum("sqh,sqhk->sqk", weights * scale, products.relu())
    if key_scales is not None:
        total = total * key_scales[:, None, :]
    count, length = q.shape[1], keys.shape[1]
    ends = torch.full_like(keys[:, 0, 0], length, dtype=torch.int32) if lengths is None else lengths
    last = ends[:, None] - count + torch.arange(count, device=q.device)
    hidden = torch.arange(length, device=q.device) > last[:, :, None]
    return total.masked_fill(hidden, float("-inf"))


@operator(
    fake=lambda scores, *, top_k, **_: scores.new_empty(
        (*scores.shape[:2], top_k), dtype=torch.int32
    )
)
def index_topk(scores: Tensor, *, top_k: int, site: str) -> Tensor:
    """Choose the positions of the `top_k` largest scores [S, Q, length] of each query, int32
    [S, Q, top_k] in any order, -1 in the place of those that are -inf or do not exist."""
    found = scores.topk(min(top_k, scores.shape[2]), dim=2, sorted=False)
    positions = found.indices.masked_fill(found.values == float("-inf"), -1).int()
    missing = top_k - positions.shape[2]
    return torch.nn.functional.pad(positions, (0, missing), value=-1)


def _sparse_mla_fake(
    q: Tensor, _cache: Tensor, _selected: Tensor, *, latent_dim: int, **_: object
) -> tuple[Tensor, Tensor]:
    out = q.new_empty((*q.shape[:3], latent_dim))
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


@operator(fake=_sparse_mla_fake)
def sparse_mla(
    q: Tensor, cache: Tensor, selected: Tensor, *, latent_dim: int, scale: float, site: str
) -> tuple[Tensor, Tensor]:
    """Run decode_operators.mla_decode over the positions of each query, selected int32
    [S, Q, top_k]: of q [S, Q, N, latent + rope] and cache [S, length, latent + rope]; returns
    [S, Q, N, latent] and the log-sum-exp of the scores, float32 [S, Q, N]."""
    outs, sums = [], []
    for q_s, cache_s, selected_s in zip(q, cache, selected, strict=True):
        entries = cache_s[selected_s.clamp(min=0).long()].float()  # [Q, top_k, latent + rope]
        scores = torch.einsum("qnd,qkd->qnk", q_s.float(), entries) * scale
        scores = scores.masked_fill(selected_s[:, None, :] < 0, float("-inf"))
        outs.append(torch.einsum("qnk,qkd->qnd", scores.softmax(2), entries[..., :latent_dim]))
        sums.append(scores.logsumexp(dim=2))
    return torch.stack(outs).to(q.dtype), torch.stack(sums)


# -- training: dense products, masked --------------------------------------------------------------


def _masked_scores(q: Tensor, k: Tensor, selected: Tensor, scale: float) -> Tensor:
    """causal_scores of one sequence, of the positions selected int32 [length, top_k] alone."""
    length = k.shape[0]
    # The last column takes the positions that stand for none.
    chosen = torch.zeros((q.shape[0], length + 1), dtype=torch.bool, device=q.device)
    chosen.scatter_(1, torch.where(selected < 0, length, selected).long(), True)
    return causal_scores(q, k, scale).masked_fill(~chosen[None, :, :length], float("-inf"))


@operator(fake=lambda q, k, v, _selected, **_: attention_forward_fake(q, k, v))
def attention_masked_forward(
    q: Tensor, k: Tensor, v: Tensor, selected: Tensor, *, scale: float, site: str
) -> tuple[Tensor, Tensor]:
    """Run operators.attention_forward over the positions of each query, selected int32
    [sequences, length, top_k], which hold none after its own."""
    scores = (_masked_scores(*one, scale) for one in zip(q, k, selected, strict=True))
    return attention_of_scores(scores, v)


@operator(
    fake=lambda q_grad, q, k, v, *_, **__: attention_backward_fake(q_grad, q, k, v),
    mutates=("q_grad",),
)
def attention_masked_backward(
    q_grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selected: Tensor,
    out_grad: Tensor,
    log_sum: Tensor,
    delta: Tensor,
    *,
    scale: float,
    site: str,
) -> tuple[Tensor, Tensor]:
    """Run operators.attention_backward of attention_masked_forward; the choice has no gradient."""
    scores = (_masked_scores(*one, scale) for one in zip(q, k, selected, strict=True))
    return gradients_of_scores(
        scores, q_grad, q, k, v, out_grad=out_grad, log_sum=log_sum, delta=delta, scale=scale
    )
