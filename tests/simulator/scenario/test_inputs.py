"""Inputs that several jobs have."""

import pytest

from hardware_profiles.fields import to_profile
from simulator.scenario.files import load_scenario
from simulator.scenario.inputs import Experts, Skew, SpeculativeDecoding


def test_tokens_per_step_are_a_geometric_series():
    # One token always, the first draft with 0.9, the second with 0.9 x 0.9.
    drafting = SpeculativeDecoding(draft_tokens=2, acceptance=0.9)
    assert drafting.tokens_per_step == pytest.approx(2.71)


def test_without_a_word_experts_have_no_copies():
    assert Experts().redundant == 0


def test_skew_by_itself_is_that_of_ideal_ranks():
    assert Skew().is_none
    assert to_profile(Skew, {"setting": "none"}, where="f").is_none
    assert not Skew(clock_sd=0.01).is_none
    assert not to_profile(Skew, {"rows": "random"}, where="f").is_none


def test_a_word_names_a_setting_and_a_block_takes_from_it_what_it_leaves_out():
    named = Skew.model_validate("bias_balanced")
    assert (named.rows_sd.low, named.rows_sd.value, named.rows_sd.high) == (0.04, 0.09, 0.20)
    block = {"setting": "bias_balanced", "rows_sd": {"value": "10%"}, "clock_sd": 0.02}
    own = to_profile(Skew, block, where="f")
    assert (own.rows_sd.low, own.rows_sd.value, own.rows_sd.high) == (0.04, 0.10, 0.20)
    assert (own.clock_sd.low, own.clock_sd.value, own.clock_sd.high) == (0.02, 0.02, 0.02)
    assert own.host_pause == named.host_pause


def test_a_field_of_one_form_of_rows_need_not_name_the_form():
    slow = to_profile(Skew, {"rows": {"max_over_mean": 1.3}}, where="f")
    assert (slow.rows.form, slow.max_over_mean) == ("max_over_mean", 1.3)
    recorded = to_profile(
        Skew, {"setting": "eplb_with_drift", "rows": {"file": "a.csv"}}, where="f"
    )
    assert (recorded.rows.file, recorded.rows.zipf_exponent) == ("a.csv", None)
    assert recorded.rows.drift is not None
    # The popularity of the setting is not that of another form.
    served = {"setting": "eplb_with_drift", "rows": {"max_over_mean": 1.3}}
    assert to_profile(Skew, served, where="f").rows.zipf_exponent is None
    steeper = {"setting": "eplb_with_drift", "rows": {"zipf_exponent": 0.5}}
    rows = to_profile(Skew, steeper, where="f").rows
    assert (rows.zipf_exponent.value, rows.drift.value) == (0.5, 0.2)


POPULARITY = "form popularity needs exactly one of zipf_exponent, file"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"form": "popularity"}, POPULARITY),
        ({"form": "popularity", "drift": 0.1, "placed_for": "a.csv"}, POPULARITY),
        ({"form": "popularity", "zipf_exponent": 1.0, "file": "a.csv"}, POPULARITY),
        ({"form": "max_over_mean"}, "form max_over_mean needs exactly one of max_over_mean"),
        (
            {"form": "max_over_mean", "max_over_mean": 1.3, "file": "a.csv"},
            "file with form max_over_mean; allowed: with form popularity",
        ),
        (
            {"form": "random", "drift": 0.1},
            "drift with form random; allowed: with form popularity",
        ),
        (
            {"form": "balanced", "zipf_exponent": 1.0},
            "zipf_exponent with form balanced; allowed: with form popularity",
        ),
        (
            {"form": "popularity", "zipf_exponent": 1.0, "max_over_mean": 1.3},
            "max_over_mean with form popularity; allowed: with form max_over_mean",
        ),
    ],
)
def test_a_form_of_rows_says_all_that_it_needs_and_nothing_else(rows, message):
    with pytest.raises(ValueError, match=f"rows: {message}$"):
        to_profile(Skew, {"rows": rows}, where="f", at="skew")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"setting": "good"}, " setting: 'good' is not known; allowed: none, forced_balance"),
        ({"setting": ["none"]}, r"skew.setting: \['none'\] is not allowed: it must be text"),
        (
            {"rows": {"max_over_mean": 0.9}},
            "skew.rows.max_over_mean: low 0.9 is not allowed; allowed: at least 1",
        ),
        ({"rows": "popularity"}, "rows: form popularity needs exactly one of zipf_exponent, file"),
        (
            {"setting": "bias_balanced", "clock_sd": {"value": "7%"}},
            "clock_sd: needs low <= value <= high, found 0.009, 0.07, 0.017; allowed: a value",
        ),
        ({"clock_sd": "-1%"}, "skew.clock_sd.value: '-1%' is not allowed"),
        ({"host_pause": {"seconds": 3}}, "skew.host_pause.seconds.value: 3 has no unit"),
    ],
)
def test_skew_that_cannot_be_is_one_clear_line(given, message):
    with pytest.raises(ValueError, match=message) as error:
        to_profile(Skew, given, where="f", at="skew")
    assert len(str(error.value).splitlines()) == 1


def test_a_job_without_skew_has_that_of_its_kind():
    training = load_scenario("dualpipe_h800_2048", ["skew={clock_sd: 1.0%}"]).job
    assert (training.skew.setting, training.skew.rows_sd.value) == ("bias_balanced", 0.09)
    serving = load_scenario("decode_ep128_profile", ["skew={clock_sd: 1.0%}"]).job
    assert (serving.skew.setting, serving.skew.rows.form) == ("eplb_with_drift", "popularity")


def test_a_change_goes_into_a_setting_that_a_word_names():
    assert load_scenario("dualpipe_h800_2048").resolved["training"]["skew"] == "bias_balanced"
    job = load_scenario("dualpipe_h800_2048", ["skew.clock_sd.value=1.5%"]).job
    assert (job.skew.setting, job.skew.clock_sd.value) == ("bias_balanced", 0.015)
    other = load_scenario("dualpipe_h800_2048", ["skew=forced_balance"]).job
    assert other.skew.rows_sd.value == 0.08


def test_published_figures_stand_beside_ideal_ranks_too():
    kept = [
        len(load_scenario("dualpipe_h800_2048", [change]).file.published)
        for change in ("seed=0", "skew=none", "skew.rows_sd=10%")
    ]
    assert kept == [14, 14, 0]


def test_training_and_serving_name_the_same_inputs_alike():
    of_both = ["skew.rows.max_over_mean=1.05", "experts.redundant=64", "memory.reserved=3 GiB"]
    for name in ("dualpipe_h800_2048", "prefill_ep32_h100"):
        gap = ["gap.value=0.4 us", "gap.low=0 us", "gap.high=3 us"]
        job = load_scenario(name, [*of_both, *gap]).job
        assert job.skew.max_over_mean == 1.05
        assert job.experts.redundant == 64
        assert job.memory.reserved == 3 * 2**30
        assert job.gap.value == 0.4e-6
