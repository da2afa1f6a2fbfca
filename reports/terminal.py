"""Tables of metrics and profiles for the terminal. Nothing is printed here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby, zip_longest
from statistics import mean
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table

from hardware_profiles.units import format_bytes, format_seconds, unit_factor
from reference_model.parameter_counts import parameter_counts, training_flops_per_token
from reports.tables import (
    COMPARED,
    PUBLISHED_COLUMNS,
    beside_cells,
    format_metric,
    kernels_rows,
    list_inputs,
    published_cells,
    published_table,
    told_columns,
)
from simulator.analysis.every_metric import leading
from simulator.analysis.published import PublishedRow, metric_at
from simulator.analysis.validation import coverage_of, median_error
from simulator.workload.recipes import RECIPES
from simulator.workload.serving_memory import kv_bytes_per_token, weight_bytes

if TYPE_CHECKING:
    from reference_model.config import ModelConfig
    from simulator.analysis.model_comparison import ModelCost
    from simulator.analysis.predictions import LedgerLine
    from simulator.analysis.stragglers import Slowdown
    from simulator.analysis.whole_runs import Comparison, Probe

_BUDGET = {
    "F": "forward_s",
    "B": "backward_s",
    "W": "weight_s",
    "F&B": "overlapped_s",
    "bubble": "bubble_s",
    "optim.": "optimizer_s",
    "exposed": "exposed_communication_s",
    "hidden": "hidden_communication_s",
}
"""Column of the budget table -> field of a rank's times."""


def training_run_tables(name: str, metrics: Mapping[str, Any]) -> list[Table]:
    """Headline, published figures where there are any, and time budget of a training run."""
    # The pair of the main job is reproduced or predicted depending on its calibration.
    kinds = {"pair_time_s": {"kind": metrics["pair_time_kind"]}}
    figures = [row | kinds.get(row["metric"], {}) for row in metrics["published"]]
    published = [published_table(figures)] if figures else []
    apart = [_apart(metrics)] if "waiting" in metrics else []
    tables = [_headline(name, metrics), *apart, *published, _budget(metrics)]
    if "events" in metrics:
        from reports.events import events_tables

        tables += events_tables(metrics)
    return tables


def _headline(name: str, metrics: Mapping[str, Any]) -> Table:
    table, rows = Table(title=name, title_justify="left"), []
    for path in (name for name in leading("training") if name in metrics):
        label = f"{path} ({metrics['pair_time_kind']})" if path == "pair_time_s" else path
        rows.append((label, format_metric(path, metrics[path]), *beside_cells(metrics, path)))
    told = told_columns(("metric", "expected", "ideal", "80% interval"), rows)
    for place, head in told.items():
        table.add_column(head, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(row[place] for place in told))
    notes = [f"{what}: {text}" for what, text in kernels_rows(metrics)]
    without = metrics["without_all_to_all_slowdown"]
    faster = (f"{path} {format_metric(path, value)}" for path, value in without.items())
    notes.append(f"ideal, without all-to-all slow-down: {', '.join(faster)}")
    for of, shares in metrics["kernel_time_share"].items():
        text = ", ".join(f"{share:.0%} {name}" for name, share in shares.items() if share >= 0.005)
        notes.append(f"kernel time of the {of}: {text}")
    notes += [metrics["idle_nodes"]] if metrics.get("idle_nodes") else []
    table.caption, table.caption_justify = "\n".join(notes), "left"
    return table


def _apart(metrics: Mapping[str, Any]) -> Table:
    """What ranks that differ cost, and which prior the interval comes from."""
    waiting, table = metrics["waiting"], Table(title="ranks that differ", title_justify="left")
    table.add_column("waiting for ranks that")
    table.add_column("of the step", justify="right")
    table.add_column("the interval's variance is by")
    table.add_column("share", justify="right")
    causes = [(name, format_seconds(value)) for name, value in waiting["by_cause_s"].items()]
    if waiting.get("upper_bound_s") is not None:
        causes.append(
            ("at most, were each chunk its worst", format_seconds(waiting["upper_bound_s"]))
        )
    shares = [(name, f"{share:.0%}") for name, share in metrics["priors"].items() if share >= 0.005]
    for left, right in zip_longest(causes, shares, fillvalue=("", "")):
        table.add_row(*left, *right)
    found = metrics.get("ridge")
    if found:
        more = 1.0 / found["rows_sd_per_clock_sd"]
        table.caption = (
            f"1% of rows_sd less and {more:.2f}% of clock_sd more leave the step as it is: "
            "one step time cannot tell the two apart"
        )
        table.caption_justify = "left"
    return table


def _budget(metrics: Mapping[str, Any]) -> Table:
    table = Table(
        title="where the step goes on each pipeline rank: seconds, memory in GiB; "
        "all-to-all exposed and hidden lie inside the chunks",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("rank", justify="right")
    for column in (*_BUDGET, "memory"):
        table.add_column(column, justify="right")
    table.caption = "\n".join(
        [
            f"stages: {', '.join(metrics['stages'])}",
            *([f"NVLink domains {domains}"] if (domains := metrics.get("nvlink_domains")) else []),
            *map("warning: {}".format, metrics["warnings"]),
        ]
    )
    gibibyte = unit_factor("GiB", "data")
    for rank, times in enumerate(metrics["ranks"]):
        table.add_row(
            str(rank),
            *(f"{times[field]:.3f}" for field in _BUDGET.values()),
            f"{metrics['memory'][rank]['total'] / gibibyte:.1f}",
        )
    return table


def step_attribution_table(
    name: str, metrics: Mapping[str, Any], *, published_s: float | None
) -> Table:
    """Causes of a training step's time, which sum to it; what a published step takes on top."""
    total = metrics["step_time_s"]
    table = Table(
        title=f"{name}: what the step takes longer for each cause, after those above it",
        title_justify="left",
    )
    for column in ("cause", "seconds", "sum", "of the step"):
        table.add_column(column, justify="left" if column == "cause" else "right", no_wrap=True)
    table.add_column("what it adds")
    before = 0.0
    for cause in metrics["attribution"]:
        seconds = cause["seconds"]
        before += seconds
        table.add_row(
            cause["name"],
            f"{seconds:.3f}",
            f"{before:.3f}",
            f"{seconds / total:.1%}",
            cause["meaning"],
        )
    table.add_section()
    table.add_row("step", f"{total:.3f}", "", "", "simulated")
    if published_s is not None:
        missing = f"published: {published_s:.3f}; the causes above do not explain the difference"
        table.add_row("beyond the step", f"{published_s - total:+.3f}", "", "", missing)
    return table


def attribution_comparison(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> Table | None:
    """Causes of several training steps side by side with their differences to the first; None
    unless every run has them."""
    if not all(metrics.get("attribution") for _, metrics in runs):
        return None
    table = Table(
        title="what each step is made of: seconds, in brackets the difference to the first run",
        title_justify="left",
    )
    table.add_column("cause", no_wrap=True)
    for name, _ in runs:
        table.add_column(name, justify="right")
    found = [
        {cause["name"]: cause["seconds"] for cause in metrics["attribution"]}
        | {"step": metrics["step_time_s"]}
        for _, metrics in runs
    ]
    for cause in found[0]:
        first = found[0][cause]
        cells = [f"{first:.3f}"]
        for other in found[1:]:
            value = other.get(cause, 0.0)
            # Rounded first: no "-0.000".
            cells.append(f"{value:.3f} ({round(value - first, 3) + 0.0:+.3f})")
        table.add_row(cause, *cells, end_section=cause == "remainder")
    return table


def validation_table(scenario: str, figures: Sequence[PublishedRow]) -> Table:
    """The published figures of one scenario beside the simulated ones, without columns that have
    nothing in them; what is no evidence is dimmed."""
    table = Table(title=scenario, title_justify="left", title_style="bold")
    table.add_column("figure", overflow="fold", min_width=18)
    cells = [published_cells(asdict(row)) for row in figures]
    told = told_columns(PUBLISHED_COLUMNS, cells)
    del told[0]
    for name in told.values():
        justify: Literal["left", "right"] = "left" if name == "kind" else "right"
        table.add_column(name, justify=justify, no_wrap=name == "error", overflow="fold")
    for row, own in zip(figures, cells, strict=True):
        style = None if row.is_evidence else "dim"
        table.add_row(own[0], *(own[place] for place in told), style=style)
    return table


def validation_verdict(rows: Sequence[PublishedRow]) -> str:
    """How far all figures that are evidence are off, and how often their intervals hold them; empty
    where none is."""
    found = []
    error = median_error(rows)
    if error is not None:
        count = sum(row.is_evidence for row in rows)
        found.append(f"median error of the {count} predictions: {error:.1%}")
    held = coverage_of(rows)
    if held is not None:
        low, high = held.share_95
        found.append(
            f"{held.inside} of {held.trials} lie in their 80% intervals "
            f"({held.share:.0%}, by chance {low:.0%} to {high:.0%}), whose median width is "
            f"{held.width:.0%} and interval score {held.score:.2f}"
        )
    return "; ".join(found)


def ledger_table(found: Sequence[tuple[LedgerLine, float]]) -> Table:
    """Predictions beside what was measured after them; those of something known are dimmed."""
    table = Table(title="predicted, then measured", title_justify="left", caption_justify="left")
    table.add_column("about", overflow="fold")
    for column in ("predicted", "measured", "error", "80% interval"):
        table.add_column(column, justify="right", no_wrap=True)
    inside = [line.inside(measured) for line, measured in found]
    for (line, measured), within in zip(found, inside, strict=True):
        low, high = (end / measured - 1 for end in line.interval_80)
        table.add_row(
            f"{line.about}, {line.note}",
            format_seconds(line.predicted),
            format_seconds(measured),
            f"{line.error(measured):+.1%}",
            f"{low:+.0%} to {high:+.0%}{'' if within else ', outside'}",
            style="dim" if line.truth_known else None,
        )
    unseen = [
        within for (line, _), within in zip(found, inside, strict=True) if not line.truth_known
    ]
    table.caption = (
        f"{sum(inside)} of {len(found)} measured values lie in their "
        f"intervals; of those that nobody had seen {sum(unseen)} of "
        f"{len(unseen)}"
    )
    return table


def stragglers_table(name: str, simulated: Slowdown, published: Slowdown) -> Table:
    """What slow ranks cost a recorded job: simulated from its durations, and as its authors say."""
    table = Table(title=f"job {name}", title_justify="left", caption_justify="left")
    table.add_column("what", overflow="fold")
    for column in ("published", "simulated", "error"):
        table.add_column(column, justify="right", no_wrap=True)
    rows = [
        (text, mean(theirs.values()), mean(mine.values()), format_seconds)
        for text, mine, theirs in (
            ("step, as run, mean", simulated.steps_s, published.steps_s),
            ("step, all ranks even, mean", simulated.even_s, published.even_s),
        )
    ]
    rows.append(("slow-down", published.slowdown, simulated.slowdown, "{:.4f}".format))
    for what, causes in published.causes.items():
        rows += [
            (f"  by {what} {which} alone", theirs, simulated.causes[what][which], "{:.4f}".format)
            for which, theirs in causes.items()
        ]
    for text, theirs, mine, shown in rows:
        table.add_row(text, shown(theirs), shown(mine), f"{mine / theirs - 1:+.2%}")
    worst = max(abs(simulated.steps_s[step] / one - 1) for step, one in published.steps_s.items())
    table.caption = f"{len(published.steps_s)} steps, as run, the worst of them off by {worst:.2%}"
    return table


def whole_runs_table(found: Sequence[Comparison], probes: Mapping[tuple[str, str], Probe]) -> Table:
    """Measured whole steps beside the same ones simulated, and what the errors are made of."""
    table = Table(title="whole steps", title_justify="left", caption_justify="left")
    table.add_column("operators of", overflow="fold")
    for column in ("time", "error", "80% interval", "left"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("largest parts", overflow="fold")
    for (lease, label), of_step in groupby(found, key=lambda one: (one.step.lease, one.step.label)):
        every = list(of_step)
        step, same = every[0].step, every[0].same
        table.add_section()
        table.add_row(f"{label}, measured", format_seconds(step.seconds), style="bold")
        error = f"{every[0].composition_error:+.1%}"
        table.add_row(f"  {lease}, the same lease", format_seconds(same.seconds), error)
        for one in every:
            largest = sorted(one.errors.items(), key=lambda part: -abs(part[1]))[:2]
            ends = (one.other.low / step.seconds - 1, one.other.high / step.seconds - 1)
            table.add_row(
                f"  {one.other_lease}",
                format_seconds(one.other.seconds),
                f"{one.other_error:+.1%}",
                f"{ends[0]:+.0%} to {ends[1]:+.0%}{'' if one.inside else ', outside'}",
                f"{one.left:.0%}",
                ", ".join(f"{name} {seconds / step.seconds:+.1%}" for name, seconds in largest),
            )
    table.caption = "\n".join(
        (
            "left: |sum| of the errors by kernel group and of the composition, over the sum of "
            "their amounts",
            *(
                f"{other} over {own}, five operators: kernels {probed.kernels:+.1%}, clock "
                f"{probed.clock:+.1%}"
                for (own, other), probed in probes.items()
            ),
        )
    )
    return table


def comparison_table(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """Metrics of several runs side by side; ratios are to the first."""
    table = Table(title="ratios in brackets are to the first run", title_justify="left")
    table.caption_justify = "left"
    table.caption = "\n".join(
        f"{name}: {metrics['scenario']['name']}" for name, metrics in runs if "scenario" in metrics
    )
    table.add_column("metric")
    for name, _ in runs:
        table.add_column(name, justify="right")
    for path in compared_paths(metrics for _, metrics in runs):
        values = [metric_at(metrics, path) for _, metrics in runs]
        first = values[0]
        cells = []
        for value in values:
            text = "-" if value is None else format_metric(path, value)
            if value is not None and value is not first and first:
                text += f" ({value / first:.3f})"
            cells.append(text)
        table.add_row(path, *cells)
        if path in COMPARED and not path.startswith("ranks."):
            both = [beside_cells(metrics, path) for _, metrics in runs]
            for name, column in zip(
                ("ideal", "80% interval"), zip(*both, strict=True), strict=True
            ):
                if any(column):
                    table.add_row(f"  {name}", *column, style="dim")
    return table


def compared_paths(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Figures that any of several runs has, in the order in which they are shown."""
    every = list(runs)
    others = dict.fromkeys(path for metrics in every for path in _numbers(metrics))
    found = dict.fromkeys((*COMPARED, *others))
    return [
        path
        for path in found
        if path != "wall_clock_s" and any(metric_at(m, path) is not None for m in every)
    ]


def _numbers(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Paths of the plain numbers of any job's metrics, and of the means of its distributions."""
    for name, value in metrics.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name
        elif isinstance(value, Mapping) and "mean" in value:
            yield f"{name}.mean"


def metric_table(title: str, metrics: Mapping[str, Any]) -> Table:
    """Every plain number and text of a flat metrics mapping."""
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        if isinstance(value, str):
            table.add_row(name, value)
        elif isinstance(value, int | float):
            table.add_row(name, format_metric(name, value))
    return table


def profile_table(title: str, raw: Mapping[str, Any]) -> Table:
    """Every value of a profile file with its source."""
    table = Table(title=title, title_justify="left")
    for column in ("field", "value", "interval", "source"):
        table.add_column(column, overflow="fold")
    for entry in list_inputs(raw):
        table.add_row(entry.field, entry.value, entry.interval, entry.source)
    return table


def model_table(models: Mapping[str, ModelConfig], *, context: int, gpus: int) -> Table:
    """Parameters, FLOPs, KV cache and weights of models, one column each; those of the language
    model alone."""
    title = f"{', '.join(models)}: language model; weights of one of {gpus} GPUs sharing experts"
    table = Table(title=title, title_justify="left")
    table.add_column("quantity")
    for name in models if len(models) > 1 else ["value"]:
        table.add_column(name, justify="right")
    columns = [_model_facts(config, context=context, gpus=gpus) for config in models.values()]
    for label in columns[0]:
        table.add_row(label, *(column[label] for column in columns))
    return table


def _model_facts(config: ModelConfig, *, context: int, gpus: int) -> dict[str, str]:
    """{quantity: value} of one model."""
    counts = parameter_counts(config)
    causal, whole = (
        training_flops_per_token(config, context=context, causal=causal) for causal in (True, False)
    )
    fields = ("num_hidden_layers", "hidden_size", "n_routed_experts", "num_experts_per_tok")
    return {
        "parameters, without multi-token prediction": f"{counts.total:,}",
        "multi-token prediction, without embedding and head": f"{counts.mtp:,}",
        "activated, without embedding": f"{counts.activated:,}",
        "activated in matrix products, without router": f"{counts.matrix:,}",
        f"training FLOPs per token, context {context:,}, causal": f"{causal:.4g}",
        f"training FLOPs per token, context {context:,}, non-causal": f"{whole:.4g}",
        "KV cache per token, BF16, bytes": f"{kv_bytes_per_token(config, 'bfloat16'):,.0f}",
        "KV cache per token, FP8, bytes": f"{kv_bytes_per_token(config, 'fp8_e4m3'):,.0f}",
        "recipe of the file": config.recipe,
        **{
            f"weights, {name}": format_bytes(weight_bytes(config, recipe, gpus=gpus))
            for name, recipe in RECIPES.items()
        },
        **{field: f"{getattr(config, field):,}" for field in fields},
    }


def token_cost_table(models: Sequence[ModelCost]) -> Table:
    """What a token costs in several models, published outsiders beside DeepSeek's."""
    table = Table(title="a token costs (BF16 cache, causal, context 4,096)", title_justify="left")
    table.add_column("model")
    for column in ("KV cache, bytes", "matrix parameters", "training GFLOP"):
        table.add_column(column, justify="right")
    for model in models:
        table.add_row(
            model.name,
            f"{model.kv_cache_bytes:,.0f}",
            f"{model.matrix_parameters:,}",
            f"{model.training_flops / unit_factor('GFLOP', 'flops'):,.1f}",
        )
    return table
