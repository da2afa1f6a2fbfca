"""The model computes what transformers computes, forward and backward, and FP8 stays close."""

import copy
import dataclasses
import json

import pytest
import torch
from torch.nn import functional

from reference_model.blocks import ResidualStream
from reference_model.checkpoint import export_weights
from reference_model.config import load_model_config, parse_model_config
from reference_model.layers import rotary_angles
from reference_model.model import Transformer
from reference_model.moe import ExpertRows
from reference_model.precision import RECIPES, Recipe

CPU = torch.device("cpu")
YARN = {
    "type": "yarn", "factor": 8, "original_max_position_embeddings": 32, "beta_fast": 32,
    "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.7,
}  # fmt: skip
RAW = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "vocab_size": 160, "hidden_size": 96, "num_hidden_layers": 3, "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0, "num_attention_heads": 3, "num_key_value_heads": 3,
    "q_lora_rank": 48, "kv_lora_rank": 32, "qk_nope_head_dim": 24, "qk_rope_head_dim": 16,
    "v_head_dim": 20, "rope_theta": 10000, "rope_scaling": YARN, "max_position_embeddings": 256,
    "hidden_act": "silu", "intermediate_size": 112, "moe_intermediate_size": 40,
    "n_shared_experts": 1, "n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 4,
    "topk_group": 2, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6,
}  # fmt: skip
V2 = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
    "scoring_func": "softmax", "topk_method": "group_limited_greedy", "norm_topk_prob": False,
    "n_shared_experts": 2, "routed_scaling_factor": 16.0,
}  # fmt: skip
CHANGES = {
    "query latent, YaRN, 4 groups": {},
    "no query latent": {"q_lora_rank": None},
    "no YaRN, 8 groups": {"rope_scaling": None, "n_group": 8, "topk_group": 3},
    "neither, 1 group, 2 shared": {
        "q_lora_rank": None,
        "rope_scaling": None,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
    },
    "dense layers only": {"first_k_dense_replace": 3},
    # The norms of the latents keep an epsilon of 1e-6 whatever the others have.
    "an epsilon of its own": {"rms_norm_eps": 1e-2},
    "a magnitude of its own": {"rope_scaling": YARN | {"attention_factor": 1.3}},
    "a ramp of YaRN that begins and ends between pairs": {
        "rope_scaling": YARN | {"truncate": False}
    },
    "YaRN with one temperature": {
        "rope_scaling": {name: YARN[name] for name in YARN if name != "mscale"}
    },
    "YaRN without temperatures and with null for a default": {
        "rope_scaling": {name: YARN[name] for name in YARN if not name.startswith("mscale")}
        | {"beta_fast": None}
    },
    "rope_parameters as transformers 5 writes them": {
        "rope_scaling": None,
        "rope_theta": None,
        "rope_parameters": YARN | {"type": None, "rope_type": "yarn", "rope_theta": 500.0},
    },
    "rope_parameters without YaRN": {
        "rope_scaling": None,
        "rope_theta": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
    "DeepSeek-V2: softmax scores, groups by their best expert, 2 shared": V2,
    "DeepSeek-V2-Lite: softmax scores, no groups, no query latent": V2
    | {"topk_method": "greedy", "n_group": 1, "topk_group": 1, "q_lora_rank": None},
    "DeepSeek-V2 with null for the defaults of its gate": V2
    | {"topk_method": "greedy"}
    | dict.fromkeys(("scoring_func", "norm_topk_prob", "n_group", "topk_group")),
    "GLM-4.7-Flash": {
        "architectures": ["Glm4MoeLiteForCausalLM"],
        "model_type": "glm4_moe_lite",
        "rope_scaling": None,
        "rope_theta": None,
        "first_k_dense_replace": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "n_group": 1,
        "topk_group": 1,
        "rms_norm_eps": 1e-5,
    },
}


SPARSE = {
    "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32",
    "index_topk": 8, "index_n_heads": 16, "index_head_dim": 32,
}  # fmt: skip
CHANGES |= {
    "DeepSeek-V3.2, a context of six times what a query reads": SPARSE,
    "DeepSeek-V3.2, a context below what a query reads": SPARSE | {"index_topk": 64},
    "GLM-5: the indexer rotates interleaved pairs": SPARSE
    | {
        "architectures": ["GlmMoeDsaForCausalLM"],
        "model_type": "glm_moe_dsa",
        "rope_scaling": None,
        "rope_theta": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "n_group": 1,
        "topk_group": 1,
        "rms_norm_eps": 1e-5,
    },
}


def random_model(config, *, recipe="float32", seed=0):
    """Weights scaled 1 / sqrt(fan-in), norms around 1, correction biases other than zero."""
    model = Transformer(config, recipe=Recipe(recipe, "reference"), device=CPU)
    generator = torch.Generator().manual_seed(seed)
    model.initialize(generator)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.dim() == 1:
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
                assert "norm" in name or "bias" in name
    return model


def random_tokens(config, *shape):
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def transformers_model(folder, raw, model):
    """The same weights, handed over as a checkpoint on disk."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    (folder / "config.json").write_text(json.dumps(raw))
    save_file(export_weights(model), folder / "model.safetensors")
    theirs, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    return theirs


def gradients(model):
    """Gradients under checkpoint names."""
    of_gradients = copy.deepcopy(model)
    with torch.no_grad():
        for target, source in zip(of_gradients.parameters(), model.parameters(), strict=True):
            target.copy_(torch.zeros(()) if source.grad is None else source.grad)
    return export_weights(of_gradients)


def assert_same_gradients(ours, theirs):
    """Every gradient of a transformers model, whose experts are joined, equals ours."""
    for name, parameter in theirs.named_parameters():
        if parameter.grad is None:  # the choice of tokens has no gradient
            assert ".indexer." in name
            assert not ours[name].any()
            continue
        if ".experts.gate_up_proj" in name or ".experts.down_proj" in name:
            prefix = name.rsplit(".", 1)[0]
            parts = ("gate_proj", "up_proj") if "gate_up" in name else ("down_proj",)
            expected = torch.stack(
                [
                    torch.cat([ours[f"{prefix}.{expert}.{part}.weight"] for part in parts])
                    for expert in range(parameter.shape[0])
                ]
            )
        else:
            expected = ours[name]
        torch.testing.assert_close(expected, parameter.grad, rtol=1e-3, atol=2e-6, msg=name)


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_logits_and_gradients_equal_those_of_transformers(tmp_path, changes):
    raw = RAW | changes
    config = parse_model_config(raw, source="test")
    model = random_model(config)
    theirs = transformers_model(tmp_path, raw, model)
    tokens = random_tokens(config, 2, 49)
    logits = model(tokens[:, :-1])
    their_logits = theirs(tokens[:, :-1]).logits
    assert (logits - their_logits).abs().max() < 1e-4

    losses, saved = model.loss(tokens, prediction_weight=0.3)
    model.backward(saved)
    their_loss = functional.cross_entropy(their_logits.flatten(0, 1), tokens[:, 1:].flatten())
    their_loss.backward()
    torch.testing.assert_close(losses.total, their_loss.detach(), rtol=1e-5, atol=0)
    assert losses.mtp is None
    assert_same_gradients(gradients(model), theirs)


def test_multi_token_prediction_equals_a_plain_one(tmp_path):
    """The module's layer is, to transformers, one more layer of the model, so that automatic
    differentiation of a plain composition tells what losses and gradients have to be."""
    raw = RAW | {"num_nextn_predict_layers": 1}
    config = parse_model_config(raw, source="test")
    model = random_model(config)
    layers = config.num_hidden_layers
    theirs = transformers_model(tmp_path, raw | {"num_hidden_layers": layers + 1}, model)
    weights = export_weights(model)
    own = {
        name: weights[f"model.layers.{layers}.{name}.weight"].requires_grad_()
        for name in ("enorm", "hnorm", "eh_proj", "shared_head.norm")
    }
    tokens = random_tokens(config, 2, 34)
    length = 32
    main, following, second = tokens[:, :-2], tokens[:, 1:-1], tokens[:, 2:]

    def run(hidden, first, last):
        positions = torch.arange(length)[None]
        angles = theirs.model.rotary_emb(hidden, positions)
        mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
        for layer in theirs.model.layers[first:last]:
            hidden = layer(
                hidden, attention_mask=mask, position_ids=positions, position_embeddings=angles
            )
        return hidden

    def norm(hidden, weight):
        return functional.rms_norm(hidden, (config.hidden_size,), weight, config.rms_norm_eps)

    def loss_of(hidden, targets):
        return functional.cross_entropy(theirs.lm_head(hidden).flatten(0, 1), targets.flatten())

    embed = theirs.model.embed_tokens
    normed = norm(run(embed(main), 0, layers), theirs.model.norm.weight)
    joined = torch.cat((norm(embed(following), own["enorm"]), norm(normed, own["hnorm"])), dim=-1)
    predicted = run(joined @ own["eh_proj"].T, layers, layers + 1)
    main_loss = loss_of(normed, following)
    mtp_loss = loss_of(norm(predicted, own["shared_head.norm"]), second)
    (main_loss + 0.3 * mtp_loss).backward()

    losses, saved = model.loss(tokens, prediction_weight=0.3)
    model.backward(saved)
    torch.testing.assert_close(losses.main, main_loss.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(losses.mtp, mtp_loss.detach(), rtol=1e-5, atol=0)
    ours = gradients(model)
    assert_same_gradients(ours, theirs)
    for name, weight in own.items():
        expected = ours[f"model.layers.{layers}.{name}.weight"]
        torch.testing.assert_close(expected, weight.grad, rtol=1e-3, atol=2e-6, msg=name)


def test_gradients_of_micro_batches_add_up():
    config = load_model_config("debug")
    tokens = random_tokens(config, 2, 34)
    together, apart = random_model(config), random_model(config)
    _, saved = together.loss(tokens, prediction_weight=0.3)
    together.backward(saved)
    for sequence in tokens:
        _, saved = apart.loss(sequence[None], prediction_weight=0.3)
        apart.backward(saved, weight=0.5)
    for one, other in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)


def test_a_changed_weight_changes_the_working_copy():
    config = load_model_config("debug")
    model = random_model(config, recipe="fp8")
    tokens = random_tokens(config, 1, 16)
    before = model(tokens)
    with torch.no_grad():
        model.layers[0].mlp.down_proj.weight.mul_(2)
    assert not torch.equal(model(tokens), before)


@pytest.mark.parametrize("name", RECIPES[1:])
def test_the_loss_in_low_precision_is_close(name):
    """Within the 0.25% that the Report gives for FP8, where rounding cannot change the routing."""
    config = dataclasses.replace(
        load_model_config("debug"),
        n_routed_experts=4, n_group=2, topk_group=2, num_experts_per_tok=4,
    )  # fmt: skip
    tokens = random_tokens(config, 4, 66)
    exact, _ = random_model(config).loss(tokens, prediction_weight=0.3)
    rounded, _ = random_model(config, recipe=name).loss(tokens, prediction_weight=0.3)
    assert rounded.total == pytest.approx(float(exact.total), rel=0.0025)


def test_wrong_shapes_and_names_are_errors():
    config = load_model_config("debug")
    model = random_model(config)
    with pytest.raises(ValueError, match=r"tokens of shape \[3\]"):
        model(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"tokens of shape \[1, 0\]"):
        model.loss(torch.zeros(1, 2, dtype=torch.int64), prediction_weight=0.3)
    with pytest.raises(ValueError, match="recipe 'fp4' is not one of"):
        Recipe("fp4", "reference")
    with pytest.raises(ValueError, match="kernels 'magic' is not one of"):
        Recipe("fp8", "magic")
    with pytest.raises(ValueError, match="received_rows = 5"):
        model.layers[-1](
            ResidualStream(torch.zeros(4, config.hidden_size), None),
            rotary_angles(config, 4, device=CPU),
            ExpertRows(received=5, expanded=8),
        )
