"""What a sweep shows: table, charts, page and files."""

import json
from dataclasses import replace

import pandas as pd
from rich.console import Console

from reports.sweep import (
    sweep_json,
    sweep_table,
    telling_metrics,
    write_sweep,
)
from reports.sweep_page import sweep_page
from simulator.analysis.sweep import read_rows


def text_of(swept):
    console = Console(width=100, record=True, file=None, quiet=False, stderr=True)
    with console.capture() as captured:
        console.print(sweep_table(swept))
    return captured.get()


def test_the_table_shows_points_best_first_and_reasons_as_notes(swept):
    text = text_of(swept)
    assert "(1) outside completion_s<=2.5 ms" in text
    assert "(2) does not fit" in text
    assert text.index("1 ms") < text.index("2 ms") < text.index("3 ms")


def test_ideal_values_and_intervals_stand_below_a_metric_where_the_rows_have_them(swept):
    wide = {
        "completion_s": 2e-3,
        "ideal.completion_s": 1e-3,
        "interval_80.completion_s.low": 1.5e-3,
        "interval_80.completion_s.high": 3e-3,
        "rate": 1.0,
    }
    rows = tuple(replace(row, metrics=wide, reason=None) for row in swept.ran[:1])
    table = sweep_table(replace(swept, ran=rows, limits=()))
    assert [next(iter(column.cells)) for column in table.columns] == [
        "1", "0", "2 ms\nideal 1 ms\n1.5 to 3 ms", "1.0", "*",
    ]  # fmt: skip


def test_metrics_that_differ_are_shown_unless_others_are_asked_for(swept):
    assert telling_metrics(swept.ran, ()) == ("completion_s", "rate")
    assert telling_metrics(swept.ran, ("rate", "rate"), room=0) == ("rate",)
    assert telling_metrics(swept.ran, ("rate",)) == ("rate", "completion_s")


def test_json_has_rows_in_grid_order_with_rank_and_front(swept):
    found = sweep_json(swept)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [row["rank"] for row in found["rows"]] == [2, 1, 6, 3, 5, 4]
    assert [row["front"] for row in found["rows"]] == [False, True, False, True, False, False]


def test_what_the_rows_of_a_sweep_say_is_worked_out_once(swept):
    # Tables and pages ask at every row, so that a page of 360 points took two thirds of the sweep.
    assert all(
        getattr(swept, name) is getattr(swept, name) for name in ("rows", "order", "note", "front")
    )


def kernels(calibration, kind):
    return {"kernels.calibration": calibration, "kernels.kind": kind}


def test_points_on_kernels_of_different_kind_are_named_everywhere(swept):
    assert sweep_json(swept)["note"] is None
    sorts = [kernels("h800_sxm", "engine"), kernels("h200_sxm_reference", "reference")]
    rows = tuple(
        replace(row, metrics=row.metrics | sorts[i % 2]) for i, row in enumerate(swept.ran)
    )
    mixed = replace(swept, ran=rows)
    note = sweep_json(mixed)["note"]
    assert note.startswith(
        "kernels of different kind (engine: h800_sxm; reference: h200_sxm_reference)"
    )
    assert "note: kernels of different kind" in text_of(mixed)
    assert note in sweep_page(mixed).sections[0].note


def test_a_sweep_directory_holds_tables_figures_and_rows_without_limits(swept, tmp_path):
    write_sweep(swept, tmp_path / "swept")
    names = {path.name for path in (tmp_path / "swept").iterdir()}
    assert {"report.html", "sweep.csv", "points.parquet", "metrics.json", "scenario.yaml",
            "rows.jsonl", "figures"} <= names  # fmt: skip
    frame = pd.read_csv(tmp_path / "swept" / "sweep.csv")
    assert list(frame["completion_s"].dropna()) == [1e-3, 1e-3, 2e-3, 3e-3, 3e-3]
    kept = read_rows(tmp_path / "swept" / "rows.jsonl")
    # A point that did not run is tried again.
    assert kept == {row.digest: row for row in swept.ran if row.reason is None}
    assert (tmp_path / "swept" / "figures" / "completion.png").stat().st_size > 1000
