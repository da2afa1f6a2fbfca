"""Rows of ranks have the mean of all, and spread as forms and priors say."""

import numpy as np
import pytest

from simulator.execution import serving_rows
from simulator.execution.serving_rows import placement_balance, rows_over_mean, slot_shares, windows
from simulator.execution.serving_run import prepare_serving
from simulator.scenario.files import load_scenario
from simulator.workload.recorded import recorded_trace

DRAWS = 64


def model_of(name, *changes):
    scenario = load_scenario(name, list(changes))
    return prepare_serving(scenario, scenario.job, recorded_trace)


def rows_of(model, *, mean_rows=512.0, layers=3, **priors):
    priors = {"rows_sd": np.zeros(DRAWS)} | {
        name.replace("__", "."): np.full(DRAWS, value) for name, value in priors.items()
    }
    return rows_over_mean(
        model,
        layers=layers,
        mean_rows=mean_rows,
        priors=priors,
        rng=np.random.default_rng(0),
    )


def test_equal_ranks_have_the_mean_and_uneven_placements_what_they_hold():
    even = rows_of(model_of("decode_ep128_profile", "skew={setting: none, rows_sd: 1%}"))
    assert all(np.all(part == 1.0) for layer in even for part in layer)
    # 288 slots on 72 GPUs: 8 hold 4 whole experts, of a mean of 256 / 72.
    held = rows_of(model_of("decode_ep72_h100", "skew={setting: none, rows_sd: 1%}"))[0][0]
    assert held.max() == pytest.approx(4 * 72 / 256, rel=1e-6)
    assert held.mean() == pytest.approx(1.0, rel=1e-6)


def test_one_rank_gets_its_multiple_and_the_others_the_rest():
    """Of 128 ranks one has 1.5 of the mean; the others (128 - 1.5) / 127."""
    model = model_of("decode_ep128_profile", "skew={setting: none, rows: {max_over_mean: 1.5}}")
    (part, other), *_ = rows_of(model, rows__max_over_mean=1.5)
    assert np.sort(part, axis=0)[-2:, 0].tolist() == pytest.approx([126.5 / 127, 1.5], rel=1e-6)
    assert np.any(part.argmax(axis=0) != other.argmax(axis=0))


def test_rows_that_stay_for_a_step_are_those_of_both_micro_batches():
    rows = "rows: {max_over_mean: 1.5, changes: step}"
    model = model_of("decode_ep128_profile", f"skew={{setting: none, {rows}}}")
    for part, other in rows_of(model, rows__max_over_mean=1.5):
        np.testing.assert_array_equal(part, other)


def test_a_gate_at_random_spreads_rows_as_its_choices_do():
    """2 of 256 experts per rank, 8 of them chosen by each token: a relative variance of
    (1 - 1/128) (248 / 255) / 512 on 512 rows."""
    model = model_of("decode_ep128_profile", "skew={setting: none, rows: random}")
    found = np.stack([part for layer in rows_of(model, layers=20) for part in layer])
    expected = np.sqrt((1 - 1 / 128) * 248 / 255 / 512)
    assert found.std() == pytest.approx(expected, rel=0.02)
    assert found.mean() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("changes", ["micro_batch", "step"])
def test_rows_as_served_are_worked_out_once_at_any_batch(changes, monkeypatch):
    """4 of equally many draws each, at other exponents; 3 layers, of two micro-batches each, have
    the same rows to the last bit as drawn alone."""
    rows = f"rows: {{zipf_exponent: 0.3, drift: 0.2, changes: {changes}}}"
    model = model_of("decode_ep128_profile", f"skew={{setting: none, {rows}}}")
    priors = {"rows__zipf_exponent": 0.3, "rows__drift": 0.2}
    monkeypatch.setattr(serving_rows, "STRATA", 4)
    placed = []

    def counted(*asked):
        placed.append(asked)
        return placed_experts(*asked)

    placed_experts = serving_rows.placed_experts
    monkeypatch.setattr(serving_rows, "placed_experts", counted)
    found = {mean: rows_of(model, mean_rows=mean, **priors) for mean in (512.0, 64.0)}
    assert len(placed) == 4
    serving_rows._known_layers.cache_clear()
    for mean, of_mean in found.items():
        np.testing.assert_array_equal(of_mean, rows_of(model, mean_rows=mean, **priors))
    assert np.shape(found[64.0])[:2] == (3, 2)
    assert np.std(found[64.0]) > np.std(found[512.0])
    assert len(placed) == 8


def test_drift_spreads_what_the_balancer_had_evened_out():
    zipf = "skew={setting: none, rows: {zipf_exponent: 0.3, drift: 0.2, changes: step}}"
    model = model_of("decode_ep32_b200", zipf)
    spread = [
        float(
            np.std(rows_of(model, mean_rows=1e9, rows__zipf_exponent=0.3, rows__drift=drift)[0][0])
        )
        for drift in (0.0, 0.2, 0.4)
    ]
    assert spread[0] < 0.01
    # 9 slots per rank of nearly equal shares: 0.2 / sqrt(9) and twice that.
    assert spread[1] == pytest.approx(0.2 / 3, rel=0.15)
    assert spread[2] == pytest.approx(0.4 / 3, rel=0.25)


def test_placements_are_for_the_first_window_and_serve_the_second(tmp_path):
    """All rows to expert 0 before, to expert 255 now: the copies are of the wrong expert."""
    files = []
    for name, popular in (("before", 0), ("now", 255)):
        path = tmp_path / f"{name}.csv"
        lines = [
            f"{layer},{expert},{1000 if expert == popular else 1}"
            for layer in range(58)
            for expert in range(256)
        ]
        path.write_text("\n".join(["layer,expert,rows", *lines]) + "\n")
        files.append(path)
    rows = f"rows: {{placed_for: {files[0]}, file: {files[1]}}}"
    model = model_of("decode_ep32_b200", f"skew={{setting: none, {rows}}}")
    before, served = windows(model)
    assert before[0].argmax() == 0
    assert served[0].argmax() == 255
    balance = placement_balance(model)
    # The expert's node has 8 copies of it beside the first, on 8 GPUs: one of them has two and 7
    # rows of others, where the mean is 1255 / 32. The other window's expert lies on one GPU.
    assert balance["eplb"][0] == pytest.approx((2000 / 9 + 7) * 32 / 1255, rel=1e-12)
    assert balance["eplb"][1] == pytest.approx(1000 * 32 / 1255, rel=0.02)
    part = rows_of(model, mean_rows=1e9)[0][0]
    assert part.max() == pytest.approx(1000 * 32 / 1255, rel=0.02)


def test_policies_stand_side_by_side():
    model = model_of("decode_ep144_day6")
    balance = placement_balance(model)
    assert list(balance) == ["in_order", "eplb", "global"]
    assert balance["global"][0] <= balance["eplb"][0] < balance["in_order"][0]
    assert balance["eplb"][0] < balance["eplb"][1] < balance["in_order"][1]
    assert placement_balance(model_of("decode_ep144_day6", "skew=none")) == {}


def test_shares_of_slots_are_even_where_experts_are():
    even = model_of("decode_ep8_h200", "skew=none")
    np.testing.assert_array_equal(slot_shares(even), np.full(32, 1 / 32))
    uneven = slot_shares(model_of("decode_ep8_h200", "skew.rows.zipf_exponent=1.2"))
    assert uneven.sum() == pytest.approx(1.0)
    assert uneven[0] > 0.1 > uneven[-1]
