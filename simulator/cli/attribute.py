"""dsv3sim attribute: say what a result is made of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.cli.completion import scenario_names
from simulator.cli.options import Changes, Json, Out, print_tables
from simulator.cli.progress import progress

if TYPE_CHECKING:
    from reports.page import Page


def attribute(
    scenario: Annotated[
        str,
        typer.Argument(
            help="A training scenario, a whole run, or a fleet with counterfactuals.",
            autocompletion=scenario_names,
        ),
    ],
    changes: Changes = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, of a fleet.")] = 2,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Say what a training step or run is made of, or how a fleet differs from published figures."""
    from simulator.scenario.files import load_scenario
    from simulator.scenario.fleet import FleetJob
    from simulator.scenario.pretraining import PretrainingJob
    from simulator.scenario.training import TrainingJob

    loaded = load_scenario(scenario, changes or ())
    if not isinstance(loaded.job, TrainingJob | PretrainingJob | FleetJob):
        raise ValueError(
            f"{loaded.where}: a {loaded.job_name} job has nothing to attribute to; allowed: "
            "training, pretraining, and a fleet with counterfactuals"
        )
    if out is not None:
        from reports.run_directory import check_replaceable

        check_replaceable(out)
    with progress(f"simulating counterfactuals of {scenario}", unit="runs") as shown:
        if isinstance(loaded.job, TrainingJob):
            from reports.terminal import step_attribution_table
            from simulator.analysis.run import simulate

            metrics = simulate(loaded).quick_metrics
            steps = [f.si_value for f in loaded.file.published if f.metric == "step_time_s"]
            published_s = steps[0] if steps else None
            table = step_attribution_table(loaded.name, metrics, published_s=published_s)

            def page() -> Page:
                from reports.attribution_page import step_attribution_page

                return step_attribution_page(loaded, metrics, published_s)

            attributed = {
                "step_time_s": metrics["step_time_s"],
                "published_step_time_s": published_s,
                "attribution": metrics["attribution"],
            }
        elif isinstance(loaded.job, PretrainingJob):
            from reports.pretraining import causes_table
            from simulator.analysis.run import simulate

            metrics = simulate(loaded, watch=shown.watch).metrics
            table = causes_table(loaded.name, metrics)

            def page() -> Page:
                from reports.attribution_page import run_attribution_page

                return run_attribution_page(loaded, metrics)

            attributed = {
                name: metrics[name] for name in ("days", "days_by_cause", "share_by_cause")
            }
        else:
            from reports.fleet import attribution_table
            from simulator.analysis import fleet_attribution

            figures, rows = fleet_attribution.attribute_fleet(
                scenario, changes or (), processes=jobs, watch=shown.watch
            )
            table = attribution_table(loaded.name, figures, rows)

            def page() -> Page:
                from reports.attribution_page import fleet_attribution_page

                return fleet_attribution_page(loaded, figures, rows)

            attributed = fleet_attribution.attribution_json(figures, rows)
    if out is not None:
        from reports.page import write_found

        write_found(page(), out, attributed)
    if as_json:
        print(json.dumps(attributed, allow_nan=False))
        return
    print_tables(table)
    if out is not None:
        print(f"report: {out}/report.html")
