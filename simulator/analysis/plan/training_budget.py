"""How many GPUs a budget pays for, and which of them train fastest within it.

A budget is a rent, which limits the GPUs, or a sum for so many tokens, which limits GPUs times the
time that they take. Rents are those of the cluster file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from hardware_profiles.schema import ClusterProfile
from hardware_profiles.units import (
    Dollars,
    Seconds,
    format_quantity,
    format_seconds,
    parse_quantity,
)
from simulator.analysis.plan.training import SimulatedLayout, TrainingPlan
from simulator.analysis.sweep import Objective, front
from simulator.scenario.training import TrainingJob

RENTED = 2
"""Numbers of GPUs whose layouts are looked for with a rent: more GPUs are seldom slower."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a job may cost: exactly one of a rent and a sum."""

    usd_per_s: float | None
    usd: Dollars | None
    tokens: float | None
    """That are trained on; always with a sum."""

    @classmethod
    def parse(cls, text: str, tokens: float | None) -> Self:
        """Read "4096 USD/h", or "6 MUSD" for so many tokens.

        Raises:
            ValueError: neither, nothing, or a sum without tokens.
        """
        rent = "/" in text
        value = parse_quantity(text, "price_rate" if rent else "price", "--budget")
        if value <= 0:
            raise ValueError(f"--budget {text}: allowed: more than 0")
        if tokens is not None and not 0 < tokens < float("inf"):
            raise ValueError(f"--tokens {tokens}: allowed: more than 0, such as 14.8e12")
        if not rent and tokens is None:
            raise ValueError(
                f"--budget {text}: a sum is for so many tokens, and --tokens is missing; allowed: "
                "--tokens 14.8e12, or a rent such as '4096 USD/h'"
            )
        return cls(value if rent else None, None if rent else value, tokens)


def numbers_of_nodes(budget: Budget, cluster: ClusterProfile, sequences: int) -> list[int]:
    """Nodes to try, most first: powers of two and three times those, without more GPUs than a step
    has sequences, and of a rent no more than it pays for.

    Raises:
        ValueError: a rent that pays for no node.
    """
    each = cluster.gpu_price * cluster.node.gpus
    most = max(1, sequences // cluster.node.gpus)
    if budget.usd_per_s is not None:
        most = min(most, int(budget.usd_per_s / each * (1 + 1e-9)))
        if not most:
            raise ValueError(
                f"--budget {format_quantity(budget.usd_per_s, 'price_rate')}: pays for no node of "
                f"{cluster.node.gpus} {cluster.node.gpu.name}; allowed: at least "
                f"{format_quantity(each, 'price_rate')}"
            )
    powers = [2**n for n in range(most.bit_length())]
    return sorted({n for power in powers for n in (power, 3 * power) if n <= most}, reverse=True)


@dataclass(frozen=True, slots=True)
class FundedLayout:
    """A layout of some number of GPUs that was simulated, and what it costs."""

    gpus: int
    layout: SimulatedLayout
    step_s: Seconds
    usd_per_s: float
    run_s: Seconds | None
    """Of all tokens; None where none are said."""
    usd: Dollars | None
    """For all tokens."""

    def within(self, budget: Budget) -> bool:
        """Whether the budget pays for it."""
        if budget.usd_per_s is not None:
            return self.usd_per_s <= budget.usd_per_s * (1 + 1e-9)
        assert budget.usd is not None
        return self.usd is not None and self.usd <= budget.usd


@dataclass(frozen=True, slots=True)
class BudgetPlan:
    """What a budget buys."""

    budget: Budget
    plans: tuple[TrainingPlan, ...]
    """Of each number of GPUs that was tried, most first."""

    @property
    def layouts(self) -> list[FundedLayout]:
        """All that were simulated, fastest first."""
        found = [_funded(plan, each, self.budget) for plan in self.plans for each in plan.ran]
        return sorted(found, key=lambda each: each.step_s)

    @property
    def best(self) -> FundedLayout | None:
        """The fastest within the budget; None where none is."""
        return next((each for each in self.layouts if each.within(self.budget)), None)

    @property
    def plan(self) -> TrainingPlan | None:
        """The plan that the best layout is of."""
        best = self.best
        return next((p for p in self.plans if best and best.layout in p.simulated), None)

    @property
    def front(self) -> list[FundedLayout]:
        """Those that no other is as good as in time, memory and GPUs, and so in cost."""
        every = self.layouts
        rows = [
            replace(each.layout.row, metrics={**each.layout.row.metrics, "gpus": each.gpus})
            for each in every
        ]
        objectives = [
            Objective("step_time_s", 1), Objective("peak_memory_bytes", 1), Objective("gpus", 1)
        ]  # fmt: skip
        return [every[place] for place in sorted(front(rows, objectives))]


def _funded(plan: TrainingPlan, each: SimulatedLayout, budget: Budget) -> FundedLayout:
    assert each.step_s is not None
    cluster = plan.scenario.cluster
    job = plan.scenario.job_as(TrainingJob)
    rent = cluster.gpus * cluster.gpu_price
    run_s = None
    if budget.tokens is not None:
        run_s = budget.tokens / (job.global_batch_sequences * job.sequence_length) * each.step_s
    cost = None if run_s is None else run_s * rent
    return FundedLayout(cluster.gpus, each, each.step_s, rent, run_s, cost)


def plan_with_budget(
    budget: Budget, nodes: Sequence[int], search: Callable[[int], TrainingPlan]
) -> BudgetPlan:
    """Search the layouts of each number of nodes, until RENTED of them have one, or one is within a
    sum: fewer GPUs take longer.

    Args:
        nodes: most first.
        search: the plan of so many.

    Raises:
        ValueError: no number of nodes that a layout fits, or none within the budget.
    """
    plans: list[TrainingPlan] = []
    reason = "plan training: no layout that was simulated fits"
    for number in nodes:
        try:
            plans.append(search(number))
        except ValueError as error:
            # So many do not divide what they share, or hold too little.
            reason = str(error)
        within = BudgetPlan(budget, tuple(plans)).best is not None
        if within if budget.usd is not None else len(plans) == RENTED:
            break
    found = BudgetPlan(budget, tuple(plans))
    if found.best is None and not found.layouts:
        raise ValueError(reason)
    if found.best is None:
        cheapest = min(found.layouts, key=lambda each: each.usd or 0.0)
        raise ValueError(
            f"--budget: {format_quantity(budget.usd or 0.0, 'price')} pays for none of these GPUs; "
            f"the cheapest is {cheapest.layout.layout} on {cheapest.gpus} GPUs for "
            f"{format_quantity(cheapest.usd or 0.0, 'price')}; allowed: a larger --budget, fewer "
            "--tokens, or another --gpu"
        )
    return found


def budget_json(found: BudgetPlan) -> dict[str, Any]:
    """What a budget buys, in SI units but for money."""
    return {
        "usd_per_hour": found.budget.usd_per_s and found.budget.usd_per_s * _HOUR,
        "usd": found.budget.usd,
        "tokens": found.budget.tokens,
        "gpus_tried": [plan.scenario.cluster.gpus for plan in found.plans],
        "front": [
            {
                "gpus": each.gpus,
                "layout": str(each.layout.layout),
                "step_time_s": each.step_s,
                "peak_memory_bytes": each.layout.row.metrics["peak_memory_bytes"],
                "usd_per_hour": each.usd_per_s * _HOUR,
                "run_s": each.run_s,
                "usd": each.usd,
                "within": each.within(found.budget),
            }
            for each in found.front
        ],
        "best": None if found.best is None else budget_sentence(found.best),
    }


_HOUR = parse_quantity("1 h", "time", "hour")


def budget_sentence(best: FundedLayout) -> str:
    """What the budget buys at best."""
    rent = format_quantity(best.usd_per_s, "price_rate")
    step = format_seconds(best.step_s)
    text = f"The budget buys {best.gpus:,} GPUs at {rent}: an ideal step of {step}"
    if best.run_s is None or best.usd is None:
        return f"{text}."
    days = best.run_s / (24 * _HOUR)
    return f"{text}, so all tokens in {days:.1f} days for {format_quantity(best.usd, 'price')}."
