"""The page of a replayed profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hardware_profiles.units import format_seconds
from reports.charts import Span, Spans, merged, shown_in
from reports.page import Answer, Figure, Page, Section, Table, scenario_page, shares_of
from reports.tables import changed_text
from simulator.analysis.metric import heading_of, label_of
from simulator.scenario.files import Scenario

if TYPE_CHECKING:
    import pandas as pd

CLASSES = {
    "compute": ("compute", "blue"),
    "communication": ("transfers between GPUs", "orange"),
    "rank_wait": ("waits for other ranks", "amber"),
    "unmapped": ("unmapped", "grey"),
}
"""What a kernel is shown as, in words, and its hue."""
TIMELINES = ("measured", "simulated")
_RESULTS = (
    "span_s",
    "compute_busy_s",
    "communication_busy_s",
    "exposed_communication_s",
    "waiting_for_ranks_s",
    "launch_bound_s",
    "other_idle_s",
)
_WAITS = ("exposed_communication_s", "waiting_for_ranks_s", "launch_bound_s", "other_idle_s")
_BASES = {"measured": "green", "scaled": "blue", "predicted": "orange"}
_MOST_UNMAPPED = 40
_UNSEEN = 2500
"""Bars of a timeline at its full length below whose share neighbours are drawn together."""

FILES = (
    ("perfetto.json", "both timelines and the replayed host; opens in Perfetto"),
    ("kernels.parquet", "every kernel, recorded and replayed"),
)


def replay_page(scenario: Scenario, result: Mapping[str, Any], kernels: pd.DataFrame) -> Page:
    """All that the page of a replay shows.

    Args:
        kernels: one row per kernel, as `kernel_table` has them.
    """
    rows = [(label_of(path), result["measured"][path], result[path]) for path in _RESULTS]
    measured = Table(
        ("time", "|measured", "|simulated", "|difference"),
        tuple(
            # Whole nanoseconds: below that is rounding of the sums; and no "-0 ns".
            (name, format_seconds(there), format_seconds(here),
             format_seconds(round(here - there, 9) + 0.0))
            for name, there, here in rows
        ),
        "Recorded kernel times are carried over to the other machine; the difference is the "
        "what-if's effect."
        if result["what_if"]
        else "Kernels keep their recorded times, so this is reproduced, not predicted: it tests "
        "order, waits, launches and room on the SMs.",
    )  # fmt: skip
    sections = [
        Section(
            "Timelines",
            (timeline_chart(kernels),),
            f"Waits between streams are {result['stream_waits_kind']} "
            f"({result['stream_wait_calls']} calls).",
        ),
        _unmapped(result),
        *([Section("Warnings", (Table(("warning",), tuple((w,) for w in result["warnings"]), ""),))]
          if result["warnings"] else []),
    ]  # fmt: skip
    return scenario_page(
        scenario,
        kind="Replay of a profile" + (", a what-if" if result["what_if"] else ""),
        answer=_answer(scenario, result),
        beside=[Section("Measured and simulated", (measured,))],
        sections=sections,
        provenance=[_provenance(result)],
        files=FILES,
    )


def _answer(scenario: Scenario, result: Mapping[str, Any]) -> Answer:
    span, recorded = result["span_s"], result["measured_span_s"]
    error = span / recorded - 1 if recorded else 0.0
    waits = sorted(_WAITS, key=lambda path: -result[path])
    busy = result["compute_busy_s"]
    limits = (
        f"Compute: its streams are busy {busy / span:.0%} of the time. Of the rest most is "
        f"{label_of(waits[0])}, {result[waits[0]] / span:.0%}."
        if span
        else "Nothing: the profile is empty."
    )
    figures = [
        Figure(heading_of(path), format_seconds(result[path]),
               note=f"recorded {format_seconds(result['measured'][path])}")
        for path in _RESULTS
        if path != "span_s"
    ]  # fmt: skip
    return Answer(
        Figure("Span of the replay", format_seconds(span),
               note=f"recorded {format_seconds(recorded)}, {error:+.2%}"),
        tuple(figures),
        limits=limits,
        changed=changed_text(scenario),
    )  # fmt: skip


def timeline_chart(kernels: pd.DataFrame) -> Spans:
    """Streams of both timelines over time."""
    streams = sorted(int(stream) for stream in kernels["stream"].unique())
    lanes = [(stream, timeline) for stream in streams for timeline in TIMELINES]
    latest = float(kernels[[f"{timeline}_end_s" for timeline in TIMELINES]].to_numpy().max())
    spans = []
    for lane, (stream, timeline) in enumerate(lanes):
        own = kernels[kernels["stream"] == stream]
        columns = ("class", f"{timeline}_start_s", f"{timeline}_end_s", "operator", "annotation")
        for kind, start, end, operator, annotation in zip(
            *(own[column].tolist() for column in columns), strict=True
        ):
            place = f" in {annotation}" if annotation else ""
            tip = f"{operator}{place}\n{format_seconds(end - start)}"
            spans.append(Span(lane, start, end, CLASSES[kind][1], tip))
    seen = set(kernels["class"])
    return Spans(
        "Measured and simulated timelines",
        "Stream by stream, measured above simulated. Kernels too short to be seen are drawn "
        "together; perfetto.json has every one. Drag over a part or press + to zoom.",
        shown_in("time since the first kernel", "time", latest, low=0.0, high=latest),
        tuple(f"stream {stream}, {timeline}" for stream, timeline in lanes),
        tuple(merged(spans, width=latest / _UNSEEN, told=lambda n: f"{n} short kernels")),
        legend=tuple(entry for name, entry in CLASSES.items() if name in seen),
        lane_height=30.0,
        zoom="replay",
    )


def _provenance(result: Mapping[str, Any]) -> Section:
    facts = (
        ("profile", result["trace"]),
        ("recorded on", result["recorded_gpu"]),
        ("replayed on", result["gpu"]),
        ("host speed", f"{result['host_speed']:g}"),
        ("SMs for communication", f"{result['communication_sms']}"),
        ("kernels mapped by", result["mapping"]),
        ("kernels that hold a barrier across ranks",
         f"{format_seconds(result['rank_wait_s'])} of the recording, mostly waiting for slower "
         "ranks; one rank's profile cannot say how that changes, so they keep their time"),
    )  # fmt: skip
    shares = shares_of(
        "Kernel time", result["duration_basis"], _BASES, lambda share: f"{share:.1%}"
    )
    return Section("What the times rest on", (shares, Table(("what", "which"), facts, "")))


def _unmapped(result: Mapping[str, Any]) -> Section:
    entries = result["unmapped"]
    share = f"{result['unmapped_share']:.2%} of the kernel time."
    rows = tuple(
        (entry["name"], entry["reason"], f"{entry['kernels']:,}", format_seconds(entry["seconds"]))
        for entry in entries[:_MOST_UNMAPPED]
    )
    more = len(entries) - _MOST_UNMAPPED
    caption = f"And {more} more in metrics.json." if more > 0 else ""
    blocks = (Table(("kernel", "why", "|kernels", "|time"), rows, caption),) if rows else ()
    return Section("Unmapped kernels", blocks, share if rows else "None.")
