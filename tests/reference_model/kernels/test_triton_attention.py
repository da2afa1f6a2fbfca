"""The query gradient that is added in one order against plain torch, natively on a GPU, else
interpreted."""

import pytest
import torch

from reference_model import operators as ops
from reference_model.kernels.triton_attention import add_query_gradient

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SITE = "input_grad:attention:test"
SCALE = 0.07


@pytest.mark.parametrize(
    ("sequences", "length", "heads", "qk_dim", "v_dim"),
    [(2, 200, 2, 48, 32), (1, 129, 1, 64, 24), (1, 40, 3, 192, 128)],
)
def test_the_query_gradient_equals_plain_torch_and_is_added(
    sequences, length, heads, qk_dim, v_dim
):
    generator = torch.Generator().manual_seed(0)
    # Values that BF16 holds; in float32 where interpreted, so that only the order of sums differs.
    q, k, v, grad = (
        torch.randn(sequences, length, heads, dim, generator=generator).bfloat16().float()
        for dim in (qk_dim, qk_dim, v_dim, v_dim)
    )
    out, log_sum = ops.attention_forward(q, k, v, scale=SCALE, site=SITE)
    delta, expected = ops.attention_backward_preprocess(out, grad, qk_dim=qk_dim, site=SITE)
    ops.attention_backward(expected, q, k, v, grad, log_sum, delta, scale=SCALE, site=SITE)
    got = torch.full(expected.shape, 2.0, device=DEVICE)
    narrow = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    arguments = [x.to(DEVICE, narrow) for x in (q, k, v, grad)]
    add_query_gradient(got, *arguments, log_sum.to(DEVICE), delta.to(DEVICE), scale=SCALE)
    torch.testing.assert_close(got.cpu(), expected + 2.0, rtol=0, atol=TOLERANCE)


TOLERANCE = 2e-2 if DEVICE == "cuda" else 2e-5
"""A GPU rounds the gradients of scores to BF16."""


def test_heads_too_narrow_for_a_product_are_refused():
    narrow, sums = torch.zeros(1, 4, 1, 16), torch.zeros(1, 1, 4)
    with pytest.raises(
        ValueError, match="heads of 16 values: a deterministic step takes more than"
    ):
        add_query_gradient(narrow.clone(), narrow, narrow, narrow, narrow, sums, sums, scale=1.0)
