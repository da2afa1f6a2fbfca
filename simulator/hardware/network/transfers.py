"""Say how long transfers take: the place where bytes between GPUs become seconds.

    transfers = Transfers(cluster=cluster, achieved=calibration.transfers)
    transfers.send(58 * MB, load=load).seconds           # through NICs
    transfers.send(58 * MB, load=None).seconds           # within an NVLink domain
    transfers.collective("all_gather", 1 * GB, form="ring", group=group, load=load)
    transfers.all_to_all([dispatch], sms=20, overlapped=True, load=load)

Bytes take their time at the share of the link's rate that transfers achieve, through NICs at
what failures and links between switches leave of it (`load`), and every hop adds its latency. The
interval of a time is that of the achieved share. SI units.

Dispatch and combine come in two forms, normal kernels (`all_to_all`) and low-latency ones
(`low_latency`). Flows that share links are simulated by `flows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.calibration_parts import TransferProfile
from hardware_profiles.estimates import Estimate
from hardware_profiles.low_latency_kernels import LowLatencyProfile, MoeOperation
from hardware_profiles.schema import CalibrationProfile, ClusterProfile
from hardware_profiles.tables import Measurement
from hardware_profiles.units import Bytes, BytesPerSecond, Seconds
from reference_model.trace import ALL_TO_ALL_KINDS, Operator
from simulator.hardware.network.all_to_all import AllToAllModel, AllToAllTime
from simulator.hardware.network.collective_times import CollectiveTimes, measured_collectives
from simulator.hardware.network.fabric_load import FabricLoad
from simulator.hardware.network.groups import Domains, Reach
from simulator.hardware.network.low_latency import LowLatencyModel
from simulator.hardware.network.tokens_sent import payload_bytes
from simulator.hardware.prediction import EXTRAPOLATED, Prediction, one_time

_WHOLE = Estimate(value=1.0, low=1.0, high=1.0, source="by definition")
LINE_RATE = TransferProfile(nic=_WHOLE, nvlink=_WHOLE)
"""All of every link: for bounds."""


@dataclass(frozen=True, slots=True)
class LinkRates:
    """What a GPU's links achieve, bytes/s one way, and their latencies."""

    nvlink: BytesPerSecond
    nic: BytesPerSecond
    nvlink_latency: Seconds
    nic_latency: Seconds


def _ring_inside(size: Bytes, group: Domains, links: LinkRates) -> Seconds:
    """A ring inside an NVLink domain, whose steps each take its latency; the last byte of a GPU
    passes all others."""
    most = group.most
    return size * (most - 1) / most / links.nvlink + (most - 1) * links.nvlink_latency


def _ring_between(size: Bytes, group: Domains, links: LinkRates) -> Seconds:
    """Rings between NVLink domains, in which each GPU's own NIC carries its share."""
    domains = group.domains
    between = size / group.fewest * (1 - 1 / domains) / links.nic
    return between + (domains - 1) * links.nic_latency


def _direct_inside(size: Bytes, group: Domains, links: LinkRates) -> Seconds:
    """Each GPU sends its share to the others of the domain, those of other domains among it."""
    return links.nvlink_latency + size * (group.most - 1) / group.most / links.nvlink


def _direct_between(size: Bytes, group: Domains, links: LinkRates) -> Seconds:
    """Each GPU exchanges its share, 1 / (n d) of the bytes, with the GPUs of its own number in the
    other of n NVLink domains of d GPUs each."""
    if group.domains == 1:
        return 0.0
    gpus = group.most * group.domains
    return links.nic_latency + size * (group.domains - 1) / gpus / links.nic


@dataclass(frozen=True, slots=True)
class CollectiveForm:
    """How an all-gather or reduce-scatter moves its bytes, inside NVLink domains and between them.

    Both take (bytes that the whole group holds once it is gathered, group, links) -> seconds.
    """

    inside: Callable[[Bytes, Domains, LinkRates], Seconds]
    between: Callable[[Bytes, Domains, LinkRates], Seconds]
    together: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
    """Of both, what the whole takes."""


Collective = Literal["all_gather", "reduce_scatter"]
FORMS: Mapping[str, CollectiveForm] = {
    # Two levels of rings, one pipelined with the other.
    "ring": CollectiveForm(_ring_inside, _ring_between, np.maximum),
    # One step after the other, an upper bound: NCCL pipelines them.
    "direct": CollectiveForm(_direct_inside, _direct_between, np.add),
}


@dataclass(frozen=True, slots=True)
class Transfers:
    """Times of transfers between GPUs of a cluster."""

    cluster: ClusterProfile
    achieved: TransferProfile
    """Shares of the links' rates."""
    measured: CollectiveTimes | None = None
    """Times of collective operations within an NVLink domain; None: links at the achieved rates."""
    normal: AllToAllModel | None = None
    """Dispatch and combine of the job's experts by normal kernels."""
    low_latency: LowLatencyModel | None = None
    """The same by low-latency kernels."""

    def with_calibration(self, calibration: CalibrationProfile) -> Transfers:
        """The same with the slow-downs of dispatch and combine that another calibration states."""
        normal = copy(self.normal)
        if normal is not None:
            normal.calibration = calibration
        return replace(self, normal=normal)

    def payload(self, size: Bytes, *, load: FabricLoad | None) -> Prediction:
        """Time of the bytes that one GPU sends or receives, without any latency.

        Args:
            load: what the fabric makes of them; None over NVLink.
        """
        return self._interval(lambda at: size / (at.nvlink if load is None else at.nic), load)

    def send(self, size: Bytes, *, load: FabricLoad | None) -> Prediction:
        """Time from one GPU to another.

        Args:
            load: what the fabric makes of it; None within an NVLink domain.
        """
        if load is None:
            if self.measured is not None and self.measured.knows("send"):
                return self.measured.predict("send", size, ranks=2)
            return self._interval(lambda at: at.nvlink_latency + size / at.nvlink, load)
        return self._interval(lambda at: at.nic_latency + size / at.nic, load)

    def collective(
        self,
        operation: Collective,
        size: Bytes,
        *,
        form: Literal["ring", "direct"],
        group: Domains,
        load: FabricLoad | None,
    ) -> Prediction:
        """Time of a collective operation.

        What happens within NVLink domains takes its measured time where there is one.

        Args:
            size: what the whole group holds once it is gathered.
            load: what the fabric makes of what leaves an NVLink domain; None where nothing does.
        """
        how = FORMS[form]
        inside = self._interval(lambda at: how.inside(size, group, at), load)
        if self.measured is not None and group.most > 1 and self.measured.knows(operation):
            inside = self.measured.predict(operation, size, ranks=group.most)
        if group.domains == 1:
            return inside
        between = self._interval(lambda at: how.between(size, group, at), load)
        return one_time(
            how.together(inside.seconds, between.seconds).item(),
            how.together(inside.low, between.low).item(),
            how.together(inside.high, between.high).item(),
            provenance=EXTRAPOLATED,
            family="transfers",
        )

    def all_to_all(
        self,
        operators: Sequence[Operator],
        *,
        sms: NDArray[np.int64],
        overlapped: bool,
        loads: Sequence[FabricLoad],
    ) -> Prediction:
        """Times of dispatch and combine by normal kernels.

        Args:
            sms: [operators], communication SMs; 0 where copy engines and NICs move the tokens.
            overlapped: whether compute runs beside them.
            loads: [operators], what the fabric makes of them.

        Raises ValueError where no group of experts was given.
        """
        return self._normal().predict(operators, sms=sms, overlapped=overlapped, loads=loads)

    def explain(
        self, operator: Operator, *, sms: int, overlapped: bool, load: FabricLoad
    ) -> AllToAllTime:
        """One dispatch or combine by normal kernels, part by part; arguments as of all_to_all."""
        return self._normal().explain(operator, sms=sms, overlapped=overlapped, load=load)

    def answered_by(self, operator: Operator) -> str:
        """Whose rows dispatch or combine by normal kernels rest on, as AllToAllModel says it."""
        return self._normal().answered_by(operator)

    @property
    def reach(self) -> Reach:
        """Where normal kernels bring the tokens of a GPU."""
        return self._normal().reach

    @property
    def sms_per_channel(self) -> int:
        """SMs of one channel of normal kernels between nodes."""
        return self._normal().calibration.all_to_all.sms_per_channel

    def token_bytes(self, operator: Operator) -> Bytes:
        """Bytes of one token that normal kernels dispatch or combine."""
        return payload_bytes(operator)

    def with_low_latency(
        self,
        profile: LowLatencyProfile,
        *,
        ranks: int,
        domain: int,
        messages: Mapping[MoeOperation, Bytes],
        load: FabricLoad,
        kernel_floor: Seconds,
    ) -> Transfers:
        """The same transfers, with low-latency kernels; arguments as of LowLatencyModel."""
        model = LowLatencyModel(
            profile=profile,
            cluster=self.cluster,
            ranks=ranks,
            domain=domain,
            messages=messages,
            load=load,
            kernel_floor=kernel_floor,
        )
        return replace(self, low_latency=model)

    def low_latency_kernel(self, part: str, copies: NDArray[np.float64]) -> Prediction:
        """Times of a send or receive kernel over so many copies of tokens.

        Args:
            part: dispatch_send, dispatch_receive, combine_send or combine_receive.

        Raises ValueError without low-latency kernels.
        """
        return self._low_latency().kernel(part, copies)

    def low_latency_wire(
        self, operation: MoeOperation, copies: NDArray[np.float64], *, beside: Estimate
    ) -> Prediction:
        """Times from the end of the send kernel until so many copies have arrived.

        Args:
            beside: time beside what else runs over the time alone.

        Raises ValueError without low-latency kernels.
        """
        return self._low_latency().wire(operation, copies, beside=beside)

    @property
    def nics_inside(self) -> bool:
        """Whether low-latency copies within a node go through NICs, as pure RDMA kernels do."""
        return self._low_latency().profile.link == "nic"

    def _normal(self) -> AllToAllModel:
        if self.normal is None:
            raise ValueError("dispatch and combine: the transfers are of no group of experts")
        return self.normal

    def _low_latency(self) -> LowLatencyModel:
        if self.low_latency is None:
            raise ValueError("low-latency kernels: the transfers have none")
        return self.low_latency

    def _interval(
        self, seconds: Callable[[LinkRates], Seconds], load: FabricLoad | None
    ) -> Prediction:
        """The time at the achieved rates of NVLink and NIC, and at both ends of them."""
        node = self.cluster.node

        def at(nvlink: float, nic: float) -> Seconds:
            own = node.nic_bandwidth_per_gpu * nic
            return seconds(
                LinkRates(
                    nvlink=node.gpu.nvlink_bandwidth * nvlink,
                    nic=own if load is None else load.rate(own),
                    nvlink_latency=node.nvlink_latency,
                    nic_latency=0.0 if load is None else load.latency,
                )
            )

        nvlink, nic = self.achieved.nvlink, self.achieved.nic
        return one_time(
            at(nvlink.value, nic.value),
            at(nvlink.high, nic.high),
            at(nvlink.low, nic.low),
            provenance=EXTRAPOLATED,
            family="transfers",
        )


def fitted_transfers(
    measurements: Iterable[Measurement],
    *,
    cluster: ClusterProfile,
    calibration: CalibrationProfile,
    ranks: int,
    reach: Reach | None = None,
) -> Transfers:
    """Transfers of a job whose dispatch and combine are fitted to a calibration's measurements.

    Args:
        ranks: GPUs of the expert-parallel group.
        reach: where the job's tokens go; else as in DeepEP's tests.

    Raises ValueError for fewer ranks than one.
    """
    normal = AllToAllModel(cluster=cluster, calibration=calibration, ranks=ranks, reach=reach).fit(
        measurements
    )
    return Transfers(
        cluster=cluster,
        achieved=calibration.transfers,
        measured=measured_collectives(calibration.collectives, gpu=cluster.node.gpu),
        normal=normal,
    )


def exchange_sms(kind: str, *, kept: int, free: int) -> int:
    """SMs of a kernel of an all-to-all: those that it keeps from compute. Where it keeps none,
    copy engines and NICs move the tokens, and counting them runs on the free SMs."""
    return kept if kept or kind in ALL_TO_ALL_KINDS else free


class Link:
    """A path that moves one thing after the other, each at the full rate."""

    __slots__ = ("_free_s", "_latency_s", "_rate")

    def __init__(self, rate: BytesPerSecond, latency_s: Seconds) -> None:
        self._rate = rate
        self._latency_s = latency_s
        self._free_s = 0.0

    def send(self, now_s: Seconds, size_bytes: float) -> Seconds:
        """Queue a transfer and return when it has arrived."""
        start = self._free_s if self._free_s > now_s else now_s
        self._free_s = start + size_bytes / self._rate
        return self._free_s + self._latency_s

    def reset(self, now_s: Seconds) -> None:
        """Drop what is queued."""
        self._free_s = now_s


def host_link(cluster: ClusterProfile, *, gpus: float) -> Link:
    """The PCIe lanes between so many GPUs and their hosts, one way; without latency."""
    return Link(cluster.node.gpu.pcie_bandwidth * gpus, 0.0)


def network_link(
    cluster: ClusterProfile, *, gpus: float, rate: BytesPerSecond | None, latency_s: Seconds
) -> Link:
    """The NICs of so many GPUs, one way, at line rate.

    Args:
        rate: of the link; None for the slower of NICs and PCIe.
    """
    node = cluster.node
    slower = min(node.nic_bandwidth_per_gpu * gpus, node.gpu.pcie_bandwidth * gpus)
    return Link(rate or slower, latency_s)
