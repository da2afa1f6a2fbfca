"""Routing that is drawn beforehand, and what it means for every rank."""

import dataclasses

import pytest
import torch

from reference_model.config import load_model_config
from reference_model.pair import build_layers
from reference_model.planned_routing import plan_layer, plan_routing, planned_choices
from reference_model.precision import Recipe

DEBUG = load_model_config("debug")  # 8 experts, 2 a token


def test_a_planned_token_chooses_different_experts_and_the_same_again():
    choices = planned_choices(DEBUG, tokens=500, skew=1.0, seed=3)
    assert choices.shape == (500, 2)
    assert bool((choices[:, 0] != choices[:, 1]).all())
    assert torch.equal(choices, planned_choices(DEBUG, tokens=500, skew=1.0, seed=3))


@pytest.mark.parametrize("skew", [0.0, 2.0])
def test_first_choices_fall_by_exp_of_the_skew_from_the_first_expert_to_the_last(skew):
    """Of 200,000 tokens; the count of an expert scatters by less than 1%."""
    config = dataclasses.replace(DEBUG, num_experts_per_tok=1)
    counts = planned_choices(config, tokens=200_000, skew=skew, seed=0).flatten().bincount()
    shares = torch.exp(-skew * torch.arange(8) / 7)
    expected = 200_000 * shares / shares.sum()
    assert counts.double() == pytest.approx(expected.double(), rel=0.03)


def test_planned_rows_are_those_of_the_choices():
    plan = plan_layer(DEBUG, tokens=32, skew=0.0, ranks=2, layer=1)
    for rank in range(2):
        homes = planned_choices(DEBUG, tokens=32, skew=0.0, seed=1000 + rank) // 4
        assert plan.sent[rank].tolist() == [
            sum(peer in row for row in homes.tolist()) for peer in range(2)
        ]
    assert int(plan.expanded.sum()) == 2 * 32 * 2


def test_planned_routing_gives_every_rank_the_layout_of_its_plan():
    recipe, cpu = Recipe("float32", "reference"), torch.device("cpu")
    layers = build_layers(DEBUG, 1, recipe=recipe, device=cpu, rank=1, ranks=2, seed=0)
    plan_routing(layers, tokens=16, skew=0.0, rank=1, ranks=2)
    chosen = [planned_choices(DEBUG, tokens=16, skew=0.0, seed=peer) for peer in range(2)]
    layout = layers[0].mlp.layout
    local = DEBUG.n_routed_experts // 2
    assert layout.sent == [int((chosen[1] // local == peer).any(dim=1).sum()) for peer in range(2)]
    assert layout.received == [int((c // local == 1).any(dim=1).sum()) for c in chosen]
    assert layout.expanded == sum(int((c // local == 1).sum()) for c in chosen)
    assert torch.equal(layers[0].mlp.gate.choices, chosen[1])
