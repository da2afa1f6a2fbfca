"""Operands of the three recipes."""

import pytest
import torch

from reference_model.precision import Recipe

SITE = "weight_grad:optimizer:working_copy"


@pytest.mark.parametrize(
    ("name", "kernels", "message"),
    [
        ("fp4", "reference", "recipe 'fp4' is not one of"),
        ("fp8", "cutlass", "kernels 'cutlass' is not one of"),
    ],
)
def test_an_unknown_recipe_or_backend_is_refused(name, kernels, message):
    with pytest.raises(ValueError, match=message):
        Recipe(name, kernels)


def test_without_fp8_an_operand_is_the_tensor_itself():
    x = torch.tensor([[1.0, 1 / 3]])
    recipe = Recipe("float32", "reference")
    assert recipe.quantize(x, "") == (x, None, None)
    assert recipe.weight(x, SITE).values.dtype == torch.float32
    assert Recipe("bfloat16", "reference").weight(x, SITE).values.tolist() == [[1.0, 0.333984375]]


def test_fp8_weights_have_one_scale_per_block_of_128_by_128():
    weight = Recipe("fp8", "reference").weight(torch.full((200, 300), 448.0), SITE)
    assert weight.values.dtype == torch.float8_e4m3fn
    assert weight.scales.shape == (2, 3)
    assert weight.scales.eq(1.0).all()  # 448 is E4M3's largest value
    assert weight.turned_scales.shape == (3, 2)
