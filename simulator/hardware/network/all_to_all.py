"""How long expert-parallel dispatch and combine take on one rank.

The form is DeepEP's normal kernels: a token crosses the network once for each node it reaches, over
its GPU's own NIC, and from there NVLink takes it to the expert's GPU. Both hops are pipelined, so
the slower one decides:

    NIC     tokens x copies over a NIC x payload over the achieved NIC rate
    NVLink  tokens x GPUs reached x payload over the achieved NVLink rate, or over what the
            communication SMs can copy, whichever is less

A node is whatever NVLink joins, a server or a rack. A token's copies over NICs are one for each
other node that it reaches, and none in a group that one node holds.

Payload of a token of V3: 7,168 bytes and 56 FP32 scales in FP8, 14,336 bytes in BF16. A rank that
receives more rows than it sends waits for them. Before the payload a notify kernel exchanges counts
and meets the other ranks; its time is included. Achieved rates are fitted to published DeepEP
times; beside compute, a ratio of the calibration slows the payload.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.by_content import Keyed, profile_key, rows_key
from hardware_profiles.estimates import Estimate
from hardware_profiles.normal_kernels import (
    DEEPEP,
    NONE,
    NormalKernels,
    NormalLawProfile,
    load_normal_kernels,
)
from hardware_profiles.same_gpu import same_gpu, shipped_name
from hardware_profiles.schema import CalibrationProfile, ClusterProfile, GpuProfile, load_gpu
from hardware_profiles.tables import Measurement
from hardware_profiles.units import Bytes, Seconds
from reference_model.trace import ALL_TO_ALL_KINDS, Operator
from simulator.hardware.network.clusters import gpus_per_domain
from simulator.hardware.network.fabric_load import FabricLoad
from simulator.hardware.network.groups import Reach
from simulator.hardware.network.normal_law import NormalLaw
from simulator.hardware.network.tokens_sent import (
    between_nodes,
    nic_of,
    payload_bytes,
    payload_of,
    reach_of_tests,
)
from simulator.hardware.prediction import EXTRAPOLATED, INTERPOLATED, MEASURED, Prediction


@dataclass(frozen=True, slots=True)
class AllToAllTime:
    """One dispatch or combine, part by part."""

    notify_s: Seconds
    nic_s: Seconds
    nvlink_s: Seconds
    """Payload over each hop with nothing else running; the slowest decides."""
    copy_s: Seconds
    """Until SMs have copied it to the GPUs, likewise; 0 where copy engines do."""
    slowdown: float
    """Ratio applied to the payload beside compute, 1 alone."""
    kernel_s: Seconds | None = None
    """Of kernels that were timed by SMs, whose copies and start are not those of the hops."""

    @property
    def seconds(self) -> Seconds:
        """The whole."""
        return self.notify_s + self.payload_s * self.slowdown

    @property
    def payload_s(self) -> Seconds:
        """The payload with nothing else running."""
        hops = max(self.nic_s, self.nvlink_s, self.copy_s)
        return hops if self.kernel_s is None else self.kernel_s


NOT_OF_SHARES = dict.fromkeys(("fits", "gap", "tiles", "overlap", "sources"), True)
"""Fields of a calibration that no achieved share rests on."""

LINKS = "links at achieved rates"
"""What decides where no row times dispatch and combine."""

LinkShares: TypeAlias = Mapping[str, tuple[float, float, float]]
"""{dispatch or combine: value, low and high that it achieves of a link's rate}"""
_Learned: TypeAlias = tuple[LinkShares, LinkShares, Mapping[str, tuple[Measurement, ...]]]
"""Of NVLink and of NICs, and {kind: rows used}."""


@lru_cache(maxsize=32)
def _achieved(
    model: Keyed[AllToAllModel], measurements: Keyed[tuple[Measurement, ...]]
) -> _Learned:
    """Learned once from the same inputs."""
    return model.value.achieved_in(measurements.value)


class AllToAllModel:
    """Dispatch and combine among the ranks of one expert-parallel group."""

    def __init__(
        self,
        *,
        cluster: ClusterProfile,
        calibration: CalibrationProfile,
        ranks: int,
        reach: Reach | None = None,
    ) -> None:
        """Store the inputs. Raises ValueError for fewer ranks than one.

        Args:
            ranks: GPUs of the expert-parallel group.
            reach: where the job's tokens go; else as in DeepEP's tests, whose gate the calibration
                counts, for the cluster's first GPUs.
        """
        if ranks < 1:
            raise ValueError(f"expert-parallel ranks: {ranks} is not allowed: 1 or more")
        self.cluster = cluster
        self.calibration = calibration
        per_domain = gpus_per_domain(cluster, group=ranks)
        self.reach = reach or reach_of_tests(calibration, ranks, gpus_each=per_domain)
        gpu, named = shipped_name(cluster.node.gpu), calibration.normal_kernels
        # What a calibration's own file lacks, such as kernels between nodes, shipped ones know.
        names = (named,) if named in (DEEPEP, NONE) else (named, DEEPEP)
        files = (load_normal_kernels(name, gpu=gpu) for name in names)
        self.kernels = tuple(kernels for kernels in files if kernels is not None)
        self.nodes = len(self.reach.parts)
        self.one_gpu = ranks == 1
        """A GPU that holds every expert sends nothing and meets nobody."""

    def fit(self, measurements: Iterable[Measurement]) -> Self:
        """Learn the achieved shares of NIC and NVLink rates from dispatch and combine alone.

        Of each kind the kernel set that the calibration prefers is used; the others, where they
        disagree, widen the interval. Sets `nvlink_share_` and `nic_share_`, {kind: [value, low,
        high]}, and `rows_` {kind: rows used}. Kernels timed by SMs over the same links know their
        share; where no row is limited by a link, the calibration's transfers stand in.
        """
        self._measured_nvlink = load_gpu(self.calibration.gpu).nvlink_bandwidth
        rests_on = (
            profile_key(self.calibration, without=NOT_OF_SHARES).key,
            tuple(profile_key(kernels).key for kernels in self.kernels),
            self._measured_nvlink,
            tuple(own and own.nvlink_bandwidth for own in map(self._own_among, self.kernels)),
            self.cluster.node.gpu.name,
            self.nodes,
        )
        self.nvlink_share_, self.nic_share_, self.rows_ = _achieved(
            Keyed(rests_on, self), rows_key(measurements)
        )
        return self

    def achieved_in(self, measurements: Iterable[Measurement]) -> _Learned:
        """What `fit` learns."""
        alone = [
            row for row in measurements if row.kind in ALL_TO_ALL_KINDS and not row.beside_compute
        ]
        transfers = self.calibration.transfers
        nvlink_share: dict[str, tuple[float, float, float]] = {}
        nic_share: dict[str, tuple[float, float, float]] = {}
        used: dict[str, tuple[Measurement, ...]] = {}
        for kind in sorted(ALL_TO_ALL_KINDS):
            of_kind = [row for row in alone if row.kind == kind]
            sets = [
                s for s in self.calibration.kernel_sets if any(r.kernel_set == s for r in of_kind)
            ]
            by_set = {name: [row for row in of_kind if row.kernel_set == name] for name in sets}
            used[kind] = tuple(by_set[sets[0]]) if sets else ()
            nvlink = (self._nvlink_share(rows) for rows in by_set.values())
            nvlink_share[kind] = self._timed_share(kind, 1) or _first_and_range(
                nvlink, _figures(transfers.nvlink)
            )
            nic = (self._nic_share(rows, nvlink_share[kind][0]) for rows in by_set.values())
            nic_share[kind] = self._timed_share(kind, max(2, self.nodes)) or _first_and_range(
                nic, _figures(transfers.nic_by_mean or transfers.nic)
            )
        return nvlink_share, nic_share, used

    def _timed(self, kind: str, nodes: int) -> tuple[NormalKernels, NormalLawProfile] | None:
        """Kernels that were timed, and those of the nearest number of nodes among them; on one node
        of one alone."""
        for kernels in self.kernels:
            laws = [
                law
                for law in kernels.laws
                if law.operation == kind and (law.nodes == 1) == (nodes == 1)
            ]
            if laws:
                return kernels, min(laws, key=lambda law: abs(np.log2(law.nodes / nodes)))
        return None

    def _law(self, kind: str, nodes: int) -> NormalLaw | None:
        timed = self._timed(kind, nodes)
        if timed is None:
            return None
        _, found = timed
        return NormalLaw(
            start=found.start,
            ramp=found.ramp,
            softness=found.softness,
            copy=found.copy_bandwidth_per_sm,
            corner=found.corner,
        )

    def _timed_share(self, kind: str, nodes: int) -> tuple[float, float, float] | None:
        """What the link of timed kernels reached, of GPUs whose shipped NVLink rate is theirs: the
        share stays where a job changes the rate."""
        timed = self._timed(kind, nodes)
        if timed is None:
            return None
        kernels, found = timed
        own, rate = self._own_among(kernels), load_gpu(kernels.gpus[0]).nvlink_bandwidth
        return (found.link_share,) * 3 if own and own.nvlink_bandwidth == rate else None

    def _own_among(self, kernels: NormalKernels) -> GpuProfile | None:
        """The cluster's GPU as the files of those that kernels stand for describe it, before a job
        changes any of its rates."""
        gpu, stand_for = self.cluster.node.gpu, map(load_gpu, kernels.gpus)
        named = shipped_name(gpu)
        return next((one for one in stand_for if one.name == named or same_gpu(one, gpu)), None)

    def predict(
        self,
        operators: Sequence[Operator],
        *,
        sms: NDArray[np.int64],
        overlapped: bool,
        loads: Sequence[FabricLoad],
    ) -> Prediction:
        """Times of operators; `sms` and `loads` [operators] each, otherwise as `explain` takes
        them."""
        counts = sms.tolist()
        times = [
            self.explain(op, sms=count, overlapped=overlapped, load=load)
            for op, count, load in zip(operators, counts, loads, strict=True)
        ]
        seconds = np.array([time.seconds for time in times])
        ends = np.array(
            [self._ends(op, time, overlapped) for op, time in zip(operators, times, strict=True)]
        ).reshape(-1, 2)
        provenance = np.array(
            [
                self._provenance(op, count, overlapped)
                for op, count in zip(operators, counts, strict=True)
            ],
            dtype=np.intp,
        )
        kinds = tuple(operator.kind for operator in operators)
        return Prediction(
            seconds, ends[:, 0], ends[:, 1], provenance, kinds, np.zeros(len(operators))
        )

    def explain(
        self, operator: Operator, *, sms: int, overlapped: bool, load: FabricLoad
    ) -> AllToAllTime:
        """One operator's time, part by part.

        Args:
            sms: communication SMs; 0 for transfers that copy engines and NICs make, which links
                alone limit.
            overlapped: whether compute runs beside it.
            load: what failures and links between switches leave of the NICs' rate.
        """
        if self.one_gpu:
            return AllToAllTime(notify_s=0.0, nic_s=0.0, nvlink_s=0.0, copy_s=0.0, slowdown=1.0)
        payload = payload_bytes(operator)
        tokens, rows = operator["tokens"], operator["rows"]
        # The rank sends `tokens` and receives `rows`; the longer of the two directions counts.
        imbalance = max(1.0, rows / (tokens * self.reach.gpus)) if tokens else 1.0
        node = self.cluster.node
        nic = load.rate(node.nic_bandwidth_per_gpu * self.nic_share_[operator.kind][0])
        inputs = self.calibration.all_to_all
        nvlink = node.gpu.nvlink_bandwidth * self.nvlink_share_[operator.kind][0]
        law = self._law(operator.kind, self.nodes) if sms else None
        between = self.nodes > 1
        if law is None:
            per_sm = inputs.copy_bandwidth_per_sm.of(operator.kind, forwarded=between)
            per_sm /= inputs.sms_per_channel if between else 1
        else:
            per_sm = law.copy
        busy = sms * node.gpu.clock_ratio
        ratio = inputs.beside_compute.of(operator.kind)
        notify = (inputs.notify_overlapped if overlapped else inputs.notify_alone).value
        copied = tokens * self.reach.gpus * payload * imbalance
        nic_s = tokens * self.reach.over_nics * payload * imbalance / nic
        kernel_s = None
        if law is not None:
            links = np.array([max(nic_s, copied / nvlink)])
            kernel_s = law.seconds(np.array([copied]), np.array([busy]), links).item()
        return AllToAllTime(
            notify_s=max(0.0, notify + self._farther()),
            nic_s=nic_s,
            nvlink_s=copied / nvlink,
            copy_s=copied / (per_sm * busy) if sms else 0.0,
            slowdown=ratio.value if overlapped else 1.0,
            kernel_s=kernel_s,
        )

    def answered_by(self, operator: Operator) -> str:
        """Name of the calibration whose rows decide the payload of dispatch or combine; else that
        of the shipped kernels that do, and LINKS where neither has rows among as many nodes."""
        own, kind = self.calibration, operator.kind
        timed = self._timed(kind, self.nodes)
        if timed is not None:
            shipped = own.normal_kernels == DEEPEP or timed[0] != self.kernels[0]
            return timed[0].name if shipped else own.name
        inside = self.nodes == 1
        known = any((row.nodes == 1) == inside for row in self.rows_[kind])
        return own.name if known else LINKS

    def _ends(
        self, operator: Operator, time: AllToAllTime, overlapped: bool
    ) -> tuple[Seconds, Seconds]:
        """Ends of the interval: rate, slow-down and notify at their own ends, in quadrature."""
        if self.one_gpu:
            return time.seconds, time.seconds
        inputs = self.calibration.all_to_all
        notify = inputs.notify_overlapped if overlapped else inputs.notify_alone
        ratio = inputs.beside_compute.of(operator.kind)
        inside = time.nvlink_s if time.kernel_s is not None else max(time.nvlink_s, time.copy_s)
        shares = self.nic_share_ if time.nic_s >= inside else self.nvlink_share_
        value, low, high = shares[operator.kind]
        payload = time.seconds - time.notify_s
        # Kernels that were timed by SMs are off by what left-out rows of theirs are.
        width = 0.0
        timed = self._timed(operator.kind, self.nodes)
        if time.kernel_s is not None and timed is not None:
            width = next(
                found.quantile_80 for found in timed[0].left_out if found.operation == operator.kind
            )
        slower = np.hypot(value / low - 1, ratio.high / ratio.value - 1 if overlapped else 0.0)
        faster = np.hypot(1 - value / high, 1 - ratio.low / ratio.value if overlapped else 0.0)
        slower, faster = np.hypot(slower, np.expm1(width)), np.hypot(faster, -np.expm1(-width))
        return (
            time.seconds - float(np.hypot(payload * faster, notify.value - notify.low)),
            time.seconds + float(np.hypot(payload * slower, notify.high - notify.value)),
        )

    def _provenance(self, operator: Operator, sms: int, overlapped: bool) -> int:
        """Measured rates at these tokens, nodes, NICs and SMs; else what was changed decides."""
        rows = self.rows_[operator.kind]
        timed = self._timed(operator.kind, self.nodes)
        if sms and timed is not None and timed[1].nodes == self.nodes:
            # Only at the NVLink rate at which they were timed.
            rate = load_gpu(timed[0].gpus[0]).nvlink_bandwidth
            if rate == self.cluster.node.gpu.nvlink_bandwidth:
                return INTERPOLATED
        tokens = {dict(row.sizes)["tokens"] for row in rows}
        nodes = {row.nodes for row in rows}
        node = self.cluster.node
        same_links = node.gpu.nvlink_bandwidth == self._measured_nvlink and all(
            nic_of(row) == node.nic_bandwidth_per_gpu for row in rows if row.condition("nic")
        )
        same_copies = sms > 0 and self._copies_as_measured()
        same_sizes = operator["tokens"] in tokens and self.nodes in nodes
        if not (same_sizes and same_links and same_copies):
            return EXTRAPOLATED
        return INTERPOLATED if overlapped or sms not in {row.sms for row in rows} else MEASURED

    def _copies_as_measured(self) -> bool:
        """Whether the SMs are of the generation whose copies were timed."""
        timed = self.calibration.all_to_all.copy_bandwidth_per_sm.gpu or self.calibration.gpu
        return load_gpu(timed).architecture == self.cluster.node.gpu.architecture

    def _farther(self) -> Seconds:
        """Latency that these links add to the measured ones, which the measured times hold."""
        inputs, cluster = self.calibration.all_to_all, self.cluster
        added = cluster.node.nvlink_latency - inputs.nvlink_latency
        if self.nodes > 1:
            added += cluster.fabric.cross_leaf_latency - inputs.network_latency
        return added

    def _nvlink_share(self, rows: Sequence[Measurement]) -> float | None:
        """Achieved share of the NVLink rate within one node."""
        inside = [row for row in rows if row.nodes == 1]
        if not inside:
            return None
        reached = self.calibration.all_to_all.ranks_per_token[1]
        copied = [payload_of(row) * reached for row in inside]
        links = self._links_of(inside, 1, copied)
        rates = [size / took for size, took in zip(copied, links, strict=True) if took]
        return min(1.0, max(rates) / self._measured_nvlink) if rates else None

    def _links_of(
        self, rows: Sequence[Measurement], nodes: int, copied: Sequence[Bytes]
    ) -> Sequence[Seconds]:
        """What links took of the times of rows of a kind; 0 where copies of SMs explain them."""
        seconds = [row.seconds for row in rows]
        law = self._law(rows[0].kind, nodes)
        if law is None:
            return seconds
        sms = np.array([row.sms for row in rows])
        found: list[Seconds] = law.link_seconds(np.array(seconds), np.array(copied), sms).tolist()
        return found

    def _nic_share(self, rows: Sequence[Measurement], nvlink_share: float) -> float | None:
        """Mean achieved share of the NIC rate over the rows that NVLink does not explain."""
        inputs = self.calibration.all_to_all
        by_nodes: dict[int, list[Measurement]] = {}
        for row in rows:
            by_nodes.setdefault(row.nodes or 1, []).append(row)
        shares = []
        for nodes, members in by_nodes.items():
            if nodes == 1:
                continue
            reached = between_nodes(inputs.ranks_per_token, nodes)
            remote = between_nodes(inputs.nodes_per_token, nodes) * (1.0 - 1.0 / nodes)
            forwarded = [payload_of(row) * reached for row in members]
            took = self._links_of(members, nodes, forwarded)
            for row, copied, links in zip(members, forwarded, took, strict=True):
                over_nvlink = copied / (nvlink_share * self._measured_nvlink)
                nic = nic_of(row)
                if nic is not None and over_nvlink < inputs.limited_by_nvlink * links:
                    shares.append(payload_of(row) * remote / links / nic)
        return min(1.0, float(np.mean(shares))) if shares else None


def _figures(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def _first_and_range(
    values: Iterable[float | None], otherwise: tuple[float, float, float]
) -> tuple[float, float, float]:
    """The preferred value with the range of all sources, or the stated estimate without any."""
    known = [value for value in values if value]
    return (known[0], min(known), max(known)) if known else otherwise
