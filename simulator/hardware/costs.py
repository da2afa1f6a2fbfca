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
into another's (models.py). A family without rows borrows the kind's other types, then what a
kernel of the same product makes of its time at peak (related.py), then what its class (tensor-core
or memory-bound) achieves in general (calibrated.py). Where the calibration names
others that complete it or that it is restated from, a family without rows and products far from the
few rows of theirs come from those, by the ceilings of both GPUs (completed.py, gpu_ratio.py).
Whatever the answer, no kernel moves its bytes faster than the fastest measured one, unless its own
row says so, and none takes longer than one of more rows (work_floor.py). On more SMs than the
measured GPU has, only what its work is bound by gets shorter.

Provenance. measured: a row of the preferred set with these sizes, SMs and condition. interpolated:
between rows of the same shape, or a row at another condition or an SM count between measured ones.
extrapolated: another shape, beyond the rows, another SM count or another GPU. modelled: no row of
the kind, or none of its products of this operand type, which then take their own roofline and what
products of another type reach of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.schema import CalibrationProfile, ClusterProfile
from hardware_profiles.tables import Measurement
from reference_model.trace import ALL_TO_ALL_KINDS, KINDS, Operator
from simulator.hardware.common_errors import common_ends
from simulator.hardware.kernels.calibrated import NotCalibrated
from simulator.hardware.kernels.completed import PREDICTED_AT_ONCE, completed_kernels
from simulator.hardware.kernels.families import Family, family_of
from simulator.hardware.kernels.measured_rows import fingerprints
from simulator.hardware.kernels.roofline import batch_of_sizes, clocked_shares, is_tensor
from simulator.hardware.network.fabric_load import FabricLoad
from simulator.hardware.network.groups import Domains, Reach
from simulator.hardware.network.transfers import Transfers, fitted_transfers
from simulator.hardware.prediction import Prediction

Array = NDArray[np.float64]
ValueT = TypeVar("ValueT", int, bool, FabricLoad | None)


class KernelCostModel:
    """Kernel times from measurements, by waves and bytes where no row answers directly."""

    def __init__(
        self,
        *,
        cluster: ClusterProfile,
        calibration: CalibrationProfile,
        expert_parallel_ranks: int,
        sharing: Mapping[str, Domains] | None = None,
        reach: Reach | None = None,
        sustained_job: bool = False,
    ) -> None:
        """Store the inputs.

        Args:
            cluster: GPU, NICs and node that the kernels run on.
            calibration: kernel sets to use, and the inputs that no table holds.
            expert_parallel_ranks: GPUs that share a layer's experts; dispatch and combine cross
                the nodes that hold them.
            sharing: {axis: how the GPUs lie that share layers or sequences}; none where none do.
            reach: where the job's tokens go; else as in DeepEP's tests.
            sustained_job: whether the job draws the power limit for its whole length.
        """
        self.cluster = cluster
        self.calibration = calibration
        self.expert_parallel_ranks = expert_parallel_ranks
        self.sharing = sharing or {}
        self.reach = reach
        self.sustained_job = sustained_job

    def fit(self, measurements: Iterable[Measurement]) -> Self:
        """Learn from a measurement table; rows of kernel sets not in the calibration are left out,
        and so are bulk transfers, which are no kernels of a layer.

        Sets `kernels_`, what it says of compute kernels, `common_`, what errs in all of them at
        once, and `transfers_`, those of the job.
        Raises as `CalibratedKernels` does.
        """
        self.kernels_ = completed_kernels(self.calibration, self.cluster.node.gpu, measurements)
        self.common_ = common_ends(
            self.calibration,
            self.cluster.node.gpu,
            self.kernels_.own.rows,
            sustained_job=self.sustained_job,
        )
        self.transfers_ = self._fitted_transfers()
        return self

    def of_group(
        self, ranks: int, *, sharing: Mapping[str, Domains] | None, reach: Reach | None
    ) -> Self:
        """These kernel times with the transfers of another layout; compute kernels are shared, not
        learned again.

        Args:
            ranks: GPUs that share a layer's experts there.
            sharing: as of the constructor, and so is `reach`.

        Raises ValueError for fewer ranks than one.
        """
        other = copy(self)
        other.expert_parallel_ranks, other.sharing, other.reach = ranks, sharing or {}, reach
        other.transfers_ = other._fitted_transfers()
        return other

    def _fitted_transfers(self) -> Transfers:
        return fitted_transfers(
            self.kernels_.own.rows,
            cluster=self.cluster,
            calibration=self.calibration,
            ranks=self.expert_parallel_ranks,
            reach=self.reach,
        )

    def without_all_to_all_slowdown(self) -> Self:
        """These kernel times with dispatch and combine as fast beside compute as alone."""
        return self._with_transfers_of(self.calibration.without_all_to_all_slowdown())

    def without_waiting(self) -> Self:
        """These kernel times with dispatch and combine as of ranks that never wait."""
        return self._with_transfers_of(self.calibration.without_waiting())

    def clocked_shares(
        self, operators: Sequence[Operator], seconds: Array, *, sms: Sequence[int]
    ) -> Array:
        """Share of each kernel's time that goes with the SM clock, by the roofline; [operators]."""
        return clocked_shares(
            operators,
            seconds,
            np.array(sms, dtype=np.float64),
            self.cluster.node.gpu,
            self.calibration.tiles,
            memory_share=self.kernels_.own.memory_share,
        )

    def _with_transfers_of(self, calibration: CalibrationProfile) -> Self:
        """The same with other slow-downs of transfers; what was learned of compute kernels and of
        links is shared, not learned again."""
        other = copy(self)
        other.calibration = calibration
        other.transfers_ = self.transfers_.with_calibration(calibration)
        return other

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
        if not hasattr(self, "kernels_"):
            raise NotCalibrated("KernelCostModel: predict needs fit first")
        # Name and phase do not change a kernel's time, so equal kernels share one place. One object
        # given many times is known by its identity, without comparing its sizes.
        seen: dict[tuple[int, int, bool, int], int] = {}
        index: dict[tuple[object, ...], int] = {}
        kernels: dict[tuple[bool, Family], list[tuple[int, Operator, int]]] = {}
        exchanges: dict[tuple[bool, Family], list[tuple[int, Operator, int]]] = {}
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
                group = exchanges if exchange else kernels
                group.setdefault((bool(beside), family), []).append((known, op, op_sms))
            places[place] = seen[identity] = known
        answers = np.empty((3, len(index)))
        provenance = np.empty(len(index), dtype=np.intp)
        common = np.zeros((2, len(index)))
        for (beside, _), members in exchanges.items():
            chosen = [number for number, _, _ in members]
            sent = self.transfers_.all_to_all(
                [op for _, op, _ in members],
                sms=np.array([count for _, _, count in members], dtype=np.int64),
                overlapped=beside,
                loads=[loads[number] for number in chosen],
            )
            answers[:, chosen] = sent.seconds, sent.low, sent.high
            provenance[chosen] = sent.provenance
        every = [
            (number, time, is_tensor(family[0]))
            for (beside, family), members in kernels.items()
            for (number, _, _), time in zip(
                members,
                self.kernels_.times(family, [member[1:] for member in members], beside),
                strict=True,
            )
        ]
        if every:
            numbers, times, tensor = zip(*every, strict=True)
            chosen = list(numbers)
            *ends, codes, moved = np.array(times).T
            answers[:, chosen] = ends
            provenance[chosen] = codes
            common[:, chosen] = self.common_.of(
                moved, ends[0], self.cluster.node.gpu, tensor=np.array(tensor)
            )
        seconds, low, high = answers[:, places]
        return Prediction(
            seconds,
            low,
            high,
            provenance[places],
            tuple(families[place] for place in places.tolist()),
            common[:, places],
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
        if not hasattr(self, "kernels_"):
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
            self.kernels_.of_batch(
                family,
                batch_of_sizes(like, columns[start : start + PREDICTED_AT_ONCE]),
                np.full(len(columns[start : start + PREDICTED_AT_ONCE]), float(sms)),
                overlapped,
            )
            for start in range(0, len(columns), PREDICTED_AT_ONCE)
        ]
        if not parts:
            nothing, common = np.empty(0), np.empty((2, 0))
            return Prediction(nothing, nothing, nothing, np.empty(0, dtype=np.intp), (), common)
        seconds, low, high = (
            np.concatenate([part[end] for part in parts])[places] for end in range(3)
        )
        provenance = np.concatenate([part[3] for part in parts])[places]
        of_kind = (family,) * len(places)
        moved = batch_of_sizes(like, columns[places]).moved_bytes
        tensor = np.full(len(places), is_tensor(kind))
        common = self.common_.of(moved, seconds, self.cluster.node.gpu, tensor=tensor)
        return Prediction(seconds, low, high, provenance, of_kind, common)

    def keep_times(self) -> None:
        """Keep the kernel times that were asked for, for the user's next process."""
        self.kernels_.keep_times()

    def answered_by(self, operator: Operator) -> str:
        """Name of the calibration whose rows a kernel's time rests on; of dispatch and combine by
        normal kernels, as `Transfers.answered_by`."""
        if operator.kind in ALL_TO_ALL_KINDS:
            return self.transfers_.answered_by(operator)
        return self.kernels_.answered_by(operator)


def _each(value: ValueT | Sequence[ValueT], count: int, name: str) -> Sequence[ValueT]:
    if value is None or isinstance(value, int | FabricLoad):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name}: {len(value)} values for {count} operators")
    return value


COST_MODELS: Mapping[str, type[KernelCostModel]] = {"measured": KernelCostModel}
"""Cost models by the name that a scenario's cost_model gives."""
