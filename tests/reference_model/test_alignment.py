from dataclasses import replace

import pytest

from reference_model.alignment import check_recipe, check_sizes, size_notes
from reference_model.config import load_model_config
from reference_model.precision import Recipe


def test_deepseek_v3_has_one_size_with_a_narrow_last_tile():
    config = load_model_config("deepseek_v3")
    assert size_notes(config) == [
        "kv_lora_rank + qk_rope_head_dim = 576: of its tiles of 128 the last has 64, "
        "filled with zeros as it is read, not padded in memory"
    ]
    check_sizes(config)


def test_a_size_that_memory_transfers_cannot_address_is_refused():
    config = replace(load_model_config("deepseek_v3"), moe_intermediate_size=2040)
    with pytest.raises(
        ValueError, match=r"moe_intermediate_size = 2040: .* nearest are 2032 and 2048"
    ):
        check_sizes(config)


@pytest.mark.parametrize("kernels", ["triton", "library"])
def test_a_recipe_that_runs_on_a_gpu_is_held_to_its_sizes(kernels):
    config = load_model_config("deepseek_v3")
    assert check_recipe(config, Recipe("fp8", kernels)) == size_notes(config)
    odd = replace(config, kv_lora_rank=500)
    with pytest.raises(ValueError, match="kv_lora_rank = 500"):
        check_recipe(odd, Recipe("fp8", kernels))
    assert check_recipe(odd, Recipe("bfloat16", kernels)) == []
    assert check_recipe(odd, Recipe("fp8", "reference")) == []
