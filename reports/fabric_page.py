"""The page of collectives on a fabric."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hardware_profiles.units import format_bandwidth, format_bytes, format_seconds
from reports.charts import Chart, ChartAxis, Curve, Heat, Lines, Span, Spans, share_axis, shown_in
from reports.fabric import (
    HOTTEST,
    LINK_COLUMNS,
    OPERATION_COLUMNS,
    draw_fabric,
    headline_rows,
    link_cells,
    nic_heat,
    operation_cells,
    plane_heat,
    time_against_gpus,
    what_varies,
)
from reports.page import (
    Answer,
    Figure,
    Page,
    Section,
    Table,
    published_section,
    scenario_page,
)
from reports.palette import SERIES
from reports.tables import changed_text
from simulator.analysis.run import Run
from simulator.execution.collective import CollectiveResult

FILES = (
    ("links.parquet", "bytes and use of every link that carried anything"),
    ("operations.parquet", "one row per operation and variant"),
    ("perfetto.json", "operations, and what links carry; opens in Perfetto"),
)


def collective_page(run: Run[CollectiveResult], metrics: Mapping[str, Any]) -> Page:
    """All that the page of collectives shows."""
    same, columns, rows = what_varies(OPERATION_COLUMNS, operation_cells(metrics))
    first = columns.index("GPUs")
    heads = (*columns[:first], *(f"|{column}" for column in columns[first:]))
    operations = Table(
        heads,
        tuple(map(tuple, rows)),
        "; ".join(f"{name}: {text}" for name, text in same),
    )
    links = Table(
        (LINK_COLUMNS[0], *(f"|{column}" for column in LINK_COLUMNS[1:])),
        tuple(tuple(row) for row in link_cells(metrics, 2 * HOTTEST)),
        "Of the last row; links.parquet has all.",
    )
    lines = list(_against_gpus(metrics))
    sections = [
        Section("Operations", (*lines, operations)),
        Section("Use of the links", (*_heats(run.result), hottest_chart(metrics), links)),
        Section("The fabric", ("\n".join(draw_fabric(run.scenario.cluster)),)),
    ]
    facts = Table(("what", "value"), tuple(headline_rows(metrics)), "")
    note = (
        "All of it is simulated; where a transport is called calibrated, its efficiencies were "
        "fitted to the rows so marked."
    )
    return scenario_page(
        run.scenario,
        kind="Collectives on a fabric",
        answer=_answer(run, metrics),
        beside=published_section(metrics["published"], note),
        sections=sections,
        provenance=[Section("Where the times come from", (facts,), note)],
        files=FILES,
    )


def _answer(run: Run[CollectiveResult], metrics: Mapping[str, Any]) -> Answer:
    last = metrics["rows"][-1]
    done, bus = metrics["completion_s"], metrics["bus_bandwidth_bytes_per_s"]
    interval, alone = "", metrics["rows"][0].get("alone_s")
    figures = []
    if alone is not None:
        low, value, high = (format_seconds(end) for end in alone)
        figures.append(Figure("Time alone", value, f"{low} to {high}",
                              metrics["rows"][0]["provenance"]))  # fmt: skip
    algorithm = metrics["algorithm_bandwidth_bytes_per_s"]
    figures += [
        Figure("Bus bandwidth per GPU", "-" if bus is None else format_bandwidth(bus)),
        Figure("Algorithm bandwidth per GPU",
               "-" if algorithm is None else format_bandwidth(algorithm)),
        Figure("GPUs", f"{last['gpus']:,}"),
        Figure("Bytes moved", format_bytes(metrics["bytes_total"])),
    ]  # fmt: skip
    links = metrics["links"]
    limits = "Nothing: no link carried anything."
    if links:
        full = sum(link["utilisation"] >= 0.98 * links[0]["utilisation"] for link in links)
        limits = (
            f"{links[0]['name']}, in use {links[0]['utilisation']:.0%} of the time, as are "
            f"{full - 1:,} other links within 2% of it."
            if full > 1
            else f"{links[0]['name']}, in use {links[0]['utilisation']:.0%} of the time; no other "
            "link comes near."
        )
    if metrics["stalled"]:
        limits = f"A failure cut it off: {metrics['stalled'][0]}."
    title = f"{last['operation'].replace('_', ' ')}, {format_bytes(last['size_bytes'])} per GPU"
    return Answer(
        Figure(
            f"Completion of {title}" if len(metrics["rows"]) == 1 else
            "Completion of all operations",
            "cut off" if done is None else format_seconds(done),
            interval,
        ),
        tuple(figures),
        limits=limits,
        changed=changed_text(run.scenario),
    )  # fmt: skip


def _against_gpus(metrics: Mapping[str, Any]) -> Iterator[Lines]:
    """Time against GPUs, where they vary."""
    lines = time_against_gpus(metrics)
    if not lines:
        return
    times = [seconds for points in lines.values() for _, seconds in points]
    yield Lines(
        "Time against GPUs",
        "Both axes are logarithmic.",
        ChartAxis("GPUs", log=True),
        shown_in("time", "time", max(times), log=True),
        tuple(
            Curve(name, SERIES[number % len(SERIES)], [gpus for gpus, _ in points],
                   [seconds for _, seconds in points], dots=True, dashed=bool(number % 2))
            for number, (name, points) in enumerate(lines.items())
        ),
        height=320.0,
    )  # fmt: skip


def _heats(result: CollectiveResult) -> Iterator[Chart]:
    """A grid of the NICs, and one of each plane."""
    last = result.last
    if not last.fabric.planes:
        return
    use = nic_heat(last)
    reached = int(np.max(np.flatnonzero(use.max(axis=0) > 0), initial=0)) + 1
    yield Heat(
        "Use of the NICs' links into the network",
        "Each row is a NIC of every node; pointing at a row tells its mean and its most. Nodes "
        f"after the last that sends anything are left out, of {last.fabric.inputs.nodes:,}.",
        "node",
        tuple(f"nic{nic}" for nic in range(last.fabric.inputs.nics_per_node)),
        use[:, :reached].tolist(),
    )
    for plane in range(len(last.fabric.planes)):
        switches, heat = plane_heat(last, plane)
        if heat.size and np.nansum(heat) > 0:
            seen = np.flatnonzero(np.nan_to_num(heat).max(axis=1) > 0)
            ports = int(np.max(np.flatnonzero(np.nan_to_num(heat).max(axis=0) > 0))) + 1
            cells = [[None if np.isnan(v) else float(v) for v in row] for row in heat[seen, :ports]]
            yield Heat(
                f"Plane {plane}: use of the cables out of each switch",
                "Each row is a switch, each column a cable out of it. Switches that carry nothing, "
                "and cables after the last that does, are left out.",
                "cable of the switch",
                tuple(switches[place] for place in seen),
                cells,
            )


def hottest_chart(metrics: Mapping[str, Any]) -> Spans:
    """The hottest links as bars."""
    links = metrics["links"][:HOTTEST]
    return Spans(
        "Hottest links",
        "Bytes over capacity times the length of the run.",
        share_axis("use", low=0.0, high=1.0),
        tuple(link["name"] for link in links),
        tuple(
            Span(lane, 0.0, link["utilisation"], "blue",
                 f"{link['name']}: {link['utilisation']:.1%}, {format_bytes(link['bytes'])}")
            for lane, link in enumerate(links)
        ),
        notes=tuple(f"{link['utilisation']:.1%}" for link in links),
        lane_height=20.0,
    )  # fmt: skip
