"""dsv3sim validate: hold the simulator against published figures."""

from __future__ import annotations

import json
from pathlib import Path
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
    whole: Annotated[
        bool, typer.Option("--whole", help="Whole steps measured on GPUs in place of figures.")
    ] = False,
    predict: Annotated[
        Path | None,
        typer.Option(help="With --whole: add predictions of a lease to come to this ledger."),
    ] = None,
    lease: Annotated[
        str | None, typer.Option(help="With --whole: this lease alone, e.g. h200_sxm_2.")
    ] = None,
) -> None:
    """Hold the simulator against published numbers: each figure, what a run gives, the error."""
    if whole:
        _validate_whole(lease, predict, as_json=as_json)
        return
    if predict or lease:
        raise ValueError("--predict and --lease go with --whole")
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
    found = {}
    with working(f"simulating {names[0]}") as status:
        runs = check_published(names, metrics_of, jobs=jobs)
        for number, (name, figures) in enumerate(runs, 1):
            found[name] = figures
            status.update(f"{number} of {len(names)} scenarios")
    if as_json:
        rows = [row for figures in found.values() for row in figures]
        shown = [
            {"scenario": name, **asdict(row), "is_evidence": row.is_evidence}
            for name, figures in found.items()
            for row in figures
        ]
        print(json.dumps({"figures": shown, "median_error": median_error(rows)}, allow_nan=False))
        return
    print_tables(validation_table(found))


def _validate_whole(lease: str | None, ledger: Path | None, *, as_json: bool) -> None:
    """Whole steps beside the same ones simulated, or predictions of those to come."""
    from dataclasses import asdict
    from datetime import UTC, datetime

    from reports.terminal import whole_runs_table
    from simulator.analysis.predictions import append_to_ledger
    from simulator.analysis.whole_runs import (
        check_lease,
        comparisons,
        json_of,
        ledger_lines,
        probe_leases,
    )

    if ledger is not None:
        if lease is None:
            raise ValueError("--predict needs --lease, the name of the one to come: h200_sxm_2")
        with working(f"predicting {lease}"):
            lines = ledger_lines(lease, date=f"{datetime.now(UTC):%Y-%m-%d}")
        append_to_ledger(ledger, lines)
        print(f"{len(lines)} predictions added to {ledger}")
        return
    if lease is not None:
        check_lease(lease)
    with working("simulating whole steps"):
        found = comparisons(lease)
    pairs = dict.fromkeys((one.step.lease, one.other_lease) for one in found)
    probes = {pair: probed for pair in pairs if (probed := probe_leases(*pair))}
    if as_json:
        shown = [
            {"lease": own, "other_lease": other} | asdict(probed)
            for (own, other), probed in probes.items()
        ]
        steps = [json_of(one) for one in found]
        print(json.dumps({"steps": steps, "probes": shown}, allow_nan=False))
        return
    print_tables(whole_runs_table(found, probes))
