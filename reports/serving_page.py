"""The self-contained HTML page of a serving job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hardware_profiles.units import format_bytes, format_seconds
from reports.palette import PROVENANCE_COLOURS
from simulator.scenario.files import Scenario

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

MICRO_BATCHES = ("#c98b2b", "#3b6ea8", "#8a8a86")
"""Colours of micro-batch 0, micro-batch 1, and layers that run on the whole batch (number -1)."""
_BUDGET_COLOURS = {
    "collectives of tensor parallelism": "#5d5d7a",
    "attention projections": "#3f72af",
    "attention core, output, gate": "#7fa3cf",
    "shared expert": "#8d86b8",
    "routed experts": "#d9813b",
    "dense feed-forward": "#efb884",
    "send, receive and add kernels": "#6aa568",
    "embedding, head, sampling": "#a9cfa7",
    "drafts": "#6f6f6f",
    "waiting for transfers": "#b5473c",
    "imbalance": "#d98c84",
    "slower GPUs": "#e8b7b1",
    "gaps between kernels": "#dededa",
    "host": "#b9b9b4",
    "uncertain inputs": "#c9c3a5",
}
"""Keys of time_budget_s."""
_MEMORY_COLOURS = {
    "weights": "#3f72af",
    "all to all buffers": "#8d86b8",
    "expert buffers": "#efb884",
    "workspace": "#b9b9b4",
    "reserved": "#dededa",
    "KV cache": "#6aa568",
}
_LAYERS_SHOWN = 2
_WIDTH = 1200
_LAYER_TITLES = {
    "embedding": "Embedding",
    "dense": "A dense layer, all tokens of the GPU",
    "moe": "A mixture-of-experts layer, one micro-batch",
    "head": "Output head and sampling, all tokens of the GPU",
    "mtp": "First draft: the prediction layer over all verified tokens, one micro-batch",
    "mtp_next": "Further drafts: one token of each request, one micro-batch",
    "mtp_head": "Head of a draft: one token of each request",
}


_WHOLE = frozenset({"embedding", "head", "mtp_head"})
"""Layer kinds of one part."""


def step_page(
    scenario: Scenario,
    metrics: Mapping[str, Any],
    tables: Sequence[Table],
    tasks: pd.DataFrame,
) -> str:
    """The page of a serving step.

    Args:
        tables: shown as they are, beside what the page makes of the metrics.
        tasks: every task of the iteration with start and end.
    """
    shown = _middle(tasks)
    return _render(
        scenario,
        tables,
        cards=_cards(metrics),
        budget=_shares(metrics["time_budget_s"], _BUDGET_COLOURS, format_seconds),
        memory=_memory(metrics),
        limited_by=metrics["limited_by"],
        streams=sorted(set(shown["stream"]), reverse=True),
        bars=list(_bars(shown)),
        micro_batches=MICRO_BATCHES[: shown["micro_batch"].max() + 1],
        span=format_seconds(float(shown["end_s"].max() - shown["start_s"].min())),
        layers=list(_layers(metrics)),
    )


def plain_page(scenario: Scenario, tables: Sequence[Table]) -> str:
    """The page of a job without events: its tables and inputs."""
    return _render(scenario, tables, cards=[], budget=[], memory=[], bars=[], layers=[])


def _render(scenario: Scenario, tables: Sequence[Table], **context: Any) -> str:
    from reports.page import render_page
    from reports.tables import left_out_note, list_inputs

    return render_page(
        "serving.html.j2",
        name=scenario.name,
        description=scenario.file.description,
        left_out=left_out_note(scenario),
        tables=[_cells(table) for table in tables],
        inputs=list(list_inputs(scenario.resolved)),
        provenances=PROVENANCE_COLOURS,
        **context,
    )


def _cards(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Headline figures: name, value, a note."""
    from reports.tables import beside_cells

    prefill = metrics["phase"] == "prefill"
    which = "pass_time_s" if prefill else "step_time_s"
    ideal, interval = beside_cells(metrics, which)
    note = f"80 % interval {interval}" if interval else "80 % interval not worked out"
    note = f"ideal {ideal}; {note}" if ideal else note
    way = "input" if prefill else "output"
    node, gpu = (metrics[f"{way}_tokens_per_second_per_{unit}"] for unit in ("node", "gpu"))
    rests = ", ".join(
        f"{name} {share:.0%}" for name, share in metrics["error_share"].items() if share >= 0.005
    )
    cards = [
        {
            "name": "Prefill pass" if prefill else "Decode step",
            "value": format_seconds(metrics[which]),
            "note": note,
        },
        {
            "name": f"{way.capitalize()} tokens per second per node",
            "value": f"{node:,.0f}",
            "note": f"{gpu:,.0f} a GPU",
        },
    ]
    if not prefill:
        cards.append(
            {
                "name": "Time per output token",
                "value": format_seconds(metrics["tpot_s"]["mean"]),
                "note": f"{metrics['tokens_per_second_per_user']:.1f} tokens per second per user",
            }
        )
    return [
        *cards,
        {
            "name": "Communication that nothing hides",
            "value": format_seconds(metrics["exposed_communication_s"]),
            "note": f"{metrics['exposed_communication_s'] / metrics[which]:.1%} of the time",
        },
        {
            "name": "KV cache that fits a GPU",
            "value": f"{metrics['kv_cache_tokens_per_gpu']:,} tokens",
            "note": f"{metrics['kv_cache_tokens_needed_per_gpu']:,} needed; largest batch "
            f"{metrics['largest_batch_per_gpu']:,} requests per GPU",
        },
        {"name": "Where kernel times come from", "value": "", "note": rests},
    ]


def _shares(
    parts: Mapping[str, float], colours: Mapping[str, str], written: Callable[[float], str]
) -> list[dict[str, Any]]:
    whole = sum(parts.values())
    return [
        {"name": name, "value": written(value), "share": value / whole, "colour": colours[name]}
        for name, value in parts.items()
        if value > 0.0
    ]


def _memory(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Parts of the GPU's memory; what they leave is KV cache."""
    parts = dict(metrics["memory_bytes"])
    capacity = parts.pop("capacity")
    parts["KV cache"] = capacity - sum(parts.values())
    named = {name.replace("_", " "): value for name, value in parts.items()}
    return _shares(named, _MEMORY_COLOURS, format_bytes)


def _layers(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Kernels of each layer kind, micro-batch 0, with what all their runs take together."""
    whole = metrics["step_time_s"] or metrics["pass_time_s"]
    for kind, title in _LAYER_TITLES.items():
        rows = [row for row in metrics["operators"] if row["layer"] == kind]
        first = [row for row in rows if row["micro_batch"] == 0]
        if not first:
            continue
        totals: dict[tuple[str, str], float] = {}
        for row in rows:
            key = (row["part"], row["name"])
            totals[key] = totals.get(key, 0.0) + row["total_s"]
        yield {
            "title": title,
            "rows": [
                {
                    "part": kind if kind in _WHOLE else row["part"].replace("_", " "),
                    "name": row["name"],
                    "sizes": " ".join(f"{name}={value}" for name, value in row["sizes"].items()),
                    "time": format_seconds(row["seconds"]),
                    "interval": interval_text(row["low_s"], row["high_s"]),
                    "runs": row["calls"] * len({other["micro_batch"] for other in rows}),
                    "total": format_seconds(totals[row["part"], row["name"]], digits=3),
                    "share": f"{totals[row['part'], row['name']] / whole:.1%}",
                    "wire": row["part"].endswith("_wire"),
                    "provenance": row["provenance"],
                }
                for row in first
            ],
        }


def interval_text(low: float, high: float) -> str:
    """Both ends, their unit once where they share it."""
    ends = [format_seconds(end, digits=3) for end in (low, high)]
    value, _, unit = ends[0].partition(" ")
    if ends[1].endswith(f" {unit}"):
        ends[0] = value
    return " to ".join(ends)


def _cells(table: Table) -> dict[str, Any]:
    """A terminal table as plain text cells."""
    columns = [list(column.cells) for column in table.columns]
    return {
        "title": str(table.title),
        "caption": "" if table.caption is None else str(table.caption),
        "columns": [
            {"name": str(column.header), "right": column.justify == "right"}
            for column in table.columns
        ],
        "rows": [list(row) for row in zip(*columns, strict=True)],
    }


def _middle(tasks: pd.DataFrame) -> pd.DataFrame:
    """All tasks that run while compute does a few expert layers in the middle of the iteration."""
    compute = tasks[(tasks["stream"] == "compute") & tasks["layer"].str.startswith("moe")]
    layers = list(dict.fromkeys(compute["layer"]))
    first = max(0, len(layers) // 2 - 1)
    begin = compute.loc[compute["layer"] == layers[first], "start_s"].min()
    after = layers[first + _LAYERS_SHOWN :][:1]
    end = (
        compute.loc[compute["layer"] == after[0], "start_s"].min()
        if after
        else float(tasks["end_s"].max())
    )
    cut = tasks.loc[(tasks["end_s"] > begin) & (tasks["start_s"] < end)]
    within: pd.DataFrame = cut.assign(
        start_s=cut["start_s"].clip(lower=begin), end_s=cut["end_s"].clip(upper=end)
    )
    return within


def _bars(tasks: pd.DataFrame) -> Iterator[dict[str, Any]]:
    origin = tasks["start_s"].min()
    scale = _WIDTH / (tasks["end_s"].max() - origin)
    streams = sorted(set(tasks["stream"]), reverse=True)
    columns = ("stream", "micro_batch", "layer", "name", "part", "start_s", "end_s")
    for stream, number, layer, name, part, start, end in zip(
        *(tasks[column].tolist() for column in columns), strict=True
    ):
        yield {
            "row": streams.index(stream),
            "x": round((start - origin) * scale, 2),
            "width": round(max((end - start) * scale, 0.3), 2),
            "colour": MICRO_BATCHES[number],
            "title": f"{layer}, {_whose(number)}, {part}: {name}, {format_seconds(end - start)}",
        }


def _whose(micro_batch: int) -> str:
    return "all tokens" if micro_batch < 0 else f"micro-batch {micro_batch}"
