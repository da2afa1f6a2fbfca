"""The Triton kernels on heads against the operators' own bodies, interpreted on a CPU."""

import pytest
import torch

from reference_model import decode_operators, operators
from reference_model.kernels import triton_heads as kernels
from tests.reference_model.kernels.test_triton_elementwise import SITE, assert_same, normal


@pytest.mark.parametrize("inverse", [False, True])
def test_rope_turns_a_strided_view_in_place(inverse):
    x = normal(2, 3, 5, 24, seed=9)
    expected = x.clone()
    cos, sin = normal(3, 8, seed=10), normal(3, 8, seed=11)
    kernels.launch_rope(x[..., 8:], cos, sin, inverse=inverse, site=SITE)
    operators.rope._init_fn(expected[..., 8:], cos, sin, inverse=inverse, site=SITE)
    torch.testing.assert_close(x, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("own_angles", [False, True])
def test_rope_into_writes_a_strided_part(own_angles):
    x, out = normal(2, 3, 5, 24, seed=9), normal(2, 3, 5, 40, seed=10)
    shape = (2, 3, 8) if own_angles else (3, 8)
    cos, sin = normal(*shape, seed=11), normal(*shape, seed=12)
    expected = out.clone()
    kernels.launch_rope_into(x[..., 8:], cos, sin, out[..., 24:], site=SITE)
    decode_operators.rope_into._init_fn(x[..., 8:], cos, sin, expected[..., 24:], site=SITE)
    torch.testing.assert_close(out, expected, rtol=2e-5, atol=2e-6)


def test_broadcast_heads_fills_a_strided_part():
    whole = normal(7, 5, 24, seed=14)
    assert_same("broadcast_heads", normal(7, 8, seed=15), whole[..., 16:], of=kernels)


@pytest.mark.parametrize("kept", [slice(0, 12), slice(12, 24)])
def test_copy_moves_a_part_of_heads_into_a_part_of_others(kept):
    out = normal(2, 3, 5, 40, seed=26)
    assert_same("copy", normal(2, 3, 5, 24, seed=25)[..., kept], out[..., 28:], of=kernels)
    assert_same("copy", normal(6, 24, seed=27)[:, kept], normal(6, 12, seed=28), of=kernels)


def test_copy_between_strides_that_no_row_holds():
    x = normal(3, 2, 5, 8, seed=29).transpose(0, 1)
    assert_same("copy", x, normal(2, 3, 5, 8, seed=30), of=kernels)


def test_sum_heads_of_a_strided_part():
    assert_same("sum_heads", normal(7, 5, 24, seed=15)[..., 16:], of=kernels)


def test_attention_preprocess_sums_rows_and_clears_the_accumulator():
    out, grad = normal(2, 3, 5, 16, seed=19), normal(2, 3, 5, 16, seed=20)
    assert_same("attention_backward_preprocess", out, grad, qk_dim=24, of=kernels)


def test_the_made_up_attention_output_has_the_row_sums_asked_for():
    grad, delta = normal(2, 3, 5, 16, seed=21), normal(2, 5, 3, seed=22)
    out = kernels.output_of_sums(grad, delta)
    sums = (out * grad).sum(dim=3).transpose(1, 2)
    torch.testing.assert_close(sums, delta, rtol=2e-5, atol=2e-6)
