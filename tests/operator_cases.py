"""Operators on small tensors, for tests of each family."""

import torch

from reference_model import operators as ops

SITE = ops.Site("forward", "mlp")("test")


def plain_gradients(function, *inputs, grad):
    """Gradients of `inputs` by automatic differentiation."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    function(*leaves).backward(grad)
    return [leaf.grad for leaf in leaves]


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
