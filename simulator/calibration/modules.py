"""Whole modules as they were timed, beside the sum of their kernels as a calibration predicts them.

A table of whole modules (attention, the shared expert) never enters a fit of kernels. It tells what
tables of kernels cannot: whether the sum of the predictions is right, at which sizes, and where
errors of opposite sign cancel in a mean. The sum has no gaps between kernels; the module's time has
them where it was not taken in a CUDA graph.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np

from hardware_profiles.schema import (
    CalibrationProfile,
    GpuProfile,
    known_clusters,
    load_cluster,
    load_gpu,
)
from hardware_profiles.units import Seconds, unit_factor
from reference_model.trace import TRACE_FOLDER, Operator, Workload, load_trace
from simulator.calibration.table_files import read_columns
from simulator.calibration.table_mappings import (
    Array,
    TimedModule,
    column_arithmetic,
    lines_where,
    mapping_for,
    shipped_table_mappings,
    with_names_of,
)
from simulator.calibration.tables import ROUNDING, of_this_gpu
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernels.families import calibration_measurements

MODEL = "deepseek_v3"
"""Whose recorded kernels a module consists of."""
SIZES_TOGETHER = 8
"""Factor between the smallest and the largest size that one line of errors is for."""
WRONG = 0.05
"""Error from which a size counts as wrong in one direction."""
DECODE_CORE = "mla_decode"


@dataclass(frozen=True, slots=True)
class TimedModules:
    """Lines of a table that time one module; arrays [lines]."""

    rules: TimedModule
    names: tuple[str, ...]
    """Of the module and its version, a line."""
    tokens: Array
    context: Array
    sequences: Array
    seconds: Array


@dataclass(frozen=True, slots=True)
class ModuleError:
    """Sum of kernels over module, of one module at one size."""

    module: str
    size: str
    rows: int
    seconds: Seconds
    """Median of the measured times."""
    error: float
    """Median of sum / measured - 1."""
    low: float
    high: float
    """10th and 90th percentile of it."""


def timed_modules(path: Path, gpu: GpuProfile) -> list[TimedModules]:
    """Whole modules that a table times on a GPU; none in a table of anything else.

    Raises ValueError, one line, for a file that is no table.
    """
    columns = read_columns(path)
    peaks = {f"peak_{name}": peak for name, peak in gpu.peak_compute.items()}
    rules = mapping_for(columns, shipped_table_mappings(), peaks, path.name)
    columns = with_names_of(rules, columns)
    own, _ = of_this_gpu(columns, gpu, defaultdict(list))
    found = []
    for module in rules.modules:
        places = np.flatnonzero(own & lines_where(columns, module.where))
        taken = {name: cells[places] for name, cells in columns.items()}

        numbers = partial(
            column_arithmetic, columns=taken, known=peaks, where=f"mapping {rules.name}"
        )
        found.append(
            TimedModules(
                module,
                tuple(
                    module.name.format_map({name: cells[line] for name, cells in taken.items()})
                    for line in range(len(places))
                ),
                numbers(module.tokens),
                numbers(module.context),
                numbers(module.sequences),
                numbers(module.seconds) * unit_factor(module.unit, "time"),
            )
        )
    return found


def module_errors(
    paths: Iterable[Path], calibration: CalibrationProfile
) -> tuple[list[ModuleError], list[str]]:
    """Compare timed modules with the sums of their kernels, by size.

    Args:
        paths: tables; those of anything but modules are passed over.

    Returns the errors by module and size, and a sentence for each module whose errors cancel.
    """
    gpu = load_gpu(calibration.gpu)
    groups: dict[tuple[str, str, int], list[tuple[float, Seconds]]] = defaultdict(list)
    model: KernelCostModel | None = None
    for path in paths:
        for timed in timed_modules(path, gpu):
            if not timed.names:
                continue
            model = model or _model(calibration)
            decode = timed.rules.job == "decode"
            sizes = timed.context if decode and timed.context.any() else timed.tokens
            axis = "context" if decode and timed.context.any() else "tokens"
            for name, size, predicted, seconds in zip(
                timed.names, sizes, _sums(model, timed), timed.seconds, strict=True
            ):
                step = math.floor(math.log(max(size, 1), SIZES_TOGETHER) + ROUNDING)
                groups[name, axis, SIZES_TOGETHER**step].append((predicted / seconds - 1, seconds))
    errors = []
    for (module, axis, size), found in sorted(groups.items()):
        ratios, seconds = np.array(found).T
        errors.append(
            ModuleError(
                module,
                f"{size:,} to {SIZES_TOGETHER * size - 1:,} {axis}",
                len(found),
                float(np.median(seconds)),
                float(np.median(ratios)),
                float(np.quantile(ratios, 0.1)),
                float(np.quantile(ratios, 0.9)),
            )
        )
    return errors, cancelling(errors)


def cancelling(errors: Sequence[ModuleError]) -> list[str]:
    """A sentence for each module that is wrong in one direction at some sizes and in the other at
    others: in a mean over sizes these cancel."""
    said = []
    for module in dict.fromkeys(error.module for error in errors):
        of_module = [error for error in errors if error.module == module]
        least = min(of_module, key=lambda error: error.error)
        most = max(of_module, key=lambda error: error.error)
        if least.error < -WRONG and most.error > WRONG:
            said.append(
                f"{module}: errors cancel, {least.error:+.0%} at {least.size} and "
                f"{most.error:+.0%} at {most.size}"
            )
    return said


def _model(calibration: CalibrationProfile) -> KernelCostModel:
    """The calibration's kernel times on its own GPU, in whatever cluster: none crosses a link."""
    shipped = load_cluster(known_clusters()[0])
    node = shipped.node.model_copy(update={"gpu": load_gpu(calibration.gpu)})
    cluster = shipped.model_copy(update={"node": node})
    rows = calibration_measurements(calibration)
    return KernelCostModel(cluster=cluster, calibration=calibration, expert_parallel_ranks=1).fit(
        rows
    )


def _sums(model: KernelCostModel, timed: TimedModules) -> Array:
    """[lines] predicted seconds of all kernels of each module together."""
    trace = load_trace(TRACE_FOLDER / f"{MODEL}.{timed.rules.job}.jsonl")
    operators: list[Operator] = []
    line_of: list[int] = []
    for line in range(len(timed.names)):
        every = trace.operators(
            "moe",
            "forward",
            Workload(
                tokens=round(timed.tokens[line]),
                context=round(timed.context[line]),
                sequences=round(timed.sequences[line]),
                expert_rows=0,
                received_rows=0,
                local_experts=1,
            ),
        )
        kernels = [
            op for op in every if any(fnmatchcase(op.name, of) for of in timed.rules.kernels)
        ]
        operators += kernels
        line_of += [line] * len(kernels)
    gpu = model.cluster.node.gpu
    seconds = model.predict(operators, sms=gpu.sms, overlapped=False).seconds.copy()
    ratio = model.calibration.fp8_cache.get(gpu.architecture)
    if timed.rules.fp8_cache and ratio is not None:
        seconds[[op.kind == DECODE_CORE for op in operators]] *= ratio.value
    sums = np.zeros(len(timed.names))
    np.add.at(sums, line_of, seconds)
    return sums
