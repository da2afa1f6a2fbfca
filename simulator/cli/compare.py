"""dsv3sim compare: put several runs, or one job on several machines, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from simulator.cli.completion import cluster_names
from simulator.cli.options import Changes, Json, Out, print_tables
from simulator.cli.progress import progress


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(help="Directories of two or more runs; with --cluster one scenario."),
    ],
    cluster: Annotated[
        list[str] | None,
        typer.Option(
            help="Put the scenario on this cluster, by name or path; repeatable.",
            autocompletion=cluster_names,
        ),
    ] = None,
    changes: Changes = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Print runs side by side and what they differ by, or one step on several clusters."""
    from simulator.analysis.kernels_used import difference_in_kind

    if cluster:
        _on_clusters(runs, cluster, changes or [], as_json, out)
        return
    from reports.run_directory import check_comparable, check_replaceable, read_metrics
    from reports.terminal import attribution_comparison, comparison_table

    if changes or as_json:
        raise ValueError("compare: --set and --json: allowed with --cluster")
    if len(runs) < 2:
        raise ValueError(
            "compare: one run given; allowed: two or more run directories, or a scenario with "
            "--cluster"
        )
    if out is not None:
        check_replaceable(out)
    read = [(directory, read_metrics(Path(directory))) for directory in runs]
    check_comparable(read)
    attributed = attribution_comparison(read)
    print_tables(comparison_table(read), *([attributed] if attributed is not None else []))
    note = difference_in_kind(metrics for _, metrics in read)
    if note:
        print(f"note: {note}")
    if out is not None:
        from reports.comparison_page import comparison_page
        from reports.page import write_found

        write_found(comparison_page(read), out, {"runs": [m | {"run": n} for n, m in read]})
        print(f"report: {out}/report.html")


def _on_clusters(
    runs: list[str], clusters: list[str], changes: list[str], as_json: bool, out: Path | None
) -> None:
    from reports.machines import machines_table
    from simulator.analysis.kernels_used import difference_in_kind
    from simulator.analysis.machines import on_clusters

    if len(runs) != 1:
        raise ValueError(
            f"compare --cluster: {len(runs)} scenarios given; allowed: one, such as "
            "dualpipe_h800_2048"
        )
    if out is not None:
        from reports.run_directory import check_replaceable

        check_replaceable(out)
    with progress(f"simulating {runs[0]}", total=len(clusters), unit="clusters") as shown:
        machines = on_clusters(runs[0], changes, clusters, done=shown.advance)
    if all("reason" in machine for machine in machines):
        reasons = "; ".join(f"{each['cluster']}: {each['reason']}" for each in machines)
        raise ValueError(f"compare --cluster: none can run {runs[0]}: {reasons}")
    if out is not None:
        from reports.machines_page import machines_page
        from reports.page import write_found

        page = machines_page(Path(runs[0]).stem, changes, machines)
        write_found(page, out, {"compared": runs[0], "changes": changes, "machines": machines})
    if as_json:
        print(json.dumps(machines, allow_nan=False))
        return
    print_tables(machines_table(runs[0], machines))
    note = difference_in_kind(machines)
    if note:
        print(f"note: {note}")
    if out is not None:
        print(f"report: {out}/report.html")
