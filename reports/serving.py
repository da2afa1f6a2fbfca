"""Tables and files of serving steps, of bounds on TPOT and of the offload server.

A run directory of a serving step holds scenario, metrics, every task with start and end as parquet,
the kernels of each layer kind as CSV, a Perfetto trace of the iteration and a page; those of the
other two jobs hold scenario, metrics and page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hardware_profiles.units import format_bandwidth, format_bytes, format_seconds
from reports.events import events_tables, write_ranks_trace
from reports.perfetto import (
    PERFETTO_FILE,
    counter,
    name_process,
    name_thread,
    slice_of,
    write_trace,
)
from reports.run_directory import write_run
from simulator.analysis.every_metric import leading
from simulator.execution.serving_run import ServingRun

if TYPE_CHECKING:
    from rich.table import Table

    from simulator.analysis.run import Run

_LONG_NAME = 30
"""Characters of the name of a kernel that fit on one line."""


# -- tables ----------------------------------------------------------------------------------------


def serving_tables(name: str, metrics: Mapping[str, Any]) -> list[Table]:
    """Headline with its comparisons, the kernels of a mixture-of-experts layer, and what else the
    run is compared to."""
    drafting = metrics["speculative_decoding"]
    gains = () if drafting is None else (_gains(drafting),)
    return [
        _headline(name, metrics),
        _kernels(metrics),
        *gains,
        *_published(metrics),
        *events_tables(metrics),
    ]


def limit_tables(name: str, metrics: Mapping[str, Any]) -> list[Table]:
    """The bound, and the bound without each idealisation that model or network replace."""
    from rich.table import Table

    table = Table(title=name, title_justify="left")
    for column in ("idealisation", "assumed", "instead", "TPOT then"):
        table.add_column(column, overflow="fold")
    table.add_row("none given up", "", "", format_seconds(metrics["tpot_s"]["mean"]))
    for item in metrics["idealisations"]:
        without = "" if item["tpot_s"] is None else format_seconds(item["tpot_s"])
        table.add_row(item["name"], item["assumed"], item["instead"] or "", without)
    return [table, *_published(metrics)]


def offload_tables(name: str, metrics: Mapping[str, Any]) -> list[Table]:
    """Token time, its parts, and the published rows beside the simulated ones."""
    from rich.table import Table

    from reports.tables import format_metric

    table = Table(title=name, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for metric, value in metrics.items():
        if isinstance(value, int | float):
            table.add_row(metric, format_metric(metric, value))
    return [table, *_published(metrics)]


def _headline(name: str, metrics: Mapping[str, Any]) -> Table:
    """Figures beside those of ideal ranks and of the same iteration with one thing changed; below
    it in words what they rest on."""
    from rich.table import Table

    from reports.tables import beside_cells, format_metric, told_columns

    comparisons = {
        case.replace("_", "\n"): other
        for case, other in metrics["comparisons"].items()
        if case != "ideal_ranks"  # They have the column "ideal" as in every table.
    }
    rows = []
    for path in leading_paths(metrics):
        values = (figure_at(of, path) for of in (metrics, *comparisons.values()))
        first, *others = ("" if v is None else format_metric(path, v) for v in values)
        rows.append((path, first, *beside_cells(metrics, path), *others))
    table = Table(title=name, title_justify="left", caption_justify="left")
    told = told_columns(("metric", "expected", "ideal", "80% interval", *comparisons), rows)
    for place, head in told.items():
        table.add_column(head, justify="right" if place else "left", no_wrap=place != 0)
    for row in rows:
        table.add_row(*(row[place] for place in told))
    table.caption = "\n".join(f"{what}: {text}" for what, text in _basis(metrics))
    return table


def _basis(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(what, text) of what the figures of a step rest on."""
    from reports.tables import kernels_rows

    shares = (f"{share:.0%} {name}" for name, share in metrics["error_share"].items() if share)
    yield "kernel time", ", ".join(shares)
    yield from kernels_rows(metrics)
    yield "transfers", transfers_text(metrics["transfers"])
    split = [
        f"{part.replace('_', ' ')} over {gpus}"
        for part, gpus in metrics["tensor_parallel"].items()
        if gpus > 1
    ]
    if split:
        yield "split over GPUs", ", ".join(split)
    yield "expert loads", expert_loads(metrics["experts"]).replace("; ", "\n  ")


def expert_loads(experts: Mapping[str, Any]) -> str:
    """How uneven GPUs and links are, and what moving experts costs."""
    text = f"{experts['load']}, busiest GPU {experts['compute_max_over_mean']:.3f} of the mean"
    if experts["link_bytes"] is not None:
        carried = ", ".join(
            f"{name} {format_bytes(link['busiest'])}"
            for name, link in experts["link_bytes"].items()
        )
        text += f"; over its link in a layer and micro-batch: {carried}"
    moved = experts["rebalance"]
    if moved is not None:
        text += (
            f"; rebalancing moves {format_bytes(moved['bytes_per_gpu'])} to a GPU in "
            f"{format_seconds(moved['seconds'])}, {moved['share']:.2%} of the time"
        )
    active, even = (experts[f"active_experts_per_gpu_{of}"] for of in ("mean", "balanced"))
    if even is not None and f"{active:.1f}" != f"{even:.1f}" and active < even:
        text += (
            f"; a GPU reads the weights of {active:.1f} experts per layer and micro-batch, "
            f"{even:.1f} with balanced loads: what skew saves by leaving experts without tokens"
        )
    for policy, balance in experts["placement"].items():
        text += (
            f"; {policy.replace('_', ' ')} leaves {balance['placed']:.3f} in the window of the "
            f"placement, {balance['served']:.3f} in the one served"
        )
    return text


def transfers_text(transfers: Mapping[str, Any]) -> str:
    """What carries dispatch and combine, and what bounds them."""
    form = f"{transfers['low_latency']}, " if "low_latency" in transfers else ""
    if transfers["link"] == "nvlink":
        return f"{form}over NVLink"
    fabric = transfers["fabric_bytes_per_s"]
    rate = format_bandwidth(transfers["link_bytes_per_s"])
    text = f"{form}over NICs of {rate}"
    if transfers["link"] == "mixed":
        text += f" but for {transfers['nvlink_share']:.0%} of the copies, which NVLink carries"
    if transfers["nic_stretch"] > 1.0:
        text += f", {transfers['nic_stretch']:.2f} times longer for what is broken"
    if fabric is None:
        return f"{text}; no link between switches in their way"
    return f"{text}; other links let {format_bandwidth(fabric)} a GPU through"


def _kernels(metrics: Mapping[str, Any]) -> Table:
    """Kernels of one micro-batch of one mixture-of-experts layer."""
    from rich import box
    from rich.table import Table

    from reports.tables import interval_text

    table = Table(
        title="one expert layer, one micro-batch", title_justify="left", box=box.SIMPLE_HEAD
    )
    table.add_column("kernel", no_wrap=True)
    for column in ("time", "80% interval"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("from", no_wrap=True)
    table.add_column("sizes", overflow="fold")
    for row in metrics["operators"]:
        if row["layer"] != "moe" or row["micro_batch"] != 0:
            continue
        table.add_row(
            _on_lines(row["name"]),
            format_seconds(row["seconds"]),
            interval_text(row["low_s"], row["high_s"]),
            row["provenance"],
            " ".join(f"{size}={value}" for size, value in row["sizes"].items()),
        )
    return table


def _on_lines(name: str) -> str:
    """The name of a kernel, its last part on a line of its own where it is long."""
    first, dot, last = name.rpartition(".")
    return f"{first}\n  {dot}{last}" if len(name) > _LONG_NAME else name


def _gains(speculation: Mapping[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title="what drafting gains, by requests of the deployment", title_justify="left")
    for column in (
        "requests", "step", "step without", "speed-up",
        "speed-up of experts alone", "experts touched", "without",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for point in speculation["by_batch"]:
        table.add_row(
            str(point["batch"]),
            format_seconds(point["step_s"]),
            format_seconds(point["step_without_s"]),
            f"{point['speed_up']:.3f}",
            f"{point['experts_speed_up']:.3f}",
            f"{point['active_experts']:.1f}",
            f"{point['active_experts_without']:.1f}",
        )
    table.caption = (
        f"Best gain at {speculation['batch_of_best_gain']} requests, least at "
        f"{speculation['batch_of_least_gain']}; stops paying "
        f"{_from_batch(speculation['stops_paying_from_batch'])}."
    )
    return table


def _from_batch(batch: int | str) -> str:
    return batch if isinstance(batch, str) else f"from {batch} requests on"


def _published(metrics: Mapping[str, Any]) -> Iterator[Table]:
    from reports.tables import published_table

    if metrics["published"]:
        yield published_table(metrics["published"])


def leading_paths(metrics: Mapping[str, Any]) -> list[str]:
    """Paths of the figures that a serving step begins with, of those that its phase has."""
    named = {name: metrics[name] for name in leading("serving_step")}
    return [
        f"{name}.mean" if isinstance(value, Mapping) else name
        for name, value in named.items()
        if value is not None
    ]


def figure_at(metrics: Mapping[str, Any], path: str) -> float | None:
    """The figure at a path, a count as a whole number; None where there is none."""
    value: Any = metrics
    for name in path.split("."):
        value = None if value is None else value.get(name)
    found: float | None = value
    return found


# -- files -----------------------------------------------------------------------------------------


def write_serving_run(run: Run[ServingRun], metrics: Mapping[str, Any], directory: Path) -> None:
    """Write the run directory of a serving step; it appears whole or not at all."""
    from reports.page import write_page
    from reports.parquet import write_columns
    from reports.serving_page import step_page
    from reports.tables import write_csv_rows

    tasks = task_columns(run.result)
    page = step_page(run.scenario, metrics, tasks)

    def write_report(draft: Path) -> None:
        numbers = np.array(tasks["micro_batch"], dtype=np.int64)
        write_columns({**tasks, "micro_batch": numbers}, draft / "events.parquet")
        write_page(page, draft)
        write_trace(serving_events(run.result), draft / PERFETTO_FILE)
        kernels = [
            row | {"sizes": ";".join(f"{size}={value}" for size, value in row["sizes"].items())}
            for row in metrics["operators"]
        ]
        write_csv_rows(kernels, draft / "kernels.csv")
        if run.events is not None:
            write_ranks_trace(run.events, draft)

    write_run(
        directory,
        scenario=page.scenario,
        metrics=metrics,
        tables={},
        write_report=write_report,
    )


def task_columns(run: ServingRun) -> dict[str, list[Any]]:
    """{column: [tasks]}, every task of the iteration of ideal ranks, in issue order."""
    step = run.step
    graph = step.log.graph
    return {
        "layer": [f"{graph.layers[task.layer]} {task.layer}" for task in graph.tasks],
        "micro_batch": [task.micro_batch for task in graph.tasks],
        "part": [task.part for task in graph.tasks],
        "name": [operator.name for operator in graph.task_operators()],
        "stream": [str(task.stream) for task in graph.tasks],
        "start_s": step.log.start_s.tolist(),
        "end_s": step.log.end_s.tolist(),
    }


def serving_events(run: ServingRun) -> Iterator[dict[str, Any]]:
    """The iteration of one rank: a track per stream with its tasks, arrows where one stream waits
    for the other, and counters of HBM, transfers, SMs and KV cache."""
    from reports.timeline import STREAMS, uses_of, waits_of

    tasks, log = task_columns(run), run.step.log
    yield from name_process(1, f"one rank: {run.job.phase}")
    for thread, stream in enumerate(STREAMS):
        yield from name_thread((1, thread), stream)
    columns = ("stream", "name", "layer", "micro_batch", "part", "start_s", "end_s")
    for stream, name, layer, number, part, start, end in zip(
        *(tasks[column] for column in columns), strict=True
    ):
        arguments = {"layer": layer, "micro_batch": number, "part": part}
        yield slice_of((1, STREAMS.index(stream)), name, (start, end), arguments)
    yield from waits_of(log, 1, count(1))
    yield from uses_of(log, 1, sms=run.job.communication_sms)
    cache = {"held": float(run.kv.needed_tokens), "free": run.kv.tokens - run.kv.needed_tokens}
    for at in (0.0, log.span_s):
        yield counter(1, "KV cache (tokens)", at, cache)
