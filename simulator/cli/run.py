"""dsv3sim run: simulate a scenario and write its report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from simulator.cli.completion import metric_names, scenario_names
from simulator.cli.options import Changes, Json, print_tables
from simulator.cli.progress import progress

Form: TypeAlias = Literal["table", "json", "csv"]

if TYPE_CHECKING:
    from simulator.scenario.files import Scenario


def run_command(
    scenario: Annotated[
        str,
        typer.Argument(
            help="A shipped scenario or a path to a YAML file.", autocompletion=scenario_names
        ),
    ],
    changes: Changes = None,
    as_json: Json = False,
    form: Annotated[
        Form | None,
        typer.Option("--format", help="How the figures are printed; json is the same as --json."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Print this figure of the run alone; repeatable; `show metrics` lists them.",
            autocompletion=metric_names,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory of the run. Default: runs/SCENARIO with what --set changes of it, none "
            "with --json, --format csv or --metric."
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
            help="Leave out the 80% intervals, and a serving step with other kernels, for speed.",
        ),
    ] = False,
) -> None:
    """Simulate a scenario and write its report."""
    if as_json and form not in (None, "json"):
        raise ValueError(f"--json --format {form}: two formats; allowed: one of them")
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
        form="json" if as_json else form or "table",
        names=metric or (),
        unfold=unfold,
        intervals=not no_interval,
        started=started,
    )


def run_and_show(
    loaded: Scenario,
    *,
    out: Path | None,
    form: Form,
    names: Sequence[str] = (),
    unfold: bool,
    intervals: bool,
    started: float,
) -> None:
    """Simulate a scenario, write its directory and print its figures.

    Args:
        out: directory of the run; None for the usual one, or for none where only figures are asked
            for.
        form: how figures are printed.
        names: metrics that are asked for; without them all that the form shows.
        started: time.perf_counter() from which on the command has worked.
    """
    from simulator.analysis.run import simulate

    if names:
        from reports.chosen import check_asked

        check_asked(names, loaded.job_name)
    usual = Path("runs") / loaded.directory_name
    with_tables = form == "table" and not names
    directory = out or (usual if with_tables else None)
    if directory is not None:
        from reports.run_directory import check_replaceable

        check_replaceable(directory)
    with progress(f"simulating {loaded.name}") as shown:
        result = simulate(loaded, unfold=unfold, watch=shown.watch)
        if not intervals and not result.has_intervals:
            note = f"note: --no-interval: a {loaded.job_name} job has no 80% interval"
            print(note, file=sys.stderr)
        shown.says(f"measuring {loaded.name}")
        metrics = result.to_json(intervals=intervals)
        result.keep_kernel_times()
        metrics["wall_clock_s"] = time.perf_counter() - started
        if directory is not None:
            from reports.jobs import JOB_REPORTS

            shown.says(f"writing {directory}")
            JOB_REPORTS[loaded.job_name]().write(result, metrics, directory)
            if out is None:
                from reports.comparison_page import write_index

                write_index(directory.parent)
    if not with_tables:
        _print_figures(loaded.name, metrics, form, names)
        return
    from reports.jobs import JOB_REPORTS
    from reports.tables import left_out_note

    print_tables(*JOB_REPORTS[loaded.job_name]().tables(loaded.name, metrics))
    if loaded.figures_left_out:
        print(left_out_note(loaded))
    for warning in metrics.get("warnings", ()):
        print(f"warning: {warning}", file=sys.stderr)
    print(f"report: {directory}/report.html")


def _print_figures(name: str, metrics: Mapping[str, Any], form: Form, names: Sequence[str]) -> None:
    """Print figures of a run as they were asked for."""
    if form == "json" and not names:
        print(json.dumps(metrics, allow_nan=False))
        return
    from reports.chosen import chosen, chosen_csv, chosen_json, chosen_table

    figures = chosen(metrics, names)
    if form == "csv":
        print(chosen_csv(metrics, figures), end="")
    elif form == "json":
        print(json.dumps(chosen_json(metrics, figures), allow_nan=False))
    else:
        print_tables(chosen_table(name, metrics, figures))
