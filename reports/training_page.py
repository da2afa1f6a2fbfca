"""The page of a training step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import pandas as pd

from hardware_profiles.units import (
    format_bandwidth,
    format_bytes,
    format_compute,
    format_seconds,
)
from reports.charts import ChartAxis, Columns, Reference, Span, Spans, binned, merged, shown_in
from reports.page import (
    Answer,
    Cell,
    Figure,
    Page,
    PageBlock,
    Section,
    Shares,
    Table,
    published_section,
    shares_of,
)
from reports.palette import BUDGET, CAUSES, MEMORY, PHASES, PROVENANCE, SORTS, WORKS
from reports.tables import (
    PHASE_LETTERS,
    RunTables,
    beside_cells,
    blocks,
    causes,
    format_metric,
)
from simulator.analysis.every_metric import leading
from simulator.analysis.metric import heading_of, label_of

_LANES = {
    ("compute", "block"): "compute, by block",
    ("compute", "operator"): "compute, by operator",
    ("communication", "operator"): "communication, by operator",
    ("communication", "block"): "communication, by block",
}
_TOLD = 3
"""Causes that the answer names."""
_UNSEEN = 20_000
"""Bars of a timeline at its full length below whose share neighbours are drawn together."""

FILES = (
    ("perfetto.json", "the pipeline and every distinct chunk; opens in Perfetto"),
    ("events.parquet", "every action of every rank"),
    ("operators.parquet", "the operators of every distinct chunk"),
)


def training_page(tables: RunTables) -> Page:
    """All that the page of a training step shows."""
    sections = [
        Section("Pipeline", (pipeline_chart(tables),)),
        Section("What the step is made of", (attribution_chart(tables.metrics),)),
        *_waiting(tables),
        Section("Time of each rank", (budget_chart(tables), communication_chart(tables))),
        Section("Overlapped pair", (pair_chart(tables), longest_chart(tables))),
        Section("Operators of the pair", (pair_operator_table(tables),)),
        Section("Memory of one GPU of each rank", (memory_chart(tables),)),
    ]
    return Page(
        kind="Training step",
        name=tables.name,
        description=tables.description,
        answer=_answer(tables),
        beside=tuple(published_section(_published(tables))),
        sections=tuple(sections),
        provenance=(_provenance(tables), _facts(tables)),
        inputs=tables.inputs,
        scenario=tables.scenario,
        files=(("metrics.json", "every figure, SI units"), ("scenario.yaml", "the scenario"),
               *FILES),
    )  # fmt: skip


def _answer(tables: RunTables) -> Answer:
    metrics = tables.metrics
    step, peak, capacity = (
        metrics["step_time_s"],
        metrics["peak_memory_bytes"],
        tables.memory_capacity,
    )
    kinds = {"pair_time_s": f" ({metrics['pair_time_kind']})"}
    notes = {
        "bubble_s": f"{metrics['bubble_s'] / step:.1%} of the step",
        "peak_memory_bytes": f"{peak / capacity:.1%} of {format_bytes(capacity)}",
    }
    whole, *figures = (
        _figure(path, metrics, kind=kinds.get(path, ""), note=notes.get(path))
        for path in leading("training")
        if path in metrics
    )
    return Answer(whole, tuple(figures), limits=_limits(tables), changed=tables.changed)


def _figure(path: str, metrics: Mapping[str, Any], *, kind: str, note: str | None) -> Figure:
    """A metric with its interval and, where nothing else is noted, its value of ideal ranks."""
    ideal, interval = beside_cells(metrics, path)
    beside = f"ideal ranks {ideal}" if ideal else ""
    return Figure(
        f"{heading_of(path)}{kind}",
        format_metric(path, metrics[path]),
        interval,
        beside if note is None else note,
    )


def _limits(tables: RunTables) -> str:
    """The largest causes beside the arithmetic, and how full memory is."""
    rows, step = causes(tables.metrics), tables.metrics["step_time_s"]
    others = sorted((row for row in rows if row.name != "arithmetic"), key=lambda r: -r.seconds)
    named = ", ".join(f"{row.name} {row.seconds / step:.0%}" for row in others[:_TOLD])
    pure = sum(row.seconds for row in rows if row.name == "arithmetic")
    full = tables.metrics["peak_memory_bytes"] / tables.memory_capacity
    named = f"{named[:1].upper()}{named[1:]}"
    return (
        f"{named} of the step; the arithmetic alone, at peak, is {pure / step:.0%}. "
        f"Memory is {full:.0%} full on the fullest rank."
    )


def _published(tables: RunTables) -> list[dict[str, Any]]:
    """Published rows; the pair's is reproduced or predicted, by its kernels."""
    return [
        dict(row)
        | {"metric": path}
        | {"kind": tables.metrics["pair_time_kind"] if path == "pair_time_s" else
           row.get("kind", "predicted")}
        for path, row in zip(tables.published, tables.metrics["published"], strict=True)
    ]  # fmt: skip


# -- charts ----------------------------------------------------------------------------------------


def pipeline_chart(tables: RunTables) -> Spans:
    """What every pipeline rank does when."""
    frame = tables.actions
    columns = ("rank", "label", "work", "chunk", "start_s", "end_s")
    spans = [
        Span(
            rank,
            start,
            end,
            WORKS[work][1],
            f"{label}, rank {rank}{f', {chunk}' if chunk else ''}\n"
            f"from {format_seconds(start)}, takes {format_seconds(end - start)}",
        )
        for rank, label, work, chunk, start, end in zip(
            *(frame[name].tolist() for name in columns), strict=True
        )
    ]
    return Spans(
        "Pipeline timeline",
        "Each bar is one action of a pipeline rank; what is empty is waiting. Drag over a part or "
        "press + to zoom, double-click or press 0 to see all. Starts are simulated; durations are "
        "those of the chunks below.",
        shown_in("time in the step", "time", float(frame["end_s"].max()), low=0.0,
                 high=float(frame["end_s"].max())),
        tuple(f"rank {rank}" for rank in range(len(tables.stages))),
        tuple(spans),
        legend=tuple(WORKS[work] for work in WORKS if (frame["work"] == work).any()),
        zoom="step",
    )  # fmt: skip


def attribution_chart(metrics: Mapping[str, Any]) -> Spans:
    """What adds up to the step, cause after cause."""
    rows, total = causes(metrics), metrics["step_time_s"]
    starts = [*accumulate((row.seconds for row in rows[:-1]), initial=0.0)][: len(rows)]
    spans = [
        Span(place, start, start + row.seconds, CAUSES[row.name],
             f"{row.name}: {row.seconds:+.4g} s\n{row.meaning}")
        for place, (start, row) in enumerate(zip(starts, rows, strict=True))
    ]  # fmt: skip
    left = metrics["attribution"][-1]["seconds"] if metrics["attribution"] else 0.0
    spans.append(Span(len(rows), 0.0, total, "ink", f"the step: {format_seconds(total)}"))
    return Spans(
        "Causes of the step time",
        "Each bar is what the step takes longer once its cause is there, after all causes above "
        "it, by the same simulation; another order would share them out otherwise. Kernels and "
        "communication are means over pipeline ranks, so that with bubble and optimizer they sum "
        f"to the step (remainder {left:.2g} s).",
        shown_in("time", "time", total, low=0.0, high=total),
        (*(row.name for row in rows), "step"),
        tuple(spans),
        legend=tuple((name, hue) for name, hue in SORTS.items()),
        notes=(*(f"{row.seconds:+.3f} s, {row.seconds / total:.1%}" for row in rows),
               f"{total:.3f} s"),
    )  # fmt: skip


def _waiting(tables: RunTables) -> Iterator[Section]:
    """What ranks wait for each other; nothing of ideal ranks."""
    waiting = tables.metrics.get("waiting")
    if not waiting:
        return
    by_cause = {name: value for name, value in waiting["by_cause_s"].items() if value > 0}
    priors = {name: s for name, s in tables.metrics["priors"].items() if s >= 0.005}
    parts: list[PageBlock] = [
        Shares(
            "Waiting of the step by cause",
            tuple(
                (name, format_seconds(value), value / sum(by_cause.values()), hue)
                for (name, value), hue in zip(
                    by_cause.items(), ("grey", "red", "amber", "pale", "purple"), strict=False
                )
            ),
        ),
        _histogram(waiting["by_rank_s"]),
    ]
    note = "The variance of the step time comes from " + ", ".join(
        f"{name.removeprefix('skew.').replace('_', ' ').replace('.', ', ')} {share:.0%}"
        for name, share in priors.items()
    )
    yield Section("What ranks wait for each other", tuple(parts), f"{note}.")


def _histogram(values: Sequence[float]) -> Columns:
    axis = shown_in("waiting", "time", max(values, default=1.0))
    names, counts = binned(values, axis)
    return Columns(
        "Waiting of the ranks of a group",
        "Ranks of one expert-parallel group over one pair, mean over the draws: who is slow waits "
        "least.",
        ChartAxis("ranks"),
        f"waiting ({axis.unit}), from",
        names,
        (("ranks", "red", counts),),
        height=180.0,
    )


def budget_chart(tables: RunTables) -> Columns:
    """Where the step of every rank goes."""
    ranks = tables.metrics["ranks"]
    return Columns(
        "Time budget of each rank",
        "The six parts sum to the step time. The bubble is all waiting: for other ranks, for "
        "sends, and for the slowest optimizer step.",
        shown_in("time", "time", tables.metrics["step_time_s"]),
        "pipeline rank",
        tuple(map(str, range(len(ranks)))),
        tuple((label_of(part), hue, tuple(rank[part] for rank in ranks))
              for part, hue in BUDGET.items()),
    )  # fmt: skip


def communication_chart(tables: RunTables) -> Columns:
    """All-to-all time of every rank inside its chunks, with and without compute beside it."""
    ranks = tables.metrics["ranks"]
    parts = {"hidden_communication_s": "sky", "exposed_communication_s": "red"}
    largest = max(sum(rank[part] for part in parts) for rank in ranks)
    return Columns(
        "All-to-all of each rank",
        "Inside its chunks: hidden while a compute kernel of the same rank runs, exposed while the "
        "rank runs nothing because it waits. Between two kernels it is neither.",
        shown_in("time", "time", largest),
        "pipeline rank",
        tuple(map(str, range(len(ranks)))),
        tuple((label_of(part), hue, tuple(rank[part] for rank in ranks))
              for part, hue in parts.items()),
        height=200.0,
    )  # fmt: skip


def pair_chart(tables: RunTables) -> Spans:
    """The overlapped pair on its two streams, block by block and operator by operator."""
    operators = tables.pair_operators
    lanes, span = list(_LANES), float(operators["end_s"].max())
    found = [
        Span(lanes.index((stream, "operator")), start, end, PHASES[phase][1],
             f"{name}, {layer}\n{kind} {dtype}\n{sizes}\n{format_seconds(end - start)} "
             f"({how}; {format_seconds(low)} to {format_seconds(high)})")
        for stream, start, end, phase, name, layer, kind, dtype, sizes, how, low, high in _rows(
            operators, "stream", "start_s", "end_s", "phase", "name", "layer", "kind", "dtype",
            "sizes", "provenance", "low_s", "high_s",
        )
    ]  # fmt: skip
    found = merged(found, width=span / _UNSEEN, told=lambda count: f"{count} short kernels")
    found += [
        Span(lanes.index((stream, "block")), start, end, PHASES[phase][1],
             f"{block}, {layer}\n{format_seconds(end - start)}", block)
        for stream, start, end, phase, block, layer in _rows(
            blocks(operators), "stream", "start_s", "end_s", "phase", "block", "layer"
        )
    ]  # fmt: skip
    return Spans(
        "Overlapped forward and backward",
        f"{tables.pair}: {format_seconds(tables.metrics['pair_time_s'])}, "
        f"{tables.metrics['pair_time_kind']}, simulated operator by operator. Zoom in to the "
        "single operators; each tells its sizes, time, interval and provenance.",
        shown_in("time in the pair", "time", span, low=0.0, high=span),
        tuple(_LANES.values()),
        tuple(found),
        legend=tuple(PHASES[name] for name in PHASES if (operators["phase"] == name).any()),
        lane_height=44.0,
        zoom="pair",
    )


def longest_chart(tables: RunTables, count: int = 16) -> Spans:
    """Time of the longest operators of the pair, stacked by provenance."""
    operators = tables.pair_operators
    seconds = operators["end_s"] - operators["start_s"]
    labels = operators["name"] + " (" + operators["phase"].map(PHASE_LETTERS) + ")"
    parts = seconds.groupby([labels, operators["provenance"]]).sum().unstack(fill_value=0)
    parts = parts.loc[parts.sum(axis=1).nlargest(count).index]
    spans, ends = [], [0.0] * len(parts)
    for how, hue in PROVENANCE.items():
        if how in parts:
            for lane, value in enumerate(parts[how].tolist()):
                if value > 0:
                    tip = f"{parts.index[lane]}, {how}: {format_seconds(value)}"
                    spans.append(Span(lane, ends[lane], ends[lane] + value, hue, tip))
                    ends[lane] += value
    return Spans(
        "Longest operators of the pair",
        "All layers together, by how their times were found.",
        shown_in("time", "time", max(ends, default=1.0), low=0.0),
        tuple(map(str, parts.index)),
        tuple(spans),
        legend=tuple((how, hue) for how, hue in PROVENANCE.items() if how in parts),
        notes=tuple(format_seconds(end, digits=3) for end in ends),
        lane_height=20.0,
    )


def memory_chart(tables: RunTables) -> Columns:
    """Memory of one GPU of every rank, and what it has."""
    ranks, capacity = tables.metrics["memory"], tables.memory_capacity
    return Columns(
        "Memory at the worst moment of the step",
        "Modelled: parameters by their storage types, and the tensors that the recorded model "
        "keeps times the micro-batches in flight.",
        shown_in("memory", "data", capacity),
        "pipeline rank",
        tuple(map(str, range(len(ranks)))),
        tuple((name, hue, tuple(rank[part] for rank in ranks))
              for part, (name, hue) in MEMORY.items() if part in ranks[0]),
        references=(Reference(capacity, f"capacity {format_bytes(capacity)}"),),
    )  # fmt: skip


# -- tables ----------------------------------------------------------------------------------------


def pair_operator_table(tables: RunTables) -> Table:
    """Operators of the pair, those of one name and phase together, longest first."""
    rows = [
        (
            row["name"],
            Cell(row["phase"], under=row["stream"]),
            Cell(row["kind"], under=row["dtype"]),
            Cell(str(row["calls"]), row["calls"]),
            Cell(format_seconds(row["seconds"]), row["seconds"], row["interval"]),
            Cell(f"{row['share']:.2%}", row["share"]),
            Cell(format_compute(row["flops"], digits=3) if row["flops"] else "", row["flops"]),
            Cell(format_bandwidth(row["bytes"], digits=3) if row["bytes"] else "", row["bytes"]),
            Cell(row["provenance"], hue=PROVENANCE.get(row["provenance"], "grey")),
        )
        for row in operator_rows(tables)
    ]
    return Table(
        ("operator", "phase, stream", "kernel family, type", "|calls", "|time", "|of the pair",
         "|FLOP rate", "|byte rate", "provenance"),
        tuple(rows),
        "All layers together; press a head to sort. Rates are the operator's FLOPs and bytes over "
        "its time. Below each time stands its 80% interval, that of the cost model, summed.",
        sortable=True,
    )  # fmt: skip


def operator_rows(tables: RunTables) -> list[dict[str, Any]]:
    """Figures of the operators of the pair, those of one name and phase together, longest first."""
    frame = tables.pair_operators
    frame = frame.assign(seconds=frame["end_s"] - frame["start_s"])
    span = frame["end_s"].max()
    grouped = frame.groupby(["name", "phase", "stream"], sort=False).agg(
        kind=("kind", "first"),
        dtype=("dtype", "first"),
        calls=("name", "size"),
        seconds=("seconds", "sum"),
        low_s=("low_s", "sum"),
        high_s=("high_s", "sum"),
        flops=("flops", "sum"),
        bytes=("bytes", "sum"),
        provenance=("provenance", lambda values: ", ".join(sorted(set(values)))),
    )
    rows = []
    for record in grouped.sort_values("seconds", ascending=False).reset_index().to_dict("records"):
        row: dict[str, Any] = {str(name): value for name, value in record.items()}
        seconds = row["seconds"]
        row["phase"] = PHASE_LETTERS.get(row["phase"], row["phase"])
        row["share"] = seconds / span if span else 0.0
        row["flops"] = row["flops"] / seconds if seconds else 0.0
        row["bytes"] = row["bytes"] / seconds if seconds else 0.0
        row["interval"] = " to ".join(
            format_seconds(row[bound], digits=3) for bound in ("low_s", "high_s")
        )
        rows.append(row)
    return rows


def _provenance(tables: RunTables) -> Section:
    shares = tables.metrics["kernel_time_share"]
    without = tables.metrics["without_all_to_all_slowdown"]
    slower = Table(
        ("quantity", "|with the slow-down", "|without it"),
        tuple((label_of(path), format_metric(path, tables.metrics[path]),
               format_metric(path, value)) for path, value in without.items()),
        "Dispatch and combine run slower beside compute kernels than alone; the factor is an input "
        "with an interval.",
    )  # fmt: skip
    return Section(
        "Where the times come from",
        (
            *(
                shares_of(label, shares[of], PROVENANCE, lambda share: f"{share:.1%}")
                for of, label in (("step", "Kernel time of the step"),
                                  ("pair", "Kernel time of the overlapped pair"))
            ),
            slower,
        ),
        "Measured: a timing of this kernel at this size; interpolated: between timings; "
        "extrapolated: outside them; modelled: from FLOPs, bytes and link rates.",
    )  # fmt: skip


def _facts(tables: RunTables) -> Section:
    rows = tuple((name, text) for name, text in tables.facts.items())
    return Section("What ran on what", (Table(("what", "which"), rows, ""),))


def _rows(frame: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(frame[column].tolist() for column in columns), strict=True)
