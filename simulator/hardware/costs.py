"""Predicted kernel times: operators in; seconds, an 80 % interval and provenance out.

`KernelCostModel` follows scikit-learn's contract: the constructor stores hyper-parameters, `fit`
learns from a measurement table and returns self, `predict` is pure.

    costs = KernelCostModel(cluster=cluster, calibration=calibration, expert_parallel_ranks=64)
    costs.fit(calibration_measurements(calibration))
    pair = costs.predict(operators, sms=112, overlapped=True)      # beside an all-to-all
    alone = costs.predict(operators, sms=132, overlapped=False)    # nothing beside it

`sms` and `overlapped` are one value for all operators or one for each. For dispatch and combine
`sms` are the communication SMs, and `overlapped` means that compute runs beside them.

How a compute kernel is predicted. `roofline.ideal_seconds` gives its time at peak by waves and
bytes. Measurements teach the ratio to it, in two steps. Of the kernel set with most rows of a
family (kind and types), every shape is a curve: log seconds over log ideal seconds, monotone and
linear between rows, of slope 1 beyond them (constant efficiency). A shape without a curve, or far
beyond the end of its own, takes the mean of the nearest curves, in octaves of sizes and of time
beyond their ends; curves of the kind's largest family take part at a distance. Onto that, the
preferred kernel set adds its own difference, a mean of its rows' differences weighted by the
inverse square of the distance in octaves of all sizes: its rows are met exactly, and one version's
times never average into another's. Kernels that only move bytes have one curve a family. A family
without rows borrows the kind's other types, then what its class (tensor-core or memory-bound)
achieves in general. Where the calibration names others to transfer from, a family without rows and
products far from the few rows of theirs come from those, by the ceilings of both GPUs.

Conditions. A row carries the SMs and the share of its time with an all-to-all in flight; an
overlapped prediction answers with rows of an overlapped pair as they are. A row that holds for the
other condition only is converted by the ratio of its class in CalibrationProfile.overlap. Alone, a
memory-bound kernel fills all SMs whatever `sms` says; a persistent GEMM runs on `sms`.

Provenance. measured: a row of the preferred set with these sizes, SMs and condition. interpolated:
between rows of the same shape, or a row at another condition or an SM count between measured ones.
extrapolated: another shape, beyond the rows, another SM count or another GPU. modelled: no row of
the kind.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.schema import (
    CalibrationProfile,
    ClusterProfile,
    Estimate,
    FitProfile,
    GpuProfile,
    TilesProfile,
    load_calibration,
    load_gpu,
)
from hardware_profiles.tables import Measurement, load_measurements, table_path
from hardware_profiles.units import Seconds
from reference_model.trace import KINDS, Operator
from simulator.hardware.all_to_all import ALL_TO_ALL_KINDS, AllToAllModel
from simulator.hardware.kernel_curves import (
    ENOUGH_RESIDUALS,
    EXTRAPOLATED,
    MEASURED,
    MODELLED,
    PROVENANCES,
    ClassModel,
    FamilyModel,
    Rows,
    fingerprints,
)
from simulator.hardware.roofline import (
    Batch,
    Ideal,
    batch_of,
    batch_of_sizes,
    ideal_batch_seconds,
    is_tensor,
    least_seconds,
    waves_and_bytes,
)

Array = NDArray[np.float64]
Family = tuple[str, str, str, bool]
"""(kind, operand type, result type, whether it adds into the result)."""
ValueT = TypeVar("ValueT", int, bool)
KeyT = TypeVar("KeyT", bound=Hashable)
MadeT = TypeVar("MadeT")

NORMAL_80 = 1.2816
"""Half-width of the central 80 % of a normal distribution, in standard deviations."""
BEYOND_CACHE = 4
"""Times the L2 cache that a kernel moves before its rate is that of the HBM."""
CHUNK = 32768
"""Distinct operators predicted at once: bounds the memory of their distances to all rows."""


class NotCalibrated(ValueError):
    """A cost model was asked before it was fitted, or fitted without a row that it can use."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Durations of a list of operators; all arrays [operators]."""

    seconds: Array
    low: Array
    high: Array
    """Ends of the 80 % interval, seconds."""
    provenance: NDArray[np.str_]
    """One of PROVENANCES each."""


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
    ) -> None:
        """Store the inputs.

        Args:
            cluster: GPU, NICs and node that the kernels run on.
            calibration: kernel sets to use, and the inputs that no table holds.
            expert_parallel_ranks: GPUs that share a layer's experts; dispatch and combine cross
                the nodes that hold them.
        """
        self.cluster = cluster
        self.calibration = calibration
        self.expert_parallel_ranks = expert_parallel_ranks

    def fit(self, measurements: Iterable[Measurement]) -> Self:
        """Learn from a measurement table; rows of kernel sets not in the calibration are left out.

        Sets `families_` {(overlapped, family): FamilyModel}, `classes_` {(overlapped, tensor-core):
        ClassModel} and `all_to_all_`. Raises NotCalibrated where no row of a compute kernel belongs
        to a named kernel set, ValueError for a row of an unknown kind or with other
        sizes than its kind has.
        """
        order = self.calibration.kernel_sets
        rows = [row for row in measurements if row.kernel_set in order]
        grouped: dict[Family, dict[str, list[Measurement]]] = {}
        for row in rows:
            check_row(row)
            if row.kind not in ALL_TO_ALL_KINDS:
                sets = grouped.setdefault(family_of(operator_of(row)), {})
                sets.setdefault(row.kernel_set, []).append(row)
        if not grouped and not self.calibration.transfer_from:
            raise NotCalibrated(
                f"calibration {self.calibration.name}: no measured compute kernel of the kernel "
                f"sets {', '.join(order)}"
            )
        self.all_to_all_ = AllToAllModel(
            cluster=self.cluster, calibration=self.calibration, ranks=self.expert_parallel_ranks
        ).fit(rows)
        self._rows = rows
        self._measured_gpu = load_gpu(self.calibration.gpu)
        self._transferred = _compute_of(self._measured_gpu) != _compute_of(self.cluster.node.gpu)
        by_size = sorted(
            grouped.items(), key=lambda entry: -sum(len(rows) for rows in entry[1].values())
        )
        largest: dict[str, Family] = {}
        for family, _ in by_size:
            largest.setdefault(family[0], family)

        def build_family(key: tuple[bool, Family]) -> FamilyModel:
            overlapped, family = key
            sets = grouped[family]
            floor = self._floor * _kernels([row for rows in sets.values() for row in rows])
            relative = largest[family[0]]
            named = [name for name in order if name in sets]
            # The kernel set with most rows gives the family its shape, and the tiles.
            base = max(named, key=lambda name: len({(row.sizes, row.sms) for row in sets[name]}))
            fit = self._fit(family, base)
            tiles = (fit.tiles if fit else None) or self.calibration.tiles
            return FamilyModel(
                family[0],
                {name: self._convert(sets[name], overlapped, floor, tiles) for name in named},
                base=base,
                relative=None if relative == family else self.families_[overlapped, relative],
                floor=floor,
                tiles=tiles,
                fit=fit,
                twin=self.families_[False, family] if overlapped else None,
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

    def predict(
        self,
        operators: Sequence[Operator],
        *,
        sms: int | Sequence[int],
        overlapped: bool | Sequence[bool],
    ) -> Prediction:
        """Predict the duration of each operator.

        Args:
            operators: any number, any order; equal ones are computed once.
            sms: SMs that the kernel may use.
            overlapped: whether an all-to-all (for dispatch and combine: compute) runs beside it.

        Raises NotCalibrated before `fit`, or for a kind of a class without any measurement;
        ValueError for an SM count that the GPU does not have.
        """
        if not hasattr(self, "families_"):
            raise NotCalibrated("KernelCostModel: predict needs fit first")
        # Name and phase do not change a kernel's time, so equal kernels share one place. One object
        # given many times is known by its identity, without comparing its sizes.
        seen: dict[tuple[int, int, bool], int] = {}
        index: dict[tuple[object, ...], int] = {}
        groups: dict[tuple[bool, Family], list[tuple[int, Operator, int]]] = {}
        places = np.empty(len(operators), dtype=np.intp)
        available = self.cluster.node.gpu.sms
        conditions = zip(
            operators,
            _each(sms, len(operators), "sms"),
            _each(overlapped, len(operators), "overlapped"),
            strict=True,
        )
        for place, (op, op_sms, beside) in enumerate(conditions):
            identity = (id(op), op_sms, beside)
            if identity in seen:
                places[place] = seen[identity]
                continue
            family = family_of(op)
            key = (family, op.sizes, op_sms, beside)
            known = index.get(key)
            if known is None:
                if not 1 <= op_sms <= available:
                    raise ValueError(
                        f"{op.name}: sms={op_sms} is not allowed: the GPU has 1 to {available}"
                    )
                known = index[key] = len(index)
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
                answer = self.all_to_all_.predict(unique, sms=unique_sms, overlapped=beside)
            else:
                answer = self._of_batch(family, batch_of(unique), unique_sms, beside)
            answers[0, chosen], answers[1, chosen], answers[2, chosen] = answer[:3]
            provenance[chosen] = answer[3]
        seconds, low, high = answers[:, places]
        return Prediction(seconds, low, high, np.array(PROVENANCES)[provenance[places]])

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
            return Prediction(nothing, nothing, nothing, np.empty(0, dtype=np.str_))
        seconds, low, high, provenance = (
            np.concatenate(columns) for columns in zip(*parts, strict=True)
        )
        named = np.array(PROVENANCES)[provenance[places]]
        return Prediction(seconds[places], low[places], high[places], named)

    def _of_batch(
        self, family: Family, batch: Batch, sms: Array, overlapped: bool
    ) -> tuple[Array, Array, Array, NDArray[np.intp]]:
        """Of distinct operators of one family, from whoever has rows of it."""
        answering = self._answering(family)
        answer = answering._compute(family, batch, sms, overlapped)
        if answering is not self or self._transferred:
            answer = self._carried_over(answer, batch, sms, foreign=answering is not self)
        elsewhere = self._with_more_rows(family) if answering is self else None
        if elsewhere is None:
            return answer
        unknown = np.flatnonzero(~self.families_[overlapped, family].covers(batch))
        if not len(unknown):
            return answer
        part, part_sms = batch.take(unknown), sms[unknown]
        found = elsewhere._compute(family, part, part_sms, overlapped)
        found = self._carried_over(found, part, part_sms, foreign=True)
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
        """Models of the calibrations that this one transfers from, fitted when first needed."""
        return tuple(
            self._stand_in(load_calibration(name)) for name in self.calibration.transfer_from
        )

    def _stand_in(self, other: CalibrationProfile) -> KernelCostModel:
        """The model of another calibration's rows on this cluster, under this one's conditions."""
        inputs = {"overlap": self.calibration.overlap, "all_to_all": self.calibration.all_to_all}
        return type(self)(
            cluster=self.cluster,
            calibration=other.model_copy(update=inputs),
            expert_parallel_ranks=self.expert_parallel_ranks,
        ).fit(calibration_measurements(other))

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

    def _ratio(self, kind: str) -> Estimate:
        """How much slower a kernel runs beside an all-to-all."""
        overlap = self.calibration.overlap
        if not is_tensor(kind):
            return overlap.memory_bound
        return overlap.attention if kind.startswith("attention") else overlap.gemm

    def _convert(
        self,
        rows: Sequence[Measurement],
        overlapped: bool,
        floor: Seconds,
        tiles: TilesProfile,
    ) -> Rows:
        """Bring the rows of one family and kernel set to one condition.

        A row of an overlapped pair was slowed for a share of its time: overlapped it answers as it
        is, alone that share is taken out. Every other row was alone. Kernels that ran on the
        communication SMs are brought to the compute SMs of a pair first.

        Args:
            floor: added to ideal times, what launching the operator's kernels takes.
            tiles: of the family's kernels.
        """
        kind = rows[0].kind
        ratio = self._ratio(kind).value
        batch = batch_of([operator_of(row) for row in rows])
        share = np.array([row.all_to_all_share for row in rows])
        in_pair = np.array([row.condition("pair") == "yes" for row in rows])
        squeezed = np.array([row.condition("beside") == "compute" for row in rows])
        if not is_tensor(kind):
            # A share of the SMs is a share of them whether or not anything runs on the others.
            squeezed |= (~in_pair) & (
                np.array([row.sms < self._measured_gpu.sms for row in rows], dtype=np.bool_)
            )
        sms = np.array([row.sms for row in rows], dtype=np.float64)
        log_seconds = np.log(np.array([row.seconds for row in rows]))
        if not is_tensor(kind):
            log_seconds -= np.where(squeezed, self._log_squeeze(sms, self._measured_gpu.sms), 0.0)
        to_alone = -np.log(np.where(squeezed, ratio, 1.0 + (ratio - 1.0) * share))
        to_pair = np.where(in_pair | squeezed, 0.0, np.log(ratio))
        parts = waves_and_bytes(batch, sms, self._measured_gpu, tiles)
        if is_tensor(kind):
            room = sms
        elif overlapped:
            left = self._measured_gpu.sms - self.calibration.overlap.reference_communication_sms
            room = np.where(squeezed, sms, left)
        else:
            room = np.full(len(rows), float(self._measured_gpu.sms))
        return Rows(
            batch=batch,
            sms=room,
            log_seconds=log_seconds + (to_pair if overlapped else to_alone),
            ideal=Ideal(*parts, floor),
            weights=np.array([float(row.condition("repeats", "1")) for row in rows]),
            direct=(in_pair | squeezed) if overlapped else (share == 0.0) & ~squeezed,
            spread=np.array([np.nan if row.spread is None else row.spread for row in rows]),
        ).without_redundant()

    @property
    def _floor(self) -> Seconds:
        return self.calibration.kernel_floor.value

    def _log_squeeze(self, sms: Array, available: int) -> Array:
        """Log slow-down of a memory-bound kernel on other SMs than an overlapped pair leaves it.

        Kernels that fill every free SM slow by 1.15 where 132 SMs become 112: seconds go by
        SMs ** -0.85, both numbers from the calibration.

        Args:
            available: SMs of the GPU.
        """
        overlap = self.calibration.overlap
        taken = overlap.reference_communication_sms
        total = self._measured_gpu.sms
        exponent = np.log(overlap.memory_bound.value) / np.log(total / (total - taken))
        left = available * (1 - taken / total)
        log_slowdown: Array = exponent * np.log(left / sms)
        return log_slowdown

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
        floor = self._floor if model is None else model.floor
        tiles = self.calibration.tiles if model is None else model.tiles
        # On another GPU: the time on the measured one, on the same share of its SMs, carried over.
        at, on = (gpu, sms)
        if self._transferred:
            at, on = self._measured_gpu, sms * (self._measured_gpu.sms / gpu.sms)
        ideal = Ideal(*waves_and_bytes(batch, on, at, tiles), floor)
        if model is None:
            log_seconds = ideal.log_seconds + achieved.log_ratio
            width = np.full(len(batch), achieved.modelled_width)
            provenance = np.full(len(batch), MODELLED, dtype=np.intp)
            apart = np.zeros(len(batch))
        else:
            room = on if tensor or overlapped else np.full(len(on), float(at.sms))
            log_seconds, rival, provenance, spread = model.predict(batch, room, ideal)
            if borrowed or self._transferred:
                provenance = np.full_like(provenance, EXTRAPOLATED)
            width = self._width(model, achieved, provenance, spread)
            # What another kernel set says of the same shape lies inside the interval.
            apart = np.where(provenance == MEASURED, 0.0, rival - log_seconds)
        if overlapped and not tensor:
            log_seconds = log_seconds + self._log_squeeze(on, at.sms)
        if self._transferred:
            log_seconds = log_seconds + self._log_transfer(
                batch, sms, np.exp(log_seconds), floor, tiles
            )
        least = least_seconds(batch, sms, gpu)
        seconds = np.maximum(np.exp(log_seconds), least)
        low = np.maximum(seconds * np.exp(np.minimum(-width, apart)), least)
        return seconds, low, seconds * np.exp(np.maximum(width, apart)), provenance

    def _log_transfer(
        self, batch: Batch, sms: Array, seconds: Array, floor: Seconds, tiles: TilesProfile
    ) -> Array:
        """Log of the time on this cluster's GPU over that on the measured one.

        A tensor-core kernel loads its operands while it computes: its time goes as its roofline,
        the larger of waves at peak and bytes. Of another kernel's time t the share f that its
        bytes take at the rate of the fastest copy goes with the memory, the rest with SMs x clock:

            t' = t (f B / B' + (1 - f) P / P'),   f = min(1, bytes / (achieved share x B) / t)
        """
        source, target = self._measured_gpu, self.cluster.node.gpu
        if is_tensor(batch.kind):
            on = sms * (source.sms / target.sms)
            before = ideal_batch_seconds(batch, on, source, tiles) + floor
            after = ideal_batch_seconds(batch, sms, target, tiles) + floor
            log_ratio: Array = np.log(after / before)
            return log_ratio
        memory = source.hbm_bandwidth / target.hbm_bandwidth
        compute = source.sms * source.sm_clock / (target.sms * target.sm_clock)
        rate = self._achieved_share * source.hbm_bandwidth
        bound = np.minimum(1.0, batch.moved_bytes / rate / seconds)
        return np.log(bound * memory + (1.0 - bound) * compute)

    @cached_property
    def _achieved_share(self) -> float:
        """Of the measured GPU's HBM rate: what the fastest kernel beyond its L2 cache moves."""
        gpu = self._measured_gpu
        shares = [1.0 / gpu.sms]
        for row in self._rows:
            if row.kind in ALL_TO_ALL_KINDS or is_tensor(row.kind):
                continue
            operator = operator_of(row)
            moved = operator.bytes_read + operator.bytes_written
            if moved > BEYOND_CACHE * gpu.l2_capacity:
                shares.append(moved / row.seconds / gpu.hbm_bandwidth)
        return min(1.0, max(shares)) if len(shares) > 1 else 1.0

    def _carried_over(
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
                rows are not carried anywhere.
        """
        seconds, low, high, provenance = answer
        if self.calibration.basis == "datasheet":
            provenance = np.full_like(provenance, MODELLED)
        elif foreign:
            provenance = np.maximum(provenance, EXTRAPOLATED)
        error = self.calibration.carried_over
        if error is None and foreign:
            error = self.calibration.other_gpu
        if error is None:
            return seconds, low, high, provenance
        narrow, wide = np.log(error.value / error.low), np.log(error.high / error.value)
        lower = seconds * np.exp(-np.hypot(np.log(seconds / low), narrow))
        return (
            seconds,
            np.maximum(lower, least_seconds(batch, sms, self.cluster.node.gpu)),
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
        provenance: NDArray[np.intp],
        spread: Array,
    ) -> Array:
        """Half-width of the interval in log seconds; [operators].

        Measured: the spread of the row's repeats, at least half that of its class. Otherwise the
        held-out error of the family, and of the ratio that may have converted the condition.
        """
        known = np.where(np.isnan(spread), achieved.spread, spread)
        measured = NORMAL_80 * np.maximum(known, achieved.spread / 2)
        between = model.width(row_left_out=True)
        beyond = model.width(row_left_out=False)
        held_out = np.array(
            [
                0.0,
                achieved.width(row_left_out=True) if between is None else between,
                achieved.width(row_left_out=False) if beyond is None else beyond,
                achieved.modelled_width,
            ]
        )[provenance]
        ratio = self._ratio(model.kind)
        converted = np.hypot(held_out, np.log(ratio.high / ratio.low) / 2)
        return np.where(provenance == MEASURED, measured, np.maximum(measured, converted))


def calibration_measurements(calibration: CalibrationProfile) -> tuple[Measurement, ...]:
    """All rows of the tables that a calibration names."""
    return tuple(
        row for name in calibration.measurements for row in load_measurements(table_path(name))
    )


def check_row(row: Measurement) -> None:
    """Raise ValueError for an unknown kind, or other sizes than the kind has."""
    if row.kind not in KINDS:
        raise ValueError(
            f"measurement of {row.source}: kind: {row.kind!r} is unknown; "
            f"known: {', '.join(sorted(KINDS))}"
        )
    sizes, needed = {name for name, _ in row.sizes}, set(KINDS[row.kind].sizes)
    if sizes != needed:
        raise ValueError(
            f"measurement of {row.source}: sizes: {row.kind} needs {', '.join(sorted(needed))}; "
            f"found {', '.join(sorted(sizes))}"
        )


def operator_of(row: Measurement) -> Operator:
    """The operator that a row timed."""
    return Operator(
        name=row.source,
        kind=row.kind,
        phase="forward",
        segment="",
        dtype=row.dtype,
        out_dtype=row.out_dtype,
        sizes=row.sizes,
        recompute=False,
        accumulate=row.accumulates,
    )


def _compute_of(gpu: GpuProfile) -> tuple[object, ...]:
    """What a compute kernel's time depends on."""
    return (gpu.sms, gpu.sm_clock, dict(gpu.peak_compute), gpu.hbm_bandwidth, gpu.l2_capacity)


def _kernels(rows: Sequence[Measurement]) -> float:
    """Mean number of kernels that make one launch of an operator."""
    return float(np.mean([float(row.condition("kernels", "1")) for row in rows]))


def family_of(operator: Operator) -> Family:
    """What a kernel's measurements are pooled by."""
    return (operator.kind, operator.dtype, operator.out_dtype, operator.accumulate)


def _each(value: ValueT | Sequence[ValueT], count: int, name: str) -> Sequence[ValueT]:
    if isinstance(value, int):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name}: {len(value)} values for {count} operators")
    return value


COST_MODELS: Mapping[str, type[KernelCostModel]] = {"measured": KernelCostModel}
"""Cost models by the name that a scenario's cost_model gives."""
