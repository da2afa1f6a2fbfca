"""Plan a service: how many nodes keep its limits at each load, and what its tokens cost.

    python docs/examples/plan_a_service.py [picture.svg]

The search is held to instances of one and two nodes, without copies of experts and without drafted
tokens, so that it ends in a minute; `dsv3sim plan serving` searches all that there is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from reference_model.config import load_model_config
from simulator.analysis.plan.serving import ServingPlan, cost_of, names_of, nodes_of, plan_serving
from simulator.analysis.plan.serving_search import searched_deployments
from simulator.scenario.starting_serving import (
    Deployment,
    Service,
    service_by_flags,
    serving_machine,
)

MODEL, GPU = "deepseek_v3", "h200"
RATES = (10.0, 20.0, 40.0)
"""Requests per second."""
PROMPT, OUTPUT = 4096, 1024
TTFT_S, TPOT_S = 2.0, 50e-3
INSTANCE_GPUS = (8, 16)


def service_at(rate: float) -> Service:
    """The service at a number of requests per second."""
    return service_by_flags(
        model=MODEL,
        config=load_model_config(MODEL),
        machine=serving_machine(gpu=GPU, cluster=None),
        rate=rate,
        prompt=PROMPT,
        output=OUTPUT,
        ttft_s=TTFT_S,
        tpot_s=TPOT_S,
    )


def plain_deployments(service: Service) -> list[Deployment]:
    """Instances of a few sizes whose experts lie once each and that draft no tokens."""
    return [
        each
        for each in searched_deployments(service)
        if each.gpus in INSTANCE_GPUS
        and (each.attention_tp, each.redundant, each.draft_tokens) == (1, 0, 0)
    ]


def plan(rate: float) -> ServingPlan:
    """The smallest fleet at a rate; two processes look for it."""
    service = service_at(rate)
    deployments = plain_deployments(service)
    return plan_serving(service, deployments=deployments, sensitivity=False, jobs=2)


def line_of(rate: float, found: ServingPlan) -> str:
    """A line on a plan: rate, nodes, fleet, latencies and cost."""
    fleet, run = found.fleet, found.measured
    if fleet is None or run is None:
        return f"{rate:5.0f}/s  no fleet of these deployments keeps the limits"
    cost = cost_of(found, fleet)
    return (
        f"{rate:5.0f}/s  {nodes_of(found, fleet):3g} nodes  TTFT {run.ttft_s:.2f} s  "
        f"TPOT {run.tpot_s * 1e3:.0f} ms  {cost.per_million_out:.2f} USD per M tokens out: "
        f"{names_of(fleet)}"
    )


def plot(rates: Sequence[float], plans: Sequence[ServingPlan], picture: Path) -> None:
    """Draw nodes over requests per second."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    nodes = [nodes_of(found, found.fleet) if found.fleet else 0 for found in plans]
    axes.step(rates, nodes, where="mid", marker="o")
    axes.set(
        xlabel="requests per second", ylabel=f"nodes of 8 {GPU}", xlim=(0, None), ylim=(0, None)
    )
    figure.savefig(picture)


def main() -> None:
    """Plan the service at every rate and, where a file is named, draw the nodes."""
    plans = [plan(rate) for rate in RATES]
    for rate, found in zip(RATES, plans, strict=True):
        print(line_of(rate, found))
    for name in sys.argv[1:2]:
        plot(RATES, plans, Path(name))


if __name__ == "__main__":
    main()
