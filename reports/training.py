"""Write the run directory of a training step."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reports.events import write_ranks_trace
from reports.page import write_page
from reports.perfetto import PERFETTO_FILE, write_trace
from reports.run_directory import write_run
from reports.tables import training_tables
from reports.timeline import trace_events, training_links
from reports.training_page import training_page
from simulator.analysis.run import Run
from simulator.execution.training import TrainingRun


def write_training_run(run: Run[TrainingRun], metrics: Mapping[str, Any], directory: Path) -> None:
    """Write scenario, metrics, events and all reports; the directory appears whole or not at all.

    events.parquet holds every action of every rank, operators.parquet the operators of each
    distinct chunk once, and unfolded.parquet, of a run to unfold, those of every action.
    """
    tables = training_tables(run.result, metrics)
    frames = {"events": tables.actions, "operators": tables.operators}
    if run.result.unfold:
        frames["unfolded"] = unfolded_table(run.result)

    def write_reports(draft: Path) -> None:
        write_page(training_page(tables), draft)
        events = chain(trace_events(tables), training_links(run.result))
        write_trace(events, draft / PERFETTO_FILE)
        if run.events is not None:
            write_ranks_trace(run.events, draft)

    write_run(
        directory,
        scenario=tables.scenario,
        metrics=metrics,
        tables=frames,
        write_report=write_reports,
    )


def unfolded_table(run: TrainingRun) -> pd.DataFrame:
    """Every operator of every action of every rank, times from the start of the step."""
    step = run.step
    starts = iter(step.pipeline.start_s.tolist())
    parts = []
    for rank, keys in enumerate(step.keys):
        for index, key in enumerate(keys):
            log, origin = step.chunks[key].log, next(starts)
            tasks = log.graph.tasks
            parts.append(
                {
                    "rank": np.full(len(tasks), rank, dtype=np.int16),
                    "index": np.full(len(tasks), index, dtype=np.int32),
                    "task": np.arange(len(tasks), dtype=np.int32),
                    "chunk": np.full(len(tasks), log.graph.name, dtype=object),
                    "start_s": origin + log.start_s,
                    "end_s": origin + log.end_s,
                }
            )
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    frame = pd.DataFrame(columns)
    frame["chunk"] = frame["chunk"].astype("category")
    return frame
