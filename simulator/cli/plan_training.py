"""dsv3sim plan training: every layout of a job bounded, the best simulated."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.cli.completion import (
    calibration_names,
    cluster_names,
    model_names,
    scenario_names,
)
from simulator.cli.options import Changes, GpuOption, Gpus, Json, print_tables
from simulator.cli.progress import progress

if TYPE_CHECKING:
    from simulator.analysis.plan.training import TrainingPlan
    from simulator.analysis.plan.training_bounds import TrainingBound
    from simulator.analysis.plan.training_budget import Budget
    from simulator.analysis.sweep import Point
    from simulator.scenario.files import Scenario


MOST_GPUS = 2**30
"""As many as asks for the largest cluster of a GPU."""


def plan_training_command(
    of: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SCENARIO",
            help="A training scenario: its layout is free.",
            autocompletion=scenario_names,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A shipped model or its config.json. Default: deepseek_v3.",
            autocompletion=model_names,
        ),
    ] = None,
    gpu: GpuOption = None,
    gpus: Gpus = None,
    cluster: Annotated[
        str | None, typer.Option(help="In the place of --gpu.", autocompletion=cluster_names)
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Kernel times.", autocompletion=calibration_names)
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Sequences of a step.")] = None,
    sequence: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a sequence. Default: 4096.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="fp8, bfloat16 or mxfp8. Default: fp8.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="In the place of --gpus: a rent, '4096 USD/h', or a sum for --tokens, '6 MUSD'."
        ),
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(help="That the budget trains on, such as 14.8e12.")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(help="Of a GPU that the job may use, such as '70 GiB'.")
    ] = None,
    fix: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS=A,B", help="Try only these values of an axis; repeatable."),
    ] = None,
    changes: Changes = None,
    simulate: Annotated[int, typer.Option(min=1, help="Layouts to simulate.")] = 50,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    as_json: Json = False,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the plan. Default: runs/NAME-plan.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Simulate all, what an interrupted plan did too.")
    ] = False,
) -> None:
    """The fastest layout of a training job: all bounded, the best simulated."""
    from hardware_profiles.schema import load_cluster, load_gpu
    from simulator.analysis.plan.training_budget import Budget, numbers_of_nodes
    from simulator.scenario.files import load_scenario
    from simulator.scenario.starting_hardware import gpu_named, nearest_cluster
    from simulator.scenario.starting_training import starting_training

    fixed = fixed_axes(fix or ())
    own = [*(changes or ())]
    if tokens is not None and budget is None:
        raise ValueError("plan training: --tokens without --budget; allowed: both")
    if budget is not None and gpus is not None:
        raise ValueError("plan training: --gpus and --budget; allowed: one of the two")
    money = None if budget is None else Budget.parse(budget, tokens)
    if of is not None:
        flags = {
            "--model": model,
            "--gpu": gpu,
            "--gpus": gpus,
            "--cluster": cluster,
            "--calibration": calibration,
            "--batch": batch,
            "--sequence": sequence,
            "--recipe": recipe,
        }
        given = [name for name, value in flags.items() if value is not None]
        if given:
            raise ValueError(
                f"plan training: {given[0]} with --from; allowed: one of them, --set changes "
                "what a scenario says"
            )
        own += _memory_change(memory_limit, load_scenario(of, own))
        _plan(
            of, own, fixed, simulate, jobs,
            as_json=as_json, out=out, fresh=fresh, has_own=True, budget=money,
        )  # fmt: skip
        return
    if batch is None:
        raise ValueError(
            "plan training: --batch is missing; allowed: the sequences of a step, or --from with "
            "a scenario"
        )
    model = model or "deepseek_v3"
    if money is not None and gpu is not None and cluster is None:
        profile = load_cluster(nearest_cluster(load_gpu(gpu_named(gpu)), MOST_GPUS))
        gpus = numbers_of_nodes(money, profile, batch)[0] * profile.node.gpus
    text, scenario = starting_training(
        model=model,
        batch=batch,
        sequence=sequence or 4096,
        gpu=gpu,
        gpus=gpus,
        cluster=cluster,
        calibration=calibration,
        recipe=recipe or "fp8",
        layout={},
        where="plan training",
    )
    own += _memory_change(memory_limit, scenario)
    with TemporaryDirectory() as folder:
        size = scenario.cluster.gpus
        path = Path(folder) / f"{Path(model).stem}_on_{size}_{scenario.cluster.node.gpu.name}.yaml"
        path.write_text(text, encoding="utf-8")
        _plan(
            str(path), own, fixed, simulate, jobs,
            as_json=as_json, out=out, fresh=fresh, has_own=False, budget=money,
        )  # fmt: skip


def _memory_change(limit: str | None, scenario: Scenario) -> list[str]:
    """The change that lets a job use only so much of each GPU's memory.

    Raises:
        ValueError: no size, or more than a GPU has.
    """
    from hardware_profiles.units import parse_quantity

    if limit is None:
        return []
    has = scenario.cluster.node.gpu.hbm_capacity
    if not 0 < parse_quantity(limit, "data", "--memory-limit") <= has:
        raise ValueError(
            f"--memory-limit {limit}: allowed: more than 0 and at most the {has / 2**30:.4g} GiB "
            f"of {scenario.cluster.node.gpu.name}"
        )
    return [f"cluster.node.gpu.hbm_capacity={limit}"]


def fixed_axes(texts: Sequence[str]) -> dict[str, list[object]]:
    """Read "pp=8,16" and the like: {axis: values}.

    Raises:
        ValueError: a text of another form, or an axis that is given twice.
    """
    from simulator.analysis.plan.training_layouts import AXES

    found: dict[str, list[object]] = {}
    for text in texts:
        axis, equals, values = text.partition("=")
        if not equals or not values or axis not in AXES or axis in found:
            raise ValueError(
                f"--fix {text!r}: allowed: AXIS=VALUE,VALUE once each, of the axes "
                f"{', '.join(AXES)}, such as --fix pp=8,16"
            )
        of_words = axis in ("schedule", "recompute")
        parts = [part.strip() for part in values.split(",")]
        if not of_words and not all(part.isdigit() for part in parts):
            raise ValueError(f"--fix {text!r}: allowed: whole numbers, such as --fix {axis}=1,2")
        found[axis] = [part if of_words else int(part) for part in parts]
    return found


def _plan(
    path: str,
    changes: Sequence[str],
    fixed: Mapping[str, Sequence[object]],
    simulate: int,
    jobs: int,
    *,
    as_json: bool,
    out: Path | None,
    fresh: bool,
    has_own: bool,
    budget: Budget | None,
) -> None:
    from reports.run_directory import check_replaceable
    from reports.sweep import ROWS_FILE
    from reports.training_plan import (
        budget_table,
        layouts_table,
        losers_table,
        plan_lines,
        write_training_plan,
    )
    from simulator.analysis.plan.training import CHOSEN_STAGES, training_plan_json
    from simulator.analysis.plan.training_budget import (
        budget_json,
        budget_sentence,
        numbers_of_nodes,
        plan_with_budget,
    )
    from simulator.analysis.sweep import read_rows
    from simulator.scenario.files import load_scenario, write_resolved
    from simulator.scenario.training import TrainingJob

    base = load_scenario(path, changes)
    directory = out or (None if as_json else Path("runs") / f"{base.directory_name}-plan")
    kept, known = None, {}
    if directory is not None:
        check_replaceable(directory)
        kept = directory.with_name(f".{directory.name}.{ROWS_FILE}")
        if fresh:
            kept.unlink(missing_ok=True)
        else:
            known = read_rows(directory / ROWS_FILE) | read_rows(kept)

    def search(more: Sequence[str]) -> TrainingPlan:
        return _search(
            path, [*changes, *more], fixed, simulate, jobs,
            kept=kept, known=known, has_own=has_own,
        )  # fmt: skip

    bought = None
    if budget is None:
        plan = search(())
    else:
        sequences = base.job_as(TrainingJob).global_batch_sequences
        nodes = numbers_of_nodes(budget, base.cluster, sequences)
        bought = plan_with_budget(budget, nodes, lambda n: search((f"cluster.nodes={n}",)))
        assert bought.plan is not None
        plan = bought.plan
        changes = [*changes, f"cluster.nodes={plan.scenario.cluster.nodes}"]
    found = training_plan_json(plan)
    if bought is not None:
        found["budget"] = budget_json(bought)
    if directory is not None and plan.best is not None:
        settings = plan.best.layout.settings
        texts = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
        chosen = load_scenario(path, [*changes, *CHOSEN_STAGES, *texts])
        write_training_plan(plan, directory, chosen=write_resolved(chosen), found=found)
        if kept is not None:
            kept.unlink(missing_ok=True)
    if as_json:
        print(json.dumps(found, allow_nan=False))
        return
    tables = [] if bought is None else [budget_table(bought)]
    print_tables(*tables, layouts_table(plan), losers_table(plan))
    print("\n".join(plan_lines(plan)))
    if bought is not None and bought.best is not None:
        print(budget_sentence(bought.best))
    if directory is not None and plan.best is not None:
        print(f"its scenario: dsv3sim run {directory}/scenario.yaml")
        print(f"report: {directory}/report.html")


def _search(
    path: str,
    changes: Sequence[str],
    fixed: Mapping[str, Sequence[object]],
    simulate: int,
    jobs: int,
    *,
    kept: Path | None,
    known: Mapping[str, Point],
    has_own: bool,
) -> TrainingPlan:
    """The plan; standard error says how many layouts are simulated and which step is the best so
    far, and when stopped what is kept."""
    from hardware_profiles.units import format_seconds
    from reports.training_plan import bounded_line
    from simulator.analysis.plan.training import plan_training

    best: float | None = None
    ended = 0

    def what_is_kept() -> str:
        if kept is None:
            return "no layout is kept without a directory (--out)"
        layouts = "layout is" if ended == 1 else "layouts are"
        return f"{ended} simulated {layouts} kept; the same command goes on"

    with progress("bounding all layouts", kept=what_is_kept) as shown:

        def bounded(ranked: Sequence[TrainingBound], lost: Mapping[str, int]) -> None:
            with shown.aside():
                print(bounded_line(ranked, lost), file=sys.stderr)
            shown.says("simulating", total=min(simulate, len(ranked)), unit="layouts")

        def finished(row: Point) -> None:
            nonlocal best, ended
            ended += 1
            step = row.metrics.get("step_time_s")
            if isinstance(step, float) and (best is None or step < best):
                best = step
                shown.calls(f"simulating, best so far {format_seconds(step)}")
            if row.metrics:
                shown.advance(taken_over=row.digest in known)

        return plan_training(
            path,
            changes,
            fixed=fixed,
            simulate=simulate,
            jobs=jobs,
            own=has_own,
            kept=kept,
            known=known,
            bounded=bounded,
            done=finished,
        )
