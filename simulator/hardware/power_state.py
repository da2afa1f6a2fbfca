"""Choose kernel times of the state that a job runs in: burst, sustained or in order.

A table holds operators timed in bursts of milliseconds, at the highest clock, and it may hold some
of them timed in turns with the other operators of a step (condition ``state=sustained``), when the
chip has drawn its power limit for seconds and its clock has fallen to what that allows.

The rule: training steps and prefill passes run sustained, decode steps at the clock of bursts (a
decode step of a full batch stays within 2% of the highest clock where it was measured). But short
kernels begin later behind other kernels than behind themselves, so that an operator which was timed
where it stands in a decode step (condition ``state=in_order``) answers decode steps by that.

An operator that was timed in turns answers a sustained job by those rows, the same kind of job
first. Any other row is carried over by the clock: the share of its time that compute takes goes
with the clock, what memory takes does not. The clocks are those that rows timed in turns state;
without such rows the calibration's `sustained_clock` is taken, and without either all rows answer
every job as they are.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

import numpy as np

from hardware_profiles.by_content import Keyed, profile_key, rows_key
from hardware_profiles.schema import CalibrationProfile, GpuProfile, load_gpu
from hardware_profiles.tables import Measurement
from reference_model.formats import multiplied_as
from reference_model.trace import KINDS
from simulator.hardware.kernels.families import calibration_measurements, operator_of

StepKind = Literal["train_microbatch", "prefill", "decode_step"]
SUSTAINED_JOBS: frozenset[StepKind] = frozenset({"train_microbatch", "prefill"})
"""Kinds of steps that draw the power limit for their whole length."""


AMONG_OTHERS = ("sustained", "in_order")
"""States of operators that were timed among the others of a step."""


def rows_for(calibration: CalibrationProfile, job: StepKind) -> tuple[Measurement, ...]:
    """The rows of a calibration's tables as they hold for a kind of job."""
    clock = calibration.sustained_clock
    return _rows_for(
        rows_key(calibration_measurements(calibration)),
        None if clock is None else clock.value,
        profile_key(load_gpu(calibration.gpu)),
        job,
    )


@lru_cache(maxsize=16)
def _rows_for(
    rows: Keyed[tuple[Measurement, ...]],
    sustained_clock: float | None,
    measured_gpu: Keyed[GpuProfile],
    job: StepKind,
) -> tuple[Measurement, ...]:
    """`rows_for` of the rows of all tables; the same objects for the same rows."""
    every = rows.value
    turns = [row for row in every if row.state == "sustained"]
    bursts = [row for row in every if row.state not in AMONG_OTHERS]
    of_job = [row for row in turns if row.job == job]
    ratios = [
        float(row.condition("burst_clock_hz")) / float(row.condition("clock_hz"))
        for row in of_job or turns
    ]
    if not ratios and sustained_clock:
        ratios = [1.0 / sustained_clock]
    if job not in SUSTAINED_JOBS:
        chosen = _merged([row for row in every if row.state == "in_order"])
        known = {_key(row) for row in chosen}
        return (*chosen, *(row for row in bursts if _key(row) not in known))
    if not ratios:
        return tuple(bursts)
    clocks = statistics.median(ratios)
    chosen = _merged(of_job)
    known = {_key(row) for row in chosen}
    chosen += [row for row in _merged(turns) if _key(row) not in known]
    known |= {_key(row) for row in chosen}
    slower = [
        replace(row, seconds=row.seconds * slowdown(row, measured_gpu.value, clocks=clocks))
        for row in bursts
        if _key(row) not in known
    ]
    return (*chosen, *slower)


def slowdown(row: Measurement, gpu: GpuProfile, *, clocks: float) -> float:
    """Time at a lower clock over the time of a burst, whose clock is `clocks` times as high.

    Compute takes its FLOPs over the peak of its type, memory its bytes over the HBM's rate; their
    shares of the time are those of these two."""
    if row.kind not in KINDS:
        return 1.0
    operator = operator_of(row)
    compute = operator.flops / gpu.peak(multiplied_as(row.dtype)) if operator.flops else 0.0
    memory = (operator.bytes_read + operator.bytes_written) / gpu.hbm_bandwidth
    share = compute / (compute + memory)
    return 1.0 + share * (clocks - 1.0)


def _key(row: Measurement) -> tuple[object, ...]:
    return (row.kernel_set, row.kind, row.dtype, row.out_dtype, row.accumulate, row.sizes, row.sms)


def _merged(rows: Sequence[Measurement]) -> list[Measurement]:
    """One row for each operator, the mean of logarithms of those timed in several steps."""
    groups: dict[tuple[object, ...], list[Measurement]] = defaultdict(list)
    for row in rows:
        groups[_key(row)].append(row)
    return [
        replace(group[0], seconds=float(np.exp(np.mean(np.log([row.seconds for row in group])))))
        for group in groups.values()
    ]
