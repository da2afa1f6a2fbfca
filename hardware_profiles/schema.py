"""Hardware profiles: frozen, in SI units, read from YAML files with units.

Bandwidths are per direction, arithmetic peaks dense; datasheet values stay untouched, achieved
fractions come from measurements. How a file's fields are read and checked stands in fields.py.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

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
    read_yaml,
    to_profile,
)
from hardware_profiles.measured_collectives import MeasuredCollectives
from hardware_profiles.renames import EARLIER_NAMES, file_of_today, with_names_of_today

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
    architecture: str
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
    hbm_bandwidth: BandwidthValue
    """Read plus write."""
    l2_capacity: DataValue
    nvlink_bandwidth: BandwidthValue
    """Per direction, all links of one GPU together."""
    pcie_bandwidth: BandwidthValue
    """Per direction."""
    power: PowerValue
    """Board power limit."""

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
    bandwidth: BandwidthValue
    """Line rate, per direction."""


class NodeProfile(Profile):
    """One server: GPUs joined by NVLink, and the NICs that serve them."""

    gpu: GpuProfile
    gpus: Count
    nic: NicProfile
    nics: Count
    """NICs for the compute fabric; each GPU has nics / gpus of them."""
    nvlink_latency: TimeValue
    """64-byte latency between two GPUs that NVLink joins, end to end."""

    @property
    def nic_bandwidth_per_gpu(self) -> float:
        """NIC line rate that each GPU has to itself, bytes/s per direction."""
        return self.nic.bandwidth * self.nics / self.gpus


class DragonflyProfile(Profile):
    """Sizes of a dragonfly: groups of fully joined switches, joined by global cables."""

    groups: Count
    group_switches: Count
    switch_nics: Count
    """NICs on one switch."""
    global_ports: Count
    """Cables from one switch to other groups."""


class FabricProfile(Profile):
    """The network between nodes."""

    topology: str
    """Name in simulator.hardware.network.topology.TOPOLOGIES; of what joins NVLink domains."""
    nvlink_domain_nodes: Count = 1
    """Nodes that NVLink joins into one domain, such as the 18 of an NVL72 rack; 1 where NVLink ends
    at the node. What leaves a domain takes NICs."""
    planes: Count
    """Independent networks; NIC i of a node sits in plane i modulo planes."""
    switch_ports: Count
    same_leaf_latency: TimeValue
    """64-byte latency under one leaf switch (1 switch), host to host."""
    cross_leaf_latency: TimeValue
    """64-byte latency across leaves of a two-layer fat-tree (3 switches), host to host."""
    switch_price: PriceValue
    link_price: PriceValue
    """Price of one link between switches, both ends and the cable."""
    link_bandwidth: BandwidthValue | None = None
    """One cable between switches, per direction; the NICs' line rate where not given."""
    oversubscription: Ratio = 1.0
    """Ports down over ports up of a leaf switch of a two-layer fat-tree."""
    routing: Literal["adaptive", "ecmp", "static"] = "adaptive"
    """How flows choose among equal paths; what each means stands in
    simulator.hardware.network.switching."""
    cross_plane: Literal["forward", "refuse"] = "forward"
    """A send to a GPU of another plane: over NVLink to a NIC of that plane, or an error."""
    dragonfly: DragonflyProfile | None = None
    slim_fly_order: Count | None = None

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
    nodes: Count
    node: NodeProfile
    fabric: FabricProfile
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


class Estimate(Profile):
    """An input that is known only within an interval; a ratio or share."""

    value: Ratio
    low: Ratio
    high: Ratio
    source: str

    @model_validator(mode="before")
    @classmethod
    def _has_an_interval(cls, given: object) -> object:
        if isinstance(given, int | float | str):
            raise ValueError(
                f"{given!r} has no interval; allowed: value, low, high and source, such as "
                f"{{value: {given}, low: {given}, high: {given}, source: where it comes from}}"
            )
        return given

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.value <= self.high:
            end = "low" if self.value < self.low else "high"
            raise ValueError(
                f"needs low <= value <= high, found {self.low:g}, {self.value:g}, {self.high:g}; "
                f"allowed: a value between them, or another {end} with it"
            )
        return self


class TimeEstimate(Estimate):
    """A duration that is known only within an interval."""

    value: TimeValue
    low: TimeValue
    high: TimeValue


class SlowdownEstimate(Estimate):
    """How much slower kernels run beside an all-to-all than alone: a time ratio."""

    in_rows: Ratio | None = None
    """Ratio that rows measured beside an all-to-all hold; `value` where not given. A larger value
    slows predictions, what was measured stays what it is."""

    @property
    def of_rows(self) -> float:
        """Ratio by which rows measured beside an all-to-all are slower than alone."""
        return self.value if self.in_rows is None else self.in_rows


class OverlapProfile(Profile):
    """How much slower kernels run while an all-to-all is in flight beside them: time ratios."""

    gemm: SlowdownEstimate
    """Persistent tensor-core GEMMs, beyond the SMs they lose."""
    attention: SlowdownEstimate
    """Attention cores, beyond the SMs they lose."""
    memory_bound: SlowdownEstimate
    """Kernels that fill every free SM, the loss of ``reference_communication_sms`` included."""
    reference_communication_sms: Count
    """Communication SMs at which ``memory_bound`` was observed."""


class BesideCompute(Profile):
    """How much longer an all-to-all takes beside compute than alone: time ratios, rank skew inside.

    A file may give one estimate, which then holds for both.
    """

    dispatch: Estimate
    combine: Estimate

    @model_validator(mode="before")
    @classmethod
    def _both(cls, given: object) -> object:
        bare = isinstance(given, int | float | str)  # Estimate says that an interval is missing
        if bare or (isinstance(given, dict) and "value" in given):
            return {"dispatch": given, "combine": given}
        return given

    @classmethod
    def none(cls, source: str) -> Self:
        """Beside compute as alone."""
        alone = Estimate(value=1.0, low=1.0, high=1.0, source=source)
        return cls(dispatch=alone, combine=alone)

    def of(self, kind: str) -> Estimate:
        """The ratio of a dispatch or a combine."""
        return self.dispatch if kind == "dispatch" else self.combine


class WithoutWaiting(Profile):
    """Of an all-to-all beside compute, what is left once ranks that wait for others are simulated:
    by the samples that waited least."""

    notify: TimeEstimate
    dispatch: Estimate
    combine: Estimate


class CopyRates(Profile):
    """What one communication SM moves over NVLink while SMs, not links, are the limit.

    A combined token has about twice the bytes of a dispatched one, so it takes about twice the SMs.
    """

    dispatch: BandwidthValue
    combine: BandwidthValue
    """In a group that one node holds."""
    forwarded_dispatch: BandwidthValue
    forwarded_combine: BandwidthValue
    """Between nodes, of the SM of each channel that forwards between network and NVLink."""
    gpu: str = ""
    """The GPU on which the rates were measured, where it is not the calibration's own; those of
    another generation are an assumption."""

    def of(self, kind: str, *, forwarded: bool) -> float:
        """Bytes/s of one SM that copies in a dispatch or combine."""
        if kind == "dispatch":
            return self.forwarded_dispatch if forwarded else self.dispatch
        return self.forwarded_combine if forwarded else self.combine


def _every_way(value: object) -> object:
    """One rate, as older files have it, holds for all copies."""
    if isinstance(value, dict):
        return value
    return dict.fromkeys(set(CopyRates.model_fields) - {"gpu", "sources"}, value)


class AllToAllProfile(Profile):
    """What expert-parallel dispatch and combine move, and what they wait for."""

    nodes_per_token: dict[int, Ratio]
    """{nodes of the expert-parallel group: distinct nodes a token reaches, own included}."""
    ranks_per_token: dict[int, Ratio]
    """{nodes of the expert-parallel group: distinct GPUs a token reaches, own included}."""
    copy_bandwidth_per_sm: Annotated[CopyRates, BeforeValidator(_every_way)]
    sms_per_channel: Count
    """SMs of a channel between nodes, of which one forwards between network and NVLink."""
    limited_by_nvlink: Ratio
    """A measured time of which NVLink explains at least this share says nothing about the NIC."""
    layout: TimeEstimate
    """Kernel that counts tokens per rank before a dispatch whose layout is not cached."""
    notify_alone: TimeEstimate
    """Count exchange and barrier before a dispatch or combine, nothing else running."""
    notify_overlapped: TimeEstimate
    """The same between the kernels of an overlapped pair."""
    beside_compute: BesideCompute
    without_waiting: WithoutWaiting | None = None
    """The same of ranks that wait for nobody; None where what was measured holds no waiting."""
    nvlink_latency: TimeValue
    """Between two GPUs of a node of the machine that these times belong to, 64 bytes; what another
    machine's differs by is added."""
    network_latency: TimeValue
    """The same between nodes, across leaves."""

    @model_validator(mode="after")
    def _knows_one_node(self) -> "AllToAllProfile":
        if 1 not in self.ranks_per_token:
            raise ValueError(
                "ranks_per_token has no entry for 1 node; allowed: {1: GPUs, ...}, as rows of one "
                "node are read by it"
            )
        return self


class TransferProfile(Profile):
    """What transfers achieve: payload over a link's datasheet rate, at most 1."""

    nic: Estimate
    nvlink: Estimate
    nic_by_mean: Estimate | None = None
    """The same of the mean bytes of a NIC in a normal all-to-all, whose busiest NIC has more; as
    `nic` where not given."""

    @model_validator(mode="after")
    def _at_most_all(self) -> "TransferProfile":
        for field in ("nic", "nvlink", "nic_by_mean"):
            share = getattr(self, field)
            if share is not None and share.high > 1:
                raise ValueError(f"{field} must be at most 1, found {share.high:g}")
        return self


class TilesProfile(Profile):
    """Tiles that a set of kernels cuts matrix products into; each is 128 rows high at most."""

    narrowest: Annotated[int, Field(strict=True, ge=8, le=128, multiple_of=8)]
    """Columns of the narrowest tile; a kernel takes the width, a multiple of 8 up to 128, that
    leaves the least work to the busiest SM."""
    overhead: Annotated[int, Field(strict=True, ge=0)]
    """Columns' worth of work that a tile costs beyond its own: filling the pipeline, narrow
    operands, storing."""
    half_height_rows: Annotated[int, Field(strict=True, ge=0)]
    """Most rows for which tiles are 64 rows high; 0 for kernels whose tiles never are."""


class HeldOutError(Profile):
    """Relative errors of rows predicted without themselves, |predicted / measured - 1|."""

    rows: Count
    median: float
    p90: float
    worst: float
    bias: float
    """Median signed error."""
    quantile_80: float
    """80 % quantile of the absolute log error: the half-width of an interval."""


class FitProfile(Profile):
    """What calibrate found out about one kernel family in one kernel set."""

    @model_validator(mode="before")
    @classmethod
    def _of_this_model(cls, raw: object) -> object:
        """Refuse what an earlier release found out for models that are gone."""
        fields = raw if isinstance(raw, dict) else {}
        gone = [name for name in ("estimator", "stiffness", "falls") if name in fields]
        if gone:
            raise ValueError(
                f"{gone[0]} belongs to an earlier release's models of kernels; write the file anew "
                "with `dsv3sim calibrate`, or leave `fits` out"
            )
        return raw

    kind: str
    dtype: str
    out_dtype: str
    accumulate: bool
    kernel_set: str
    rows: Count
    lengths: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """{feature: octaves by which rows of this family differ as much as at all}; empty where there
    are too few rows to find them."""
    noise_share: Annotated[float, Field(gt=0)] | None = None
    """Variance of a row's noise over that between rows far apart."""
    widths: (
        tuple[float | None, float | None] | tuple[float | None, float | None, float | None] | None
    ) = None
    """80 % quantiles of the log error of held-out rows over the deviation of the model: of rows
    left out one by one, of whole shapes left out, and of the ends of the range of load."""
    tiles: TilesProfile | None = None
    """Of matrix products, where others than the calibration's fit left-out rows better."""
    noise: HeldOutError | None = None
    """Rows of equal work against the median of the others: what no model gets below."""
    interpolated: HeldOutError | None = None
    """Rows left out one by one, between other rows of their shape."""
    edge: HeldOutError | None = None
    """The same, first and last rows of a shape."""
    regions: HeldOutError | None = None
    """Whole shapes, or ranges of size where there is one shape, left out."""
    coverage: dict[str, tuple[int, int]] = Field(default_factory=dict)
    """{size: its range in the table}; beyond it everything is extrapolated."""
    worst: tuple[str, ...] = ()
    """Rows with the largest errors, sizes and error each."""


class KernelsProfile(Profile):
    """Whose kernels a calibration's times are."""

    kind: Literal["engine", "reference"]
    """engine: kernels that training frameworks and inference engines run. reference: those of the
    reference model, which are right but not the fastest."""
    name: str
    """Libraries or tables, most preferred first."""
    date: str
    """Months in which they were published or measured."""
    jobs: tuple[Literal["training", "prefill", "decode"], ...]
    """What these kernels are those of: engines train, prefill and decode with different ones."""


def _of_kernels(fits: Any) -> Any:
    """Fits without those of transfers, which calibrations of earlier versions hold."""
    if not isinstance(fits, list | tuple):
        return fits
    return [f for f in fits if not (isinstance(f, dict) and f.get("estimator") == "link")]


class CalibrationProfile(Profile):
    """The measured tables a cost model is fitted to, and the inputs that no table holds."""

    example: ClassVar[str] = f"{ROOT.name}/calibrations/h800_sxm.yaml"

    name: str
    gpu: str
    """The GPU profile the measurements belong to."""
    measurements: tuple[str, ...]
    """Names of tables in hardware_profiles/measurements, without .csv."""
    kernel_sets: tuple[str, ...]
    """Kernel versions that may be used, most preferred first; other rows are left alone."""
    kernels: KernelsProfile | None = None
    """None where the file does not say."""
    fp8_cache: dict[str, Estimate] = Field(default_factory=dict)
    """{GPU architecture: time of the decode attention core over an FP8 KV cache, over its time over
    a BF16 one, of a kernel that reads FP8 itself}."""
    overlap: OverlapProfile
    all_to_all: AllToAllProfile
    transfers: TransferProfile
    """Bulk transfers; in a file, the name of the transport that has achieved them."""
    collectives: str = "nccl"
    """Transport whose measured times collective operations within an NVLink domain take, by name or
    path; nccl: the shipped one of the cluster's GPU, and where it has none, links at the achieved
    rates; ideal: those always."""
    normal_kernels: str = "deepep"
    """Timed normal dispatch and combine kernels by SMs, by name or path; deepep: the shipped ones
    of the cluster's GPU, and where it has none, links and `copy_bandwidth_per_sm`; none: those
    always."""
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


Kind = Literal["gpus", "clusters", "calibrations", "transports"]
"""Folders of shipped profiles."""

_FIELD_OF_FOLDER = {
    "gpus": "GPU",
    "clusters": "cluster",
    "calibrations": "calibration",
    "transports": "transport",
}


def known_profiles(kind: Kind) -> tuple[str, ...]:
    """Names of the shipped profiles of one kind, sorted."""
    return tuple(sorted(path.stem for path in (ROOT / kind).glob("*.yaml")))


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
    raw, where = read_profile("gpus", name_or_path)
    return to_profile(GpuProfile, override_gpu(raw, overrides or {}, where=where), where=where)


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
    raw, where = read_profile("calibrations", name_or_path)
    return to_profile(
        CalibrationProfile, override_calibration(raw, overrides or {}, where=where), where=where
    )


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
    raw, where = read_profile("transports", name_or_path)
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
        node["gpu"] = read_profile("gpus", node["gpu"])[0]
    rest = {path: value for path, value in overrides.items() if path != "node.gpu"}
    changed = apply_overrides(resolved, rest, where=where)
    fabric = changed.get("fabric")
    if isinstance(fabric, dict) and "fabric.topology" in rest and "fabric.planes" not in rest:
        _with_its_planes(fabric, _at(resolved, ["fabric", "topology"]), changed.get("node"))
    return _keep_stated(
        resolved,
        changed,
        {f"node.gpu.{field}": f"node.gpu.{kept}" for field, kept in _PEAKS_HOLD_AT.items()},
    )


def _with_its_planes(fabric: Raw, former: Any, node: Any) -> None:
    """Give a fabric of another topology one plane, a multi-plane fat-tree one for each NIC."""
    if fabric.get("topology") == former:
        return
    planes = node.get("nics") if isinstance(node, dict) else None
    fabric["planes"] = planes if fabric.get("topology") == "multi_plane_fat_tree" else 1
    if isinstance(fabric.get("sources"), dict):
        fabric["sources"] |= {"planes": "follows from the topology that was set"}


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
        resolved["transfers"] = read_profile("transports", transport)[0]["achieved"]
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
        changed: the dict after; written to.
        kept: {dotted path that may have changed: dotted path that keeps what it was}.
    """
    for path, beside in kept.items():
        *parents, last = beside.split(".")
        stated = _at(raw, path.split("."))
        into = _at(changed, parents)
        if isinstance(into, dict) and stated not in (None, _at(changed, path.split("."))):
            into.setdefault(last, stated)
    return changed


def _at(raw: Any, keys: Sequence[str]) -> Any:
    """What lies in nested dicts at some keys; None where nothing does."""
    for key in keys:
        raw = raw.get(key) if isinstance(raw, dict) else None
    return raw


def read_profile(kind: Kind, name_or_path: str) -> tuple[Raw, str]:
    """Read one YAML file as a plain dict, and say what to call it in messages.

    A text with a slash or the ending .yaml is a path; anything else names a shipped profile.
    """
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path, where = Path(name_or_path), name_or_path
    else:
        name_or_path = file_of_today(name_or_path, kind)
        path, where = ROOT / kind / f"{name_or_path}.yaml", f"{kind}/{name_or_path}.yaml"
        if name_or_path not in known_profiles(kind):
            raise ValueError(
                f"unknown {_FIELD_OF_FOLDER[kind]} {name_or_path!r}; "
                f"known: {', '.join(known_profiles(kind))}; or give a path to a .yaml file"
            )
        return read_yaml(path, where=where), where
    raw = read_yaml(path, where=where)
    if kind in EARLIER_NAMES:
        raw = with_names_of_today(raw, kind, where=where)
    return _completed(files_beside(raw, path)) if kind == "calibrations" else raw, where


def files_beside(raw: Raw, path: Path) -> Raw:
    """A calibration's dict with the files that it names from its own folder (./rows.csv) in full.

    Args:
        path: of the calibration.
    """

    def full(name: Any) -> Any:
        near = isinstance(name, str) and name.startswith(("./", "../"))
        return str((path.resolve().parent / name).resolve()) if near else name

    tables = raw.get("measurements")
    rows = {"measurements": [full(name) for name in tables]} if isinstance(tables, list) else {}
    return raw | rows | {n: full(raw[n]) for n in ("collectives", "normal_kernels") if n in raw}


_LATER_FIELDS = (
    "tiles",
    "other_gpu",
    "common_share",
    "all_to_all.sms_per_channel",
    "all_to_all.limited_by_nvlink",
    "all_to_all.nvlink_latency",
    "all_to_all.network_latency",
)
"""Fields of calibrations that files written before these were fields lack."""


def _completed(raw: Raw) -> Raw:
    """A user's calibration with the fields that older files lack, from its GPU's shipped one.

    Until they became fields, every calibration was used with just these values. The source of each
    says where it comes from; a GPU without a shipped calibration leaves the file as it is.
    """
    gpu = raw.get("gpu")
    if not isinstance(gpu, str) or gpu not in known_calibrations():
        return raw
    shipped, _ = read_profile("calibrations", gpu)
    taken = f"as in the shipped calibration {gpu}, because this file does not state it: "
    completed = copy.deepcopy(raw)
    for path in _LATER_FIELDS:
        *parents, field = path.split(".")
        into, of = completed, shipped
        for parent in parents:
            into, of = into.get(parent, {}), of[parent]
        if not isinstance(into, dict) or field in into:
            continue
        value = into[field] = copy.deepcopy(of[field])
        if isinstance(value, dict) and "source" in value:
            value["source"] = taken + value["source"]
        elif isinstance(value, dict):
            value["sources"] = {name: taken + text for name, text in value["sources"].items()}
        else:
            sources = into["sources"] = into.get("sources") or {}
            if isinstance(sources, dict):
                sources[field] = taken + of["sources"][field]
    return completed
