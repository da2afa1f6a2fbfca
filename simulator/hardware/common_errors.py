"""What moves the times of all kernels as one: another GPU of the type, its clocks and its power.

A table is one GPU's, and a job runs on others. Their difference is common to all kernels, measured
ones too: drawn anew for each family it would average out over a step. Work that tiles bind differs
more than work that memory binds. A job that draws the power limit for seconds runs at a lower clock
than a table timed in bursts of milliseconds; where nothing says how a table was timed, the high end
of its times leaves room for that.

On another GPU than the calibration's, times that are not restated by an error of their own carry
`other_gpu` of the calibration too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.estimates import Estimate, TimeEstimate
from hardware_profiles.fields import ROOT, Profile, read_yaml, to_profile
from hardware_profiles.same_gpu import same_gpu
from hardware_profiles.schema import CalibrationProfile, GpuProfile, load_gpu
from hardware_profiles.tables import Measurement
from simulator.hardware.kernels.roofline import is_tensor
from simulator.hardware.prediction import NORMAL_80

Array = NDArray[np.float64]

SOURCE = ROOT / "common_errors.yaml"


class CommonErrors(Profile):
    """Relative deviations between GPUs of one type, and what load for seconds adds."""

    compute: Estimate
    """Standard deviation of times that tiles bind."""
    memory: Estimate
    """Standard deviation of times that memory binds."""
    sustained: Estimate
    """Time that tiles bind under load for seconds over its time in a burst."""
    repeat_compute: Estimate
    """Standard deviation of a tensor-core kernel's time, timed again on another GPU of the type: of
    each row by itself, and more than the repeats of one run scatter."""
    repeat_memory: Estimate
    """The same of a memory-bound one."""
    repeat_of: Mapping[str, Estimate]
    """{kernel kind: the same}, of those with rows enough of their own."""
    other_gpu: Mapping[str, Estimate]
    """{kernel kind: its time over one restated from another GPU of the architecture}, where pairs
    of GPUs tell; of others a calibration's own `other_gpu`."""
    repeat_seconds: TimeEstimate
    """What a time of any kernel scatters by on top of its share, however short it is."""

    def of_class(self, kind: str) -> Estimate:
        """The deviation of a kernel timed again whose kind has none of its own."""
        return self.repeat_compute if is_tensor(kind) else self.repeat_memory

    def repeat_share(self, kind: str) -> float:
        """The part of `repeat` that goes with a row's time."""
        return self.repeat_of.get(kind, self.of_class(kind)).value

    def repeat(self, kind: str, seconds: Array | float) -> Array:
        """Relative standard deviation of rows' times, by their kernel's kind, else by its class."""
        total: Array = np.hypot(self.repeat_share(kind), self.repeat_seconds.value / seconds)
        return total


@cache
def common_errors() -> CommonErrors:
    """Those that come with the project."""
    return to_profile(CommonErrors, read_yaml(SOURCE, where=SOURCE.name), where=SOURCE.name)


@dataclass(frozen=True, slots=True)
class CommonEnds:
    """80% intervals of what all kernel times of one run have in common."""

    compute: tuple[float, float]
    """Below and above, logarithms, of times that tiles bind."""
    memory: tuple[float, float]
    """The same of times that memory binds."""
    other_gpu: tuple[float, float]
    """The same of all, on another GPU than the calibration's."""

    def of(
        self, moved: Array, seconds: Array, gpu: GpuProfile, *, tensor: NDArray[np.bool_]
    ) -> Array:
        """[2, operators] below and above of kernels by how much of each time memory takes.

        Args:
            moved: [operators], bytes that each reads and writes.
            seconds: [operators], as predicted.
            tensor: [operators], whether tiles can bind it.
        """
        moving = np.minimum(moved / gpu.hbm_bandwidth / seconds, 1.0)
        share = np.where(tensor, 1.0 - moving, 0.0)
        return np.stack(
            [
                np.hypot(share * tiles + (1.0 - share) * memory, other)
                for tiles, memory, other in zip(
                    self.compute, self.memory, self.other_gpu, strict=True
                )
            ]
        )


def common_ends(
    calibration: CalibrationProfile,
    gpu: GpuProfile,
    rows: Iterable[Measurement],
    *,
    sustained_job: bool,
) -> CommonEnds:
    """What the kernel times of a calibration have in common on a GPU.

    Args:
        rows: that the times rest on.
        sustained_job: whether the job draws the power limit for its whole length.
    """
    errors = common_errors()
    tiles, memory = (NORMAL_80 * float(e.value) for e in (errors.compute, errors.memory))
    # Rows of a profile were timed within steps, rows timed in turns under the load of one.
    told = calibration.sustained_clock is not None or any(
        row.state == "sustained" or row.pair for row in rows
    )
    load = 0.0 if told or not sustained_job else float(np.log(errors.sustained.high))
    other = (0.0, 0.0)
    if calibration.restatement is None and not same_gpu(load_gpu(calibration.gpu), gpu):
        error = calibration.other_gpu
        other = (float(np.log(error.value / error.low)), float(np.log(error.high / error.value)))
    return CommonEnds((tiles, float(np.hypot(tiles, load))), (memory, memory), other)
