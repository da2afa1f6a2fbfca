"""Tables on standard output."""

import os
import pty
import re
import subprocess
import sys

from rich.table import Table

from simulator.cli.options import PIPE_COLUMNS, print_tables


def test_into_a_pipe_a_table_is_100_columns_wide_and_brackets_stay(capsys):
    table = Table("name", expand=True)
    table.add_row("[bold]")
    print_tables(table)
    lines = capsys.readouterr().out.splitlines()
    assert {len(line) for line in lines} == {PIPE_COLUMNS} == {100}
    assert any("[bold]" in line for line in lines)


SHOWN = [sys.executable, "-m", "simulator.cli", "show", "fields", "training.skew"]


def on_a_terminal(command, columns, **environment):
    """What a command writes on a terminal so wide."""
    mine, its = pty.openpty()
    work = subprocess.Popen(
        command, stdout=its, stderr=its,
        env=os.environ | {"COLUMNS": str(columns), "TERM": "xterm-256color"} | environment,
    )  # fmt: skip
    os.close(its)
    text = b""
    try:
        while part := os.read(mine, 10_000):
            text += part
    except OSError:  # How Linux says that the other end is closed.
        pass
    work.wait(timeout=30)
    os.close(mine)
    return text.decode()


def test_on_a_terminal_of_80_columns_tables_fit_and_without_colour_where_that_is_asked():
    text = on_a_terminal(SHOWN, 80, NO_COLOR="1")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "training.skew.rows" in plain
    assert max(map(len, plain.splitlines())) <= 80
    assert re.search(r"\x1b\[[0-9;]*[349][0-7]m", text) is None


def test_into_a_pipe_there_are_no_control_characters():
    done = subprocess.run(SHOWN, capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= PIPE_COLUMNS
