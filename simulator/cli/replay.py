"""dsv3sim replay: run a recorded profile again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from simulator.cli.completion import gpu_names
from simulator.cli.options import Changes, Json
from simulator.cli.run import run_and_show


def replay(
    trace: Annotated[Path, typer.Argument(help="A Kineto profile, .json or .json.gz.")],
    gpu: Annotated[
        str | None,
        typer.Option(help="Replay on another GPU than the recorded one.", autocompletion=gpu_names),
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
    started = time.perf_counter()
    from simulator.analysis.profile_replay import replay_scenario

    named = {"gpu": gpu, "recorded_gpu": recorded_gpu, "mapping": mapping}
    asked = [f"{name}={value}" for name, value in named.items() if value is not None]
    scenario = replay_scenario(trace, [*asked, *(changes or ())])
    run_and_show(
        scenario,
        out=out,
        form="json" if as_json else "table",
        unfold=False,
        intervals=True,
        started=started,
    )
