"""The attention core of the operators."""

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


def test_attention(randn):
    q, k, v = randn(2, 10, 3, 12), randn(2, 10, 3, 12), randn(2, 10, 3, 8)
    grad = randn(2, 10, 3, 8)

    def plain(q, k, v):
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        out = functional.scaled_dot_product_attention(*heads_first, is_causal=True, scale=0.3)
        return out.transpose(1, 2)

    out, log_sum = ops.attention_forward(q, k, v, scale=0.3, site=SITE)
    assert_close(out, plain(q, k, v))
    delta, q_grad = ops.attention_backward_preprocess(out, grad, qk_dim=12, site=SITE)
    k_grad, v_grad = ops.attention_backward(
        q_grad, q, k, v, grad, log_sum, delta, scale=0.3, site=SITE
    )
    expected = plain_gradients(plain, q, k, v, grad=grad)
    for actual, plain_grad in zip((q_grad, k_grad, v_grad), expected, strict=True):
        assert_close(actual, plain_grad)


def test_queries_after_a_cache_see_all_of_it(randn):
    q, k, v = randn(1, 10, 3, 12), randn(1, 10, 3, 12), randn(1, 10, 3, 8)
    whole, _ = ops.attention_forward(q, k, v, scale=0.3, site=SITE)
    last, _ = ops.attention_forward(q[:, -2:], k, v, scale=0.3, site=SITE)
    assert_close(last, whole[:, -2:])
