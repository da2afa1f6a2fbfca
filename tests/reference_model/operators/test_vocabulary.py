"""Embedding and cross-entropy of the operators."""

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


def test_cross_entropy(randn):
    logits, targets = randn(6, 11), torch.tensor([0, 3, 10, 3, 7, 1])
    loss, log_sum = ops.cross_entropy(logits, targets, site=SITE)
    assert_close(loss, functional.cross_entropy(logits, targets))
    (expected,) = plain_gradients(
        lambda x: functional.cross_entropy(x, targets), logits, grad=torch.tensor(0.3)
    )
    actual = ops.cross_entropy_backward(logits, targets, log_sum, weight=0.3, site=SITE)
    assert_close(actual, expected)


def test_embedding_gradients_of_repeated_tokens_add_up(randn):
    tokens, table, grad = torch.tensor([1, 1, 4]), randn(5, 8), randn(3, 8)
    assert torch.equal(ops.embedding(tokens, table, site=SITE), table[tokens])
    total = torch.zeros(5, 8)
    ops.embedding_backward(total, tokens, grad, site=SITE)
    assert_close(total[1], grad[0] + grad[1])
    assert_close(total[4], grad[2])
