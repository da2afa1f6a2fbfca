"""Operators of sparse attention against plain formulas."""

import pytest
import torch
from operator_cases import SITE, assert_close, plain_gradients

from reference_model import operators as ops


@pytest.fixture
def randn():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


def test_index_scores_by_hand():
    # One query, two heads, three keys: relu(q k) is 1, 0, 3 of the first and 2, 5, 0 of the other.
    q = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    keys = torch.tensor([[[1.0, 2.0], [-1.0, 5.0], [3.0, -4.0]]])
    weights = torch.tensor([[[2.0, -1.0]]])
    scores = ops.index_scores(q, None, weights, keys, None, None, scale=0.5, site=SITE)
    assert scores.tolist() == [[[0.0, -2.5, 3.0]]]
    scales = torch.tensor([[[2.0, 4.0]]]), torch.tensor([[1.0, 10.0, 100.0]])
    scaled = ops.index_scores(q, scales[0], weights, keys, scales[1], None, scale=0.5, site=SITE)
    assert scaled.tolist() == [[[-2.0, -100.0, 600.0]]]


def test_index_scores_are_hidden_beyond_the_query():
    q, keys, weights = torch.ones(2, 2, 1, 1), torch.ones(2, 4, 1), torch.ones(2, 2, 1)
    lengths = torch.tensor([4, 2], dtype=torch.int32)
    scores = ops.index_scores(q, None, weights, keys, None, lengths, scale=1.0, site=SITE)
    seen = (scores > float("-inf")).sum(dim=2)
    assert seen.tolist() == [[3, 4], [1, 2]]


def test_positions_are_those_of_the_largest_scores_and_the_rest_none():
    low = float("-inf")
    scores = torch.tensor([[[1.0, 3.0, 2.0, low], [low, low, low, 5.0], [4.0, 4.0, 4.0, 9.0]]])
    found = ops.index_topk(scores, top_k=2, site=SITE)
    assert found.dtype == torch.int32
    assert [sorted(row) for row in found[0, :2].tolist()] == [[1, 2], [-1, 3]]
    assert 3 in found[0, 2].tolist()
    padded = ops.index_topk(scores[..., :1], top_k=3, site=SITE)
    assert [sorted(row) for row in padded[0].tolist()] == [[-1, -1, 0], [-1, -1, -1], [-1, -1, 0]]


def test_the_core_is_attention_over_the_selected_entries(randn):
    q, cache = randn(2, 3, 4, 6), randn(2, 9, 6)
    selected = torch.tensor(
        [[[0, 5, -1], [2, 1, 8], [7, -1, -1]], [[3, 4, 5], [0, 1, 2], [8, 6, 1]]]
    )
    out, log_sums = ops.sparse_mla(q, cache, selected.int(), latent_dim=4, scale=0.3, site=SITE)
    for sequence in range(2):
        for query in range(3):
            chosen = [s for s in selected[sequence, query].tolist() if s >= 0]
            entries = cache[sequence, chosen]
            scores = q[sequence, query] @ entries.T * 0.3
            assert_close(out[sequence, query], scores.softmax(1) @ entries[:, :4])
            assert_close(log_sums[sequence, query], scores.logsumexp(1))


def test_masked_attention_and_its_gradients_equal_plain_ones(randn):
    q, k, v, grad = randn(2, 5, 3, 8), randn(2, 5, 3, 8), randn(2, 5, 3, 6), randn(2, 5, 3, 6)
    selected = torch.tensor([[0, -1], [1, 0], [2, 0], [1, 3], [4, 0]]).int().expand(2, 5, 2)
    seen = torch.zeros(5, 5, dtype=torch.bool)
    for query, chosen in enumerate(selected[0].tolist()):
        seen[query, [s for s in chosen if s >= 0]] = True

    def plain(q, k, v):
        scores = torch.einsum("sqhd,skhd->shqk", q, k) * 0.4
        weights = scores.masked_fill(~seen, float("-inf")).softmax(3)
        return torch.einsum("shqk,skhd->sqhd", weights, v)

    out, log_sum = ops.attention_masked_forward(q, k, v, selected, scale=0.4, site=SITE)
    assert_close(out, plain(q, k, v))
    expected = plain_gradients(plain, q, k, v, grad=grad)
    delta, q_grad = ops.attention_backward_preprocess(out, grad, qk_dim=8, site=SITE)
    k_grad, v_grad = ops.attention_masked_backward(
        q_grad, q, k, v, selected, grad, log_sum, delta, scale=0.4, site=SITE
    )
    for mine, theirs in zip((q_grad, k_grad, v_grad), expected, strict=True):
        assert_close(mine, theirs)


def test_index_keys_are_written_with_a_power_of_two_each():
    keys = torch.tensor([[448.0, -224.0], [3.5, 1.75], [896.0, 0.0]]).bfloat16()
    cache, scales = torch.zeros(1, 5, 2).to(torch.float8_e4m3fn), torch.zeros(1, 5)
    ops.append_index(keys, torch.tensor([[3, 0, 1]]), cache, scales, site=SITE)
    assert scales.tolist() == [[2.0**-7, 2.0, 0.0, 1.0, 0.0]]
    assert cache.float()[0].tolist() == [[448, 224], [448, 0], [0, 0], [448, -224], [0, 0]]


@pytest.mark.parametrize("halves", [True, False])
def test_rotation_turns_pairs_by_the_angles_of_their_positions(randn, halves):
    x, angles = randn(2, 3, 4, 6), randn(2, 3, 3)
    turned = x.clone()
    ops.rope_index(turned, angles.cos(), angles.sin(), halves=halves, site=SITE)
    pair = (1, 4) if halves else (2, 3)  # of angle 1
    for sequence, position, head in ((0, 0, 0), (1, 2, 3)):
        angle = angles[sequence, position, 1]
        a, b = x[sequence, position, head, list(pair)]
        expected = torch.stack(
            (a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin())
        )
        assert_close(turned[sequence, position, head, list(pair)], expected)
