"""Say how long transfers take: the place where bytes between GPUs become seconds.

    transfers = Transfers(cluster=cluster, achieved=calibration.transfers)
    transfers.send(58 * MB, load=load).seconds           # through NICs
    transfers.send(58 * MB, load=None).seconds           # within an NVLink domain

Bytes take their time at the share of the link's rate that transfers achieve, through NICs at
what failures and links between switches leave of it (`load`), and every hop adds its latency. The
interval of a time is that of the achieved share. SI units.

Normal all-to-alls are those of `all_to_all`; flows that share links are those of `flows`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hardware_profiles.schema import ClusterProfile, Estimate, TransferProfile
from hardware_profiles.units import Bytes, BytesPerSecond, Seconds
from simulator.hardware.network.clusters import nvlink_domains
from simulator.hardware.network.fabric_load import FabricLoad
from simulator.hardware.prediction import EXTRAPOLATED, Prediction, one_time

_WHOLE = Estimate(value=1.0, low=1.0, high=1.0, source="by definition")
LINE_RATE = TransferProfile(nic=_WHOLE, nvlink=_WHOLE)
"""All of every link: for bounds."""


@dataclass(frozen=True, slots=True)
class Domains:
    """How a group of GPUs lies in NVLink domains."""

    domains: int
    fewest: int
    most: int
    """GPUs of the group in one of the domains."""


@dataclass(frozen=True, slots=True)
class Transfers:
    """Times of bulk transfers between GPUs of a cluster."""

    cluster: ClusterProfile
    achieved: TransferProfile
    """Shares of the links' rates."""

    def payload(self, size: Bytes, *, load: FabricLoad | None) -> Prediction:
        """Time of the bytes that one GPU sends or receives, without any latency.

        Args:
            load: what the fabric makes of them; None over NVLink.
        """
        return self._interval(
            lambda nvlink, nic: size / (nvlink if load is None else load.rate(nic))
        )

    def send(self, size: Bytes, *, load: FabricLoad | None) -> Prediction:
        """Time from one GPU to another.

        Args:
            load: what the fabric makes of it; None within an NVLink domain.
        """
        latency = self.cluster.node.nvlink_latency if load is None else load.latency
        return self._interval(
            lambda nvlink, nic: latency + size / (nvlink if load is None else load.rate(nic))
        )

    def ring(self, size: Bytes, group: Domains, *, load: FabricLoad) -> Prediction:
        """Time of a reduce-scatter or all-gather in two levels, one pipelined with the other:
        rings inside the NVLink domains, and between them rings in which each GPU's own NIC carries
        its share.

        A step of a ring takes its latency; the last byte of a GPU passes all others.

        Args:
            size: what the whole group holds once it is gathered.
        """
        most, domains = group.most, group.domains

        def seconds(nvlink: BytesPerSecond, nic: BytesPerSecond) -> Seconds:
            inside = size * (most - 1) / most / nvlink
            inside += (most - 1) * self.cluster.node.nvlink_latency
            between = size / group.fewest * (1 - 1 / domains) / load.rate(nic)
            between += (domains - 1) * load.latency
            return max(inside, between)

        return self._interval(seconds)

    def exchange(self, size: Bytes, ranks: int, *, load: FabricLoad | None) -> Prediction:
        """Time of an all-gather or reduce-scatter in which each GPU sends its share to the others.

        Where the group spans n NVLink domains of d GPUs each, it has two steps, one after the other
        (an upper bound: NCCL pipelines them). Over NICs each GPU exchanges its share, 1 / (n d) of
        the bytes, with the GPUs of its own number in the other domains; over NVLink it exchanges
        the n shares that it then has within the domain.

        Args:
            size: what the whole group holds once it is gathered.
            load: what the fabric makes of the step over NICs; None within an NVLink domain.
        """
        inside = ranks if load is None else nvlink_domains(self.cluster, group=ranks).gpus_each
        domains = ranks // inside

        def seconds(nvlink: BytesPerSecond, nic: BytesPerSecond) -> Seconds:
            time = self.cluster.node.nvlink_latency
            time += size * (inside - 1) / inside / nvlink
            if load is not None:
                time += load.latency + size * (domains - 1) / ranks / load.rate(nic)
            return time

        return self._interval(seconds)

    def _interval(self, seconds: Callable[[BytesPerSecond, BytesPerSecond], Seconds]) -> Prediction:
        """The time at the achieved rates of NVLink and NIC, and at both ends of them."""
        node, achieved = self.cluster.node, self.achieved
        nvlink, nic = node.gpu.nvlink_bandwidth, node.nic_bandwidth_per_gpu
        return one_time(
            seconds(nvlink * achieved.nvlink.value, nic * achieved.nic.value),
            seconds(nvlink * achieved.nvlink.high, nic * achieved.nic.high),
            seconds(nvlink * achieved.nvlink.low, nic * achieved.nic.low),
            provenance=EXTRAPOLATED,
            family="transfers",
        )


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
