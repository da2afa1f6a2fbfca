"""dsv3sim plan serving: the smallest fleet that keeps the limits of a service."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.cli.completion import cluster_names, gpu_names
from simulator.cli.options import Json, Model, print_tables
from simulator.cli.progress import Shown, progress
from simulator.cli.service import (
    KvCacheOption,
    Rate,
    RecipeOption,
    Tpot,
    Ttft,
    service_of,
)

if TYPE_CHECKING:
    from simulator.analysis.plan.serving import ServingPlan
    from simulator.analysis.plan.serving_search import Standing
    from simulator.scenario.starting_serving import Service, ServingMachine


def plan_serving_command(
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            help="A shipped GPU, h200 for short; repeatable, the cheapest is taken.",
            autocompletion=gpu_names,
        ),
    ] = None,
    cluster: Annotated[
        list[str] | None,
        typer.Option(
            help="A shipped cluster, or a file of dsv3sim init cluster; repeatable.",
            autocompletion=cluster_names,
        ),
    ] = None,
    rate: Rate = None,
    prompt: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a prompt. Default: 4096.")
    ] = None,
    output: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an answer. Default: 1024.")
    ] = None,
    requests: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Requests of a shipped or own fleet scenario, or a recorded trace with --format, "
            "in the place of --prompt and --output; --rate scales them.",
        ),
    ] = None,
    trace_format: Annotated[
        str | None, typer.Option("--format", help="Of a trace: azure, mooncake or burstgpt.")
    ] = None,
    ttft: Ttft = "2 s",
    tpot: Tpot = "50 ms",
    percentile: Annotated[
        int, typer.Option(help="Share of requests within each limit, in %: 50, 90, 95 or 99.")
    ] = 90,
    model: Model = "deepseek_v3",
    length_cv: Annotated[
        float | None,
        typer.Option(min=0.0, help="Spread of both lengths, sd over mean. Default: 0, all alike."),
    ] = None,
    cached: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=0.99, help="Share of every prompt that a prefix cache holds. Default: 0."
        ),
    ] = None,
    recipe: RecipeOption = None,
    kv_cache: KvCacheOption = "bfloat16",
    mtp: Annotated[
        bool, typer.Option(help="Whether decode may draft tokens with multi-token prediction.")
    ] = True,
    sensitivity: Annotated[
        bool, typer.Option(help="Whether the count is worked out for other limits too.")
    ] = True,
    as_json: Json = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory of the plan, with the fleet as a scenario that runs; an interrupted "
            "plan of the same directory goes on."
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes. Default: one per core.")
    ] = None,
) -> None:
    """How many nodes a service needs, in which layout, and what its tokens cost."""
    from reports.run_directory import check_replaceable
    from reports.serving_plan import plans_json, plans_tables, recommendation, write_plan
    from simulator.analysis.plan.serving import cheapest, plan_serving, rows_beside
    from simulator.analysis.plan.serving_search import searched_deployments
    from simulator.analysis.streaming import PERCENTILES
    from simulator.scenario.starting_serving import serving_machine

    if percentile not in PERCENTILES:
        known = ", ".join(map(str, PERCENTILES))
        raise ValueError(f"--percentile {percentile}: allowed: {known}")
    lengths = {
        "--prompt": prompt, "--output": output, "--length-cv": length_cv, "--cached": cached
    }  # fmt: skip
    given = [name for name, value in lengths.items() if value is not None]
    if requests is not None and given:
        raise ValueError(
            f"plan serving: {given[0]} with --requests, which have their own lengths; allowed: one "
            "of the two, --rate scales them"
        )
    kept = None
    if out is not None:
        check_replaceable(out)
        kept = rows_beside(out)
    machines = [serving_machine(gpu=name, cluster=None) for name in gpu or ()]
    machines += [serving_machine(gpu=None, cluster=name) for name in cluster or ()]
    if not machines:
        serving_machine(gpu=None, cluster=None)  # raises what is missing

    def asked(machine: ServingMachine) -> Service:
        return service_of(
            machine,
            model=model,
            rate=rate,
            prompt=prompt or 4096,
            output=output or 1024,
            length_cv=length_cv or 0.0,
            cached=cached or 0.0,
            ttft=ttft,
            tpot=tpot,
            recipe=recipe,
            kv_cache=kv_cache,
            requests=requests,
            trace_format=trace_format,
        )

    def what_is_kept() -> str:
        if kept is None:
            return "nothing is kept without a directory (--out)"
        return "what is worked out is kept; the same command goes on from there"

    services = [asked(machine) for machine in machines]
    found: list[ServingPlan] = []
    with progress("planning", unit="results", kept=what_is_kept) as shown:
        for service in services:
            searched = [
                each for each in searched_deployments(service) if mtp or not each.draft_tokens
            ]
            found.append(
                plan_serving(
                    service,
                    percentile=percentile,
                    deployments=searched,
                    sensitivity=sensitivity,
                    jobs=jobs or len(os.sched_getaffinity(0)),
                    kept=kept,
                    told=lambda text, at, stand: _tell(shown, text, at, stand),
                )
            )
    best = cheapest(found)
    if out is not None and found[best].fleet is not None:
        write_plan(found, best, out)
    if kept is not None:
        kept.unlink(missing_ok=True)
    if as_json:
        print(json.dumps(plans_json(found, best), allow_nan=False))
    else:
        print_tables(*plans_tables(found, best))
    if found[best].fleet is None:
        raise ValueError(f"plan serving: {recommendation(found[best])}")
    if as_json:
        return
    print(recommendation(found[best]))
    if out is not None:
        print(f"run it: dsv3sim run {out}/scenario.yaml")


def _tell(shown: Shown, text: str, number: int, stand: Standing) -> None:
    """Say what was worked out last, and the smallest fleet so far."""
    from simulator.analysis.plan.serving import names_of
    from simulator.execution.progress import HowFar

    best = "" if stand.answer is None else f"; so far: {names_of(stand.answer)}"
    shown.watch(HowFar(None, number, "results", what=f"{text}{best}"))
