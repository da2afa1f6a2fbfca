"""Show a step on contending devices: tables for the terminal, and a trace of all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardware_profiles.units import format_seconds
from reports.perfetto import counter, name_process, name_thread, slice_of, write_trace
from simulator.analysis.metric import label_of
from simulator.workload.task_graph import Stream

if TYPE_CHECKING:
    from rich.table import Table

    from simulator.execution.machine.group import GroupRun

TRACE_FILE = "ranks_trace.json"


def events_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Ratios that come out beside the measured ones, and the run beside the timeline; none of a run
    on the timeline."""
    events = metrics.get("events")
    if events is None:
        return []
    from rich.table import Table

    ratios = Table(title="events: time beside what contends over time alone", title_justify="left")
    for column in ("", "simulated", "from", "to", "measured", "unexplained", "kernels"):
        ratios.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for row in events["beside"]:
        measured, left = row["measured"], row["unexplained"]
        ratios.add_row(
            row["effect"],
            f"{row['ratio']:.3f}",
            f"{row['low']:.3f}",
            f"{row['high']:.3f}",
            "" if measured is None else f"{measured:.3f}",
            "" if left is None else f"x {left:.3f}",
            str(row["kernels"]),
        )
    sources = {row["source"] for row in events["beside"] if row["source"]}
    ratios.caption, ratios.caption_justify = "\n".join(sorted(sources)), "left"
    return [ratios, _beside_timeline(events)]


def _beside_timeline(events: Mapping[str, Any]) -> Table:
    from rich.table import Table

    what = f"events: {events['of']} on {events['ranks']} ranks"
    table = Table(title=what, title_justify="left")
    for column in ("", "events", "timeline, same ranks"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    table.add_row(
        "end of the last rank",
        format_seconds(events["span_s"]),
        format_seconds(events["timeline_span_s"]),
    )
    if "step_time_s" in events:
        table.add_row(
            "step, timeline of ideal ranks",
            format_seconds(events["step_time_s"]),
            format_seconds(events["timeline_step_time_s"]),
        )
    names = {
        "exposed_communication_s": f"{label_of('exposed_communication_s')}, mean of ranks",
        "for_ranks_s": f"{label_of('waiting_for_ranks_s')}, mean of ranks",
        "before_a_collective_s": "waiting before a transfer, mean",
    }
    for name, label in names.items():
        here, there = events["waiting"][name], events["timeline_waiting"][name]
        table.add_row(label, format_seconds(here), format_seconds(there))
    devices = events["devices"]
    table.add_row("SMs in use", f"{devices['sm_share']:.1%}", "")
    table.add_row("a kernel lacks SMs", format_seconds(devices["sm_starved_s"]), "")
    table.add_row("HBM in use", f"{devices['hbm_share']:.1%}", "")
    table.add_row("HBM over-subscribed", format_seconds(devices["hbm_oversubscribed_s"]), "")
    if "busiest_link" in devices:
        share = f"{devices['busiest_link_share']:.1%}"
        table.add_row(f"busiest link, {devices['busiest_link']}", share, "")
    for channel, span in events["without"].items():
        table.add_row(f"end without {channel}", format_seconds(span), "")
    table.caption = (
        f"{events['events']} events, {events['solves']} solves of the network; flows that end "
        f"within {format_seconds(events['window_s'])} end together"
    )
    table.caption_justify = "left"
    return table


def write_ranks_trace(group: GroupRun, directory: Path) -> None:
    """Write the trace of all ranks for Perfetto, with counters of SMs, HBM and links."""
    write_trace(rank_events(group), directory / TRACE_FILE)


def rank_events(group: GroupRun) -> Iterator[dict[str, Any]]:
    """A process per rank with a track per stream, waiting before a transfer apart, and counters."""
    log = group.machine.log
    operators, streams = log.graph.task_operators(), list(Stream)
    for rank, gpu in enumerate(group.machine.gpus):
        yield from name_process(rank, f"rank {rank}")
        for thread, stream in enumerate(streams):
            yield from name_thread((rank, thread), stream.value)
        for place, task in enumerate(log.graph.tasks):
            track, name = (rank, streams.index(task.stream)), operators[place].name
            ready, start, end = (
                float(times[place, rank]) for times in (log.ready_s, log.start_s, log.end_s)
            )
            if start > ready:
                yield slice_of(track, "waiting for ranks", (ready, start))
            yield slice_of(track, name, (start, end))
        for at, sms, rate in gpu.history:
            yield counter(rank, "SMs in use", at, {"SMs": sms})
            yield counter(rank, "HBM (bytes/s)", at, {"bytes/s": rate})
    links = len(group.machine.gpus)
    if group.machine.link_rates:
        yield from name_process(links, "links")
    for link, at, rate in group.machine.link_rates:
        yield counter(links, f"{link} (bytes/s)", at, {"bytes/s": rate})
