"""Run a whole training run through failures, by events, once for each seed.

The run is a row of steps with known times, and every step at which a checkpoint begins is known
beforehand, since a run that goes back goes back to one of them. Between two events the position is
arithmetic, so that failures, repairs and slow nodes are the only events, however many steps lie
between them.

A position counts training seconds at the usual speed and the seconds of stalls for checkpoints. A
failure takes it back to the last checkpoint that was written to its end; what was done since is
lost. Detection, restart, waiting for a node and reload follow, from the beginning again where
another failure falls into them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import simpy
from numpy.typing import NDArray

from hardware_profiles.units import Seconds
from simulator.scenario.pretraining import FailureKind

Array = NDArray[np.float64]

CAUSES = (
    "training",
    "slow",
    "checkpoints",
    "lost",
    "detection",
    "restart",
    "waiting_for_nodes",
    "reload",
)
"""Where the time of a run goes: steps that are kept at their usual speed, what slow nodes and
missing parts add to them, stalls for checkpoints that are kept, everything that is done again, and
what follows a failure, in order. They sum to its wall-clock time."""


@dataclass(frozen=True)
class Plan:
    """All that a run needs to know beforehand; the same for every seed."""

    ends_s: Array
    """[checkpoints + 1], training time from the start to every checkpoint, the end of the last step
    last; increasing."""
    stall_s: Seconds
    """For which training stops at a checkpoint."""
    write_s: Seconds
    """From the end of the stall until the checkpoint can be read; 0 where training waits for it."""
    reload_s: Seconds
    restart_s: Seconds
    kinds: Mapping[str, FailureKind]
    gpus: int
    """That can fail."""
    slow_rate: float = 0.0
    """Slow nodes per second."""
    slowdown: float = 1.0
    found_after_s: Seconds = 0.0
    spares: int = 0
    repair_s: Seconds = 0.0
    shrinks: bool = False
    """Whether the run goes on with fewer parts while nodes are missing."""
    parts: int = 1
    """That can train without each other."""
    nodes_per_part: int = 1

    @cached_property
    def starts(self) -> Array:
        """[checkpoints], position at which every stall begins."""
        begun: Array = self.ends_s[:-1] + self.stall_s * np.arange(len(self.ends_s) - 1)
        return begun

    @property
    def end(self) -> float:
        """Position at which the run is done."""
        return float(self.ends_s[-1]) + self.stall_s * (len(self.ends_s) - 1)

    def stalls_begun(self, position: float) -> int:
        """Checkpoints that have begun at a position."""
        return int(np.searchsorted(self.starts, position, side="right"))

    def trained(self, position: float) -> Seconds:
        """Training time, at the usual speed, before a position."""
        begun = self.stalls_begun(position)
        if not begun:
            return position
        inside = min(position - float(self.starts[begun - 1]), self.stall_s)
        return position - self.stall_s * (begun - 1) - inside

    def passed(self, position: float, speed: float) -> Seconds:
        """Wall-clock time from the start to a position at one speed."""
        trained = self.trained(position)
        return trained / speed + (position - trained)

    def position_at(self, passed_s: Seconds, speed: float) -> float:
        """Position so much wall-clock time after the start at one speed."""

        def begins(place: int) -> Seconds:
            return float(self.ends_s[place]) / speed + self.stall_s * place

        begun = bisect_right(range(len(self.starts)), passed_s, key=begins)
        if not begun:
            return passed_s * speed
        start, into = float(self.starts[begun - 1]), passed_s - begins(begun - 1)
        beyond = max(0.0, into - self.stall_s)
        return start + (into - beyond) + beyond * speed


def checkpoint_ends(step_ends_s: Array, interval_s: Seconds) -> Array:
    """Training time at every checkpoint, and at the end: after each interval, in whole steps.

    Args:
        step_ends_s: [steps], increasing.
        interval_s: of training; math.inf for no checkpoint.
    """
    found: list[float] = []
    last, total = 0.0, float(step_ends_s[-1])
    while last + interval_s < total:
        # A step that ends within rounding of the interval ends at it.
        place = int(np.searchsorted(step_ends_s, (last + interval_s) * (1 - 1e-12)))
        last = float(step_ends_s[place])
        if last < total:
            found.append(last)
    return np.array([*found, total])


def optimal_interval(stall_s: Seconds, mean_between_s: Seconds) -> Seconds:
    """Training time between checkpoints that loses least.

    Source: Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps",
    2006, equation 37; of it the first term less the stall is Young's.
    """
    if math.isinf(mean_between_s):
        return math.inf
    if stall_s >= 2 * mean_between_s:
        return mean_between_s
    ratio = stall_s / (2 * mean_between_s)
    young = math.sqrt(2 * stall_s * mean_between_s)
    return young * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall_s


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that stopped a run, or slowed it."""

    at_s: Seconds
    kind: str
    lost_s: Seconds
    """Time since the last checkpoint that could be read."""
    position: float
    """At which the run goes on."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time in which a run trained at one speed."""

    from_s: Seconds
    position: float
    """At which it began."""
    speed: float
    """Training at the usual speed per second."""
    held_up: float
    """Time of a step over that of this run without slow nodes and missing parts."""
    to_s: Seconds = math.inf
    """Endless while it lasts."""


@dataclass(slots=True)
class RunLog:
    """What became of one run."""

    seconds: dict[str, Seconds] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0.0))
    """{one of CAUSES: wall-clock time}"""
    incidents: list[Incident] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)
    """Those that the run was not thrown back behind."""
    states: list[tuple[Seconds, Seconds, str]] = field(default_factory=list)
    """(from, to, "training" or one of CAUSES after "lost"), in order."""

    @property
    def wall_s(self) -> Seconds:
        """Time from the first step to the end of the last."""
        return math.fsum(self.seconds.values())

    def counts(self) -> Counter[str]:
        """Incidents by kind."""
        return Counter(incident.kind for incident in self.incidents)

    def reached_s(self, plan: Plan, training_s: Seconds) -> Seconds:
        """When the run had trained for so long, at the usual speed and for good."""
        stalls = int(np.searchsorted(plan.ends_s[:-1], training_s))
        position = training_s + plan.stall_s * stalls
        part = next(part for part in reversed(self.stretches) if part.position <= position)
        return (
            part.from_s + plan.passed(position, part.speed) - plan.passed(part.position, part.speed)
        )


def run_once(plan: Plan, *, slower: float, seed: np.random.SeedSequence) -> RunLog:
    """One run, from its first step to its last.

    Args:
        slower: step times of this run over the usual ones.
        seed: every kind of failure draws from a child of its own, so that a change of one input
            leaves the failures of the others where they are.
    """
    children = [np.random.default_rng(child) for child in seed.spawn(len(plan.kinds) + 1)]
    *of_kinds, of_slow = children
    return run_with(
        plan,
        slower=slower,
        failures={
            name: _waits(kind.rate(plan.gpus), rng)
            for (name, kind), rng in zip(plan.kinds.items(), of_kinds, strict=True)
        },
        slow_nodes=_waits(plan.slow_rate, of_slow) if plan.slow_rate else (),
    )


def run_with(
    plan: Plan,
    *,
    slower: float = 1.0,
    failures: Mapping[str, Iterable[Seconds]],
    slow_nodes: Iterable[Seconds] = (),
) -> RunLog:
    """One run whose failures are given.

    Args:
        failures: {kind: times between two failures, the first from the start}.
        slow_nodes: times between two nodes that become slow.
    """
    env = simpy.Environment()
    job = _Job(env, plan, slower)
    job.process = env.process(job.run())
    for name, waits in failures.items():
        env.process(job.fail(name, waits))
    env.process(job.slow_down(slow_nodes))
    env.run(until=job.process)
    return job.log


def _waits(rate: float, rng: np.random.Generator) -> Iterator[Seconds]:
    """Times between two events of a rate per second."""
    while True:
        yield float(rng.exponential(1 / rate))


_Event = Literal["failure", "speed", "pause"]


def _cause(interrupt: simpy.Interrupt) -> tuple[_Event, str]:
    """What interrupted the run, and what it is called."""
    event, name = interrupt.args[0]
    return event, name


MOST_EVENTS = 100_000
"""Of a kind in one run; a run that fails faster than it starts again would never end."""


class _Job:
    """The run itself, its nodes and what happens to them."""

    def __init__(self, env: simpy.Environment, plan: Plan, slower: float) -> None:
        self.env = env
        self.plan = plan
        self.log = RunLog()
        self.process: simpy.Process | None = None
        self._slower = slower
        self._position = 0.0
        self._spares = plan.spares
        self._missing = 0
        self._slow = 0
        self._training = False
        self._repaired = env.event()

    # -- the run ---------------------------------------------------------------------------------

    def run(self) -> Generator[simpy.Event, Any, None]:
        stretches = [self._stretch()]
        while True:
            self._training = True
            try:
                yield self.env.timeout(self._left(stretches[-1]))
                self._keep(stretches, self.plan.end, self.env.now)
                return
            except simpy.Interrupt as interrupt:
                self._training = False
                event, name = _cause(interrupt)
            self._position = self._reached(stretches[-1])
            if event == "speed":
                self.log.incidents.append(Incident(self.env.now, name, 0.0, self._position))
                stretches.append(self._stretch())
                continue
            if event == "failure":
                self._go_back(stretches, name)
                yield from self._recover(self.plan.kinds[name].detection)
            else:
                yield from self._pause(stretches, name)
            stretches = [self._stretch()]

    def _pause(self, stretches: list[Stretch], name: str) -> Generator[simpy.Event, Any, None]:
        """Write a checkpoint now, and start again with other nodes."""
        since = self.env.now
        try:
            yield self.env.timeout(self.plan.stall_s + self.plan.write_s)
        except simpy.Interrupt as interrupt:
            _, failure = _cause(interrupt)
            self._go_back(stretches, failure)
            yield from self._recover(self.plan.kinds[failure].detection)
            return
        self._keep(stretches, self._position, since)
        self._spend("checkpoints", since)
        self.log.incidents.append(Incident(since, name, 0.0, self._position))
        yield from self._recover(0.0)

    def _recover(self, detection_s: Seconds) -> Generator[simpy.Event, Any, None]:
        """All that follows a stop; again from its detection where a failure falls into it."""
        while True:
            began, cause = self.env.now, ""
            try:
                for cause, lasts in (
                    ("detection", detection_s),
                    ("restart", self.plan.restart_s),
                    ("waiting_for_nodes", None),
                    ("reload", self.plan.reload_s),
                ):
                    began = self.env.now
                    if lasts is None:
                        while not self._has_nodes():
                            yield self._repaired
                    elif lasts:
                        yield self.env.timeout(lasts)
                    self._spend(cause, began)
                return
            except simpy.Interrupt as interrupt:
                self._spend(cause, began)
                _, name = _cause(interrupt)
                self.log.incidents.append(Incident(self.env.now, name, 0.0, self._position))
                detection_s = self.plan.kinds[name].detection

    def _spend(self, cause: str, began: Seconds) -> None:
        if self.env.now > began:
            self.log.seconds[cause] += self.env.now - began
            self.log.states.append((began, self.env.now, cause))

    # -- positions -------------------------------------------------------------------------------

    def _stretch(self) -> Stretch:
        parts = self.plan.parts
        shrunk = parts / (parts - 1) if self._missing else 1.0
        held_up = shrunk * (self.plan.slowdown if self._slow else 1.0)
        return Stretch(self.env.now, self._position, 1 / (self._slower * held_up), held_up)

    def _left(self, stretch: Stretch) -> Seconds:
        ends = (self.plan.passed(at, stretch.speed) for at in (stretch.position, self.plan.end))
        begun, end = ends
        return max(0.0, end - begun)

    def _reached(self, stretch: Stretch) -> float:
        """Position now."""
        passed = self.plan.passed(stretch.position, stretch.speed) + self.env.now - stretch.from_s
        return self.plan.position_at(passed, stretch.speed)

    def _when(self, stretches: list[Stretch], position: float) -> Seconds:
        """Wall-clock time at which the stretches came to a position."""
        stretch = next(stretch for stretch in reversed(stretches) if stretch.position <= position)
        begun = self.plan.passed(stretch.position, stretch.speed)
        return stretch.from_s + self.plan.passed(position, stretch.speed) - begun

    def _go_back(self, stretches: list[Stretch], kind: str) -> None:
        """To the last checkpoint that can be read, or where the stretches began."""
        now, stall = self.env.now, self.plan.stall_s
        begun = self.plan.stalls_begun(self._position)
        back_to, since = stretches[0].position, stretches[0].from_s
        for place in reversed(range(begun)):
            saved = float(self.plan.starts[place]) + stall
            if saved <= stretches[0].position:
                break
            if saved > self._position:
                continue
            when = self._when(stretches, saved)
            if when + self.plan.write_s <= now:
                back_to, since = saved, when
                break
        self._keep(stretches, back_to, since)
        self.log.seconds["lost"] += now - since
        if now > since:
            self.log.states.append((since, now, "lost"))
        self.log.incidents.append(Incident(now, kind, now - since, back_to))
        self._position = back_to

    def _keep(self, stretches: list[Stretch], position: float, until_s: Seconds) -> None:
        """Account for what the stretches did up to a position."""
        seconds = self.log.seconds
        ends = [
            *((stretch.from_s, stretch.position) for stretch in stretches[1:]),
            (until_s, position),
        ]
        for stretch, (ended_s, ended_at) in zip(stretches, ends, strict=True):
            to_s, to = min(ended_s, until_s), min(ended_at, position)
            if to_s <= stretch.from_s:
                continue
            begun, done = self.plan.trained(stretch.position), self.plan.trained(to)
            usual = (done - begun) * self._slower
            stalls = (to - stretch.position) - (done - begun)
            seconds["training"] += usual
            seconds["checkpoints"] += stalls
            seconds["slow"] += usual * (stretch.held_up - 1)
            self.log.stretches.append(replace(stretch, to_s=to_s))
            self.log.states.append((stretch.from_s, to_s, "training"))

    # -- what happens to it ----------------------------------------------------------------------

    def _counted(self, waits: Iterable[Seconds], what: str) -> Iterator[Seconds]:
        """The waits; raises ValueError where they are more than a run may have."""
        for count, wait in enumerate(waits):
            if count == MOST_EVENTS:
                share = self._position / self.plan.end
                raise ValueError(
                    f"pretraining.{what}: the run has not ended after {MOST_EVENTS:,} of them, at "
                    f"{share:.2%} of its work; allowed: more gpu_hours_between"
                )
            yield wait

    def fail(self, name: str, waits: Iterable[Seconds]) -> Generator[simpy.Event, Any, None]:
        for wait in self._counted(waits, f"failures.{name}"):
            yield self.env.timeout(wait)
            if self.plan.kinds[name].replaces_node:
                self._take_out()
            self._training = False
            assert self.process is not None
            self.process.interrupt(("failure", name))

    def slow_down(self, waits: Iterable[Seconds]) -> Generator[simpy.Event, Any, None]:
        for wait in self._counted(waits, "slow_nodes"):
            yield self.env.timeout(wait)
            self._slow += 1
            self._tell("speed", "slow_node")
            self.env.process(self._find_slow_node())

    def _find_slow_node(self) -> Generator[simpy.Event, Any, None]:
        yield self.env.timeout(self.plan.found_after_s)
        self._slow -= 1
        self._take_out()
        self._tell("pause", "slow_node_found")

    def _take_out(self) -> None:
        if self._spares:
            self._spares -= 1
        else:
            self._missing += 1
        self.env.process(self._repair())

    def _repair(self) -> Generator[simpy.Event, Any, None]:
        yield self.env.timeout(self.plan.repair_s)
        if not self._missing:
            self._spares += 1
            return
        self._missing -= 1
        self._repaired.succeed()
        self._repaired = self.env.event()
        if not self._missing:
            self._tell("pause", "whole_again")

    def _has_nodes(self) -> bool:
        can_shrink = self.plan.shrinks and self.plan.parts > 1
        return not self._missing or (can_shrink and self._missing <= self.plan.nodes_per_part)

    def _tell(self, event: _Event, name: str) -> None:
        """Interrupt the run where it trains; what recovers sees the change by itself."""
        if self._training:
            self._training = False
            assert self.process is not None
            self.process.interrupt((event, name))
