"""The page of a training step."""

from dataclasses import replace

import pytest

from reports.charts import draw
from reports.drawing import Box
from reports.page import Figure, render_page
from reports.palette import CAUSES
from reports.tables import RunTables
from reports.terminal import training_run_tables
from reports.training_page import (
    attribution_chart,
    budget_chart,
    communication_chart,
    longest_chart,
    memory_chart,
    operator_rows,
    pair_chart,
    pipeline_chart,
    training_page,
)
from simulator.analysis.every_metric import METRICS
from simulator.analysis.metric import Metric
from simulator.analysis.training_attribution import CHUNK_CAUSES, ON_CPU, ORTHOGONALIZE, STATE_CAUSE


def test_every_cause_of_a_chunk_has_a_hue():
    assert {
        name for name, _ in (*CHUNK_CAUSES, STATE_CAUSE, ORTHOGONALIZE, *ON_CPU)
    } <= CAUSES.keys()


def test_the_answer_says_the_step_what_was_changed_and_what_limits_it(tables: RunTables):
    answer = training_page(tables).answer
    assert answer.headline.value == "1.666 s"
    assert answer.changed == "training.pp=4."
    assert answer.limits == (
        "Bubble 30% of the step; the arithmetic alone, at peak, is 70%. Memory is 72% full on the "
        "fullest rank."
    )
    assert [(figure.label, figure.value) for figure in answer.figures[:3]] == [
        ("Pair time (reproduced)", "129 ms"),
        ("Tokens per day", "1.0 billion"),
        ("Tokens per second per GPU", "1,500.0"),
    ]


OF_TABLES = {
    "kernels": {"kind": "engine", "calibration": "a", "measured_on": "b", "gpu": "b", "basis": ""},
    "published": [],
    "stages": [],
    "warnings": [],
}
"""What only the terminal shows."""


def test_a_metric_that_leads_stands_in_table_and_page_without_a_line_of_its_own(
    tables: RunTables, monkeypatch
):
    share = Metric("bubble_share", "share", "less", "bubble over step time", leads=True)
    monkeypatch.setitem(METRICS["training"], share.name, share)
    metrics = {**tables.metrics, "bubble_share": 0.125}
    assert training_page(replace(tables, metrics=metrics)).answer.figures[-1] == Figure(
        "Bubble share", "12.50%"
    )
    headline = training_run_tables("a run", metrics | OF_TABLES)[0]
    assert [list(column.cells)[-1] for column in headline.columns] == ["bubble_share", "12.50%"]


def test_headline_published_figures_and_inputs_stand_on_the_page(tables: RunTables):
    page = render_page(training_page(tables))
    for text in ("reproduced", "predicted", "+10.0%", "129 ms", "assumed: evenly"):
        assert text in page, text


def test_the_bars_stand_on_one_another_and_end_at_the_step(tables: RunTables):
    chart, step = attribution_chart(tables.metrics), tables.metrics["step_time_s"]
    assert chart.lanes == ("arithmetic", "bubble", "step")
    assert [(span.start, span.end) for span in chart.spans] == [
        (0.0, 0.7 * step), (0.7 * step, pytest.approx(step)), (0.0, step),
    ]  # fmt: skip


def test_the_time_budget_stacks_to_the_step_time(tables: RunTables):
    chart = budget_chart(tables)
    totals = [sum(values) for values in zip(*(v for _, _, v in chart.parts), strict=True)]
    assert totals == pytest.approx([tables.metrics["step_time_s"]] * 4)
    assert [name for name, _, _ in chart.parts] == [
        "forward", "backward", "weight gradient", "overlapped pairs", "bubble", "optimizer",
    ]  # fmt: skip
    assert [name for name, _, _ in communication_chart(tables).parts] == [
        "hidden communication", "exposed communication",
    ]  # fmt: skip


def test_the_pipeline_shows_every_action_over_its_time(tables: RunTables):
    chart = pipeline_chart(tables)
    assert len(chart.spans) == len(tables.actions)
    drawn = sum(span.end - span.start for span in chart.spans)
    assert drawn == pytest.approx((tables.actions["end_s"] - tables.actions["start_s"]).sum())
    assert len(chart.legend) == tables.actions["work"].nunique()


def test_the_pair_shows_blocks_with_and_operators_without_a_label(tables: RunTables):
    chart = pair_chart(tables)
    labels = [span.label for span in chart.spans]
    assert labels.count("") == len(tables.pair_operators)
    assert labels.count("attn(B)") == 2
    assert chart.zoom == "pair"


def test_the_longest_operators_are_stacked_by_how_their_times_were_found(tables: RunTables):
    chart = longest_chart(tables)
    assert chart.lanes[0] == "attention.gemm (B)"
    assert chart.notes[0] == "38 ms"


def test_memory_stands_under_the_capacity(tables: RunTables):
    sheet = draw(memory_chart(tables))
    boxes = [mark for mark in sheet.plot if isinstance(mark, Box)]
    assert len(boxes) == 6 * 4
    assert memory_chart(tables).references[0].label == "capacity 64 GiB"


def test_operator_rows_hold_all_time_of_the_pair(tables: RunTables):
    rows = operator_rows(tables)
    frame = tables.pair_operators
    assert sum(row["seconds"] for row in rows) == pytest.approx(
        (frame["end_s"] - frame["start_s"]).sum()
    )
    assert [row["seconds"] for row in rows] == sorted((r["seconds"] for r in rows), reverse=True)
    assert {row["provenance"] for row in rows} == {"measured", "modelled"}
