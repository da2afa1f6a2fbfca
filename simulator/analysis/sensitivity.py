"""Say what the time of a step depends on: the elasticity of the answer to each of its inputs.

An elasticity is the relative change of the answer over that of the input, from a change of 1%
either way (of a count, about 3%): -0.4 means that 1% more makes the answer 0.4% smaller. Each
point is the scenario simulated with the changed value; what it shares with the others is worked out
once (what rows say of kernels, graphs, schedules), so that kernels and transfers are priced anew
and the same graph is timed again. Times of another machine than the measured one are
restated, which alone moves a few of them and draws their errors anew: what an input saves or costs
is told from a value that differs by next to nothing.

What one input must become for the answer to fall by a share, all else as it is, is searched in
the same way. A step is a longest path through times that each fall in proportion to a rate's
inverse, or not at all: it is convex in that inverse, and what an input still saves shrinks as it
improves. What it can save in all is therefore at most its elasticity towards the better side, and
an input of which that is less than the share cannot reach it and is not searched. Counts of SMs go
in steps of whole waves of tiles and are searched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import log
from typing import Any

from simulator.analysis.run import simulate
from simulator.analysis.sensitivity_inputs import NOTHING, ScaledInput, another_gpu, inputs_of
from simulator.execution.progress import HowFar, Watch, unwatched
from simulator.execution.serving_run import ServingRun
from simulator.execution.training import TrainingRun
from simulator.execution.training_draws import expected_seconds
from simulator.execution.training_ranks import KnownRows
from simulator.scenario.files import Scenario, check_names, with_changes
from simulator.scenario.serving import ServingStepJob

WORTH_TRYING = 0.2
"""Of the share that is asked for: a count with a smaller elasticity is not searched."""
CLOSE = 1e-3
"""Of the answer: how near a search comes to what is asked for."""
MOST_STEPS = 30
"""Of a search."""

AnswerOf = Callable[[Mapping[str, Any]], float]
"""{path: value} changed -> the answer, seconds."""


@dataclass(frozen=True, slots=True)
class NeededValue:
    """What one input alone must become."""

    factor: float
    values: Mapping[str, Any]
    """{path as of --set: value}"""


@dataclass(frozen=True, slots=True)
class Row:
    """One input."""

    name: str
    group: str
    value: str
    """As a file has it."""
    paths: tuple[str, ...]
    step: float
    """Relative change, either way, that elasticities are taken over."""
    elasticity: float
    """Relative change of the answer over that of the input."""
    saves: float
    """The same towards the better side alone: how much the answer falls, 0 or more."""
    costs: float
    """Towards the worse side: how much it rises."""
    need: NeededValue | None
    """None where nothing of this input alone is enough."""
    at_most: float
    """Share of the answer that it can save, at most; of a count whose best value was tried, that
    one's."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """All inputs of a scenario, the strongest first."""

    scenario: Scenario
    metric: str
    answer_s: float
    ranks: str
    """ideal or expected"""
    target: float
    """Share by which the answer is asked to fall."""
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything in plain values."""
        return {
            "scenario": {"name": self.scenario.name, "job": self.scenario.job_name},
            "metric": self.metric,
            "value": self.answer_s,
            "ranks": self.ranks,
            "target": self.target,
            "rows": [asdict(row) for row in self.rows],
        }


def elasticities(
    scenario: Scenario,
    *,
    target: float,
    only: Collection[str] = (),
    watch: Watch = unwatched,
) -> Sensitivity:
    """Elasticities of the time of a training or serving step, and what each input must become.

    Args:
        target: share by which the answer is asked to fall.
        only: names of inputs; all of them where none is named.
        watch: told after each input how many are done.

    Raises ValueError for a job of another kind, an input that it does not have, or a target outside
    0 to 1.
    """
    if not 0.0 < target < 1.0:
        raise ValueError(f"sensitivity: --target {target:g}: allowed: above 0 and below 1")
    inputs = inputs_of(scenario)
    if only:
        check_names(only, [each.name for each in inputs], "sensitivity: --only")
        inputs = tuple(each for each in inputs if each.name in only)
    run = _run(scenario)
    rows: KnownRows = {}
    base = _answer(run, rows)

    def answer(changes: Mapping[str, Any]) -> float:
        return _answer(_run(with_changes(scenario, changes)), rows)

    alike = answer(another_gpu(scenario))
    found = []
    for number, each in enumerate(inputs, 1):
        start = base
        if each.group == "GPU":
            start = alike
        elif each.group != "waiting" and not each.whole:
            start = answer(each.at(1.0 + NOTHING))
        found.append(row_of(each, answer, start, target))
        watch(HowFar(number / len(inputs), number, "inputs"))
    return Sensitivity(
        scenario=scenario,
        metric=_metric(scenario),
        answer_s=base,
        ranks="ideal" if run.job.skew.is_none else "expected",
        target=target,
        rows=tuple(sorted(found, key=lambda row: (-abs(row.elasticity), row.name))),
    )


def _run(scenario: Scenario) -> TrainingRun | ServingRun:
    result = simulate(scenario).result
    assert isinstance(result, TrainingRun | ServingRun), "inputs_of refuses other jobs"
    return result


def _metric(scenario: Scenario) -> str:
    job = scenario.job
    if not isinstance(job, ServingStepJob):
        return "step_time_s"
    return "pass_time_s" if job.phase == "prefill" else "tpot_s.mean"


def _answer(run: TrainingRun | ServingRun, rows: KnownRows) -> float:
    """The time that a run is asked for, seconds: of a step, an output token, a pass.

    Args:
        rows: of ranks, as runs before have drawn them.
    """
    if isinstance(run, TrainingRun):
        return run.step.step_time_s if run.job.skew.is_none else expected_seconds(run, rows)
    seconds = run.step.step_s if run.draws is None else run.draws.expected_s
    drafts = run.job.speculative_decoding
    return seconds if drafts is None else seconds / drafts.tokens_per_step


def row_of(of: ScaledInput, answer: AnswerOf, base: float, target: float) -> Row:
    """What an input does to an answer.

    Args:
        answer: seconds at changed values.
        base: with next to nothing changed.
        target: share by which the answer is asked to fall.
    """
    changed = [of.at(1.0 - of.step), of.at(1.0 + of.step)]
    factors = [of.factor_of(values) for values in changed]
    seconds = [base, base]
    for side, values in enumerate(changed):
        try:
            seconds[side] = base if factors[side] == 1.0 else answer(values)
        except ValueError:  # No job has it: a share above one, more groups than there are.
            factors[side] = 1.0
    apart = log(factors[1] / factors[0])
    elasticity = log(seconds[1] / seconds[0]) / apart if apart else 0.0
    more = elasticity < 0
    falls = [1.0 - seconds[more] / base, seconds[not more] / base - 1.0]
    # A side that is not tried is as good as the other.
    apart_of = [abs(factors[side] - 1.0) or of.step for side in (more, not more)]
    saves, costs = (fall / apart for fall, apart in zip(falls, apart_of, strict=True))
    need, at_most = None, max(saves, 0.0)
    if at_most >= target or (of.whole and abs(elasticity) >= WORTH_TRYING * target):
        with suppress(ValueError):  # Its best value is none that a job can have.
            if not of.whole:
                need, at_most = _search(of, answer, base, target, more=more)
            else:
                counted = _counted_up if more else _counted_down
                need, at_most = counted(of, answer, base, target)
    return Row(
        name=of.name,
        group=of.group,
        value=of.text,
        paths=tuple(of.values),
        step=of.step,
        elasticity=elasticity,
        saves=saves,
        costs=costs,
        need=need,
        at_most=at_most,
    )


def _search(
    of: ScaledInput, answer: AnswerOf, base: float, target: float, *, more: bool
) -> tuple[NeededValue | None, float]:
    """What an input that is no count must become for the answer to fall to 1 - target of it, and
    the share that it then saves; or the share that its best value saves, where that is less."""
    wanted = (1.0 - target) * base
    # In what times go with: a rate's inverse, or a time itself.
    enough = 1.0 / of.most if more else of.least / of.number
    short = 1.0

    def off(place: float) -> float:
        return answer(of.at(1.0 / place if more else place)) - wanted

    over, under = base - wanted, off(enough)
    if under > 0:
        return None, 1.0 - (wanted + under) / base
    # False position with halved ends (the Illinois rule); the answer is the side that is enough.
    weighed, last = [over, under], ""
    for _ in range(MOST_STEPS):
        if abs(under) <= CLOSE * base:
            break
        place = enough + (short - enough) * weighed[1] / (weighed[1] - weighed[0])
        found = off(place)
        side = "short" if found > 0 else "enough"
        if side == "short":
            short, weighed = place, [found, weighed[1] / 2 if last == side else under]
        else:
            enough, under = place, found
            weighed = [weighed[0] / 2 if last == side else weighed[0], found]
        last = side
    values = of.at(1.0 / enough if more else enough)
    return NeededValue(of.factor_of(values), values), 1.0 - (wanted + under) / base


def _counted_up(
    of: ScaledInput, answer: AnswerOf, base: float, target: float
) -> tuple[NeededValue | None, float]:
    """The same of a count of which more are better: doubled until it is enough, then halved in."""
    first = round(of.number)
    short, enough = first, 2 * first
    while (saved := 1.0 - answer(of.at(enough / first)) / base) < target:
        if enough >= of.most * first:
            return None, saved
        short, enough = enough, 2 * enough
    while enough - short > 1:
        middle = (short + enough) // 2
        share = 1.0 - answer(of.at(middle / first)) / base
        if share < target:
            short = middle
        else:
            enough, saved = middle, share
    return NeededValue(enough / first, of.at(enough / first)), saved


def _counted_down(
    of: ScaledInput, answer: AnswerOf, base: float, target: float
) -> tuple[NeededValue | None, float]:
    """The same of a count of which fewer are better, one by one, as fewer may turn worse."""
    first, most = round(of.number), 0.0
    for count in range(first - 1, 0, -1):
        values = of.at(count / first)
        saved = 1.0 - answer(values) / base
        if saved >= target:
            return NeededValue(count / first, values), saved
        if saved < 0.0:
            break
        most = max(most, saved)
    return None, most
