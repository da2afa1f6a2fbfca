"""One job on several machines, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from hardware_profiles.units import format_quantity, format_seconds

ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("GPU", "gpu", str),
    ("GPUs of the job", "gpus", "{:,}".format),
    ("kernel times of", "calibration", str),
    ("step", "seconds", format_seconds),
    ("tokens per second per GPU", "tokens_per_second_per_gpu", "{:,.0f}".format),
    ("rent per GPU", "usd_per_gpu_second", lambda value: format_quantity(value, "price_rate")),
    ("USD per million tokens", "usd_per_million_tokens", "{:.3f}".format),
    ("power of a GPU's board", "watts_per_gpu", lambda value: format_quantity(value, "power")),
    ("joules per token", "joules_per_token", "{:.3f}".format),
)
"""(what is shown, field, how)"""
COMPARED = frozenset(
    {"seconds", "tokens_per_second_per_gpu", "usd_per_million_tokens", "joules_per_token"}
)
"""Fields with their ratio to the first machine that can run the job."""


def machines_table(name: str, machines: Sequence[Mapping[str, Any]]) -> Table:
    """A column for each machine; ratios are to the first that can run the job."""
    table = Table(title=f"{name}: ratios in brackets are to the first", title_justify="left")
    table.caption, table.caption_justify = "\n".join(_notes(machines)), "left"
    table.add_column("")
    able = [machine for machine in machines if "reason" not in machine]
    for machine in able:
        table.add_column(machine["cluster"], justify="right")
    for label, field, show in ROWS if able else ():
        first = able[0][field]
        cells = [
            show(machine[field])
            + (
                f" ({machine[field] / first:.2f})"
                if field in COMPARED and machine is not able[0]
                else ""
            )
            for machine in able
        ]
        table.add_row(label, *cells)
    return table


def _notes(machines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who cannot run it, and where power was not measured."""
    notes = [f"{one['cluster']}: {one['reason']}" for one in machines if "reason" in one]
    return [*notes, *power_notes(machines)]


def power_notes(machines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Notes on the GPUs whose power nobody measured."""
    assumed = {
        one["gpu"]: one["power_measured_on"]
        for one in machines
        if one.get("power_measured_on", [one["gpu"]]) != [one["gpu"]]
    }
    if assumed:
        measured = " and ".join(next(iter(assumed.values())))
        yield (
            f"power of {' and '.join(assumed)}: assumed the share of the board's limit that "
            f"{measured} draw"
        )
