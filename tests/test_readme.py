"""Every command of the README prints what the README shows."""

import doctest
import re
from pathlib import Path

import pytest
from readme_blocks import README, commands, run

COMMANDS = commands(README.read_text(encoding="utf-8"))
SHARED = README.parents[1] / "shared"
# What differs from run to run and machine to machine.
_VARIES = re.compile(r'("?wall_clock_s"?:?\s+)[0-9.]+')


def steady(text: str) -> str:
    return _VARIES.sub(r"\1TIME", text)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A checkout's place: commands write runs/ here and find the shared data beside it."""
    place = tmp_path_factory.mktemp("readme") / "main"
    place.mkdir()
    if SHARED.is_dir():
        (place.parent / "shared").symlink_to(SHARED)
    return place


def test_the_readme_has_commands():
    assert len(COMMANDS) >= 3


def test_the_commands_print_what_the_readme_shows(directory: Path):
    checker = doctest.OutputChecker()
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    wrong = []
    for command in COMMANDS:
        if command.needs == "shared" and not SHARED.is_dir():
            continue
        printed = run(command.line, directory)
        if not checker.check_output(steady(command.output), steady(printed), flags):
            wrong.append(f"$ {command.line}\nshown:\n{command.output}\nprinted:\n{printed}")
    assert not wrong, "\n".join(wrong)
