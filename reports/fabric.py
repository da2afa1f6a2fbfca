"""What is shown of traffic on a fabric: tables, heat maps of link use, and the fabric itself.

Run: headline, one row an operation and variant, published figures, hottest links; links.parquet is
the byte table of every link that carried anything. Cluster: a drawing in text, counts and cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hardware_profiles.units import (
    format_bandwidth,
    format_bytes,
    format_quantity,
    format_seconds,
)
from reports.perfetto import (
    PERFETTO_FILE,
    arrow,
    counter,
    name_process,
    name_thread,
    slice_of,
    within,
    write_trace,
)
from reports.tables import published_table

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from hardware_profiles.schema import ClusterProfile
    from simulator.analysis.run import Run
    from simulator.execution.collective import CollectiveResult, VariantResult

HOTTEST = 12
"""Links in the table of the hottest."""

SHORT_NAMES: Mapping[str, str] = {
    "multi_plane_fat_tree": "MPFT",
    "multi_rail_fat_tree": "MRFT",
    "fat_tree_2": "FT2",
    "fat_tree_3": "FT3",
    "slim_fly": "SF",
    "dragonfly": "DF",
    "nvlink_domain": "NVLink",
}
"""What the Insights paper calls the topologies, for narrow columns."""

_ROWS_DRAWN = 128
"""Switches of a plane in a heat map; of larger planes the busiest."""


# --- terminal


def collective_tables(name: str, metrics: Mapping[str, Any]) -> list[Table]:
    """Headline, operations, published figures and hottest links of a run."""
    from rich.table import Table

    headline = Table(title=name, title_justify="left")
    headline.add_column("figure")
    headline.add_column("simulated", justify="right")
    for label, text in headline_rows(metrics):
        headline.add_row(label, text)
    same, columns, rows = what_varies(OPERATION_COLUMNS, operation_cells(metrics))
    for label, text in same:
        headline.add_row(label, text)
    tables = [headline, _table("operations", columns, rows)]
    if metrics["published"]:
        tables.append(published_table(metrics["published"]))
    tables.append(_table("hottest links of the last row", LINK_COLUMNS, link_cells(metrics)))
    return tables


OPERATION_COLUMNS = (
    "operation",
    "form",
    "topology",
    "routing",
    "GPUs",
    "size a GPU",
    "time",
    "with own share",
    "without",
    "nodes a token",
)
"""Columns of the operations; both bandwidths are of one GPU, own share counted or not."""

LINK_COLUMNS = ("link", "bytes", "use")


def operation_cells(metrics: Mapping[str, Any]) -> list[list[str]]:
    """One row an operation of each variant."""
    return [
        [
            row["operation"],
            row["algorithm"],
            SHORT_NAMES[row["topology"]],
            row["routing"],
            f"{row['gpus']:,}" if row["groups"] == 1 else f"{row['groups']} x {row['group_gpus']}",
            format_bytes(row["size_bytes"]),
            _or_dash(row["completion_s"], format_seconds),
            _or_dash(row["algorithm_bandwidth_bytes_per_s"], format_bandwidth),
            _or_dash(row["bus_bandwidth_bytes_per_s"], format_bandwidth),
            _or_dash(row["nodes_per_token"], "{:.2f}".format),
        ]
        for row in metrics["rows"]
    ]


def what_varies(
    columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[tuple[str, str]], list[str], list[list[str]]]:
    """Split a table into what is the same in every row, and the columns that tell rows apart.

    Figures stay in the table even where they are equal.
    """
    figures = columns.index("GPUs")
    kept = [
        number
        for number in range(len(columns))
        if figures <= number < len(columns) - 1 or len({row[number] for row in rows}) > 1
    ]
    same = [
        (columns[number], rows[0][number])
        for number in range(len(columns))
        if number not in kept and rows[0][number] != "-"
    ]
    return same, [columns[n] for n in kept], [[row[n] for n in kept] for row in rows]


def link_cells(metrics: Mapping[str, Any], count: int = HOTTEST) -> list[list[str]]:
    """The hottest links, by share of capacity used over the whole run."""
    return [
        [link["name"], format_bytes(link["bytes"]), f"{link['utilisation']:.1%}"]
        for link in metrics["links"][:count]
    ]


def headline_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("completion", _or_dash(metrics["completion_s"], format_seconds)),
        ("bytes", format_bytes(metrics["bytes_total"])),
        ("bus bandwidth a GPU", _or_dash(metrics["bus_bandwidth_bytes_per_s"], format_bandwidth)),
        ("transport", f"{metrics['transport']} ({metrics['transport_kind']})"),
        ("links that carried traffic", f"{len(metrics['links']):,}"),
        ("rate solves", f"{metrics['solves']:,}"),
        ("wall clock", format_seconds(metrics["wall_clock_s"])),
    ]
    alone = metrics["rows"][0].get("alone_s")
    if alone is not None:
        low, value, high = (format_seconds(end) for end in alone)
        rests_on = metrics["rows"][0]["provenance"]
        rows.append(("time alone", f"{value}, 80% {low} to {high}, {rests_on}"))
    return rows + [("stalled", line) for line in metrics["stalled"]]


def _or_dash(value: float | None, show: Any) -> str:
    return "-" if value is None else str(show(value))


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table


# --- the fabric of a cluster


def fabric_tables(cluster: ClusterProfile) -> list[Table]:
    """A drawing of the fabric, its counts and cost at full size and as built, its latencies."""
    from rich.table import Table

    from hardware_profiles.schema import load_transport
    from simulator.hardware.network.clusters import fabric_inputs
    from simulator.hardware.network.topology import build_fabric, count_built, count_fabric, price

    topology = cluster.fabric.topology
    inputs = fabric_inputs(cluster, load_transport("ideal"))
    drawing = Table(title=f"fabric of {cluster.name}: {topology}", title_justify="left")
    drawing.add_column("")
    cost = Table(title="counts and cost", title_justify="left")
    cost.add_column("")
    for column in ("endpoints", "switches", "links", "cost", "an endpoint"):
        cost.add_column(column, justify="right")
    sizes = [("full size", count_fabric(topology, inputs))]
    try:
        fabric = build_fabric(topology, inputs)
    except ValueError as error:
        for line in (f"cannot be built: {error}", "counts below follow from the formula"):
            drawing.add_row(line)
    else:
        for line in draw_fabric(cluster):
            drawing.add_row(line)
        sizes.append((f"for {cluster.gpus:,} GPUs", count_built(fabric)))
    for label, counts in sizes:
        dollars = price(
            counts,
            switch_price=cluster.fabric.switch_price,
            link_price=cluster.fabric.link_price,
        )
        cost.add_row(
            label,
            f"{counts.endpoints:,}",
            f"{counts.switches:,}",
            f"{counts.links:,}",
            format_quantity(dollars, "price"),
            f"{dollars / counts.endpoints:,.0f} USD" if counts.endpoints else "-",
        )
    return [drawing, cost]


def draw_fabric(cluster: ClusterProfile) -> list[str]:
    """The fabric from top to bottom as lines of text."""
    from hardware_profiles.schema import load_transport
    from simulator.hardware.network.clusters import cluster_fabric

    fabric = cluster_fabric(cluster, load_transport("ideal"))
    inputs = fabric.inputs
    lines: list[str] = []
    if fabric.planes:
        network = fabric.planes[0]
        kinds: dict[str, int] = {}
        for name in network.switch_names:
            kind = name.split("/")[-1].rstrip("0123456789_")
            kinds[kind] = kinds.get(kind, 0) + 1
        order = {"core": 0, "spine": 0, "middle": 1, "leaf": 2}
        layers = sorted(kinds.items(), key=lambda item: order.get(item[0], 1))
        planes = len(fabric.planes)
        lines.append("1 plane" if planes == 1 else f"{planes} equal planes, each:")
        for depth, (kind, count) in enumerate(layers):
            boxes = " ".join(["[==]"] * min(count, 8)) + (" ..." if count > 8 else "")
            plural = "leaves" if kind == "leaf" and count > 1 else kind + "s" * (count > 1)
            lines.append(f"  {boxes}  {count:,} {plural} of {inputs.switch_ports} ports")
            if depth + 1 < len(layers):
                lines.append("   " + "|\\/|" * min(count, 8))
        cables = format_bandwidth(inputs.link_bandwidth)
        lines.append(f"  {network.links // 2:,} cables between switches, {cables} each way")
        lines.append("   ||")
        lines.append(
            f"  {network.end_ports:,} NIC ports, {format_bandwidth(inputs.nic_bandwidth)} each way"
        )
        lines.append("")
    per_node = inputs.gpus_per_node
    gpus = " ".join(["(GPU)"] * min(per_node, 8)) + (" ..." if per_node > 8 else "")
    noun = "node" if inputs.rdma_inside else "NVLink domain"
    lines.append(f"{inputs.nodes:,} x {noun} of {per_node} GPUs and {inputs.nics_per_node} NICs:")
    lines.append(f"  {gpus}")
    if inputs.nvlink_bandwidth is not None:
        rate = format_bandwidth(inputs.nvlink_bandwidth)
        lines.append(f"  =============== NVLink switch, {rate} a GPU each way")
    latency = [("NVLink", inputs.nvlink_latency)] if inputs.nvlink_bandwidth else []
    latency += [
        ("same leaf", inputs.same_leaf_latency),
        ("across leaves", inputs.cross_leaf_latency),
    ]
    lines.append("64-byte latency: " + ", ".join(f"{n} {format_seconds(t)}" for n, t in latency))
    lines.append(f"routing {inputs.routing}; a send to another plane: {inputs.cross_plane}")
    return lines


# --- run directory


def write_collective_run(
    run: Run[CollectiveResult], metrics: Mapping[str, Any], directory: Path
) -> None:
    """Write scenario, metrics, byte tables and report; all of it appears or nothing does."""
    import pandas as pd

    from reports.fabric_page import collective_page
    from reports.page import write_page
    from reports.run_directory import write_run
    from simulator.scenario.files import write_resolved

    def write_report(draft: Path) -> None:
        write_page(collective_page(run, metrics), draft)
        write_trace(collective_events(run.result), draft / PERFETTO_FILE)

    write_run(
        directory,
        scenario=write_resolved(run.scenario),
        metrics=metrics,
        tables={"links": link_table(run.result.last), "operations": pd.DataFrame(metrics["rows"])},
        write_report=write_report,
    )


def collective_events(result: CollectiveResult) -> Iterator[dict[str, Any]]:
    """A process per variant: its operations with their phases, an arrow from each phase to the one
    that waits for it, and counters of what all flows and the hottest links carry."""
    numbers = count(1)
    for process, variant in enumerate(result.variants, 1):
        topology, gpus = variant.fabric.topology, variant.operations[0].gpus
        yield from name_process(process, f"{topology} of {gpus:,} GPUs")
        for thread, operation in enumerate(variant.operations):
            track, name = (process, thread), operation.name
            yield from name_thread(track, name)
            phases = operation.phases
            end = max((phase[1] for phase in phases), default=operation.start_s)
            arguments = {"form": operation.algorithm, "bytes": operation.bytes_total}
            yield slice_of(track, name, (operation.start_s, end), arguments)
            for place, (start, last, payload) in enumerate(phases):
                many = f"phase {place + 1} of {len(phases)}"
                yield slice_of(track, many, (start, last), {"bytes": payload})
                if place:
                    before = within(phases[place - 1][:2], track)
                    yield from arrow(next(numbers), "waits for", before, (track, start))
                if last > start:
                    rate = {"bytes/s": payload / (last - start)}
                    yield counter(process, f"flows of {name} (bytes/s)", start, rate)
            yield counter(process, f"flows of {name} (bytes/s)", end, {"bytes/s": 0.0})
        order = np.argsort(-variant.link_utilisation, kind="stable")[:HOTTEST]
        for link in order.tolist():
            named = f"link {variant.link_names[link]} (% of capacity, mean)"
            use = {"%": 100 * float(variant.link_utilisation[link])}
            yield counter(process, named, 0.0, use)
            yield counter(process, named, variant.end_s, {"%": 0.0})


def link_table(variant: VariantResult) -> pd.DataFrame:
    """Bytes and use of every link that carried anything, hottest first."""
    import pandas as pd

    frame = pd.DataFrame(
        {
            "link": variant.link_names,
            "size_bytes": variant.link_bytes,
            "capacity_bytes_per_s": variant.fabric.capacity[variant.links],
            "utilisation": variant.link_utilisation,
        }
    )
    return frame.sort_values("utilisation", ascending=False, kind="stable", ignore_index=True)


def plane_heat(variant: VariantResult, plane: int) -> tuple[list[str], np.ndarray]:
    """Use of the cables out of each switch of a plane: (switch names, [switches, ports]).

    Unused and missing ports are NaN. Of planes with many switches, the busiest.
    """
    fabric = variant.fabric
    network = fabric.planes[plane]
    use = np.zeros(fabric.resources)
    use[variant.links] = variant.link_utilisation
    first = int(fabric.plane_start[plane]) + 2 * network.end_ports
    of_link = use[first : first + network.links]
    degree = np.bincount(network.link_source, minlength=network.switches)
    order = np.argsort(network.link_source, kind="stable")
    port = np.arange(network.links) - np.repeat(np.cumsum(degree) - degree, degree)
    heat = np.full((network.switches, int(degree.max(initial=0))), np.nan)
    heat[network.link_source[order], port] = of_link[order]
    rows = np.arange(network.switches)
    if len(rows) > _ROWS_DRAWN:
        busiest = np.argsort(-np.nansum(heat, axis=1), kind="stable")[:_ROWS_DRAWN]
        rows = np.sort(busiest)
    return [network.switch_names[row] for row in rows], heat[rows]


def nic_heat(variant: VariantResult) -> np.ndarray:
    """Use of each NIC's link into the network, [nics, nodes]."""
    fabric = variant.fabric
    use = np.zeros(fabric.resources)
    use[variant.links] = variant.link_utilisation
    nics = range(fabric.inputs.nics_per_node)
    starts = fabric.plane_start[fabric.nic_plane]
    return np.array([use[starts[nic] + fabric.end_port[:, nic]] for nic in nics])


def time_against_gpus(metrics: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """{operation, topology, routing and size: [(GPUs, seconds)]} where GPUs vary."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in metrics["rows"]:
        if row["completion_s"] is not None:
            size = "" if row["nodes_per_token"] else f", {format_bytes(row['size_bytes'])}"
            name = f"{row['operation']}, {SHORT_NAMES[row['topology']]}, {row['routing']}{size}"
            lines.setdefault(name, []).append((row["gpus"], row["completion_s"]))
    return {name: sorted(points) for name, points in lines.items() if len(points) > 1}
