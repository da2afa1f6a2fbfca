"""Norms, rotary embedding and SwiGLU, forward and backward."""

import torch
from torch import Tensor

from reference_model.kernels import load_backend
from reference_model.operators.casts import quantize_fake
from reference_model.operators.registration import like_first, operator


def _normalise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + eps)
    return (weight * (wide * inverse)).to(x.dtype)


@operator(fake=like_first)
def rmsnorm(x: Tensor, weight: Tensor, *, eps: float, site: str) -> Tensor:
    """Divide x [T, columns] by its root mean square and multiply it by weight (float32); returns a
    contiguous tensor like x."""
    return _normalise(x, weight, eps)


@operator(fake=lambda update, residual, _w, **_: (like_first(update), like_first(update)))
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
@operator(fake=like_first, mutates=("weight_grad",))
def rmsnorm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, weight_grad: Tensor, *, eps: float, site: str
) -> Tensor:
    """Gradient of x [T, columns]; adds that of the weight into weight_grad (float32)."""
    return _norm_backward(grad, x, weight, weight_grad, eps).to(grad.dtype)


@operator(fake=like_first, mutates=("weight_grad",))
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


@operator(fake=None, mutates=("x",))
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


@operator(fake=_half)
def swiglu(gate_up: Tensor, *, site: str) -> Tensor:
    """Compute silu(gate) x up of gate_up [rows, 2 columns]; returns [rows, columns]."""
    activated, _, up = _silu_parts(gate_up)
    return (activated * up).to(gate_up.dtype)


@operator(fake=_half)
def weighted_swiglu(gate_up: Tensor, row_weights: Tensor, *, site: str) -> Tensor:
    """The same times the routing weight of each row, float32 [R]."""
    activated, _, up = _silu_parts(gate_up)
    return (activated * up * row_weights[:, None]).to(gate_up.dtype)


@operator(fake=lambda gate_up, **_: quantize_fake(_half(gate_up)))
def swiglu_quantize(gate_up: Tensor, *, kernels: str, site: str) -> tuple[Tensor, Tensor]:
    """Apply SwiGLU and quantise in the same pass; returns E4M3 [rows, columns] and scales."""
    return load_backend(kernels).swiglu_quantize(gate_up, power_of_two_scales=False)


@operator(fake=lambda gate_up, _w, **_: quantize_fake(_half(gate_up)))
def weighted_swiglu_quantize(
    gate_up: Tensor, row_weights: Tensor, *, kernels: str, site: str
) -> tuple[Tensor, Tensor]:
    """Weighted SwiGLU, quantised in the same pass."""
    return load_backend(kernels).weighted_swiglu_quantize(
        gate_up, row_weights, power_of_two_scales=False
    )


@operator(fake=lambda gate_up, **_: quantize_fake(_half(gate_up).t()))
def swiglu_quantize_transpose(gate_up: Tensor, *, kernels: str, site: str) -> tuple[Tensor, Tensor]:
    """SwiGLU, transposed and tiled along rows for the weight gradient: E4M3 [columns, rows]."""
    return load_backend(kernels).swiglu_quantize_transposed(gate_up, power_of_two_scales=True)


@operator(fake=like_first)
def swiglu_backward(gate_up: Tensor, grad: Tensor, *, site: str) -> Tensor:
    """Gradient of gate_up [rows, 2 columns], given that of the activation [rows, columns]."""
    activated, slope, up = _silu_parts(gate_up)
    wide = grad.float()
    return torch.cat((wide * up * slope, wide * activated), dim=1).to(gate_up.dtype)


@operator(fake=lambda gate_up, _w, grad, **_: (like_first(grad), like_first(gate_up)))
def weighted_swiglu_forward_backward(
    gate_up: Tensor, row_weights: Tensor, grad: Tensor, *, site: str
) -> tuple[Tensor, Tensor]:
    """The weighted activation again [R, columns], and the gradient of gate_up [R, 2 columns]."""
    activated, slope, up = _silu_parts(gate_up)
    weights = row_weights[:, None]
    wide = grad.float() * weights
    gate_up_grad = torch.cat((wide * up * slope, wide * activated), dim=1)
    return (activated * up * weights).to(grad.dtype), gate_up_grad.to(gate_up.dtype)
