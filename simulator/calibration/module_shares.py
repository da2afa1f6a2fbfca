"""Share the one time of a module out among its kernels, by their times at peak."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hardware_profiles.schema import GpuProfile
from hardware_profiles.tables import Measurement
from hardware_profiles.units import Seconds
from simulator.calibration.table_mappings import ChosenLines, TableMapping
from simulator.hardware.kernels.families import batch_of_rows
from simulator.hardware.kernels.roofline import DEEPGEMM_TILES, ideal_batch_seconds


@dataclass(frozen=True, slots=True)
class ReadKernel:
    """What one kernel of a mapping reads."""

    rows: list[Measurement]
    lines: list[int]
    """Line number of each row."""
    problems: dict[str, list[int]]
    """{reason: lines}"""
    chosen: ChosenLines
    """[lines of the table] that the kernel speaks for."""


def shared_out(
    rules: TableMapping, read: Sequence[ReadKernel], gpu: GpuProfile
) -> list[ReadKernel]:
    """The kernels of a mapping, the one time of a module shared out by their times at peak, each
    with a launch.

    A line that cannot give every kernel of its module gives none.
    """
    shared = list(read)
    for module in dict.fromkeys(k.part_of for k in rules.kernels if k.part_of):
        for members in _together(rules, module):
            ideal = {
                number: dict(
                    zip(
                        read[number].lines,
                        _at_peak(
                            read[number].rows, gpu, rules.launch * rules.kernels[number].launches
                        ),
                        strict=True,
                    )
                )
                for number in members
            }
            whole = set.intersection(*(set(of) for of in ideal.values()))
            for number in members:
                found = read[number]
                kept = [
                    (
                        replace(
                            row,
                            seconds=row.seconds
                            * ideal[number][line]
                            / sum(ideal[other][line] for other in members),
                        ),
                        line,
                    )
                    for row, line in zip(found.rows, found.lines, strict=True)
                    if line in whole
                ]
                shared[number] = replace(
                    found, rows=[row for row, _ in kept], lines=[line for _, line in kept]
                )
    return shared


def aside_text(reason: str, whole: ReadKernel, part: ReadKernel) -> list[str]:
    """Says which share of the time of some lines is no row; nothing without a line."""
    if not part.rows:
        return []
    times = dict(zip(whole.lines, (row.seconds for row in whole.rows), strict=True))
    share = sum(row.seconds for row in part.rows) / sum(times[line] for line in part.lines)
    return [f"{share:.1%} of the time of {len(part.lines)} lines is no row: {reason}"]


def _together(rules: TableMapping, module: str) -> list[list[int]]:
    """Numbers of the kernels of a module that share a line: those of the same conditions."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, kernel in enumerate(rules.kernels):
        if kernel.part_of == module:
            groups[repr(sorted(kernel.where.items()))].append(number)
    return list(groups.values())


def _at_peak(rows: Sequence[Measurement], gpu: GpuProfile, launch: Seconds) -> list[Seconds]:
    """Seconds of each row at the GPU's peaks after its launches; all of one kind and types."""
    if not rows:
        return []
    sms = np.array([row.sms for row in rows], dtype=np.float64)
    ideal = ideal_batch_seconds(batch_of_rows(rows), sms, gpu, DEEPGEMM_TILES)
    seconds: list[Seconds] = (ideal + launch).tolist()
    return seconds
