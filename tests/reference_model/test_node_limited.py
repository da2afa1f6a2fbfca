"""Distinct destinations are counted right, and the gate reaches as many as published."""

import pytest
import torch

from reference_model.config import load_model_config
from reference_model.node_limited import (
    choose_on_random_logits,
    choose_within_random_groups,
    copies_received,
    destinations_reached,
    groups_reached_at_random,
)

V3 = load_model_config("deepseek_v3")
TOKENS = 20_000


def reached(choose, destinations):
    indices = choose(V3, tokens=TOKENS, generator=torch.Generator().manual_seed(0))
    return destinations_reached(indices, experts=256, destinations=destinations)


def test_choices_on_one_destination_count_once():
    indices = torch.tensor([[0, 1, 2], [0, 4, 7], [1, 2, 6]])
    assert destinations_reached(indices, experts=8, destinations=2).tolist() == [1, 2, 2]
    assert destinations_reached(indices, experts=8, destinations=8).tolist() == [3, 3, 3]
    assert copies_received(indices, experts=8, destinations=2).tolist() == [3, 2]
    with pytest.raises(ValueError, match="destinations = 3 do not divide 8 experts"):
        destinations_reached(indices, experts=8, destinations=3)


def test_counting_agrees_with_the_closed_form_for_random_groups():
    """4 (1 - C(96, 8) / C(128, 8)) = 3.629."""
    assert groups_reached_at_random(V3) == pytest.approx(3.629, abs=5e-4)
    counted = reached(choose_within_random_groups, 8).double()
    error = float(counted.std()) / TOKENS**0.5
    assert counted.mean() == pytest.approx(groups_reached_at_random(V3), abs=4 * error)


def test_no_token_goes_to_more_than_4_nodes():
    """3.97 nodes and 7.49 of 64 GPUs a token, groups ranked by their two best scores."""
    nodes, gpus = (reached(choose_on_random_logits, n).double() for n in (8, 64))
    assert nodes.max() == 4
    assert nodes.mean() == pytest.approx(3.97, abs=0.01)
    assert gpus.mean() == pytest.approx(7.49, abs=0.015)
