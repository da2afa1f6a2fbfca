"""Tables, JSON and directory of the plan of a service."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardware_profiles.units import Seconds, format_seconds
from reports.run_directory import write_run
from simulator.analysis.plan.serving import (
    ServingPlan,
    cost_of,
    fleet_of,
    names_of,
    nodes_of,
)
from simulator.analysis.plan.serving_bounds import Limits
from simulator.analysis.plan.serving_prices import Measured
from simulator.analysis.plan.serving_search import Fleet, PoolOption, keeps, roles_of
from simulator.scenario.starting_serving import Pool, fleet_text

if TYPE_CHECKING:
    from rich.table import Table

FLEETS = 6
"""Simulated fleets that are shown: the recommended one, then the smallest."""
SHOWN = 4
"""Deployments of a role that are shown, best first."""

COST_RULE = (
    "tokens in carry the rent of the instances that compute prompts, tokens out that of those that "
    "decode; where one does both, each its share of the busy time"
)
"""How the rent is shared out: a stated assumption."""


def plans_tables(plans: Sequence[ServingPlan], best: int) -> list[Table]:
    """What was found for each GPU, the cheapest first."""
    ordered = [plans[best], *(plan for at, plan in enumerate(plans) if at != best)]
    return [table for plan in ordered for table in _tables(plan)]


def _tables(plan: ServingPlan) -> list[Table]:
    tables = [_fleets(plan), _pools(plan)]
    if plan.variants:
        tables.append(_sensitivity(plan))
    if plan.progress.losers:
        tables.append(_losers(plan))
    return tables


def title_of(plan: ServingPlan) -> str:
    """The question, in one line."""
    demand, machine = plan.demand, plan.service.machine
    return (
        f"{plan.service.model} on {machine.profile.node.gpu.name}: {demand.rate:.4g} requests/s of "
        f"{demand.prompt_tokens:,.0f} tokens in, {demand.output_tokens:,.0f} out; "
        f"p{plan.percentile} of TTFT {format_seconds(plan.limits.ttft_s)}, "
        f"of TPOT {format_seconds(plan.limits.tpot_s)}"
    )


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption_justify="left")
    for column in columns:
        wide = column in ("fleet", "deployment", "reason", "what sets it", "example", "limit")
        table.add_column(column, justify="left" if wide or column == "role" else "right")
    return table


def _fleets(plan: ServingPlan) -> Table:
    """The fleets that were simulated, the recommended one first."""
    head = (f"TTFT p{plan.percentile}", f"TPOT p{plan.percentile}")
    table = _table(title_of(plan), "fleet", "nodes", "USD/h", *head, "reason")
    for row in simulated(plan)[:FLEETS]:
        kept = row["pools"] == (None if plan.fleet is None else _pools_json(plan.fleet))
        table.add_row(
            row["fleet"],
            _count(row["nodes"]),
            f"{row['usd_per_hour']:,.0f}",
            _time(row["ttft_s"]),
            _time(row["tpot_s"]),
            row["reason"],
            style="bold" if kept else None,
        )
    return table


def _pools(plan: ServingPlan) -> Table:
    """The best deployments of each role."""
    table = _table("best deployments", "role", "deployment", "instances", "nodes", "what sets it")
    for row in best_options(plan):
        least = "" if row["expected"] else "at least "
        table.add_row(
            row["role"],
            row["deployment"],
            f"{least}{row['instances']}",
            _count(row["nodes"]),
            row["binds"],
        )
    return table


def _sensitivity(plan: ServingPlan) -> Table:
    table = _table("sensitivity to each limit", "limit", "nodes", "fleet")
    for row in sensitivity_rows(plan):
        nodes = "none" if row["nodes"] is None else _count(row["nodes"])
        if row["change"]:
            nodes += f" ({row['change']:+g})"
        table.add_row(row["limit"], nodes, row["fleet"] or "no deployment keeps it")
    return table


def _losers(plan: ServingPlan) -> Table:
    table = _table("deployments that cannot serve", "reason", "count", "example")
    for row in loser_rows(plan):
        table.add_row(row["reason"], str(row["count"]), row["example"])
    return table


def simulated(plan: ServingPlan) -> list[dict[str, Any]]:
    """Rows of the whole fleets that were simulated within the plan's own limits' reach, the
    recommended one first, then by size."""
    rows = []
    for fleet, run in plan.known.runs.items():
        if not roles_of(fleet):
            continue
        cost = cost_of(plan, fleet)
        rows.append(
            {
                "fleet": names_of(fleet),
                "pools": _pools_json(fleet),
                "nodes": nodes_of(plan, fleet),
                "usd_per_hour": cost.per_hour,
                "ttft_s": _finite(run.ttft_s),
                "tpot_s": _finite(run.tpot_s),
                "verdict": run.verdict,
                "keeps": keeps(run, plan.limits),
                "reason": _why_not(plan, fleet, run),
            }
        )
    own = None if plan.fleet is None else _pools_json(plan.fleet)
    return sorted(rows, key=lambda row: (row["pools"] != own, row["nodes"], row["fleet"]))


def _why_not(plan: ServingPlan, pools: Fleet, run: Measured) -> str:
    """Why a simulated fleet is not the recommended one; empty for that one."""
    limits = plan.limits
    if run.reason is not None:
        return run.reason
    if run.rejected:
        return f"{run.rejected} requests do not fit the KV cache"
    parts = []
    if run.ttft_s > limits.ttft_s:
        parts.append("TTFT")
    if run.tpot_s > limits.tpot_s:
        parts.append("TPOT")
    if parts:
        return f"{' and '.join(parts)} over the limit"
    if run.verdict == "overloaded":
        return "queues grow"
    return "" if pools == plan.fleet else "larger"


def best_options(plan: ServingPlan) -> list[dict[str, Any]]:
    """Rows of the best pool of each deployment, a few of each role."""
    rows = []
    for role, options in plan.progress.options.items():
        seen: dict[object, PoolOption] = {}
        for option in options:
            if option.binds:
                seen.setdefault(option.pool.deployments, option)
        for option in list(seen.values())[:SHOWN]:
            names = dict.fromkeys(each.name for each in option.pool.deployments)
            rows.append(
                {
                    "role": role,
                    "deployment": " and ".join(names),
                    "instances": option.pool.instances,
                    "bound": option.bound,
                    "nodes": nodes_of(plan, (option.pool,)),
                    "expected": option.expected,
                    "binds": option.binds,
                    "predicted_s": option.predicted_s,
                    "max_batch": option.pool.max_batch,
                    "tokens_per_pass": option.pool.tokens_per_pass,
                }
            )
    return rows


def sensitivity_rows(plan: ServingPlan) -> list[dict[str, Any]]:
    """Rows of the smallest fleets under other limits."""
    own = None if plan.fleet is None else nodes_of(plan, plan.fleet)
    rows = []
    for name, (limits, fleet) in plan.variants.items():
        nodes = None if fleet is None else nodes_of(plan, fleet)
        rows.append(
            {
                "limit": f"{name}{_limit_text(plan.limits, limits)}",
                "nodes": nodes,
                "change": None if nodes is None or own is None else nodes - own,
                "fleet": None if fleet is None else names_of(fleet),
            }
        )
    return rows


def _limit_text(own: Limits, other: Limits) -> str:
    for mine, theirs in ((own.ttft_s, other.ttft_s), (own.tpot_s, other.tpot_s)):
        if mine != theirs:
            return f", {format_seconds(theirs)}"
    return ""


def loser_rows(plan: ServingPlan) -> list[dict[str, Any]]:
    """Rows of deployments that cannot serve, by the kind of their reason."""
    losers = plan.progress.losers
    counts = Counter(loser.kind for loser in losers)
    first = {loser.kind: loser for loser in reversed(losers)}
    return [
        {
            "reason": kind,
            "count": count,
            "example": f"{' and '.join(dict.fromkeys(f'{d.phase} {d.name}' for d in of))}: "
            f"{first[kind].reason}",
        }
        for kind, count in counts.most_common()
        for of in [first[kind].deployments]
    ]


def recommendation(plan: ServingPlan) -> str:
    """One sentence: which fleet, which limit binds, and what its tokens cost."""
    fleet, run = plan.fleet, plan.measured
    if fleet is None or run is None:
        return f"No deployment that is searched keeps these limits; {nearest_miss(plan)}"
    cost = cost_of(plan, fleet)
    gpus = sum(pool.gpus for pool in fleet)
    gpu = plan.service.machine.profile.node.gpu.name
    return (
        f"Take {_count(nodes_of(plan, fleet))} nodes ({gpus} {gpu}): {names_of(fleet)}. "
        f"{_binding(plan, run)}. It costs {cost.per_hour:,.0f} USD/h: "
        f"{cost.per_million_in:.3g} USD per million tokens in, {cost.per_million_out:.3g} out "
        f"({COST_RULE})."
    )


def nearest_miss(plan: ServingPlan) -> str:
    """What came nearest in a plan that has found no fleet, and what to ask for instead."""
    limits, p = plan.limits, plan.percentile
    misses = []
    for fleet, run in plan.known.runs.items():
        over = {"TTFT": run.ttft_s / limits.ttft_s, "TPOT": run.tpot_s / limits.tpot_s}
        whole = bool(roles_of(fleet)) and max(over.values()) < math.inf
        if whole and not keeps(run, limits):
            shown = (
                f"{names_of(fleet)}: TTFT p{p} {format_seconds(run.ttft_s, digits=3)} of "
                f"{format_seconds(limits.ttft_s)}, TPOT p{p} "
                f"{format_seconds(run.tpot_s, digits=3)} of {format_seconds(limits.tpot_s)}"
            )
            misses.append((max(over.values()), shown, max(over, key=over.__getitem__)))
    if not misses:
        misses = list(_alone(plan))
    if not misses:
        first = plan.progress.losers[0].reason if plan.progress.losers else "nothing was searched"
        return f"{first}; allowed: another --gpu, or a larger --cluster"
    worst, shown, name = min(misses)
    limit = {"TTFT": limits.ttft_s, "TPOT": limits.tpot_s}[name]
    way = f"--{name.lower()} above '{format_seconds(limit * worst, digits=3)}', " * (worst > 1)
    return f"nearest is {shown}; allowed: {way}another --gpu, or a larger --cluster"


def _alone(plan: ServingPlan) -> Iterator[tuple[float, str, str]]:
    """Of each deployment that was priced, how far one request by itself is over its limit."""
    for task, price in plan.known.prices.items():
        one, limit, name = task.deployment, plan.limits.ttft_s, "TTFT"
        seconds = min(price.alone_s.values(), default=math.inf)
        what = "a long prompt alone takes"
        if one.phase == "decode":
            limit, name, what = plan.limits.tpot_s, "TPOT", "a token of one request alone takes"
            gained = plan.service.drafting.tokens_per_step if one.draft_tokens else 1.0
            seconds = min(price.seconds.values(), default=math.inf) / gained
        if limit < seconds < math.inf:
            text = f"{one.phase} {one.name}, where {what} {format_seconds(seconds, digits=3)}"
            yield seconds / limit, f"{text} of {format_seconds(limit)}", name


def _binding(plan: ServingPlan, run: Measured) -> str:
    """The limit that is nearest, and what sets the number of instances of each pool."""
    limits, p = plan.limits, plan.percentile
    of = {"TTFT": (run.ttft_s, limits.ttft_s), "TPOT": (run.tpot_s, limits.tpot_s)}
    nearest = max(of, key=lambda name: of[name][0] / of[name][1])
    shown, limit = (format_seconds(value, digits=3) for value in of[nearest])
    options = {o.pool: o for each in plan.progress.options.values() for o in each}
    sets = ", ".join(
        f"{options[pool].binds} sets {pool.role}" for pool in plan.fleet or () if pool in options
    )
    return f"The nearest limit is {nearest}, p{p} {shown} of {limit}" + (sets and f"; {sets}")


def plans_json(plans: Sequence[ServingPlan], best: int) -> dict[str, Any]:
    """Everything of the plans, in SI units but for money."""
    return {"best": best, "plans": [plan_json(plan) for plan in plans]}


def plan_json(plan: ServingPlan) -> dict[str, Any]:
    """Everything of one plan."""
    fleet, run = plan.fleet, plan.measured
    cost = None if fleet is None else cost_of(plan, fleet)
    return {
        "question": title_of(plan),
        "gpu": plan.service.machine.profile.node.gpu.name,
        "cluster": plan.service.machine.cluster,
        "demand": asdict(plan.demand),
        "limits": {"ttft_s": plan.limits.ttft_s, "tpot_s": plan.limits.tpot_s},
        "percentile": plan.percentile,
        "fleet": None if fleet is None else _pools_json(fleet),
        "nodes": None if fleet is None else nodes_of(plan, fleet),
        "gpus": None if fleet is None else sum(pool.gpus for pool in fleet),
        "usd_per_hour": cost and cost.per_hour,
        "usd_per_million_tokens_in": cost and cost.per_million_in,
        "usd_per_million_tokens_out": cost and cost.per_million_out,
        "cost_rule": COST_RULE,
        "measured": None if run is None else asdict(run),
        "recommendation": recommendation(plan),
        "simulated": simulated(plan),
        "options": best_options(plan),
        "sensitivity": sensitivity_rows(plan),
        "searched": plan.searched,
        "losers": loser_rows(plan),
        "scenario": None if fleet is None else fleet_of(plan.service, plan.demand, fleet),
    }


def write_plan(plans: Sequence[ServingPlan], best: int, directory: Path) -> None:
    """Write the directory of a plan: the fleet as a scenario that runs, and all figures.

    Raises:
        ValueError: no fleet keeps the limits, so that there is no scenario.
    """
    from reports.page import write_page
    from reports.serving_plan_page import serving_plan_page

    plan = plans[best]
    if plan.fleet is None:
        raise ValueError(f"plan serving: {recommendation(plan)}; {directory} is not written")
    raw = fleet_of(plan.service, plan.demand, plan.fleet)
    raw["description"] = title_of(plan)
    head = ("Written by dsv3sim plan serving.", *_wrapped(recommendation(plan)))
    found, text = plans_json(plans, best), fleet_text(raw, head)
    write_run(
        directory,
        scenario=text,
        metrics=found,
        tables={},
        write_report=lambda draft: write_page(serving_plan_page(found, text), draft),
    )


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 96)


def _pools_json(pools: Fleet) -> list[dict[str, Any]]:
    return [_pool_json(pool) for pool in pools]


def _pool_json(pool: Pool) -> dict[str, Any]:
    return {
        "role": pool.role,
        "instances": pool.instances,
        "max_batch": pool.max_batch,
        "tokens_per_pass": pool.tokens_per_pass,
        "deployments": [asdict(each) for each in pool.deployments],
    }


def _count(nodes: float) -> str:
    return f"{nodes:g}"


def _time(seconds: Seconds | None) -> str:
    return "-" if seconds is None else format_seconds(seconds, digits=3)


def _finite(value: float) -> float | None:
    return None if value == float("inf") else value
