"""Single figures of a run, as they are asked for."""

import pytest

from reports.chosen import (
    check_asked,
    check_spelt,
    chosen,
    chosen_csv,
    chosen_json,
    chosen_table,
)

METRICS = {
    "step_time_s": 18.0,
    "ttft_s": {"mean": 0.25, "p99": 1.0},
    "ranks": [{"forward_s": 4.0}, {"forward_s": 5.0}],
    "verdict": "keeps up",
    "nothing": None,
    "ideal": {"step_time_s": 16.0},
    "interval_80": {"step_time_s": [17.0, 20.0], "ttft_s": [0.2, 0.3]},
}


def test_a_name_stands_for_all_below_it_in_its_place():
    assert list(chosen(METRICS, ["ttft_s", "step_time_s", "ranks.1"]).items()) == [
        ("ttft_s.mean", 0.25), ("ttft_s.p99", 1.0), ("step_time_s", 18.0),
        ("ranks.1.forward_s", 5.0),
    ]  # fmt: skip


def test_a_name_without_places_is_of_each_of_them():
    assert chosen(METRICS, ["ranks.forward_s"]) == {
        "ranks.0.forward_s": 4.0,
        "ranks.1.forward_s": 5.0,
    }


def test_without_a_name_every_plain_value_is_given_once():
    assert list(chosen(METRICS, ())) == [
        "step_time_s", "ttft_s.mean", "ttft_s.p99", "ranks.0.forward_s", "ranks.1.forward_s",
        "verdict",
    ]  # fmt: skip


def test_as_csv_a_figure_is_a_line_with_its_unit():
    assert chosen_csv(METRICS, chosen(METRICS, ["step_time_s", "verdict"])) == (
        "metric,value,unit,ideal,low_80,high_80\n"
        "step_time_s,18.0,s,16.0,17.0,20.0\n"
        "verdict,keeps up,,,,\n"
    )


def test_as_json_a_figure_has_its_value_unit_ideal_and_interval():
    assert chosen_json(METRICS, chosen(METRICS, ["ttft_s", "step_time_s", "ranks.1"])) == {
        # An interval under the name of a distribution is that of its mean.
        "ttft_s.mean": {"value": 0.25, "unit": "s", "ideal": None, "interval_80": [0.2, 0.3]},
        "ttft_s.p99": {"value": 1.0, "unit": "s", "ideal": None, "interval_80": None},
        "step_time_s": {"value": 18.0, "unit": "s", "ideal": 16.0, "interval_80": [17.0, 20.0]},
        "ranks.1.forward_s": {"value": 5.0, "unit": "s", "ideal": None, "interval_80": None},
    }


@pytest.mark.parametrize(
    ("names", "heads", "cells"),
    [
        (["step_time_s"], ["metric", "expected", "ideal", "80% interval"],
         ["step_time_s", "18 s", "16 s", "17 to 20 s"]),
        (["verdict"], ["metric", "simulated"], ["verdict", "keeps up"]),
    ],
)  # fmt: skip
def test_a_table_has_columns_for_what_there_is(names, heads, cells):
    table = chosen_table("a run", METRICS, chosen(METRICS, names))
    assert [column.header for column in table.columns] == heads
    assert [next(iter(column.cells)) for column in table.columns] == cells


def test_an_unknown_name_brings_the_one_that_is_meant_before_and_after_a_run():
    message = r"^metric 'step_tme_s': unknown; did you mean step_time_s\?$"
    with pytest.raises(ValueError, match=message):
        check_asked(["step_tme_s"], "training")
    with pytest.raises(ValueError, match=message):
        chosen(METRICS, ["step_tme_s"])
    check_asked(["step_time_s", "ranks.3.forward_s"], "training")


def test_a_misspelt_metric_of_a_sweep_is_found_before_it_runs_and_other_paths_are_let_through():
    with pytest.raises(ValueError, match=r"^metric 'step_time': unknown; did you mean step_time_s"):
        check_spelt(["step_time"], "training")
    check_spelt(["ideal.step_time_s", "kernels.calibration"], "training")
