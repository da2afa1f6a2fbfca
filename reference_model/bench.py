"""Time whole steps on this machine's GPU, to hold simulated steps against.

Every run of whole_runs.py is repeated for some seconds, so that clock and power settle. A row holds

    seconds, spread             median from start to end, and its deviation, over the second half
    host_seconds                time the host takes to launch an eager step; empty where it waits
    timed_operator_seconds      sum of its operators, each timed by itself in the same lease, in
                                bursts; empty where no table of operators is written
    sustained_operator_seconds  the same, the operators of a step from a graph timed among one
                                another (measure_mix.py): in turns, those of a decode step in its
                                order; sustained_clock_hz is the clock of that
    kernel_seconds, _count      sum of the kernels' times and their number, in a profile
    outside_share               of that sum, what belongs to no operator of the trace
    untimed_operator_seconds    kernels of the operators that are not timed by themselves: dispatch
                                and combine, which copy within the one GPU

A first pass over the runs times them and a second one profiles them, so that nothing that the
profiler leaves behind in the process is in the times.
"""

from __future__ import annotations

import csv
import gc
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import torch

from reference_model.captured import can_capture
from reference_model.gpu import CAPTURABLE, use_kernels
from reference_model.measure import (
    TimingRequest,
    append_rows,
    device_source,
    measure,
    require_hopper,
    seconds_by_request,
)
from reference_model.measure_mix import mix_rows, time_in_order, time_mix
from reference_model.measured_calls import BUILDERS
from reference_model.precision import Recipe
from reference_model.recorder import OperatorRecorder
from reference_model.trace import Operator
from reference_model.whole_runs import (
    DECODE,
    EAGER,
    GRAPH,
    STEP,
    WholeRun,
    build_step,
    profiled,
    time_step,
)

KEY = (
    "job", "model", "sequences", "context", "recipe", "kernels", "gpus", "launch",
)  # fmt: skip
"""The columns that make a run the same as one timed before."""
TIMES = (
    "seconds", "spread", "repetitions", "host_seconds", "operators", "timed_operator_seconds",
    "sustained_operator_seconds", "sustained_clock_hz", "clock_hz", "power_w", "source",
)  # fmt: skip
KERNELS = ("kernel_seconds", "kernel_count", "outside_share", "untimed_operator_seconds")
COLUMNS = (*KEY, *TIMES, *KERNELS)

Cells = Mapping[str, str]
BenchTable = dict[tuple[str, ...], Cells]

_PROFILED_SECONDS = 1.0
_MOST_PROFILED, _FEWEST_PROFILED = 20, 5
"""Repetitions under the profiler: about so many seconds of them, and between these numbers."""
_UNTIMED = ("dispatch", "dispatch_cached", "combine", "combine_backward")
"""Operators without a row of their own in a table of operators."""


def bench(
    runs: Sequence[WholeRun],
    *,
    kernels: str,
    out: Path,
    operators: Path | None,
    duration_s: float,
    deadline_s: float,
    profile: bool,
) -> None:
    """Time and, if asked to, profile every run that the table at `out` lacks; prints progress.

    With a second table, each operator of a run is timed by itself as well, as `measure` does it,
    and its row kept there. Stops before a run that begins after deadline_s seconds; run it again to
    go on. Runs from a graph are left out where the kernels read sizes on the host."""
    device = require_hopper()
    use_kernels(kernels)
    source = {"source": device_source(device)}
    rows = read_runs(out)
    wanted = [
        run for run in runs if run.launch != GRAPH or can_capture(Recipe("fp8", kernels), device)
    ]
    begun = time.monotonic()
    passes = (("time", TIMES), ("profile", KERNELS)) if profile else (("time", TIMES),)
    for what, columns in passes:
        for number, run in enumerate(wanted, start=1):
            label = f"{what} [{number}/{len(wanted)}] {run_label(run)}"
            key = key_of(run, kernels)
            row = rows.get(key, dict(zip(KEY, key, strict=True)))
            if row.get(columns[0]):
                print(f"{label}: in the table")
                continue
            if time.monotonic() - begun > deadline_s:
                print(f"stopped after {deadline_s:.0f} s; run again to go on")
                return
            try:
                if columns == TIMES:
                    cells = source | timed_cells(
                        run, kernels=kernels, device=device, duration_s=duration_s, table=operators
                    )
                else:
                    cells = profiled_cells(run, kernels=kernels, device=device)
            except torch.cuda.OutOfMemoryError:
                print(f"{label}: out of memory, left out")
                continue
            finally:
                torch.cuda.empty_cache()
            rows[key] = {**row, **cells}
            write_runs(rows, out)
            shown = (f"{name} {cells[name]}" for name in columns if name != "source")
            print(f"{label}: {', '.join(shown)}", flush=True)


def timed_cells(
    run: WholeRun,
    *,
    kernels: str,
    device: torch.device,
    duration_s: float,
    table: Path | None,
) -> dict[str, str]:
    """What the columns `TIMES` say of a run, but for the source."""
    step, eager = build_step(run, kernels=kernels, device=device)
    # The optimizer reads the gradients' norm, and other kernels the sizes of groups.
    host = run.launch == EAGER and run.job != STEP and kernels in CAPTURABLE
    timed = time_step(step, duration_s=duration_s, host=host)
    with OperatorRecorder() as recorder:
        eager()
    issued = recorder.recorded
    cells = {
        "seconds": f"{timed.seconds:.6g}",
        "spread": f"{timed.spread:.3g}",
        "repetitions": str(timed.repetitions),
        "host_seconds": "" if timed.host_seconds is None else f"{timed.host_seconds:.4g}",
        "operators": str(len(issued)),
        "clock_hz": f"{timed.clock_hz:.4g}",
        "power_w": f"{timed.power_w:.4g}",
    }
    if table is None:
        return cells | dict.fromkeys(TIMES[5:8], "")
    requests = _requests(issued, kernels)
    cells["timed_operator_seconds"] = f"{_time_operators(Counter(requests), table):.6g}"
    del step, eager
    gc.collect()
    torch.cuda.empty_cache()
    among = run.launch == GRAPH
    return cells | (
        _time_among(requests, run, table, device, duration_s)
        if among
        else dict.fromkeys(TIMES[6:8], "")
    )


def profiled_cells(run: WholeRun, *, kernels: str, device: torch.device) -> dict[str, str]:
    """What the columns `KERNELS` say of a run."""
    step, eager = build_step(run, kernels=kernels, device=device)
    seconds = time_step(step, duration_s=0.0).seconds
    repetitions = min(_MOST_PROFILED, max(_FEWEST_PROFILED, math.ceil(_PROFILED_SECONDS / seconds)))
    whole = profiled(step, repetitions=repetitions)
    split = profiled(eager, repetitions=_FEWEST_PROFILED) if run.launch == GRAPH else whole
    untimed = sum(split.inside.get(name, 0.0) for name in _UNTIMED)
    return {
        "kernel_seconds": f"{whole.total:.6g}",
        "kernel_count": str(whole.kernels),
        "outside_share": f"{sum(split.outside.values()) / split.total:.3g}",
        "untimed_operator_seconds": f"{untimed:.4g}",
    }


def _requests(issued: Iterable[Operator], kernels: str) -> list[TimingRequest]:
    """The operators to time, in the step's order."""
    sms = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    return [
        TimingRequest(
            replace(o, name="", phase="forward", segment="", recompute=False),
            kernels,
            sms,
            partition=False,
        )
        for o in issued
        if o.kind in BUILDERS
    ]


def _time_operators(counts: Mapping[TimingRequest, int], table: Path) -> float:
    """Sum of the operators' times, each timed by itself and kept in a table of operators."""
    with redirect_stdout(StringIO()):  # a line for each of hundreds
        measure(list(counts), out=table, deadline_s=float("inf"))
    seconds = seconds_by_request(table, counts)
    return sum(count * seconds[request] for request, count in counts.items())


def _time_among(
    issued: Sequence[TimingRequest],
    run: WholeRun,
    table: Path,
    device: torch.device,
    duration_s: float,
) -> dict[str, str]:
    """What the operators take among one another; their rows go to the table of operators."""
    counts = Counter(issued)
    try:
        if run.job == DECODE:
            timing = time_in_order(issued, duration_s=duration_s, device=device)
        else:
            timing = time_mix(counts, duration_s=duration_s, device=device)
    except torch.cuda.OutOfMemoryError:
        print(f"{run_label(run)}: out of memory with all operators at once, none timed so")
        return dict.fromkeys(("sustained_operator_seconds", "sustained_clock_hz"), "")
    append_rows(mix_rows(timing, counts, job=run.job, source=device_source(device)), table)
    together = sum(count * timing.seconds[request] for request, count in counts.items())
    return {
        "sustained_operator_seconds": f"{together:.6g}",
        "sustained_clock_hz": f"{timing.clock_hz:.4g}",
    }


def composition(rows: Iterable[Cells]) -> list[str]:
    """Lines that set each step beside what its operators, each timed by itself, come to.

    From a graph that is their sum; eagerly a step takes at least the time of its host. Whole
    training steps are left out where their operators were not timed among one another: in older
    tables none stands for the optimizer."""
    lines = [f"{'step':<44}{'seconds':>12}{'operators':>12}{'host':>12}{'error':>8}"]
    for row in rows:
        known = "sustained_operator_seconds" if row["job"] == STEP else "timed_operator_seconds"
        if not row[known]:
            continue
        operators = row["sustained_operator_seconds"] or row["timed_operator_seconds"]
        alone = float(operators) + float(row["untimed_operator_seconds"] or 0.0)
        host = float(row["host_seconds"] or 0.0) if row["launch"] == EAGER else 0.0
        model = Path(row["model"]).name
        step = f"{row['job']} {model} {row['sequences']} x {row['context']} {row['launch']}"
        measured = float(row["seconds"])
        lines.append(
            f"{step:<44}{measured:>12.4e}{alone:>12.4e}{host:>12.4e}"
            f"{max(alone, host) / measured - 1:>+8.1%}"
        )
    return lines


# -- the table -------------------------------------------------------------------------------------


def run_label(run: WholeRun) -> str:
    """One line that names a run."""
    return f"{run.job} {run.model} {run.sequences} x {run.context} {run.launch}"


def key_of(run: WholeRun, kernels: str) -> tuple[str, ...]:
    """The cells of `KEY`."""
    return (
        run.job, run.model, str(run.sequences), str(run.context), "fp8", kernels, "1", run.launch,
    )  # fmt: skip


def read_runs(path: Path) -> BenchTable:
    """The rows of the table at path, none where there is none; it must have its columns."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: columns are {reader.fieldnames}, allowed: {list(COLUMNS)}")
        return {tuple(line[name] for name in KEY): line for line in reader}


def write_runs(rows: BenchTable, path: Path) -> None:
    """Write the table anew; a cell that is not known yet is empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
