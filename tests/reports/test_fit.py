"""Tables in narrow terminals."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from reports.fit import fitted


def printed(table, columns):
    console = Console(file=io.StringIO(), width=columns, markup=False)
    for part in fitted(table, columns):
        console.print(part)
    return console.file.getvalue()


def budget(columns=9):
    table = Table(title="budget", caption="a note")
    table.add_column("rank", justify="right")
    for number in range(columns):
        table.add_column(f"c{number}", justify="right")
    table.add_row("0", *(f"{1000 + number}.{number}" for number in range(columns)))
    return table


@pytest.mark.parametrize("columns", [40, 60, 80, 100])
def test_every_figure_stands_whole_on_a_line_of_its_own_width(columns):
    text = printed(budget(), columns)
    assert max(map(len, text.splitlines())) <= columns
    assert [f"{1000 + number}.{number}" in text for number in range(9)] == [True] * 9


def test_what_is_too_wide_stands_below_beside_its_first_column():
    # "rank" and 6 characters a figure, each with 3 beside them, and one border: 7 + 9n + 1 <= 40.
    *parts, caption = fitted(budget(), 40)
    assert [[column.header for column in part.columns] for part in parts] == [
        ["rank", "c0", "c1", "c2"], ["rank", "c3", "c4", "c5"], ["rank", "c6", "c7", "c8"],
    ]  # fmt: skip
    assert [part.title for part in parts] == ["budget", None, None]
    assert str(caption) == "a note"


def test_a_table_that_fits_stays_one():
    table = budget()
    # 7 + 9 x 9 + 1 = 89.
    assert fitted(table, 89) == [table]
    assert len(fitted(budget(), 88)) == 3


def test_text_wraps_and_a_long_word_of_it_is_broken():
    table = Table()
    table.add_column("what", overflow="fold")
    table.add_column("value", justify="right", overflow="fold")
    table.add_row("x" * 50, "12,345,678 tokens/s")
    text = printed(table, 40)
    assert "12,345,678" in text
    assert text.count("x") == 50
