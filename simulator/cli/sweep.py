"""dsv3sim sweep: run a scenario at many points."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.cli.completion import metric_names, scenario_names, settings
from simulator.cli.options import Changes, Json, print_tables
from simulator.cli.progress import progress

if TYPE_CHECKING:
    from simulator.analysis.run import Detail
    from simulator.analysis.sweep import Point


def sweep_command(
    scenario: Annotated[
        str,
        typer.Argument(
            help="A shipped scenario or a path to a YAML file.", autocompletion=scenario_names
        ),
    ],
    vary: Annotated[
        list[str],
        typer.Option(
            metavar="PATH=A,B,...",
            help="Values of a path; repeatable, all combinations run. A+B=[1, 2],[3, 4] varies two "
            "paths in step.",
            autocompletion=settings,
        ),
    ],
    changes: Changes = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Show this metric. Default: of limits, of objectives, others that differ.",
            autocompletion=metric_names,
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
            metavar="[min:|max:]PATH",
            help="What is better; sorts the rows. Two or more mark the Pareto front.",
        ),
    ] = None,
    interval: Annotated[
        bool,
        typer.Option(
            "--interval",
            help="Work out 80% intervals too, and show them and ideal values below each metric.",
        ),
    ] = False,
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
    from hardware_profiles.renames import path_of_today
    from reports.chosen import check_spelt
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
    from simulator.analysis.parallel import begin_processes
    from simulator.analysis.run import price_kernels
    from simulator.scenario.axes import Axis
    from simulator.scenario.files import load_scenario

    axes = tuple(Axis.parse(text) for text in vary)
    limits = tuple(sweeping.Limit.parse(text) for text in where or ())
    objectives = tuple(sweeping.Objective.parse(text) for text in objective or ())
    asked = [path_of_today(name, "metrics", where="--metric") for name in metric or ()]
    asked += [limit.metric for limit in limits]
    asked += [goal.metric for goal in objectives]
    base = load_scenario(scenario, changes or ())
    check_spelt(asked, base.job_name)  # before the first run, and before anything is written
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
    if not known and dask is None:
        grid_points = math.prod(len(axis.values) for axis in axes)
        begin_processes(price_kernels, [base], jobs=min(jobs, grid_points))
    detail = sweeping.detail_of(asked, intervals=interval)
    points = sweeping.grid(scenario, changes or (), axes, detail=detail)
    taken_over = sum(point.digest in known for point in points)
    if taken_over:
        print(f"{taken_over} of {len(points)} points taken over from {directory}", file=sys.stderr)
    ran = _run(points, scenario, asked, kept=kept, known=known, jobs=jobs, dask=dask, detail=detail)
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
        if out is None:
            from reports.comparison_page import write_index

            write_index(directory.parent)
        if kept is not None:
            kept.unlink(missing_ok=True)
    if as_json:
        print(json.dumps(sweep_json(result), allow_nan=False))
        return
    print_tables(sweep_table(result))
    print(f"report: {directory}/report.html")


def _run(
    points: Sequence[Point],
    scenario: str,
    asked: Sequence[str],
    *,
    kept: Path | None,
    known: Mapping[str, Point],
    jobs: int,
    dask: str | None,
    detail: Detail,
) -> list[Point]:
    """Run the points; when stopped, say how many are kept."""
    from simulator.analysis.run import price_kernels, simulated_metrics
    from simulator.analysis.sweep import check_metrics, run_sweep

    ended = 0

    def what_is_kept() -> str:
        if kept is None:
            return "no point is kept without a directory (--out)"
        return f"{ended} of {len(points)} points are kept; the same command goes on from there"

    with progress(
        f"simulating {scenario}", total=len(points), unit="points", kept=what_is_kept
    ) as shown:

        def finished(row: Point) -> None:
            nonlocal ended
            check_metrics(asked, row)  # at the first row, not after hours of runs
            ended += bool(row.metrics)
            shown.advance(taken_over=row.digest in known or not row.digest)

        return run_sweep(
            points,
            scenario,
            partial(simulated_metrics, detail=detail),
            kept=kept,
            known=known,
            jobs=jobs,
            dask=dask,
            prepare=price_kernels,
            done=finished,
        )
