"""What the commands share: options, and tables on standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.status import Status
    from rich.table import Table

PIPE_COLUMNS = 100
"""Width of tables where standard output is no terminal."""

Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a value; repeatable; read as YAML."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")
]


def print_tables(*tables: Table) -> None:
    """Print tables, as wide as the terminal; into a file or a pipe 100 columns wide."""
    from rich.console import Console

    # Names come from users: a bracket in one is no markup.
    console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, markup=False)
    for table in tables:
        console.print(table)


def working(text: str) -> Status:
    """A spinner on standard error that says what is being done, brackets in names as they are."""
    from rich.console import Console
    from rich.text import Text

    return Console(stderr=True).status(Text(text))
