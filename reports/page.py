"""Render a self-contained HTML page from a template.

Every page extends page.html.j2 and opens without a network; plotly's JavaScript lies inside where a
page draws charts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


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
