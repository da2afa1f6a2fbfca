"""dsv3sim validate: hold the simulator against published figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.cli.completion import scenario_names, settings
from simulator.cli.options import Json, Out, print_tables
from simulator.cli.progress import progress

if TYPE_CHECKING:
    from simulator.analysis.published import PublishedRow


def validate(
    scenarios: Annotated[
        list[str] | None,
        typer.Argument(
            help="Scenarios with published figures. Default: all that are shipped.",
            autocompletion=scenario_names,
        ),
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
    ledger: Annotated[
        Path | None,
        typer.Option(help="With --whole: hold the predictions of this ledger against the steps."),
    ] = None,
    write_ledger: Annotated[
        Path | None,
        typer.Option(
            help="Add what runs say to this ledger, of the scenarios named or of all that are "
            "shipped, but for runs that it holds; compares nothing."
        ),
    ] = None,
    known: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCENARIO",
            help="With --write-ledger: one whose truth is known, though it names no figure.",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=VALUE",
            help="With --write-ledger: change a value; repeatable.",
            autocompletion=settings,
        ),
    ] = None,
    out: Out = None,
    stragglers: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Recorded jobs with slow ranks, beside what their authors found."
        ),
    ] = None,
) -> None:
    """Hold the simulator against published numbers: each figure, what a run gives, the error."""
    if stragglers:
        _validate_stragglers(stragglers, as_json=as_json)
        return
    if write_ledger:
        _write_ledger(scenarios, write_ledger, known=known or (), changes=changes or (), jobs=jobs)
        return
    if changes:
        raise ValueError(
            "--set goes with --write-ledger: figures are published of scenarios as they are; "
            "dsv3sim run takes changes"
        )
    if not whole and (predict or lease or ledger):
        raise ValueError("--predict, --lease and --ledger go with --whole")
    if predict:
        _predict(lease, predict)
        return
    if ledger:
        _judge(ledger, as_json=as_json)
        return
    if whole:
        _validate_whole(lease, as_json=as_json)
        return
    _validate_published(scenarios, out=out, as_json=as_json, jobs=jobs)


def _validate_published(
    scenarios: list[str] | None, *, out: Path | None, as_json: bool, jobs: int
) -> None:
    """Published figures beside what runs of their scenarios give."""
    from dataclasses import asdict

    from reports.terminal import validation_table, validation_verdict
    from simulator.analysis.validation import (
        check_figures,
        check_published,
        median_error,
        scenarios_with_figures,
        with_intervals,
    )
    from simulator.scenario.files import load_scenario

    if out is not None:
        from reports.run_directory import check_replaceable

        check_replaceable(out)
    names = tuple(scenarios or scenarios_with_figures())
    for name in names:
        check_figures(load_scenario(name))  # a misspelt name is an error before anything runs
    found: dict[str, list[PublishedRow]] = {}

    def what_is_kept() -> str:
        left = " ".join(names[len(found) :])
        if as_json or not found:
            return "nothing is kept; the same command runs again"
        return f"what is printed stands; the rest: dsv3sim validate {left}"

    with progress("simulating", total=len(names), unit="scenarios", kept=what_is_kept) as shown:
        for name, figures in check_published(names, with_intervals, jobs=jobs):
            if not as_json:
                with shown.aside():
                    print_tables(validation_table(name, figures))
            found[name] = figures
            shown.advance()
    rows = [row for figures in found.values() for row in figures]
    listed = [
        {"scenario": name, **asdict(row), "is_evidence": row.is_evidence}
        for name, figures in found.items()
        for row in figures
    ]
    result = {"figures": listed, "median_error": median_error(rows)}
    if out is not None:
        from reports.page import write_found
        from reports.validation_page import validation_page

        write_found(validation_page(found), out, result)
    if as_json:
        print(json.dumps(result, allow_nan=False))
        return
    if verdict := validation_verdict(rows):
        print(verdict)
    if out is not None:
        print(f"report: {out}/report.html")


def _write_ledger(
    scenarios: list[str] | None,
    ledger: Path,
    *,
    known: Sequence[str],
    changes: Sequence[str],
    jobs: int,
) -> None:
    """Add the predictions of scenarios to a ledger, each scenario's as soon as it has run.

    Runs that the ledger holds already, by their digest, are passed over, so that the same command
    goes on where it was stopped.
    """
    from datetime import UTC, datetime

    from simulator.analysis.predictions import append_to_ledger, check_ledger, read_ledger
    from simulator.analysis.run_key import run_key
    from simulator.analysis.validation import predictions_of
    from simulator.scenario.files import known_scenarios, load_scenario

    check_ledger(ledger)
    asked = tuple(scenarios or known_scenarios())
    held = {line.digest for line in read_ledger(ledger)} if ledger.exists() else frozenset()
    names = tuple(name for name in asked if run_key(load_scenario(name, changes)) not in held)
    ended = added = 0

    def what_is_kept() -> str:
        return (
            f"{added} predictions of {ended} of {len(names)} scenarios are kept; the same command "
            "goes on from there"
        )

    with progress("simulating", kept=what_is_kept) as shown:
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        for lines in predictions_of(
            names, date=today, known=known, changes=changes, jobs=jobs, watch=shown.watch
        ):
            append_to_ledger(ledger, lines)
            ended, added = ended + 1, added + len(lines)
    passed_over = len(asked) - len(names)
    also = f"; {passed_over} of {len(asked)} runs stand there already" if passed_over else ""
    print(f"{added} predictions added to {ledger}{also}")


def _predict(lease: str | None, ledger: Path) -> None:
    """Add predictions of a lease that is still to come to a ledger."""
    from datetime import UTC, datetime

    from simulator.analysis.predictions import append_to_ledger, check_ledger
    from simulator.analysis.whole_runs import ledger_lines

    check_ledger(ledger)
    if lease is None:
        raise ValueError("--predict needs --lease, the name of the one to come: h200_sxm_3")
    with progress(f"predicting {lease}"):
        lines = ledger_lines(lease, date=f"{datetime.now(UTC):%Y-%m-%d}")
    append_to_ledger(ledger, lines)
    print(f"{len(lines)} predictions added to {ledger}")


def _judge(ledger: Path, *, as_json: bool) -> None:
    """Hold the predictions of a ledger against the steps that were measured after them."""
    from dataclasses import asdict

    from reports.terminal import ledger_table
    from simulator.analysis.predictions import judge, read_ledger
    from simulator.analysis.whole_runs import measured_steps

    found = judge(read_ledger(ledger), measured_steps())
    if as_json:
        shown = [
            asdict(line)
            | {"measured": value, "error": line.error(value), "inside": line.inside(value)}
            for line, value in found
        ]
        print(json.dumps({"predictions": shown}, allow_nan=False))
        return
    print_tables(ledger_table(found))


def _validate_whole(lease: str | None, *, as_json: bool) -> None:
    """Whole steps beside the same ones simulated."""
    from dataclasses import asdict

    from reports.terminal import whole_runs_table
    from simulator.analysis.whole_runs import check_lease, comparisons, json_of, probe_leases

    if lease is not None:
        check_lease(lease)
    with progress("simulating whole steps") as shown:
        found = comparisons(lease, shown.watch)
    pairs = dict.fromkeys((one.step.lease, one.other_lease) for one in found)
    probes = {pair: probed for pair in pairs if (probed := probe_leases(*pair))}
    if as_json:
        listed = [
            {"lease": own, "other_lease": other} | asdict(probed)
            for (own, other), probed in probes.items()
        ]
        steps = [json_of(one) for one in found]
        print(json.dumps({"steps": steps, "probes": listed}, allow_nan=False))
        return
    print_tables(whole_runs_table(found, probes))


def _validate_stragglers(folder: Path, *, as_json: bool) -> None:
    """What slow ranks cost recorded jobs, beside what the authors of the traces found."""
    from dataclasses import asdict

    from reports.terminal import stragglers_table
    from simulator.analysis.stragglers import held_against_published, recorded_jobs

    names = list(recorded_jobs(folder))
    found = {}
    with progress("simulating recorded jobs", total=len(names), unit="jobs") as so_far:
        for name in names:
            found[name] = held_against_published(folder, name)
            so_far.advance()
    if as_json:
        shown = {
            name: {"simulated": asdict(mine), "published": asdict(theirs)}
            for name, (mine, theirs) in found.items()
        }
        print(json.dumps(shown, allow_nan=False))
        return
    for name, (mine, theirs) in found.items():
        print_tables(stragglers_table(name, mine, theirs))
