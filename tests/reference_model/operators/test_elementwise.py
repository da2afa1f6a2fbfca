"""Norms, rotary embedding and SwiGLU of the operators."""

import pytest
import torch
from operator_cases import SITE, assert_close, plain_gradients
from torch.nn import functional

from reference_model import operators as ops


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def randn(generator):
    return lambda *shape: torch.randn(shape, generator=generator)


def test_rmsnorm(randn):
    x, weight, grad = randn(5, 48), randn(48), randn(5, 48)

    def plain(x, weight):
        return functional.rms_norm(x, (48,), weight, 1e-6)

    assert_close(ops.rmsnorm(x, weight, eps=1e-6, site=SITE), plain(x, weight))
    x_grad, weight_grad = plain_gradients(plain, x, weight, grad=grad)
    total = torch.ones(48)
    assert_close(ops.rmsnorm_backward(grad, x, weight, total, eps=1e-6, site=SITE), x_grad)
    assert_close(total, weight_grad + 1)


def test_rmsnorm_with_residual(randn):
    update, residual, weight = randn(5, 48), randn(5, 48), randn(48)
    grad, sum_grad = randn(2, 5, 48)
    normed, total = ops.rmsnorm_residual(update, residual, weight, eps=1e-6, site=SITE)
    assert_close(total, update + residual)

    def plain(update, residual):
        total = update + residual
        return torch.stack((functional.rms_norm(total, (48,), weight, 1e-6), total))

    assert_close(normed, plain(update, residual)[0])
    both = plain_gradients(plain, update, residual, grad=torch.stack((grad, sum_grad)))
    weight_grad = torch.zeros(48)
    x_grad = ops.rmsnorm_residual_backward(
        grad, sum_grad, total, weight, weight_grad, eps=1e-6, site=SITE
    )
    for expected in both:
        assert_close(x_grad, expected)


def test_rope_rotates_and_turns_back(randn):
    x, angles = randn(2, 6, 3, 8), randn(6, 4)
    pairs = torch.view_as_complex(x.view(2, 6, 3, 4, 2))
    expected = pairs * torch.polar(torch.ones_like(angles), angles)[None, :, None]
    rotated = x.clone()
    ops.rope(rotated, angles.cos(), angles.sin(), inverse=False, site=SITE)
    assert_close(rotated, torch.view_as_real(expected).flatten(-2))
    ops.rope(rotated, angles.cos(), angles.sin(), inverse=True, site=SITE)
    assert_close(rotated, x)


def test_swiglu(randn):
    gate_up, grad, weights = randn(7, 2 * 24), randn(7, 24), randn(7)

    def plain(gate_up):
        gate, up = gate_up.chunk(2, dim=1)
        return functional.silu(gate) * up

    def weighted(gate_up, weights):
        return plain(gate_up) * weights[:, None]

    assert_close(ops.swiglu(gate_up, site=SITE), plain(gate_up))
    (expected,) = plain_gradients(plain, gate_up, grad=grad)
    assert_close(ops.swiglu_backward(gate_up, grad, site=SITE), expected)

    assert_close(ops.weighted_swiglu(gate_up, weights, site=SITE), weighted(gate_up, weights))
    expected, weights_grad = plain_gradients(weighted, gate_up, weights, grad=grad)
    activated, gate_up_grad = ops.weighted_swiglu_forward_backward(
        gate_up, weights, grad, site=SITE
    )
    assert_close(activated, weighted(gate_up, weights))
    assert_close(gate_up_grad, expected)
    rows = torch.arange(7, dtype=torch.int32)[:, None]
    assert_close(
        ops.topk_weight_grad(activated, grad, weights, rows, site=SITE)[:, 0], weights_grad
    )
