"""What the rows of one calibration say of compute kernels on a GPU.

Its families and classes (models.py) are built from the rows when they are first asked for. A family
without rows borrows the kind's other types, then what its class achieves in general; on another GPU
than the measured one the time on that one is restated.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.by_content import Keyed, profile_key, rows_key
from hardware_profiles.calibration_parts import FitProfile, TilesProfile
from hardware_profiles.same_gpu import same_compute
from hardware_profiles.schema import CalibrationProfile, GpuProfile, load_calibration, load_gpu
from hardware_profiles.tables import TRANSFER_KINDS, Measurement
from reference_model.formats import multiplied_as, nearest_type
from reference_model.trace import ALL_TO_ALL_KINDS
from simulator.hardware.common_errors import common_errors
from simulator.hardware.kernels.conditions import Conditions
from simulator.hardware.kernels.families import (
    Family,
    calibration_measurements,
    check_row,
    family_of,
)
from simulator.hardware.kernels.gpu_ratio import (
    Achieved,
    achieved_shares,
    bound_seconds,
    log_restatement,
)
from simulator.hardware.kernels.measured_rows import Rows
from simulator.hardware.kernels.models import ClassModel, FamilyModel, Told
from simulator.hardware.kernels.roofline import (
    Batch,
    Ideal,
    is_tensor,
    least_seconds,
    waves_and_bytes,
)
from simulator.hardware.prediction import EXTRAPOLATED, INTERPOLATED, MEASURED, MODELLED, NORMAL_80

Array = NDArray[np.float64]
Answers = tuple[Array, Array, Array, NDArray[np.intp]]
"""Seconds, low and high end of their 80% intervals, and provenance; [operators]."""
KeyT = TypeVar("KeyT", bound=Hashable)
MadeT = TypeVar("MadeT")


class NotCalibrated(ValueError):
    """A cost model was asked before it was fitted, or fitted without a row that it can use."""


class OnDemand(Mapping[KeyT, MadeT]):
    """A mapping whose values are made when first asked for."""

    def __init__(self, keys: Iterable[KeyT], make: Callable[[KeyT], MadeT]) -> None:
        self._made: dict[KeyT, MadeT | None] = dict.fromkeys(keys)
        self._make = make

    def __getitem__(self, key: KeyT) -> MadeT:
        value = self._made[key]
        if value is None:
            value = self._made[key] = self._make(key)
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._made

    def __iter__(self) -> Iterator[KeyT]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


@dataclass(frozen=True, slots=True)
class Answered:
    """What rows say of some operators; arrays [operators], not to be changed."""

    log_seconds: Array
    width: Array
    """Half of their 80% interval, in logarithms."""
    apart: Array
    """Log seconds by another kernel set of the same shape, over these."""
    provenance: NDArray[np.intp]
    tiles: TilesProfile
    """That their times at peak go by."""
    bound: Array
    """`bound_seconds` on the measured GPU, where another is asked for; else none."""


MOST_TOLD = 2**12
"""Batches of operators whose times on the measured GPU are kept: bounds memory."""

NOT_OF_KERNELS = dict.fromkeys(
    ("all_to_all", "transfers", "collectives", "normal_kernels", "low_latency_kernels", "gap"), True
)
"""Fields of a calibration that no time of a compute kernel rests on."""


def learned_kernels(
    calibration: CalibrationProfile, measurements: Iterable[Measurement]
) -> LearnedKernels:
    """`LearnedKernels`, learned once from the same inputs."""
    gpu = profile_key(load_gpu(calibration.gpu)).key
    key = profile_key(calibration, without=NOT_OF_KERNELS)
    return _learned(key, rows_key(measurements), gpu)


@lru_cache(maxsize=16)
def _learned(
    calibration: Keyed[CalibrationProfile],
    rows: Keyed[tuple[Measurement, ...]],
    _measured_gpu: object,
) -> LearnedKernels:
    return LearnedKernels(calibration.value, rows.value)


class LearnedKernels:
    """What rows say of the kernels of the GPU that they were measured on."""

    def __init__(
        self, calibration: CalibrationProfile, measurements: Iterable[Measurement]
    ) -> None:
        """Sets `families` {(overlapped, family): FamilyModel} and `classes` {(overlapped,
        tensor-core): ClassModel}; raises as `CalibratedKernels` does."""
        self.calibration = calibration
        order = self.calibration.kernel_sets
        rows = [
            row
            for row in measurements
            if row.kernel_set in order and row.kind not in TRANSFER_KINDS
        ]
        grouped: dict[Family, dict[str, list[Measurement]]] = {}
        for row in rows:
            check_row(row)
            if row.kind not in ALL_TO_ALL_KINDS:
                sets = grouped.setdefault(family_of(row), {})
                sets.setdefault(row.kernel_set, []).append(row)
        others = self.calibration.completed_by or self.calibration.restated_from
        if not grouped and not (others and (rows or not order)):
            raise NotCalibrated(
                f"calibration {self.calibration.name}: no measured compute kernel of the kernel "
                f"sets {', '.join(order)}"
            )
        self.rows = rows
        self.measured_gpu = load_gpu(self.calibration.gpu)
        self.conditions = Conditions(self.measured_gpu, self.calibration.overlap)
        by_size = sorted(
            grouped.items(), key=lambda entry: -sum(len(rows) for rows in entry[1].values())
        )
        largest: dict[str, Family] = {}
        for family, _ in by_size:
            largest.setdefault(family[0], family)

        @cache
        def converted(
            family: Family,
        ) -> tuple[str, float, TilesProfile, dict[str, tuple[Rows, Rows]]]:
            """Set with most rows, floor, tiles, and rows of each set under both conditions."""
            sets = grouped[family]
            floor = self.calibration.kernel_floor.value * _kernels(
                [row for rows in sets.values() for row in rows]
            )
            named = [name for name in order if name in sets]
            # The kernel set with most rows gives the family its shape, and the tiles.
            base = max(named, key=lambda name: len({(row.sizes, row.sms) for row in sets[name]}))
            fit = self._fit(family, base)
            tiles = (fit.tiles if fit else None) or self.calibration.tiles
            both = {name: self.conditions.convert(sets[name], floor, tiles) for name in named}
            return base, floor, tiles, both

        def build_family(key: tuple[bool, Family]) -> FamilyModel:
            overlapped, family = key
            relative = largest[family[0]]
            base, floor, tiles, both = converted(family)
            return FamilyModel(
                family[0],
                {name: conditions[overlapped] for name, conditions in both.items()},
                base=base,
                relative=None if relative == family else self.families[overlapped, relative],
                floor=floor,
                gpu=self.measured_gpu,
                tiles=tiles,
                fit=self._fit(family, base),
            )

        def build_class(key: tuple[bool, bool]) -> ClassModel:
            overlapped, tensor = key
            return ClassModel(
                [
                    self.families[overlapped, family]
                    for family in grouped
                    if is_tensor(family[0]) is tensor
                ]
            )

        both = (False, True)
        self.families = OnDemand([(o, family) for o in both for family, _ in by_size], build_family)
        known = sorted({is_tensor(family[0]) for family in grouped})
        self.classes = OnDemand([(o, tensor) for o in both for tensor in known], build_class)

        self.kept = lru_cache(maxsize=MOST_TOLD)(_worked_out)
        """What `told` says, worked out once: of another GPU the same is asked, and restated."""
        self.lengths = cache(self._lengths)

    def told(
        self,
        family: Family,
        batch: Batch,
        on: Array,
        at: GpuProfile,
        *,
        overlapped: bool,
        restated: bool,
        unknown: bool,
        widths: bool,
    ) -> Answered:
        """Log seconds of some operators of one family on the measured GPU, not restated.

        Args:
            on: [operators], SMs that each has.
            restated: whether the answer is for another GPU.
            unknown: whether the measured GPU does not multiply the type.
            widths: whether intervals are asked for.
        """
        kind, tensor = family[0], is_tensor(family[0])
        model, borrowed = self.model(family, overlapped)
        if unknown:
            model = None
        floor = self.calibration.kernel_floor.value if model is None else model.floor
        tiles = self.calibration.tiles if model is None else model.tiles
        ideal = Ideal(*waves_and_bytes(batch, on, at, tiles), floor)
        achieved = self.classes[overlapped, tensor]
        if model is None:
            log_seconds = ideal.log_seconds + achieved.log_ratio
            width = np.full(len(batch), achieved.modelled_width)
            provenance = np.full(len(batch), MODELLED, dtype=np.intp)
            apart = np.zeros(len(batch))
        else:
            room = on if tensor or overlapped else np.full(len(on), float(at.sms))
            told = model.predict(batch, room, ideal, achieved if widths else None)
            log_seconds, provenance = told.log_seconds, told.provenance
            if overlapped:
                more = self.conditions.log_more(kind, told.slowed)
                log_seconds = log_seconds + more
                provenance = np.where(more == 0.0, provenance, np.maximum(provenance, INTERPOLATED))
            if borrowed or restated:
                provenance = np.full_like(provenance, EXTRAPOLATED)
            if tensor and model.base_rows.batch.like.dtype != family[1]:
                # Products of another type: their share of the roofline, not their times.
                provenance = np.full_like(provenance, MODELLED)
            width = self._width(model, achieved, told, provenance) if widths else told.width
            # What another kernel set says of the same shape lies inside the interval.
            apart = np.where(provenance == MEASURED, 0.0, told.rival - told.log_seconds)
        if overlapped and not tensor:
            slowdown = self.calibration.overlap.memory_bound.value
            squeeze = self.conditions.log_squeeze(on, at.sms, slowdown=slowdown)
            log_seconds = log_seconds + squeeze
        bound = bound_seconds(batch, on, at, self.achieved, tiles) if restated else np.empty(0)
        return Answered(log_seconds, width, apart, provenance, tiles, bound)

    def _lengths(self, kind: str, size: str) -> frozenset[int]:
        """What a size of the rows of a kind is."""
        return frozenset(dict(row.sizes)[size] for row in self.rows if row.kind == kind)

    @cached_property
    def achieved(self) -> Achieved:
        """What the fastest rows make of the measured GPU's ceilings."""
        rows = (row for row in self.rows if row.kind not in ALL_TO_ALL_KINDS)
        return achieved_shares(rows, self.measured_gpu)

    def _fit(self, family: Family, kernel_set: str) -> FitProfile | None:
        """What calibrate found out about a family in one kernel set."""
        for fit in self.calibration.fits:
            found = (fit.kind, fit.dtype, fit.out_dtype, fit.accumulate)
            if found == family and fit.kernel_set == kernel_set:
                return fit
        return None

    def model(self, family: Family, overlapped: bool) -> tuple[FamilyModel | None, bool]:
        """The family's model, or that of the same kind with other types (True: borrowed)."""
        if (overlapped, family) in self.families:
            return self.families[overlapped, family], False
        same_kind = [
            (
                other[1] != family[1],
                other[1] != nearest_type(family[1]),
                -self.families[overlapped, other].rows,
                number,
                other,
            )
            for number, (condition, other) in enumerate(self.families)
            if condition is overlapped and other[0] == family[0]
        ]
        # The same operand type first, the one that it is most like, the family with most rows.
        best = min(same_kind, default=None)
        return (None if best is None else self.families[overlapped, best[-1]]), True

    def _width(
        self,
        model: FamilyModel,
        achieved: ClassModel,
        told: Told,
        provenance: NDArray[np.intp],
    ) -> Array:
        """Half-width of the interval in log seconds; [operators].

        Measured: the spread of the row's repeats, at least half that of its class, and what timing
        it again makes of it. Otherwise that of the model, and of the ratio that may have converted
        the condition, never less; of products of another type that of their class as well.
        """
        known = np.where(np.isnan(told.spread), achieved.spread, told.spread)
        again = common_errors().repeat(model.kind, np.exp(told.log_seconds))
        measured = NORMAL_80 * np.hypot(np.maximum(known, achieved.spread / 2), again)
        ratio = self.conditions.ratio(model.kind)
        converted = np.hypot(told.width, np.log(ratio.high / ratio.low) / 2)
        converted = np.maximum(measured, converted)
        of_class = np.where(provenance == MODELLED, achieved.modelled_width, 0.0)
        return np.where(provenance == MEASURED, measured, np.hypot(converted, of_class))


class CalibratedKernels:
    """Kernel times of one calibration on one GPU."""

    def __init__(
        self, calibration: CalibrationProfile, gpu: GpuProfile, measurements: Iterable[Measurement]
    ) -> None:
        """Learn from a measurement table; rows of kernel sets not in the calibration are left out,
        and so are bulk transfers, which are no kernels of a layer.

        Sets `families` {(overlapped, family): FamilyModel} and `classes` {(overlapped,
        tensor-core): ClassModel}.

        Args:
            gpu: that the kernels run on.

        Raises NotCalibrated where no row of a compute kernel belongs to a named kernel set and no
        calibration completes this one, ValueError for a row of an unknown kind or with other sizes
        than its kind has.
        """
        self.calibration = calibration
        self.gpu = gpu
        self.learned = learned_kernels(calibration, measurements)
        self.rows, self.measured_gpu = self.learned.rows, self.learned.measured_gpu
        self.families, self.classes = self.learned.families, self.learned.classes
        self.restated = not same_compute(self.measured_gpu, gpu)

    def compute(
        self, family: Family, batch: Batch, sms: Array, overlapped: bool, *, widths: bool
    ) -> Answers:
        """Seconds, interval and provenance of distinct operators of one family.

        Args:
            widths: whether intervals are asked for; else their ends are the seconds.
        """
        kind = family[0]
        gpu = self.gpu
        tensor = is_tensor(kind)
        if (overlapped, tensor) not in self.classes:
            raise NotCalibrated(
                f"calibration {self.calibration.name}: nothing measured that {kind} "
                f"({'tensor-core' if tensor else 'memory-bound'}) could be modelled on"
            )
        # The measured GPU may not multiply this type, so that none of its times say how long it
        # takes: only what products in general reach of a roofline.
        unknown = tensor and multiplied_as(family[1]) not in self.measured_gpu.peak_compute
        restated = self.restated and not unknown
        # On another GPU: the time on the measured one, restated. A product goes by its SMs'
        # tiles, a kernel that fills its share of the SMs by that share.
        at, on = (gpu, sms)
        if restated:
            at = self.measured_gpu
            on = np.minimum(sms, at.sms) if tensor else sms * (at.sms / gpu.sms)
        ask = partial(
            self.learned.told,
            family,
            batch,
            on,
            at,
            overlapped=overlapped,
            restated=restated,
            unknown=unknown,
            widths=widths,
        )
        key = (family, overlapped, restated, widths, batch.sizes.tobytes(), on.tobytes())
        # What is known of the measured GPU is the same whatever it is asked for.
        same = restated or not self.restated
        told = self.learned.kept(Keyed(key, ask)) if same else ask()
        log_seconds, provenance = told.log_seconds, told.provenance.copy()
        if restated:
            log_seconds = log_seconds + log_restatement(
                batch,
                np.exp(log_seconds),
                before=told.bound,
                to=sms,
                source=at,
                target=gpu,
                achieved=self.achieved,
                tiles=told.tiles,
            )
        # Nothing but a row that says so moves its bytes faster than the fastest kernel.
        share = np.where(provenance == MEASURED, 1.0, self.memory_share)
        least = least_seconds(batch, sms, gpu, memory_share=share)
        seconds = np.maximum(np.exp(log_seconds), least)
        if not widths:
            return seconds, seconds.copy(), seconds.copy(), provenance
        low = np.maximum(seconds * np.exp(np.minimum(-told.width, told.apart)), least)
        high = seconds * np.exp(np.maximum(told.width, told.apart))
        return seconds, low, high, provenance

    @property
    def achieved(self) -> Achieved:
        """What the fastest rows make of the measured GPU's ceilings."""
        return self.learned.achieved

    def model(self, family: Family, overlapped: bool) -> tuple[FamilyModel | None, bool]:
        """The model of a family, as `LearnedKernels.model`."""
        return self.learned.model(family, overlapped)

    @cached_property
    def memory_share(self) -> float:
        """Share of the HBM rate that the fastest row moves, one of another calibration where the
        own rows are small; all of it where no row says otherwise."""
        if self.achieved.memory is not None:
            return self.achieved.memory
        known = (model.achieved.memory for model in self.others)
        return next((share for share in known if share is not None), 1.0)

    @cached_property
    def others(self) -> tuple[CalibratedKernels, ...]:
        """Models of the calibrations that complete this one or that it is restated from, fitted
        when first needed."""
        restated = [
            name
            for name in self.calibration.restated_from
            if name not in self.calibration.completed_by
        ]
        return (
            *self.completing,
            *(self._stand_in(load_calibration(name)) for name in restated),
        )

    @cached_property
    def completing(self) -> tuple[CalibratedKernels, ...]:
        """Models of the calibrations that complete this one."""
        return tuple(
            self._stand_in(load_calibration(name)) for name in self.calibration.completed_by
        )

    def _stand_in(self, other: CalibrationProfile) -> CalibratedKernels:
        """Another calibration's rows on this GPU, under this one's conditions."""
        on_this = other.model_copy(update={"overlap": self.calibration.overlap})
        return CalibratedKernels(on_this, self.gpu, calibration_measurements(other))


def _worked_out(asked: Keyed[Callable[[], Answered]]) -> Answered:
    return asked.value()


def _kernels(rows: Sequence[Measurement]) -> float:
    """Mean number of kernels that make one launch of an operator."""
    return float(np.mean([row.kernels for row in rows]))
