"""Write the run directory of a fleet: page, tables of requests and over time, Perfetto trace."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from reports.fleet_page import fleet_page
from reports.page import write_page
from reports.parquet import write_columns
from reports.perfetto import (
    PERFETTO_FILE,
    Event,
    arrow,
    counter,
    microseconds,
    name_process,
    name_thread,
    slice_of,
    within,
    write_trace,
)
from reports.run_directory import write_run
from simulator.analysis.fleet_records import FleetRecords, queueing_s, tpot_s, ttft_s
from simulator.execution.fleet.log import Column, Outcome, RowBlock

if TYPE_CHECKING:
    from simulator.analysis.fleet_metrics import ObservedFleet
    from simulator.analysis.run import Run
    from simulator.execution.fleet.accounts import InstanceSummary

Instances = Sequence["InstanceSummary"]

_PARTS = ("queue", "prefill", "wait for decode", "decode")
"""Of the life of a request."""
MOST_REQUESTS = 5_000
"""Requests that a trace shows: of more, every second, third, or so on, over the whole stretch."""


def write_fleet_run(run: Run[ObservedFleet], metrics: Mapping[str, Any], directory: Path) -> None:
    """Write scenario, metrics, tables and report; all of it appears or nothing does."""
    records, instances = run.result.records, run.result.run.instances
    page = fleet_page(run.scenario, metrics, records)

    def write_report(draft: Path) -> None:
        write_columns(metrics["time_series"], draft / "time_series.parquet")
        if records is not None:
            write_columns(request_columns(records, instances), draft / "requests.parquet")
            write_trace(fleet_events(records, instances), draft / PERFETTO_FILE)
        write_page(page, draft)

    write_run(
        directory,
        scenario=page.scenario,
        metrics=metrics,
        tables={},
        write_report=write_report,
    )


def instance_names(instances: Instances) -> list[str]:
    """What each instance is called: its pool, and its number in it."""
    seen: dict[str, int] = {}
    names = []
    for instance in instances:
        number = seen.get(instance.pool, 0)
        names.append(f"{instance.pool} {number}")
        seen[instance.pool] = number + 1
    return names


def request_columns(records: FleetRecords, instances: Instances) -> dict[str, Any]:
    """One row per request in order of arrival; what never came to be is NaN or "none"."""
    rows = records.all_requests()
    names = [*instance_names(instances), "none"]

    def whole(name: str) -> Any:
        return rows[name].astype(np.int64)

    def instance(name: str) -> list[str]:
        return [names[number] for number in whole(name)]

    def moment(name: str) -> Any:
        return np.where(rows[name] >= 0, rows[name], np.nan)

    return {
        "request": whole("request"),
        "outcome": [Outcome(number).name.lower() for number in whole("outcome")],
        "arrival_s": rows["arrival_s"],
        "prefill_start_s": moment("prefill_start_s"),
        "first_token_s": moment("first_token_s"),
        "decode_start_s": moment("decode_start_s"),
        "end_s": rows["end_s"],
        "queueing_s": queueing_s(rows),
        "ttft_s": ttft_s(rows),
        "tpot_s": tpot_s(rows),
        "prompt_tokens": whole("prompt_tokens"),
        "cached_tokens": whole("cached_tokens"),
        "output_tokens": whole("output_tokens"),
        "generated_tokens": whole("generated_tokens"),
        "preemptions": whole("preemptions"),
        "restarts": whole("restarts"),
        "priority": whole("priority"),
        "prefill_instance": instance("prefill_instance"),
        "decode_instance": instance("decode_instance"),
    }


def fleet_events(records: FleetRecords, instances: Instances) -> Iterator[Event]:
    """What the instances do for a while: their iterations as slices, an arrow per request from the
    pass that gives its first token to its first decode step, requests as spans of their own, and
    counters of KV cache, batch and queue. Of more than MOST_REQUESTS a part is shown, evenly."""
    iterations, names = records.kept_iterations(), instance_names(instances)
    tracks = {number: (1 + number, 0) for number in range(len(instances))}
    for number, name in enumerate(names):
        yield from name_process(tracks[number][0], f"instance {name}")
        yield from name_thread(tracks[number], "iterations")
    yield from _iterations(iterations, instances)
    if len(iterations):
        ends = iterations["end_s"]
        requests = records.all_requests()
        shown = requests.where(
            (requests["prefill_start_s"] >= float(iterations["start_s"].min()))
            & (requests["end_s"] <= float(ends.max()))
        )
        every = max(1, math.ceil(len(shown) / MOST_REQUESTS))
        shown = shown.where(np.arange(len(shown)) % every == 0)
        of_all = f", one of every {every}" if every > 1 else ""
        yield from name_process(len(instances) + 1, f"requests{of_all}")
        yield from _spans(shown, len(instances) + 1)
        yield from _arrows(shown, iterations)


def _iterations(iterations: RowBlock, instances: Instances) -> Iterator[Event]:
    fields = ("instance", "start_s", "end_s", "steps", "batch", "prefill_tokens", "kv_tokens",
              "waiting", "output_tokens")  # fmt: skip
    for number, start, end, steps, batch, prefill, kv, waiting, output in zip(
        *(iterations[name].tolist() for name in fields), strict=True
    ):
        process = 1 + int(number)
        parts = [f"prefill {prefill:,.0f} tokens"] * (prefill > 0)
        parts += [f"decode {batch:,.0f} requests x {steps:,.0f}"] * (steps > 0)
        arguments = {"output_tokens": output, "waiting_requests": waiting}
        yield slice_of((process, 0), ", ".join(parts) or "idle", (start, end), arguments)
        capacity = instances[int(number)].kv_capacity_tokens
        yield counter(process, "KV cache (tokens)", start, {"tokens": kv})
        if capacity:
            yield counter(process, "KV cache (% in use)", start, {"%": 100 * kv / capacity})
        yield counter(process, "batch (requests)", start, {"requests": batch})
        yield counter(process, "prefill queue (requests)", start, {"requests": waiting})


def _spans(requests: RowBlock, process: int) -> Iterator[Event]:
    """Queue, prefill, wait and decode of each request, as spans that may overlap."""
    fields = ("request", "arrival_s", "prefill_start_s", "first_token_s", "decode_start_s", "end_s",
              "prompt_tokens", "output_tokens")  # fmt: skip
    for number, *moments, prompt, output in zip(
        *(requests[name].tolist() for name in fields), strict=True
    ):
        whole = f"request {number:.0f}: {prompt:,.0f} + {output:,.0f} tokens"
        known = [microseconds(moment) for moment in moments if moment >= 0]
        ends = [("b", whole, known[0])]
        for name, start, end in zip(_PARTS, known, known[1:], strict=False):
            ends += [("b", name, start), ("e", name, end)]
        ends.append(("e", whole, known[-1]))
        for kind, name, at in ends:
            yield {"cat": "request", "id": int(number), "pid": process, "tid": 0, "ph": kind,
                   "name": name, "ts": at}  # fmt: skip


def _arrows(requests: RowBlock, iterations: RowBlock) -> Iterator[Event]:
    """From the pass that gives a request its first token to its first decode step."""
    requests = requests.where((requests["first_token_s"] >= 0) & (requests["decode_start_s"] >= 0))
    sources, targets = requests["prefill_instance"], requests["decode_instance"]
    given = _holding(iterations, sources, requests["first_token_s"], "left")
    taken = _holding(iterations, targets, requests["decode_start_s"], "right")
    same = (sources == targets) & (given[:, 0] == taken[:, 0])
    drawn = ~(same | np.isnan(given[:, 0]) | np.isnan(taken[:, 0]))
    columns = (requests["request"], sources, given[:, 0], given[:, 1], targets, taken[:, 0])
    for number, source, start, end, target, begins in zip(
        *(column[drawn].tolist() for column in columns), strict=True
    ):
        yield from arrow(
            int(number),
            "KV cache of a request",
            within((start, end), (1 + int(source), 0)),
            ((1 + int(target), 0), begins),
        )


def _holding(
    iterations: RowBlock, instances: Column, at_s: Column, side: Literal["left", "right"]
) -> Column:
    """[instants, 2], start and end of the iteration of an instance that each instant lies in; NaN
    where none does."""
    found = np.full((len(at_s), 2), np.nan)
    for number in set(iterations["instance"].tolist()):
        own = iterations.where(iterations["instance"] == number)
        spans = np.stack([own["start_s"], own["end_s"]], axis=1)
        spans = spans[np.argsort(spans[:, 0], kind="stable")]
        asked = np.flatnonzero(instances == number)
        places = np.searchsorted(spans[:, 0], at_s[asked], side=side) - 1
        inside = (places >= 0) & (at_s[asked] <= spans[places, 1])
        found[asked[inside]] = spans[places[inside]]
    return found
