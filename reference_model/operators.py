"""Every kernel-level operator of the model as a torch.library custom operator: tensors in and out.

The same call runs on CPU and CUDA and yields shapes on meta, and a TorchDispatchMode sees it as one
event, so what is recorded is what runs. Fusion is explicit: what is one operator here is one kernel
in the recipe. An operator never differentiates itself; the backward of a layer calls the backward
operators by name (see model.py), because which kernels it launches, in which order, and what it
recomputes is what a performance model has to know.

Arguments
    site        where the call stands, "phase:segment:name", made by `Site`; no effect on the result
    kernels     backend of the FP8 kernels (`reference_model.kernels.BACKENDS`)
    *_scales    float32 scales of an FP8 operand, None where the operand is not quantised
    out         written only; every other mutated argument is added to or changed in place

Shapes are in the docstrings: T tokens, R rows of the local experts, D tokens received by dispatch
(one for each token and rank), E local experts, K choices of a token. Matrix products are
[m, k] x [n, k]^T; operands of bfloat16 and float32 products may be strided views.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar
from typing import cast as typing_cast

import torch
from torch import Tensor
from torch.nn import functional

from reference_model import e5m6
from reference_model.kernels import load_backend

NAMESPACE = "dsv3"

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Site:
    """Where operators are called from: `site("q_a_proj")` names one call."""

    phase: str
    """forward, input_grad or weight_grad: the pass that issues the operator."""
    segment: str
    """The schedulable part of the layer."""
    recompute: bool = False
    """True in a backward that repeats a forward operator."""

    def __call__(self, name: str) -> str:
        return f"{self.phase}:{self.segment}:{name}{':recompute' if self.recompute else ''}"


def _operator(
    *, fake: Callable[..., Any] | None, mutates: Sequence[str] = ()
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Register a function as a custom operator, with its shapes on meta (None: no result)."""

    def register(function: Callable[_P, _R]) -> Callable[_P, _R]:
        operator = torch.library.custom_op(
            f"{NAMESPACE}::{function.__name__}", function, mutates_args=mutates
        )
        operator.register_fake(fake or (lambda *_, **__: None))
        return typing_cast(Callable[_P, _R], operator)

    return register


def _like_first(x: Tensor, *_: object, **__: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _tiles(columns: int) -> int:
    return -(-columns // 128)


# -- matrix products -------------------------------------------------------------------------------


def _product(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    """a b^T with float32 accumulation."""
    if a.dtype == out_dtype:
        return a @ b.mT
    if a.is_cuda:
        return torch.mm(a, b.mT, out_dtype=out_dtype)
    return (a.float() @ b.float().mT).to(out_dtype)


@_operator(
    fake=lambda a, b, _a, _b, *, out_dtype, **__: a.new_empty(
        (a.shape[0], b.shape[0]), dtype=out_dtype
    )
)
def gemm(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor | None,
    b_scales: Tensor | None,
    *,
    out_dtype: torch.dtype,
    kernels: str,
    site: str,
) -> Tensor:
    """a [m, k] (1x128 tiles) times b [n, k] (128x128 blocks) transposed -> [m, n]."""
    if a_scales is None or b_scales is None:
        return _product(a, b, out_dtype)
    return load_backend(kernels).gemm_fp8(a, a_scales, b, b_scales, out_dtype=out_dtype)


@_operator(fake=None, mutates=("accumulator",))
def gemm_weight_grad(
    accumulator: Tensor,
    a: Tensor,
    b: Tensor,
    a_scales: Tensor | None,
    b_scales: Tensor | None,
    *,
    kernels: str,
    site: str,
) -> None:
    """accumulator [m, n] float32 += a [m, T] b [n, T]^T; both operands tiled along tokens."""
    if a_scales is None or b_scales is None:
        accumulator += _product(a, b, torch.float32)
    else:
        load_backend(kernels).gemm_fp8_weight_grad(a, a_scales, b, b_scales, gradient=accumulator)


@_operator(
    fake=lambda a, b, _a, _b, _g, *, out_dtype, **__: a.new_empty(
        (a.shape[0], b.shape[1]), dtype=out_dtype
    )
)
def grouped_gemm(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor | None,
    b_scales: Tensor | None,
    group_sizes: Tensor,
    *,
    out_dtype: torch.dtype,
    kernels: str,
    site: str,
) -> Tensor:
    """a [R, k], sorted by expert, times b [E, n, k] of each row's expert transposed -> [R, n]."""
    if a_scales is not None and b_scales is not None:
        return load_backend(kernels).grouped_gemm_fp8(
            a, a_scales, b, b_scales, group_sizes=group_sizes, out_dtype=out_dtype
        )
    groups = torch.split(a, group_sizes.tolist())
    return torch.cat([_product(rows, b[e], out_dtype) for e, rows in enumerate(groups)])


@_operator(fake=None, mutates=("accumulator",))
def grouped_gemm_weight_grad(  # noqa: PLR0917 - custom operators take tensors by position
    accumulator: Tensor,
    a: Tensor,
    b: Tensor,
    a_scales: Tensor | None,
    b_scales: Tensor | None,
    group_sizes: Tensor,
    *,
    kernels: str,
    site: str,
) -> None:
    """accumulator [E, m, n] float32 += a [m, R] b [n, R]^T over the rows of each expert.

    The published recipe launches one GEMM an expert, alternating between two streams; they are one
    operator here, as they share their operands and only their sum of rows is known beforehand."""
    if a_scales is not None and b_scales is not None:
        load_backend(kernels).grouped_gemm_fp8_weight_grad(
            a, a_scales, b, b_scales, group_sizes=group_sizes, gradient=accumulator
        )
        return
    sizes = group_sizes.tolist()
    for e, (left, right) in enumerate(
        zip(torch.split(a, sizes, dim=1), torch.split(b, sizes, dim=1), strict=True)
    ):
        accumulator[e] += _product(left, right, torch.float32)


# -- attention core --------------------------------------------------------------------------------


def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Causal scores of one sequence, float32: q, k [length, heads, dim] -> [heads, query, key]."""
    scores = torch.einsum("qhd,khd->hqk", q.float(), k.float()) * scale
    visible = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device)
    visible = visible.tril(scores.shape[2] - scores.shape[1])  # queries are the last of the keys
    return scores.masked_fill(~visible, float("-inf"))


def _attention_forward_fake(q: Tensor, k: Tensor, v: Tensor, **_: object) -> tuple[Tensor, Tensor]:
    sequences, length, heads, _dim = q.shape
    out = q.new_empty((sequences, length, heads, v.shape[3]))
    return out, q.new_empty((sequences, heads, length), dtype=torch.float32)


@_operator(fake=_attention_forward_fake)
def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, site: str
) -> tuple[Tensor, Tensor]:
    """Causal attention: q, k [sequences, length, heads, qk_dim], v [..., v_dim] -> like v, and the
    log-sum-exp of each row, float32 [sequences, heads, length]."""
    outs, sums = [], []
    for q_s, k_s, v_s in zip(q, k, v, strict=True):
        scores = _scores(q_s, k_s, scale)
        log_sum = scores.logsumexp(dim=2)
        weights = torch.exp(scores - log_sum[:, :, None])
        outs.append(torch.einsum("hqk,khd->qhd", weights, v_s.float()).to(q.dtype))
        sums.append(log_sum)
    return torch.stack(outs), torch.stack(sums)


def _attention_preprocess_fake(
    output: Tensor, out_grad: Tensor, *, qk_dim: int, **_: object
) -> tuple[Tensor, Tensor]:
    sequences, length, heads, _dim = output.shape
    delta = output.new_empty((sequences, heads, length), dtype=torch.float32)
    return delta, output.new_empty((sequences, length, heads, qk_dim), dtype=torch.float32)


@_operator(fake=_attention_preprocess_fake)
def attention_backward_preprocess(
    output: Tensor, out_grad: Tensor, *, qk_dim: int, site: str
) -> tuple[Tensor, Tensor]:
    """Sums of output x out_grad over v_dim, float32 [sequences, heads, length], and an accumulator
    of the query gradient filled with zeros, float32 [sequences, length, heads, qk_dim]."""
    delta = torch.einsum("sqhd,sqhd->shq", output.float(), out_grad.float())
    return delta.contiguous(), torch.zeros(
        (*output.shape[:3], qk_dim), dtype=torch.float32, device=output.device
    )


def _attention_backward_fake(
    q_grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object
) -> tuple[Tensor, Tensor]:
    return k.new_empty(k.shape), v.new_empty(v.shape)


@_operator(fake=_attention_backward_fake, mutates=("q_grad",))
def attention_backward(  # noqa: PLR0917 - custom operators take tensors by position
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
    k_grads, v_grads = [], []
    for s in range(q.shape[0]):
        weights = torch.exp(_scores(q[s], k[s], scale) - log_sum[s][:, :, None])
        grad = out_grad[s].float()
        v_grads.append(torch.einsum("hqk,qhd->khd", weights, grad).to(v.dtype))
        weights_grad = torch.einsum("qhd,khd->hqk", grad, v[s].float())
        scores_grad = weights * (weights_grad - delta[s][:, :, None]) * scale
        q_grad[s] += torch.einsum("hqk,khd->qhd", scores_grad, k[s].float())
        k_grads.append(torch.einsum("hqk,qhd->khd", scores_grad, q[s].float()).to(k.dtype))
    return torch.stack(k_grads), torch.stack(v_grads)


# -- casts and copies ------------------------------------------------------------------------------
# In the published trace the scales of each quantised GEMM operand pass through a transposing kernel
# of 2 to 19 us; the kernels here write scales in the layout that the GEMM reads.


def _quantize_fake(x: Tensor, **_: object) -> tuple[Tensor, Tensor]:
    rows, columns = x.shape
    scales = x.new_empty((_tiles(columns), rows), dtype=torch.float32).t()
    return x.new_empty((rows, columns), dtype=torch.float8_e4m3fn), scales


@_operator(fake=_quantize_fake)
def quantize(
    x: Tensor, *, power_of_two_scales: bool, kernels: str, site: str
) -> tuple[Tensor, Tensor]:
    """x [rows, columns] -> E4M3 and scales [rows, ceil(columns / 128)]."""
    return load_backend(kernels).quantize_tiles(x, power_of_two_scales=power_of_two_scales)


def _quantize_transpose_fake(
    x: Tensor, scales: Tensor | None, *, kernels: str, site: str
) -> tuple[Tensor, Tensor]:
    return _quantize_fake(x.t())


@_operator(fake=_quantize_transpose_fake)
def quantize_transpose(
    x: Tensor, scales: Tensor | None, *, kernels: str, site: str
) -> tuple[Tensor, Tensor]:
    """x [rows, columns], bfloat16 or E4M3 with scales -> E4M3 [columns, rows], tiled along rows."""
    backend = load_backend(kernels)
    whole = torch.full((1,), x.shape[0], dtype=torch.int32, device=x.device)
    if scales is None:
        return backend.quantize_tiles_transposed(x, group_sizes=whole, power_of_two_scales=False)
    return backend.requantize_tiles_transposed(
        x, scales, row_source=None, group_sizes=whole, power_of_two_scales=False
    )


def _grouped_transpose_fake(x: Tensor, group_sizes: Tensor, **_: object) -> tuple[Tensor, Tensor]:
    return _transposed_rows(x, x.shape[0], group_sizes.shape[0])


def _transposed_rows(x: Tensor, rows: int, groups: int) -> tuple[Tensor, Tensor]:
    """Empty E4M3 [columns, rows] and scales of tiles that restart at each group."""
    tiles = _tiles(rows) + groups - 1
    scales = x.new_empty((tiles, x.shape[1]), dtype=torch.float32).t()
    return x.new_empty((x.shape[1], rows), dtype=torch.float8_e4m3fn), scales


@_operator(fake=_grouped_transpose_fake)
def grouped_quantize_transpose(
    x: Tensor, group_sizes: Tensor, *, kernels: str, site: str
) -> tuple[Tensor, Tensor]:
    """x [R, columns] sorted by expert -> E4M3 [columns, R], tiles restarting at each expert."""
    return load_backend(kernels).quantize_tiles_transposed(
        x, group_sizes=group_sizes, power_of_two_scales=False
    )


@_operator(
    fake=lambda x, _s, row_source, group_sizes, **_: _transposed_rows(
        x, row_source.shape[0], group_sizes.shape[0]
    )
)
def quantize_transpose_gather(
    x: Tensor,
    scales: Tensor,
    row_source: Tensor,
    group_sizes: Tensor,
    *,
    kernels: str,
    site: str,
) -> tuple[Tensor, Tensor]:
    """Received E4M3 x [D, columns] expanded to rows, transposed and tiled anew: [columns, R]."""
    return load_backend(kernels).requantize_tiles_transposed(
        x, scales, row_source=row_source, group_sizes=group_sizes, power_of_two_scales=False
    )


@_operator(fake=lambda x, _s, *, dtype, **_: torch.empty_like(x, dtype=dtype))
def dequantize(x: Tensor, scales: Tensor, *, dtype: torch.dtype, kernels: str, site: str) -> Tensor:
    """E4M3 x [rows, columns] and its tile scales -> dtype."""
    return load_backend(kernels).dequantize_tiles(x, scales, dtype=dtype)


def _quantize_e5m6_fake(x: Tensor, *, site: str) -> tuple[Tensor, Tensor]:
    rows, columns = x.shape
    packed = x.new_empty((rows, columns * 3 // 2), dtype=torch.uint8)
    return packed, x.new_empty((rows, _tiles(columns)), dtype=torch.float32)


@_operator(fake=_quantize_e5m6_fake)
def quantize_e5m6(x: Tensor, *, site: str) -> tuple[Tensor, Tensor]:
    """x [rows, columns] -> packed 12-bit floats and power-of-two scales (see e5m6.py)."""
    return e5m6.quantize_e5m6(x)


@_operator(
    fake=lambda packed, _s, *, dtype, **_: packed.new_empty(
        (packed.shape[0], packed.shape[1] * 2 // 3), dtype=dtype
    )
)
def dequantize_e5m6(packed: Tensor, scales: Tensor, *, dtype: torch.dtype, site: str) -> Tensor:
    """Packed 12-bit floats [rows, 3 columns / 2] -> [rows, columns]."""
    return e5m6.dequantize_e5m6(packed, scales, dtype=dtype)


@_operator(fake=lambda x, **_: torch.empty_like(x.mT, memory_format=torch.contiguous_format))
def transpose(x: Tensor, *, site: str) -> Tensor:
    """E4M3 values of a weight [..., rows, columns] -> [..., columns, rows]."""
    # Moved as bytes: not every torch has copy kernels for FP8.
    return x.view(torch.uint8).mT.contiguous().view(x.dtype)


@_operator(fake=lambda x, *, dtype, **_: torch.empty_like(x, dtype=dtype))
def cast(x: Tensor, *, dtype: torch.dtype, site: str) -> Tensor:
    """x in another type."""
    return x.to(dtype, copy=True)


@_operator(fake=None, mutates=("out",))
def copy(x: Tensor, out: Tensor, *, site: str) -> None:
    """x into out, a view of the same shape."""
    out.copy_(x)


@_operator(fake=None, mutates=("out",))
def broadcast_heads(x: Tensor, out: Tensor, *, site: str) -> None:
    """x [T, dim] into every head of out [T, heads, dim]."""
    out.copy_(x[:, None, :].expand_as(out))


@_operator(fake=lambda x, **_: x.new_empty((x.shape[0], x.shape[2])))
def sum_heads(x: Tensor, *, site: str) -> Tensor:
    """x [T, heads, dim] -> sum over heads [T, dim], accumulated in float32."""
    return x.sum(dim=1, dtype=torch.float32).to(x.dtype)


@_operator(fake=lambda a, b, **_: a.new_empty((a.shape[0], a.shape[1] + b.shape[1])))
def concat(a: Tensor, b: Tensor, *, site: str) -> Tensor:
    """a [T, n], b [T, m] -> [T, n + m]."""
    return torch.cat((a, b), dim=1)


@_operator(fake=_like_first)
def add(a: Tensor, b: Tensor, *, site: str) -> Tensor:
    """a + b of equal shapes."""
    return a + b


@_operator(fake=_like_first)
def scale(x: Tensor, *, factor: float, site: str) -> Tensor:
    """factor x."""
    return x * factor


# -- norms, rotary embedding, activation -----------------------------------------------------------


def _normalise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + eps)
    return (weight * (wide * inverse)).to(x.dtype)


@_operator(fake=_like_first)
def rmsnorm(x: Tensor, weight: Tensor, *, eps: float, site: str) -> Tensor:
    """x [T, columns] / root mean square x weight (float32) -> like x, contiguous."""
    return _normalise(x, weight, eps)


@_operator(fake=lambda update, residual, _w, **_: (_like_first(update), _like_first(update)))
def rmsnorm_residual(
    update: Tensor, residual: Tensor, weight: Tensor, *, eps: float, site: str
) -> tuple[Tensor, Tensor]:
    """The norm of update + residual, and the sum itself; both [T, columns]."""
    total = update + residual
    return _normalise(total, weight, eps), total


def _norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, weight_grad: Tensor, eps: float
) -> Tensor:
    wide, grad = x.float(), grad.float()
    inverse = torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + eps)
    normal = wide * inverse
    weight_grad += (grad * normal).sum(dim=0)
    grad = grad * weight
    return inverse * (grad - normal * (grad * normal).mean(dim=1, keepdim=True))


# The trace finishes each weight gradient in two kernels of 4 us (reduce partial sums, accumulate);
# they are part of the operator here.
@_operator(fake=_like_first, mutates=("weight_grad",))
def rmsnorm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, weight_grad: Tensor, *, eps: float, site: str
) -> Tensor:
    """Gradient of x [T, columns]; adds that of the weight into weight_grad (float32)."""
    return _norm_backward(grad, x, weight, weight_grad, eps).to(grad.dtype)


@_operator(fake=_like_first, mutates=("weight_grad",))
def rmsnorm_residual_backward(
    grad: Tensor,
    residual_grad: Tensor,
    total: Tensor,
    weight: Tensor,
    weight_grad: Tensor,
    *,
    eps: float,
    site: str,
) -> Tensor:
    """Gradient of both terms of `rmsnorm_residual`, given those of the norm and of the sum."""
    through_norm = _norm_backward(grad, total, weight, weight_grad, eps)
    return (through_norm + residual_grad.float()).to(grad.dtype)


@_operator(fake=None, mutates=("x",))
def rope(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool, site: str) -> None:
    """Rotate pairs (2i, 2i + 1) of x [sequences, length, heads, dim] by angle i of their position,
    in place; cos, sin are float32 [length, dim / 2]. `inverse` turns back, which is the backward.
    """
    cosine, sine = cos[:, None, :], -sin[:, None, :] if inverse else sin[:, None, :]
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    x.copy_(torch.stack((even * cosine - odd * sine, odd * cosine + even * sine), -1).flatten(-2))


def _silu_parts(gate_up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """silu(gate), its slope, and up, float32, of gate_up [rows, 2 columns], gate first."""
    gate, up = gate_up.float().chunk(2, dim=1)
    sigmoid = torch.sigmoid(gate)
    return gate * sigmoid, sigmoid * (1 + gate * (1 - sigmoid)), up


def _half(x: Tensor, *_: object, **__: object) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1] // 2))


@_operator(fake=_half)
def swiglu(gate_up: Tensor, *, site: str) -> Tensor:
    """silu(gate) x up of gate_up [rows, 2 columns] -> [rows, columns]."""
    activated, _, up = _silu_parts(gate_up)
    return (activated * up).to(gate_up.dtype)


@_operator(fake=_half)
def weighted_swiglu(gate_up: Tensor, row_weights: Tensor, *, site: str) -> Tensor:
    """The same times the routing weight of each row, float32 [R]."""
    activated, _, up = _silu_parts(gate_up)
    return (activated * up * row_weights[:, None]).to(gate_up.dtype)


@_operator(fake=lambda gate_up, **_: _quantize_fake(_half(gate_up)))
def swiglu_quantize(gate_up: Tensor, *, kernels: str, site: str) -> tuple[Tensor, Tensor]:
    """SwiGLU, quantised in the same pass -> E4M3 [rows, columns] and scales."""
    return load_backend(kernels).swiglu_quantize(gate_up, power_of_two_scales=False)


@_operator(fake=lambda gate_up, _w, **_: _quantize_fake(_half(gate_up)))
def weighted_swiglu_quantize(
    gate_up: Tensor, row_weights: Tensor, *, kernels: str, site: str
) -> tuple[Tensor, Tensor]:
    """Weighted SwiGLU, quantised in the same pass."""
    return load_backend(kernels).weighted_swiglu_quantize(
        gate_up, row_weights, power_of_two_scales=False
    )


@_operator(fake=lambda gate_up, **_: _quantize_fake(_half(gate_up).t()))
def swiglu_quantize_transpose(gate_up: Tensor, *, kernels: str, site: str) -> tuple[Tensor, Tensor]:
    """SwiGLU, transposed and tiled along rows for the weight gradient: E4M3 [columns, rows]."""
    return load_backend(kernels).swiglu_quantize_transposed(gate_up, power_of_two_scales=False)


@_operator(fake=_like_first)
def swiglu_backward(gate_up: Tensor, grad: Tensor, *, site: str) -> Tensor:
    """Gradient of gate_up [rows, 2 columns], given that of the activation [rows, columns]."""
    activated, slope, up = _silu_parts(gate_up)
    wide = grad.float()
    return torch.cat((wide * up * slope, wide * activated), dim=1).to(gate_up.dtype)


@_operator(fake=lambda gate_up, _w, grad, **_: (_like_first(grad), _like_first(gate_up)))
def weighted_swiglu_forward_backward(
    gate_up: Tensor, row_weights: Tensor, grad: Tensor, *, site: str
) -> tuple[Tensor, Tensor]:
    """The weighted activation again [R, columns], and the gradient of gate_up [R, 2 columns]."""
    activated, slope, up = _silu_parts(gate_up)
    weights = row_weights[:, None]
    wide = grad.float() * weights
    gate_up_grad = torch.cat((wide * up * slope, wide * activated), dim=1)
    return (activated * up * weights).to(grad.dtype), gate_up_grad.to(gate_up.dtype)


# -- routing ---------------------------------------------------------------------------------------


def _gate_fake(logits: Tensor, _bias: Tensor, *, top_k: int, **_: object) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], top_k)
    return logits.new_empty(shape, dtype=torch.int64), logits.new_empty(shape)


# About 35 kernels in the trace, most of 1 to 7 us; two of its three top-k selections and the sums
# for the auxiliary loss (which this model does not have) are among them.
@_operator(fake=_gate_fake)
def gate(
    logits: Tensor,
    correction_bias: Tensor,
    *,
    n_group: int,
    topk_group: int,
    top_k: int,
    normalise: bool,
    scaling: float,
    site: str,
) -> tuple[Tensor, Tensor]:
    """Choose experts: logits float32 [T, experts] -> indices int64 and weights float32 [T, K].

    Groups are ranked by the sum of their two best biased scores, experts by their biased score
    within the chosen groups; weights are unbiased scores (Technical Report, section 2.1.2)."""
    tokens, experts = logits.shape
    scores = torch.sigmoid(logits)
    biased = scores + correction_bias
    best_two = biased.view(tokens, n_group, -1).topk(2, dim=2).values.sum(dim=2)
    groups = best_two.topk(topk_group, dim=1).indices  # [T, topk_group]
    allowed = torch.zeros_like(best_two, dtype=torch.bool).scatter_(1, groups, True)
    allowed = allowed.repeat_interleave(experts // n_group, dim=1)  # [T, experts]
    indices = biased.masked_fill(~allowed, float("-inf")).topk(top_k, dim=1).indices
    weights = scores.gather(1, indices)
    if normalise:
        weights = weights / (weights.sum(dim=1, keepdim=True) + 1e-20)
    return indices, weights * scaling


@_operator(fake=lambda logits, _i, _w, *, dtype, **_: torch.empty_like(logits, dtype=dtype))
def gate_backward(
    logits: Tensor,
    indices: Tensor,
    weights_grad: Tensor,
    *,
    normalise: bool,
    scaling: float,
    dtype: torch.dtype,
    site: str,
) -> Tensor:
    """Gradient of the logits [T, experts], given that of the weights of the chosen experts."""
    scores = torch.sigmoid(logits)
    chosen = scores.gather(1, indices)
    grad = weights_grad * scaling
    if normalise:
        total = chosen.sum(dim=1, keepdim=True) + 1e-20
        grad = (grad - (grad * chosen).sum(dim=1, keepdim=True) / total) / total
    scores_grad = torch.zeros_like(scores).scatter_(1, indices, grad)
    return (scores_grad * scores * (1 - scores)).to(dtype)


@_operator(fake=lambda i, *, experts, **_: i.new_empty((experts,), dtype=torch.int32))
def dispatch_layout(indices: Tensor, *, experts: int, site: str) -> Tensor:
    """Choices [T, K] -> tokens bound for each expert, int32 [experts]."""
    return torch.bincount(indices.flatten(), minlength=experts).int()


def _received(x: Tensor, rows: int) -> Tensor:
    """One device holds every expert: each token is received once, by itself."""
    if rows != x.shape[0]:
        raise ValueError(
            f"received_rows = {rows}: one device that holds every expert receives each of its"
            f" {x.shape[0]} tokens once; only the meta device shows one rank of many"
        )
    return x.clone()


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
@_operator(fake=_dispatch_fake)
def dispatch(
    x: Tensor,
    scales: Tensor | None,
    indices: Tensor,
    weights: Tensor,
    *,
    rows: int,
    site: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Send tokens x [T, hidden] to the ranks of their experts -> what this rank receives: values
    [D, hidden], scales [D, tiles] (no tiles if not quantised), choices and weights [D, K]."""
    received_scales = _no_scales(x) if scales is None else _received(scales, rows)
    return _received(x, rows), received_scales, _received(indices, rows), _received(weights, rows)


@_operator(fake=_dispatch_cached_fake)
def dispatch_cached(
    x: Tensor, scales: Tensor | None, *, rows: int, site: str
) -> tuple[Tensor, Tensor]:
    """Send output gradients along the layout of the forward pass: the backward of `combine`."""
    return _received(x, rows), _no_scales(x) if scales is None else _received(scales, rows)


@_operator(fake=lambda _x, shared, **_: _like_first(shared))
def combine(x: Tensor, shared: Tensor, *, site: str) -> Tensor:
    """Return expert outputs x [D, hidden] to their tokens and add them to the shared expert's
    output [T, hidden]."""
    return _received(x, shared.shape[0]) + shared


@_operator(
    fake=lambda _x, shared, weights_grad, **_: (
        _like_first(shared),
        weights_grad.new_empty((shared.shape[0], weights_grad.shape[1])),
    )
)
def combine_backward(
    x: Tensor, shared: Tensor, weights_grad: Tensor, *, site: str
) -> tuple[Tensor, Tensor]:
    """The backward of `dispatch`: input gradients x [D, hidden] return to their tokens and are
    added to the shared expert's; gradients of routing weights [D, K] travel along."""
    tokens = shared.shape[0]
    return _received(x, tokens) + shared, _received(weights_grad, tokens)


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
@_operator(fake=_expert_mapping_fake)
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


@_operator(
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


@_operator(fake=lambda x, choice_rows, **_: x.new_empty((choice_rows.shape[0], x.shape[1])))
def unpermute(x: Tensor, choice_rows: Tensor, *, site: str) -> Tensor:
    """Sum the rows [R, columns] of each received token -> [D, columns], in float32."""
    total = torch.zeros((choice_rows.shape[0], x.shape[1]), dtype=torch.float32, device=x.device)
    for rows in choice_rows.long().unbind(dim=1):
        total += x[rows.clamp(min=0)] * (rows >= 0)[:, None]
    return total.to(x.dtype)


@_operator(fake=lambda _a, _g, weights, choice_rows, **_: weights.new_empty(choice_rows.shape))
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


# -- vocabulary ------------------------------------------------------------------------------------


@_operator(fake=lambda tokens, table, **_: table.new_empty((tokens.shape[0], table.shape[1])))
def embedding(tokens: Tensor, table: Tensor, *, site: str) -> Tensor:
    """Rows of table [vocabulary, hidden] of tokens int64 [T]."""
    return functional.embedding(tokens, table)


@_operator(fake=None, mutates=("table_grad",))
def embedding_backward(table_grad: Tensor, tokens: Tensor, grad: Tensor, *, site: str) -> None:
    """Adds grad [T, hidden] into the rows of table_grad (float32) of tokens."""
    table_grad.index_add_(0, tokens, grad.float())


@_operator(
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


@_operator(fake=_like_first)
def cross_entropy_backward(
    logits: Tensor, targets: Tensor, log_sum: Tensor, *, weight: float, site: str
) -> Tensor:
    """Gradient of weight x the mean loss, like logits."""
    grad = torch.exp(logits.float() - log_sum[:, None])
    grad[torch.arange(grad.shape[0], device=grad.device), targets] -= 1
    return (grad * (weight / grad.shape[0])).to(logits.dtype)
