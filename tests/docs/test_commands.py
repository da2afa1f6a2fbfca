"""Every command of the README and of docs/ prints what the page shows."""

from pathlib import Path

import pytest
from doc_commands import PAGES, ROOT, commands, differs, run

SHOWN = {
    str(page.relative_to(ROOT)): found
    for page in PAGES
    if (found := commands(page.read_text(encoding="utf-8")))
}
SHARED = ROOT.parent / "shared"


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
    wrong = []
    for command in SHOWN[page]:
        if command.needs == "shared" and not SHARED.is_dir():
            continue
        wrong.append(differs(command, run(command.line, directory)))
    assert not any(wrong), "\n".join(filter(None, wrong))
