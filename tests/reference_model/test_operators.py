"""Each operator's backward equals automatic differentiation of a plain forward, in float32."""

import pytest
import torch
from torch.nn import functional

from reference_model import operators as ops

SITE = ops.Site("forward", "mlp")("test")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def randn(generator):
    return lambda *shape: torch.randn(shape, generator=generator)


def plain_gradients(function, *inputs, grad):
    """Gradients of `inputs` by automatic differentiation."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    function(*leaves).backward(grad)
    return [leaf.grad for leaf in leaves]


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


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


def test_topk_weight_grad_of_absent_choices_and_zero_weights_is_zero(randn):
    activated, grad = randn(2, 8), randn(2, 8)
    weights = torch.tensor([0.0, 2.0])
    rows = torch.tensor([[0, -1], [-1, 1]], dtype=torch.int32)
    result = ops.topk_weight_grad(activated, grad, weights, rows, site=SITE)
    assert_close(result, torch.tensor([[0, 0], [0, (activated[1] @ grad[1]) / 2]]))


@pytest.mark.parametrize("normalise", [True, False])
def test_gate(randn, normalise):
    logits, bias, grad = randn(9, 12), 0.3 * randn(12), randn(9, 3)
    choice = {"n_group": 4, "topk_group": 2, "top_k": 3}
    weighting = {"normalise": normalise, "scaling": 2.5}
    indices, weights = ops.gate(logits, bias, **choice, **weighting, site=SITE)

    # A token chooses within two groups, those with the largest sum of two biased scores.
    biased = logits.sigmoid() + bias
    for token in range(9):
        by_group = biased[token].view(4, 3)
        best = by_group.sort(descending=True).values[:, :2].sum(dim=1).argsort(descending=True)[:2]
        allowed = [e for e in range(12) if e // 3 in best]
        expected = sorted(allowed, key=lambda e: -biased[token, e])[:3]
        assert indices[token].tolist() == expected

    def plain(logits):
        chosen = logits.sigmoid().gather(1, indices)
        if normalise:
            chosen = chosen / (chosen.sum(dim=1, keepdim=True) + 1e-20)
        return chosen * 2.5

    assert_close(weights, plain(logits))
    (expected,) = plain_gradients(plain, logits, grad=grad)
    actual = ops.gate_backward(logits, indices, grad, **weighting, dtype=torch.float32, site=SITE)
    assert_close(actual, expected)


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


def test_grouped_products_equal_one_product_an_expert(randn):
    a, b = randn(10, 6), randn(3, 5, 6)
    sizes = torch.tensor([4, 0, 6], dtype=torch.int32)
    out = ops.grouped_gemm(
        a, b, None, None, sizes, out_dtype=torch.float32, kernels="reference", site=SITE
    )
    assert_close(out, torch.cat((a[:4] @ b[0].T, a[4:] @ b[2].T)))
    total = torch.ones(3, 6, 5)
    ops.grouped_gemm_weight_grad(
        total, a.t(), out.t(), None, None, sizes, kernels="reference", site=SITE
    )
    assert_close(total[0], 1 + a[:4].T @ out[:4])
    assert_close(total[1], torch.ones(6, 5))


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


def test_received_tokens_are_gathered_transposed_and_tiled_anew(randn):
    x = randn(6, 128)
    values, scales = ops.quantize(x, power_of_two_scales=True, kernels="reference", site=SITE)
    source = torch.tensor([0, 0, 3, 5, 1], dtype=torch.int32)
    sizes = torch.tensor([3, 2], dtype=torch.int32)
    gathered, gathered_scales = ops.quantize_transpose_gather(
        values, scales, source, sizes, kernels="reference", site=SITE
    )
    plain = ops.dequantize(values, scales, dtype=torch.float32, kernels="reference", site=SITE)
    expected, expected_scales = ops.grouped_quantize_transpose(
        plain[source.long()], sizes, kernels="reference", site=SITE
    )
    assert torch.equal(gathered.float(), expected.float())
    assert torch.equal(gathered_scales, expected_scales)


def test_tiles_that_are_turned_around_for_a_weight_gradient_are_not_rounded_again(randn):
    x = randn(200, 256)
    values, scales = ops.quantize(x, power_of_two_scales=True, kernels="reference", site=SITE)
    rounded = ops.dequantize(values, scales, dtype=torch.float32, kernels="reference", site=SITE)
    from_fp8 = ops.quantize_transpose(values, scales, kernels="reference", site=SITE)
    from_wide = ops.quantize_transpose(rounded, None, kernels="reference", site=SITE)
    for turned, turned_scales in (from_fp8, from_wide):
        again = ops.dequantize(
            turned, turned_scales, dtype=torch.float32, kernels="reference", site=SITE
        )
        assert (again.t() - rounded).norm() < 1e-4 * rounded.norm()
