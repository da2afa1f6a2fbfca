"""dsv3sim sensitivity: say what the time of a step depends on."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from simulator.cli.completion import scenario_names
from simulator.cli.options import Changes, Json, Out, print_tables
from simulator.cli.progress import progress


def sensitivity(
    scenario: Annotated[
        str, typer.Argument(help="A training or serving step.", autocompletion=scenario_names)
    ],
    changes: Changes = None,
    ideal: Annotated[
        bool,
        typer.Option(
            "--ideal",
            help="Ideal ranks, many times faster: no waiting, and no inputs of it. The same as "
            "--set skew=none.",
        ),
    ] = False,
    target: Annotated[
        float, typer.Option(help="Share of the answer that each input alone is asked to take off.")
    ] = 0.1,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT", help="Of this input, such as 'HBM bandwidth'; repeatable."),
    ] = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Say what a step's time depends on: its elasticity to each number of machine and job."""
    from reports.run_directory import check_replaceable
    from reports.sensitivity import sensitivity_table
    from simulator.analysis.sensitivity import elasticities
    from simulator.scenario.files import load_scenario

    loaded = load_scenario(scenario, [*(changes or ()), *(["skew=none"] if ideal else [])])
    if out is not None:
        check_replaceable(out)
    with progress(f"changing inputs of {loaded.name}") as shown:
        found = elasticities(loaded, target=target, only=only or (), watch=shown.watch).to_json()
    if out is not None:
        from reports.page import write_found
        from reports.sensitivity_page import sensitivity_page

        write_found(sensitivity_page(loaded, found), out, found)
    if as_json:
        print(json.dumps(found, allow_nan=False))
        return
    print_tables(sensitivity_table(found))
    if out is not None:
        print(f"report: {out}/report.html")
