"""The tables of a training run that every figure reads.

Tables are pandas frames with one row an event and SI columns (start_s, end_s, bytes_read ...), the
same ones that a run directory stores.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardware_profiles.units import Bytes, format_bandwidth, format_bytes, format_seconds
from reports.palette import CAUSES
from simulator.analysis.every_metric import metric_of
from simulator.analysis.published import beside
from simulator.scenario.changes import shown
from simulator.scenario.files import Scenario, write_resolved
from simulator.scenario.training import TrainingJob
from simulator.workload.recipes import RECIPES

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from simulator.analysis.training_attribution import Cause
    from simulator.execution.training import TrainingRun, TrainingStep
    from simulator.execution.training_chunks import ChunkRun

_GROUPED = 10_000
"""From here on a plain count is shown without decimals."""

_FEW = 100
"""Below this a price is shown with decimals."""

_LARGE = ((10.0**12, "trillion"), (10.0**9, "billion"))
"""(number, what people call it), the largest first: from there on figures count in it."""

_FEW_PATHS = 3
"""Changed paths of a file that are named."""

OPTIMIZER = "optimizer"
"""Work of the rows that follow the last micro-batch."""

PHASE_LETTERS: Mapping[str, str] = {"forward": "F", "input_grad": "B", "weight_grad": "W"}
"""Phases as DeepSeek's figures write them."""

COMPARED = (
    "step_time_s",
    "pass_time_s",
    "completion_s",
    "span_s",
    "measured_span_s",
    "bubble_s",
    "peak_memory_bytes",
    "pair_time_s",
    "mfu_causal",
    "tflops_per_gpu_causal",
    "tokens_per_day",
    "tokens_per_second_per_gpu",
    "gpu_hours_per_trillion_tokens",
    "cost_usd_per_trillion_tokens",
    "ranks.0.forward_s",
    "ranks.0.backward_s",
    "ranks.0.weight_s",
    "ranks.0.overlapped_s",
    "ranks.0.bubble_s",
    "ranks.0.optimizer_s",
    "ranks.0.exposed_communication_s",
    "ranks.0.hidden_communication_s",
    "ttft_s.mean",
    "ttft_s.p99",
    "tpot_s.mean",
    "tpot_s.p99",
    "itl_s.p99",
    "e2e_s.mean",
    "goodput_requests_per_second",
    "output_tokens_per_second_per_gpu",
    "input_tokens_per_second_per_gpu",
    "output_tokens_per_second_per_node",
    "input_tokens_per_second_per_node",
    "tokens_per_second_per_user",
    "prefix_hit_rate",
    "kv_occupancy",
    "nodes",
    "cost_usd_per_million_output_tokens",
)
"""Metrics of all jobs in the order in which they are shown beside each other."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a run, with where it comes from."""

    field: str
    value: str
    interval: str
    """Its range, empty where none is given."""
    kind: str
    """given, sourced, derived, estimated or assumed."""
    source: str


@dataclass(frozen=True, slots=True)
class RunTables:
    """All that a report of a training run shows."""

    name: str
    description: str
    facts: Mapping[str, str]
    """What ran on what, a few words each."""
    actions: pd.DataFrame
    """One row an action or part of the optimizer step: rank, index, label, work, chunk, start_s,
    end_s ..."""
    operators: pd.DataFrame
    """One row an operator of a distinct chunk: chunk, stream, name, kind, phase, segment, layer,
    dtype, sizes, start_s, end_s (from the chunk's start), low_s, high_s, provenance, flops,
    bytes."""
    pair: str
    """Name in operators.chunk of the overlapped pair of the published profile."""
    stages: tuple[str, ...]
    """[rank]: its stages, for titles."""
    metrics: Mapping[str, Any]
    published: tuple[str, ...]
    """Paths in the metrics of the rows of metrics["published"], in their order."""
    changed: str
    """What was changed of the scenario, a sentence, and which published figures that leaves out."""
    memory_capacity: Bytes
    """Memory of one GPU."""
    inputs: tuple[Input, ...]
    scenario: str
    """The resolved scenario as YAML."""

    @property
    def pair_operators(self) -> pd.DataFrame:
        return self.operators[self.operators["chunk"] == self.pair]


def training_tables(run: TrainingRun, metrics: Mapping[str, Any]) -> RunTables:
    """Collect what the report of a training run shows."""
    layout, cluster, job = run.layout, run.scenario.cluster, run.job
    pair = str(run.step.pair.key)
    return RunTables(
        name=run.scenario.name,
        description=run.scenario.file.description.partition("; changed:")[0],
        facts={
            "cluster": f"{layout.gpus:,} of {cluster.nodes * cluster.node.gpus:,} GPUs, "
            f"{cluster.name} ({cluster.node.gpu.name})"
            + (f"; {idle}" if (idle := metrics["idle_nodes"]) else ""),
            "layout": layout.name,
            "NVLink domains": layout.in_domains,
            "schedule": f"{run.schedule.name}, {run.schedule.microbatches} micro-batches of "
            f"{job.micro_batch_tokens:,} tokens",
            "stages": ", ".join(metrics["stages"]),
            **({"uneven": warning} if (warning := " ".join(metrics["warnings"])) else {}),
            "step": f"{job.step_tokens:,} tokens",
            "precision": f"{job.recipe} products; {job.optimizer.gradients} gradients, "
            f"{job.optimizer.master} master weights, {job.optimizer.moments} moments",
            **state_rows(job, metrics),
            "operator times": f"{run.scenario.file.cost_model} cost model, "
            f"calibration {run.scenario.calibration.name}",
            **dict(kernels_rows(metrics)),
        },
        actions=action_table(run.step),
        operators=_operator_table(run.step),
        pair=pair,
        stages=tuple(
            ", ".join(str(stage) for stage in run.schedule.stages_of(rank))
            for rank in range(run.schedule.ranks)
        ),
        metrics=metrics,
        published=tuple(figure.metric for figure in run.scenario.file.published),
        changed=changed_text(run.scenario),
        memory_capacity=cluster.node.gpu.hbm_capacity,
        inputs=tuple(list_inputs(run.scenario.resolved)),
        scenario=write_resolved(run.scenario),
    )


def state_rows(job: TrainingJob, metrics: Mapping[str, Any]) -> dict[str, str]:
    """{name: text} of how the state of parameters is shared, and of what lies in CPU memory."""
    when = {"exposed": "beside nothing", "overlapped": "beside compute"}
    shared = f"ZeRO-{job.zero}, gradients reduced {when[job.gradient_reduction]}"
    if job.zero:
        shared += f", parameters gathered {when[job.parameter_gather]}"
    rows = {"state": shared}
    if "cpu_memory" in metrics:
        found = metrics["cpu_memory"]
        rows["CPU memory"] = (
            f"{format_bytes(found['node_bytes'])} per node; per GPU optimizer "
            f"{format_bytes(found['optimizer_bytes'])}, moving averages "
            f"{format_bytes(found['averages_bytes'])} ({format_seconds(found['averages_s'])} "
            f"beside the next step); over PCIe {format_bytes(found['to_cpu_bytes'])} to the CPU, "
            f"{format_bytes(found['to_gpu_bytes'])} back"
        )
    return rows


def kernels_rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, text) of whose kernels a run is predicted with, and of what others would give."""
    kernels = metrics["kernels"]
    restated = "" if kernels["basis"] != "datasheet" else f", restated for {kernels['gpu']}"
    text = f"{kernels['kind']}: {kernels['calibration']}, of {kernels['measured_on']}{restated}"
    if "name" in kernels:
        text += f"; {kernels['name']} ({kernels['date']})"
    if "made_for" in kernels:
        text += f"; kernels of {kernels['made_for']}, not of this job"
    yield "kernels", text
    if "time_by_calibration" in kernels:
        shares = sorted(kernels["time_by_calibration"].items(), key=lambda of: -of[1])
        yield (
            "kernel time decided by",
            ", ".join(f"{name} {share:.1%}" for name, share in shares),
        )
    if "recipe" in kernels:
        yield "recipe", RECIPES[kernels["recipe"]].label
    if "fp8_cache" in kernels:
        ratio = kernels["fp8_cache"]
        yield (
            "FP8 KV cache",
            f"attention core {ratio['value']:g} ({ratio['low']:g} to {ratio['high']:g}) times as "
            "long as over a BF16 cache, modelled",
        )
    elif kernels.get("kv_cache") == "fp8_e4m3":
        yield "FP8 KV cache", "changes what fits; prefill decompresses keys and values in BF16"
    other = metrics.get("other_kernels")
    if other is not None:
        found = (
            f"no prediction: {other['reason']}"
            if "reason" in other
            else f"{format_metric(other['metric'], other['seconds'])}, {other['ratio']:.2f} of this"
        )
        yield f"with {other['kind']} kernels", f"{found} ({other['calibration']})"


def left_out_note(scenario: Scenario) -> str:
    """How many of its file's published figures a scenario leaves out, and why; empty if none."""
    if not scenario.figures_left_out:
        return ""
    count = len(scenario.figures_left_out)
    figures = "1 published figure is" if count == 1 else f"{count} published figures are"
    paths, others = scenario.other_inputs[:_FEW_PATHS], scenario.other_inputs[_FEW_PATHS:]
    listed = shown(scenario.changes or (*paths, *(("...",) if others else ())))
    return f"{figures} left out, being for other inputs (changed: {listed})."


def changed_text(scenario: Scenario) -> str:
    """What was changed of a scenario as it is written, a sentence."""
    changes = ", ".join(scenario.changes) or "Nothing: the scenario as it is written"
    return f"{changes}. {left_out_note(scenario)}".strip()


def action_table(step: TrainingStep) -> pd.DataFrame:
    """Every action of every rank, then the parts of its optimizer step, by rank and start."""
    import pandas as pd

    frame = pd.DataFrame(step.pipeline.columns())
    frame["chunk"] = [str(key) for row in step.keys for key in row]
    rows = []
    ends = step.pipeline.begin_s + step.pipeline.makespan_s
    for rank, optimizer in enumerate(step.optimizer):
        start, index = float(ends[rank]), len(step.keys[rank])
        for label, seconds in (
            ("reduce gradients", optimizer.reduce_s),
            *([("orthogonalize", optimizer.orthogonalize_s)] if optimizer.products else []),
            ("update parameters", optimizer.update_s),
            *zip(("copy over PCIe", "update on the CPU"), optimizer.on_cpu_s or (), strict=False),
            ("gather parameters", optimizer.gather_s),
        ):
            rows.append(
                {
                    "rank": rank,
                    "index": index,
                    "label": label,
                    "work": OPTIMIZER,
                    "stage": -1,
                    "microbatch": -1,
                    "overlapped_stage": -1,
                    "overlapped_microbatch": -1,
                    "chunk": "",
                    "start_s": start,
                    "end_s": start + seconds,
                }
            )
            start, index = start + seconds, index + 1
    both = pd.concat([frame, pd.DataFrame(rows)], ignore_index=True)
    return both.sort_values(["rank", "index"], ignore_index=True)


def _operator_table(step: TrainingStep) -> pd.DataFrame:
    """The operators of every distinct chunk and pair, once each, and of the published pair."""
    import pandas as pd

    runs = {str(key): chunk for key, chunk in step.chunks.items()}
    runs.setdefault(str(step.pair.key), step.pair)
    return pd.concat([_chunk_operators(name, run) for name, run in runs.items()], ignore_index=True)


def _chunk_operators(chunk: str, run: ChunkRun) -> pd.DataFrame:
    import pandas as pd

    tasks = run.log.graph.tasks
    operators = run.log.graph.task_operators()
    return pd.DataFrame(
        {
            "chunk": chunk,
            "stream": [str(task.stream) for task in tasks],
            "name": [operator.name for operator in operators],
            "kind": [operator.kind for operator in operators],
            "phase": [operator.phase for operator in operators],
            "segment": [operator.segment for operator in operators],
            "layer": [run.log.graph.layers[task.layer] for task in tasks],
            "dtype": [operator.dtype for operator in operators],
            "sizes": [
                ", ".join(f"{name}={size}" for name, size in operator.sizes)
                for operator in operators
            ],
            "start_s": run.log.start_s,
            "end_s": run.log.end_s,
            "low_s": run.cost.low,
            "high_s": run.cost.high,
            "provenance": run.cost.provenance_names(),
            "flops": [operator.flops for operator in operators],
            "bytes": [operator.bytes_read + operator.bytes_written for operator in operators],
        }
    )


def blocks(operators: pd.DataFrame) -> pd.DataFrame:
    """Runs of operators of one segment, phase and layer of a chunk, with a name such as "attn(F)".

    Columns chunk, stream, layer, phase, block, start_s, end_s; in order of start by stream.
    """
    ordered = operators.sort_values(["chunk", "stream", "start_s"], kind="stable")
    columns = ordered[["chunk", "stream", "layer", "segment", "phase"]]
    number = (columns != columns.shift()).any(axis=1).cumsum()
    grouped = ordered.groupby(number, sort=False).agg(
        chunk=("chunk", "first"),
        stream=("stream", "first"),
        layer=("layer", "first"),
        segment=("segment", "first"),
        phase=("phase", "first"),
        start_s=("start_s", "min"),
        end_s=("end_s", "max"),
    )
    short = grouped["segment"].replace({"attention": "attn"})
    grouped["block"] = short + "(" + grouped["phase"].map(PHASE_LETTERS) + ")"
    return grouped.reset_index(drop=True)


def causes(metrics: Mapping[str, Any]) -> list[Cause]:
    """The attribution of a training step in order, without its remainder."""
    from simulator.analysis.training_attribution import Cause

    rows = (Cause(**cause) for cause in metrics["attribution"])
    return [cause for cause in rows if cause.name in CAUSES]


def format_metric(path: str, value: float) -> str:
    """A figure of a run as text, in the unit of its metric; counts and rates stand for themselves.

    A figure that is no metric of a run, of a replay, says its unit in its name: "span_s".
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    metric = metric_of(path)
    if metric is not None:
        return _BY_UNIT.get(metric.unit, _number)(value)
    for ending, unit in _UNIT_OF_ENDING.items():
        if path.endswith(ending):
            return _BY_UNIT[unit](value)
    return _number(value)


def format_published(path: str, value: float) -> str:
    """A published or simulated figure with its unit written out: "14,800 tokens/s"."""
    text, metric = format_metric(path, value), metric_of(path)
    if metric is None or not metric.unit or metric.unit in _BY_UNIT:
        return text
    return f"{text} {metric.unit}"


PUBLISHED_COLUMNS = ("figure", "published", "expected", "error", "ideal", "80% interval", "kind")
"""Heads of `published_cells`."""


def published_cells(row: Mapping[str, Any]) -> list[str]:
    """A published figure beside the simulated one, as the cells of a table: name, both values,
    difference, the value with equal ranks, interval, and what the simulated one is."""
    known, path = row["simulated"] is not None, row["metric"]
    ends = row.get("interval_80")
    interval = format_interval(path, ends) if ends else ""
    if ends and not ends[0] <= row["published"] <= ends[1]:
        interval += ", outside"
    return [
        row["name"],
        format_published(path, row["published"]),
        format_published(path, row["simulated"]) if known else "-",
        f"{row['error']:+.1%}" if known else "-",
        "" if row.get("ideal") is None else format_metric(path, row["ideal"]),
        interval,
        row["kind"],
    ]


def told_columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[int, str]:
    """{place: head} of the columns that are not empty in all rows. Where no row has a value with
    equal ranks, nothing waits and the run's own value is no expectation over ranks that differ:
    "expected" becomes "simulated"."""
    told = {p: head for p, head in enumerate(heads) if any(row[p] for row in rows)}
    if "ideal" in told.values():
        return told
    return {p: "simulated" if head == "expected" else head for p, head in told.items()}


def published_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Published figures beside those of a run, without columns that are empty in all rows."""
    from rich.table import Table

    table = Table(title="beside published figures", title_justify="left")
    cells = [published_cells(row) for row in rows]
    told = told_columns(PUBLISHED_COLUMNS, cells)
    for name in told.values():
        table.add_column(name, justify="left" if name in ("figure", "kind") else "right")
    for row in cells:
        table.add_row(*(row[place] for place in told))
    return table


def beside_cells(metrics: Mapping[str, Any], path: str) -> list[str]:
    """What stands beside a metric: its value with equal ranks, and its 80% interval; "" each where
    the run has none."""
    ideal, ends = beside(metrics, "ideal", path), beside(metrics, "interval_80", path)
    return [
        "" if ideal is None else format_metric(path, ideal),
        "" if ends is None else format_interval(path, ends),
    ]


def format_interval(path: str, ends: Sequence[float]) -> str:
    """Both ends of an interval of a metric, their unit once where they share it."""
    low, high = (format_metric(path, end) for end in ends)
    value, space, unit = low.partition(" ")
    if space and high.endswith(f" {unit}"):
        low = value
    return f"{low} to {high}"


def interval_text(low: float, high: float) -> str:
    """Both ends of an interval of a time, their unit once where they share it."""
    ends = [format_seconds(end, digits=3) for end in (low, high)]
    value, _, unit = ends[0].partition(" ")
    if ends[1].endswith(f" {unit}"):
        ends[0] = value
    return " to ".join(ends)


def _percent(value: float) -> str:
    return f"{value:.2%}"


def _tera_flops(value: float) -> str:
    return f"{value:.1f} TFLOP/s"


def _dollars(value: float) -> str:
    return f"{value:,.0f} USD" if abs(value) >= _FEW else f"{value:.3g} USD"


def _ratio(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.4g}"


def _number(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) < 1:
        return f"{value:.3g}"
    for size, name in _LARGE:
        if abs(value) >= size:
            return f"{value / size:,.1f} {name}"
    return f"{value:,.1f}" if value < _GROUPED else f"{value:,.0f}"


_BY_UNIT: Mapping[str, Callable[[float], str]] = {
    "bytes/s": format_bandwidth,
    "s": format_seconds,
    "bytes": format_bytes,
    "share": _percent,
    "TFLOP/s": _tera_flops,
    "USD": _dollars,
    "ratio": _ratio,
}
_UNIT_OF_ENDING = {"_bytes_per_s": "bytes/s", "_s": "s", "_bytes": "bytes", "_share": "share"}


def list_inputs(resolved: Mapping[str, Any]) -> Iterator[Input]:
    """Every input of a resolved scenario that says where it comes from, in file order.

    Two forms carry a source: fields named in the `sources` beside them, and a value with its own
    source and interval.
    """
    yield from _inputs(resolved, "")


def _inputs(node: Any, path: str) -> Iterator[Input]:
    if not isinstance(node, Mapping):
        return
    if "source" in node and "value" in node and "metric" not in node:
        interval = f"{node['low']} to {node['high']}" if {"low", "high"} <= node.keys() else ""
        yield _input(path, node["value"], interval, node["source"])
        return
    sources = node.get("sources") or {}
    for name, value in node.items():
        if name == "sources":
            continue
        inner = f"{path}.{name}" if path else str(name)
        if name in sources:
            yield _input(inner, _plain(value), "", sources[name])
        yield from _inputs(value, inner)


def _input(path: str, value: Any, interval: str, source: str) -> Input:
    words = {"assumed": "assumed", "estimate": "estimated", "derived": "derived"}
    words |= {"inferred": "derived", "given": "given"}
    first = source.replace(":", " ").replace(",", " ").split(maxsplit=1)
    kind = words.get(first[0].lower(), "sourced") if first else "sourced"
    return Input(path, _plain(value), interval, kind, source)


def _plain(value: Any) -> str:
    """A value on one line; of a mapping with a name only the name, its fields follow."""
    if isinstance(value, Mapping):
        if "name" in value:
            return str(value["name"])
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, str) and value.endswith(" B"):
        return format_bytes(float(value.removesuffix(" B")))
    return str(value)


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame as CSV, so that no text in it is a formula for a spreadsheet that opens it."""
    safe = frame.rename(columns=_no_formula)
    for name in safe.select_dtypes(exclude=["number", "bool"]).columns:
        safe[name] = safe[name].map(_no_formula)
    safe.to_csv(path, index=False)


def write_csv_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The same of rows with the same columns, without a frame; None is an empty cell."""
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(map(_no_formula, rows[0]))
        lines.writerows(map(_no_formula, row.values()) for row in rows)


def _no_formula(cell: Any) -> Any:
    """A text that would be a formula behind an apostrophe, which spreadsheets take for text."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What texts begin with that spreadsheets compute."""
