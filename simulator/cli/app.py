"""The command line: dsv3sim run, sweep, validate, attribute, compare, replay, calibrate, show.

Only this module, cli_show and cli_options print.

What a user can mend ends with one line on standard error and exit code 2. Imports of the simulation
stay inside the commands, so that `dsv3sim --help` answers at once.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from simulator.cli.options import Changes, Json, print_tables, working
from simulator.cli.show import show_app

app = typer.Typer(
    help="Predict how long DeepSeek-V3-class models take on a GPU cluster, and where it goes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(show_app, name="show")

BAD_INPUT = 2
"""Exit code for everything that the user can mend."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells count it."""


@app.command()
def run(
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
        bool, typer.Option("--unfold", help="Run and log every operator of every rank.")
    ] = False,
    no_interval: Annotated[
        bool,
        typer.Option(
            "--no-interval",
            help="Leave out the 80 % intervals and the same step with other kernels, for speed.",
        ),
    ] = False,
) -> None:
    """Simulate a scenario and write its report."""
    started = time.perf_counter()
    from rich.text import Text

    from reports.jobs import JOB_REPORTS, other_kernels
    from reports.tables import left_out_note
    from simulator.analysis.run import simulate
    from simulator.scenario.files import load_scenario

    loaded = load_scenario(scenario, changes or ())
    directory = out or (None if as_json else Path("runs") / loaded.directory_name)
    if directory is not None:
        from reports.run_directory import check_replaceable

        check_replaceable(directory)
    with working(f"simulating {loaded.name}") as status:
        result = simulate(loaded, unfold=unfold)
        report = JOB_REPORTS[loaded.job_name]()
        quick = report.quick_metrics if no_interval else None
        if no_interval and quick is None:
            note = f"note: --no-interval: a {loaded.job_name} job has no 80 % interval"
            print(note, file=sys.stderr)
        metrics = (quick or report.metrics)(result)
        metrics["scenario"] = {
            "name": loaded.name,
            "job": loaded.job_name,
            "changes": list(loaded.changes),
            "published_for_other_inputs": list(loaded.figures_left_out),
        }
        if not no_interval and loaded.job_name in ("training", "serving_step"):
            status.update(Text("the same with other kernels"))
            metrics["other_kernels"] = other_kernels(loaded, metrics)
        metrics["wall_clock_s"] = time.perf_counter() - started
        if directory is not None:
            status.update(Text(f"writing {directory}"))
            report.write(result, metrics, directory)
    if as_json:
        print(json.dumps(metrics, allow_nan=False))
        return
    print_tables(*report.tables(loaded.name, metrics))
    if loaded.figures_left_out:
        print(left_out_note(loaded))
    print(f"report: {directory}/report.html")


@app.command()
def sweep(
    scenario: Annotated[str, typer.Argument(help="A shipped scenario or a path to a YAML file.")],
    vary: Annotated[
        list[str],
        typer.Option(
            metavar="PATH=A,B,...",
            help="Values of a path; repeatable, all combinations run. A+B=[1, 2],[3, 4] varies two "
            "paths in step.",
        ),
    ],
    changes: Changes = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Show this metric. Default: of limits, of objectives, others that differ.",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIMIT", help="Keep a limit, such as 'tpot_s.mean<=50 ms'; repeatable."
        ),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            metavar="min:PATH|max:PATH",
            help="What is better; sorts the rows. Two or more mark the Pareto front.",
        ),
    ] = None,
    as_json: Json = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory of the sweep. Default: runs/SCENARIO-sweep, SCENARIO with what --set "
            "changes of it."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on the workers of this scheduler.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run every point, those of an interrupted sweep too.")
    ] = False,
) -> None:
    """Run a scenario at many points: a table, the points inside limits, the best of them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from reports.jobs import metrics_of
    from reports.run_directory import check_replaceable
    from reports.sweep import (
        ROWS_FILE,
        Sweep,
        sweep_json,
        sweep_table,
        telling_metrics,
        write_sweep,
    )
    from simulator.analysis import sweep as sweeping
    from simulator.scenario.files import load_scenario

    axes = tuple(sweeping.Axis.parse(text) for text in vary)
    limits = tuple(sweeping.Limit.parse(text) for text in where or ())
    objectives = tuple(sweeping.Objective.parse(text) for text in objective or ())
    asked = [*(metric or ()), *(limit.metric for limit in limits)]
    asked += [goal.metric for goal in objectives]
    base = load_scenario(scenario, changes or ())
    directory = out or (None if as_json else Path("runs") / f"{base.directory_name}-sweep")
    kept = None
    known = {}
    if directory is not None:
        check_replaceable(directory)
        kept = directory.with_name(f".{directory.name}.{ROWS_FILE}")
        if fresh:
            kept.unlink(missing_ok=True)
        else:
            known = sweeping.read_rows(directory / ROWS_FILE) | sweeping.read_rows(kept)
    points = sweeping.grid(scenario, changes or (), axes)
    taken_over = sum(point.digest in known for point in points)
    if taken_over:
        print(f"{taken_over} of {len(points)} points taken over from {directory}", file=sys.stderr)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("points", total=len(points))

        def finished(row: sweeping.PointResult) -> None:
            sweeping.check_metrics(asked, row)  # at the first row, not after hours of runs
            progress.advance(task)

        ran = sweeping.run_sweep(
            points,
            scenario,
            metrics_of,
            kept=kept,
            known=known,
            jobs=jobs,
            dask=dask,
            done=finished,
        )
    result = Sweep(
        scenario=base,
        axes=axes,
        ran=tuple(ran),
        metrics=telling_metrics(ran, asked, room=0 if metric else 5 - len(axes)),
        limits=limits,
        objectives=objectives,
    )
    if directory is not None:
        write_sweep(result, directory)
        if kept is not None:
            kept.unlink(missing_ok=True)
    if as_json:
        print(json.dumps(sweep_json(result), allow_nan=False))
        return
    print_tables(sweep_table(result))
    print(f"report: {directory}/report.html")


@app.command()
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

    from reports.jobs import metrics_of
    from reports.terminal import validation_table
    from simulator.analysis.validation import check_figures, median_error, scenarios_with_figures
    from simulator.analysis.validation import check_published as validate_scenarios
    from simulator.scenario.files import load_scenario

    names = tuple(scenarios or scenarios_with_figures())
    for name in names:
        check_figures(load_scenario(name))  # a misspelt name is an error before anything runs
    checks = []
    with working(f"simulating {names[0]}") as status:
        runs = validate_scenarios(names, metrics_of, jobs=jobs)
        for number, (_, found) in enumerate(runs, 1):
            checks += found
            status.update(f"{number} of {len(names)} scenarios")
    if as_json:
        rows = [asdict(check) | {"is_evidence": check.is_evidence} for check in checks]
        print(json.dumps({"figures": rows, "median_error": median_error(checks)}, allow_nan=False))
        return
    print_tables(validation_table(checks))


@app.command()
def attribute(
    scenario: Annotated[
        str, typer.Argument(help="A training scenario, or a fleet with counterfactuals.")
    ],
    changes: Changes = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, of a fleet.")] = 2,
    as_json: Json = False,
) -> None:
    """Say what a training step is made of, or how a fleet differs from published figures."""
    from simulator.scenario.files import load_scenario

    loaded = load_scenario(scenario, changes or ())
    with working(f"simulating counterfactuals of {scenario}"):
        if loaded.job_name == "training":
            from reports.terminal import step_attribution_table
            from simulator.analysis.run import simulate
            from simulator.analysis.training_metrics import training_metrics

            metrics = training_metrics(simulate(loaded), with_intervals=False)
            steps = [f.si_value for f in loaded.file.published if f.metric == "step_time_s"]
            published_s = steps[0] if steps else None
            table = step_attribution_table(loaded.name, metrics, published_s=published_s)
            attributed = {
                "step_time_s": metrics["step_time_s"],
                "published_step_time_s": published_s,
                "attribution": metrics["attribution"],
            }
        else:
            from reports.fleet import attribution_table
            from simulator.analysis import fleet_attribution

            figures, rows = fleet_attribution.attribute_fleet(
                scenario, changes or (), processes=jobs
            )
            table = attribution_table(loaded.name, figures, rows)
            attributed = fleet_attribution.attribution_json(figures, rows)
    if as_json:
        print(json.dumps(attributed, allow_nan=False))
        return
    print_tables(table)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Directories of two or more runs.")],
) -> None:
    """Print the metrics of several runs side by side, and what training steps differ by."""
    from reports.run_directory import check_comparable, read_metrics
    from reports.terminal import attribution_comparison, comparison_table
    from simulator.analysis.kernels_used import difference_in_kind

    if len(runs) < 2:
        raise ValueError("compare: one run given; allowed: two or more run directories")
    read = [(str(directory), read_metrics(directory)) for directory in runs]
    check_comparable(read)
    attributed = attribution_comparison(read)
    print_tables(comparison_table(read), *([attributed] if attributed is not None else []))
    note = difference_in_kind(metrics for _, metrics in read)
    if note:
        print(f"note: {note}")


@app.command()
def replay(
    trace: Annotated[Path, typer.Argument(help="A Kineto profile, .json or .json.gz.")],
    gpu: Annotated[
        str | None, typer.Option(help="Replay on another GPU than the recorded one.")
    ] = None,
    mapping: Annotated[
        str | None,
        typer.Option(
            help="How kernels map to operators: a shipped name or a file. Default: what fits best."
        ),
    ] = None,
    changes: Changes = None,
    as_json: Json = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory of the run. Default: runs/replay_PROFILE with what --gpu, --mapping "
            "and --set say, none with --json."
        ),
    ] = None,
) -> None:
    """Run a recorded profile again: on its own GPU, or as a what-if on another machine."""
    from simulator.analysis.profile_replay import replay_profile as replay_trace
    from simulator.scenario.changes import directory_name, shown
    from simulator.scenario.files import parse_override

    named = {"gpu": gpu, "mapping": mapping}
    asked = [f"{name}={value}" for name, value in named.items() if value is not None]
    asked += sorted(changes or ())
    default = directory_name(f"replay_{trace.name.split('.')[0]}", asked)
    directory = out or (None if as_json else Path("runs") / default)
    if directory is not None:
        from reports.run_directory import check_replaceable

        check_replaceable(directory)
    result = replay_trace(
        trace,
        gpu=gpu,
        mapping=mapping,
        overrides=dict(parse_override(text) for text in changes or ()),
    )
    if directory is not None:
        from reports.replay import write_replay_run

        write_replay_run(result, directory)
    if as_json:
        print(json.dumps(result.to_json(), allow_nan=False))
        return
    from reports.terminal import metric_table

    title = f"{trace} with {shown(asked)}" if asked else str(trace)
    print_tables(metric_table(title, result.to_json()))
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"report: {directory}/report.html")


@app.command()
def calibrate(
    sources: Annotated[
        list[Path], typer.Argument(help="Tables (.csv, .parquet) or profiles (.json, .json.gz).")
    ],
    gpu: Annotated[str, typer.Option(help="GPU that the sources were measured on.")],
    out: Annotated[Path, typer.Option(help="Calibration to write, .yaml.")],
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SOURCE=]NAME|FILE",
            help="What columns or kernels mean; repeatable; for every source of its format, or "
            "one. Chosen by the columns or kernels where not given.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Calibration whose other inputs are taken over. Default: the GPU's own."),
    ] = None,
    sets: Annotated[
        str | None,
        typer.Option(help="Kernel sets to use, A,B,C, most preferred first. Default: all."),
    ] = None,
    form: Annotated[
        Literal["best", "monotone", "surface"],
        typer.Option(help="Monotone in every load; best: the least error of left-out rows."),
    ] = "best",
    report: Annotated[
        Path | None,
        typer.Option(help="Directory of the report. Default: runs/calibration_NAME of --out."),
    ] = None,
) -> None:
    """Fit kernel times to measurements and report the error of left-out rows."""
    from reports.calibration import calibration_tables, pooled_table
    from reports.calibration_report import POOLED_ROWS, write_calibration_run
    from reports.run_directory import check_replaceable
    from simulator.calibration import fit as calibration

    directory = report or Path("runs") / f"calibration_{out.stem}"
    check_replaceable(directory)
    with working("calibrating"):
        result, written = calibration.calibrate_to_file(
            sources,
            gpu=gpu,
            out=out,
            mappings=mapping or (),
            base=base,
            sets=sets.split(",") if sets else (),
            form=form,
        )
        inputs = {
            "sources": [str(source) for source in sources],
            "gpu": gpu,
            "mappings": mapping or [],
            "base": base,
            "sets": sets,
            "form": form,
            "out": str(out),
        }
        pooled = write_calibration_run(result, directory, inputs=inputs)
    errors = [pooled_table(pooled, POOLED_ROWS)] if result.profile.fits else []
    print_tables(*errors, *calibration_tables(result.profile, result.measurements))
    for source in result.read_by:
        print(f"read by {source}")
    for lost in result.unmapped:
        print(f"unmapped: {lost}")
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"calibration: {', '.join(map(str, written))}")
    print(f"report: {directory}/report.html")


def main() -> None:
    """Entry point: errors that the user can mend become one line and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        # typer's own usage errors carry a message in the place of a type that can be imported.
        usage = getattr(error, "format_message", None)
        if usage is None and not isinstance(error, ValueError):
            raise
        print(f"dsv3sim: {usage() if usage else error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
