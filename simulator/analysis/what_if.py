"""Restate recorded kernel times for another machine, and say what each one rests on.

    ceilings        a launch of an operator: what its bytes and FLOPs take at the ceilings of both
                    GPUs, as measured rows are restated (hardware/kernels/gpu_ratio.py)
    all-to-all      dispatch and combine: links and communication SMs, without the count exchange
    bound           a kernel of unknown work: no more than the recorded GPU can have moved and
                    computed in its time, at the other's rates
    kept            transfers between GPUs that no model covers, copies from and to the host, and
                    kernels that wait for other ranks, about which one rank's profile says nothing

What is special about the recording (its kernels' version, what ran beside them) stays in the
recorded time: every kernel takes that time a ratio.
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
    load_gpu,
)
from reference_model.trace import ALL_TO_ALL_KINDS, KINDS, Operator
from simulator.hardware.kernels.families import Family, calibration_measurements, family_of
from simulator.hardware.kernels.gpu_ratio import (
    Achieved,
    achieved_shares,
    bound_seconds,
    log_restatement,
)
from simulator.hardware.kernels.roofline import (
    DEEPGEMM_TILES,
    batch_of,
    is_tensor,
    needed_bytes,
)
from simulator.hardware.network.fabric_load import NO_LIMIT
from simulator.hardware.network.transfers import fitted_transfers
from simulator.workload.profile.mapped_kernels import MappedKernel
from simulator.workload.profile.recording import Kernel
from simulator.workload.profile.replay_graph import Role

Array = NDArray[np.float64]

RECORDED = "recorded"
CEILINGS = "ceilings of both GPUs"
ALL_TO_ALL = "all-to-all model"
BOUND = "bound: unmapped"
KEPT_TRANSFER = "kept: transfer"
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


def what_if_durations(
    kernels: Sequence[Kernel],
    mapped: Sequence[MappedKernel],
    *,
    source: Machine,
    target: Machine,
    expert_parallel_ranks: int | None,
) -> tuple[Array, list[str]]:
    """Durations on the target machine, and what each rests on; both [kernels].

    Raises ValueError where the target lacks what an operator needs, such as an FP8 peak.
    """
    seconds = np.array([kernel.seconds for kernel in kernels])
    if source == target:
        return seconds, [RECORDED] * len(kernels)
    basis = [_basis_without_operator(k, m) for k, m in zip(kernels, mapped, strict=True)]
    by_launch: dict[tuple[tuple[str, int, int], Operator], list[int]] = {}
    exchange: list[int] = []
    for index, place in enumerate(mapped):
        if place.operator is None:
            continue
        if place.operator.kind in ALL_TO_ALL_KINDS:
            exchange.append(index)
        else:
            by_launch.setdefault((place.launch, place.operator), []).append(index)
    operators = [operator for _, operator in by_launch]
    taken = np.array([seconds[members].sum() for members in by_launch.values()])
    for members, ratio in zip(
        by_launch.values(), _compute_ratios(operators, taken, source, target), strict=True
    ):
        for index in members:
            seconds[index] *= ratio
            basis[index] = CEILINGS
    predictors = _exchange_predictors(source, target, expert_parallel_ranks)
    if exchange and predictors is not None:
        before, after = predictors
        dispatched = [operator for i in exchange if (operator := mapped[i].operator)]
        seconds[exchange] *= after(dispatched) / before(dispatched)
        for index in exchange:
            basis[index] = ALL_TO_ALL
    unknown = [index for index, name in enumerate(basis) if name == BOUND]
    seconds[unknown] *= largest_ratio(source, target)
    return seconds, basis


def is_unmapped(kernel: Kernel, place: MappedKernel) -> bool:
    """Whether a kernel computes and nothing is known of its work: copies that cross PCIe, transfers
    and waits are known by their kind."""
    crosses_pcie = kernel.category == "gpu_memcpy" and "DtoD" not in kernel.name
    return place.operator is None and place.role is Role.COMPUTE and not crosses_pcie


def _basis_without_operator(kernel: Kernel, place: MappedKernel) -> str:
    if place.role is Role.RANK_WAIT:
        return KEPT_RANK_WAIT
    return BOUND if is_unmapped(kernel, place) else KEPT_TRANSFER


def largest_ratio(source: Machine, target: Machine) -> float:
    """The most that a compute kernel of unknown work can take on the target, over its time on the
    source: there it moved and computed no more than the ceilings allow."""
    one, other = source.gpu, target.gpu
    peaks = [
        one.peak(dtype) / other.peak(dtype)
        for dtype in one.peak_compute
        if dtype in other.peak_compute
    ]
    sms = source.compute_sms / target.compute_sms
    per_sm = one.sms / other.sms
    return max(
        one.hbm_bandwidth / other.hbm_bandwidth,
        sms * one.sm_clock / other.sm_clock,
        *(peak / per_sm * sms for peak in peaks),
    )


def _compute_ratios(
    operators: Sequence[Operator], seconds: Array, source: Machine, target: Machine
) -> Array:
    """[operators] the time of a launch on the target over its recorded one.

    Args:
        seconds: [operators] recorded, all kernels of the launch together.
    """
    achieved = _achieved(source.gpu)
    families: dict[Family, list[int]] = {}
    for number, operator in enumerate(operators):
        # Products of no rows have no bound.
        if operator.kind == "memory_bound" or all(size for _, size in operator.sizes):
            families.setdefault(family_of(operator), []).append(number)
    ratios = np.ones(len(operators))
    for numbers in families.values():
        batch = batch_of([operators[number] for number in numbers])
        times = seconds[numbers]
        if not is_tensor(batch.kind):
            # What fits into the L2 cache comes from there: at no ceiling of the memory.
            times = np.where(needed_bytes(batch) <= source.gpu.l2_capacity, np.inf, times)
        on = np.full(len(numbers), float(source.compute_sms))
        log_ratio = log_restatement(
            batch,
            np.maximum(times, np.finfo(np.float64).tiny),
            before=bound_seconds(batch, on, source.gpu, achieved, DEEPGEMM_TILES),
            to=np.full(len(numbers), float(target.compute_sms)),
            source=source.gpu,
            target=target.gpu,
            achieved=achieved,
            tiles=DEEPGEMM_TILES,
        )
        ratios[numbers] = np.exp(log_ratio)
    return ratios


def _achieved(gpu: GpuProfile) -> Achieved:
    """Shares of the ceilings that measured kernels reach: on the GPU, or on those that its kernel
    times are restated from; 1 without measurements."""
    if gpu.name not in known_calibrations():
        return Achieved(None, {})
    for name in (gpu.name, *load_calibration(gpu.name).restated_from):
        rows = [
            row
            for row in calibration_measurements(load_calibration(name))
            if row.kind in KINDS and row.kind not in ALL_TO_ALL_KINDS
        ]
        if rows:
            return achieved_shares(rows, load_gpu(load_calibration(name).gpu))
    return Achieved(None, {})


Predictors = tuple[PredictsOperators, PredictsOperators]
"""On the source machine, on the target machine."""


def _exchange_predictors(source: Machine, target: Machine, ranks: int | None) -> Predictors | None:
    """Dispatch and combine on both machines; None where network or group are not known."""
    if source.cluster is None or target.cluster is None or ranks is None:
        return None
    if source.gpu.name not in known_calibrations():
        return None
    return _exchange(source, source, ranks), _exchange(target, source, ranks)


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
        hops = ((time.nic_s, time.nvlink_s, time.copy_s) for time in times)
        return np.array([max(hop) * time.slowdown for hop, time in zip(hops, times, strict=True)])

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
