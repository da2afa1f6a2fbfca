"""Heads, widths and vocabulary that GPUs do not divide are refused by the name of the field."""

import dataclasses

import pytest

from reference_model.config import load_model_config
from reference_model.split import WHOLE, Split, part_of

V3 = load_model_config("deepseek_v3")


def test_one_gpu_has_the_whole():
    assert part_of(V3, WHOLE) == V3


def test_a_part_has_its_heads_width_and_vocabulary():
    part = part_of(V3, Split(4))
    assert (part.num_attention_heads, part.intermediate_size, part.vocab_size) == (32, 4608, 32_320)
    assert (part.q_lora_rank, part.kv_lora_rank) == (V3.q_lora_rank, V3.kv_lora_rank)


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        ({}, Split(3), r"tensor_parallel: 3 does not divide num_attention_heads 128 of the model; "
         r"allowed: 1, 2, 4, 8, 16, 32, 64"),
        ({"num_attention_heads": 129}, Split(3), "does not divide n_shared_experts x moe_int"),
        ({"vocab_size": 129_281}, Split(2), "does not divide vocab_size 129281 of the model; allo"),
        ({}, Split(1, 3), "expert_tensor_parallel: 3 does not divide moe_intermediate_size 2048"),
        ({}, Split(0), "tensor_parallel: 0 does not divide num_attention_heads"),
    ],
)  # fmt: skip
def test_gpus_that_do_not_divide_what_they_share_are_refused(change, split, message):
    with pytest.raises(ValueError, match=message):
        part_of(dataclasses.replace(V3, **change), split)


def test_an_indexer_is_not_split():
    with pytest.raises(ValueError, match="indexer of sparse attention is not split; allowed: 1"):
        part_of(load_model_config("deepseek_v3_2"), Split(2))
