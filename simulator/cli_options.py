"""What the commands share: options, and tables on standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
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

    console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    for table in tables:
        console.print(table)
