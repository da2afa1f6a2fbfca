"""The pages of a serving step, of a bound on TPOT and of the offload server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from hardware_profiles.units import format_bandwidth, format_bytes, format_seconds
from reports.charts import ChartAxis, Columns, Curve, Lines, Reference, Span, Spans, shown_in
from reports.page import (
    Answer,
    Cell,
    Figure,
    Page,
    Section,
    Shares,
    Table,
    published_section,
    scenario_page,
    shares_of,
)
from reports.palette import MEMORY, PROVENANCE
from reports.serving import expert_loads, figure_at, leading_paths, transfers_text
from reports.tables import (
    beside_cells,
    changed_text,
    format_metric,
    format_published,
    interval_text,
    kernels_rows,
)
from simulator.analysis.metric import heading_of, label_of
from simulator.scenario.files import Scenario

TaskColumns: TypeAlias = Mapping[str, Sequence[Any]]
"""{column: [tasks]}"""

MICRO_BATCHES = ("blue", "orange", "grey")
"""Hues of micro-batch 0, micro-batch 1, and layers that run on the whole batch (number -1)."""
_BUDGET = {
    "collectives of tensor parallelism": "sky",
    "attention projections": "blue",
    "attention core, output, gate": "sky",
    "shared expert": "purple",
    "routed experts": "orange",
    "dense feed-forward": "amber",
    "send, receive and add kernels": "green",
    "embedding, head, sampling": "grey",
    "drafts": "ink",
    "waiting for transfers": "red",
    "imbalance": "red",
    "slower GPUs": "amber",
    "gaps between kernels": "pale",
    "host": "pale",
    "uncertain inputs": "grey",
}
"""Hues of the keys of time_budget_s."""
_LAYERS_SHOWN = 2
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
_TOLD = 3
"""Parts of the budget that the answer names."""

STEP_FILES = (
    ("perfetto.json", "the whole iteration; opens in Perfetto"),
    ("events.parquet", "every task of the iteration"),
    ("kernels.csv", "the kernels of each layer kind"),
)


def step_page(scenario: Scenario, metrics: Mapping[str, Any], tasks: TaskColumns) -> Page:
    """All that the page of a serving step shows.

    Args:
        tasks: every task of the iteration with start and end.
    """
    budget = {name: s for name, s in metrics["time_budget_s"].items() if s > 0}
    drafts = metrics["speculative_decoding"]
    sections = [
        Section(
            "Where the time goes",
            (
                time_budget_chart(budget),
                layers_chart(_middle(tasks)),
            ),
            "The compute stream of the rank that ends last. Transfers that compute hides do not "
            "show; what it waits for, slower ranks included, does.",
        ),
        *([_drafting(drafts)] if drafts is not None else []),
        Section("Memory of a GPU", (_memory(metrics),), f"{metrics['limited_by']}."),
        Section("Compared with", (_comparisons(metrics),)),
        Section("Every kernel", tuple(_kernels(metrics)), _KERNELS_NOTE),
    ]
    return scenario_page(
        scenario,
        kind="Prefill pass" if metrics["phase"] == "prefill" else "Decode step",
        answer=_answer(scenario, metrics),
        beside=published_section(metrics["published"]),
        sections=sections,
        provenance=[_provenance(metrics)],
        files=STEP_FILES,
    )


_KERNELS_NOTE = (
    "Time of one run with its 80% interval, runs in the iteration, and all of them together over "
    "the iteration's time. Pale rows are wires: they run beside compute, so their shares add to "
    "more than is seen."
)


def _answer(scenario: Scenario, metrics: Mapping[str, Any]) -> Answer:
    prefill = metrics["phase"] == "prefill"
    path = "pass_time_s" if prefill else "step_time_s"
    ideal, interval = beside_cells(metrics, path)
    notes = {
        "exposed_communication_s": f"{metrics['exposed_communication_s'] / metrics[path]:.1%} of "
        "the time",
        "kv_cache_tokens_per_gpu": f"{metrics['kv_cache_tokens_needed_per_gpu']:,} needed",
    }
    figures = (
        _figure(one, metrics, notes.get(one)) for one in leading_paths(metrics) if one != path
    )
    budget = sorted(metrics["time_budget_s"].items(), key=lambda part: -part[1])[:_TOLD]
    whole = sum(metrics["time_budget_s"].values())
    named = ", ".join(f"{name} {seconds / whole:.0%}" for name, seconds in budget)
    return Answer(
        Figure(
            "Prefill pass" if prefill else "Decode step",
            format_seconds(metrics[path]),
            interval,
            f"ideal ranks {ideal}" if ideal else "",
        ),
        tuple(figures),
        limits=f"{named[:1].upper()}{named[1:]} of the time. The batch: {metrics['limited_by']}.",
        changed=changed_text(scenario),
    )


def _figure(path: str, metrics: Mapping[str, Any], note: str | None) -> Figure:
    """A metric with its interval and, where nothing else is noted, its value of ideal ranks."""
    ideal, interval = beside_cells(metrics, path)
    value = figure_at(metrics, path)
    assert value is not None, "only what a run has leads"
    # The label of a rate says what is counted.
    text = format_metric(path, value) if "per_second" in path else format_published(path, value)
    beside = f"ideal ranks {ideal}" if ideal else ""
    label = heading_of(path.removesuffix(".mean"))
    return Figure(label, text, interval, beside if note is None else note)


def time_budget_chart(budget: Mapping[str, float]) -> Spans:
    """Parts of the iteration, each after those before it, so that they add up to it."""
    whole, reached, spans, notes = sum(budget.values()), 0.0, [], []
    for lane, (name, seconds) in enumerate(budget.items()):
        tip = f"{name}: {format_seconds(seconds)}, {seconds / whole:.1%}"
        spans.append(Span(lane, reached, reached + seconds, _BUDGET.get(name, "grey"), tip))
        notes.append(f"{format_seconds(seconds, digits=3)}, {seconds / whole:.1%}")
        reached += seconds
    return Spans(
        "Time budget",
        "Each bar begins where the one above it ends; together they are the iteration.",
        shown_in("time", "time", whole, low=0.0, high=whole),
        tuple(budget),
        tuple(spans),
        notes=tuple(notes),
    )


def layers_chart(tasks: TaskColumns) -> Spans:
    """Tasks of a few layers in the middle of the iteration on their streams."""
    origin = min(tasks["start_s"])
    last = max(tasks["end_s"]) - origin
    streams = sorted(set(tasks["stream"]), reverse=True)
    columns = ("stream", "micro_batch", "layer", "name", "part", "start_s", "end_s")
    spans = [
        Span(streams.index(stream), start - origin, end - origin, MICRO_BATCHES[number],
             f"{name}\n{layer}, {_whose(number)}, {part.replace('_', ' ')}\n"
             f"{format_seconds(end - start)}", name)
        for stream, number, layer, name, part, start, end in zip(
            *(tasks[column] for column in columns), strict=True
        )
    ]  # fmt: skip
    numbers = sorted(set(tasks["micro_batch"]) - {-1})
    return Spans(
        "Layers in the middle of the iteration",
        f"Two layers on {len(streams)} streams, kernel by kernel. perfetto.json holds the "
        "whole iteration. Drag over a part or press + to zoom.",
        shown_in("time", "time", last, low=0.0, high=last),
        tuple(streams),
        tuple(spans),
        legend=tuple((f"micro-batch {number}", MICRO_BATCHES[number]) for number in numbers),
        lane_height=44.0,
        zoom="layers",
    )  # fmt: skip


def _whose(micro_batch: int) -> str:
    return "all tokens" if micro_batch < 0 else f"micro-batch {micro_batch}"


def _middle(tasks: TaskColumns) -> TaskColumns:
    """All tasks that run while compute does a few layers in the middle of the iteration: of those
    with experts, where the model has any."""
    starts: dict[str, float] = {}
    for layer, stream, start in zip(tasks["layer"], tasks["stream"], tasks["start_s"], strict=True):
        if stream == "compute":
            starts[layer] = min(start, starts.get(layer, start))
    kinds = ([layer for layer in starts if layer.startswith(kind)] for kind in ("moe", "dense"))
    layers = next(of_kind for of_kind in kinds if of_kind)
    first = max(0, len(layers) // 2 - 1)
    begin = starts[layers[first]]
    after = layers[first + _LAYERS_SHOWN :][:1]
    end = starts[after[0]] if after else max(tasks["end_s"])
    spans = zip(tasks["start_s"], tasks["end_s"], strict=True)
    shown = [place for place, (start, stop) in enumerate(spans) if stop > begin and start < end]
    cut = {name: [column[place] for place in shown] for name, column in tasks.items()}
    return {
        **cut,
        "start_s": [max(start, begin) for start in cut["start_s"]],
        "end_s": [min(stop, end) for stop in cut["end_s"]],
    }


def _memory(metrics: Mapping[str, Any]) -> Shares:
    """Parts of the GPU's memory; what they leave is KV cache."""
    parts = dict(metrics["memory_bytes"])
    capacity = parts.pop("capacity")
    parts["KV cache"] = capacity - sum(parts.values())
    named = {MEMORY.get(name, (name, ""))[0]: value for name, value in parts.items()}
    hues = dict(MEMORY.values())
    return shares_of(f"Of {format_bytes(capacity)}", named, hues, format_bytes)


def _drafting(drafts: Mapping[str, Any]) -> Section:
    points = drafts["by_batch"]
    batches = tuple(float(point["batch"]) for point in points)
    chart = Lines(
        "Speed-up by requests of the deployment",
        f"Best gain at {drafts['batch_of_best_gain']} requests, least at "
        f"{drafts['batch_of_least_gain']}; stops paying "
        f"{_from(drafts['stops_paying_from_batch'])}.",
        ChartAxis("requests of the deployment", log=True),
        ChartAxis("speed-up", "x"),
        (
            Curve("whole step", "blue", batches, tuple(p["speed_up"] for p in points), dots=True),
            Curve("experts alone", "orange", batches,
                   tuple(p["experts_speed_up"] for p in points), dots=True, dashed=True),
        ),
        across=(Reference(1.0, "no gain"),),
    )  # fmt: skip
    table = Table(
        ("|requests", "|step", "|step without", "|speed-up", "|speed-up of experts alone",
         "|experts touched", "|without"),
        tuple(
            (f"{p['batch']:,}", format_seconds(p["step_s"]), format_seconds(p["step_without_s"]),
             f"{p['speed_up']:.3f}", f"{p['experts_speed_up']:.3f}", f"{p['active_experts']:.1f}",
             f"{p['active_experts_without']:.1f}")
            for p in points
        ),
        "",
    )  # fmt: skip
    return Section("What drafting gains", (chart, table))


def _from(batch: int | str) -> str:
    return batch if isinstance(batch, str) else f"from {batch} requests on"


def _comparisons(metrics: Mapping[str, Any]) -> Table:
    """The iteration beside the same one under other conditions."""
    others: Mapping[str, Any] = metrics["comparisons"]
    rows = []
    for path in leading_paths(metrics):
        values = [figure_at(of, path) for of in (metrics, *others.values())]
        if not others or any(value is not None for value in values[1:]):
            shown = ("-" if value is None else format_metric(path, value) for value in values)
            rows.append((label_of(path.removesuffix(".mean")), *shown))
    heads = ("figure", "|this run", *(f"|{name.replace('_', ' ')}" for name in others))
    return Table(heads, tuple(rows), "The same iteration, one thing changed.")


def _kernels(metrics: Mapping[str, Any]) -> Iterator[Table]:
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
        batches = len({other["micro_batch"] for other in rows})
        yield Table(
            ("part", "kernel", "sizes", "|time", "|80% interval", "|runs", "|together", "|share",
             "found"),
            tuple(
                (
                    kind if kind in _WHOLE else row["part"].replace("_", " "),
                    row["name"],
                    " ".join(f"{name}={value}" for name, value in row["sizes"].items()),
                    Cell(format_seconds(row["seconds"]), row["seconds"]),
                    interval_text(row["low_s"], row["high_s"]),
                    Cell(f"{row['calls'] * batches:,}", row["calls"]),
                    Cell(format_seconds(total, digits=3), total),
                    Cell(f"{total / whole:.1%}", total),
                    Cell(row["provenance"], hue=PROVENANCE[row["provenance"]]),
                )
                for row in first
                for total in [totals[row["part"], row["name"]]]
            ),
            "",
            title=title,
            sortable=True,
            pale=frozenset(n for n, row in enumerate(first) if row["part"].endswith("_wire")),
        )  # fmt: skip


def _provenance(metrics: Mapping[str, Any]) -> Section:
    split = [
        f"{part.replace('_', ' ')} over {gpus}"
        for part, gpus in metrics["tensor_parallel"].items()
        if gpus > 1
    ]
    rows = [
        *kernels_rows(metrics),
        ("transfers", transfers_text(metrics["transfers"])),
        *([("split over GPUs", ", ".join(split))] if split else []),
        ("expert loads", expert_loads(metrics["experts"])),
    ]
    shares = shares_of(
        "Time of compute kernels", metrics["error_share"], PROVENANCE, lambda s: f"{s:.1%}"
    )
    return Section(
        "Where the times come from",
        (shares, Table(("what", "which"), tuple(rows), "")),
        "Measured: a timing of this kernel at this size; interpolated: between timings; "
        "extrapolated: outside them; modelled: from FLOPs, bytes and link rates.",
    )


# -- closed forms ----------------------------------------------------------------------------------


def limit_page(scenario: Scenario, metrics: Mapping[str, Any]) -> Page:
    """All that the page of a bound on TPOT shows."""
    bound = metrics["tpot_s"]["mean"]
    known = [item for item in metrics["idealisations"] if item["tpot_s"] is not None]
    order = sorted(known, key=lambda item: -item["tpot_s"])
    worst = order[0] if order else None
    spans = [Span(0, 0.0, bound, "ink", f"none given up: {format_seconds(bound)}")]
    spans += [
        Span(lane, 0.0, item["tpot_s"], "orange" if item["tpot_s"] > bound else "green",
             f"{_words(item['name'])}: {item['assumed']}, instead {item['instead']}\n"
             f"{format_seconds(item['tpot_s'])}")
        for lane, item in enumerate(order, 1)
    ]  # fmt: skip
    longest = max(bound, *(item["tpot_s"] for item in order)) if order else bound
    chart = Spans(
        "TPOT without each idealisation",
        "One idealisation at a time gives way to what model or network say.",
        shown_in("TPOT", "time", longest, low=0.0),
        ("none given up", *(_words(item["name"]) for item in order)),
        tuple(spans),
        legend=(("the bound", "ink"), ("slower without it", "orange"),
                ("faster without it", "green")),
        notes=(format_seconds(bound), *(format_seconds(item["tpot_s"]) for item in order)),
    )  # fmt: skip
    table = Table(
        ("idealisation", "assumed", "instead", "|TPOT then"),
        tuple(
            (_words(item["name"]), item["assumed"], item["instead"] or "",
             "" if item["tpot_s"] is None else format_seconds(item["tpot_s"]))
            for item in metrics["idealisations"]
        ),
        "Those without a value in the last column have nothing to give way to here.",
    )  # fmt: skip
    wire = f"{metrics['transfers']:,} transfers of {format_seconds(metrics['transfer_s'])} each"
    limits = f"The network alone: {wire}; compute and latency are taken for nothing."
    if worst is not None and worst["tpot_s"] > bound:
        limits += (
            f" What would lengthen it most is {_words(worst['name'])}: "
            f"{format_seconds(worst['tpot_s'])}."
        )
    return scenario_page(
        scenario,
        kind="Bound on TPOT",
        answer=Answer(
            Figure(f"{heading_of('tpot_s')}, at best", format_seconds(bound)),
            (
                Figure(f"{heading_of('tokens_per_second_per_user')}, at most",
                       f"{metrics['tokens_per_second_per_user']:,.1f}"),
                Figure("Bytes of a transfer", format_bytes(metrics["transfer_bytes"])),
                Figure("Link", format_bandwidth(metrics["link_bandwidth_bytes_per_s"])),
            ),
            limits=limits,
            changed=changed_text(scenario),
        ),
        beside=published_section(metrics["published"]),
        sections=[Section("What the bound assumes", (chart, table))],
    )  # fmt: skip


def _words(name: str) -> str:
    return name.replace("_", " ")


_OFFLOAD_LIMITS = {
    "experts_s": "Experts, read from the CPU's memory",
    "fixed_s": "What no expert takes: attention and dense layers on the GPU, launches, copies",
}


def offload_page(scenario: Scenario, metrics: Mapping[str, Any]) -> Page:
    """All that the page of the offload server shows."""
    token = metrics["tpot_s"]["mean"]
    parts = {"experts_s": ("experts on the CPU", "orange"),
             "fixed_s": ("what no expert takes", "blue")}  # fmt: skip
    shares = Shares(
        f"Of {format_seconds(token)} per token",
        tuple((name, format_seconds(metrics[path]), metrics[path] / token, hue)
              for path, (name, hue) in parts.items()),
    )  # fmt: skip
    rows = metrics["published"]
    charts = []
    if rows:
        charts.append(
            Columns(
                "Published and simulated",
                "Tokens per second of one request; fitted rows were inputs, held-out ones not.",
                ChartAxis("tokens per second"),
                "row",
                tuple(row["name"] for row in rows for _ in range(2)),
                (
                    ("published", "grey", tuple(
                        v for row in rows for v in (row["published"], 0.0))),
                    ("simulated", "blue", tuple(
                        v for row in rows for v in (0.0, row["simulated"] or 0.0))),
                ),
                height=200.0,
            )
        )  # fmt: skip
    peak = metrics["cpu_expert_share_of_peak"]
    more = max(parts, key=lambda path: metrics[path])
    return scenario_page(
        scenario,
        kind="Offload server",
        answer=Answer(
            _figure("tpot_s.mean", metrics, None),
            (
                _figure("tokens_per_second_per_user", metrics, None),
                Figure("CPU memory reads experts at",
                       format_bandwidth(metrics["cpu_expert_bytes_per_s"]),
                       note=f"{peak:.0%} of its peak"),
                Figure("GPU reads its weights in", format_seconds(metrics["gpu_weights_read_s"])),
                Figure("Resident on the GPU", format_bytes(metrics["gpu_resident_bytes"])),
            ),
            limits=f"{_OFFLOAD_LIMITS[more]}: {metrics[more] / token:.0%} of a token's time; "
            f"the CPU's memory runs at {peak:.0%} of its peak.",
            changed=changed_text(scenario),
        ),
        beside=published_section(rows),
        sections=[Section("Where the time of a token goes", (shares, *charts))],
    )  # fmt: skip
