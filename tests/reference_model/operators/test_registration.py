"""What makes a custom operator."""

import torch

from reference_model.operators.registration import Site, like_first, scale_tiles


def test_a_site_names_a_call_by_pass_segment_and_layer_part():
    assert Site("forward", "attn")("q_a_proj") == "forward:attn:q_a_proj"
    assert Site("input_grad", "mlp", recompute=True)("swiglu") == "input_grad:mlp:swiglu:recompute"


def test_a_last_narrow_tile_has_a_scale_of_its_own():
    assert [scale_tiles(columns) for columns in (0, 1, 128, 129, 7168)] == [0, 1, 1, 2, 56]


def test_a_result_like_the_first_argument_lies_in_order():
    turned = torch.empty(3, 5, device="meta").t()
    assert like_first(turned).shape == (5, 3)
    assert like_first(turned).is_contiguous()
