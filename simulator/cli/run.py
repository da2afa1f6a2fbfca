"""dsv3sim run: simulate a scenario and write its report."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.cli.options import Changes, Json, print_tables
from simulator.cli.progress import progress

if TYPE_CHECKING:
    from simulator.scenario.files import Scenario


def run_command(
    scenario: Annotated[str, typer.Argument(help="A shipped scenario or a path to a YAML file.")],
    changes: Changes = None,
    as_json: Json = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory of the run. Default: runs/SCENARIO with what --set changes of it, none "
            "with --json."
        ),
    ] = None,
    unfold: Annotated[
        bool, typer.Option("--unfold", help="Log every operator of every rank.")
    ] = False,
    ideal: Annotated[
        bool,
        typer.Option(
            "--ideal",
            help="Ideal ranks: equal rows, equal GPUs, no waiting. The same as --set skew=none.",
        ),
    ] = False,
    from_events: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Directory or JSON of a run with fidelity=events, whose slow-downs the timeline "
            "takes in the place of the calibration's.",
        ),
    ] = None,
    no_interval: Annotated[
        bool,
        typer.Option(
            "--no-interval",
            help="Leave out the 80 % intervals, and a serving step with other kernels, for speed.",
        ),
    ] = False,
) -> None:
    """Simulate a scenario and write its report."""
    started = time.perf_counter()
    from simulator.scenario.files import load_scenario

    if from_events is not None:
        from simulator.analysis.events_metrics import changes_from

        changes = [*changes_from(from_events), *(changes or ())]
    try:
        loaded = load_scenario(scenario, [*(changes or ()), *(["skew=none"] if ideal else [])])
    except ValueError:
        plain = load_scenario(scenario, changes or ()) if ideal else None
        if plain is None or "skew" in type(plain.job).model_fields:
            raise
        raise ValueError(
            f"{plain.where}: --ideal: a {plain.job_name} job has no skew of its own; allowed: with "
            "a training or serving_step job"
        ) from None
    run_and_show(
        loaded,
        out=out,
        as_json=as_json,
        unfold=unfold,
        intervals=not no_interval,
        started=started,
    )


def run_and_show(
    loaded: Scenario,
    *,
    out: Path | None,
    as_json: bool,
    unfold: bool,
    intervals: bool,
    started: float,
) -> None:
    """Simulate a scenario, write its directory and print its tables or its JSON.

    Args:
        out: directory of the run; None for the usual one, or for none with JSON.
        started: time.perf_counter() from which on the command has worked.
    """
    from reports.jobs import JOB_REPORTS
    from reports.tables import left_out_note
    from simulator.analysis.run import simulate

    directory = out or (None if as_json else Path("runs") / loaded.directory_name)
    if directory is not None:
        from reports.run_directory import check_replaceable

        check_replaceable(directory)
    with progress(f"simulating {loaded.name}") as shown:
        result = simulate(loaded, unfold=unfold, watch=shown.watch)
        if not intervals and not result.has_intervals:
            note = f"note: --no-interval: a {loaded.job_name} job has no 80 % interval"
            print(note, file=sys.stderr)
        shown.says(f"measuring {loaded.name}")
        metrics = result.to_json(intervals=intervals)
        metrics["wall_clock_s"] = time.perf_counter() - started
        report = JOB_REPORTS[loaded.job_name]()
        if directory is not None:
            shown.says(f"writing {directory}")
            report.write(result, metrics, directory)
    if as_json:
        print(json.dumps(metrics, allow_nan=False))
        return
    print_tables(*report.tables(loaded.name, metrics))
    if loaded.figures_left_out:
        print(left_out_note(loaded))
    for warning in metrics.get("warnings", ()):
        print(f"warning: {warning}", file=sys.stderr)
    print(f"report: {directory}/report.html")
