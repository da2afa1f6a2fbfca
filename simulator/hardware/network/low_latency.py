"""Say how long low-latency dispatch and combine take: their kernels, and the wire between them.

A send kernel casts tokens and posts their copies, the copies cross their links, and a receive
kernel packs or sums what arrived. What published kernels take is known as a whole and for a few
group sizes (hardware_profiles/low_latency_kernels.py); the wire is what the two kernels leave of
it. SI units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.estimates import Estimate
from hardware_profiles.low_latency_kernels import (
    End,
    LowLatencyProfile,
    MoeOperation,
    kernel_time,
    wire_time,
)
from hardware_profiles.schema import ClusterProfile
from hardware_profiles.units import Bytes, Seconds
from simulator.hardware.network.fabric_load import FabricLoad
from simulator.hardware.prediction import EXTRAPOLATED, INTERPOLATED, MEASURED, Prediction

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LowLatencyModel:
    """Times of low-latency kernels and wires in one group of GPUs."""

    profile: LowLatencyProfile
    cluster: ClusterProfile
    ranks: int
    """GPUs of the group."""
    domain: int
    """Those of them in the NVLink domain that has the fewest."""
    messages: Mapping[MoeOperation, Bytes]
    """Bytes of one copy of one token."""
    load: FabricLoad
    """What the fabric makes of copies through NICs."""
    kernel_floor: Seconds
    """Of a kernel that does next to nothing."""

    def kernel(self, part: str, copies: Array) -> Prediction:
        """Times of a send or receive kernel over so many copies: dispatch_send, dispatch_receive,
        combine_send or combine_receive."""
        value, low, high = (self._kernel(part, copies, end) for end in get_args(End))
        provenance = np.full(len(copies), EXTRAPOLATED, dtype=np.intp)
        return Prediction(
            value, low, high, provenance, (part,) * len(copies), np.zeros(len(copies))
        )

    def wire(self, operation: MoeOperation, copies: Array, *, beside: Estimate) -> Prediction:
        """Times until so many copies have crossed their links, beside what else runs.

        The interval holds the slow-down `beside` it, the intercept's, and what the achieved share
        of the line rate differs by among the measured group sizes.
        """
        profile = self.profile
        alone, *ends = (self._wire(operation, copies, end) for end in get_args(End))
        fractions = [profile.fraction(operation, row.ranks) for row in profile.rows]
        here = profile.fraction(operation, self.ranks)
        low = np.minimum.reduce([alone, *ends]) * beside.low * min(1.0, here / max(fractions))
        high = np.maximum.reduce([alone, *ends]) * beside.high * max(1.0, here / min(fractions))
        node = self.cluster.node
        over_nvlink = profile.link == "nvlink"
        link = node.gpu.nvlink_bandwidth if over_nvlink else node.nic_bandwidth_per_gpu
        same_links = link == profile.link_bandwidth and profile.domain in (None, self.domain)
        known = same_links and profile.covers(self.ranks)
        as_measured = profile.is_measured(self.ranks) and beside.high == 1.0
        exact = (copies == profile.tokens * profile.top_k) & as_measured
        best = np.where(exact, MEASURED, INTERPOLATED)
        return Prediction(
            alone * beside.value,
            low,
            high,
            np.where(known, best, EXTRAPOLATED).astype(np.intp),
            (f"{operation} wire",) * len(copies),
            np.zeros(len(copies)),
        )

    def _kernel(self, part: str, copies: Array, end: End) -> Array:
        """Seconds of a send or receive kernel, by one figure of its estimate.

        Within an NVLink domain the send kernel stores the copies itself, at the link's rate, and
        takes what of the published kernel's time is neither the receive kernel nor the network's
        latency: few copies leave no wait for a wire that many would not. Of a mixed profile it also
        posts those that leave the domain, and the slower of both decides.
        """
        profile = self.profile
        seconds = self._handling(part, copies, end)
        kind, kernel = part.split("_")
        if kernel != "send":
            return seconds
        if profile.within is not None:
            near = self._within(profile.within)._handling(part, copies * self._near, end)
            return np.maximum(seconds, near)
        if profile.link != "nvlink":
            return seconds
        operation: MoeOperation = "dispatch" if kind == "dispatch" else "combine"
        published = self._moved(operation, copies, end)
        published = published + profile.intercept(operation, self.ranks, end) - profile.latency
        received = self._handling(f"{kind}_receive", copies, end)
        return np.maximum(seconds, published - received)

    def _wire(self, operation: MoeOperation, copies: Array, end: End) -> Array:
        """What is left of the published kernel's time when its send and receive parts are taken
        out, at least the network's latency; seconds for each number of copies, by one figure of
        the intercept."""
        profile = self.profile
        own = sum(
            self._kernel(f"{operation}_{part}", copies, "value") for part in ("send", "receive")
        )
        latency = self.cluster.node.nvlink_latency
        if profile.link != "nvlink":
            latency = max(self.cluster.fabric.cross_leaf_latency, self.load.latency)
        # The published kernel met the latency of its own network.
        least = profile.intercept(operation, self.ranks, end) + latency - profile.latency
        moved = self._moved(operation, copies, end)
        alone: Array = np.maximum(latency, moved + least - own)
        return alone

    @property
    def _near(self) -> float:
        """Share of evenly spread copies that stay within the NVLink domain of their GPU."""
        return self.domain / self.ranks

    def _within(self, profile: LowLatencyProfile) -> LowLatencyModel:
        """The copies of a mixed profile that stay within an NVLink domain."""
        return replace(self, profile=profile)

    def _handling(self, part: str, copies: Array, end: End) -> Array:
        """Seconds that a send or receive kernel works on `copies` copies."""
        profile, handled = self.profile, copies
        if profile.link == "nvlink" and part.endswith("_send"):
            rate = self.cluster.node.gpu.nvlink_bandwidth
            handled = copies * (profile.link_bandwidth / rate)
        published = getattr(getattr(profile, part), end)
        return kernel_time(published, profile, copies=handled, floor=self.kernel_floor)

    def _moved(self, operation: MoeOperation, copies: Array, end: End) -> Array:
        """Seconds until `copies` copies have crossed their links, intercept excluded.

        The published share of the line rate holds for NICs; links between switches, or what
        failures left of the NICs, take longer where they are slower. Copies within an NVLink domain
        travel at the same time as those beyond it."""
        profile, node = self.profile, self.cluster.node
        over_nvlink = profile.link == "nvlink"
        seconds = wire_time(
            profile,
            operation,
            copies=copies * profile.crossing(self.ranks, self.domain),
            message=self.messages[operation],
            ranks=self.ranks,
            link_bandwidth=node.gpu.nvlink_bandwidth if over_nvlink else node.nic_bandwidth_per_gpu,
            end=end,
        )
        if over_nvlink:
            return seconds
        beyond = copies * self.messages[operation] / self.load.bandwidth
        seconds = np.maximum(seconds * self.load.nic_stretch, beyond)
        if profile.within is None:
            return seconds
        near = self._within(profile.within)._moved(operation, copies * self._near, end)
        return np.maximum(seconds, near)
