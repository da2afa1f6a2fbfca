"""Hardware profiles: frozen, in SI units, read from YAML files with units.

Bandwidths are per direction, arithmetic peaks dense; datasheet values stay untouched, achieved
fractions come from measurements. How a file's fields are read and checked stands in fields.py.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from hardware_profiles.calibration_parts import (
    AllToAllProfile,
    BesideCompute,
    FitProfile,
    KernelsProfile,
    OverlapProfile,
    TilesProfile,
    TransferProfile,
)
from hardware_profiles.estimates import Estimate, TimeEstimate
from hardware_profiles.fields import (
    ROOT,
    BandwidthValue,
    ComputeValue,
    Count,
    DataValue,
    FrequencyValue,
    PowerValue,
    PriceRateValue,
    PriceValue,
    Profile,
    Ratio,
    Raw,
    TimeValue,
    apply_overrides,
    to_profile,
    value_at,
)
from hardware_profiles.measured_collectives import MeasuredCollectives
from hardware_profiles.profile_files import achieved_rates, known_profiles, read_profile

Dtype = Literal[
    "fp8_e4m3",
    "fp8_e5m2",
    "bfloat16",
    "float16",
    "tfloat32",
    "float32",
    "int8",
    "fp4_e2m1",
    "mxfp8_e4m3",
]


class GpuProfile(Profile):
    """One GPU as its datasheet describes it."""

    name: str
    """What files and tables call it, such as h800_sxm."""
    architecture: str
    """Generation of the GPU, such as hopper."""
    sms: Count
    """Streaming multiprocessors."""
    sm_clock: FrequencyValue
    """Clock that the SMs run at; without anything else stated, the boost clock of the peaks."""
    peak_compute: dict[Dtype, ComputeValue]
    """Dense peak per operand dtype of `peak_sms` SMs at `peak_clock`, FLOP/s: {"fp8_e4m3": ...,
    "bfloat16": ...}. What the GPU reaches at its own SMs and clock is `peak`."""
    peak_sms: Count | None = None
    """SMs that `peak_compute` is stated for; `sms` where not given."""
    peak_clock: FrequencyValue | None = None
    """Clock that `peak_compute` is stated at; `sm_clock` where not given."""
    hbm_capacity: DataValue
    """Memory of one GPU."""
    hbm_bandwidth: BandwidthValue
    """Peak of the GPU's memory, read plus write."""
    l2_capacity: DataValue
    """Cache that all SMs share."""
    nvlink_bandwidth: BandwidthValue
    """Per direction, all links of one GPU together."""
    pcie_bandwidth: BandwidthValue
    """Of the GPU's PCIe link, per direction."""
    power: PowerValue
    """Power limit of the board."""

    @model_validator(mode="after")
    def _has_a_peak(self) -> "GpuProfile":
        if not self.peak_compute:
            raise ValueError("peak_compute is empty; it needs at least one dtype")
        return self

    @property
    def clock_ratio(self) -> float:
        """Clock over the one that rates of an SM are stated at."""
        return self.sm_clock / (self.peak_clock or self.sm_clock)

    def peak(self, dtype: str) -> float:
        """Dense tensor-core peak for an operand type at this GPU's SMs and clock, FLOP/s.

        Each SM adds the same at each clock. Raises ValueError for a type without a stated peak.
        """
        peaks: dict[str, float] = dict(self.peak_compute.items())
        if dtype not in peaks:
            raise ValueError(
                f"GPU {self.name}: peak_compute: no peak for {dtype!r}; known: {', '.join(peaks)}"
            )
        return peaks[dtype] * (self.sms / (self.peak_sms or self.sms)) * self.clock_ratio


_FORM_FACTORS = frozenset({"sxm", "pcie", "nvl"})


def gpu_of_device(device: str) -> str | None:
    """The shipped GPU that a driver's device name means, such as "NVIDIA H100 80GB HBM3": the one
    whose name's words it has. A card of another form, such as an H100 PCIe, is another GPU: None.
    """
    words = {re.sub(r"^sxm\d$", "sxm", word) for word in device.lower().split()}
    for gpu in known_gpus():
        named = set(gpu.split("_"))
        if named - _FORM_FACTORS <= words and words & _FORM_FACTORS <= named:
            return gpu
    return None


class NicProfile(Profile):
    """One network card."""

    name: str
    """What the card is, such as ConnectX-7."""
    bandwidth: BandwidthValue
    """Line rate, per direction."""


class CpuProfile(Profile):
    """One socket."""

    name: str
    """What the processor is."""
    cores: Count
    """Physical cores of one socket."""
    memory_bandwidth: BandwidthValue
    """Peak of all memory channels of the socket, read plus write."""


class HostProfile(Profile):
    """The CPUs of a node with their memory."""

    cpu: CpuProfile
    """The processor of one socket."""
    sockets: Count
    """Sockets of a node."""
    memory: DataValue
    """Memory of all sockets together."""

    @property
    def memory_bandwidth(self) -> float:
        """Peak of all sockets, bytes/s, read plus write."""
        return self.cpu.memory_bandwidth * self.sockets


class NodeProfile(Profile):
    """One server: GPUs joined by NVLink, and the NICs that serve them."""

    gpu: GpuProfile
    """Each GPU of a node, as its datasheet describes it."""
    gpus: Count
    """GPUs of one node."""
    nic: NicProfile
    """Each NIC of a node."""
    nics: Count
    """NICs for the compute fabric; each GPU has nics / gpus of them."""
    nvlink_latency: TimeValue
    """64-byte latency between two GPUs that NVLink joins, end to end."""
    host: HostProfile | None = None
    """What optimizer state in CPU memory needs to know; nothing else asks for it."""

    @property
    def nic_bandwidth_per_gpu(self) -> float:
        """NIC line rate that each GPU has to itself, bytes/s per direction."""
        return self.nic.bandwidth * self.nics / self.gpus


class DragonflyProfile(Profile):
    """Sizes of a dragonfly: groups of fully joined switches, joined by global cables."""

    groups: Count
    """Groups of switches."""
    group_switches: Count
    """Switches of a group; each is joined to all others of its group."""
    switch_nics: Count
    """NICs on one switch."""
    global_ports: Count
    """Cables from one switch to other groups."""


class FabricProfile(Profile):
    """The network between nodes."""

    topology: str
    """What joins NVLink domains: multi_plane_fat_tree, multi_rail_fat_tree, fat_tree_2, fat_tree_3,
    dragonfly, slim_fly or nvlink_domain."""
    nvlink_domain_nodes: Count = 1
    """Nodes that NVLink joins into one domain, such as the 18 of an NVL72 rack; 1 where NVLink ends
    at the node. What leaves a domain takes NICs."""
    planes: Count
    """Independent networks; NIC i of a node sits in plane i modulo planes."""
    switch_ports: Count
    """Ports of one switch, down and up together."""
    same_leaf_latency: TimeValue
    """64-byte latency under one leaf switch (1 switch), host to host."""
    cross_leaf_latency: TimeValue
    """64-byte latency across leaves of a two-layer fat-tree (3 switches), host to host."""
    switch_price: PriceValue
    """Price of one switch."""
    link_price: PriceValue
    """Price of one link between switches, both ends and the cable."""
    link_bandwidth: BandwidthValue | None = None
    """One cable between switches, per direction; the NICs' line rate where not given."""
    oversubscription: Ratio = 1.0
    """Ports down over ports up of a leaf switch of a two-layer fat-tree."""
    routing: Literal["adaptive", "ecmp", "static"] = "adaptive"
    """How flows choose among equal paths. adaptive: spread over all of them packet by packet. ecmp:
    a hash of the flow picks one, collisions included. static: a table picks one by destination
    port, the same for every source."""
    cross_plane: Literal["forward", "refuse"] = "forward"
    """A send to a GPU of another plane: over NVLink to a NIC of that plane, or an error."""
    dragonfly: DragonflyProfile | None = None
    """Sizes of a dragonfly, of that topology alone: groups of fully joined switches, joined by
    global cables."""
    slim_fly_order: Count | None = None
    """Prime power q of a slim fly, of that topology alone: it has 2 q^2 switches."""

    @model_validator(mode="after")
    def _latencies_are_ordered(self) -> "FabricProfile":
        if self.cross_leaf_latency < self.same_leaf_latency:
            raise ValueError(
                "cross_leaf_latency must be at least same_leaf_latency: three switches "
                "cannot be faster than one"
            )
        return self


class ClusterProfile(Profile):
    """Nodes of one kind on one fabric."""

    name: str
    """What files and tables call it."""
    nodes: Count
    """Nodes of the whole cluster."""
    node: NodeProfile
    """One server: GPUs joined by NVLink, and the NICs that serve them."""
    fabric: FabricProfile
    """The network between nodes."""
    gpu_price: PriceRateValue
    """Rent of one GPU with its share of the machine."""
    failures: tuple[str, ...] = ()
    """What breaks, and when: KIND:NAME@TIME, such as "plane:3@2.0s"."""

    @model_validator(mode="after")
    def _domains_are_joined(self) -> "ClusterProfile":
        joined = self.fabric.nvlink_domain_nodes
        if self.fabric.topology == "nvlink_domain" and self.nodes > joined:
            raise ValueError(
                f"fabric.topology nvlink_domain has nothing beyond one NVLink domain of {joined} "
                f"nodes, found {self.nodes} nodes; allowed: fabric.nvlink_domain_nodes of at least "
                "that many, or a topology that joins domains, such as fat_tree_2"
            )
        for failure in self.failures if joined > 1 else ():
            if failure.partition(":")[2].startswith("node"):
                raise ValueError(
                    f"failures: {failure}: a node of an NVLink domain of {joined} nodes does not "
                    "fail alone in this model; allowed: plane, switch, and links between switches"
                )
        return self

    @property
    def gpus(self) -> int:
        """GPUs of the whole cluster."""
        return self.nodes * self.node.gpus


def _of_kernels(fits: Any) -> Any:
    """Fits without those of transfers, which calibrations of earlier versions hold."""
    if not isinstance(fits, list | tuple):
        return fits
    return [f for f in fits if not (isinstance(f, dict) and f.get("estimator") == "link")]


class CalibrationProfile(Profile):
    """The measured tables a cost model is fitted to, and the inputs that no table holds."""

    example: ClassVar[str] = f"{ROOT.name}/calibrations/h800_sxm.yaml"

    name: str
    """What files and tables call it."""
    gpu: str
    """The GPU profile the measurements belong to."""
    measurements: tuple[str, ...]
    """Tables of measured kernel times: shipped ones by name, or paths of .csv files, from the
    calibration's own folder where they begin with "./"."""
    kernel_sets: tuple[str, ...]
    """Kernel versions that may be used, most preferred first; other rows are left alone."""
    kernels: KernelsProfile | None = None
    """None where the file does not say."""
    fp8_cache: dict[str, Estimate] = Field(default_factory=dict)
    """{GPU architecture: time of the decode attention core over an FP8 KV cache, over its time over
    a BF16 one, of a kernel that reads FP8 itself}."""
    overlap: OverlapProfile
    """How much slower kernels run while an all-to-all is in flight beside them: time ratios."""
    all_to_all: AllToAllProfile
    """What dispatch and combine of experts move, and what they wait for."""
    transfers: TransferProfile
    """Bulk transfers; in a file, the name of the transport that has achieved them."""
    collectives: str = "nccl"
    """Transport whose measured times collective operations within an NVLink domain take, by name or
    path; nccl: the shipped one of the cluster's GPU, and where it has none, links at the achieved
    rates; ideal: those always."""
    normal_kernels: str = "deepep"
    """Timed normal dispatch and combine kernels by SMs, by name or path; deepep: the shipped ones
    of the cluster's GPU, which also answer for what a file lacks, and where they have none, links
    and `copy_bandwidth_per_sm`; none: those always."""
    low_latency_kernels: str | None = None
    """Profile of timed low-latency kernels within an NVLink domain, by name or path. On this
    calibration's GPU they stand in for the copies over NVLink of the shipped profile that a job
    names; None: that one's."""
    gap: TimeEstimate
    """Idle time between two kernels of one stream, for jobs that do not state their own."""
    kernel_floor: TimeEstimate
    """Duration of a kernel that does next to nothing."""
    tiles: TilesProfile
    """Of matrix products whose kernels' own are not known."""
    other_gpu: Estimate
    """Kernel time on another GPU of the same SMs over the one restated for it: what other clocks,
    power and versions of a kernel add to an interval."""
    sustained_clock: Estimate | None = None
    """SM clock of steps that draw the power limit for their whole length, over that of the rows;
    for rows that were timed in bursts only."""
    common_share: Annotated[float, Field(ge=0, le=1)]
    """Of the variance of extrapolated kernels: what is common to all of them."""
    restated_from: tuple[str, ...] = ()
    """Calibrations of other GPUs whose rows stand in where the own tables lack a kernel family,
    scaled by the physical ceilings of both GPUs."""
    completed_by: tuple[str, ...] = ()
    """Calibrations that answer for kernels of which the own tables have no row: the own tables win,
    and rows of another GPU are restated. Every job takes them, where `restated_from` is left alone
    by serving."""
    basis: Literal["measured", "restated", "datasheet"] = "measured"
    """What kernel times rest on: own rows; rows of a GPU with the same SMs; or rows of another
    architecture, of which only the shares of the datasheet's ceilings hold here."""
    restatement: Estimate | None = None
    """Kernel time here over the scaled one of `restated_from`; its interval is what other versions
    of a kernel, clocks and power add. Never fitted to rows of this GPU."""
    fits: Annotated[tuple[FitProfile, ...], BeforeValidator(_of_kernels)] = ()
    """Written by calibrate."""

    @model_validator(mode="after")
    def _needs_tables(self) -> "CalibrationProfile":
        others = self.restated_from or self.completed_by
        if not others and not (self.measurements and self.kernel_sets):
            raise ValueError(
                "measurements and kernel_sets must each name at least one entry, or restated_from "
                "must name a calibration"
            )
        return self

    def without_all_to_all_slowdown(self) -> "CalibrationProfile":
        """Return the same calibration with dispatch and combine not slowed by compute beside."""
        alone = {
            "beside_compute": BesideCompute.none("set to 1 for comparison"),
            "notify_overlapped": self.all_to_all.notify_alone,
        }
        return self._with_transfers(alone)

    def without_waiting(self) -> "CalibrationProfile":
        """Return the same calibration with dispatch and combine as of ranks that never wait."""
        freed = self.all_to_all.without_waiting
        if freed is None:
            return self
        beside = BesideCompute(dispatch=freed.dispatch, combine=freed.combine)
        return self._with_transfers({"beside_compute": beside, "notify_overlapped": freed.notify})

    def _with_transfers(self, changed: Mapping[str, object]) -> "CalibrationProfile":
        return self.model_copy(update={"all_to_all": self.all_to_all.model_copy(update=changed)})


class TransportProfile(Profile):
    """What kernels and NICs make of the links: one set of physical inputs for every transfer."""

    name: str
    achieved: TransferProfile
    """Of the links' line rates."""
    start: TimeValue
    """From the call of a communication kernel to its first byte, and from its last to its end."""
    low_latency: str | None = None
    """Name of a profile in hardware_profiles/low_latency, of link mixed: its times of next to no
    tokens, less the network's latency, are what low-latency kernels take to start; `start` without
    one."""
    message_overhead: TimeValue
    """Time that a NIC needs for a message of no bytes."""
    copy_bandwidth_per_sm: BandwidthValue
    """What one SM of a communication kernel moves over NVLink."""
    chunk_tokens: Count
    """Tokens that a channel of a normal kernel hands on at once."""
    sms_per_channel: Count
    fitted_to: tuple[str, ...] = ()
    """Published rows that the fitted values were calibrated with; not predictions."""
    measured: MeasuredCollectives | None = None
    """Times of collective operations within an NVLink domain; for those that it lacks, links at the
    achieved rates decide."""


def known_gpus() -> tuple[str, ...]:
    """Names of the shipped GPUs, sorted."""
    return known_profiles("gpus")


def known_clusters() -> tuple[str, ...]:
    """Names of the shipped clusters, sorted."""
    return known_profiles("clusters")


def known_calibrations() -> tuple[str, ...]:
    """Names of the shipped calibrations, sorted."""
    return known_profiles("calibrations")


def load_gpu(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> GpuProfile:
    """Load a GPU by shipped name or by path to a YAML file.

    ``overrides`` replaces values before validation: {"hbm_bandwidth": "4 TB/s"}; dots reach into
    nested fields. Raises ValueError for an unknown name or anything wrong in the file.
    """
    if not overrides and name_or_path in known_gpus():
        return _shipped_gpu(name_or_path)
    raw, where = read_profile("gpus", name_or_path)
    return to_profile(GpuProfile, override_gpu(raw, overrides or {}, where=where), where=where)


@cache
def _shipped_gpu(name: str) -> GpuProfile:
    """Read once: shipped files stay as they are while a process runs."""
    raw, where = read_profile("gpus", name)
    return to_profile(GpuProfile, raw, where=where)


def load_cluster(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> ClusterProfile:
    """Load a cluster; ``overrides`` as ``{"node.nic.bandwidth": "200 Gbit/s"}``."""
    raw, where = read_profile("clusters", name_or_path)
    return to_profile(
        ClusterProfile, resolve_cluster(raw, overrides or {}, where=where), where=where
    )


def load_calibration(
    name_or_path: str, overrides: Mapping[str, Any] | None = None
) -> CalibrationProfile:
    """Load a calibration; ``overrides`` as ``{"overlap.gemm.value": 1.5}``."""
    if not overrides and name_or_path in known_calibrations():
        return _shipped_calibration(name_or_path)
    raw, where = read_profile("calibrations", name_or_path)
    return to_profile(
        CalibrationProfile, override_calibration(raw, overrides or {}, where=where), where=where
    )


@cache
def _shipped_calibration(name: str) -> CalibrationProfile:
    """Read once, as `_shipped_gpu`."""
    raw, where = read_profile("calibrations", name)
    return to_profile(CalibrationProfile, override_calibration(raw, {}, where=where), where=where)


NCCL = "nccl"
"""The transport that stands for NCCL's rows of whatever GPU a cluster has."""


def load_transport(name_or_path: str, *, gpu: str | None = None) -> TransportProfile:
    """Load what kernels and NICs make of the links, by shipped name or path.

    Args:
        gpu: of the cluster; "nccl" means the shipped rows of NCCL on that GPU.
    """
    if name_or_path == NCCL:
        measured = [name for name in known_profiles("transports") if name.startswith(f"{NCCL}_")]
        if f"{NCCL}_{gpu}" not in measured:
            raise ValueError(
                f"transport {NCCL}: no rows of {gpu or 'an unnamed GPU'}; known: "
                f"{', '.join(measured)}; name one of them to restate it by the NVLink rate, or "
                "ideal"
            )
        name_or_path = f"{NCCL}_{gpu}"
    if name_or_path in known_profiles("transports"):
        return _shipped_transport(name_or_path)
    raw, where = read_profile("transports", name_or_path)
    return to_profile(TransportProfile, raw, where=where)


@cache
def _shipped_transport(name: str) -> TransportProfile:
    """Read once, as `_shipped_gpu`."""
    raw, where = read_profile("transports", name)
    return to_profile(TransportProfile, raw, where=where)


def resolve_cluster(raw: Raw, overrides: Mapping[str, Any], *, where: str) -> Raw:
    """Return a cluster's dict with its GPU's profile in the place of its name, overrides applied.

    An override of ``node.gpu`` itself is another GPU by name; ``node.gpu.hbm_bandwidth`` changes
    one value of it. Another ``fabric.topology`` has the planes that it can have, unless others
    are given. The result is what ``to_profile(ClusterProfile, ...)`` takes, and what a
    resolved scenario shows.
    """
    named = {path: value for path, value in overrides.items() if path == "node.gpu"}
    resolved = apply_overrides(raw, named, where=where)
    node = resolved.get("node")
    if isinstance(node, dict) and isinstance(node.get("gpu"), str):
        resolved["node"] = node | {"gpu": read_profile("gpus", node["gpu"])[0]}
    rest = {path: value for path, value in overrides.items() if path != "node.gpu"}
    changed = apply_overrides(resolved, rest, where=where)
    fabric = changed.get("fabric")
    if isinstance(fabric, dict) and "fabric.topology" in rest and "fabric.planes" not in rest:
        former = value_at(resolved, ["fabric", "topology"])
        changed["fabric"] = _with_its_planes(fabric, former, changed.get("node"))
    return _keep_stated(
        resolved,
        changed,
        {f"node.gpu.{field}": f"node.gpu.{kept}" for field, kept in _PEAKS_HOLD_AT.items()},
    )


def _with_its_planes(fabric: Raw, former: Any, node: Any) -> Raw:
    """A fabric of another topology with one plane, a multi-plane fat-tree with one for each NIC."""
    if fabric.get("topology") == former:
        return fabric
    planes = node.get("nics") if isinstance(node, dict) else None
    found = fabric | {"planes": planes if fabric["topology"] == "multi_plane_fat_tree" else 1}
    if isinstance(fabric.get("sources"), dict):
        found["sources"] = fabric["sources"] | {"planes": "follows from the topology that was set"}
    return found


def override_gpu(raw: Raw, overrides: Mapping[str, Any], *, where: str) -> Raw:
    """Return a GPU's dict with overrides applied; its peaks stay stated for what they were."""
    return _keep_stated(raw, apply_overrides(raw, overrides, where=where), _PEAKS_HOLD_AT)


def override_calibration(raw: Raw, overrides: Mapping[str, Any], *, where: str) -> Raw:
    """Return a calibration's dict with the rates of a transport in the place of its name, and
    overrides applied; measured rows stay what they were."""
    named = {path: value for path, value in overrides.items() if path == "transfers"}
    resolved = apply_overrides(raw, named, where=where)
    transport = resolved.get("transfers")
    if isinstance(transport, str):
        load_transport(transport)
        resolved["transfers"] = achieved_rates(transport)
    rest = {path: value for path, value in overrides.items() if path != "transfers"}
    return _keep_stated(raw, apply_overrides(resolved, rest, where=where), _ROWS_HOLD)


_PEAKS_HOLD_AT = {"sms": "peak_sms", "sm_clock": "peak_clock"}
"""{field of a GPU: field that keeps the value which the stated peaks hold at}"""
_ROWS_HOLD = {
    f"overlap.{kind}.value": f"overlap.{kind}.in_rows"
    for kind in ("gemm", "attention", "memory_bound")
}
"""{field of a calibration: field that keeps the value which its rows hold}"""


def _keep_stated(raw: Raw, changed: Raw, kept: Mapping[str, str]) -> Raw:
    """Where an override changed a value that others were stated at, keep the stated one beside it.

    Args:
        raw: the dict before.
        changed: the dict after.
        kept: {dotted path that may have changed: dotted path that keeps what it was}.
    """
    for path, beside in kept.items():
        *parents, last = beside.split(".")
        stated = value_at(raw, path.split("."))
        into = value_at(changed, parents)
        moved = stated not in (None, value_at(changed, path.split(".")))
        if moved and isinstance(into, dict) and last not in into:
            changed = apply_overrides(changed, {beside: stated}, where="")
    return changed
