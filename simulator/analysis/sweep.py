"""Simulate one scenario at many points; report one row per point, limits and objectives.

A sweep is the grid of all values of its axes. A point that cannot run is a row with its reason, not
an error, because where a plan stops fitting is what a planner asks. The same seed at every point
makes their differences those of the settings alone.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from pathlib import Path
from time import process_time
from typing import Any, Literal, Self, get_args

from hardware_profiles.renames import path_of_today
from hardware_profiles.units import Dimension, Seconds, parse_quantity
from simulator.analysis.every_metric import metric_of, unknown_metric
from simulator.analysis.parallel import AHEAD, processes, run_all
from simulator.analysis.published import Scalar, plain_values
from simulator.analysis.run import (
    WITHOUT_SLOWDOWN,
    Detail,
    price_kernels,
    simulated_metrics,
)
from simulator.analysis.run_key import run_key
from simulator.scenario.axes import Axis, points
from simulator.scenario.files import Scenario, load_scenario, scenario_loader

Metrics = Mapping[str, Any]
Evaluate = Callable[[Scenario], Metrics]
"""A scenario to its metrics; a function of a module, so that other processes can import it. Raises
ValueError where the point cannot run."""
Prepare = Callable[[Sequence[Scenario]], object]
"""Works out what some scenarios share before they are evaluated, likewise; raises nothing."""

LEAST_AT_ONCE, MOST_AT_ONCE = 6, 48
"""Quick points that a process gets at once, so that they can share work."""
AT_ONCE_S: Seconds = 1.0
"""Of work that they may take: an interruption loses no more, and none waits for others for long."""

COMPARISONS = ("<=", ">=")


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a sweep, and what became of it."""

    settings: Mapping[str, Any]
    """Path that varies -> value."""
    digest: str
    """Of all that the run rests on (`run_key`): equal digests give equal metrics."""
    metrics: Mapping[str, Scalar] = field(default_factory=dict)
    """Path -> value of every plain value of the metrics; empty where the point did not run."""
    reason: str | None = None
    """Why it did not or cannot run."""
    overrides: tuple[str, ...] = field(default=(), compare=False)
    """Texts "path=value" that make its scenario of the sweep's."""

    def to_json(self) -> dict[str, Any]:
        return {
            "settings": dict(self.settings),
            "digest": self.digest,
            "metrics": dict(self.metrics),
            "reason": self.reason,
        }


_OF_DETAIL: Mapping[Detail, str] = {"plain": "", "tables": "-further", "intervals": "-80"}
"""End of the digest of a row that holds more than single figures."""


def detail_of(asked: Sequence[str], *, intervals: bool) -> Detail:
    """How much of each run a sweep is to work out.

    Args:
        asked: metrics; one of a step of its own takes that step at every point.
    """
    if intervals:
        return "intervals"
    further = any(name.partition(".")[0] == WITHOUT_SLOWDOWN for name in asked)
    return "tables" if further else "plain"


def grid(
    scenario: str, changes: Sequence[str], axes: Sequence[Axis], *, detail: Detail = "plain"
) -> list[Point]:
    """All points of a sweep in the order of the axes, the last axis fastest.

    Args:
        detail: of their rows; rows of another are not theirs.

    Raises:
        ValueError: two axes vary one path, or no point loads (the first one's reason).
    """
    paths = [path for axis in axes for path in axis.paths]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"--vary {path}: given more than once; allowed: once")
    load = scenario_loader(scenario)
    found = [_point_of(load, changes, settings) for settings in points(axes)]
    if all(point.reason for point in found):
        raise ValueError(found[0].reason)
    return [replace(p, digest=p.digest and p.digest + _OF_DETAIL[detail]) for p in found]


def point_at(scenario: str, changes: Sequence[str], settings: Mapping[str, Any]) -> Point:
    """The point with these settings, with a reason where it does not load."""
    return _point_of(partial(load_scenario, scenario), changes, settings)


def _point_of(
    load: Callable[[Sequence[str]], Scenario], changes: Sequence[str], settings: Mapping[str, Any]
) -> Point:
    own = (f"{path}={json.dumps(value)}" for path, value in settings.items())
    overrides = (*changes, *own)
    try:
        digest = run_key(load(overrides))
    except (ValueError, OSError) as error:
        return Point(settings, digest="", reason=str(error), overrides=overrides)
    return Point(settings, digest, overrides=overrides)


def run_points(
    points: Sequence[Point],
    scenario: str,
    evaluate: Evaluate,
    *,
    known: Mapping[str, Point],
    jobs: int = 1,
    dask: str | None = None,
    prepare: Prepare | None = None,
) -> Iterator[tuple[int, Point]]:
    """Run points in parallel processes; yields (position in `points`, row) as they finish.

    Args:
        known: digest -> row of an earlier, interrupted sweep; taken over without a run.
        jobs: processes of this machine, no more than there are points to run.
        dask: address of a dask scheduler whose workers run the points in their place; they need
            this package and the files that the scenario names. A point whose process is killed
            whenever it runs is a row with that reason.
        prepare: for points that take so little time that a process gets several of them at once.

    Raises:
        ValueError: no dask scheduler answers at the address.
    """
    left: deque[tuple[int, Point]] = deque()
    for position, point in enumerate(points):
        if point.reason is not None:
            yield position, point
        elif point.digest in known:
            yield position, replace(known[point.digest], settings=point.settings)
        else:
            left.append((position, point))
    jobs = min(jobs, max(1, len(left)))
    share = 1 if prepare is None else MOST_AT_ONCE
    here = processes(jobs) == 1 and dask is None
    at_once = 1  # Nobody knows how long they take.
    given: list[list[tuple[int, Point]]] = []

    def calls() -> Iterator[tuple[Any, ...]]:
        while left:
            # At the end no process is left alone with many.
            fair = LEAST_AT_ONCE + len(left) // (AHEAD * processes(jobs))
            given.append([left.popleft() for _ in range(min(at_once, fair, len(left)))])
            yield [point for _, point in given[-1]], scenario, evaluate, prepare

    while left:
        killed: list[tuple[int, Point]] = []
        given.clear()
        for number, found in run_all(
            _rows_of if here else _rows_and_seconds, calls(), jobs=jobs, dask=dask
        ):
            places = [position for position, _ in given[number]]
            if isinstance(found, ChildProcessError):
                if len(places) > 1:
                    killed += given[number]
                else:
                    yield places[0], replace(given[number][0][1], reason=str(found))
                continue
            rows, seconds = found
            yield from zip(places, rows, strict=True)
            at_once = max(1, min(share, int(len(places) * AT_ONCE_S / max(seconds, 1e-9))))
        # One of them kills its process: each by itself.
        left.extend(killed)
        share = at_once = 1


def _rows_of(
    points: Sequence[Point], scenario: str, evaluate: Evaluate, prepare: Prepare | None
) -> tuple[Iterator[Point], Seconds]:
    """The rows of some points, each as it is run, and how long they took, which here is nothing:
    rows of this process never wait for one another."""
    return _run_points(points, scenario, evaluate, prepare), 0.0


def _rows_and_seconds(
    points: Sequence[Point], scenario: str, evaluate: Evaluate, prepare: Prepare | None
) -> tuple[list[Point], Seconds]:
    """The same once all of them are run."""
    begun = process_time()
    return list(_run_points(points, scenario, evaluate, prepare)), process_time() - begun


def _run_points(
    points: Sequence[Point], scenario: str, evaluate: Evaluate, prepare: Prepare | None
) -> Iterator[Point]:
    loaded: list[Scenario | Point] = []
    load = None
    with warnings.catch_warnings():
        # The command that runs them has read them before, and each process would say it again.
        warnings.simplefilter("ignore", FutureWarning)
        for point in points:
            try:
                load = load or scenario_loader(scenario)
                loaded.append(load(point.overrides))
            except (ValueError, OSError) as error:
                loaded.append(replace(point, reason=str(error)))
    if prepare is not None:
        prepare([each for each in loaded if isinstance(each, Scenario)])
    for point, each in zip(points, loaded, strict=True):
        yield each if isinstance(each, Point) else _run_point(point, each, evaluate)


def _run_point(point: Point, scenario: Scenario, evaluate: Evaluate) -> Point:
    try:
        metrics = evaluate(scenario)
    except MemoryError as error:
        return replace(point, reason=f"not enough memory: {str(error) or 'none is left'}")
    except (ValueError, OSError) as error:
        return replace(point, reason=str(error))
    return replace(point, metrics=dict(plain_values(metrics)))


# -- rows that survive an interruption -------------------------------------------------------------


def run_sweep(
    points: Sequence[Point],
    scenario: str,
    evaluate: Evaluate,
    *,
    kept: Path | None = None,
    known: Mapping[str, Point] | None = None,
    jobs: int = 1,
    dask: str | None = None,
    prepare: Prepare | None = None,
    done: Callable[[Point], object] = lambda _: None,
) -> list[Point]:
    """Run all points; the rows in the order of the points.

    Args:
        kept: every finished row is added to this file, so that an interruption loses none; the
            caller removes it once the rows are safe elsewhere.
        known: digest -> row of earlier sweeps.
        jobs, dask, prepare: see `run_points`.
        done: called with every row as it comes.
    """
    former = dict(known or {})
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        former |= read_rows(kept)
    rows: dict[int, Point] = {}
    for position, row in run_points(
        points, scenario, evaluate, known=former, jobs=jobs, dask=dask, prepare=prepare
    ):
        rows[position] = row
        if kept is not None and row.digest and row.digest not in former:
            append_row(kept, row)
        done(row)
    return [rows[position] for position in range(len(points))]


def read_rows(path: Path) -> dict[str, Point]:
    """The rows of a file of rows by their digests, where there is one.

    Rows that are not as they were written, cut short or damaged in a byte, are left out, and so are
    points that did not run: what was in their way may be gone.
    """
    rows: dict[str, Point] = {}
    if not path.exists():
        return rows
    # Not by lines: where the byte between two is damaged, both are still whole.
    _, *parts = path.read_text(encoding="utf-8", errors="replace").split(_ROW)
    for part in parts:
        try:
            entry, _ = json.JSONDecoder().raw_decode(_ROW + part)
            row = Point(**entry["row"])
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if entry["check"] == _check_of(row) and row.reason is None:
            rows[row.digest] = row
    return rows


def append_row(path: Path, row: Point) -> None:
    """Add a finished row to a file of rows, which may end in one that was cut short."""
    with path.open("a", encoding="utf-8") as file:
        file.write(f'{_ROW}"{_check_of(row)}", "row": {json.dumps(row.to_json())}}}\n')


_ROW = '{"check": '
"""What each row begins with; no text within a row holds it, its quotation marks being escaped."""


def _check_of(row: Point) -> str:
    """A digest of the whole row, so that no figure with a damaged digit is taken over."""
    return hashlib.sha256(json.dumps(row.to_json()).encode()).hexdigest()[:16]


def sweep(
    scenario: str,
    vary: Mapping[str, Sequence[Any]],
    changes: Sequence[str] = (),
    *,
    jobs: int = 1,
) -> list[Point]:
    """Run a scenario at all combinations of some values; the last path varies fastest.

        sweep("dualpipe_h800_2048", {"training.schedule": ["1f1b", "dualpipe"]})

    Args:
        scenario: a shipped name or a path to a YAML file.
        vary: {path: its values}; "a+b" with pairs of values varies two paths in step.
        changes: texts "path=value" that hold at every point.
        jobs: processes.

    Raises:
        ValueError: an unknown path, or no point that loads.
    """
    axes = [Axis.of(paths, values) for paths, values in vary.items()]
    points = grid(scenario, changes, axes)
    return run_sweep(points, scenario, simulated_metrics, jobs=jobs, prepare=price_kernels)


# -- what a planner asks ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound that a row must keep, such as tpot_s.mean <= 50 ms."""

    metric: str
    comparison: Literal["<=", ">="]
    value: float
    text: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "metric<=value", the value a number or a quantity with its unit.

        Raises:
            ValueError: any other text.
        """
        for comparison in COMPARISONS:
            metric, found, value = text.partition(comparison)
            if found and metric.strip():
                return cls(
                    path_of_today(metric.strip(), "metrics", where="--where"),
                    "<=" if comparison == "<=" else ">=",
                    _number(value.strip(), text),
                    text.strip(),
                )
        raise ValueError(
            f"--where {text!r}: allowed: metric<=value or metric>=value, such as 'tpot_s.mean<=50 "
            "ms'"
        )

    def kept_by(self, metrics: Mapping[str, Scalar]) -> bool:
        """Whether the row keeps the limit; a metric that a row does not have keeps none."""
        value = _as_number(metrics.get(self.metric))
        if value is None:
            return False
        return value <= self.value if self.comparison == "<=" else value >= self.value


@dataclass(frozen=True, slots=True)
class Objective:
    """What is better: less of a metric or more."""

    metric: str
    sign: Literal[1, -1]
    """1: less is better."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "min:metric", "max:metric", or a metric of which it is known what is better.

        Raises:
            ValueError: any other text.
        """
        direction, colon, metric = text.rpartition(":")
        metric = path_of_today(metric, "metrics", where="--objective")
        known = metric_of(metric)
        if not colon and known is not None and known.better is not None:
            direction = "min" if known.better == "less" else "max"
        if direction not in ("min", "max") or not metric:
            raise ValueError(
                f"--objective {text!r}: allowed: min:metric or max:metric, such as "
                "min:step_time_s, or a metric alone where one direction is known to be better"
            )
        return cls(metric, 1 if direction == "min" else -1)

    def cost(self, row: Point) -> float:
        value = _as_number(row.metrics.get(self.metric))
        return float("inf") if value is None else self.sign * value


def check_metrics(names: Sequence[str], row: Point) -> None:
    """Raise ValueError for the first metric that a row does not have, naming those it has.

    Nothing is checked of a row that did not run.
    """
    for name in names:
        if row.metrics and name not in row.metrics:
            raise ValueError(unknown_metric(name, row.metrics))


def apply_limits(rows: Sequence[Point], limits: Sequence[Limit]) -> list[Point]:
    """The same rows; one that breaks a limit gets a reason that names it."""
    return [
        row
        if row.reason is not None or all(limit.kept_by(row.metrics) for limit in limits)
        else replace(
            row,
            reason="outside "
            + ", ".join(limit.text for limit in limits if not limit.kept_by(row.metrics)),
        )
        for row in rows
    ]


def rank(rows: Sequence[Point], objectives: Sequence[Objective]) -> list[int]:
    """Positions of the rows, best first by the objectives in their order; with a reason last.

    Without objectives the order of the rows is kept.
    """
    return sorted(
        range(len(rows)),
        key=lambda i: (
            bool(objectives) and rows[i].reason is not None,
            *(objective.cost(rows[i]) for objective in objectives),
        ),
    )


def front(rows: Sequence[Point], objectives: Sequence[Objective]) -> frozenset[int]:
    """Positions of the rows that no other row is at least as good as in all, better in one.

    Rows with a reason are never on the front and never push another off it.
    """
    costs = {
        position: tuple(objective.cost(row) for objective in objectives)
        for position, row in enumerate(rows)
        if row.reason is None
    }
    if not objectives:
        return frozenset()
    return frozenset(
        position
        for position, own in costs.items()
        if all(map(isfinite, own))
        and not any(
            other != own and all(a <= b for a, b in zip(other, own, strict=True))
            for other in costs.values()
        )
    )


def _as_number(value: Scalar) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _number(value: str, where: str) -> float:
    try:
        return float(value)
    except ValueError:
        pass
    for dimension in get_args(Dimension):
        try:
            return parse_quantity(value, dimension, where)
        except ValueError:
            continue
    raise ValueError(f"--where {where!r}: {value!r} is no number and no quantity with a unit")
