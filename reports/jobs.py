"""How a run of each kind of job is shown: tables for the terminal, files of its directory.

A new kind of job adds one function here and a line in JOB_REPORTS. Imports stay inside the
functions, so that a run loads only what its own job needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from reports.page import Page
    from simulator.analysis.run import Run

Metrics = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class JobReport:
    """How runs of one kind of job are shown."""

    tables: Callable[[str, Metrics], list[Table]]
    """(scenario name, metrics) -> tables for the terminal."""
    write: Callable[[Run[Any], Metrics, Path], None]
    """(run, metrics, directory): write the run directory, whole or not at all."""


def _training() -> JobReport:
    from reports.terminal import training_run_tables

    def write(run: Run[Any], metrics: Metrics, directory: Path) -> None:
        from reports.training import write_training_run  # pandas: only for a directory

        write_training_run(run, metrics, directory)

    return JobReport(training_run_tables, write)


def _pretraining() -> JobReport:
    from reports.pretraining import pretraining_tables, write_pretraining_run

    return JobReport(pretraining_tables, write_pretraining_run)


def _collective() -> JobReport:
    from reports.fabric import collective_tables, write_collective_run

    return JobReport(collective_tables, write_collective_run)


def _serving_step() -> JobReport:
    from reports.serving import serving_tables, write_serving_run

    return JobReport(serving_tables, write_serving_run)


def _tpot_limit() -> JobReport:
    from reports.serving import limit_tables

    def page(run: Run[Any], metrics: Metrics) -> Page:
        from reports.serving_page import limit_page

        return limit_page(run.scenario, metrics)

    return JobReport(limit_tables, _page_alone(page))


def _offload() -> JobReport:
    from reports.serving import offload_tables

    def page(run: Run[Any], metrics: Metrics) -> Page:
        from reports.serving_page import offload_page

        return offload_page(run.scenario, metrics)

    return JobReport(offload_tables, _page_alone(page))


def _page_alone(
    page: Callable[[Run[Any], Metrics], Page],
) -> Callable[[Run[Any], Metrics, Path], None]:
    """Write the run directory of a job without events: its page, metrics and scenario."""

    def write(run: Run[Any], metrics: Metrics, directory: Path) -> None:
        from reports.page import write_page
        from reports.run_directory import write_run

        shown = page(run, metrics)
        write_run(
            directory,
            scenario=shown.scenario,
            metrics=metrics,
            tables={},
            write_report=lambda draft: write_page(shown, draft),
        )

    return write


def _fleet() -> JobReport:
    from reports.fleet import fleet_run_tables

    def write(run: Run[Any], metrics: Metrics, directory: Path) -> None:
        from reports.fleet_files import write_fleet_run

        write_fleet_run(run, metrics, directory)

    return JobReport(fleet_run_tables, write)


def _replay() -> JobReport:
    from reports.terminal import metric_table

    def write(run: Run[Any], metrics: Metrics, directory: Path) -> None:
        from reports.replay import write_replay_run  # pandas: only for a directory

        write_replay_run(run, metrics, directory)

    return JobReport(lambda name, metrics: [metric_table(name, metrics)], write)


JOB_REPORTS: Mapping[str, Callable[[], JobReport]] = {
    "training": _training,
    "pretraining": _pretraining,
    "collective": _collective,
    "serving_step": _serving_step,
    "tpot_limit": _tpot_limit,
    "offload": _offload,
    "fleet": _fleet,
    "replay": _replay,
}
