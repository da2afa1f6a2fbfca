"""dsv3sim calibrate: fit kernel times to measurements."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from simulator.cli.options import print_tables, working


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
