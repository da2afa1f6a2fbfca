"""Decide whose rows a compute kernel's time rests on: a calibration's own, or another's.

Another calibration answers by the ratio of own rows of the same product where there are any, and
for this GPU. Where nobody has rows of a kernel's kind, a kernel of the same product answers. What
is said then rises with the rows of a kernel (work_floor.py), but for measured rows whose repeats
say otherwise.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.by_content import Keyed, profile_key, rows_key
from hardware_profiles.same_gpu import KERNEL_RATES, same_compute, same_gpu
from hardware_profiles.schema import CalibrationProfile, GpuProfile, load_calibration, load_gpu
from hardware_profiles.tables import Measurement
from reference_model.formats import nearest_type
from reference_model.trace import Operator
from simulator.hardware.common_errors import common_errors
from simulator.hardware.kernels.calibrated import NOT_OF_KERNELS, Answers, CalibratedKernels
from simulator.hardware.kernels.families import Family, calibration_measurements, family_of
from simulator.hardware.kernels.gpu_ratio import side_by_side
from simulator.hardware.kernels.kept_times import (
    Sizes,
    Time,
    files_behind,
    read_times,
    times_digest,
    write_times,
)
from simulator.hardware.kernels.related import (
    RELATED_KINDS,
    is_another_result,
    related_batch,
    related_family,
)
from simulator.hardware.kernels.roofline import (
    Batch,
    batch_of,
    ideal_batch_seconds,
    is_tensor,
    least_seconds,
)
from simulator.hardware.kernels.work_floor import MONOTONE_KINDS, PADDED, RisingRows, WorkFloor
from simulator.hardware.prediction import EXTRAPOLATED, INTERPOLATED, MEASURED, MODELLED

Array = NDArray[np.float64]
FEW_ROWS = 5
"""Fewer of a family say nothing of other shapes."""
ROUNDING = 1e-9
"""Times that differ by less than this share are the same."""


NOT_OF_COMPUTE = dict.fromkeys(
    ("hbm_capacity", "nvlink_bandwidth", "pcie_bandwidth", "power"), True
)
"""Fields of a GPU that no time of a compute kernel rests on."""
PREDICTED_AT_ONCE = 2**15
"""Distinct operators predicted at once: bounds the memory of their distances to all rows."""
MOST_TIMES = 2**18
"""Kernels of one family whose times are kept: bounds memory."""
MOST_ASKED = 2**12
"""Kernels of one family that are worked out for several GPUs at once: likewise."""
AskedFor = dict[tuple[bool, Family], dict[tuple[Sizes, int], Operator]]
"""{(whether an all-to-all is beside it, family): {(sizes, SMs): operator}}"""


def completed_kernels(
    calibration: CalibrationProfile, gpu: GpuProfile, measurements: Iterable[Measurement]
) -> CompletedKernels:
    """`CompletedKernels`, learned once from the same inputs: many scenarios differ in others, such
    as layouts, links or memory. Kept for more GPUs than are priced side by side."""
    inputs = (
        profile_key(calibration, without=NOT_OF_KERNELS),
        profile_key(gpu, without=NOT_OF_COMPUTE),
    )
    others = tuple(files_behind(calibration))
    return _completed(*inputs, rows_key(measurements), others)


@lru_cache(maxsize=96)
def _completed(
    calibration: Keyed[CalibrationProfile],
    gpu: Keyed[GpuProfile],
    rows: Keyed[tuple[Measurement, ...]],
    others: tuple[Hashable, ...],
) -> CompletedKernels:
    made = CompletedKernels(calibration.value, gpu.value, rows.value)
    made.begin_with_kept((calibration.key, gpu.key, *others))
    of_any_rates = profile_key(gpu.value, without=NOT_OF_COMPUTE | _OF_RATES)
    made.asked = _asked_of(calibration, of_any_rates, rows, others)
    return made


_OF_RATES = dict.fromkeys((*KERNEL_RATES, "peak_compute", "peak_clock"), True)


@lru_cache(maxsize=16)
def _asked_of(
    _calibration: object, _gpu: object, _rows: object, _others: tuple[Hashable, ...]
) -> AskedFor:
    """What all GPUs that differ in rates alone were asked for."""
    return {}


def price_side_by_side(kernels: Iterable[CompletedKernels]) -> None:
    """Work out the kernels that GPUs which differ in rates alone were asked for, on all of these at
    once: thirty take little longer than one. Each time is the same as worked out alone."""
    groups: dict[tuple[Hashable, ...], list[CompletedKernels]] = {}
    for each in dict.fromkeys(kernels):
        groups.setdefault((id(each.asked), *each.own.gpu.peak_compute), []).append(each)
    for group in groups.values():
        if len(group) == 1:
            continue
        own = group[0].own
        measured = [own.measured_gpu, *(other.measured_gpu for other in own.others)]
        # A GPU at the rates of a measured one takes the rows of that one as they are.
        others = [
            each for each in group if not any(same_compute(gpu, each.own.gpu) for gpu in measured)
        ]
        if len(others) > 1:
            others[0].price_with(others)


class CompletedKernels:
    """Answers of one calibration on one GPU, completed by others."""

    def __init__(
        self, calibration: CalibrationProfile, gpu: GpuProfile, measurements: Iterable[Measurement]
    ) -> None:
        """Learn from a measurement table; raises as `CalibratedKernels` does."""
        rows = tuple(measurements)
        self.own = CalibratedKernels(calibration, gpu, rows)
        self._measurements = rows
        self._rising_rows: dict[tuple[bool, Family], RisingRows] = {}
        self._times: dict[tuple[bool, Family], dict[tuple[Sizes, int], Time]] = {}
        self._restated_floors: dict[tuple[bool, Family], WorkFloor] = {}
        self.digest: str | None = None
        """Of all that times rest on; None of kernels whose times are not kept."""
        self._kept = 0
        """Times that the user's file holds."""
        self.asked: AskedFor = {}
        """Kernels that were asked for, also of other GPUs that differ in rates alone."""

    def begin_with_kept(self, inputs: tuple[Hashable, ...]) -> None:
        """Take the times that a process before has kept.

        Args:
            inputs: what times rest on, beside own rows.
        """
        self.digest = times_digest(inputs, self.own.rows)
        self._times = read_times(self.digest)
        self._kept = self._count()

    def price_with(self, group: Sequence[CompletedKernels]) -> None:
        """Work out what was asked for on all GPUs of a group, this one's among them."""
        gpus = side_by_side([each.own.gpu for each in group])
        every = CompletedKernels(self.own.calibration, gpus, self._measurements)
        for (overlapped, family), asked in self.asked.items():
            known = [each._times.setdefault((overlapped, family), {}) for each in group]
            new = {key: op for key, op in asked.items() if any(key not in of for of in known)}
            if not new:
                continue
            batch = batch_of(list(new.values()))
            on = np.array([sms for _, sms in new], dtype=np.float64)
            found = (*every.of_batch(family, batch, on, overlapped), batch.moved_bytes)
            columns = [np.broadcast_to(column, (len(group), len(new))) for column in found]
            for of, rows in zip(known, zip(*columns, strict=True), strict=True):
                of.update(zip(new, zip(*(row.tolist() for row in rows), strict=True), strict=True))

    def keep_times(self) -> None:
        """Keep all times for the next process, where there are new ones."""
        if self.digest is not None and self._count() > self._kept:
            write_times(self.digest, self._times)
            self._kept = self._count()

    def _count(self) -> int:
        return sum(map(len, self._times.values()))

    @cached_property
    def _completing(self) -> CompletedKernels | None:
        """The first calibration that completes this one, if of the same GPU: it answers for what
        has nothing to do with own rows as it does by itself."""
        names = self.own.calibration.completed_by
        other = load_calibration(names[0]) if names else None
        if other is None or not same_gpu(load_gpu(other.gpu), self.own.measured_gpu):
            return None
        on_this = other.model_copy(update={"overlap": self.own.calibration.overlap})
        rows = calibration_measurements(other)
        if self.digest is None:
            return CompletedKernels(on_this, self.own.gpu, rows)
        return completed_kernels(on_this, self.own.gpu, rows)

    def _elsewhere(self, family: Family) -> CompletedKernels | None:
        """Who answers for a family that no own row says anything of."""
        family = self._stand_in(family) or family
        mine = self._answering(family) is self.own or self._related(family) is not None
        return None if mine else self._completing

    def times(
        self, family: Family, kernels: Sequence[tuple[Operator, int]], overlapped: bool
    ) -> list[Time]:
        """`of_batch`, worked out once for each kernel: a step without the slow-down of its
        all-to-all, the attribution of a step and other scenarios ask for the same ones.

        Args:
            kernels: operators of the family, with the SMs that each has.
        """
        known = self._times.setdefault((overlapped, family), {})
        if len(known) > MOST_TIMES:
            known.clear()
        with suppress(KeyError):
            return [known[op.sizes, sms] for op, sms in kernels]
        new = {(op.sizes, sms): op for op, sms in kernels if (op.sizes, sms) not in known}
        self._remember((overlapped, family), new)
        asked = list(new.items())
        for start in range(0, len(asked), PREDICTED_AT_ONCE):
            part = asked[start : start + PREDICTED_AT_ONCE]
            batch = batch_of([op for _, op in part])
            on = np.array([sms for (_, sms), _ in part], dtype=np.float64)
            found = (*self.of_batch(family, batch, on, overlapped), batch.moved_bytes)
            columns = (column.tolist() for column in found)
            known.update(zip((key for key, _ in part), zip(*columns, strict=True), strict=True))
        return [known[op.sizes, sms] for op, sms in kernels]

    def _remember(self, of: tuple[bool, Family], new: Mapping[tuple[Sizes, int], Operator]) -> None:
        """Say what was asked for; the rest of very many each GPU works out by itself."""
        asked = self.asked.setdefault(of, {})
        if len(asked) + len(new) <= MOST_ASKED:
            asked.update(new)

    def of_batch(self, family: Family, batch: Batch, sms: Array, overlapped: bool) -> Answers:
        """Times of distinct operators of one family; none that was not measured takes longer than
        one of more rows, attention no less than a row with less work.

        A measured row that a larger one beats takes that one's time where its own repeats leave
        room for it, or where it has none, and no longer counts as measured; else it stays.
        """
        elsewhere = self._elsewhere(family)
        if elsewhere is not None:
            return elsewhere.of_batch(family, batch, sms, overlapped)
        answer = self._one_by_one(family, batch, sms, overlapped, widths=True)
        alone, low, high, provenance = answer
        floor = self._restated_floor(family, overlapped)
        if floor is not None:
            seconds = np.exp(floor.raise_to(np.log(alone), batch, sms))
            return seconds, low * (seconds / alone), high * (seconds / alone), provenance
        if family[0] not in PADDED:
            return answer
        at_peak = self._at_peak(family, batch, sms)
        seconds = self._rising(family, overlapped).seconds(batch, sms, alone, at_peak)
        gpu = self.own.gpu
        seconds = np.maximum(seconds, least_seconds(batch, sms, gpu, memory_share=1.0))
        beaten = (provenance == MEASURED) & (seconds < alone * (1.0 - ROUNDING))
        if beaten.any():
            model = self._answering(family).families[overlapped, family]
            stays = beaten & (seconds < low) & model.repeated(batch, sms)
            seconds = np.where(stays, alone, seconds)
            provenance = np.where(beaten & ~stays, INTERPOLATED, provenance)
        share = np.where(provenance == MEASURED, 1.0, self.own.memory_share)
        least = least_seconds(batch, sms, gpu, memory_share=share)
        low = np.maximum(low * (seconds / alone), np.minimum(seconds, least))
        return seconds, low, high * (seconds / alone), provenance

    def answered_by(self, operator: Operator) -> str:
        """Name of the calibration whose rows a compute kernel's time rests on."""
        family = family_of(operator)
        elsewhere = self._elsewhere(family)
        if elsewhere is not None:
            return elsewhere.answered_by(operator)
        family = self._stand_in(family) or family
        answering = self._answering(family).calibration.name
        if self._related(family) is None:
            return answering
        return f"{self.own.calibration.name} in the ratio of {answering}"

    def _rising(self, family: Family, overlapped: bool) -> RisingRows:
        """What is known of a family with rows; scanned shape by shape when first needed."""
        known = self._rising_rows.get((overlapped, family))
        if known is not None:
            return known

        def scan(batch: Batch, sms: Array) -> tuple[Array, NDArray[np.bool_], Array]:
            answer = self._one_by_one(family, batch, sms, overlapped, widths=False)
            seconds, _, _, provenance = answer
            return seconds, provenance == MEASURED, self._at_peak(family, batch, sms)

        kind = family[0]
        own, *others = (
            model.learned.lengths(kind, PADDED[kind])
            for model in (self.own, self._answering(family), self._with_more_rows(family))
            if model is not None
        )
        made = RisingRows(kind, scan, also=own, known=own.union(*others))
        return self._rising_rows.setdefault((overlapped, family), made)

    def _restated_floor(self, family: Family, overlapped: bool) -> WorkFloor | None:
        """Lower bounds of attention by the rows of another GPU, restated for this one:
        what is latency there and what is at a ceiling scale apart. None for other kernels."""
        if family[0] not in MONOTONE_KINDS:
            return None
        answering = self._answering(family)
        model, _ = answering.model(family, overlapped)
        if model is None or not answering.restated:
            return None
        key = (overlapped, family)
        if key not in self._restated_floors:
            sms = np.full(len(model.base_rows), float(self.own.gpu.sms))
            rows = model.base_rows.batch
            seconds = self._one_by_one(family, rows, sms, overlapped, widths=False)[0]
            floor = WorkFloor(model.base_rows.batch, sms, np.log(seconds))
            self._restated_floors[key] = floor
        return self._restated_floors[key]

    def _at_peak(self, family: Family, batch: Batch, sms: Array) -> Array:
        """[operators] seconds at this GPU's peaks, by the tiles of the family's kernels, on no more
        SMs than were measured: between two numbers of rows, time goes alike on more."""
        model = self.own.families.get((False, family))
        tiles = self.own.calibration.tiles if model is None else model.tiles
        fewer = np.minimum(sms, self._answering(family).measured_gpu.sms)
        return ideal_batch_seconds(batch, fewer, self.own.gpu, tiles)

    def _one_by_one(
        self, family: Family, batch: Batch, sms: Array, overlapped: bool, *, widths: bool
    ) -> Answers:
        """Of distinct operators of one family, each by itself, from whoever has rows of it."""
        other = self._stand_in(family)
        if other is not None:
            return self._stood_in(family, other, batch, sms, overlapped)
        answering = self._answering(family)
        answer = answering.compute(family, batch, sms, overlapped, widths=widths)
        own = self._related(family)
        if own is not None:
            answer = self._in_ratio(answer, answering, own, batch, sms, overlapped, widths=widths)
        foreign = not same_gpu(answering.measured_gpu, self.own.measured_gpu)
        if foreign or self.own.restated:
            answer = self._restate(answer, batch, sms, answering)
        if answering.measured_gpu.architecture != self.own.measured_gpu.architecture:
            # Only the shares of the datasheets' ceilings hold on another architecture.
            answer = (*answer[:3], np.full_like(answer[3], MODELLED))
        elsewhere = self._with_more_rows(family) if answering is self.own else None
        if elsewhere is None:
            return answer
        unknown = np.flatnonzero(~self.own.families[overlapped, family].covers(batch))
        if not len(unknown):
            return answer
        part, part_sms = batch.take(unknown), sms[unknown]
        found = elsewhere.compute(family, part, part_sms, overlapped, widths=widths)
        if not same_gpu(elsewhere.measured_gpu, self.own.measured_gpu):
            found = self._restate(found, part, part_sms, elsewhere)
        for mine, theirs in zip(answer, found, strict=True):
            mine[..., unknown] = theirs
        return answer

    def _related(self, family: Family) -> Family | None:
        """Own rows of the same product for a kernel that a completing calibration answers for."""
        answering = self._answering(family)
        if answering not in self.own.completing or (False, family) not in answering.families:
            return None
        known, also = ({of for _, of in model.families} for model in (self.own, answering))
        return related_family(family, known, also)

    def _stand_in(self, family: Family) -> Family | None:
        """The family of the same product for a kernel of whose kind nobody has rows, or of which
        own rows know another result type alone."""
        if family[0] not in RELATED_KINDS or (False, family) in self.own.families:
            return None
        same = {of for _, of in self.own.families if is_another_result(family, of)}
        if same:
            return related_family(family, same, same)
        known = {of for model in (self.own, *self.own.others) for _, of in model.families}
        if any(of[0] == family[0] for of in known):
            return None
        return related_family(family, known, known)

    def _stood_in(
        self, family: Family, other: Family, batch: Batch, sms: Array, overlapped: bool
    ) -> Answers:
        """As far above its time at peak as the kernel of the same product, with the interval of a
        kernel that was never measured."""
        product = related_batch(batch, other)
        theirs, low, high, _ = self.of_batch(other, product, sms, overlapped)
        peaks = self._at_peak(family, batch, sms) / self._at_peak(other, product, sms)
        share = self.own.memory_share
        least = least_seconds(batch, sms, self.own.gpu, memory_share=share)
        seconds = np.maximum(theirs * peaks, least)
        classes = self._answering(other).classes
        width = classes[overlapped, is_tensor(family[0])].modelled_width
        below, above = np.hypot(np.log(theirs / low), width), np.hypot(np.log(high / theirs), width)
        return (
            seconds,
            np.maximum(seconds * np.exp(-below), least),
            seconds * np.exp(above),
            np.full(len(batch), MODELLED),
        )

    def _in_ratio(
        self,
        answer: Answers,
        answering: CalibratedKernels,
        own: Family,
        batch: Batch,
        sms: Array,
        overlapped: bool,
        *,
        widths: bool,
    ) -> Answers:
        """A completing calibration's answer, as own rows of the same product scale it."""
        product = related_batch(batch, own)
        # Beyond the measured SMs the two go by waves of other tiles, whose ratio says nothing.
        measured = np.minimum(sms, min(self.own.measured_gpu.sms, answering.measured_gpu.sms))
        mine = self.own.compute(own, product, measured, overlapped, widths=widths)
        theirs = answering.compute(own, product, measured, overlapped, widths=widths)
        seconds, low, high, provenance = answer
        scaled = seconds * mine[0] / theirs[0]
        below = np.hypot(np.log(seconds / low), np.log(mine[0] / mine[1]))
        above = np.hypot(np.log(high / seconds), np.log(mine[2] / mine[0]))
        return (
            scaled,
            scaled * np.exp(-below),
            scaled * np.exp(above),
            np.maximum(provenance, EXTRAPOLATED),
        )

    def _answering(self, family: Family) -> CalibratedKernels:
        """Who predicts a family: whoever has rows of it, else of its kind, first of the type that
        its own is most like, else of its class."""
        if (False, family) in self.own.families:
            return self.own
        models = (self.own, *self.own.others)
        known = [[of for _, of in model.families] for model in models]
        kind, dtype, *_ = family
        alike = nearest_type(dtype)
        ways = (
            [family in own for own in known],
            [alike != dtype and any(of[:2] == (kind, alike) for of in own) for own in known],
            [any(of[0] == kind for of in own) for own in known],
            [(False, is_tensor(kind)) in model.classes for model in models],
        )
        has = (model for way in ways for model, does in zip(models, way, strict=True) if does)
        return next(has, self.own)

    def _with_more_rows(self, family: Family) -> CalibratedKernels | None:
        """Who else knows a tensor-core family of which there are but a few rows here.

        A few rows of small products say nothing of other shapes: the trace's only BF16 products are
        those of the gate, the head is 500 times as large.
        """
        if not is_tensor(family[0]) or (False, family) not in self.own.families:
            return None
        rows = self.own.families[False, family].rows
        if rows >= FEW_ROWS:
            return None
        for other in self.own.others:
            if (False, family) in other.families and other.families[False, family].rows > rows:
                return other
        return None

    def _restate(
        self,
        answer: Answers,
        batch: Batch,
        sms: Array,
        source: CalibratedKernels,
    ) -> Answers:
        """An answer for another GPU than the measured one, its interval widened for that.

        Args:
            source: whose it is; the error of another GPU's is stated even where this one's own
                rows are not restated. Of a GPU of the architecture it is that of its kernel's kind
                where pairs of GPUs say something of it, but for a GPU of which nothing is measured.
        """
        seconds, low, high, provenance = answer
        foreign = not same_gpu(source.measured_gpu, self.own.measured_gpu)
        alike = source.measured_gpu.architecture == self.own.gpu.architecture
        if self.own.calibration.basis == "datasheet":
            provenance = np.full_like(provenance, MODELLED)
        elif foreign:
            provenance = np.maximum(provenance, EXTRAPOLATED)
        error = self.own.calibration.restatement
        if foreign and alike and self.own.calibration.basis == "measured":
            error = common_errors().other_gpu.get(batch.kind, self.own.calibration.other_gpu)
        elif foreign and error is None:
            error = self.own.calibration.other_gpu
        if error is None:
            return seconds, low, high, provenance
        narrow, wide = np.log(error.value / error.low), np.log(error.high / error.value)
        lower = seconds * np.exp(-np.hypot(np.log(seconds / low), narrow))
        gpu = self.own.gpu
        least = least_seconds(batch, sms, gpu, memory_share=self.own.memory_share)
        return (
            seconds,
            np.maximum(lower, np.minimum(seconds, least)),
            seconds * np.exp(np.hypot(np.log(high / seconds), wide)),
            provenance,
        )
