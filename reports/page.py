"""Render a self-contained HTML page from a template.

Every page extends page.html.j2 and opens without a network; plotly's JavaScript lies inside where a
page draws charts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.metadata import Distribution, distribution
from importlib.resources import files
from pathlib import Path
from platform import python_version
from typing import Any

import jinja2
from markupsafe import Markup
from packaging.requirements import Requirement

TEMPLATES = Path(__file__).parent / "templates"
LONGEST_NAME = 80
"""Characters of the name of a licence."""


def render_page(
    template: str,
    *,
    charts: Mapping[str, Any] | None = None,
    filters: Mapping[str, Callable[..., str]] | None = None,
    **shown: Any,
) -> str:
    """Fill a template of this package.

    Args:
        charts: title -> {"data", "layout"} as plotly takes them; where given, the page holds them
            as `charts` and plotly as `plotly`.
        filters: name in the template -> function.
        shown: every other name of the template; one that is missing is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["programs"] = programs
    environment.filters |= dict(filters or {})
    if charts is not None:
        shown |= {"charts": script_json(charts), "plotly": _plotly()}
    return environment.get_template(template).render(shown)


def script_json(value: Any) -> Markup:
    """A value as JSON that can stand inside a script of a page."""
    # "</script>" inside a text must not end the script that holds it.
    return Markup(json.dumps(value, allow_nan=False).replace("<", "\\u003c"))


def _plotly() -> Markup:
    javascript = files("plotly").joinpath("package_data", "plotly.min.js")
    return Markup(javascript.read_text(encoding="utf-8"))


def programs() -> list[str]:
    """This program, Python and what it rests on, each with version and licence."""
    own = distribution("dsv3sim")
    needed = [Requirement(text) for text in own.requires or ()]
    names = [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    rest = [_with_licence(distribution(name)) for name in sorted(names, key=str.lower)]
    return [_with_licence(own), f"Python {python_version()} (PSF-2.0)", *rest]


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
