"""Weights keep their names and values through a checkpoint."""

import pytest
import torch

from reference_model.checkpoint import export_weights, import_weights
from reference_model.config import load_model_config
from reference_model.model import Transformer
from reference_model.precision import Recipe


@pytest.fixture
def models():
    config = load_model_config("debug")
    made = []
    for seed in range(2):
        model = Transformer(
            config, recipe=Recipe("float32", "reference"), device=torch.device("cpu")
        )
        model.initialize(torch.Generator().manual_seed(seed))
        made.append(model)
    return made


def test_weights_survive_export_and_import(models):
    one, other = models
    import_weights(other, export_weights(one), source="memory")
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_names_are_those_of_the_published_checkpoint(models):
    names = set(export_weights(models[0]))
    assert {
        "model.embed_tokens.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.1.self_attn.kv_a_proj_with_mqa.weight",
        "model.layers.1.self_attn.q_a_layernorm.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.3.mlp.experts.7.up_proj.weight",
        "model.layers.3.mlp.shared_experts.down_proj.weight",
        "model.layers.4.eh_proj.weight",
        "model.layers.4.shared_head.norm.weight",
        "model.layers.4.embed_tokens.weight",
        "lm_head.weight",
    } <= names


def test_missing_and_misshapen_tensors_are_named(models):
    weights = export_weights(models[0])
    del weights["model.norm.weight"]
    with pytest.raises(ValueError, match=r"a\.safetensors: tensor model\.norm\.weight is missing"):
        import_weights(models[1], weights, source="a.safetensors")
    weights["model.norm.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape \[3\].*\[128\]"):
        import_weights(models[1], weights, source="a.safetensors")
