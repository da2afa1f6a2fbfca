"""What the commands share: options, how they are stopped, and tables on standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIG_DFL, SIGINT, SIGTERM, Signals, signal
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.cli.completion import gpu_names, model_names, settings

if TYPE_CHECKING:
    from rich.table import Table

PIPE_COLUMNS = 100
"""Width of tables where standard output is no terminal."""

Model = Annotated[
    str,
    typer.Option(help="A shipped model, or a path to its config.json.", autocompletion=model_names),
]
GpuOption = Annotated[
    str | None,
    typer.Option(help="A shipped GPU, h100 for short, a path.", autocompletion=gpu_names),
]
Gpus = Annotated[int | None, typer.Option(min=1, help="Of the whole job.")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change a value; repeatable; read as YAML.",
        autocompletion=settings,
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="Directory for a page and its figures. Default: none, tables alone."),
]


class Stopped(BaseException):
    """Ctrl-C or SIGTERM; not an Exception, so that nothing takes it for an error of the input."""

    def __init__(self, number: int) -> None:
        self.by = "Ctrl-C" if number == SIGINT else Signals(number).name
        self.exit_code = 128 + number
        """As shells count it."""
        self.kept = "nothing half-written is left; the same command runs again"
        """What the command that was stopped says of its work."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped at Ctrl-C or SIGTERM; a second one ends the process at once."""

    def stop(number: int, _: object) -> None:
        signal(number, SIG_DFL)
        raise Stopped(number)

    former = {number: signal(number, stop) for number in (SIGINT, SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal(number, handler)


def print_tables(*tables: Table) -> None:
    """Print tables, as wide as the terminal; into a file or a pipe 100 columns wide."""
    from rich.console import Console

    from reports.fit import fitted

    # Names come from users: a bracket in one is no markup.
    console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, markup=False)
    for table in tables:
        for part in fitted(table, console.width):
            console.print(part)
