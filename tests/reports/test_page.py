"""A page that holds all it shows."""

import jinja2
import pytest

from reports.page import render_page, script_json


def test_text_cannot_end_the_script_that_holds_it():
    assert script_json({"name": "</script>"}) == '{"name": "\\u003c/script>"}'


def test_what_a_template_names_and_nobody_gives_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        render_page("replay.html.j2", filters={"seconds": str})
