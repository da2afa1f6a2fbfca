"""A page that holds all it shows, in the order of its reader's questions."""

import re
from html.parser import HTMLParser
from importlib.metadata import version

import pytest

from reports.charts import ChartAxis, Span, Spans
from reports.page import (
    Answer,
    Cell,
    Figure,
    Page,
    Section,
    Shares,
    Table,
    programs,
    published_section,
    render_page,
    shares_of,
    slug,
    write_page,
)

EVIL = "</script><script>alert(1)</script>"
CHART = Spans("A chart", f"caption {EVIL}", ChartAxis("time", "s"), ("lane",),
              (Span(0, 0.0, 1.0, "blue", f"tip {EVIL}"),), zoom="x")  # fmt: skip


class Parsed(HTMLParser):
    """Ids, anchors, what a page would load, its scripts and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.anchors: list[str] = []
        self.ids: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        if tag == "script":
            self.scripts.append("")
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name == "href" and tag == "a":
                self.anchors.append(value or "")
            elif name in ("src", "href", "action", "poster", "srcset"):
                self.loads.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


@pytest.fixture
def page() -> Page:
    return Page(
        kind="Training step",
        name="small",
        description=f"A small step {EVIL}",
        answer=Answer(
            Figure("Step time", "1 s", "0.9 to 1.2 s", "ideal ranks 0.8 s"),
            (Figure("MFU", "40%"),),
            limits="The bubble.",
            changed="training.pp=4.",
            verdict="stable",
        ),
        beside=(Section("Beside published figures", ("beside",)),),
        sections=(
            Section("Charts", (CHART,)),
            Section("Tables", (Table(("name", "|number"), (("a", Cell("2 s", 2.0)),), "cap",
                                     sortable=True),)),
        ),
        provenance=(Section("Where the times come from",
                            (Shares("parts", (("x", "1 s", 1.0, "green"),)), "two\nlines")),),
        scenario="name: small\n",
        files=(("metrics.json", "every figure"),),
    )  # fmt: skip


def test_the_answer_comes_first_then_what_is_beside_it_then_charts_then_sources(page):
    text = Parsed(render_page(page)).text
    place = 0
    for word in (
        "Step time", "1 s", "80% interval 0.9 to 1.2 s", "stable", "Changed", "training.pp=4.",
        "Limited by", "The bubble.", "MFU", "beside", "A chart", "Where the times come from",
        "name: small", "metrics.json",
    ):  # fmt: skip
        place = text.index(word, place)


def test_text_of_several_lines_stands_as_it_was_written_and_of_one_as_a_paragraph(page):
    text = render_page(page)
    assert '<pre tabindex="0">two\nlines</pre>' in text
    assert "<p>beside</p>" in text


def test_a_page_loads_nothing_and_links_only_inside_itself(page):
    parsed = Parsed(render_page(page))
    assert parsed.loads == ["data:,"]
    assert parsed.anchors
    for anchor in parsed.anchors:
        assert anchor.removeprefix("#") in parsed.ids
    assert len(parsed.ids) == len(set(parsed.ids))
    assert len(parsed.scripts) == 1
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", parsed.scripts[0])


def test_text_of_a_scenario_cannot_break_out_of_the_page(page):
    parsed = Parsed(render_page(page))
    assert "alert(1)" in parsed.text
    assert "alert(1)" not in parsed.scripts[0]


def test_every_chart_lies_beside_the_page_as_png_and_svg(page, tmp_path):
    write_page(page, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figures", "report.html"]
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == [
        "a_chart.png",
        "a_chart.svg",
    ]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_page(page)


def test_a_published_figure_stands_with_its_source_and_an_end_outside_is_said():
    row = {"name": "optimizer", "metric": "ranks.0.optimizer_s", "published": 0.29,
           "simulated": 0.2146, "error": -0.26, "ideal": 0.2116, "interval_80": [0.2079, 0.2227],
           "kind": "setup_unpublished", "source": "Table 4"}  # fmt: skip
    (section,) = published_section([row])
    (table,) = section.blocks
    assert table.heads == [("", "figure and its source"), ("n", "published"), ("n", "expected"),
                           ("n", "error"), ("n", "80% interval"), ("", "kind")]  # fmt: skip
    (cells,) = table.cells
    assert [cell.text for cell in cells] == [
        "optimizer", "290 ms", "214.6 ms", "-26.0%", "207.9 to 222.7 ms", "setup unpublished",
    ]  # fmt: skip
    assert [cells[place].under for place in (0, 2, 4)] == ["Table 4", "ideal 211.6 ms", "outside"]
    assert cells[3].share == -1.0
    assert published_section([]) == []


def test_parts_of_a_whole_are_shares_of_it_and_nothing_has_none():
    shares = shares_of("memory", {"a": 3.0, "b": 1.0, "c": 0.0}, {"a": "blue"}, str)
    assert shares.parts == (("a", "3.0", 0.75, "blue"), ("b", "1.0", 0.25, "grey"))


def test_a_name_of_a_file_has_letters_and_digits_only():
    assert slug("Plane 0: use of the cables") == "plane_0_use_of_the_cables"


def test_a_page_names_what_it_was_made_with_each_with_version_and_licence():
    named = programs()
    assert named[0] == f"dsv3sim {version('dsv3sim')} (Apache-2.0)"
    assert any(text.startswith(f"numpy {version('numpy')} (BSD-3-Clause") for text in named)
    assert f"simpy {version('simpy')} (MIT)" in named
    assert all(re.fullmatch(r"\S+ \S+ \(.{2,80}\)", text) for text in named)
    assert not any("not stated" in text for text in named)
