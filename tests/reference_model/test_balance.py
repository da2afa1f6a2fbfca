"""Loads are counted, biases move against them, and the balance loss has the gradient it claims."""

import dataclasses

import pytest
import torch

from reference_model.balance import (
    add_balance_loss,
    balance_loss,
    balance_value,
    expert_load,
    group_imbalance,
    group_sizes,
    maximum_violation,
    moe_blocks,
    step_biases,
    write_expert_load,
    write_group_imbalance,
)
from reference_model.config import load_model_config
from reference_model.model import Transformer
from reference_model.precision import Recipe
from simulator.workload.experts import read_popularity

CPU = torch.device("cpu")


def model_and_tokens(recipe="float32"):
    config = load_model_config("debug")
    model = Transformer(config, recipe=Recipe(recipe, "reference"), device=CPU)
    generator = torch.Generator().manual_seed(0)
    model.initialize(generator)
    return model, torch.randint(config.vocab_size, (2, 34), generator=generator)


def test_loads_count_every_choice_of_every_layer():
    model, tokens = model_and_tokens()
    _, saved = model.loss(tokens, prediction_weight=0.3)
    load = expert_load(saved, experts=8)
    assert load.shape == (4, 8)  # three layers of the main model, and the prediction module's
    assert load.sum(dim=1).tolist() == [64 * 2] * 4


def test_maximum_violation_is_the_excess_of_the_largest_load():
    load = torch.tensor([[4, 4, 4, 4], [8, 4, 2, 2], [16, 0, 0, 0]])
    assert maximum_violation(load).tolist() == [0.0, 1.0, 3.0]


def test_biases_move_by_gamma_against_the_load():
    model, _ = model_and_tokens()
    load = torch.tensor([[9, 1, 4, 4, 4, 4, 4, 2]] * 4)
    step_biases(model, load, gamma=0.01)
    for block in moe_blocks(model):
        bias = block.mlp.gate.e_score_correction_bias
        assert bias == pytest.approx(torch.tensor([-1.0, 1, 0, 0, 0, 0, 0, 1]) * 0.01)


def test_bias_steps_even_out_the_load_of_a_batch():
    model, tokens = model_and_tokens()
    before = None
    for _ in range(100):
        _, saved = model.loss(tokens, prediction_weight=0.3)
        load = expert_load(saved, experts=8)
        before = maximum_violation(load) if before is None else before
        step_biases(model, load, gamma=0.002)
    assert maximum_violation(load).mean() < before.mean() / 2


def test_the_balance_loss_is_1_where_scores_and_choices_are_even():
    logits = torch.zeros(8, 4)
    indices = torch.tensor([[0, 1], [2, 3]]).repeat(4, 1)
    loss, gradient = balance_loss(logits, indices, length=4, scoring="sigmoid")
    assert loss == pytest.approx(1.0)
    assert gradient.abs().max() < 1e-7


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_the_gradient_of_the_balance_loss_is_that_of_automatic_differentiation(scoring):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    indices = logits.detach().topk(3, dim=1).indices
    loss, gradient = balance_loss(logits, indices, length=4, scoring=scoring)
    loss.backward()
    torch.testing.assert_close(gradient.detach(), logits.grad)
    assert balance_value(logits, indices, length=4, scoring=scoring) == loss


def test_the_balance_loss_changes_gradients_by_alpha():
    """The difference it makes to the gate is linear in alpha; the experts that the gate chose for
    the last layer of all do not see it."""
    gradients = []
    for alpha in (0.0, 0.1, 0.2):
        model, tokens = model_and_tokens()
        add_balance_loss(model, alpha=alpha, length=32)
        _, saved = model.loss(tokens, prediction_weight=0.3)
        model.backward(saved)
        last = model.mtp.block.mlp
        gradients.append((last.gate.proj.weight.grad, last.experts.down_proj.weight.grad))
    (none, experts), (once, same), (twice, _) = gradients
    assert (once - none).norm() > 0
    torch.testing.assert_close(twice - none, 2 * (once - none), rtol=1e-3, atol=1e-7)
    assert torch.equal(experts, same)


def test_parameters_keep_their_names_with_a_balance_loss():
    model, _ = model_and_tokens()
    names = set(model.state_dict())
    add_balance_loss(model, alpha=0.1, length=32)
    assert set(model.state_dict()) == names
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_imbalance_of_groups_lies_between_1_and_that_of_single_experts():
    load = torch.tensor([[8, 0, 1, 3, 2, 2, 0, 0]])
    assert [float(group_imbalance(load, ranks=r)[0]) for r in (1, 2, 4, 8)] == [1.0, 1.5, 2.0, 4.0]
    assert group_sizes(8) == [2, 4, 8]
    with pytest.raises(ValueError, match="ranks = 3 do not divide 8 experts"):
        group_imbalance(load, ranks=3)


def test_the_simulator_reads_the_histograms_as_a_routing_source(tmp_path):
    config = dataclasses.replace(load_model_config("debug"))
    load = torch.arange(4 * 8).view(4, 8)
    write_expert_load(load, config, tmp_path / "load.csv")
    popularity = read_popularity(tmp_path / "load.csv", layers=3, experts=8)
    expected = load[:3].double() / load[:3].sum(dim=1, keepdim=True)
    torch.testing.assert_close(torch.from_numpy(popularity), expected)
    write_group_imbalance(load, config, tmp_path / "imbalance.csv")
    lines = (tmp_path / "imbalance.csv").read_text().splitlines()
    assert lines[0] == "layer,ep_ranks,max_over_mean"
    assert len(lines) == 1 + 3 * 3
