"""The gate of a mixture of experts."""

from dataclasses import replace

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


def test_normalised_softmax_scores_without_groups_equal_those_of_transformers():
    """Mistral Large 3 has them; among transformers' models mistral4 does."""
    from transformers import Mistral4Config
    from transformers.models.mistral4.modeling_mistral4 import Mistral4TopkRouter

    config = replace(
        CONFIG, scoring_func="softmax", topk_method="greedy", n_group=1, topk_group=1,
        n_routed_experts=12, num_experts_per_tok=3, routed_scaling_factor=1.5,
    )  # fmt: skip
    gate = Gate(config, recipe=Recipe("float32", "reference"), device=torch.device("cpu"))
    assert gate.e_score_correction_bias is None
    generator = torch.Generator().manual_seed(0)
    theirs = Mistral4TopkRouter(
        Mistral4Config(
            hidden_size=config.hidden_size, n_routed_experts=12, num_experts_per_tok=3,
            n_group=1, topk_group=1, norm_topk_prob=True, routed_scaling_factor=1.5,
        )
    )  # fmt: skip
    with torch.no_grad():
        gate.proj.weight.copy_(torch.randn(gate.proj.weight.shape, generator=generator))
        theirs.weight.copy_(gate.proj.weight)
    x = torch.randn(9, config.hidden_size, generator=generator)
    logits, chosen, weights = gate(x, Site("forward", "mlp"))
    their_logits, their_weights, their_choices = theirs(x)
    torch.testing.assert_close(logits, their_logits, rtol=1e-4, atol=1e-4)
    for one, other in ((chosen, their_choices), (weights, their_weights)):
        ours = torch.zeros(9, 12).scatter_(1, chosen, one.float())
        expected = torch.zeros(9, 12).scatter_(1, their_choices, other.float())
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
