"""Plan a service: price deployments and simulate fleets until the smallest is known.


Searches of one service, of its limits and of limits tightened and loosened, follow one another and
share what is worked out; processes that are free work ahead. Everything that is worked out is kept
in a file of rows, so that an interrupted plan goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from hardware_profiles.fields import Raw, to_profile
from hardware_profiles.units import Dollars, Seconds
from simulator.analysis.parallel import processes, run_all
from simulator.analysis.plan.serving_bounds import Demand, Limits, demand_of
from simulator.analysis.plan.serving_prices import (
    Measured,
    Price,
    first_tokens_only,
    pool_alone,
    price_of,
    run_of,
)
from simulator.analysis.plan.serving_search import (
    Fleet,
    PriceTask,
    Results,
    Search,
    SearchTask,
    Standing,
    progress_of,
    roles_of,
    searched_deployments,
)
from simulator.analysis.run_key import run_key
from simulator.analysis.sweep import Point, append_row, read_rows
from simulator.execution.fleet.kept_points import KnownTimes
from simulator.scenario.files import load_scenario, scenario_from
from simulator.scenario.fleet import FleetJob, RequestSource
from simulator.scenario.starting_serving import (
    FILL_STAYS,
    WINDOW_STAYS,
    Deployment,
    Pool,
    Service,
    ServingMachine,
    fleet_scenario,
    starting_pool,
)

_MILLION = 10**6

VARIED = (
    ("TTFT limit halved", 0.5, 1.0),
    ("TTFT limit doubled", 2.0, 1.0),
    ("TPOT limit halved", 1.0, 0.5),
    ("TPOT limit doubled", 1.0, 2.0),
)
"""(name, factor of the TTFT limit, of the TPOT limit) of what the count is sensitive to."""
WITHOUT_DRAFTS = "without drafted tokens (MTP)"


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """A service with the smallest fleet that keeps its limits, and what it was held against."""

    service: Service
    demand: Demand
    percentile: int
    limits: Limits
    progress: Standing
    known: Results
    searched: int
    """Deployments."""
    variants: Mapping[str, tuple[Limits, Fleet | None]]
    """{what differs: limits, and the smallest fleet that keeps them}; no fleet where no deployment
    that is searched does."""

    @property
    def fleet(self) -> Fleet | None:
        """The recommended one; None where none that is searched keeps the limits."""
        return self.progress.answer

    @property
    def measured(self) -> Measured | None:
        """What it shows when it is simulated."""
        return None if self.fleet is None else self.known.runs[self.fleet]


def plan_serving(
    service: Service,
    *,
    percentile: int = 90,
    deployments: Sequence[Deployment] | None = None,
    sensitivity: bool = True,
    jobs: int = 1,
    kept: Path | None = None,
    told: Callable[[str, int, Standing], object] = lambda _, __, ___: None,
) -> ServingPlan:
    """Find the smallest fleet of a service.

    Args:
        percentile: share of requests, in %, that are to stay within each limit: 50, 90, 95 or 99.
        deployments: those that are searched; by default all of `searched_deployments`.
        sensitivity: whether limits are tightened and loosened as well.
        jobs: processes.
        kept: file of rows that everything worked out is added to, and taken from.
        told: called after every result with what it is, its number, and where the plan stands.

    Raises:
        ValueError: requests without a rate, or a scenario that does not load.
    """
    deployments = searched_deployments(service) if deployments is None else tuple(deployments)
    base = _any_fleet(service, deployments)
    job = scenario_from("plan", base, (), where="plan serving").job_as(FleetJob)
    demand = demand_of(job.requests, percentile=percentile, seed=0, hits=service.has_hashes)
    limits = Limits(service.ttft_s, service.tpot_s)
    main = Search(service, demand, limits, deployments)
    searches = {"": main}
    if sensitivity:
        for name, ttft, tpot in VARIED:
            other = replace(limits, ttft_s=limits.ttft_s * ttft, tpot_s=limits.tpot_s * tpot)
            searches[name] = replace(main, limits=other, check_fewer=False)
        if any(each.draft_tokens for each in deployments):
            plain = replace(limits, drafting=False)
            searches[WITHOUT_DRAFTS] = replace(main, limits=plain, check_fewer=False)
    tpot_limits = tuple(sorted({each.limits.tpot_s for each in searches.values()}))
    digest_of = partial(
        _digest_of,
        base=run_key(scenario_from("plan", base, (), where="plan serving")),
        percentile=percentile,
        tpot_limits=tpot_limits,
    )
    rows = {}
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        rows = read_rows(kept)
    course = _Course(_tightest_first(searches))
    begun: list[SearchTask] = []

    def calls() -> Iterator[tuple[Any, ...] | None]:
        while not course.over:
            task = course.next_task(at_a_time=processes(jobs))
            if task is None:
                yield None
            elif (found := _found_before(task, rows, digest_of(task))) is not None:
                course.add(task, found)
            else:
                begun.append(task)
                known = _known_of(task, course.known)
                yield (service, demand, percentile, tpot_limits, task, *known)

    for at, result in run_all(_worked_out, calls(), jobs=jobs):
        task = begun[at]
        if isinstance(result, ChildProcessError):
            found = _lost(task, result)
        else:
            found, times = result
            for deployment, points in times.items():
                course.known.times.setdefault(deployment, {}).update(points)
            if kept is not None:
                append_row(kept, _row(task, found, digest_of(task)))
        course.add(task, found)
        told(task_in_words(task), course.known.count, course.standings[""])
        if course.over:
            break
    return ServingPlan(
        service=service,
        demand=demand,
        percentile=percentile,
        limits=limits,
        progress=course.standings[""],
        known=course.found,
        searched=len(deployments),
        variants={
            name: (each.limits, course.standings[name].answer)
            for name, each in searches.items()
            if name
        },
    )


def service_by_requests(
    requests: str,
    trace_format: str | None,
    *,
    rate: float | None,
    machine: ServingMachine,
    ttft_s: Seconds,
    tpot_s: Seconds,
    **other: Any,
) -> Service:
    """A service of recorded requests, or of those of a fleet scenario.

    Args:
        requests: shipped name or path of a scenario; with `trace_format`, path of a trace.
        rate: requests per second that they are stretched or squeezed to; their own without it.

    Raises:
        ValueError: no fleet scenario, no trace, or requests without a rate.
    """
    if trace_format is None:
        scenario = load_scenario(requests)
        scenario.job_as(FleetJob)
        raw = scenario.resolved["fleet"]["requests"]
    else:
        raw = {"file": requests, "format": trace_format}
    source = to_profile(RequestSource, raw, where="--requests")
    found = demand_of(source, percentile=50, seed=0, hits=False)
    if rate is not None:
        raw = raw | {"rate_scale": source.rate_scale * rate / found.rate}
    span_s = found.span_s * (1.0 if rate is None else found.rate / rate)
    synthetic = source.synthetic if source.file is None else None
    return Service(
        machine=machine,
        requests=raw,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        # A trace lasts as long as it does; part of it fills the service.
        stay_s=min(ttft_s + found.output_tokens * tpot_s, span_s / (FILL_STAYS + WINDOW_STAYS)),
        cached_share=0.0 if synthetic is None else synthetic.cached_fraction,
        has_hashes=source.format == "mooncake"
        if synthetic is None
        else synthetic.sessions is not None,
        **other,
    )


def _any_fleet(service: Service, deployments: Sequence[Deployment]) -> Raw:
    """A scenario of the service on some pool, for what does not depend on its pools."""
    if not deployments:
        raise ValueError("plan serving: no deployment to search")
    size = service.machine.node_gpus
    pool = starting_pool(service, "colocated", instances=1, gpus=size, split=True)
    return fleet_scenario(service, [pool], description="what a plan rests on")


# -- course ----------------------------------------------------------------------------------------


def _tightest_first(searches: Mapping[str, Search]) -> dict[str, Search]:
    """The question itself, then those of the tightest limits: fleets of theirs are mostly tried one
    after the other, which leaves processes free for the rest as long as there is any."""

    def place(name: str) -> tuple[bool, float]:
        limits = searches[name].limits
        return (name != "", limits.ttft_s * limits.tpot_s)

    return {name: searches[name] for name in sorted(searches, key=place)}


class _Course:
    """Searches of one service one after the other, each of which knows what those before it found.

    What a search looks at are results that it or those before it asked for, in that order, so that
    no answer goes with the number of processes or their pace. A process that is free works ahead
    for later searches, which then find their results there.
    """

    def __init__(self, searches: Mapping[str, Search]) -> None:
        self.found = Results()
        """What the searches have asked for so far."""
        self.known = Results()
        """All that is worked out."""
        self._searches = tuple(searches.values())
        self._names = tuple(searches)
        self.standings = {name: Standing(None, (), {}, ()) for name in searches}
        """Where each search stood when it was looked at last."""
        self._at = 0
        self._round: list[SearchTask] = []
        """What the present search waits for."""
        self._running: set[SearchTask] = set()
        self._go_on()

    @property
    def over(self) -> bool:
        """Whether no search wants anything of what is not found."""
        return not self._round

    def next_task(self, *, at_a_time: int) -> SearchTask | None:
        """What to begin now; nothing where as many run as may, or no search can say."""
        if len(self._running) >= at_a_time:
            return None
        task = _longest(self._to_begin(self._round))
        for search in self._searches[self._at + 1 :]:
            if task is not None:
                break
            task = _longest(self._to_begin(progress_of(search, self.known).wanted))
        if task is not None:
            self._running.add(task)
        return task

    def add(self, task: SearchTask, found: Price | Measured) -> None:
        """A task has been worked out."""
        self._running.discard(task)
        self.known.add(task, found)
        if not self._to_begin(self._round) and not self._running.intersection(self._round):
            self._go_on()

    def _to_begin(self, tasks: Iterable[SearchTask]) -> list[SearchTask]:
        return [t for t in tasks if t not in self._running and self.known.of(t) is None]

    def _go_on(self) -> None:
        """Look at the searches in turn until one waits for a result, or none wants another."""
        ended = 0
        while ended <= len(self._searches):
            standing = progress_of(self._searches[self._at], self.found)
            self.standings[self._names[self._at]] = standing
            self._round = list(standing.wanted)
            if self._to_begin(self._round) or self._running.intersection(self._round):
                return
            ended = 0 if self._round else ended + 1
            for task in self._round:
                found = self.known.of(task)
                assert found is not None
                self.found.add(task, found)
            if not self._round:
                self._at = (self._at + 1) % len(self._searches)


def _longest(tasks: Iterable[SearchTask]) -> SearchTask | None:
    """What takes longest begins first, so that no process waits long for the last."""
    return max(tasks, key=_effort, default=None)


# -- work ------------------------------------------------------------------------------------------


_Times: TypeAlias = dict[Deployment, KnownTimes]
"""Grid points of deployments whose ranks differ."""


def _digest_of(
    task: SearchTask, *, base: str, percentile: int, tpot_limits: tuple[Seconds, ...]
) -> str:
    """Equal for tasks of equal results.

    Args:
        base: digest of the service, and of the program.
    """
    said: dict[str, Any] = {"task": task_in_words(task), "percentile": percentile}
    if isinstance(task, PriceTask):
        said |= {**asdict(task), "limits": tpot_limits}
    else:
        said["pools"] = [asdict(pool) for pool in task]
    text = json.dumps([base, said], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _known_of(task: SearchTask, known: Results) -> tuple[Price | None, _Times]:
    """What a task goes on from: the price of ideal ranks, and times of grid points."""
    if not isinstance(task, PriceTask):
        return None, {each: known.times.get(each, {}) for p in task for each in p.deployments}
    if not task.expected:
        return None, {}
    ideal = known.prices.get(PriceTask(task.deployment, expected=False))
    return ideal, {task.deployment: known.times.get(task.deployment, {})}


def _worked_out(
    service: Service,
    demand: Demand,
    percentile: int,
    tpot_limits: Sequence[Seconds],
    task: SearchTask,
    ideal: Price | None,
    times: _Times,
) -> tuple[Price | Measured, _Times]:
    """The result of one task, in any process, and the times that are known after it."""
    if isinstance(task, PriceTask):
        price = price_of(
            service,
            demand,
            task.deployment,
            expected=task.expected,
            tpot_limits=(task.tpot_s,) if task.tpot_s else tpot_limits,
            ideal=ideal,
            known=times.get(task.deployment),
        )
        return price, times
    of_phases: dict[str, KnownTimes] = {each.phase: points for each, points in times.items()}
    return run_of(fleet_of(service, demand, task), percentile, of_phases), times


def fleet_of(service: Service, demand: Demand, pools: Fleet) -> Raw:
    """The scenario that a fleet of a plan is simulated as."""
    if len(pools) == 1 and pools[0].role == "prefill":
        return pool_alone(first_tokens_only(service, demand, service.ttft_s), pools[0])
    return fleet_scenario(service, pools, description=names_of(pools))


def _effort(task: SearchTask) -> int:
    """Of a result, in order: a whole fleet, ranks that differ, a pool alone, ideal ranks."""
    if isinstance(task, PriceTask):
        return 2 if task.expected else 0
    return 3 if roles_of(task) else 1


def _lost(task: SearchTask, result: ChildProcessError) -> Price | Measured:
    if isinstance(task, PriceTask):
        return Price(task.expected, reason=str(result))
    return Measured(reason=str(result))


def _row(task: SearchTask, found: Price | Measured, digest: str) -> Point:
    metrics = found.to_json() if isinstance(found, Price) else asdict(found)
    return Point({"task": task_in_words(task)}, digest, {"found": json.dumps(metrics)})


def _found_before(
    task: SearchTask, rows: Mapping[str, Point], digest: str
) -> Price | Measured | None:
    """What an earlier plan has kept of a task."""
    row = rows.get(digest)
    if row is None:
        return None
    found = json.loads(str(row.metrics["found"]))
    return Price.of_json(found) if isinstance(task, PriceTask) else Measured(**found)


# -- in words --------------------------------------------------------------------------------------


def task_in_words(task: SearchTask) -> str:
    """What a task is, for the one who waits."""
    if isinstance(task, PriceTask):
        return f"price of {task.deployment.phase} {task.deployment.name}" + (
            "" if task.expected else ", ideal ranks"
        )
    alone = len(task) == 1 and task[0].role == "prefill"
    return f"simulation of {names_of(task)}" + (" alone" if alone else "")


def names_of(pools: Iterable[Pool]) -> str:
    """A fleet in words: prefill 4 x EP32, passes of 4K; decode 2 x EP64, MTP."""
    parts = []
    for pool in pools:
        names = list(dict.fromkeys(each.name for each in pool.deployments))
        passes = pool.tokens_per_pass
        budget = "" if passes is None else f", passes of {passes // 1024}K"
        parts.append(f"{pool.role} {pool.instances} x {' and '.join(names)}{budget}")
    return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Cost:
    """Rent of a fleet, and of a million tokens in and out."""

    per_hour: Dollars
    per_million_in: Dollars
    per_million_out: Dollars


def cost_of(plan: ServingPlan, fleet: Fleet) -> Cost:
    """What a simulated fleet costs: tokens in carry the rent of the prefill pool, tokens out that
    of the decode pool; where one pool does both, each the share of its busy time."""
    price = plan.service.machine.profile.gpu_price
    rent = {pool.role: pool.gpus * price for pool in fleet}
    if "colocated" in rent:
        share = plan.known.runs[fleet].prefill_share
        whole = rent["colocated"]
        rent = {"prefill": whole * share, "decode": whole * (1 - share)}
    demand = plan.demand
    return Cost(
        per_hour=sum(rent.values()) * 3600,
        per_million_in=rent["prefill"] / (demand.rate * demand.prompt_tokens) * _MILLION,
        per_million_out=rent["decode"] / (demand.rate * demand.output_tokens) * _MILLION,
    )


def nodes_of(plan: ServingPlan, fleet: Fleet) -> float:
    """Nodes of a fleet; a part of one where an instance has fewer GPUs."""
    return sum(pool.gpus for pool in fleet) / plan.service.machine.node_gpus


def cheapest(plans: Sequence[ServingPlan]) -> int:
    """Position of the plan whose fleet costs least per hour; the first where none has one."""
    costs = [
        math.inf if plan.fleet is None else cost_of(plan, plan.fleet).per_hour for plan in plans
    ]
    return costs.index(min(costs))


def rows_beside(directory: Path) -> Path:
    """The file that keeps what is worked out of a plan until its directory is written."""
    return directory.with_name(f".{directory.name}.rows.jsonl")
