"""One job on several machines, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from rich.table import Table

from hardware_profiles.units import format_quantity, format_seconds
from simulator.analysis.machines import ON_CLUSTERS
from simulator.analysis.metric import Metric

Machines: TypeAlias = Sequence[Mapping[str, Any]]
"""As `dsv3sim compare --cluster --json` prints them."""
_BY_UNIT: Mapping[str, Callable[[float], str]] = {
    "s": format_seconds,
    "tokens/s": "{:,.0f}".format,
    "USD/s": lambda value: format_quantity(value, "price_rate"),
    "USD": "{:.3f}".format,
    "W": lambda value: format_quantity(value, "power"),
    "J": "{:.3f}".format,
}


def shown_on(machine: Mapping[str, Any], metric: Metric) -> str:
    """A figure of one machine; dollars, joules and tokens are named by its label."""
    return _BY_UNIT[metric.unit](machine[metric.name])


def rows_side_by_side(able: Machines) -> Iterator[tuple[str, list[tuple[str, float | None]]]]:
    """(label, (text, ratio to the first) of each machine) of what machines are and of each figure;
    no ratio for the first itself, nor for what is better neither way."""
    for label, field in (
        ("GPU", "gpu"),
        ("GPUs of the job", "gpus"),
        ("kernel times of", "calibration"),
    ):
        values = [machine[field] for machine in able]
        yield label, [(f"{v:,}" if isinstance(v, int) else v, None) for v in values]
    for metric in ON_CLUSTERS:
        first, name = able[0], metric.name
        yield (
            metric.label,
            [
                (
                    shown_on(machine, metric),
                    machine[name] / first[name] if metric.better and machine is not first else None,
                )
                for machine in able
            ],
        )


def machines_table(name: str, machines: Machines) -> Table:
    """A column for each machine; ratios are to the first that can run the job."""
    table = Table(title=f"{name}: ratios in brackets are to the first", title_justify="left")
    table.caption, table.caption_justify = "\n".join(_notes(machines)), "left"
    table.add_column("")
    able = [machine for machine in machines if "reason" not in machine]
    for machine in able:
        table.add_column(machine["cluster"], justify="right")
    for label, cells in rows_side_by_side(able) if able else ():
        texts = (text if ratio is None else f"{text} ({ratio:.2f})" for text, ratio in cells)
        table.add_row(label, *texts)
    return table


def _notes(machines: Machines) -> list[str]:
    """Who cannot run it, and where power was not measured."""
    notes = [f"{one['cluster']}: {one['reason']}" for one in machines if "reason" in one]
    return [*notes, *power_notes(machines)]


def power_notes(machines: Machines) -> Iterator[str]:
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
