"""Gradients of layers: in low precision they stay close, and those of weights can wait."""

import dataclasses

import pytest
import torch

from reference_model.blocks import Block, DenseBlock, MoEBlock, ResidualStream, run_weight_grads
from reference_model.config import load_model_config
from reference_model.layers import rotary_angles
from reference_model.moe import ExpertRows
from reference_model.precision import Recipe
from tests.reference_model.test_model import CPU, random_model


def test_weight_gradients_can_wait():
    """The input gradient does not depend on them, as zero-bubble schedules need."""
    config = load_model_config("debug")
    model = random_model(config)
    block = model.layers[-1]
    angles = rotary_angles(config, 32, device=CPU)
    rows = ExpertRows(received=32, expanded=32 * config.num_experts_per_tok)
    hidden = torch.randn(32, config.hidden_size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        _, saved = block(ResidualStream(hidden, hidden), angles, rows)
        _, weight_grads = block.input_grad(hidden, saved, angles, rows)
    assert block.self_attn.o_proj.weight.grad is None
    assert block.mlp.experts.down_proj.weight.grad is None
    run_weight_grads(weight_grads)
    assert block.self_attn.o_proj.weight.grad.abs().sum() > 0
    assert block.mlp.experts.down_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", [DenseBlock, MoEBlock])
@pytest.mark.parametrize(("recipe", "tolerance"), [("bfloat16", 0.03), ("fp8", 0.15)])
def test_low_precision_gradients_of_a_layer_are_close(kind, recipe, tolerance):
    """Relative to float32, for the layer's input and every weight. Every token goes to every
    expert, so that rounding cannot change the routing. E4M3 alone rounds by up to 6%."""
    config = dataclasses.replace(
        load_model_config("debug"),
        n_routed_experts=4, n_group=2, topk_group=2, num_experts_per_tok=4,
    )  # fmt: skip
    exact, rounded = (layer_gradients(kind, config, name) for name in ("float32", recipe))
    for name, gradient in exact.items():
        error = (rounded[name].float() - gradient).norm() / gradient.norm()
        assert error < tolerance, (name, error)


def layer_gradients(kind: type[Block], config, recipe):
    generator = torch.Generator().manual_seed(3)
    recipe = Recipe(recipe, "reference")
    sizes = () if kind is DenseBlock else (config.n_routed_experts,)
    block = kind(config, *sizes, recipe=recipe, device=CPU)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
            if parameter.dim() == 1:
                parameter.fill_(1)
        tokens = 128
        hidden, grad = torch.randn(2, tokens, config.hidden_size, generator=generator)
        angles = rotary_angles(config, tokens, device=CPU)
        rows = ExpertRows(received=tokens, expanded=tokens * config.num_experts_per_tok)
        hidden, grad = hidden.to(recipe.dtype), grad.to(recipe.dtype)
        _, saved = block(ResidualStream(hidden, None), angles, rows)
        input_grad, weight_grads = block.input_grad(grad, saved, angles, rows)
        run_weight_grads(weight_grads)
    return {"input": input_grad} | {n: p.grad for n, p in block.named_parameters()}
