"""Compare every published figure that a shipped scenario reproduces with its simulated value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.scenario.files import Scenario, known_scenarios, load_scenario
from simulator.scenario.fleet import FleetJob

NO_EVIDENCE = frozenset(
    {"input", "chosen", "calibrated", "reproduced", "bound", "setup_unpublished"}
)
"""Kinds of figures whose error says nothing of the model: it was given them, directly or by a fit,
they are bounds of what was published, or what was measured is not known well enough."""


@dataclass(frozen=True, slots=True)
class Check:
    """One published figure and what a run gives for it."""

    scenario: str
    figure: str
    metric: str
    """Path of the metric that the values are of."""
    published: float
    simulated: float | None
    error: float | None
    """Signed, relative to the published value."""
    kind: str
    """predicted, or why not: one of NO_EVIDENCE."""
    source: str

    @property
    def is_evidence(self) -> bool:
        """Whether the model could have got it wrong."""
        return self.kind not in NO_EVIDENCE


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
) -> Iterator[tuple[str, list[Check]]]:
    """Run scenarios; yields (scenario, its checks) in the order of `names`, as they finish.

    Args:
        evaluate: (scenario, overrides) -> metrics, a function of a module.
        jobs: processes.

    Raises:
        ValueError: a scenario that cannot run.
    """
    if jobs == 1:
        for name in names:
            yield name, checks_of(name, evaluate(name, ()))
        return
    import joblib

    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        runs = joblib.Parallel(n_jobs=jobs, return_as="generator")(
            joblib.delayed(evaluate)(name, ()) for name in names
        )
        for name, metrics in zip(names, runs, strict=True):
            yield name, checks_of(name, metrics)


def checks_of(scenario: str, metrics: Mapping[str, Any]) -> list[Check]:
    """The published figures of one run."""
    return [
        Check(
            scenario,
            row["name"],
            row["metric"],
            row["published"],
            row["simulated"],
            row["error"],
            _kind(row, metrics),
            row.get("source", ""),
        )
        for row in metrics.get("published", ())
    ]


def _kind(row: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    # The pair of the main job is reproduced or predicted depending on its calibration.
    if row["metric"] == "pair_time_s":
        return str(metrics["pair_time_kind"])
    return str(row.get("kind", "predicted"))


def median_error(checks: Sequence[Check]) -> float | None:
    """Median of the absolute errors of the figures that are evidence; None without any."""
    errors = sorted(
        abs(check.error) for check in checks if check.is_evidence and check.error is not None
    )
    if not errors:
        return None
    middle = len(errors) // 2
    return errors[middle] if len(errors) % 2 else (errors[middle - 1] + errors[middle]) / 2
