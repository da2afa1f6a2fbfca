"""Blocks of a calibration: what slows kernels and transfers, and what fits have found out."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from hardware_profiles.estimates import Estimate, SlowdownEstimate, TimeEstimate
from hardware_profiles.fields import BandwidthValue, Count, Profile, Ratio, TimeValue
from hardware_profiles.profile_files import achieved_rates


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
    """Time of a dispatch beside compute over its time alone."""
    combine: Estimate
    """Time of a combine beside compute over its time alone."""

    @model_validator(mode="before")
    @classmethod
    def _both(cls, given: object) -> object:
        bare = isinstance(given, int | float | str)  # Estimate says that an interval is missing
        if bare or (isinstance(given, dict) and "value" in given):
            return {"dispatch": given, "combine": given}
        return given

    @classmethod
    def none(cls, source: str) -> Self:
        """Transfers that take as long beside compute as alone."""
        alone = Estimate(value=1.0, low=1.0, high=1.0, source=source)
        return cls(dispatch=alone, combine=alone)

    def of(self, kind: str) -> Estimate:
        """The ratio of a dispatch or a combine."""
        return self.dispatch if kind == "dispatch" else self.combine


class WithoutWaiting(Profile):
    """What is left of an all-to-all beside compute once ranks that wait for others are simulated:
    by the samples that waited least."""

    notify: TimeEstimate
    """Count exchange and barrier before a dispatch or combine."""
    dispatch: Estimate
    """Of a dispatch: time beside compute over the time alone."""
    combine: Estimate
    """The same of a combine."""


class CopyRates(Profile):
    """What one communication SM moves over NVLink while SMs, not links, are the limit.

    A combined token has about twice the bytes of a dispatched one, so it takes about twice the SMs.
    """

    dispatch: BandwidthValue
    """Of a dispatch in a group that one node holds."""
    combine: BandwidthValue
    """In a group that one node holds."""
    forwarded_dispatch: BandwidthValue
    """Of a dispatch between nodes, of the SM of each channel that forwards between network and
    NVLink."""
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
    """What one communication SM moves over NVLink while SMs, not links, are the limit."""
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
    """How much longer an all-to-all takes beside compute than alone: time ratios, with the waiting
    of ranks that differ in them."""
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


def _of_named(given: object) -> object:
    """The share of NICs that the transport of a name achieves; a number is none."""
    if isinstance(given, str) and not given.replace(".", "", 1).isdigit():
        return achieved_rates(given)["nic"]
    return given


class TransferProfile(Profile):
    """What transfers achieve: payload over a link's datasheet rate, at most 1."""

    nic: Annotated[Estimate, BeforeValidator(_of_named)]
    """Payload that a NIC carries over its line rate; the name of a transport stands for its own."""
    nvlink: Estimate
    """Payload that NVLink carries over its line rate."""
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
    """Rows that were predicted."""
    median: float
    """Median of the errors."""
    p90: float
    """90th percentile of the errors."""
    worst: float
    """Largest of the errors."""
    bias: float
    """Median signed error."""
    quantile_80: float
    """80% quantile of the absolute log error: the half-width of an interval."""


RowReach = Literal["between", "edge", "shape", "size", "gap", "beyond"]
"""How far from the rows of a kernel's family: between rows of its shape; beside them; in a shape
without rows; with a size of no row; in a gap between loads; beyond all loads."""


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
        widths = fields.get("widths")
        if isinstance(widths, list | tuple) and 2 <= len(widths) <= 3:
            # Files of earlier releases: rows left out alone, whole shapes, and the ends.
            named = zip(("between", "shape", "beyond"), (*widths[:2], widths[-1]), strict=True)
            widths = {name: width for name, width in named if width is not None}
        if isinstance(widths, dict) and "shape" in widths:
            # Of earlier releases too, and of tables that say too little of their edges.
            widths = {"edge": widths["shape"], **widths}
        return raw if widths is None else {**fields, "widths": widths}

    kind: str
    """Kind of kernel, such as gemm."""
    dtype: str
    """Type of the operands."""
    out_dtype: str
    """Type of the result."""
    accumulate: bool
    """Whether the result is added to what is there."""
    kernel_set: str
    """Library or table that the rows are of."""
    rows: Count
    """Rows of the family in the table."""
    lengths: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """{feature: octaves by which rows of this family differ as much as at all}; empty where there
    are too few rows to find them."""
    noise_share: Annotated[float, Field(gt=0)] | None = None
    """Variance of a row's noise over that between rows far apart; at the median time at peak."""
    noise_slope: float | None = None
    """Octaves by which the deviation of that noise grows with each octave of time at peak: below 0
    where long kernels repeat better than short ones; none of too few rows to tell."""
    widths: dict[RowReach, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """{how far from rows: 80% quantile of the log error of rows left out so far from the others,
    over the deviation of the model}; of what too few rows tell, nothing."""
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
