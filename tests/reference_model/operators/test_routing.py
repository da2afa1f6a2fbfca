"""The gate, and the way of tokens to the rows of experts and back."""

import pytest
import torch
from operator_cases import SITE, assert_close, plain_gradients

from reference_model import operators as ops


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def randn(generator):
    return lambda *shape: torch.randn(shape, generator=generator)


def test_topk_weight_grad_of_absent_choices_and_zero_weights_is_zero(randn):
    activated, grad = randn(2, 8), randn(2, 8)
    weights = torch.tensor([0.0, 2.0])
    rows = torch.tensor([[0, -1], [-1, 1]], dtype=torch.int32)
    result = ops.topk_weight_grad(activated, grad, weights, rows, site=SITE)
    assert_close(result, torch.tensor([[0, 0], [0, (activated[1] @ grad[1]) / 2]]))


@pytest.mark.parametrize(("scoring", "best"), [("sigmoid", 2), ("softmax", 1)])
@pytest.mark.parametrize("normalise", [True, False])
def test_gate(randn, normalise, scoring, best):
    logits, bias, grad = randn(9, 12), 0.3 * randn(12), randn(9, 3)
    choice = {"n_group": 4, "topk_group": 2, "top_k": 3}
    weighting = {"scoring": scoring, "normalise": normalise, "scaling": 2.5}
    indices, weights = ops.gate(logits, bias, **choice, **weighting, site=SITE)

    def scores(logits):
        return logits.sigmoid() if scoring == "sigmoid" else logits.softmax(dim=1)

    # A token chooses within two groups, those with the largest sum of their two best biased scores,
    # or with the largest best one where scores are a softmax.
    biased = scores(logits) + bias
    for token in range(9):
        by_group = biased[token].view(4, 3)
        worth = by_group.sort(descending=True).values[:, :best].sum(dim=1)
        allowed = [e for e in range(12) if e // 3 in worth.argsort(descending=True)[:2]]
        expected = sorted(allowed, key=lambda e: -biased[token, e])[:3]
        assert indices[token].tolist() == expected

    def plain(logits):
        chosen = scores(logits).gather(1, indices)
        if normalise:
            chosen = chosen / (chosen.sum(dim=1, keepdim=True) + 1e-20)
        return chosen * 2.5

    assert_close(weights, plain(logits))
    (expected,) = plain_gradients(plain, logits, grad=grad)
    actual = ops.gate_backward(logits, indices, grad, **weighting, dtype=torch.float32, site=SITE)
    assert_close(actual, expected)


def test_experts_see_their_rows_and_no_token_is_dropped(randn, generator):
    tokens, experts, top_k = 20, 6, 3
    choices = torch.rand(tokens, experts, generator=generator).argsort(dim=1)[:, :top_k]
    weights = torch.rand(tokens, top_k, generator=generator)
    row_source, row_weights, choice_rows, sizes = ops.expert_mapping(
        choices, weights, rows=tokens * top_k, local_experts=experts, site=SITE
    )
    assert sizes.tolist() == [(choices == expert).sum() for expert in range(experts)]
    expert_of_row = torch.repeat_interleave(torch.arange(experts), sizes)
    assert torch.equal(expert_of_row[choice_rows.long()], choices)
    assert torch.equal(row_weights[choice_rows.long()], weights)

    x = randn(tokens, 8)
    rows, scales = ops.permute(x, None, row_source, site=SITE)
    assert scales.shape == (tokens * top_k, 0)
    assert torch.equal(rows[choice_rows.long()], x[:, None].expand(-1, top_k, -1))
    assert_close(ops.unpermute(rows, choice_rows, site=SITE), x * top_k)


def test_choices_of_other_ranks_take_no_rows(randn):
    choices = torch.tensor([[0, -1], [1, 5], [-1, 0]])  # this rank holds experts 0 and 1
    weights = torch.arange(6.0).view(3, 2)
    row_source, row_weights, choice_rows, sizes = ops.expert_mapping(
        choices, weights, rows=3, local_experts=2, site=SITE
    )
    assert sizes.tolist() == [2, 1]
    assert row_source.tolist() == [0, 2, 1]
    assert row_weights.tolist() == [0, 5, 2]
    assert choice_rows.tolist() == [[0, -1], [2, -1], [-1, 1]]
    x = randn(3, 4)
    assert_close(ops.unpermute(x, choice_rows, site=SITE), x[[0, 2, 1]])
    with pytest.raises(ValueError, match="expert_rows = 4, but 3 choices are local"):
        ops.expert_mapping(choices, weights, rows=4, local_experts=2, site=SITE)
