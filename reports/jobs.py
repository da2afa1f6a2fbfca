"""What is shown of a run, by the kind of its job: metrics, tables for the terminal, files.

A new kind of job adds one function here and a line in JOB_REPORTS. Imports stay inside the
functions, so that a run loads only what its own job needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from simulator.scenario.files import Scenario

Metrics = dict[str, Any]


STEP_TIMES = ("step_time_s", "pass_time_s")
"""Metrics of the jobs that kernel times decide: a training or decode step, a prefill pass."""


@dataclass(frozen=True, slots=True)
class JobReport:
    """How runs of one kind of job are shown. `run` is what `simulate` returned."""

    metrics: Callable[[Any], Metrics]
    """run -> the JSON names of the job."""
    tables: Callable[[str, Mapping[str, Any]], list[Table]]
    """(scenario name, metrics) -> tables for the terminal."""
    write: Callable[[Any, Mapping[str, Any], Path], None]
    """(run, metrics, directory): write the run directory, whole or not at all."""
    quick_metrics: Callable[[Any], Metrics] | None = None
    """The same JSON names without 80 % intervals; None where the job has none."""


def _training() -> JobReport:
    from reports.terminal import training_run_tables
    from simulator.analysis.training_metrics import training_metrics

    def write_training_run(run: Any, metrics: Mapping[str, Any], directory: Path) -> None:
        from reports.training import write_training_run as write  # pandas: only for a directory

        write(run, metrics, directory)

    return JobReport(
        training_metrics,
        training_run_tables,
        write_training_run,
        partial(training_metrics, with_intervals=False),
    )


def _collective() -> JobReport:
    from reports.fabric import collective_tables, write_collective_run
    from simulator.execution.collective_run import collective_metrics

    return JobReport(collective_metrics, collective_tables, write_collective_run)


def _serving_step() -> JobReport:
    from reports.serving import serving_run_metrics, serving_tables, write_serving_run

    return JobReport(
        serving_run_metrics,
        serving_tables,
        write_serving_run,
        partial(serving_run_metrics, with_intervals=False),
    )


def _tpot_limit() -> JobReport:
    from reports.serving import limit_run_metrics, limit_tables, write_limit_run

    return JobReport(limit_run_metrics, limit_tables, write_limit_run)


def _offload() -> JobReport:
    from reports.serving import offload_run_metrics, offload_tables, write_offload_run

    return JobReport(offload_run_metrics, offload_tables, write_offload_run)


def _fleet() -> JobReport:
    from reports.fleet import fleet_run_tables, write_fleet_run
    from simulator.analysis.fleet_intervals import measure_with_intervals
    from simulator.analysis.fleet_metrics import measure_fleet

    # A fleet runs while it is measured, so that its rows never have to be kept.
    return JobReport(measure_with_intervals, fleet_run_tables, write_fleet_run, measure_fleet)


JOB_REPORTS: Mapping[str, Callable[[], JobReport]] = {
    "training": _training,
    "collective": _collective,
    "serving_step": _serving_step,
    "tpot_limit": _tpot_limit,
    "offload": _offload,
    "fleet": _fleet,
}


def other_kernels(scenario: Scenario, metrics: Metrics) -> Metrics | None:
    """What a step takes with kernels of the other kind, of an engine or of the reference model;
    None where no shipped calibration has them for the scenario's job.

    Args:
        metrics: of the scenario itself.
    """
    from simulator.analysis.kernels_used import other_calibration
    from simulator.analysis.run import simulate

    other = other_calibration(scenario)
    if other is None:
        return None
    report = JOB_REPORTS[scenario.job_name]()
    named = {"calibration": other.name, "kind": other.kernels and other.kernels.kind}
    try:
        run = simulate(replace(scenario, named_calibration=other))
        found = (report.quick_metrics or report.metrics)(run)
    except ValueError as error:
        return named | {"reason": str(error)}
    path = next(name for name in STEP_TIMES if metrics.get(name) is not None)
    return named | {"metric": path, "seconds": found[path], "ratio": found[path] / metrics[path]}


def metrics_of(scenario: str, overrides: Sequence[str], *, intervals: bool = False) -> Metrics:
    """Load and simulate a scenario: its metrics, without 80 % intervals unless asked for.

    Raises:
        ValueError: anything that the user can mend, or that makes the run impossible.
    """
    from simulator.analysis.run import simulate
    from simulator.scenario.files import load_scenario

    loaded = load_scenario(scenario, overrides)
    report = JOB_REPORTS[loaded.job_name]()
    quick = None if intervals else report.quick_metrics
    return (quick or report.metrics)(simulate(loaded))
