"""Drafts change how many steps decoding takes, never what it says."""

import dataclasses

import pytest
import torch

from reference_model.config import load_model_config
from reference_model.generate import (
    Decoder,
    draft_cost,
    expected_speedup,
    first_difference,
    generate,
    generate_with_draft,
)
from reference_model.model import Transformer
from reference_model.precision import Recipe

CPU = torch.device("cpu")


def random_model(recipe="float32", **changes):
    config = dataclasses.replace(load_model_config("debug"), **changes)
    model = Transformer(config, recipe=Recipe(recipe, "reference"), device=CPU)
    model.initialize(torch.Generator().manual_seed(0))
    return model


def repetitive_model():
    """Says the last token again, and so does its prediction module: drafts that are right."""
    model = random_model()
    with torch.no_grad():
        for block in (*model.layers, model.mtp.block):
            block.self_attn.o_proj.weight.zero_()
            for name, parameter in block.mlp.named_parameters():
                if "down_proj" in name:
                    parameter.zero_()
        model.lm_head.weight.copy_(model.embed_tokens.weight)
        hidden = model.config.hidden_size
        model.mtp.eh_proj.weight.zero_()
        model.mtp.eh_proj.weight[:, :hidden] = torch.eye(hidden)
    return model


def prompts(model, sequences=3, length=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(model.config.vocab_size, (sequences, length), generator=generator)


def test_plain_decoding_says_what_the_whole_model_says():
    model = random_model()
    tokens = prompts(model)
    result = generate(model, tokens, new_tokens=5)
    for _ in range(5):
        tokens = torch.cat((tokens, model(tokens)[:, -1].argmax(dim=1, keepdim=True)), dim=1)
    assert torch.equal(result.tokens, tokens[:, 6:])
    assert result.steps == 3 * 4


@pytest.mark.parametrize("recipe", ["float32", "bfloat16"])
def test_drafts_that_are_wrong_change_nothing(recipe):
    model = random_model(recipe)
    plain = generate(model, prompts(model), new_tokens=12)
    drafted = generate_with_draft(model, prompts(model), new_tokens=12)
    assert first_difference(plain.tokens, drafted.tokens) is None
    assert drafted.acceptance < 0.5
    assert drafted.steps <= plain.steps


def test_drafts_that_are_right_halve_the_steps():
    model = repetitive_model()
    plain = generate(model, prompts(model), new_tokens=11)
    drafted = generate_with_draft(model, prompts(model), new_tokens=11)
    assert first_difference(plain.tokens, drafted.tokens) is None
    assert drafted.acceptance == 1.0
    assert (plain.steps, drafted.steps) == (3 * 10, 3 * 5)
    assert drafted.tokens_per_step == 2.0


def test_the_draft_is_what_the_module_says_in_training():
    """Cached, token by token, against its pass over whole sequences."""
    model = random_model()
    tokens = prompts(model, sequences=2, length=9)
    _, saved = model.loss(tokens, prediction_weight=0.3)
    expected = saved.prediction.head.logits.view(2, 7, -1).argmax(dim=2)  # of tokens 2 .. 8
    decoder = Decoder(model, sequences=2, capacity=9)
    _, hidden = decoder.prefill(tokens[:, :4])
    first = decoder.draft_prefill(hidden, tokens[:, 1:5])
    assert torch.equal(first, expected[:, 3])
    lengths = torch.tensor([4, 4])
    _, hidden = decoder.extend(tokens[:, 4:6], lengths)
    assert torch.equal(decoder.draft(hidden, tokens[:, 5:7], lengths), expected[:, 4:6])


def test_the_published_acceptance_gives_the_published_speed_up():
    """85 to 90% of drafts accepted, 1.8 times the tokens a second (Report, section 5.4.3)."""
    cost = draft_cost(load_model_config("deepseek_v3"))
    assert cost == pytest.approx(0.044, abs=0.001)
    assert expected_speedup(0.85, cost) == pytest.approx(1.8, abs=0.04)
    assert expected_speedup(0.90, cost) == pytest.approx(1.8, abs=0.04)


def test_differences_are_found():
    one = torch.zeros(2, 3)
    other = one.clone()
    assert first_difference(one, other) is None
    other[1, 2] = 1
    assert first_difference(one, other) == (1, 2)


def test_what_cannot_be_generated_is_an_error():
    model = random_model(num_nextn_predict_layers=0)
    with pytest.raises(ValueError, match="no multi-token prediction module"):
        generate_with_draft(model, prompts(model), new_tokens=4)
    with pytest.raises(ValueError, match="new_tokens = 1 must be at least 2"):
        generate(model, prompts(model), new_tokens=1)
    with pytest.raises(ValueError, match=r"prompts of shape \[0, 4\]"):
        generate(model, torch.zeros((0, 4), dtype=torch.int64), new_tokens=4)
