"""Write the reference model's table of a GPU as medians over several cards, each of another lease.

    python -m simulator.calibration.shipping.reference_tables h200_sxm_reference [TABLE.csv ...]

Tables are those that `python -m reference_model measure` wrote, one of each card. They are kept in
measurements/cards/NAME/table.csv, from which the medians are taken; without tables those that are
kept stay. Cards that were timed later, and have no part in the table, stand beside it in later.csv.
Rows of other kernels in the reference table stay as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from hardware_profiles.tables import (
    CARDS,
    Measurement,
    load_cards,
    load_measurements,
    table_path,
    write_cards,
    write_measurements,
)


def medians(cards: Sequence[Sequence[Measurement]]) -> list[Measurement]:
    """The median time of each row over the cards, and the median spread of its repeats."""
    return [
        replace(
            rows[0],
            seconds=median(row.seconds for row in rows),
            spread=median(row.spread or 0.0 for row in rows),
            source=f"{rows[0].source}; median of {len(rows)} cards",
        )
        for rows in zip(*cards, strict=True)
    ]


def with_medians(
    rows: Iterable[Measurement], cards: Sequence[Sequence[Measurement]]
) -> list[Measurement]:
    """A table whose rows of the cards' work are the medians, however they were timed before."""
    anew = medians(cards)
    work = {_work(row) for row in anew}
    return [*(row for row in rows if _work(row) not in work), *anew]


def _work(row: Measurement) -> tuple[object, ...]:
    stated = tuple((name, value) for name, value in row.conditions if name != "timing")
    return row.kind, row.sizes, row.dtype, row.sms, stated


def main(arguments: list[str] | None = None) -> None:
    """Write the table, and the cards' where tables are given."""
    parser = argparse.ArgumentParser(
        prog="python -m simulator.calibration.shipping.reference_tables"
    )
    parser.add_argument("name", help="of the reference table, such as h200_sxm_reference")
    parser.add_argument("tables", nargs="*", type=Path, metavar="TABLE.csv")
    options = parser.parse_args(arguments)
    kept = CARDS / options.name / "table.csv"
    if options.tables:
        write_cards(kept, [load_measurements(path) for path in options.tables])
    table = table_path(options.name)
    write_measurements(table, with_medians(load_measurements(table), load_cards(kept)))


if __name__ == "__main__":
    main()
