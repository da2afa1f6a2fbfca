"""The commands of README.md and docs/: find them, run them, and write their output back.

A console block holds commands after "$ ", each followed by what it prints; "..." stands for lines
that are left out. `python tests/doc_commands.py [PAGE...]` runs every command of the pages (of all,
where none is named) and puts its output in place, shortened as it was before: an output that had
an ellipsis keeps its first and last lines. With --check it changes no page, says which commands
print something else and exits with 1 where any does. The commands of a page run in one directory,
in order; they are those of this interpreter's environment: the python of an environment that has
the wheel installed, started in another folder, checks the wheel.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from simulator.cli.progress import PREFIX

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ELLIPSIS = "..."
# What differs from run to run and machine to machine.
_VARIES = re.compile(r'("?wall_clock_s"?:?\s+)[0-9.]+')


@dataclass(frozen=True)
class Command:
    """One command of a console block."""

    written: str
    """As the page writes it, "$ " and continued lines included."""
    line: str
    output: str

    @property
    def needs(self) -> str:
        """What it needs besides the installed simulator: "", "torch" or "shared"."""
        if "../shared" in self.line:
            return "shared"
        return "torch" if "reference_model" in self.line else ""


def commands(text: str) -> list[Command]:
    """Every command of a page with the output that it shows."""
    found = []
    for block in _BLOCK.findall(text):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines(keepends=True)
            count = 1
            while lines[count - 1].endswith("\\\n"):
                count += 1
            written = "".join(lines[:count])
            line = " ".join(text.rstrip("\\").strip() for text in written.splitlines())
            found.append(Command(f"$ {written}", line, "".join(lines[count:])))
    return found


def run(line: str, directory: Path) -> str:
    """What a command prints, on both streams, with this interpreter's commands found first."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        line, shell=True, cwd=directory, env=environment, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    # Lines of progress come with time, not with what is worked out.
    lines = (text for text in done.stdout.splitlines() if not text.startswith(PREFIX))
    return "\n".join(map(str.rstrip, lines)) + "\n"


def shown(printed: str, before: str) -> str:
    """`printed` cut as the output before was: as many lines kept at its start and end."""
    lines = before.splitlines()
    if ELLIPSIS not in lines:
        return printed
    place = lines.index(ELLIPSIS)
    tail = len(lines) - place - 1
    now = printed.splitlines()
    if len(now) <= place + tail:
        return printed
    return "\n".join([*now[:place], ELLIPSIS, *now[len(now) - tail :]]) + "\n"


def differs(command: Command, printed: str) -> str:
    """What a page shows and what was printed, one under the other; "" where they agree."""
    before, now = (_VARIES.sub(r"\1TIME", text) for text in (command.output, printed))
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if doctest.OutputChecker().check_output(before, now, flags):
        return ""
    return f"$ {command.line}\nshown:\n{command.output}\nprinted:\n{printed}"


def check(page: Path) -> list[str]:
    """Run every command of a page in a directory of its own: each that prints something else."""
    with tempfile.TemporaryDirectory() as place:
        found = commands(page.read_text(encoding="utf-8"))
        return [text for one in found if (text := differs(one, run(one.line, Path(place))))]


def update(page: Path) -> None:
    """Run every command of a page in a directory of its own and write its output in place."""
    text = page.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as place:
        for command in commands(text):
            new = shown(run(command.line, Path(place)), command.output)
            text = text.replace(command.written + command.output, command.written + new, 1)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    named = [Path(name) for name in sys.argv[1:] if name != "--check"] or PAGES
    if "--check" not in sys.argv:
        for page in named:
            update(page)
        sys.exit()
    wrong = 0
    for page in named:
        found = check(page)
        wrong += len(found)
        print(f"{page}: {len(found)} of its commands differ", *found, sep="\n", flush=True)
    sys.exit(1 if wrong else 0)
