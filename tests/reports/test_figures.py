"""Static figures: every one is written, and what they draw sums to the metrics."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from reports.figures import FIGURES, budget_figure, pipeline_figure, write_figures
from reports.tables import RunTables


def test_every_figure_is_written_as_png_and_svg(tables: RunTables, tmp_path: Path) -> None:
    write_figures(tables, tmp_path / "figures")
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert written == {f"{name}.{ending}" for name in FIGURES for ending in ("png", "svg")}


def test_figures_of_one_run_are_the_same_files(tables: RunTables, tmp_path: Path) -> None:
    for place in ("a", "b"):
        write_figures(tables, tmp_path / place)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_stacked_budget_of_each_rank_is_the_step_time(tables: RunTables) -> None:
    axes = budget_figure(tables).axes[0]
    tops = [bar.get_y() + bar.get_height() for bar in axes.patches[-4:]]
    assert tops == pytest.approx([tables.metrics["step_time_s"]] * 4)


def test_timeline_draws_every_action_over_its_time(tables: RunTables) -> None:
    drawn = 0.0
    collections = pipeline_figure(tables).axes[0].collections
    for collection in collections:
        assert isinstance(collection, PolyCollection)
        for path in collection.get_paths():
            drawn += float(np.ptp(path.vertices[:, 0]))
    expected = (tables.actions["end_s"] - tables.actions["start_s"]).sum()
    assert drawn == pytest.approx(expected)


@pytest.mark.parametrize("name", FIGURES)
def test_every_axis_says_what_it_shows(name: str, tables: RunTables) -> None:
    for axes in FIGURES[name](tables).axes:
        assert axes.get_title(loc="left")
        assert axes.get_xlabel()
