"""The absorbed attention core: Triton against torch, natively on a GPU, else interpreted."""

import pytest
import torch

from reference_model.kernels import mla_decode

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def inputs(query_length: int, capacity: int, lengths: list[int], dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(len(lengths), query_length, 20, 48, generator=generator)
    cache = torch.randn(len(lengths), capacity, 48, generator=generator)
    return (
        q.to(DEVICE, dtype),
        cache.to(DEVICE, dtype),
        torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
    )


@pytest.mark.parametrize(("query_length", "lengths"), [(1, [1, 70, 200]), (2, [2, 129])])
def test_the_kernel_equals_the_reference(query_length, lengths):
    q, cache, lengths = inputs(query_length, 200, lengths, torch.float32)
    out, log_sums = mla_decode.mla_decode_triton(q, cache, lengths, latent_dim=32, scale=0.2)
    expected, expected_sums = mla_decode.mla_decode_reference(
        q, cache, lengths, latent_dim=32, scale=0.2
    )
    tolerance = 1e-5 if DEVICE == "cpu" else 2e-3  # tensor cores round float32 to TF32
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(log_sums, expected_sums, rtol=tolerance, atol=tolerance)


def test_cached_tokens_beyond_the_length_are_not_seen():
    q, cache, lengths = inputs(1, 200, [90], torch.float32)
    before, _ = mla_decode.mla_decode_triton(q, cache, lengths, latent_dim=32, scale=0.2)
    cache[:, 90:] = 1e4
    after, _ = mla_decode.mla_decode_triton(q, cache, lengths, latent_dim=32, scale=0.2)
    assert torch.equal(before, after)
