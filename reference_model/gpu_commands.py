"""Commands that need a GPU, and the numerics table: python -m reference_model measure | profile."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SUSTAINED_SECONDS = 2.0


def add_commands(commands: Any) -> None:
    """Add the commands to the subparsers of __main__."""
    measure = commands.add_parser("measure", help="time the model's operators on the GPU at hand")
    measure.add_argument("--config", default="deepseek_v3", help="default: %(default)s")
    measure.add_argument("--out", type=Path, required=True, help="table to write or go on with")
    measure.add_argument(
        "--deadline", type=float, default=float("inf"), help="stop after this many seconds"
    )
    measure.add_argument(
        "--kinds", nargs="+", default=[], metavar="KIND", help="only operators of these kinds"
    )
    measure.add_argument("--kernels", help="only operators on this backend")
    measure.add_argument(
        "--anew", action="store_true", help="drop their rows first: after a change of kernels"
    )
    measure.add_argument("--list", action="store_true", help="name what is to be measured and stop")
    measure.set_defaults(function=_measure)

    device = commands.add_parser(
        "device", help="sustained clocks, launch times: of the GPU at hand"
    )
    device.add_argument("--config", default="deepseek_v3", help="default: %(default)s")
    device.add_argument("--out", type=Path, help="table of the sustained runs to write")
    device.add_argument("--launches", type=Path, help="table of the launch times to write")
    device.set_defaults(function=_device)

    achieved = commands.add_parser("achieved", help="rates of a measured table beside its ceilings")
    achieved.add_argument("table", type=Path, help="a table that measure wrote")
    achieved.set_defaults(function=_achieved)

    numerics = commands.add_parser("numerics", help="errors of the FP8 kernels against float64")
    numerics.add_argument("--kernels", default="reference", help="backend (default: %(default)s)")
    numerics.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    numerics.add_argument("--seed", type=int, default=0, help="of the inputs")
    numerics.set_defaults(function=_numerics)

    links = commands.add_parser("links", help="time transfers between the GPUs of this host")
    links.add_argument("--out", type=Path, required=True, help="table to write")
    links.set_defaults(function=_links)

    profile = commands.add_parser("profile", help="run one full-size layer under the profiler")
    profile.add_argument("--config", default="deepseek_v3", help="default: %(default)s")
    profile.add_argument("--layer", default="moe", help="kind of layer (default: %(default)s)")
    profile.add_argument("--kernels", default="mixed", help="default: %(default)s")
    profile.add_argument("--seed", type=int, default=0, help="of weights and hidden states")
    profile.add_argument("--out", type=Path, help="Chrome trace to write")
    profile.set_defaults(function=_profile)

    bench = commands.add_parser("bench", help="time whole steps of cut-down models on the GPU")
    bench.add_argument("--out", type=Path, required=True, help="table to write or go on with")
    bench.add_argument("--kernels", default="mixed", help="default: %(default)s")
    bench.add_argument("--jobs", nargs="+", default=[], metavar="JOB", help="only these jobs")
    bench.add_argument(
        "--seconds", type=float, default=10.0, help="each step is repeated (default: %(default)s)"
    )
    bench.add_argument(
        "--deadline", type=float, default=float("inf"), help="stop after this many seconds"
    )
    bench.add_argument(
        "--operators", type=Path,
        help="table of the runs' operators, each timed by itself, to write or go on with",
    )  # fmt: skip
    bench.add_argument(
        "--profile", action=argparse.BooleanOptionalAction, default=True,
        help="profile every run after all are timed (default: yes)",
    )  # fmt: skip
    bench.add_argument("--list", action="store_true", help="name what is to be timed and stop")
    bench.add_argument(
        "--show", action="store_true",
        help="set the steps of the table beside the sums of their operators and stop",
    )  # fmt: skip
    bench.set_defaults(function=_bench)


def _measure(options: argparse.Namespace) -> None:
    from reference_model.alignment import check_sizes, size_notes
    from reference_model.config import load_model_config
    from reference_model.measure import forget, measure, request_label, require_hopper
    from reference_model.measure_grid import narrowed, requests

    config = load_model_config(options.config)
    check_sizes(config)
    for note in size_notes(config):
        print(note)
    wanted = narrowed(
        requests(config, model=Path(options.config).stem),
        kinds=options.kinds,
        kernels=options.kernels,
    )
    if options.list:
        for request in wanted:
            print(request_label(request))
        return
    require_hopper()
    if options.anew:
        print(f"{forget(wanted, out=options.out)} rows dropped from {options.out}")
    measure(wanted, out=options.out, deadline_s=options.deadline)


def _device(options: argparse.Namespace) -> None:
    import torch

    from reference_model.config import load_model_config
    from reference_model.gpu import use_kernels
    from reference_model.measure import device_source, request_label, write_rows
    from reference_model.measure_device import launch_rows, launch_times, sustain
    from reference_model.measure_grid import sustained_requests

    times = launch_times()
    source = device_source(torch.device("cuda", 0))
    for name, seconds in times.items():
        print(f"launch {name:<8} {seconds:.3e} s")
    if options.launches:
        write_rows(launch_rows(times, source=source), options.launches)
    use_kernels("mixed")
    rows = []
    for request in sustained_requests(load_model_config(options.config)):
        row = sustain(request, source=source, duration_s=SUSTAINED_SECONDS)
        rows.append(row)
        print(f"sustained {request_label(request)}: {row.seconds:.4e} s; {row.conditions}")
    if options.out:
        write_rows(rows, options.out)


def _bench(options: argparse.Namespace) -> None:
    from reference_model.bench import bench, composition, read_runs, run_label
    from reference_model.whole_runs import whole_runs

    if options.show:
        print("\n".join(composition(read_runs(options.out).values())))
        return

    jobs = sorted({run.job for run in whole_runs()})
    unknown = [job for job in options.jobs if job not in jobs]
    if unknown:
        raise ValueError(f"--jobs {unknown[0]!r} is not one of {jobs}")
    runs = [run for run in whole_runs() if not options.jobs or run.job in options.jobs]
    if options.list:
        for run in runs:
            print(run_label(run))
        return
    bench(
        runs,
        kernels=options.kernels,
        out=options.out,
        operators=options.operators,
        duration_s=options.seconds,
        deadline_s=options.deadline,
        profile=options.profile,
    )


def _achieved(options: argparse.Namespace) -> None:
    from reference_model.achieved import achieved, ceilings, load_timed

    rows = load_timed(options.table)
    products, copies = ceilings(rows)
    for dtype, flops in sorted(products.items()):
        print(f"ceiling {dtype:<10} {flops:.3e} FLOP/s, the fastest GEMM")
    print(f"ceiling memory     {copies:.3e} B/s read and written, the fastest copy")
    print()
    print(f"{'kind':<34}{'type':<10}{'kernels':<17}{'rows':>5}{'FLOP/s':>12}{'':>7}{'B/s':>12}")
    for a in achieved(rows):
        rate = "" if a.flops_share is None else f"{a.flops_per_s:.3e}"
        share = "" if a.flops_share is None else f"{a.flops_share:.0%}"
        print(
            f"{a.kind:<34}{a.dtype:<10}{a.kernel_set:<17}{a.rows:>5}{rate:>12}{share:>7}"
            f"{a.bytes_per_s:>12.3e}{a.bytes_share:>6.0%}"
        )


def _numerics(options: argparse.Namespace) -> None:
    import torch

    from reference_model.numerics import kernel_errors, recipe_errors

    device = torch.device(options.device)
    print(f"{options.kernels} kernels on {device}, relative errors against float64")
    print(f"{'kernel':<32}{'shape':<26}{'of inputs':>12}{'of operands':>14}")
    for e in kernel_errors(
        options.kernels, device=device, rows=512, features=384, k=2048, seed=options.seed
    ):
        operands = "" if e.of_operands is None else f"{e.of_operands:.2e}"
        print(f"{e.name:<32}{e.shape:<26}{e.of_inputs:>12.2e}{operands:>14}")
    print()
    print("recipes on a CPU: scales per tensor; per tile; per tile with promoted sums")
    print(f"{'k':>8}{'mean':>6}{'per tensor':>14}{'per tile':>14}{'promoted':>14}")
    for r in recipe_errors(
        lengths=(512, 2048, 7168, 16384), means=(0.0, 1.0), size=128, seed=options.seed
    ):
        print(f"{r.k:>8}{r.mean:>6g}{r.per_tensor:>14.3e}{r.per_tile:>14.3e}{r.promoted:>14.3e}")


def _links(options: argparse.Namespace) -> None:
    from reference_model.measure_links import measure_links

    measure_links(options.out)


def _profile(options: argparse.Namespace) -> None:
    import torch

    from reference_model.alignment import size_notes
    from reference_model.config import load_model_config
    from reference_model.measure_grid import WORKLOADS
    from reference_model.precision import Recipe
    from reference_model.profiling import profile_layer, save_profile
    from reference_model.recorder import LAYERS
    from reference_model.trace import PHASES

    if options.layer not in LAYERS:
        raise ValueError(f"--layer {options.layer!r} is not one of {sorted(LAYERS)}")
    recipe = Recipe("fp8", options.kernels)
    config = load_model_config(options.config)
    for note in size_notes(config):
        print(note)
    workload = WORKLOADS["train"]
    try:
        operators, outside, trace = profile_layer(
            config, options.layer, workload, recipe=recipe, seed=options.seed
        )
    except torch.cuda.OutOfMemoryError as error:
        raise ValueError(str(error)) from error
    for o, seconds, kernels in operators:
        print(f"{o.phase:<12} {o.name:<45} {seconds:.3e} s in {kernels} kernels")
    for phase in PHASES:
        seconds = sum(took for o, took, _ in operators if o.phase == phase)
        print(f"{phase:<12} {seconds:.4e} s of kernels")
    print(f"{'outside':<12} {outside:.4e} s of kernels that no operator launched")
    if options.out:
        save_profile(trace, options.out)
        print(f"written to {options.out}")
