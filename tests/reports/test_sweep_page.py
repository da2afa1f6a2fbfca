"""The page of a sweep."""

from dataclasses import replace

from reports.charts import Columns, Lines
from reports.page import render_page
from reports.sweep import Sweep
from reports.sweep_page import lines_along, metric_axis, sweep_charts, sweep_page


def test_a_line_runs_along_the_first_axis_for_each_value_of_the_others(swept):
    lines = lines_along(swept)
    assert list(lines) == ["merge_share 0", "merge_share 0.01"]
    first, second = lines.values()
    for line in (first, second):
        assert [row.settings["seed"] for row in line] == [1, 2, 3]
    assert [row.metrics.get("completion_s") for row in first] == [1e-3, None, 3e-3]
    assert [row.reason is not None for row in second] == [False, False, True]


def test_charts_show_the_trade_off_first(swept):
    between, time, rate = sweep_charts(swept)
    assert [chart.title for chart in (between, time, rate)] == [
        "Completion against rate", "Completion", "Rate",
    ]  # fmt: skip
    assert [one.name for one in between.series] == ["outside", "inside the limits", "front"]
    assert isinstance(time, Lines)
    assert (time.y.label, time.series[0].y) == ("completion (ms)", (1e-3, None, 3e-3))


def test_settings_that_are_no_numbers_make_columns(swept: Sweep):
    named = [replace(row, settings={**row.settings, "seed": f"s{row.settings['seed']}"})
             for row in swept.ran]  # fmt: skip
    chart = list(sweep_charts(replace(swept, ran=tuple(named))))[1]
    assert isinstance(chart, Columns)
    assert chart.names[:2] == ("s1, merge_share 0", "s2, merge_share 0")


def test_the_answer_is_the_best_point_and_what_leaves_the_others_out(swept):
    answer = sweep_page(swept).answer
    assert answer.headline.label == "Best completion"
    assert answer.headline.value == "1 ms"
    assert answer.headline.note == "at seed 1, merge_share 0.01"
    assert answer.limits.startswith("3 of 6 points are outside. 2 of them: ")
    assert answer.changed == "seed (3 values), collective.merge_share (2 values)."


def test_without_an_objective_the_answer_is_a_range(swept):
    answer = sweep_page(replace(swept, objectives=())).answer
    assert (answer.headline.label, answer.headline.value) == ("Lowest completion", "1 ms")
    assert answer.figures[0].label == "Highest completion"


def test_an_axis_has_the_unit_of_its_metric():
    assert metric_axis("peak_memory_bytes", 6e10).label == "peak memory (GiB)"
    assert metric_axis("mfu_causal", 0.4).label == "MFU (causal) (%)"


def test_the_page_needs_nothing_from_outside_and_no_text_ends_its_script(swept):
    page = render_page(sweep_page(swept))
    assert "does not fit </script>" not in page
    assert "all_to_all_64" in page
