"""Write docs/reference from the program: commands, scenarios, fields, metrics, Python interface.

python docs/write_reference.py
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

import simulator
from simulator.analysis.every_metric import METRICS
from simulator.analysis.machines import ON_CLUSTERS
from simulator.analysis.named_fields import with_known_names
from simulator.cli.app import command_line
from simulator.scenario.describe import Field, scenario_fields
from simulator.scenario.files import known_scenarios, load_scenario

FOLDER = Path(__file__).parent / "reference"
MADE = "*Written by `python docs/write_reference.py`; a test holds it to the program.*\n"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """The lines of a Markdown table; what is in cells is on one line, with bars escaped."""
    head = list(head)
    yield from (f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}")
    for row in rows:
        cells = (" ".join(cell.split()).replace("|", "\\|") for cell in row)
        yield f"| {' | '.join(cells)} |"


def commands() -> Iterator[str]:
    """Every command with its arguments and options."""
    yield "# Commands\n"
    yield MADE
    group = typer.main.get_command(command_line())
    for words, command in _leaves(group, ("dsv3sim",)):
        yield f"\n## {' '.join(words)}\n"
        yield f"{command.help}\n"
        with command.context_class(command, info_name=words[-1]) as context:
            records = [
                record
                for parameter in command.get_params(context)
                if (record := parameter.get_help_record(context)) and "--help" not in record[0]
            ]
            yield "```\n" + " ".join((*words, *command.collect_usage_pieces(context))) + "\n```\n"
        if records:
            yield from table(("option", "meaning"), ((f"`{name}`", text) for name, text in records))


def _leaves(
    group: typer.core.TyperGroup, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], typer.core.TyperCommand]]:
    for name, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            yield from _leaves(command, (*words, name))
        else:
            yield (*words, name), command


def scenarios() -> Iterator[str]:
    """Every shipped scenario: its job and what it is of."""
    yield "# Scenarios\n"
    yield "`dsv3sim run NAME`; `dsv3sim show scenario NAME` prints one.\n"
    yield MADE
    loaded = [load_scenario(name) for name in known_scenarios()]
    for job in METRICS:
        rows = [(f"`{one.name}`", one.file.description) for one in loaded if one.job_name == job]
        if rows:
            yield f"\n## {job}\n"
            yield from table(("scenario", "what it is of"), rows)


def fields() -> Iterator[str]:
    """Every field that a scenario and the files that it names may have."""
    yield "# Fields\n"
    yield (
        "Paths as of `--set`; `N` is a place of a list, `NAME` a name that the file chooses. An\n"
        "estimate has value, low, high and source. `dsv3sim show fields PATH` prints the same;\n"
        "`dsv3sim show schema scenario > scenario.schema.json` writes JSON Schema, with which an\n"
        "editor completes and checks a file that begins with\n"
        "`# yaml-language-server: $schema=scenario.schema.json`.\n"
    )
    yield MADE
    blocks: dict[str, list[Field]] = {}
    for field in with_known_names(scenario_fields()):
        blocks.setdefault(field.path.rpartition(".")[0], []).append(field)
    for block, inside in blocks.items():
        yield f"\n## {block or 'a scenario file'}\n"
        rows = (
            (
                f"`{one.path.rpartition('.')[2]}`",
                f"{one.kind}, such as {one.example}" if one.example else one.kind,
                one.default,
                one.meaning,
            )
            for one in inside
        )
        yield from table(("field", "value", "default", "meaning"), rows)


def metrics() -> Iterator[str]:
    """Every metric of every job, and of a step on several clusters."""
    yield "# Metrics\n"
    yield (
        "Names as in the JSON of `dsv3sim run --json`, in `--where`, `--objective` and `compare`.\n"
        "Some stand in parts of it: `ranks.3.forward_s`. Where a run has draws, a metric is the\n"
        "expected value, `ideal.NAME` that of ranks that are alike, `interval_80.NAME` its 80%\n"
        "interval.\n"
    )
    yield MADE
    for of, known in (
        *((job, tuple(own.values())) for job, own in METRICS.items()),
        ("compare --cluster", ON_CLUSTERS),
    ):
        yield f"\n## {of}\n"
        yield from table(
            ("metric", "unit", "better", "meaning"),
            ((f"`{one.name}`", one.unit, one.better or "", one.meaning) for one in known),
        )


def interface() -> Iterator[str]:
    """What `import simulator` offers."""
    yield "# Python\n"
    yield MADE
    yield f"```\n{inspect.getdoc(simulator)}\n```\n"
    for name in sorted(simulator.__all__, key=str.lower):
        what = getattr(simulator, name)
        signature = "" if inspect.isclass(what) else _signature(what)
        yield f"\n## {name}\n"
        yield f"```\n{name}{signature}\n\n{inspect.getdoc(what)}\n```\n"
        if inspect.isclass(what):
            members = [
                (member, inspect.getdoc(value) or "")
                for member, value in vars(what).items()
                if not member.startswith("_") and (callable(value) or hasattr(value, "func"))
            ]
            if members:
                yield from table(("member", "what it is"), ((f"`{m}`", d) for m, d in members))


def _signature(what: Callable[..., Any]) -> str:
    """As it is called: types without quotation marks, a function as a default by its name."""
    text = str(inspect.signature(what)).replace("'", "")
    return re.sub(r"<function (\w+) at \w+>", r"\1", text)


PAGES = {
    "commands.md": commands,
    "scenarios.md": scenarios,
    "fields.md": fields,
    "metrics.md": metrics,
    "python.md": interface,
}


def pages() -> dict[str, str]:
    """{file name: text} of every page."""
    return {
        name: "\n".join(line.rstrip(" ") for line in write()).rstrip() + "\n"
        for name, write in PAGES.items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(FOLDER / name, file=sys.stderr)
