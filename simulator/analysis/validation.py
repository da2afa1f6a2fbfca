"""Compare every published figure that a shipped scenario reproduces with its simulated value."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from simulator.analysis.parallel import run_in_order
from simulator.analysis.predictions import LedgerLine, scenario_lines
from simulator.analysis.published import PublishedRow
from simulator.analysis.run import simulate
from simulator.calibration.coverage import Coverage, coverage
from simulator.execution.progress import HowFar, Watch, unwatched, watch_part
from simulator.scenario.files import Scenario, known_scenarios, load_scenario
from simulator.scenario.fleet import FleetJob


def scenarios_with_figures() -> tuple[str, ...]:
    """Shipped scenarios that hold published figures, sorted."""
    return tuple(name for name in known_scenarios() if load_scenario(name).file.published)


def check_figures(scenario: Scenario) -> None:
    """Raise ValueError where a scenario has no published figure that a run can be held against."""
    job = scenario.job
    if isinstance(job, FleetJob) and not job.requests.as_published:
        raise ValueError(
            f"{scenario.where}: its published figures are of other requests than those of "
            f"{job.requests.file}"
        )
    if not scenario.file.published:
        raise ValueError(
            f"{scenario.where}: no published figures to hold a run against; allowed: a scenario "
            f"with published: ..., such as {', '.join(scenarios_with_figures())}"
        )


def check_published(
    names: Sequence[str],
    evaluate: Callable[[str, Sequence[str]], Mapping[str, Any]],
    *,
    jobs: int = 1,
) -> Iterator[tuple[str, list[PublishedRow]]]:
    """Run scenarios; yields (scenario, its figures) in the order of `names`, as they finish.

    Args:
        evaluate: (scenario, overrides) -> metrics, a function of a module.
        jobs: processes.

    Raises:
        ValueError: a scenario that cannot run.
    """
    runs = run_in_order(evaluate, [(name, ()) for name in names], jobs=jobs)
    for name, metrics in zip(names, runs, strict=True):
        yield name, figures_of(metrics)


def with_intervals(scenario: str, overrides: Sequence[str]) -> Mapping[str, Any]:
    """The metrics of a scenario with their 80% intervals; of a fleet, which would be simulated
    three times for them, without."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        run = simulate(load_scenario(scenario, overrides))
    return run.quick_metrics if isinstance(run.scenario.job, FleetJob) else run.metrics


def predictions_of(
    names: Sequence[str],
    *,
    date: str,
    known: Collection[str] = (),
    changes: Sequence[str] = (),
    jobs: int = 1,
    watch: Watch = unwatched,
) -> Iterator[list[LedgerLine]]:
    """What the runs of scenarios say, one line per quantity with an interval, scenario by scenario
    in order of `names`, as they finish; no line of a job without intervals.

    Args:
        date: YYYY-MM-DD.
        known: scenarios whose truth the author had seen, though they name none of it.
        changes: to every one of them, "path=value".
        jobs: processes.
        watch: told how far the runs have come; with several processes, after every scenario.
    """
    parts = [watch_part(watch, number, len(names)) for number in range(len(names))]
    inputs = [
        (name, tuple(changes), date, name in known, part if jobs == 1 else unwatched)
        for name, part in zip(names, parts, strict=True)
    ]
    for done, lines in enumerate(run_in_order(_predictions, inputs, jobs=jobs), 1):
        watch(HowFar(done / len(inputs), done, "scenarios"))
        yield lines


def _predictions(
    name: str, changes: Sequence[str], date: str, known: bool, watch: Watch
) -> list[LedgerLine]:
    scenario = load_scenario(name, changes)
    run = simulate(scenario, watch=watch)
    if not run.has_intervals:
        return []
    return scenario_lines(scenario, run.metrics, date=date, known=known)


def figures_of(metrics: Mapping[str, Any]) -> list[PublishedRow]:
    """The published figures of one run."""
    rows = [PublishedRow(**row) for row in metrics.get("published", ())]
    # The pair of the main job is reproduced or predicted depending on its calibration.
    return [
        replace(row, kind=str(metrics["pair_time_kind"])) if row.metric == "pair_time_s" else row
        for row in rows
    ]


def coverage_of(figures: Sequence[PublishedRow]) -> Coverage | None:
    """How often the 80% intervals of figures that are evidence hold the published values; None
    without any. Figures of one run err together, so that chance makes more of it than it says."""
    rows = [row for row in figures if row.is_evidence and row.interval_80 is not None]
    if not rows:
        return None
    ends = [row.interval_80 for row in rows if row.interval_80 is not None]
    return coverage([row.published for row in rows], *zip(*ends, strict=True))


def median_error(figures: Sequence[PublishedRow]) -> float | None:
    """Median of the absolute errors of the figures that are evidence; None without any."""
    errors = sorted(abs(row.error) for row in figures if row.is_evidence and row.error is not None)
    if not errors:
        return None
    middle = len(errors) // 2
    return errors[middle] if len(errors) % 2 else (errors[middle - 1] + errors[middle]) / 2
