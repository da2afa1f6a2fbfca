"""What a sweep shows: table, charts, page and files."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console

from reports.sweep import (
    Sweep,
    lines,
    sweep_charts,
    sweep_json,
    sweep_page,
    sweep_table,
    telling_metrics,
    write_sweep,
)
from simulator.analysis.sweep import Axis, Limit, Objective, Point, read_rows
from simulator.scenario.files import load_scenario

AXES = (Axis.parse("seed=1,2,3"), Axis.parse("collective.merge_share=0,0.01"))


@pytest.fixture
def swept() -> Sweep:
    """Six points: a time that grows with the seed, a rate that falls, one point that failed."""
    rows = []
    for seed in (1, 2, 3):
        for merge in (0, 0.01):
            settings = {"seed": seed, "collective.merge_share": merge}
            failed = seed == 2 and merge == 0
            metrics = {"completion_s": seed * 1e-3, "rate": seed + merge, "wall_clock_s": 9.0}
            reason = "does not fit </script>" if failed else None
            rows.append(Point(settings, f"{seed}-{merge}", {} if failed else metrics, reason))
    return Sweep(
        scenario=load_scenario("all_to_all_64"),
        axes=AXES,
        ran=tuple(rows),
        metrics=("completion_s", "rate"),
        limits=(Limit.parse("completion_s<=2.5 ms"),),
        objectives=(Objective.parse("min:completion_s"), Objective.parse("max:rate")),
    )


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


def test_metrics_that_differ_are_shown_unless_others_are_asked_for(swept):
    assert telling_metrics(swept.ran, ()) == ("completion_s", "rate")
    assert telling_metrics(swept.ran, ("rate", "rate"), room=0) == ("rate",)
    assert telling_metrics(swept.ran, ("rate",)) == ("rate", "completion_s")


def test_json_has_rows_in_grid_order_with_rank_and_front(swept):
    found = sweep_json(swept)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [row["rank"] for row in found["rows"]] == [2, 1, 6, 3, 5, 4]
    assert [row["front"] for row in found["rows"]] == [False, True, False, True, False, False]


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
    assert note in sweep_page(mixed)


def test_a_line_runs_along_the_first_axis_for_each_value_of_the_others(swept):
    first, second = lines(swept, "completion_s")
    assert (first.name, second.name) == ("merge_share 0", "merge_share 0.01")
    assert first.x == second.x == (1, 2, 3)
    assert first.y == (1e-3, None, 3e-3)
    assert second.outside == (False, False, True)


def test_charts_show_the_trade_off_first(swept):
    drawn = sweep_charts(swept)
    assert list(drawn) == ["completion_s against rate", "completion_s", "rate"]
    names = [trace["name"] for trace in drawn["completion_s against rate"]["data"]]
    assert names == ["front", "inside the limits", "outside"]


def test_the_page_needs_nothing_from_outside_and_no_text_ends_its_script(swept):
    page = sweep_page(swept)
    own = page.replace("http://www.w3.org", "")
    assert 'src="' not in own.partition("<script>")[0]
    assert "does not fit </script>" not in page
    assert "all_to_all_64" in page


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
    assert (tmp_path / "swept" / "figures" / "completion_s.png").stat().st_size > 1000
