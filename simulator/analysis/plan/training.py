"""Look for the fastest layout of a training job: bound every legal one, simulate the best.

Every legal layout gets a lower bound of its ideal step; those that come first by it are simulated,
operator by operator, until so many have run or no other can be faster. Ideal ranks decide on time,
for what makes ranks differ is the same for all; the run of the chosen layout says what it expects.
Memory must hold what the fullest GPU has as ranks differ: a layout that fits with equal rows alone
is none to take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from statistics import mean, median
from typing import Any

from hardware_profiles.units import Bytes, Seconds, format_bytes, format_seconds
from simulator.analysis.parallel import run_in_order
from simulator.analysis.plan.training_bounds import TrainingBound, TrainingBounds
from simulator.analysis.plan.training_candidates import LayerFacts, candidates
from simulator.analysis.plan.training_layouts import (
    TrainingLayout,
    axis_values,
    layout_of_job,
)
from simulator.analysis.run import Metrics
from simulator.analysis.sweep import Objective, Point, front, point_at, run_sweep
from simulator.analysis.training_metrics import training_metrics
from simulator.execution.training_draws import expected_memory
from simulator.execution.training_run import simulate_training
from simulator.scenario.files import Scenario, load_scenario
from simulator.scenario.inputs import Skew
from simulator.scenario.training import TrainingJob
from simulator.workload.memory import Infeasible
from simulator.workload.recorded import traces_in

EQUAL = Skew.model_validate("none")
IDEAL = ("training.skew=none",)
CHOSEN_STAGES = ("training.stages=default",)

PARTS = ("kernels", "exposed all-to-all", "waiting for ranks", "sends", "optimizer")
"""What an ideal step is made of, on the mean of its ranks."""

TRIES = 3
"""Times as many layouts as are asked for are tried at most, where some turn out not to fit."""


@dataclass(frozen=True, slots=True)
class SimulatedLayout:
    """A layout that was simulated."""

    place: int
    """By bound, from 0."""
    layout: TrainingLayout
    bound_s: Seconds
    row: Point

    @property
    def step_s(self) -> Seconds | None:
        """Its ideal step; None where it does not run."""
        found = self.row.metrics.get("step_time_s")
        return float(found) if isinstance(found, int | float) else None


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What the search found."""

    scenario: Scenario
    """Whose layout was free, with ideal ranks."""
    axes: Mapping[str, tuple[object, ...]]
    lost: Mapping[str, int]
    """{kind: layouts that are not legal, or do not fit}"""
    ranked: tuple[TrainingBound, ...]
    """Of those that are legal and may fit, the least first."""
    simulated: tuple[SimulatedLayout, ...]
    """By step, those that do not run last."""
    own: TrainingLayout | None
    """Of the scenario that was planned for; None where it has none of its own."""

    @property
    def best(self) -> SimulatedLayout | None:
        """The fastest; None where none runs."""
        first = self.simulated[0] if self.simulated else None
        return first if first is not None and first.step_s is not None else None

    @property
    def ran(self) -> list[SimulatedLayout]:
        return [each for each in self.simulated if each.step_s is not None]

    @property
    def pruned(self) -> int:
        """Layouts whose bound exceeds the fastest step, so that they cannot be faster."""
        if self.best is None or self.best.step_s is None:
            return 0
        return sum(each.seconds > self.best.step_s for each in self.ranked)

    @property
    def tightness(self) -> float | None:
        """Median of bound over simulated step."""
        found = [each.bound_s / each.step_s for each in self.ran if each.step_s]
        return median(found) if found else None

    @property
    def front(self) -> list[SimulatedLayout]:
        """Those that no other is as good as in both time and memory; the GPUs are all the same."""
        objectives = (Objective("step_time_s", 1), Objective("peak_memory_bytes", 1))
        places = front([each.row for each in self.simulated], objectives)
        return [self.simulated[place] for place in sorted(places)]

    @property
    def losers(self) -> dict[str, int]:
        """{kind: layouts}, of all that are not the best."""
        found = dict(self.lost)
        cannot = self.pruned
        found["bound above the fastest simulated step"] = cannot
        unfit = len(self.simulated) - len(self.ran)
        found["does not fit memory, as simulated"] = unfit
        slower = max(0, len(self.ran) - 1)
        found["simulated, slower"] = slower
        rest = len(self.ranked) - cannot - unfit - len(self.ran)
        found["might be faster by its bound, not simulated"] = max(0, rest)
        return {kind: count for kind, count in found.items() if count}

    @property
    def of_own(self) -> SimulatedLayout | None:
        """The scenario's own layout, simulated."""
        return next((each for each in self.simulated if each.layout == self.own), None)


def bounded_layouts(
    path: str, changes: Sequence[str], axes: Mapping[str, tuple[object, ...]], *, jobs: int = 1
) -> tuple[list[TrainingBound], Counter[str]]:
    """Every legal layout of a training scenario by its bound; and how many others, by kind.

    Args:
        changes: of the scenario, as texts "path=value".
        axes: {axis: values that are tried}, as of `axis_values`.
        jobs: processes, each with some sizes of expert groups, which share what they rest on.
    """
    count = 1 if jobs == 1 else min(2 * jobs, len(axes["ep"]))
    parts = [dict(axes) | {"ep": axes["ep"][first::count]} for first in range(count)]
    lost: Counter[str] = Counter()
    found: list[TrainingBound] = []
    inputs = [(path, tuple(changes), part) for part in parts]
    for bounds, others in run_in_order(_bounded_part, inputs, jobs=jobs):
        found += bounds
        lost += others
    return sorted(found, key=lambda each: each.seconds), lost


def _bounded_part(
    path: str, changes: Sequence[str], axes: Mapping[str, tuple[object, ...]]
) -> tuple[list[TrainingBound], Counter[str]]:
    """Bounds of layouts in their own order."""
    lost: Counter[str] = Counter()
    scenario = load_scenario(path, changes)
    layers = LayerFacts(scenario, traces_in(scenario.file.traces))
    return TrainingBounds(layers).of(candidates(layers, axes, lost)), lost


def layout_metrics(scenario: Scenario) -> Metrics:
    """Metrics of a layout's ideal step, with what it is made of.

    Raises:
        ValueError: the layout does not fit, be it by the rows that its skew usually gives the
            fullest GPU, or cannot run.
    """
    try:
        run = simulate_training(scenario, traces_in(scenario.file.traces), unfold=False)
    except Infeasible as error:
        # What would help is another layout, which is what is looked for.
        raise ValueError(error.reason) from None
    needed, capacity = expected_memory(run), scenario.cluster.node.gpu.hbm_capacity
    if needed > capacity:
        raise ValueError(
            f"with the rows that the fullest GPU usually gets it needs {format_bytes(needed)}, "
            f"{format_bytes(needed - capacity)} more than its {format_bytes(capacity)}"
        )
    ideal = replace(run, job=run.job.model_copy(update={"skew": EQUAL}))
    found = training_metrics(ideal, with_intervals=False, with_further_steps=False)
    return found | {"parts": step_parts(found["ranks"])}


def step_parts(ranks: Sequence[Mapping[str, float]]) -> dict[str, Seconds]:
    """{one of PARTS: seconds}, on the mean of the ranks; they sum to the step."""
    works = ("forward_s", "backward_s", "weight_s", "overlapped_s")
    chunks = mean(sum(rank[work] for work in works) for rank in ranks)
    exposed = mean(rank["exposed_communication_s"] for rank in ranks)
    waits = mean(rank["waiting_for_ranks_s"] + rank["waiting_for_host_s"] for rank in ranks)
    sends = mean(rank["waiting_for_sends_s"] for rank in ranks)
    optimizer = mean(rank["optimizer_s"] for rank in ranks)
    return dict(zip(PARTS, (chunks - exposed, exposed, waits, sends, optimizer), strict=True))


def plan_training(
    path: str,
    changes: Sequence[str] = (),
    *,
    fixed: Mapping[str, Sequence[object]] | None = None,
    simulate: int = 50,
    jobs: int = 1,
    own: bool = False,
    kept: Path | None = None,
    known: Mapping[str, Point] | None = None,
    bounded: Callable[[Sequence[TrainingBound], Mapping[str, int]], object] = lambda *_: None,
    done: Callable[[Point], object] = lambda _: None,
) -> TrainingPlan:
    """Look for the layout whose ideal step is shortest.

    Args:
        path: a training scenario, shipped or a file; what its layout says is free.
        changes: texts "path=value" that hold for every layout.
        fixed: {axis: the only values to try}.
        simulate: layouts that are simulated.
        jobs: processes.
        own: whether the scenario has a layout of its own, to be simulated as well.
        kept, known: as of `run_sweep`: rows that an interruption does not lose.
        bounded: called with the layouts by bound, and the others by kind, before any is simulated.
        done: called with every row as it comes.

    Raises:
        ValueError: no training job, an axis that there is not, or no layout that may fit.
    """
    differing = (*changes, *CHOSEN_STAGES)
    settled = (*changes, *IDEAL, *CHOSEN_STAGES)
    written = load_scenario(path, changes)
    own_job = written.job_as(TrainingJob)
    scenario = load_scenario(path, settled)
    axes = axis_values(scenario, fixed or {})
    ranked, lost = bounded_layouts(path, settled, axes, jobs=jobs)
    if not ranked:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in lost.most_common() if count)
        raise ValueError(
            f"{written.name}: no layout of {sum(lost.values())} may run: {kinds}; allowed: more "
            "GPUs, another batch, or fewer axes held with --fix"
        )
    bounded(ranked, lost)
    former = layout_of_job(own_job) if own else None
    found: list[SimulatedLayout] = []
    place = 0
    while place < min(len(ranked), TRIES * simulate):
        ran = [each.step_s for each in found if each.step_s is not None]
        missing = simulate - len(ran)
        fastest = min(ran, default=float("inf"))
        part = [
            (number, each)
            for number, each in enumerate(ranked[place : place + missing], place)
            if each.seconds <= fastest
        ]
        place += missing
        if not part:
            break
        found += _simulated(path, differing, part, jobs=jobs, kept=kept, known=known, done=done)
    if former is not None and all(each.layout != former for each in found):
        alone = [(n, each) for n, each in enumerate(ranked) if each.layout == former]
        found += _simulated(path, differing, alone, jobs=1, kept=kept, known=known, done=done)
    found.sort(key=lambda each: (each.step_s is None, each.step_s or 0.0, each.place))
    return TrainingPlan(scenario, axes, lost, tuple(ranked), tuple(found), former)


def _simulated(
    path: str,
    changes: Sequence[str],
    part: Sequence[tuple[int, TrainingBound]],
    *,
    jobs: int,
    kept: Path | None,
    known: Mapping[str, Point] | None,
    done: Callable[[Point], object],
) -> list[SimulatedLayout]:
    """Some layouts, simulated; like ones after each other, since they share kernel times, chunks
    and schedules, and each process with a run of them."""
    alike = sorted(part, key=lambda each: _shared(each[1].layout))
    runs = [alike[len(alike) * n // jobs : len(alike) * (n + 1) // jobs] for n in range(jobs)]
    alike = [each for turn in zip_longest(*runs) for each in turn if each is not None]
    points = [point_at(path, changes, each.layout.settings) for _, each in alike]
    rows = run_sweep(points, path, layout_metrics, kept=kept, known=known, jobs=jobs, done=done)
    return [
        SimulatedLayout(number, each.layout, each.seconds, row)
        for (number, each), row in zip(alike, rows, strict=True)
    ]


def _shared(layout: TrainingLayout) -> tuple[object, ...]:
    """Of a layout, from what most rests on to what least does."""
    experts = (layout.tp, layout.etp, layout.cp, layout.micro_batch, layout.ep)
    return (*experts, layout.recompute, layout.schedule, layout.pp)


def training_recommendation(plan: TrainingPlan) -> str:
    """One sentence: the layout to take, and what limits it."""
    best = plan.best
    if best is None or best.step_s is None:
        return "No layout that was simulated fits; more GPUs, or --simulate with more layouts."
    metrics = best.row.metrics
    parts = {part: float(metrics[f"parts.{part}"] or 0.0) for part in PARTS}
    kernels, others = parts.pop("kernels"), sorted(parts, key=parts.__getitem__, reverse=True)
    capacity: Bytes = plan.scenario.cluster.node.gpu.hbm_capacity
    used = float(metrics["peak_memory_bytes"] or 0.0)
    first, second = others[:2]
    return (
        f"Take {best.layout}: an ideal step of {format_seconds(best.step_s)} and "
        f"{format_bytes(used)} of {format_bytes(capacity)} a GPU; kernels are "
        f"{kernels / best.step_s:.0%} of it, and what limits it beside them is {first} "
        f"({parts[first] / best.step_s:.1%}), then {second} ({parts[second] / best.step_s:.1%})."
    )


def training_plan_json(plan: TrainingPlan) -> dict[str, Any]:
    """Everything that `dsv3sim plan training` prints."""
    own = plan.of_own
    capacity = plan.scenario.cluster.node.gpu.hbm_capacity

    def of(each: SimulatedLayout) -> dict[str, Any]:
        return {
            "layout": str(each.layout),
            "settings": each.layout.settings,
            "place_by_bound": each.place + 1,
            "bound_s": each.bound_s,
            "metrics": dict(each.row.metrics),
            "reason": each.row.reason,
        }

    return {
        "scenario": plan.scenario.name,
        "gpus": plan.scenario.cluster.gpus,
        "hbm_capacity_bytes": capacity,
        "axes": {axis: [_plain(value) for value in values] for axis, values in plan.axes.items()},
        "legal": len(plan.ranked) + sum(
            count for kind, count in plan.lost.items() if kind.startswith("does not fit")
        ),
        "bounded": len(plan.ranked),
        "pruned": plan.pruned,
        "simulated": len(plan.ran),
        "bound_over_simulated": plan.tightness,
        "losers": plan.losers,
        "rows": [of(each) | {"rank": n} for n, each in enumerate(plan.simulated, 1)],
        "front": [str(each.layout) for each in plan.front],
        "own": of(own) | {"rank": plan.simulated.index(own) + 1} if own else None,
        "recommendation": training_recommendation(plan),
    }  # fmt: skip


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        name, stages = value
        return name if stages is None else f"{name} x{stages}"
    return value
