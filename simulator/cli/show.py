"""dsv3sim show: print what the simulator knows."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from simulator.cli.completion import (
    calibration_names,
    cluster_names,
    gpu_names,
    model_names,
    scenario_names,
    schedule_names,
)
from simulator.cli.discover import list_names, show_fields, show_metrics, show_schema
from simulator.cli.options import Changes, print_tables

if TYPE_CHECKING:
    from simulator.workload.schedules.bubbles import IdealTimes

show_app = typer.Typer(help="Print what the simulator knows.", no_args_is_help=True)

MOST_DRAWN = 50
"""Longest action over the shortest that a drawing in text can hold."""

MOST_CELLS = 100_000
"""Micro-batches times ranks and their stages that a grid in text can show."""

show_app.command("fields")(show_fields)
show_app.command("metrics")(show_metrics)
show_app.command("schema")(show_schema)

ScenarioName = Annotated[
    str | None,
    typer.Argument(help="Without a name: list what there is.", autocompletion=scenario_names),
]
CalibrationName = Annotated[
    str | None,
    typer.Argument(help="Without a name: list what there is.", autocompletion=calibration_names),
]
GpuName = Annotated[
    str | None,
    typer.Argument(help="Without a name: list what there is.", autocompletion=gpu_names),
]
ClusterName = Annotated[
    str | None,
    typer.Argument(help="Without a name: list what there is.", autocompletion=cluster_names),
]
ScheduleName = Annotated[
    str | None,
    typer.Argument(help="Without a name: list what there is.", autocompletion=schedule_names),
]


@show_app.command("calibration")
def show_calibration(name: CalibrationName = None) -> None:
    """Calibrations: how wrong their kernel times are, by family, and where they only guess."""
    from hardware_profiles.schema import load_calibration
    from reports.calibration import calibration_tables

    if name is None:
        list_names("calibrations")
        return
    print_tables(*calibration_tables(load_calibration(name)))


@show_app.command("restatement")
def show_restatement(
    calibration: Annotated[
        str,
        typer.Argument(help="Calibration of the measured GPU.", autocompletion=calibration_names),
    ],
    cluster: Annotated[
        str,
        typer.Argument(
            help="Cluster with the GPU that is predicted.", autocompletion=cluster_names
        ),
    ],
    table: Annotated[str, typer.Argument(help="Measurements of that GPU: a shipped name or path.")],
) -> None:
    """Restatement: predict a GPU's measured kernels from another's, and how wrong that is."""
    from hardware_profiles.schema import load_calibration, load_cluster
    from hardware_profiles.tables import load_measurements, table_path
    from reports.calibration import restatement_table
    from simulator.calibration.restated_errors import restated_errors

    errors = restated_errors(
        load_measurements(table_path(table)),
        calibration=load_calibration(calibration),
        cluster=load_cluster(cluster),
    )
    print_tables(restatement_table(f"{calibration} -> {cluster}: {table}", errors))


@show_app.command("gpu")
def show_gpu(name: GpuName = None) -> None:
    """GPUs: datasheet values with their sources."""
    _show_profile("gpus", name)


@show_app.command("cluster")
def show_cluster(name: ClusterName = None) -> None:
    """Clusters: nodes, NICs and fabric with their sources, drawn, counted and priced."""
    _show_profile("clusters", name)
    if name is not None:
        from hardware_profiles.schema import load_cluster
        from reports.fabric import fabric_tables

        print_tables(*fabric_tables(load_cluster(name)))


@show_app.command("model")
def show_model(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names or config.json files; all names without.", autocompletion=model_names
        ),
    ] = None,
    context: Annotated[
        int, typer.Option(min=1, max=10**9, help="Tokens of a sequence, for FLOPs.")
    ] = 4096,
    gpus: Annotated[
        int, typer.Option(min=1, max=10**9, help="GPUs that share the routed experts.")
    ] = 8,
) -> None:
    """Models side by side: parameters, FLOPs and KV cache per token, weights per GPU."""
    from reference_model.config import load_model_config
    from reports.terminal import model_table, token_cost_table
    from simulator.analysis.model_comparison import compare_models, known_models

    if not names:
        list_names("models")
        print_tables(token_cost_table(compare_models(known_models())))
    else:
        models = {name: load_model_config(name) for name in names}
        print_tables(model_table(models, context=context, gpus=gpus))


@show_app.command("scenario")
def show_scenario(
    name: ScenarioName = None,
    changes: Changes = None,
    resolved: Annotated[
        bool,
        typer.Option("--resolved", help="With all that it names, changed as --set says."),
    ] = False,
) -> None:
    """Scenarios: one as it is written, or whole (--resolved), as a YAML file that runs."""
    from simulator.scenario.files import load_scenario, write_resolved, written

    if name is None:
        list_names("scenarios")
    elif resolved:
        print(write_resolved(load_scenario(name, changes or ())), end="")
    elif changes:
        raise ValueError("show scenario: --set changes a scenario as a whole; allowed: --resolved")
    else:
        print(written(name), end="")


@show_app.command("schedule")
def show_schedule(
    name: ScheduleName = None,
    ranks: Annotated[int, typer.Option(help="Ranks of the pipeline.")] = 8,
    microbatches: Annotated[int, typer.Option(help="Micro-batches of one step.")] = 20,
    virtual_stages: Annotated[
        int | None,
        typer.Option(help="Stages on each rank: interleaved schedules (default 2), zb_h1 (1)."),
    ] = None,
    times: Annotated[
        str | None,
        typer.Option(
            metavar="F,I,W,FB",
            help="Durations of forward, input backward, weight gradient and pair: draw to scale.",
        ),
    ] = None,
) -> None:
    """Schedules: one row per rank, one cell per action in order, or drawn to scale.

    A name, or the path of a file in the same form, whose sizes are its own.
    """
    from simulator.execution.pipeline import draw_to_scale, run_ideal
    from simulator.scenario.files import by_name
    from simulator.scenario.training import schedule_name
    from simulator.workload.schedules.bubbles import BUBBLE_FORMULAS, STAGGERED_BUBBLE_FORMULAS
    from simulator.workload.schedules.files import is_schedule_file, read_schedule
    from simulator.workload.schedules.grid import render_grid
    from simulator.workload.schedules.known import SCHEDULES, build_schedule

    if name is None:
        list_names("schedules")
        return
    ideal = _ideal_times(times) if times is not None else None
    name = schedule_name(name)
    if ranks * microbatches * max(virtual_stages or 1, 1) > MOST_CELLS:
        stages = "" if virtual_stages is None else f" --virtual-stages {virtual_stages}"
        raise ValueError(
            f"--ranks {ranks} --microbatches {microbatches}{stages}: too many to print; allowed: "
            f"at most {MOST_CELLS:,} micro-batches times ranks and stages on each"
        )
    if is_schedule_file(name):
        schedule = read_schedule(Path(name))
    else:
        by_name(SCHEDULES, name, "schedule")
        schedule = build_schedule(name, ranks, microbatches, virtual_stages=virtual_stages)
    print(render_grid(schedule))
    if ideal is not None:
        result = run_ideal(schedule, ideal)
        print(draw_to_scale(result))
        if name not in BUBBLE_FORMULAS:
            print(f"bubble, largest of a rank: {max(result.bubble_s):g}")
            return
        print(
            f"bubble, largest of a rank: {max(result.bubble_s):g}; "
            f"closed form: {BUBBLE_FORMULAS[name](schedule, ideal):g}"
        )
        if STAGGERED_BUBBLE_FORMULAS[name] is not BUBBLE_FORMULAS[name]:
            staggered = run_ideal(schedule, ideal, staggered=True)
            print(
                "the same where each rank begins its next step at once: "
                f"{max(staggered.bubble_s):g}; "
                f"closed form: {STAGGERED_BUBBLE_FORMULAS[name](schedule, ideal):g}"
            )


@show_app.command("pair")
def show_pair(
    scenario: Annotated[
        str,
        typer.Argument(
            help="A training scenario: shipped name or path.", autocompletion=scenario_names
        ),
    ],
    changes: Changes = None,
    order: Annotated[
        Path | None,
        typer.Option(help="Write the order, for `python -m reference_model pair --order`."),
    ] = None,
    measured: Annotated[
        str | None,
        typer.Option(help="Measured pairs to set beside it: a shipped table's name or a path."),
    ] = None,
) -> None:
    """Pair: the overlapped pair of a training scenario, part by part, and when each part runs."""
    from hardware_profiles.tables import load_measurements, table_path
    from hardware_profiles.whole_files import write_whole
    from reference_model.pair_order import order_text
    from reports.pair import measured_pair_table, pair_tables
    from simulator.analysis.measured_pair import measured_pairs
    from simulator.analysis.run import simulate
    from simulator.execution.training import TrainingRun
    from simulator.scenario.files import load_scenario
    from simulator.workload.pair_order import pair_parts

    loaded = load_scenario(scenario, changes or ())
    if loaded.job_name != "training":
        raise ValueError(
            f"{loaded.where}: a {loaded.job_name} job has no pair; allowed: a training scenario"
        )
    run = simulate(loaded).result
    assert isinstance(run, TrainingRun)
    pair = run.step.pair
    if order is not None:
        write_whole(order, order_text(pair_parts(pair.log.graph)))
    if measured is None:
        print_tables(*pair_tables(loaded.name, pair.log))
        return
    rows = load_measurements(table_path(measured))
    try:
        found = measured_pairs(
            pair.log.graph,
            rows,
            tokens=run.job.micro_batch_tokens,
            communication_sms=run.job.communication_sms,
        )
    except ValueError as error:
        raise ValueError(f"--measured {measured}: {error}") from error
    print_tables(measured_pair_table(loaded.name, pair.log, found))


def _show_profile(kind: Literal["gpus", "clusters"], name: str | None) -> None:
    from hardware_profiles.profile_files import read_profile
    from hardware_profiles.schema import load_cluster, load_gpu
    from reports.terminal import profile_table

    if name is None:
        list_names(kind)
        return
    if kind == "gpus":
        load_gpu(name)
    else:
        load_cluster(name)
    print_tables(profile_table(name, read_profile(kind, name)[0]))


def _ideal_times(text: str) -> IdealTimes:
    from simulator.workload.schedules.bubbles import IdealTimes

    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != len(IdealTimes._fields) or not all(0 < value < inf for value in values):
        raise ValueError(
            f"--times {text!r}: allowed: four positive numbers F,I,W,FB, such as 1,1,1,3"
        )
    if max(values) > MOST_DRAWN * min(values):
        raise ValueError(
            f"--times {text!r}: cannot be drawn to scale; allowed: none over {MOST_DRAWN} times "
            "another"
        )
    return IdealTimes(*values)
