"""The gate of a mixture of experts."""

import torch

from reference_model.config import load_model_config
from reference_model.moe import Gate
from reference_model.operators import Site
from reference_model.precision import Recipe

CONFIG = load_model_config("debug")


def test_the_bias_changes_which_experts_are_chosen_and_not_their_weights():
    gate = Gate(CONFIG, recipe=Recipe("float32", "reference"), device=torch.device("cpu"))
    with torch.no_grad():
        gate.proj.weight.zero_()
    # Equal scores of 1/2: whoever is chosen, each weight is scaling / choices.
    gate.e_score_correction_bias[-1] = 1.0
    x = torch.ones(1, CONFIG.hidden_size)
    logits, chosen, weights = gate(x, Site("forward", "mlp"))
    assert logits.eq(0.0).all()
    assert CONFIG.n_routed_experts - 1 in chosen[0].tolist()
    assert CONFIG.norm_topk_prob
    each = CONFIG.routed_scaling_factor / CONFIG.num_experts_per_tok
    torch.testing.assert_close(weights, torch.full_like(weights, each))
