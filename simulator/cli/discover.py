"""dsv3sim list, show fields, show metrics, show schema: find out what there is without a run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from simulator.cli.completion import field_paths, metric_names
from simulator.cli.options import Json, print_tables

Listed = Annotated[
    str | None,
    typer.Argument(help="One of scenarios, models, gpus, clusters, calibrations, schedules."),
]


def list_names(what: Listed = None, as_json: Json = False) -> None:
    """List scenarios, models, GPUs, clusters, calibrations and schedules, a line on each."""
    from hardware_profiles.suggestions import meant_or_known
    from reports.discovery import name_table
    from simulator.analysis.known_names import NAMES

    if what is not None and what not in NAMES:
        raise ValueError(f"list {what}: {meant_or_known(what, NAMES)}")
    found = {name: dict(names()) for name, names in NAMES.items() if what in (None, name)}
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    print_tables(*(name_table(name, names) for name, names in found.items()))


def show_fields(
    path: Annotated[
        str | None,
        typer.Argument(
            help="A path as of --set, or its last part; all that it holds is shown.",
            autocompletion=field_paths,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fields: what files may say: value, unit, default, meaning."""
    from reports.discovery import field_tables
    from simulator.analysis.named_fields import with_known_names
    from simulator.scenario.describe import find_fields, scenario_fields

    if path is not None:
        found = find_fields(path)
    else:
        every = scenario_fields()
        found = list(every) if as_json else [field for field in every if "." not in field.path]
    found = with_known_names(found)
    if as_json:
        print(json.dumps({"fields": [field.to_json() for field in found]}, ensure_ascii=False))
        return
    print_tables(*field_tables(found))
    if path is None:
        print("dsv3sim show fields training: all that a training job may say; so of any other path")


def show_metrics(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A metric, or how its name begins: memory, ttft_s.", autocompletion=metric_names
        ),
    ] = None,
    job: Annotated[str | None, typer.Option(help="Those of this job alone: training.")] = None,
    as_json: Json = False,
) -> None:
    """Metrics: what runs give: unit, which way is better, meaning, which jobs."""
    from hardware_profiles.suggestions import meant_or_known
    from reports.discovery import metrics_by_name, metrics_table
    from simulator.analysis.every_metric import METRICS, metric_of, unknown_metric

    if job is not None and job not in METRICS:
        raise ValueError(f"--job {job}: unknown job; {meant_or_known(job, METRICS)}")
    found = metrics_by_name(METRICS if job is None else (job,))
    if name is not None:
        asked = metric_of(name, job)
        chosen = [one for one in found if one == name or one.startswith(f"{name}.")]
        chosen = chosen or [one for one in found if asked is not None and one == asked.name]
        if not chosen:
            raise ValueError(unknown_metric(name, found))
        found = {one: found[one] for one in chosen}
    if as_json:
        listed = [
            {
                "name": one,
                "unit": metric.unit,
                "better": metric.better,
                "meaning": metric.meaning,
                "jobs": jobs,
            }
            for one, (metric, jobs) in found.items()
        ]
        print(json.dumps({"metrics": listed}, ensure_ascii=False))
        return
    print_tables(metrics_table(found))


def show_schema(
    file: Annotated[
        str, typer.Argument(help="Kind of file: scenario, cluster, gpu, calibration, transport.")
    ],
) -> None:
    """Schema: JSON Schema of a kind of file, with which editors complete and check it."""
    from hardware_profiles.suggestions import meant_or_known
    from simulator.scenario.json_schema import FILES, json_schema

    if file not in FILES:
        raise ValueError(f"show schema {file}: {meant_or_known(file, FILES)}")
    print(json.dumps(json_schema(file), indent=2, ensure_ascii=False))
