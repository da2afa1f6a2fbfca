"""Write the run directory of a replay: page, figure, table and Perfetto trace.

The measured and the simulated timeline stand side by side everywhere: lane by lane on the page, as
two processes in perfetto.json, as columns in kernels.parquet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from reports.page import write_page
from reports.perfetto import (
    PERFETTO_FILE,
    name_process,
    name_thread,
    slice_of,
    write_trace,
)
from reports.replay_page import CLASSES, TIMELINES, replay_page
from reports.run_directory import write_run
from simulator.analysis.profile_replay import Replay
from simulator.analysis.what_if import is_unmapped
from simulator.scenario.files import write_resolved

if TYPE_CHECKING:
    from simulator.analysis.run import Run


def write_replay_run(run: Run[Replay], metrics: Mapping[str, Any], directory: Path) -> None:
    """Write everything; the directory appears whole or not at all."""
    kernels = kernel_table(run.result)

    def write_report(draft: Path) -> None:
        write_page(replay_page(run.scenario, metrics, kernels), draft)
        write_trace(replay_events(run.result, kernels), draft / PERFETTO_FILE)

    write_run(
        directory,
        scenario=write_resolved(run.scenario),
        metrics=metrics,
        tables={"kernels": kernels},
        write_report=write_report,
    )


def kernel_table(run: Replay) -> pd.DataFrame:
    """One row per kernel: what it is, when it ran in the recording and in the replay."""
    kernels, mapped = run.graph.kernels, run.mapped
    shown = [
        "unmapped" if is_unmapped(kernel, place) else place.role.value
        for kernel, place in zip(kernels, mapped, strict=True)
    ]
    return pd.DataFrame(
        {
            "stream": [kernel.stream for kernel in kernels],
            "operator": [place.label for place in mapped],
            "class": pd.Categorical(shown, categories=list(CLASSES)),
            "annotation": [place.annotation for place in mapped],
            "kernel": [kernel.name for kernel in kernels],
            "basis": run.basis,
            "measured_start_s": run.measured.start_s,
            "measured_end_s": run.measured.end_s,
            "simulated_start_s": run.simulated.start_s,
            "simulated_end_s": run.simulated.end_s,
        }
    )


def replay_events(run: Replay, kernels: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Chrome trace events: a process per timeline, a track per stream, the replayed host."""
    for process, timeline in enumerate(TIMELINES, start=1):
        yield from name_process(process, f"{timeline} GPU")
        for stream in run.graph.streams:
            carries = "communication" if stream in run.graph.communication_streams else "compute"
            yield from name_thread((process, stream), f"stream {stream} ({carries})")
        columns = ["stream", "operator", "annotation", "basis", "kernel"]
        columns += [f"{timeline}_start_s", f"{timeline}_end_s"]
        for stream, operator, annotation, basis, kernel, start, end in _rows(kernels, columns):
            details = {"annotation": annotation, "kernel": kernel, "basis": basis}
            yield slice_of((process, stream), operator, (start, end), details)
    host = len(TIMELINES) + 1
    threads = list(dict.fromkeys(action.call.thread for action in run.graph.actions))
    yield from name_process(host, "simulated host")
    for number, thread in enumerate(threads):
        yield from name_thread((host, number), f"thread {thread}")
    log = run.simulated
    times = zip(log.call_start_s.tolist(), log.call_end_s.tolist(), strict=True)
    for action, span in zip(run.graph.actions, times, strict=True):
        yield slice_of((host, threads.index(action.call.thread)), action.call.name, span, {})


def _rows(frame: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    return zip(*(frame[column].tolist() for column in columns), strict=True)
