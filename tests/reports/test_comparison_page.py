"""Pages of several runs."""

import json

import pytest

from reports.comparison_page import (
    causes_compared,
    comparison_page,
    headline_path,
    index_page,
    runs_in,
    write_index,
)
from reports.run_directory import write_run

NAME = {"name": "small", "job": "training", "changes": []}


def step(seconds, bubble, changes=()):
    return {
        "step_time_s": seconds,
        "mfu_causal": 8.0 / seconds,
        "interval_80": {"step_time_s": [0.9 * seconds, 1.2 * seconds]},
        "attribution": [
            {"name": "arithmetic", "seconds": seconds - bubble, "meaning": "at peak"},
            {"name": "bubble", "seconds": bubble, "meaning": "waiting"},
        ],
        "scenario": NAME | {"changes": list(changes)},
    }


RUNS = [("runs/a", step(20.0, 4.0)), ("runs/b", step(18.0, 2.0, ["training.skew=none"]))]


def test_the_answer_is_the_best_run_and_what_the_others_are_of_the_first():
    answer = comparison_page(RUNS).answer
    assert (answer.headline.label, answer.headline.value) == ("Lowest step time", "18 s")
    assert answer.headline.note == "b; 0.900 of the first"
    assert [figure.note for figure in answer.figures] == ["", "0.900 of the first"]
    assert answer.changed == "a: nothing; b: training.skew=none"
    assert answer.limits == "bubble -2.000 s, from a to b."


def test_figures_stand_beside_each_other_with_ratio_and_interval():
    _, table = comparison_page(RUNS).sections[0].blocks
    name, first, second = table.cells[0]
    assert (name.text, first.text, second.text) == ("step time", "20 s", "18 s")
    assert first.under == "80%: 18 to 24 s"
    assert second.under == "0.900 of the first; 80%: 16.2 to 21.6 s"


def test_the_causes_of_each_step_stack_to_it():
    chart = causes_compared(RUNS)
    assert [(span.lane, span.start, span.end) for span in chart.spans] == [
        (0, 0.0, 16.0), (0, 16.0, 20.0), (1, 0.0, 16.0), (1, 16.0, 18.0),
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for name, metrics in (("old", RUNS[0][1]), ("new", RUNS[1][1]), ("sweep", {
        "scenario": "small", "rows": []})):  # fmt: skip
        write_run(tmp_path / name, scenario="name: small\n", metrics=metrics, tables={},
                  write_report=lambda _: None)  # fmt: skip
    (tmp_path / "other").mkdir()
    return tmp_path


def test_the_index_lists_runs_by_job_the_latest_first_with_links(folder):
    assert [directory.name for directory, _ in runs_in(folder)] == ["sweep", "new", "old"]
    page = index_page(folder)
    assert [section.title for section in page.sections] == ["Sweeps", "Training steps"]
    (table,) = page.sections[1].blocks
    assert [row[0].href for row in table.cells] == ["new/report.html", "old/report.html"]
    assert table.cells[0][0].under == "training.skew=none"


def test_the_index_is_a_file_of_its_own_that_a_torn_run_does_not_stop(folder):
    (folder / "old" / "metrics.json").write_text("{")
    text = write_index(folder).read_text(encoding="utf-8")
    assert 'href="new/report.html"' in text
    assert "old/report.html" not in text


def test_a_run_without_any_of_the_compared_figures_has_no_headline():
    assert headline_path({"a": 1.0}) is None
    assert headline_path(json.loads('{"days": 57.4, "step_time_s": 1}')) == "days"
