"""dsv3sim calibrate: fit kernel times to measurements."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from simulator.cli.completion import calibration_names, gpu_names
from simulator.cli.options import print_tables
from simulator.cli.progress import progress


def calibrate(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Tables (.csv, .parquet), output of nccl-tests or DeepEP's tests (.txt, .log), "
            "profiles (.json, .json.gz), or folders of them."
        ),
    ],
    gpu: Annotated[
        str,
        typer.Option(help="GPU that the sources were measured on.", autocompletion=gpu_names),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Calibration to write, .yaml; not with --explain.")
    ] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Say what would be read as what, and write nothing."),
    ] = False,
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
        typer.Option(
            help="Calibration whose other inputs are taken over. Default: the GPU's own.",
            autocompletion=calibration_names,
        ),
    ] = None,
    sets: Annotated[
        str | None,
        typer.Option(
            help="Kernel sets to prefer, A,B,C. Of a kernel without one: the base's, else the "
            "newest version."
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A column that tables lack, the same in every line, such as dtype=bfloat16; "
            "repeatable.",
        ),
    ] = None,
    gpus_per_node: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="That low-latency kernels were timed among. Default: those of the shipped "
            "clusters of the GPU.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Directory of the report. Default: runs/calibration_NAME of --out."),
    ] = None,
) -> None:
    """Fit kernel times to measurements and report the error of left-out rows."""
    from hardware_profiles.schema import load_calibration
    from reports.calibration import (
        calibration_tables,
        collective_table,
        explained_tables,
        low_latency_table,
        module_table,
        normal_table,
        pooled_table,
    )
    from reports.calibration_report import POOLED_ROWS, write_calibration_run
    from reports.run_directory import check_replaceable
    from simulator.calibration.calibration_files import base_of, calibrate_to_file
    from simulator.calibration.kernel_choice import RULE, choose_versions
    from simulator.calibration.modules import module_errors
    from simulator.calibration.sources import read_sources

    stated = _stated(column or ())
    preferred = sets.split(",") if sets else ()
    if explain:
        with progress("reading") as shown:
            read = read_sources(
                sources,
                gpu=gpu,
                mappings=mapping or (),
                stated=stated,
                watch=shown.watch,
            )
            named = (*preferred, *load_calibration(base_of(gpu, base)).kernel_sets)
            chosen = choose_versions(read, named=named)
        print_tables(*explained_tables(read, chosen))
        return
    if out is None:
        raise ValueError("--out is missing: the calibration to write, .yaml; or --explain")
    directory = report or Path("runs") / f"calibration_{out.stem}"
    check_replaceable(directory)
    with progress("calibrating") as shown:
        result, written = calibrate_to_file(
            sources,
            gpu=gpu,
            out=out,
            mappings=mapping or (),
            base=base,
            sets=preferred,
            stated=stated,
            gpus_per_node=gpus_per_node,
            watch=shown.watch,
        )
        inputs = {
            "sources": [str(source) for source in sources],
            "gpu": gpu,
            "mappings": mapping or [],
            "base": base,
            "sets": sets,
            "columns": column or [],
            "gpus_per_node": gpus_per_node,
            "out": str(out),
        }
        shown.says("holding whole modules against their kernels")
        modules, cancelling = module_errors(result.read.modules, load_calibration(str(out)))
        pooled = write_calibration_run(result, directory, inputs=inputs)
    errors = [pooled_table(pooled, POOLED_ROWS)] if result.profile.fits else []
    if result.transport is not None:
        raw, left_out = result.transport
        errors.append(collective_table(raw["name"], left_out))
    if result.normal:
        errors.append(normal_table(result.normal))
    if result.low_latency is not None:
        errors.append(low_latency_table(result.low_latency))
    beside = [module_table(modules)] if modules else []
    print_tables(*errors, *calibration_tables(result.profile), *beside)
    for line in cancelling:
        print(line)
    for source in result.read.read_by:
        print(f"read by {source}")
    print(f"kernels: {', '.join(result.profile.kernel_sets)} ({RULE})")
    for line in result.completed:
        print(f"no row of these kernels, taken from the shipped calibration {line}")
    for lost in result.read.unmapped:
        print(f"unmapped: {lost}")
    for warning in result.read.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"calibration: {', '.join(map(str, written))}")
    print(f"report: {directory}/report.html")


def _stated(texts: Sequence[str]) -> dict[str, str]:
    """{column: its value in every line}"""
    stated = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise ValueError(f"--column {text}: allowed: NAME=VALUE, such as dtype=bfloat16")
        stated[name] = value
    return stated
