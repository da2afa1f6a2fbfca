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


def test_parts_of_the_vocabulary_make_the_whole_cross_entropy(randn):
    logits, targets = randn(6, 12), torch.tensor([0, 3, 10, 3, 7, 11])
    loss, log_sum = ops.cross_entropy(logits, targets, site=SITE)
    whole = ops.cross_entropy_backward(logits, targets, log_sum, weight=0.3, site=SITE)

    halves = [logits[:, :6], logits[:, 6:]]
    parts = [
        ops.cross_entropy_part(half, targets, first=6 * rank, site=SITE)
        for rank, half in enumerate(halves)
    ]
    merged, log_sums = ops.cross_entropy_merged(torch.cat(parts), ranks=2, site=SITE)
    assert_close(merged, loss)
    assert_close(log_sums, log_sum)
    gradients = [
        ops.cross_entropy_backward_part(
            half, targets, log_sums, first=6 * rank, weight=0.3, site=SITE
        )
        for rank, half in enumerate(halves)
    ]
    assert_close(torch.cat(gradients, dim=1), whole)


def test_parts_of_a_table_sum_to_the_embedding_and_get_their_own_gradients(randn):
    tokens, table, grad = torch.tensor([1, 1, 4, 5]), randn(6, 8), randn(4, 8)
    halves = [table[:3], table[3:]]
    found = [
        ops.embedding_part(tokens, half, first=3 * rank, site=SITE)
        for rank, half in enumerate(halves)
    ]
    assert torch.equal(found[0] + found[1], table[tokens])
    whole = torch.zeros(6, 8)
    ops.embedding_backward(whole, tokens, grad, site=SITE)
    for rank, rows in enumerate(whole.split(3)):
        total = torch.zeros(3, 8)
        ops.embedding_backward_part(total, tokens, grad, first=3 * rank, site=SITE)
        assert torch.equal(total, rows)
