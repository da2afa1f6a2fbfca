"""Angles and scale of attention, and a linear layer's three products."""

import math

import pytest
import torch

from reference_model.config import load_model_config
from reference_model.layers import Linear, attention_scale, rotary_angles
from reference_model.operators import Site
from reference_model.precision import Recipe

CPU = torch.device("cpu")
V3 = load_model_config("deepseek_v3")


def test_the_scale_of_v3_is_that_of_192_dimensions_and_yarns_temperature():
    # 0.1 x 1 x ln(40) + 1 = 1.3689 (arXiv:2309.00071, section 3.4), squared over sqrt(192).
    assert V3.qk_head_dim == 192
    assert attention_scale(V3) == pytest.approx((0.1 * math.log(40) + 1) ** 2 / math.sqrt(192))


def test_position_0_is_not_rotated_and_the_fastest_pair_turns_by_one():
    angles = rotary_angles(V3, 3, device=CPU)
    assert angles.length == 3
    assert angles.cos.shape == (3, 32)
    assert angles.cos[0].tolist() == [1.0] * 32
    assert angles.sin[0].tolist() == [0.0] * 32
    assert float(angles.sin[2, 0]) == pytest.approx(math.sin(2.0), rel=1e-6)


def test_a_linear_layer_multiplies_by_its_weight_and_back_by_its_transpose():
    layer = Linear("proj", 2, 3, recipe=Recipe("float32", "reference"), device=CPU)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    x, grad = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1.0, 10.0]])
    assert layer(
        layer.quantize_input(x, Site("forward", "mlp")), Site("forward", "mlp")
    ).tolist() == [[-2.0, -2.0]]
    back, later = layer.backward(grad, x, Site("input_grad", "mlp"))
    assert back.tolist() == [[41.0, 52.0, 63.0]]
    later(Site("weight_grad", "mlp"))
    assert layer.weight.grad.tolist() == [[1.0, 0.0, -1.0], [10.0, 0.0, -10.0]]
