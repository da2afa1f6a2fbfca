"""The pages of docs/reference say what the program of today says."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = runpy.run_path(str(DOCS / "write_reference.py"))["pages"]()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_as_the_program_writes_it(name):
    assert (DOCS / "reference" / name).read_text(encoding="utf-8") == PAGES[name], (
        "python docs/write_reference.py writes it anew"
    )
