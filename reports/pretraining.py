"""Tables of a whole training run for the terminal, and its run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hardware_profiles.units import format_seconds
from reports.run_directory import write_run
from reports.tables import beside_cells, format_metric, published_table
from simulator.analysis.every_metric import leading
from simulator.analysis.metric import label_of
from simulator.scenario.files import write_resolved

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from simulator.analysis.pretraining import PretrainingRun
    from simulator.analysis.run import Run
    from simulator.execution.pretraining import RunLog

CAUSES = {
    "training": ("training", "blue"),
    "slow": ("slow nodes", "sky"),
    "checkpoints": ("checkpoints", "green"),
    "lost": ("work done again", "red"),
    "detection": ("until the failure is seen", "orange"),
    "restart": ("restart", "amber"),
    "waiting_for_nodes": ("waiting for a node", "purple"),
    "reload": ("reading the checkpoint", "grey"),
}
"""What a cause of time is called, and its hue."""


def pretraining_tables(name: str, metrics: Mapping[str, Any]) -> list[Table]:
    """Headlines with intervals, time by cause, phases, and published figures."""
    from rich.table import Table

    first = Table(title=name, title_justify="left")
    first.add_column("figure")
    for column in ("expected", "80% interval", "nothing fails"):
        first.add_column(column, justify="right", no_wrap=True)
    for path in leading("pretraining"):
        if path in metrics:
            first.add_row(label_of(path), *headline_cells(path, metrics))
    first.caption = f"{metrics['runs']} runs of different seeds on {metrics['gpus']:,} GPUs"
    first.caption_justify = "left"
    phases = Table(title="phases", title_justify="left")
    phases.add_column("phase")
    for column in ("tokens", "steps", "step", "days", "GPU-hours"):
        phases.add_column(column, justify="right", no_wrap=True)
    for row in metrics["phases"]:
        phases.add_row(
            row["name"],
            f"{row['tokens']:.4g}",
            f"{row['steps']:,}",
            format_seconds(row["step_time_s"]),
            f"{row['days']:.2f}",
            f"{row['gpu_hours']:,.0f}",
        )
    tables = [first, causes_table("where the time goes", metrics), phases]
    if metrics["published"]:
        tables.append(published_table(metrics["published"]))
    return tables


def causes_table(title: str, metrics: Mapping[str, Any]) -> Table:
    """Time of the run by cause; the causes sum to it."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("cause")
    for column in ("days", "share"):
        table.add_column(column, justify="right")
    for cause, (label, _) in CAUSES.items():
        days, share = metrics["days_by_cause"][cause], metrics["share_by_cause"][cause]
        table.add_row(label, f"{days:.3f}", f"{share:.2%}")
    table.add_section()
    table.add_row("the run", f"{metrics['days']:.3f}", "100.00%")
    return table


def headline_cells(path: str, metrics: Mapping[str, Any]) -> tuple[str, str, str]:
    """A figure, its 80% interval, and the figure if nothing failed, as text."""
    alone = metrics["without_failures"].get(path)
    return (
        format_metric(path, metrics[path]),
        beside_cells(metrics, path)[1],
        "" if alone is None else format_metric(path, alone),
    )


def write_pretraining_run(
    run: Run[PretrainingRun], metrics: Mapping[str, Any], directory: Path
) -> None:
    """Write page, figures and tables; the directory appears whole or not at all."""
    from reports.page import write_page
    from reports.pretraining_page import pretraining_page

    middle = middle_run(run.result.logs)

    def write_report(draft: Path) -> None:
        write_page(pretraining_page(run, metrics, middle), draft)

    write_run(
        directory,
        scenario=write_resolved(run.scenario),
        metrics=metrics,
        tables={"incidents": incident_table(run.result), "runs": run_table(run.result)},
        write_report=write_report,
    )


def middle_run(logs: Sequence[RunLog]) -> int:
    """Place of the run whose length is the median, of an even number the shorter of the two."""
    return int(np.argsort([log.wall_s for log in logs], kind="stable")[(len(logs) - 1) // 2])


def incident_table(run: PretrainingRun) -> pd.DataFrame:
    """One row per incident of every run: when, of what kind, and what it cost."""
    import pandas as pd

    rows = [
        (place, incident.at_s, incident.kind, incident.lost_s)
        for place, log in enumerate(run.logs)
        for incident in log.incidents
    ]
    return pd.DataFrame(rows, columns=["run", "at_s", "kind", "lost_s"])


def run_table(run: PretrainingRun) -> pd.DataFrame:
    """One row per run: its length, its step times over the expected ones, seconds by cause."""
    import pandas as pd

    return pd.DataFrame(
        {
            "wall_s": [log.wall_s for log in run.logs],
            "slower": run.slower,
            **{f"{cause}_s": [log.seconds[cause] for log in run.logs] for cause in CAUSES},
        }
    )
