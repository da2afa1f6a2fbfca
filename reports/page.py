"""One page for every kind of run: what it holds, and how it is written.

A page shows the answer first (the number, its interval, what was changed, what limits it), then
what was published or measured beside it, then charts and tables, then where times come from, every
input with its source, and the scenario. It opens without a network and without a script, follows
the theme of its reader, and its charts lie beside it as PNG and SVG.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, distribution
from pathlib import Path
from platform import python_version
from typing import Any, TypeAlias

import jinja2
from markupsafe import Markup
from packaging.requirements import Requirement

from reports.charts import Chart, draw
from reports.drawing import Hue, style_of_hues, svg, write_png
from reports.tables import (
    Input,
    list_inputs,
    published_cells,
)
from simulator.scenario.files import Scenario, write_resolved

TEMPLATES = Path(__file__).parent / "templates"
REPORT_FILE, FIGURES_DIRECTORY = "report.html", "figures"
LONGEST_NAME = 80
"""Characters of the name of a licence."""
_FULL_BAR = 0.05
"""Error whose bar is as long as there is room, where no error is larger."""
_LONG_TABLE = 18
"""Rows from which on a table scrolls in a box of its own."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of the answer."""

    label: str
    value: str
    interval: str = ""
    """Its 80% interval: "18.21 to 21.29 s"."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a reader came for."""

    headline: Figure
    figures: tuple[Figure, ...]
    limits: str
    """What limits the headline, a sentence; of several runs, what they differ by."""
    changed: str
    """What was changed of the scenario as it is shipped, a sentence."""
    limits_label: str = "Limited by"
    changed_label: str = "Changed"
    verdict: str = ""
    """One word on the outcome, where a job has one: "stable"."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table with more to it than its text."""

    text: str
    value: float | None = None
    """What it is sorted by."""
    under: str = ""
    """A second line of second rank."""
    hue: Hue = ""
    """Of a mark before it."""
    share: float | None = None
    """Length of a bar behind it, from -1 to 1."""
    href: str = ""
    """A page that it leads to."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under heads; numbers stand to the right."""

    columns: tuple[str, ...]
    """Heads; "|" before one stands its column to the right."""
    rows: tuple[tuple[str | Cell, ...], ...]
    caption: str
    title: str = ""
    """Above it, where its section has more than one."""
    sortable: bool = False
    pale: frozenset[int] = frozenset()
    """Rows that stand back."""
    marked: frozenset[int] = frozenset()
    """Rows that stand out."""

    @property
    def tall(self) -> bool:
        return len(self.rows) > _LONG_TABLE

    @property
    def heads(self) -> list[tuple[str, str]]:
        """(class, text) of each head."""
        return [("n" if head.startswith("|") else "", head.lstrip("|")) for head in self.columns]

    @property
    def cells(self) -> list[list[Cell]]:
        return [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in self.rows]


@dataclass(frozen=True, slots=True)
class Shares:
    """Parts of a whole as one bar with its legend."""

    label: str
    parts: tuple[tuple[str, str, float, Hue], ...]
    """(name, value as text, share, hue)."""


PageBlock: TypeAlias = Chart | Table | Shares | str
"""A string is a paragraph; one of several lines is shown as it was written."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[PageBlock, ...]
    note: str = ""

    @property
    def anchor(self) -> str:
        return slug(self.title)


@dataclass(frozen=True, slots=True)
class Page:
    """All that a page shows, in its order."""

    kind: str
    """Of the run: "Training step"."""
    name: str
    description: str
    answer: Answer
    beside: tuple[Section, ...]
    """Published or measured figures."""
    sections: tuple[Section, ...]
    """Charts and tables."""
    provenance: tuple[Section, ...] = ()
    inputs: tuple[Input, ...] = ()
    scenario: str = ""
    """As YAML; empty of a page of several."""
    files: tuple[tuple[str, str], ...] = ()
    """(name, what it holds) of the files beside the page."""

    @property
    def charts(self) -> dict[str, Chart]:
        """{name of its figure files: chart}"""
        return {
            slug(block.title): block
            for section in (*self.beside, *self.sections, *self.provenance)
            for block in section.blocks
            if not isinstance(block, Table | Shares | str)
        }


def slug(text: str) -> str:
    """A text as the name of a file or an anchor."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def scenario_page(
    scenario: Scenario,
    *,
    kind: str,
    answer: Answer,
    beside: Sequence[Section] = (),
    sections: Sequence[Section],
    provenance: Sequence[Section] = (),
    files: Iterable[tuple[str, str]] = (),
) -> Page:
    """The page of a run of a scenario: its inputs and itself come last."""
    return Page(
        kind=kind,
        name=scenario.name,
        # What was changed stands under the answer.
        description=scenario.file.description.partition("; changed:")[0],
        answer=answer,
        beside=tuple(beside),
        sections=tuple(sections),
        provenance=tuple(provenance),
        inputs=tuple(list_inputs(scenario.resolved)),
        scenario=write_resolved(scenario),
        files=(("metrics.json", "every figure, SI units"), ("scenario.yaml", "the scenario below"),
               *files),
    )  # fmt: skip


def published_section(rows: Sequence[Mapping[str, Any]], note: str = "") -> list[Section]:
    """Published figures beside those of the run; none where there are none."""
    if not rows:
        return []
    errors = [abs(row["error"]) for row in rows if row["error"] is not None]
    reach = max([_FULL_BAR, *errors])
    found: list[tuple[Cell, ...]] = []
    for row in rows:
        name, published, expected, error, ideal, interval, kind = published_cells(row)
        bar = None if row["error"] is None else row["error"] / reach
        inside, _, outside = interval.partition(", ")
        found.append(
            (
                Cell(name, under=row["source"]),
                Cell(published),
                Cell(expected, under=f"ideal {ideal}" if ideal else ""),
                Cell(error, row["error"], share=bar),
                Cell(inside, under=outside),
                Cell(kind.replace("_", " ")),
            )
        )
    value = "expected" if any(row.get("ideal") is not None for row in rows) else "simulated"
    heads = ("figure and its source", "|published", f"|{value}", "|error",
             "|80% interval", "kind")  # fmt: skip
    kept = [place for place in range(len(heads)) if any(row[place].text for row in found)]
    table = Table(
        tuple(heads[place] for place in kept),
        tuple(tuple(row[place] for place in kept) for row in found),
        "Error is simulated / published - 1. Predicted: neither the figure nor a part of it is an "
        "input.",
    )
    return [Section("Beside published figures", (table,), note)]


def shares_of(
    label: str,
    parts: Mapping[str, float],
    hues: Mapping[str, Hue],
    text: Any,
) -> Shares:
    """Parts of a whole with their hues; those of nothing are left out."""
    whole = sum(parts.values()) or 1.0
    return Shares(
        label,
        tuple(
            (name, text(value), value / whole, hues.get(name, "grey"))
            for name, value in parts.items()
            if value > 0
        ),
    )


# -- writing ---------------------------------------------------------------------------------------


def write_found(page: Page, directory: Path, found: Mapping[str, Any]) -> None:
    """Write the directory of a page that is not of one run; it appears whole or not at all.

    Args:
        found: what metrics.json holds.
    """
    from reports.run_directory import write_run

    write_run(
        directory,
        scenario=page.scenario,
        metrics=found,
        tables={},
        write_report=lambda draft: write_page(page, draft),
    )


def write_page(page: Page, directory: Path) -> None:
    """Write the page, and its charts as PNG and SVG, into a directory."""
    (directory / REPORT_FILE).write_text(render_page(page), encoding="utf-8")
    if page.charts:
        folder = directory / FIGURES_DIRECTORY
        folder.mkdir()
        for name, chart in page.charts.items():
            sheet = draw(chart)
            text = svg(sheet, title=chart.title, alone=True)
            (folder / f"{name}.svg").write_text(text, encoding="utf-8")
            write_png(sheet, folder / f"{name}.png")


def render_page(page: Page) -> str:
    """The page as HTML that holds everything."""
    files = list(page.files)
    if page.charts:
        files.append((f"{FIGURES_DIRECTORY}/", "every chart as PNG and SVG"))
    return _environment().get_template("page.html.j2").render(
        page=page, files=files, programs=programs()
    )  # fmt: skip


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["asset"] = lambda name: Markup((TEMPLATES / name).read_text("utf-8"))
    environment.globals["hues"] = lambda: Markup(style_of_hues())
    environment.globals["kind_of"] = lambda block: type(block).__name__
    environment.filters["drawn"] = lambda chart: Markup(svg(draw(chart), title=chart.title))
    environment.filters["slug"] = slug
    return environment


def programs() -> list[str]:
    """This program, Python and what it rests on, each with version and licence."""
    own = distribution("dsv3sim")
    needed = [Requirement(text) for text in own.requires or ()]
    names = [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [_with_licence(own), f"Python {python_version()} (PSF-2.0)", *_licences(sorted(names))]


def _licences(names: Iterable[str]) -> Iterator[str]:
    for name in sorted(names, key=str.lower):
        yield _with_licence(distribution(name))


def _with_licence(installed: Distribution) -> str:
    meta = installed.metadata
    named = [*(meta.get_all("License-Expression") or ())]
    named += [text.partition("\n")[0] for text in meta.get_all("License") or ()]
    for text in meta.get_all("Classifier") or ():
        if text.startswith("License ::"):
            named.append(text.rpartition(" :: ")[2])
    # Some state the whole text of their licence where its name belongs.
    licence = next((name for name in named if 0 < len(name) <= LONGEST_NAME), "licence not stated")
    return f"{meta['Name']} {installed.version} ({licence})"
