"""Inputs that several jobs have."""

import pytest

from hardware_profiles.fields import to_profile
from simulator.scenario.files import load_scenario
from simulator.scenario.inputs import Experts, Skew, SpeculativeDecoding


def test_tokens_per_step_are_a_geometric_series():
    # One token always, the first draft with 0.9, the second with 0.9 x 0.9.
    drafting = SpeculativeDecoding(draft_tokens=2, acceptance=0.9)
    assert drafting.tokens_per_step == pytest.approx(2.71)


def test_without_a_word_experts_have_no_copies_and_load_their_ranks_evenly():
    assert (Experts().redundant, Skew().max_over_mean) == (0, 1.0)
    with pytest.raises(ValueError, match=r"^f: max_over_mean: 0\.9 is not allowed"):
        to_profile(Skew, {"max_over_mean": 0.9}, where="f")


def test_training_and_serving_name_the_same_inputs_alike():
    of_both = ["skew.max_over_mean=1.05", "experts.redundant=64", "memory.reserved=3 GiB"]
    for name in ("dualpipe_h800_2048", "prefill_ep32_h100"):
        job = load_scenario(name, [*of_both, "gap.value=1.5 us"]).job
        assert job.skew.max_over_mean == 1.05
        assert job.experts.redundant == 64
        assert job.memory.reserved == 3 * 2**30
        assert job.gap.value == 1.5e-6
