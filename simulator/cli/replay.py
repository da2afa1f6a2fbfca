"""dsv3sim replay: run a recorded profile again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from simulator.cli.options import Changes, Json, print_tables


def replay(
    trace: Annotated[Path, typer.Argument(help="A Kineto profile, .json or .json.gz.")],
    gpu: Annotated[
        str | None, typer.Option(help="Replay on another GPU than the recorded one.")
    ] = None,
    recorded_gpu: Annotated[
        str | None,
        typer.Option(
            help="GPU of the recording, a shipped name or a file, where the profile names none."
        ),
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
            help="Directory of the run. Default: runs/replay_PROFILE with what the options and "
            "--set say, none with --json."
        ),
    ] = None,
) -> None:
    """Run a recorded profile again: on its own GPU, or as a what-if on another machine."""
    from simulator.analysis.profile_replay import replay_profile
    from simulator.scenario.changes import directory_name, shown
    from simulator.scenario.files import parse_override

    named = {"gpu": gpu, "recorded_gpu": recorded_gpu, "mapping": mapping}
    asked = [f"{name}={value}" for name, value in named.items() if value is not None]
    asked += sorted(changes or ())
    default = directory_name(f"replay_{trace.name.split('.')[0]}", asked)
    directory = out or (None if as_json else Path("runs") / default)
    if directory is not None:
        from reports.run_directory import check_replaceable

        check_replaceable(directory)
    result = replay_profile(
        trace,
        gpu=gpu,
        mapping=mapping,
        source_gpu=recorded_gpu,
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
