"""A page that holds all it shows."""

import re
from importlib.metadata import version

import jinja2
import pytest

from reports.page import programs, render_page, script_json


def test_text_cannot_end_the_script_that_holds_it():
    assert script_json({"name": "</script>"}) == '{"name": "\\u003c/script>"}'


def test_what_a_template_names_and_nobody_gives_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        render_page("replay.html.j2", filters={"seconds": str})


def test_a_page_names_what_it_was_made_with_each_with_version_and_licence():
    named = programs()
    assert named[0] == f"dsv3sim {version('dsv3sim')} (Apache-2.0)"
    assert any(text.startswith(f"numpy {version('numpy')} (BSD-3-Clause") for text in named)
    assert f"simpy {version('simpy')} (MIT)" in named
    assert all(re.fullmatch(r"\S+ \S+ \(.{2,80}\)", text) for text in named)
    assert not any("not stated" in text for text in named)
