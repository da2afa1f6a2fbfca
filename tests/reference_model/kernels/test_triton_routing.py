"""The gate and the mapping of tokens to rows as Triton kernels, against the operators' bodies."""

import pytest
import torch

from reference_model import operators
from reference_model.kernels import triton_routing as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

SITE = "forward:test:call"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed)).to(DEVICE)


def plain(name: str, *arguments, **options):
    return getattr(operators, name)._init_fn(*arguments, **options, site=SITE)


GATES = [(16, 4, 2, 4), (20, 2, 1, 3), (6, 1, 1, 2), (24, 3, 3, 8), (256, 8, 4, 8)]
"""Experts, groups, groups chosen and experts chosen."""


@pytest.mark.parametrize(("experts", "groups", "topk_group", "top_k"), GATES)
@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
@pytest.mark.parametrize("normalise", [True, False])
def test_the_gate_chooses_the_same_experts(experts, groups, topk_group, top_k, normalise, scoring):
    logits = normal(9, experts, seed=1)
    bias = normal(experts, seed=2) / 4 if scoring == "sigmoid" else None
    options = {
        "scoring": scoring, "n_group": groups, "topk_group": topk_group, "top_k": top_k,
        "normalise": normalise, "scaling": 2.5,
    }  # fmt: skip
    indices, weights = kernels.launch_gate(logits, bias, **options, site=SITE)
    expected, expected_weights = plain("gate", logits, bias, **options)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(weights, expected_weights, rtol=2e-5, atol=2e-6)


def test_the_gate_by_hand():
    """Scores are 0.5 throughout; the bias alone chooses. Group sums are 0.5 + 0.3 over 1.0 and
    0.4 + 0.2 over 1.0: the first wins, although expert 2 comes before expert 1 overall."""
    logits = torch.zeros((1, 4), device=DEVICE)
    bias = torch.tensor([0.5, 0.3, 0.4, 0.2], device=DEVICE)
    indices, weights = kernels.launch_gate(
        logits, bias, scoring="sigmoid", n_group=2, topk_group=1, top_k=2,
        normalise=True, scaling=2.5, site=SITE,
    )  # fmt: skip
    assert indices.tolist() == [[0, 1]]
    assert weights.tolist() == [[1.25, 1.25]]


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
@pytest.mark.parametrize("normalise", [True, False])
def test_gate_backward(normalise, scoring):
    logits, grad = normal(5, 20, seed=3), normal(5, 3, seed=4)
    indices = torch.rand(5, 20, generator=generator(5)).topk(3, dim=1).indices.to(DEVICE)
    options = {
        "scoring": scoring, "normalise": normalise, "scaling": 2.5, "dtype": torch.float32,
    }  # fmt: skip
    got = kernels.launch_gate_backward(logits, indices, grad, **options, site=SITE)
    expected = plain("gate_backward", logits, indices, grad, **options)
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-6)


def test_dispatch_layout_counts_choices():
    indices = torch.tensor([[0, 3], [3, 2], [1, 3]], device=DEVICE)
    assert kernels.launch_dispatch_layout(indices, experts=5, site=SITE).tolist() == [1, 1, 1, 3, 0]


@pytest.mark.parametrize("tokens", [4, 70])
def test_expert_mapping_sorts_choices_by_expert(tokens):
    """70 tokens of 3 choices fill more than one block of 64."""
    indices = torch.rand(tokens, 6, generator=generator(6)).topk(3, dim=1).indices - 1
    indices[0] = torch.tensor([-1, 4, 7])
    weights = normal(tokens, 3, seed=7)
    rows = int(((indices >= 0) & (indices < 4)).sum())
    indices = indices.to(DEVICE)
    got = kernels.launch_expert_mapping(indices, weights, rows=rows, local_experts=4, site=SITE)
    expected = plain("expert_mapping", indices, weights, rows=rows, local_experts=4)
    for mine, wanted in zip(got, expected, strict=True):
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize("columns", [260, 131])
def test_permute_moves_values_and_scales(columns):
    x = normal(5, columns, seed=8).to(torch.float8_e4m3fn)
    scales = normal(-(-columns // 128), 5, seed=9).t()
    source = torch.tensor([4, 0, 0, 3], dtype=torch.int32, device=DEVICE)
    values, tiles = kernels.launch_permute(x, scales, source, site=SITE)
    assert torch.equal(values.view(torch.uint8), x.view(torch.uint8)[source.long()])
    assert torch.equal(tiles, scales[source.long()])
    assert tiles.stride() == (1, 4)


def test_permute_without_scales():
    x = normal(5, 24, seed=8).bfloat16()
    source = torch.tensor([4, 0, 0, 3], dtype=torch.int32, device=DEVICE)
    values, tiles = kernels.launch_permute(x, None, source, site=SITE)
    assert torch.equal(values, x[source.long()])
    assert tiles.shape == (4, 0)


def test_topk_weight_grad():
    activated, grad = normal(4, 1100, seed=10), normal(4, 1100, seed=11)
    weights = torch.tensor([0.5, 0.0, 2.0, 1.0], device=DEVICE)
    rows = torch.tensor([[0, -1], [2, 1], [-1, 3]], dtype=torch.int32, device=DEVICE)
    got = kernels.launch_topk_weight_grad(activated, grad, weights, rows, site=SITE)
    expected = plain("topk_weight_grad", activated, grad, weights, rows)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
