"""What is shown of a serving step, of the bound on TPOT and of the offload server: runs in, tables
and files out.

A run directory of a serving step holds scenario, metrics, every task with start and end as parquet,
the kernels of each layer kind as CSV, a Perfetto trace of the iteration and a self-contained page;
those of the other two jobs hold scenario, metrics and page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardware_profiles.units import format_bandwidth, format_seconds, unit_factor
from reports.run_directory import write_run
from simulator.analysis.metrics import compare_published
from simulator.analysis.serving_metrics import serving_metrics
from simulator.execution.offload import offload_metrics
from simulator.execution.serving_run import OffloadRun, ServingRun, TpotLimitRun
from simulator.execution.tpot_limit import limit_metrics
from simulator.scenario import Scenario, write_resolved

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

_MICROSECOND = unit_factor("us", "time")

_HEADLINE = (
    "step_time_s",
    "pass_time_s",
    "tpot_s.mean",
    "input_tokens_per_second_per_gpu",
    "input_tokens_per_second_per_node",
    "output_tokens_per_second_per_gpu",
    "output_tokens_per_second_per_node",
    "tokens_per_second_per_user",
)


# -- metrics ---------------------------------------------------------------------------------------


def serving_run_metrics(run: ServingRun, *, with_intervals: bool = True) -> dict[str, Any]:
    """The JSON of a serving step, published figures beside it."""
    return _with_published(serving_metrics(run, with_intervals=with_intervals), run.scenario)


def limit_run_metrics(run: TpotLimitRun) -> dict[str, Any]:
    """The JSON of a bound on TPOT."""
    return _with_published(limit_metrics(run.limit), run.scenario)


def offload_run_metrics(run: OffloadRun) -> dict[str, Any]:
    """The JSON of a token on the offload server; its rows tell fitted from held-out."""
    return offload_metrics(run.step, server=run.server, config=run.scenario.model)


def _with_published(metrics: dict[str, Any], scenario: Scenario) -> dict[str, Any]:
    metrics["published"] = [
        asdict(compare_published(figure, metrics)) for figure in scenario.file.published
    ]
    return metrics


# -- tables ----------------------------------------------------------------------------------------


def serving_tables(name: str, metrics: Mapping[str, Any]) -> list[Table]:
    """Headline with its comparisons, and the kernels of a mixture-of-experts layer."""
    tables = [_headline(name, metrics), _kernels(metrics)]
    speculation = metrics["speculation"]
    if speculation is not None:
        tables.append(_gains(speculation))
    return [*tables, *_published(metrics)]


def limit_tables(name: str, metrics: Mapping[str, Any]) -> list[Table]:
    """The bound, and the bound without each idealisation."""
    from rich.table import Table

    table = Table(title=name, title_justify="left")
    for column in ("idealisation", "assumed", "instead", "TPOT then"):
        table.add_column(column, overflow="fold")
    table.add_row("none given up", "", "", format_seconds(metrics["tpot_s"]["mean"]))
    for item in metrics["idealisations"]:
        table.add_row(
            item["name"], item["assumed"], item["instead"], format_seconds(item["tpot_s"])
        )
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
    from rich.table import Table

    from reports.tables import format_metric

    table = Table(title=name, title_justify="left")
    comparisons: Mapping[str, Any] = metrics["comparisons"]
    table.add_column("metric")
    for column in ("simulated", *comparisons):
        table.add_column(column.replace("_", " "), justify="right")
    for path in _HEADLINE:
        values = [_at(metrics, path), *(_at(other, path) for other in comparisons.values())]
        shown = [format_metric(path.split(".")[0], v) for v in values if v is not None]
        if shown:
            table.add_row(path, *shown)
    if "interval_80" in metrics:
        interval = metrics["interval_80"]
        low, high = format_seconds(interval["low_s"]), format_seconds(interval["high_s"])
        table.add_row("80 % interval", f"{low} to {high}")
    for path in ("exposed_communication_s", "kv_cache_tokens_per_gpu", "largest_batch_per_gpu"):
        table.add_row(path, format_metric(path, metrics[path]))
    shares = ", ".join(f"{name} {share:.0%}" for name, share in metrics["error_share"].items())
    table.add_row("time that rests on", shares)
    table.add_row("transfers", _transfers(metrics["transfers"]))
    return table


def _transfers(transfers: Mapping[str, Any]) -> str:
    """What bounds dispatch and combine."""
    if transfers["link"] != "nic":
        return "over NVLink"
    fabric = transfers["fabric_bytes_per_s"]
    rate = format_bandwidth(transfers["link_bytes_per_s"])
    text = f"over NICs of {rate}"
    if transfers["nic_stretch"] > 1.0:
        text += f", {transfers['nic_stretch']:.2f} times longer for what is broken"
    if fabric is None:
        return f"{text}; no link between switches in their way"
    return f"{text}; other links let {format_bandwidth(fabric)} a GPU through"


def _kernels(metrics: Mapping[str, Any]) -> Table:
    """Kernels of one micro-batch of one mixture-of-experts layer."""
    from rich.table import Table

    table = Table(title="one expert layer, one micro-batch", title_justify="left")
    for column in ("part", "kernel", "sizes"):
        table.add_column(column, overflow="fold")
    for column in ("time", "80 % interval"):
        table.add_column(column, justify="right")
    table.add_column("from")
    for row in metrics["operators"]:
        if row["layer"] != "moe" or row["micro_batch"] != 0:
            continue
        low, high = (format_seconds(row[end], digits=3) for end in ("low_s", "high_s"))
        table.add_row(
            row["part"],
            row["name"],
            " ".join(f"{size}={value}" for size, value in row["sizes"].items()),
            format_seconds(row["seconds"]),
            f"{low} to {high}",
            row["provenance"],
        )
    return table


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
    published = speculation["published_speed_up"]
    if published is not None:
        table.caption += f" Published: {published:g}, beside, not fitted."
    return table


def _from_batch(batch: int | str) -> str:
    return batch if isinstance(batch, str) else f"from {batch} requests on"


def _published(metrics: Mapping[str, Any]) -> Iterator[Table]:
    from rich.table import Table

    if not metrics["published"]:
        return
    table = Table(title="published figures", title_justify="left")
    table.add_column("figure")
    for column in ("published", "simulated", "error"):
        table.add_column(column, justify="right")
    for row in metrics["published"]:
        table.add_row(
            row["name"],
            f"{row['published']:.5g}",
            f"{row['simulated']:.5g}",
            f"{row['error']:+.1%}",
        )
    yield table


def _at(metrics: Mapping[str, Any], path: str) -> float | None:
    value: Any = metrics
    for name in path.split("."):
        value = None if value is None else value[name]
    return value if value is None else float(value)


# -- files -----------------------------------------------------------------------------------------


REPORT_FILE = "report.html"

_COLOURS = ("#c98b2b", "#3b6ea8", "#8a8a86")
"""Of micro-batch 0, micro-batch 1, and layers that run on the whole batch."""
_LAYERS_SHOWN = 2
_WIDTH = 1200


def write_serving_run(run: ServingRun, metrics: Mapping[str, Any], directory: Path) -> None:
    """Write the run directory of a serving step; it appears whole or not at all."""
    import pandas as pd

    tasks = task_table(run)

    def write_report(draft: Path) -> None:
        tables = serving_tables(run.scenario.name, metrics)
        (draft / REPORT_FILE).write_text(page(run.scenario, tables, tasks), encoding="utf-8")
        trace = {"displayTimeUnit": "ms", "traceEvents": list(trace_events(tasks))}
        text = json.dumps(trace, separators=(",", ":"), allow_nan=False)
        (draft / "trace.json").write_text(text, encoding="utf-8")
        kernels = pd.DataFrame(metrics["operators"])
        kernels["sizes"] = [
            ";".join(f"{size}={value}" for size, value in sizes.items())
            for sizes in kernels["sizes"]
        ]
        kernels.to_csv(draft / "kernels.csv", index=False)

    write_run(
        directory,
        scenario=write_resolved(run.scenario),
        metrics=metrics,
        tables={"events": tasks},
        write_report=write_report,
    )


def write_limit_run(run: TpotLimitRun, metrics: Mapping[str, Any], directory: Path) -> None:
    """Write the run directory of a bound on TPOT."""
    _write_without_events(
        run.scenario, metrics, limit_tables(run.scenario.name, metrics), directory
    )


def write_offload_run(run: OffloadRun, metrics: Mapping[str, Any], directory: Path) -> None:
    """Write the run directory of a token on the offload server."""
    tables = offload_tables(run.scenario.name, metrics)
    _write_without_events(run.scenario, metrics, tables, directory)


def _write_without_events(
    scenario: Scenario, metrics: Mapping[str, Any], tables: Sequence[Table], directory: Path
) -> None:
    def write_report(draft: Path) -> None:
        (draft / REPORT_FILE).write_text(page(scenario, tables, None), encoding="utf-8")

    write_run(
        directory,
        scenario=write_resolved(scenario),
        metrics=metrics,
        tables={},
        write_report=write_report,
    )


def page(scenario: Scenario, tables: Sequence[Table], tasks: pd.DataFrame | None) -> str:
    """The self-contained page: the terminal's tables, a timeline of two layers, all inputs."""
    import jinja2

    from reports.tables import list_inputs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    shown = None if tasks is None else _middle_layers(tasks)
    bars = [] if shown is None else list(_bars(shown))
    span = 0.0 if shown is None else float(shown["end_s"].max() - shown["start_s"].min())
    return environment.get_template("serving.html.j2").render(
        name=scenario.name,
        description=scenario.file.description,
        tables=[_cells(table) for table in tables],
        streams=[] if shown is None else sorted(set(shown["stream"]), reverse=True),
        bars=bars,
        width=format_seconds(span),
        inputs=list(list_inputs(scenario.resolved)),
    )


def _cells(table: Table) -> dict[str, Any]:
    """A terminal table as plain text cells."""
    columns = [list(column.cells) for column in table.columns]
    right = [column.justify == "right" for column in table.columns[1:]]
    return {
        "title": str(table.title),
        "caption": "" if table.caption is None else str(table.caption),
        "columns": [str(column.header) for column in table.columns],
        "rows": [list(row) for row in zip(*columns, strict=True)],
        "numeric": all(right),
    }


def _middle_layers(tasks: pd.DataFrame) -> pd.DataFrame:
    """Tasks of a few expert layers in the middle of the iteration."""
    layers = list(dict.fromkeys(name for name in tasks["layer"] if name.startswith("moe")))
    first = max(0, len(layers) // 2 - 1)
    return tasks[tasks["layer"].isin(layers[first : first + _LAYERS_SHOWN])]


def _bars(tasks: pd.DataFrame) -> Iterator[dict[str, Any]]:
    origin = tasks["start_s"].min()
    scale = _WIDTH / (tasks["end_s"].max() - origin)
    streams = sorted(set(tasks["stream"]), reverse=True)
    columns = ("stream", "micro_batch", "layer", "name", "start_s", "end_s")
    for stream, number, layer, name, start, end in zip(
        *(tasks[column].tolist() for column in columns), strict=True
    ):
        yield {
            "row": streams.index(stream),
            "x": round((start - origin) * scale, 2),
            "width": round(max((end - start) * scale, 0.3), 2),
            "colour": _COLOURS[number],
            "title": f"{layer}, micro-batch {number}: {name}, {format_seconds(end - start)}",
        }


def task_table(run: ServingRun) -> pd.DataFrame:
    """Every task of the iteration in issue order, of the rank that ends last."""
    import pandas as pd

    step = run.step
    starts, ends = step.log.start_s, step.log.end_s
    if ends.ndim == 2:
        slowest = int(ends[-1].argmax())
        starts, ends = starts[:, slowest], ends[:, slowest]
    plan = step.model.plan
    names = [
        step.operators[plan.layers[task.layer], task.micro_batch].operators[task.position].name
        for task in plan.tasks
    ]
    return pd.DataFrame(
        {
            "layer": [f"{plan.layers[task.layer]} {task.layer}" for task in plan.tasks],
            "micro_batch": [task.micro_batch for task in plan.tasks],
            "part": [task.part for task in plan.tasks],
            "name": names,
            "stream": [str(task.stream) for task in plan.tasks],
            "start_s": starts,
            "end_s": ends,
        }
    )


def trace_events(tasks: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Slices of the iteration: one track a stream, one slice a task."""
    streams = list(dict.fromkeys(tasks["stream"]))
    for thread, stream in enumerate(streams):
        yield {"ph": "M", "pid": 1, "tid": thread, "name": "thread_name", "args": {"name": stream}}
    columns = ("stream", "name", "layer", "micro_batch", "part", "start_s", "end_s")
    for stream, name, layer, number, part, start, end in zip(
        *(tasks[column].tolist() for column in columns), strict=True
    ):
        first, last = (round(instant / _MICROSECOND, 3) for instant in (start, end))
        yield {
            "ph": "X",
            "pid": 1,
            "tid": streams.index(stream),
            "name": name,
            "ts": first,
            "dur": round(last - first, 3),
            "args": {"layer": layer, "micro_batch": number, "part": part},
        }
