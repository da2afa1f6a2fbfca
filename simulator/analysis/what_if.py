"""Restate recorded kernel times for another machine, and say what each one rests on.

A kernel that a mapping names as an operator takes its recorded time times the ratio of two
predictions of that operator, target over source machine. Both come from one kind of model, so that
what is special about the recording (its kernels' version, what ran beside them) stays in the
recorded time:

    cost model      the recorded GPU's calibration, restated for the target by the ceilings of both
    roofline        otherwise: waves of tiles at the tensor-core peak, bytes over HBM
    all-to-all      dispatch and combine: links and communication SMs, without the count exchange

Everything else keeps its recorded time and is counted: kernels no operator stands for, and kernels
that wait for other ranks, about which one rank's profile says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.schema import (
    ClusterProfile,
    GpuProfile,
    known_calibrations,
    load_calibration,
)
from reference_model.trace import ALL_TO_ALL_KINDS, Operator
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernels.families import calibration_measurements
from simulator.hardware.kernels.roofline import DEEPGEMM_TILES, ideal_seconds
from simulator.hardware.network.fabric_load import NO_LIMIT
from simulator.hardware.network.transfers import fitted_transfers
from simulator.workload.profile.kernel_mapping import MappedKernel
from simulator.workload.profile.kineto import Kernel
from simulator.workload.profile.replay_graph import Role

Array = NDArray[np.float64]

RECORDED = "recorded"
COST_MODEL = "cost model"
ROOFLINE = "roofline"
ALL_TO_ALL = "all-to-all model"
KEPT_UNMAPPED = "kept: unmapped"
KEPT_RANK_WAIT = "kept: waits for ranks"


@dataclass(frozen=True, slots=True)
class Machine:
    """What kernels run on, as far as their durations depend on it."""

    gpu: GpuProfile
    cluster: ClusterProfile | None
    """Its node's GPU is `gpu`; None where the network is not known."""
    communication_sms: int
    """SMs that dispatch and combine take from the others; 0 for none."""

    @property
    def compute_sms(self) -> int:
        return self.gpu.sms - self.communication_sms


class PredictsOperators(Protocol):
    """Seconds of operators on one machine."""

    def __call__(self, operators: Sequence[Operator]) -> Array: ...


@dataclass(frozen=True, slots=True)
class Durations:
    """[kernels] of one trace."""

    seconds: Array
    basis: tuple[str, ...]


def recorded_durations(kernels: Sequence[Kernel]) -> Durations:
    return Durations(np.array([k.seconds for k in kernels]), (RECORDED,) * len(kernels))


def what_if_durations(
    kernels: Sequence[Kernel],
    mapped: Sequence[MappedKernel],
    *,
    source: Machine,
    target: Machine,
    expert_parallel_ranks: int | None,
) -> Durations:
    """Durations on the target machine.

    Raises ValueError where the target lacks what an operator needs, such as an FP8 peak.
    """
    recorded = recorded_durations(kernels)
    if source == target:
        return recorded
    seconds = recorded.seconds.copy()
    basis = [KEPT_RANK_WAIT if place.role is Role.RANK_WAIT else KEPT_UNMAPPED for place in mapped]
    compute = [
        i for i, m in enumerate(mapped) if m.operator and m.operator.kind not in ALL_TO_ALL_KINDS
    ]
    exchange = [
        i for i, m in enumerate(mapped) if m.operator and m.operator.kind in ALL_TO_ALL_KINDS
    ]
    of_compute = _compute_predictors(source, target, expert_parallel_ranks)
    of_exchange = _exchange_predictors(source, target, expert_parallel_ranks)
    for chosen, predictors in ((compute, of_compute), (exchange, of_exchange)):
        if not chosen or predictors is None:
            continue
        name, before, after = predictors
        operators = [operator for i in chosen if (operator := mapped[i].operator)]
        seconds[chosen] *= after(operators) / before(operators)
        for index in chosen:
            basis[index] = name
    return Durations(seconds, tuple(basis))


Predictors = tuple[str, PredictsOperators, PredictsOperators]
"""(basis, on the source machine, on the target machine)"""


def _compute_predictors(source: Machine, target: Machine, ranks: int | None) -> Predictors:
    name = source.gpu.name
    known = name in known_calibrations() and load_calibration(name).gpu == name
    if not known or source.cluster is None or target.cluster is None:
        return ROOFLINE, _roofline(source), _roofline(target)
    return COST_MODEL, _cost_model(source, name, ranks), _cost_model(target, name, ranks)


def _cost_model(machine: Machine, name: str, ranks: int | None) -> PredictsOperators:
    """Predictions from the recorded GPU's measurements, for whichever machine.

    Both ends of a ratio rest on one calibration: another GPU's own table holds other versions of
    the kernels, and their difference is none of the machines'.
    """
    assert machine.cluster is not None
    calibration = load_calibration(name)
    model = KernelCostModel(
        cluster=machine.cluster, calibration=calibration, expert_parallel_ranks=ranks or 1
    ).fit(calibration_measurements(calibration))
    beside = machine.communication_sms > 0

    def predict(operators: Sequence[Operator]) -> Array:
        return model.predict(operators, sms=machine.compute_sms, overlapped=beside).seconds

    return predict


def _roofline(machine: Machine) -> PredictsOperators:
    def predict(operators: Sequence[Operator]) -> Array:
        result = np.empty(len(operators))
        by_kind: dict[str, list[int]] = {}
        for index, operator in enumerate(operators):
            by_kind.setdefault(operator.kind, []).append(index)
        for kind, chosen in by_kind.items():
            sms = np.full(len(chosen), float(machine.compute_sms))
            result[chosen] = ideal_seconds(
                kind, [operators[i] for i in chosen], sms, machine.gpu, DEEPGEMM_TILES
            )
        return result

    return predict


def _exchange_predictors(source: Machine, target: Machine, ranks: int | None) -> Predictors | None:
    """Dispatch and combine on both machines; None where network or group are not known."""
    if source.cluster is None or target.cluster is None or ranks is None:
        return None
    if source.gpu.name not in known_calibrations():
        return None
    return ALL_TO_ALL, _exchange(source, source, ranks), _exchange(target, source, ranks)


def _exchange(machine: Machine, source: Machine, ranks: int) -> PredictsOperators:
    """Payload times with the shares of link rates that were measured on the source GPU."""
    assert machine.cluster is not None
    calibration = load_calibration(source.gpu.name)
    transfers = fitted_transfers(
        calibration_measurements(calibration),
        cluster=machine.cluster,
        calibration=calibration,
        ranks=ranks,
    )

    def predict(operators: Sequence[Operator]) -> Array:
        times = [
            transfers.explain(
                operator, sms=machine.communication_sms, overlapped=True, load=NO_LIMIT
            )
            for operator in operators
        ]
        return np.array([max(time.nic_s, time.nvlink_s) * time.slowdown for time in times])

    return predict


def blocks_on(
    kernels: Sequence[Kernel],
    mapped: Sequence[MappedKernel],
    *,
    source: Machine,
    target: Machine,
) -> list[int]:
    """Thread blocks of each kernel: persistent kernels launch as many as they have SMs."""

    def blocks(kernel: Kernel, place: MappedKernel) -> int:
        if place.role is Role.COMPUTE:
            persistent = kernel.blocks == source.compute_sms
            return target.compute_sms if persistent else kernel.blocks
        persistent = kernel.blocks == source.communication_sms
        return target.communication_sms if persistent else kernel.blocks

    return [blocks(k, m) for k, m in zip(kernels, mapped, strict=True)]
