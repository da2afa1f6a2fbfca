"""Every command of the README and of docs/ prints what the page shows."""

import doctest
import re
from pathlib import Path

import pytest
from doc_commands import PAGES, ROOT, commands, run

SHOWN = {
    str(page.relative_to(ROOT)): found
    for page in PAGES
    if (found := commands(page.read_text(encoding="utf-8")))
}
SHARED = ROOT.parent / "shared"
# What differs from run to run and machine to machine.
_VARIES = re.compile(r'("?wall_clock_s"?:?\s+)[0-9.]+')


def steady(text: str) -> str:
    return _VARIES.sub(r"\1TIME", text)


@pytest.fixture
def directory(tmp_path):
    """A checkout's place: commands write runs/ here and find the shared data beside it."""
    place = tmp_path / "main"
    place.mkdir()
    if SHARED.is_dir():
        (place.parent / "shared").symlink_to(SHARED)
    return place


def test_the_readme_has_commands():
    assert len(SHOWN["README.md"]) >= 2


@pytest.mark.parametrize("page", SHOWN)
def test_the_commands_print_what_the_page_shows(page: str, directory: Path):
    checker = doctest.OutputChecker()
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    wrong = []
    for command in SHOWN[page]:
        if command.needs == "shared" and not SHARED.is_dir():
            continue
        printed = run(command.line, directory)
        if not checker.check_output(steady(command.output), steady(printed), flags):
            wrong.append(f"$ {command.line}\nshown:\n{command.output}\nprinted:\n{printed}")
    assert not wrong, "\n".join(wrong)
