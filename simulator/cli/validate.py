"""dsv3sim validate: hold the simulator against published figures."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from simulator.cli.options import Json, print_tables, working


def validate(
    scenarios: Annotated[
        list[str] | None,
        typer.Argument(help="Scenarios with published figures. Default: all that are shipped."),
    ] = None,
    as_json: Json = False,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
) -> None:
    """Hold the simulator against published numbers: each figure, what a run gives, the error."""
    from dataclasses import asdict

    from reports.terminal import validation_table
    from simulator.analysis.run import metrics_of
    from simulator.analysis.validation import (
        check_figures,
        check_published,
        median_error,
        scenarios_with_figures,
    )
    from simulator.scenario.files import load_scenario

    names = tuple(scenarios or scenarios_with_figures())
    for name in names:
        check_figures(load_scenario(name))  # a misspelt name is an error before anything runs
    checks = []
    with working(f"simulating {names[0]}") as status:
        runs = check_published(names, metrics_of, jobs=jobs)
        for number, (_, found) in enumerate(runs, 1):
            checks += found
            status.update(f"{number} of {len(names)} scenarios")
    if as_json:
        rows = [asdict(check) | {"is_evidence": check.is_evidence} for check in checks]
        print(json.dumps({"figures": rows, "median_error": median_error(checks)}, allow_nan=False))
        return
    print_tables(validation_table(checks))
