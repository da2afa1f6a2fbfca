"""Predict kernel times, each with an 80% interval and its provenance.

`KernelCostModel` follows scikit-learn's contract: the constructor stores hyper-parameters, `fit`
learns from a measurement table and returns self, `predict` is pure.

    costs = KernelCostModel(cluster=cluster, calibration=calibration, expert_parallel_ranks=64)
    costs.fit(calibration_measurements(calibration))
    pair = costs.predict(kernels, sms=112, overlapped=True)      # beside an all-to-all
    alone = costs.predict(kernels, sms=132, overlapped=False)    # nothing beside it
    costs.predict([dispatch], sms=20, overlapped=True, load=load)

`sms`, `overlapped` and `load` are one value for all operators or one for each. For dispatch and
combine `sms` are the communication SMs, `overlapped` means that compute runs beside them, and
`load` says what the fabric makes of them; other operators need none.

How a compute kernel is predicted. `roofline.waves_and_bytes` gives its time at peak. Measurements
teach the ratio to it: a Gaussian process over sizes and what the roofline says of them
(gaussian_process.py), of the kernel set with most rows of a family (kind and types). A family with
too few rows for a process of its own starts from the kind's largest. The preferred kernel set adds
its own difference, a process too: its rows are met exactly, and one version's times never average
into another's (models.py). A family without rows borrows the kind's other types, then what its
class (tensor-core or memory-bound) achieves in general. Where the calibration names others that
complete it or that it is restated from, a family without rows and products far from the few rows of
theirs come from those, by the ceilings of both GPUs (gpu_ratio.py). Whatever the answer, no kernel
moves its bytes faster than the fastest measured one, unless its own row says so, and none takes
longer than one of more rows (work_floor.py). On more SMs than the measured GPU has, only what its
work is bound by gets shorter.

Provenance. measured: a row of the preferred set with these sizes, SMs and condition. interpolated:
between rows of the same shape, or a row at another condition or an SM count between measured ones.
extrapolated: another shape, beyond the rows, another SM count or another GPU. modelled: no row of
the kind.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.schema import (
    CalibrationProfile,
    ClusterProfile,
    FitProfile,
    load_calibration,
    load_gpu,
)
from hardware_profiles.tables import TRANSFER_KINDS, Measurement
from reference_model.trace import ALL_TO_ALL_KINDS, KINDS, Operator
from simulator.hardware.kernels.conditions import Conditions
from simulator.hardware.kernels.families import (
    Family,
    calibration_measurements,
    check_row,
    family_of,
    operator_of,
)
from simulator.hardware.kernels.gpu_ratio import (
    Achieved,
    achieved_shares,
    log_restatement,
    same_compute,
)
from simulator.hardware.kernels.measured_rows import fingerprints
from simulator.hardware.kernels.models import ENOUGH_RESIDUALS, ClassModel, FamilyModel, Told
from simulator.hardware.kernels.related import related_batch, related_family
from simulator.hardware.kernels.roofline import (
    Batch,
    Ideal,
    batch_of,
    batch_of_sizes,
    ideal_batch_seconds,
    is_tensor,
    least_seconds,
    waves_and_bytes,
)
from simulator.hardware.kernels.work_floor import MONOTONE_KINDS, PADDED, RisingRows, WorkFloor
from simulator.hardware.network.fabric_load import FabricLoad
from simulator.hardware.network.groups import Reach
from simulator.hardware.network.transfers import Transfers, fitted_transfers
from simulator.hardware.prediction import (
    EXTRAPOLATED,
    INTERPOLATED,
    MEASURED,
    MODELLED,
    Prediction,
)

Array = NDArray[np.float64]
ValueT = TypeVar("ValueT", int, bool, FabricLoad | None)
KeyT = TypeVar("KeyT", bound=Hashable)
MadeT = TypeVar("MadeT")

NORMAL_80 = 1.2816
"""Half-width of the central 80 % of a normal distribution, in standard deviations."""
ROUNDING = 1e-9
"""Times that differ by less than this share are the same."""
CHUNK = 32768
"""Distinct operators predicted at once: bounds the memory of their distances to all rows."""


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


class KernelCostModel:
    """Kernel times from measurements, by waves and bytes where no row answers directly."""

    def __init__(
        self,
        *,
        cluster: ClusterProfile,
        calibration: CalibrationProfile,
        expert_parallel_ranks: int,
        reach: Reach | None = None,
    ) -> None:
        """Store the inputs.

        Args:
            cluster: GPU, NICs and node that the kernels run on.
            calibration: kernel sets to use, and the inputs that no table holds.
            expert_parallel_ranks: GPUs that share a layer's experts; dispatch and combine cross
                the nodes that hold them.
            reach: where the job's tokens go; else as in DeepEP's tests.
        """
        self.cluster = cluster
        self.calibration = calibration
        self.expert_parallel_ranks = expert_parallel_ranks
        self.reach = reach

    def fit(self, measurements: Iterable[Measurement]) -> Self:
        """Learn from a measurement table; rows of kernel sets not in the calibration are left out,
        and so are bulk transfers, which are no kernels of a layer.

        Sets `families_` {(overlapped, family): FamilyModel}, `classes_` {(overlapped, tensor-core):
        ClassModel} and `transfers_`, those of the job. Raises NotCalibrated where no row of a
        compute kernel belongs to a named kernel set and no calibration completes this one,
        ValueError for a row of an unknown kind or with other sizes than its kind has.
        """
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
                sets = grouped.setdefault(family_of(operator_of(row)), {})
                sets.setdefault(row.kernel_set, []).append(row)
        others = self.calibration.completed_by or self.calibration.restated_from
        if not grouped and not (others and (rows or not order)):
            raise NotCalibrated(
                f"calibration {self.calibration.name}: no measured compute kernel of the kernel "
                f"sets {', '.join(order)}"
            )
        self.transfers_ = self._transfers(self.calibration, rows)
        self._rows = rows
        self._rising_rows: dict[tuple[bool, Family], RisingRows] = {}
        self._last_answers: dict[
            tuple[bool, Family],
            tuple[NDArray[np.int64], Array, tuple[Array, Array, Array, NDArray[np.intp]]],
        ] = {}
        self._restated_floors: dict[tuple[bool, Family], WorkFloor] = {}
        self._measured_gpu = load_gpu(self.calibration.gpu)
        self._restated = not same_compute(self._measured_gpu, self.cluster.node.gpu)
        self._conditions = Conditions(self._measured_gpu, self.calibration.overlap)
        by_size = sorted(
            grouped.items(), key=lambda entry: -sum(len(rows) for rows in entry[1].values())
        )
        largest: dict[str, Family] = {}
        for family, _ in by_size:
            largest.setdefault(family[0], family)

        def build_family(key: tuple[bool, Family]) -> FamilyModel:
            overlapped, family = key
            sets = grouped[family]
            floor = self.calibration.kernel_floor.value * _kernels(
                [row for rows in sets.values() for row in rows]
            )
            relative = largest[family[0]]
            named = [name for name in order if name in sets]
            # The kernel set with most rows gives the family its shape, and the tiles.
            base = max(named, key=lambda name: len({(row.sizes, row.sms) for row in sets[name]}))
            fit = self._fit(family, base)
            tiles = (fit.tiles if fit else None) or self.calibration.tiles
            return FamilyModel(
                family[0],
                {
                    name: self._conditions.convert(sets[name], overlapped, floor, tiles)
                    for name in named
                },
                base=base,
                relative=None if relative == family else self.families_[overlapped, relative],
                floor=floor,
                gpu=self._measured_gpu,
                tiles=tiles,
                fit=fit,
            )

        def build_class(key: tuple[bool, bool]) -> ClassModel:
            overlapped, tensor = key
            return ClassModel(
                [
                    self.families_[overlapped, family]
                    for family in grouped
                    if is_tensor(family[0]) is tensor
                ]
            )

        both = (False, True)
        self.families_ = OnDemand(
            [(o, family) for o in both for family, _ in by_size], build_family
        )
        known = sorted({is_tensor(family[0]) for family in grouped})
        self.classes_ = OnDemand([(o, tensor) for o in both for tensor in known], build_class)
        return self

    def without_all_to_all_slowdown(self) -> Self:
        """These kernel times with dispatch and combine as fast beside compute as alone.

        What was learned of compute kernels is shared, not learned again.
        """
        other = copy(self)
        other.calibration = self.calibration.without_all_to_all_slowdown()
        other.transfers_ = self._transfers(other.calibration, self._rows)
        return other

    def _transfers(self, calibration: CalibrationProfile, rows: Sequence[Measurement]) -> Transfers:
        return fitted_transfers(
            rows,
            cluster=self.cluster,
            calibration=calibration,
            ranks=self.expert_parallel_ranks,
            reach=self.reach,
        )

    def predict(
        self,
        operators: Sequence[Operator],
        *,
        sms: int | Sequence[int],
        overlapped: bool | Sequence[bool],
        load: FabricLoad | Sequence[FabricLoad] | None = None,
    ) -> Prediction:
        """Predict the duration of each operator.

        Args:
            operators: any number, any order; equal ones are computed once.
            sms: SMs that the kernel may use.
            overlapped: whether an all-to-all (for dispatch and combine: compute) runs beside it.
            load: what the fabric makes of dispatch and combine, which cannot do without it.

        Raises NotCalibrated before `fit`, or for a kind of a class without any measurement;
        ValueError for an SM count that the GPU does not have, or a transfer without a load.
        """
        if not hasattr(self, "families_"):
            raise NotCalibrated("KernelCostModel: predict needs fit first")
        # Name and phase do not change a kernel's time, so equal kernels share one place. One object
        # given many times is known by its identity, without comparing its sizes.
        seen: dict[tuple[int, int, bool, int], int] = {}
        index: dict[tuple[object, ...], int] = {}
        groups: dict[tuple[bool, Family], list[tuple[int, Operator, int]]] = {}
        families: list[Family] = []
        loads: dict[int, FabricLoad] = {}
        places = np.empty(len(operators), dtype=np.intp)
        available = self.cluster.node.gpu.sms
        conditions = zip(
            operators,
            _each(sms, len(operators), "sms"),
            _each(overlapped, len(operators), "overlapped"),
            _each(load, len(operators), "load"),
            strict=True,
        )
        for place, (op, op_sms, beside, op_load) in enumerate(conditions):
            identity = (id(op), op_sms, beside, id(op_load))
            if identity in seen:
                places[place] = seen[identity]
                continue
            family = family_of(op)
            exchange = op.kind in ALL_TO_ALL_KINDS
            key = (family, op.sizes, op_sms, beside, op_load if exchange else None)
            known = index.get(key)
            if known is None:
                least = 0 if exchange else 1
                if not least <= op_sms <= available:
                    raise ValueError(
                        f"{op.name}: sms={op_sms} is not allowed: the GPU has {least} to "
                        f"{available}"
                    )
                known = index[key] = len(index)
                families.append(family)
                if exchange:
                    if op_load is None:
                        raise ValueError(
                            f"{op.name}: load=None is not allowed for {op.kind}: what the fabric "
                            "makes of it, NO_LIMIT where NICs and NVLink alone decide"
                        )
                    loads[known] = op_load
                groups.setdefault((bool(beside), family), []).append((known, op, op_sms))
            places[place] = seen[identity] = known
        answers = np.empty((3, len(index)))
        provenance = np.empty(len(index), dtype=np.intp)
        parts = (
            (beside, family, members[start : start + CHUNK])
            for (beside, family), members in groups.items()
            for start in range(0, len(members), CHUNK)
        )
        for beside, family, members in parts:
            chosen = [number for number, _, _ in members]
            unique = [op for _, op, _ in members]
            unique_sms = np.array([count for _, _, count in members], dtype=np.float64)
            if family[0] in ALL_TO_ALL_KINDS:
                found = self.transfers_.all_to_all(
                    unique,
                    sms=unique_sms.astype(np.int64),
                    overlapped=beside,
                    loads=[loads[number] for number in chosen],
                )
                answer = found.seconds, found.low, found.high, found.provenance
            else:
                answer = self._asked_again(family, batch_of(unique), unique_sms, beside)
            answers[0, chosen], answers[1, chosen], answers[2, chosen] = answer[:3]
            provenance[chosen] = answer[3]
        seconds, low, high = answers[:, places]
        return Prediction(
            seconds,
            low,
            high,
            provenance[places],
            tuple(families[place] for place in places.tolist()),
            np.zeros(len(places)),
        )

    def predict_sizes(
        self,
        kind: str,
        sizes: Mapping[str, NDArray[np.int64]],
        *,
        dtype: str,
        out_dtype: str,
        accumulate: bool = False,
        sms: int,
        overlapped: bool,
    ) -> Prediction:
        """Predict a million operators of one compute kernel by their sizes, without an object each.

        Args:
            kind: kernel family; its sizes are those of `sizes`.
            sizes: {size: [operators] values}.

        Raises as `predict` does, and ValueError for sizes that the kind does not have.
        """
        if not hasattr(self, "families_"):
            raise NotCalibrated("KernelCostModel: predict_sizes needs fit first")
        names = tuple(sorted(sizes))
        if kind not in KINDS or kind in ALL_TO_ALL_KINDS or set(names) != set(KINDS[kind].sizes):
            raise ValueError(
                f"kind {kind!r} with sizes {', '.join(names)}: allowed: a compute kernel and the "
                "sizes of its kind"
            )
        if not 1 <= sms <= self.cluster.node.gpu.sms:
            raise ValueError(f"sms={sms}: allowed: 1 to {self.cluster.node.gpu.sms}")
        like = Operator(
            name=kind,
            kind=kind,
            phase="forward",
            segment="",
            dtype=dtype,
            out_dtype=out_dtype,
            sizes=tuple((name, 1) for name in names),
            recompute=False,
            accumulate=accumulate,
        )
        columns = np.stack([np.asarray(sizes[name], dtype=np.int64) for name in names], axis=1)
        family = family_of(like)
        _, first, places = np.unique(fingerprints(columns), return_index=True, return_inverse=True)
        columns = columns[first]
        parts = [
            self._of_batch(
                family,
                batch_of_sizes(like, columns[start : start + CHUNK]),
                np.full(len(columns[start : start + CHUNK]), float(sms)),
                overlapped,
            )
            for start in range(0, len(columns), CHUNK)
        ]
        if not parts:
            nothing = np.empty(0)
            return Prediction(nothing, nothing, nothing, np.empty(0, dtype=np.intp), (), nothing)
        seconds, low, high = (
            np.concatenate([part[end] for part in parts])[places] for end in range(3)
        )
        provenance = np.concatenate([part[3] for part in parts])[places]
        of_kind = (family,) * len(places)
        return Prediction(seconds, low, high, provenance, of_kind, np.zeros(len(places)))

    def _asked_again(
        self, family: Family, batch: Batch, sms: Array, overlapped: bool
    ) -> tuple[Array, Array, Array, NDArray[np.intp]]:
        """`_of_batch`, whose last answer of each family is kept: a step without the slow-down of
        its all-to-all asks for the same compute kernels."""
        last = self._last_answers.get((overlapped, family))
        if last is None or not (
            np.array_equal(last[0], batch.sizes) and np.array_equal(last[1], sms)
        ):
            last = (batch.sizes, sms, self._of_batch(family, batch, sms, overlapped))
            self._last_answers[overlapped, family] = last
        return last[2]

    def _of_batch(
        self, family: Family, batch: Batch, sms: Array, overlapped: bool
    ) -> tuple[Array, Array, Array, NDArray[np.intp]]:
        """Of distinct operators of one family; none takes longer than one of more rows, attention
        no less than a row with less work.

        A row that a larger one beats no longer counts as measured.
        """
        answer = self._one_by_one(family, batch, sms, overlapped)
        alone, low, high, provenance = answer
        floor = self._restated_floor(family, overlapped)
        if floor is not None:
            seconds = np.exp(floor.raise_to(np.log(alone), batch, sms))
            return seconds, low * (seconds / alone), high * (seconds / alone), provenance
        if family[0] not in PADDED:
            return answer
        at_peak = self._at_peak(family, batch, sms)
        seconds = self._rising(family, overlapped).seconds(batch, sms, alone, at_peak)
        gpu = self.cluster.node.gpu
        seconds = np.maximum(seconds, least_seconds(batch, sms, gpu, memory_share=1.0))
        beaten = (provenance == MEASURED) & (seconds < alone * (1.0 - ROUNDING))
        provenance = np.where(beaten, INTERPOLATED, provenance)
        share = np.where(provenance == MEASURED, 1.0, self._memory_share)
        least = least_seconds(batch, sms, gpu, memory_share=share)
        low = np.maximum(low * (seconds / alone), np.minimum(seconds, least))
        return seconds, low, high * (seconds / alone), provenance

    def _rising(self, family: Family, overlapped: bool) -> RisingRows:
        """What is known of a family with rows; scanned shape by shape when first needed."""
        known = self._rising_rows.get((overlapped, family))
        if known is not None:
            return known

        def scan(batch: Batch, sms: Array) -> tuple[Array, NDArray[np.bool_], Array]:
            seconds, _, _, provenance = self._one_by_one(family, batch, sms, overlapped)
            return seconds, provenance == MEASURED, self._at_peak(family, batch, sms)

        kind = family[0]
        measured = {dict(row.sizes)[PADDED[kind]] for row in self._rows if row.kind == kind}
        made = RisingRows(kind, scan, np.array(sorted(measured), dtype=np.float64))
        return self._rising_rows.setdefault((overlapped, family), made)

    def _restated_floor(self, family: Family, overlapped: bool) -> WorkFloor | None:
        """Lower bounds of attention by the rows of another GPU, restated for this one:
        what is latency there and what is at a ceiling scale apart. None for other kernels."""
        if family[0] not in MONOTONE_KINDS:
            return None
        answering = self._answering(family)
        model, _ = answering._model(family, overlapped)
        if model is None or not answering._restated:
            return None
        key = (overlapped, family)
        if key not in self._restated_floors:
            sms = np.full(len(model.base_rows), float(self.cluster.node.gpu.sms))
            seconds = self._one_by_one(family, model.base_rows.batch, sms, overlapped)[0]
            floor = WorkFloor(model.base_rows.batch, sms, np.log(seconds))
            self._restated_floors[key] = floor
        return self._restated_floors[key]

    def _at_peak(self, family: Family, batch: Batch, sms: Array) -> Array:
        """[operators] seconds at this GPU's peaks, by the tiles of the family's kernels, on no more
        SMs than were measured: between two numbers of rows, time goes alike on more."""
        model = self.families_.get((False, family))
        tiles = self.calibration.tiles if model is None else model.tiles
        fewer = np.minimum(sms, self._answering(family)._measured_gpu.sms)
        return ideal_batch_seconds(batch, fewer, self.cluster.node.gpu, tiles)

    def _one_by_one(
        self, family: Family, batch: Batch, sms: Array, overlapped: bool
    ) -> tuple[Array, Array, Array, NDArray[np.intp]]:
        """Of distinct operators of one family, each by itself, from whoever has rows of it."""
        answering = self._answering(family)
        answer = answering._compute(family, batch, sms, overlapped)
        own = self._related(family)
        if own is not None:
            answer = self._in_ratio(answer, answering, own, batch, sms, overlapped)
        foreign = answering.calibration.gpu != self.calibration.gpu
        if foreign or self._restated:
            answer = self._restate(answer, batch, sms, foreign=foreign)
        if answering._measured_gpu.architecture != self._measured_gpu.architecture:
            # Only the shares of the datasheets' ceilings hold on another architecture.
            answer = (*answer[:3], np.full_like(answer[3], MODELLED))
        elsewhere = self._with_more_rows(family) if answering is self else None
        if elsewhere is None:
            return answer
        unknown = np.flatnonzero(~self.families_[overlapped, family].covers(batch))
        if not len(unknown):
            return answer
        part, part_sms = batch.take(unknown), sms[unknown]
        found = elsewhere._compute(family, part, part_sms, overlapped)
        if elsewhere.calibration.gpu != self.calibration.gpu:
            found = self._restate(found, part, part_sms, foreign=True)
        for mine, theirs in zip(answer, found, strict=True):
            mine[unknown] = theirs
        return answer

    def _fit(self, family: Family, kernel_set: str) -> FitProfile | None:
        """What calibrate found out about a family in one kernel set."""
        for fit in self.calibration.fits:
            found = (fit.kind, fit.dtype, fit.out_dtype, fit.accumulate)
            if found == family and fit.kernel_set == kernel_set:
                return fit
        return None

    @cached_property
    def others_(self) -> tuple[KernelCostModel, ...]:
        """Models of the calibrations that complete this one or that it is restated from, fitted
        when first needed."""
        restated = [
            name
            for name in self.calibration.restated_from
            if name not in self.calibration.completed_by
        ]
        return (
            *self.completing_,
            *(self._stand_in(load_calibration(name)) for name in restated),
        )

    @cached_property
    def completing_(self) -> tuple[KernelCostModel, ...]:
        """Models of the calibrations that complete this one."""
        return tuple(
            self._stand_in(load_calibration(name)) for name in self.calibration.completed_by
        )

    def _stand_in(self, other: CalibrationProfile) -> KernelCostModel:
        """The model of another calibration's rows on this cluster, under this one's conditions."""
        inputs = {"overlap": self.calibration.overlap, "all_to_all": self.calibration.all_to_all}
        return type(self)(
            cluster=self.cluster,
            calibration=other.model_copy(update=inputs),
            expert_parallel_ranks=self.expert_parallel_ranks,
        ).fit(calibration_measurements(other))

    def answered_by(self, operator: Operator) -> str:
        """Name of the calibration whose rows a compute kernel's time rests on."""
        family = family_of(operator)
        answering = self._answering(family).calibration.name
        if self._related(family) is None:
            return answering
        return f"{self.calibration.name} in the ratio of {answering}"

    def _related(self, family: Family) -> Family | None:
        """Own rows of the same product for a kernel that a completing calibration answers for."""
        answering = self._answering(family)
        if answering not in self.completing_ or (False, family) not in answering.families_:
            return None
        known, also = ({of for _, of in model.families_} for model in (self, answering))
        return related_family(family, known, also)

    def _in_ratio(
        self,
        answer: tuple[Array, Array, Array, NDArray[np.intp]],
        answering: KernelCostModel,
        own: Family,
        batch: Batch,
        sms: Array,
        overlapped: bool,
    ) -> tuple[Array, Array, Array, NDArray[np.intp]]:
        """A completing calibration's answer, as own rows of the same product scale it."""
        product = related_batch(batch, own)
        # Beyond the measured SMs the two go by waves of other tiles, whose ratio says nothing.
        measured = np.minimum(sms, min(self._measured_gpu.sms, answering._measured_gpu.sms))
        mine = self._compute(own, product, measured, overlapped)
        theirs = answering._compute(own, product, measured, overlapped)
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

    def _answering(self, family: Family) -> KernelCostModel:
        """Who predicts a family: whoever has rows of it, else of its kind, else of its class."""
        if (False, family) in self.families_:
            return self
        models = (self, *self.others_)

        def has(model: KernelCostModel) -> int:
            own = [known for _, known in model.families_]
            if family in own:
                return 0
            if any(known[0] == family[0] for known in own):
                return 1
            return 2 if (False, is_tensor(family[0])) in model.classes_ else 3

        return min(models, key=has)

    def _with_more_rows(self, family: Family) -> KernelCostModel | None:
        """Who else knows a tensor-core family of which there are but a few rows here.

        A few rows of small products say nothing of other shapes: the trace's only BF16 products are
        those of the gate, the head is 500 times as large.
        """
        if not is_tensor(family[0]) or (False, family) not in self.families_:
            return None
        rows = self.families_[False, family].rows
        if rows >= ENOUGH_RESIDUALS:
            return None
        for other in self.others_:
            if (False, family) in other.families_ and other.families_[False, family].rows > rows:
                return other
        return None

    def _compute(
        self, family: Family, batch: Batch, sms: Array, overlapped: bool
    ) -> tuple[Array, Array, Array, NDArray[np.intp]]:
        """Seconds, interval and provenance of distinct operators of one family."""
        kind = family[0]
        gpu = self.cluster.node.gpu
        tensor = is_tensor(kind)
        if (overlapped, tensor) not in self.classes_:
            raise NotCalibrated(
                f"calibration {self.calibration.name}: nothing measured that {kind} "
                f"({'tensor-core' if tensor else 'memory-bound'}) could be modelled on"
            )
        achieved = self.classes_[overlapped, tensor]
        model, borrowed = self._model(family, overlapped)
        floor = self.calibration.kernel_floor.value if model is None else model.floor
        tiles = self.calibration.tiles if model is None else model.tiles
        # On another GPU: the time on the measured one, restated. A product goes by its SMs'
        # tiles, a kernel that fills its share of the SMs by that share.
        at, on = (gpu, sms)
        if self._restated:
            at = self._measured_gpu
            on = np.minimum(sms, at.sms) if tensor else sms * (at.sms / gpu.sms)
        ideal = Ideal(*waves_and_bytes(batch, on, at, tiles), floor)
        if model is None:
            log_seconds = ideal.log_seconds + achieved.log_ratio
            width = np.full(len(batch), achieved.modelled_width)
            provenance = np.full(len(batch), MODELLED, dtype=np.intp)
            apart = np.zeros(len(batch))
        else:
            room = on if tensor or overlapped else np.full(len(on), float(at.sms))
            told = model.predict(batch, room, ideal, achieved)
            log_seconds, provenance = told.log_seconds, told.provenance
            if overlapped:
                more = self._conditions.log_more(kind, told.slowed)
                log_seconds = log_seconds + more
                provenance = np.where(more == 0.0, provenance, np.maximum(provenance, INTERPOLATED))
            if borrowed or self._restated:
                provenance = np.full_like(provenance, EXTRAPOLATED)
            width = self._width(model, achieved, told, provenance)
            # What another kernel set says of the same shape lies inside the interval.
            apart = np.where(provenance == MEASURED, 0.0, told.rival - told.log_seconds)
        if overlapped and not tensor:
            slowdown = self.calibration.overlap.memory_bound.value
            squeeze = self._conditions.log_squeeze(on, at.sms, slowdown=slowdown)
            log_seconds = log_seconds + squeeze
        if self._restated:
            log_seconds = log_seconds + log_restatement(
                batch,
                np.exp(log_seconds),
                on=on,
                to=sms,
                source=at,
                target=gpu,
                achieved=self.achieved_,
                tiles=tiles,
            )
        # Nothing but a row that says so moves its bytes faster than the fastest kernel.
        share = np.where(provenance == MEASURED, 1.0, self._memory_share)
        least = least_seconds(batch, sms, gpu, memory_share=share)
        seconds = np.maximum(np.exp(log_seconds), least)
        low = np.maximum(seconds * np.exp(np.minimum(-width, apart)), least)
        return seconds, low, seconds * np.exp(np.maximum(width, apart)), provenance

    @cached_property
    def achieved_(self) -> Achieved:
        """What the fastest rows make of the measured GPU's ceilings."""
        rows = (row for row in self._rows if row.kind not in ALL_TO_ALL_KINDS)
        return achieved_shares(rows, self._measured_gpu)

    @cached_property
    def _memory_share(self) -> float:
        """Of the HBM rate: what the fastest row moves, of another calibration where the own rows
        are small; all of it where no row says otherwise."""
        if self.achieved_.memory is not None:
            return self.achieved_.memory
        known = (model.achieved_.memory for model in self.others_)
        return next((share for share in known if share is not None), 1.0)

    def _restate(
        self,
        answer: tuple[Array, Array, Array, NDArray[np.intp]],
        batch: Batch,
        sms: Array,
        *,
        foreign: bool,
    ) -> tuple[Array, Array, Array, NDArray[np.intp]]:
        """An answer for another GPU than the measured one, its interval widened for that.

        Args:
            foreign: whether another calibration's; that error is stated even where this one's own
                rows are not restated.
        """
        seconds, low, high, provenance = answer
        if self.calibration.basis == "datasheet":
            provenance = np.full_like(provenance, MODELLED)
        elif foreign:
            provenance = np.maximum(provenance, EXTRAPOLATED)
        error = self.calibration.restatement
        if error is None and foreign:
            error = self.calibration.other_gpu
        if error is None:
            return seconds, low, high, provenance
        narrow, wide = np.log(error.value / error.low), np.log(error.high / error.value)
        lower = seconds * np.exp(-np.hypot(np.log(seconds / low), narrow))
        gpu = self.cluster.node.gpu
        least = least_seconds(batch, sms, gpu, memory_share=self._memory_share)
        return (
            seconds,
            np.maximum(lower, np.minimum(seconds, least)),
            seconds * np.exp(np.hypot(np.log(high / seconds), wide)),
            provenance,
        )

    def _model(self, family: Family, overlapped: bool) -> tuple[FamilyModel | None, bool]:
        """The family's model, or that of the same kind with other types (True: borrowed)."""
        if (overlapped, family) in self.families_:
            return self.families_[overlapped, family], False
        same_kind = [
            (other[1] != family[1], -self.families_[overlapped, other].rows, number, other)
            for number, (condition, other) in enumerate(self.families_)
            if condition is overlapped and other[0] == family[0]
        ]
        # The same operand type first, then the family with most rows.
        best = min(same_kind, default=None)
        return (None if best is None else self.families_[overlapped, best[3]]), True

    def _width(
        self,
        model: FamilyModel,
        achieved: ClassModel,
        told: Told,
        provenance: NDArray[np.intp],
    ) -> Array:
        """Half-width of the interval in log seconds; [operators].

        Measured: the spread of the row's repeats, at least half that of its class. Otherwise that
        of the model, and of the ratio that may have converted the condition.
        """
        known = np.where(np.isnan(told.spread), achieved.spread, told.spread)
        measured = NORMAL_80 * np.maximum(known, achieved.spread / 2)
        ratio = self._conditions.ratio(model.kind)
        converted = np.hypot(told.width, np.log(ratio.high / ratio.low) / 2)
        return np.where(provenance == MEASURED, measured, np.maximum(measured, converted))


def _kernels(rows: Sequence[Measurement]) -> float:
    """Mean number of kernels that make one launch of an operator."""
    return float(np.mean([float(row.condition("kernels", "1")) for row in rows]))


def _each(value: ValueT | Sequence[ValueT], count: int, name: str) -> Sequence[ValueT]:
    if value is None or isinstance(value, int | FabricLoad):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name}: {len(value)} values for {count} operators")
    return value


COST_MODELS: Mapping[str, type[KernelCostModel]] = {"measured": KernelCostModel}
"""Cost models by the name that a scenario's cost_model gives."""
