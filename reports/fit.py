"""Fit tables into a terminal: text wraps, figures never do, and what is too wide stands below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.cells import cell_len
from rich.table import Column, Table
from rich.text import Text

FOLDED_WORD = 20
"""Characters of a word in a column of text from which on it may be broken."""

FOLDED_NAME = 36
"""The same in the first column, which holds names."""

WIDE = 100
"""Characters from which on tables share out their width as rich does."""

_BESIDE = 3
"""Characters of a column beside its cells: two of padding and its border."""


def fitted(table: Table, columns: int) -> list[Table | Text]:
    """The table where it fits so many characters; else parts of it, each with the first column,
    one below the other, and its caption. No figure is cut or broken over two lines.
    """
    of_name = min(FOLDED_NAME, columns // 2 - _BESIDE)
    longest_words = [of_name] + [FOLDED_WORD] * (len(table.columns) - 1)
    least = [_least(*one) for one in zip(table.columns, longest_words, strict=True)]
    room = columns - 1 - _BESIDE * len(least)
    if sum(least) <= room:
        if columns < WIDE:
            _share_out(table, least, room)
        return [table]
    parts: list[list[int]] = []
    room = 0
    for place in range(1, len(least)):
        room -= least[place] + _BESIDE
        if room < 0 or not parts:
            parts.append([0])
            room = columns - 1 - sum(least[one] + _BESIDE for one in (0, place))
        parts[-1].append(place)
    found: list[Table | Text] = []
    for number, places in enumerate(parts):
        part = _part(table, places, first=number == 0)
        own = [least[place] for place in places]
        _share_out(part, own, max(columns - 1 - _BESIDE * len(own), sum(own)))
        found.append(part)
    if table.caption:
        found.append(Text(str(table.caption)))
    return found


def _share_out(table: Table, least: Sequence[int], room: int) -> None:
    """Give columns as much as their longest lines need; where that is too much, those that need
    least first, and what is left in equal parts to the others."""
    wanted = [max(_longest(column), one) for column, one in zip(table.columns, least, strict=True)]
    if sum(wanted) <= room:
        return
    left, widths = room - sum(least), list(least)
    waiting = sorted(range(len(least)), key=lambda place: wanted[place] - least[place])
    for number, place in enumerate(waiting):
        more = min(wanted[place] - least[place], left // (len(waiting) - number))
        widths[place] += more
        left -= more
    for column, width in zip(table.columns, widths, strict=True):
        column.width, column.overflow = width, "fold"


def _least(column: Column, longest_word: int) -> int:
    """Characters that a column needs: of its longest word, of text at most so many."""
    if column.width is not None:
        return column.width
    lines = _lines(column)
    parts = lines if column.no_wrap else [word for line in lines for word in line.split()]
    longest = max(map(cell_len, parts), default=1)
    whole = column.no_wrap or column.justify == "right"
    return longest if whole else min(longest, longest_word)


def _longest(column: Column) -> int:
    """Characters of its longest line."""
    return column.width or max(map(cell_len, _lines(column)), default=1)


def _lines(column: Column) -> list[str]:
    return [line for cell in (column.header, *column.cells) for line in _plain(cell).split("\n")]


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def _part(table: Table, places: list[int], *, first: bool) -> Table:
    part = Table(
        title=table.title if first else None,
        title_justify=table.title_justify,
        box=table.box,
        show_header=table.show_header,
    )
    part.columns = [
        replace(table.columns[place], _index=number) for number, place in enumerate(places)
    ]
    part.rows = table.rows
    return part
