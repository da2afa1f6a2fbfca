"""The page: self-contained, escaped, and its charts hold what the tables say."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reports.charts import CHARTS
from reports.render import REPORTS, operator_rows, published_rows, write_html
from reports.tables import RunTables


class _Page(HTMLParser):
    """Collects what a page would load, its anchors, ids and visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.anchors: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        if tag == "script":
            self.scripts.append("")
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name == "href" and tag == "a":
                self.anchors.append(value or "")
            elif name in ("src", "href", "data", "action", "poster", "srcset"):
                self.loads.append(f"{tag} {name}={value}")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


@pytest.fixture(scope="module")
def page(tables: RunTables, tmp_path_factory: pytest.TempPathFactory) -> _Page:
    directory: Path = tmp_path_factory.mktemp("page")
    write_html(tables, directory)
    parsed = _Page()
    parsed.feed((directory / "report.html").read_text(encoding="utf-8"))
    return parsed


def test_page_loads_nothing_and_links_only_inside_itself(page: _Page) -> None:
    assert page.loads == []
    assert page.anchors
    for anchor in page.anchors:
        assert anchor.removeprefix("#") in page.ids
    assert len(page.scripts) == 2
    assert not re.search(r"https?://", page.scripts[1])


def test_text_of_a_scenario_cannot_break_out_of_the_page(page: _Page) -> None:
    assert "alert(1)</script>" in page.text
    assert all("alert(1)" not in script for script in page.scripts)


def test_every_chart_has_its_place_in_the_page(page: _Page) -> None:
    for name in CHARTS:
        assert ("memory-chart" if name == "memory" else name) in page.ids


def test_headline_and_published_numbers_stand_in_the_page(page: _Page) -> None:
    for text in ("reproduced", "predicted", "+10.0 %", "129 ms", "assumed: evenly"):
        assert text in page.text, text


def test_operator_rows_hold_all_time_of_the_pair(tables: RunTables) -> None:
    rows = operator_rows(tables)
    frame = tables.pair_operators
    assert sum(row["seconds"] for row in rows) == pytest.approx(
        (frame["end_s"] - frame["start_s"]).sum()
    )
    assert [row["seconds"] for row in rows] == sorted((r["seconds"] for r in rows), reverse=True)
    assert {row["provenance"] for row in rows} == {"measured", "modelled"}


def test_published_rows_say_what_the_simulated_number_rests_on(tables: RunTables) -> None:
    pair, step, other = published_rows(tables)
    assert pair["kind"] == "reproduced"
    assert pair["basis"] == "kernel time 80% measured, 20% modelled"
    assert step["kind"] == "predicted"
    assert other["simulated_text"] == "none"


def test_reports_write_into_the_directory_of_the_run(tables: RunTables, tmp_path: Path) -> None:
    for write in REPORTS.values():
        write(tables, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figures", "perfetto.json", "report.html"]
