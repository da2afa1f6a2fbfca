"""Kernels of sparse attention against plain torch, natively on a GPU, else interpreted."""

import pytest
import torch

from reference_model import operators as ops
from reference_model.kernels import triton_sparse
from reference_model.kernels.reference import ReferenceKernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SITE = "forward:attention:test"


@pytest.fixture
def randn():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


def quantized(x):
    """x [..., dim] in E4M3 with a scale a row."""
    values, scales = ReferenceKernels().quantize_tiles(
        x.reshape(-1, x.shape[-1]), power_of_two_scales=True
    )
    return values.view(x.shape).to(DEVICE), scales[:, 0].reshape(x.shape[:-1]).to(DEVICE)


@pytest.mark.parametrize(("queries", "lengths"), [(1, [1, 200]), (3, [140, 3]), (40, None)])
def test_index_scores_in_fp8_equal_the_reference(randn, queries, lengths):
    q, q_scales = quantized(randn(2, queries, 16, 32))
    keys, key_scales = quantized(randn(2, 200, 32))
    weights = randn(2, queries, 16).to(DEVICE)
    ends = None if lengths is None else torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    arguments = (q, q_scales, weights, keys, key_scales, ends)
    found = triton_sparse.index_scores_triton(*arguments, scale=0.3)
    expected = ops.index_scores(*arguments, scale=0.3, site=SITE)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_index_scores_of_a_longer_cache_are_those_of_its_beginning(randn):
    q, keys, weights = randn(2, 5, 16, 32), randn(2, 300, 32), randn(2, 5, 16)
    q, keys, weights = (x.to(DEVICE) for x in (q, keys[:, :100], weights))
    found = triton_sparse.index_scores_triton(q, None, weights, keys, None, None, scale=1.0)
    expected = ops.index_scores(q, None, weights, keys, None, None, scale=1.0, site=SITE)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("columns", "top_k"), [(5000, 100), (40, 64), (64, 64), (300, 7)])
def test_the_selection_holds_the_largest_scores(randn, columns, top_k):
    scores = randn(1, 3, columns)
    scores[0, 1, 20:] = float("-inf")
    scores[0, 2] = torch.arange(columns) % 5 - 2.0  # many are equal, some negative, some zero
    scores = scores.to(DEVICE)
    found = triton_sparse.launch_index_topk(scores, top_k=top_k, site=SITE)
    expected = ops.index_topk(scores, top_k=top_k, site=SITE)
    for mine, theirs, row in zip(found[0], expected[0], scores[0], strict=True):
        assert (mine >= 0).sum() == (theirs >= 0).sum()
        chosen, best = (row[p[p >= 0].long()].sort().values for p in (mine, theirs))
        assert torch.equal(chosen, best)
        assert len(set(mine[mine >= 0].tolist())) == (mine >= 0).sum()


@pytest.mark.parametrize(("sequences", "queries"), [(3, 1), (1, 2)])
def test_the_core_reads_the_selected_tokens(randn, sequences, queries):
    q = randn(sequences, queries, 20, 48).to(DEVICE)
    cache = randn(sequences, 300, 48).to(DEVICE)
    selected = torch.stack([torch.randperm(300)[:200] for _ in range(sequences * queries)])
    selected[0, 3:] = -1  # a whole split holds nothing
    selected = selected.view(sequences, queries, 200).int().to(DEVICE)
    found = triton_sparse.sparse_mla_triton(q, cache, selected, latent_dim=32, scale=0.2)
    expected = ops.sparse_mla(q, cache, selected, latent_dim=32, scale=0.2, site=SITE)
    tolerance = 1e-5 if DEVICE == "cpu" else 2e-3  # tensor cores round float32 to TF32
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def test_keys_are_cached_in_fp8_with_a_scale_each(randn):
    keys = (5 * randn(6, 32)).to(DEVICE, torch.bfloat16)
    positions = torch.tensor([[4, 1, 2], [0, 3, 7]], device=DEVICE)

    def empty():
        cache = torch.zeros(2, 8, 32, device=DEVICE).to(torch.float8_e4m3fn)
        return cache, torch.zeros(2, 8, device=DEVICE)

    found, expected = empty(), empty()
    triton_sparse.launch_append_index(keys, positions, *found, site=SITE)
    ops.append_index(keys, positions, *expected, site=SITE)
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0].float(), expected[0].float())


def test_layernorm_equals_the_reference(randn):
    x, weight, bias = (t.to(DEVICE) for t in (randn(5, 96), randn(96), randn(96)))
    found = triton_sparse.launch_layernorm(x, weight, bias, eps=1e-6, site=SITE)
    expected = torch.nn.functional.layer_norm(x, (96,), weight, bias, 1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
