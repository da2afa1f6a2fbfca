"""Predict the wire times of low-latency all-to-all kernels from a few published rows.

Low-latency dispatch and combine (DeepEP) send every copy of a token straight to the GPU of its
expert, without forwarding. Their time grows with bytes from an intercept, so one measured row per
group size gives the bandwidth that a rank achieves: bytes that cross the link / (time - intercept).
Three forms exist: every copy over NVLink, every copy through NICs, and mixed, DeepEP's default
since June 2025: copies to GPUs of the own NVLink domain go over NVLink, the rest through NICs, both
at once, and the slower decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from hardware_profiles.estimates import TimeEstimate
from hardware_profiles.fields import (
    ROOT,
    BandwidthValue,
    Count,
    DataValue,
    Profile,
    TimeValue,
    read_yaml,
    to_profile,
)
from hardware_profiles.suggestions import meant_or_known
from hardware_profiles.units import Bytes, BytesPerSecond, Seconds, format_seconds

FOLDER = ROOT / "low_latency"

SCALE_BYTES = 4
"""One FP32 scale for each tile of a dispatched row."""
TILE = 128
META_BYTES = 16
"""Source index and padding that travel with each dispatched row."""
BF16_BYTES = 2


MoeOperation = Literal["dispatch", "combine"]
End = Literal["value", "low", "high"]
"""Which figure of an estimate."""


class Intercept(Profile):
    """Times of next to no tokens at one group size."""

    ranks: Count
    dispatch: TimeEstimate
    combine: TimeEstimate


class LowLatencyRow(Profile):
    """Times of one group size, kernels sending and receiving at once."""

    ranks: Count
    dispatch: TimeValue
    combine: TimeValue


class LowLatencyProfile(Profile):
    """Published or measured rows of one machine, all for the same tokens, hidden size and top-k."""

    name: str
    link: Literal["nic", "nvlink", "mixed"]
    """What the copies travel over; mixed: NVLink within an NVLink domain, NICs beyond it."""
    link_bandwidth: BandwidthValue
    """Line rate of that link on the measured machine, per GPU and direction; mixed: of the NIC."""
    domain: Count | None = None
    """mixed: GPUs that NVLink joins on the measured machine."""
    within: LowLatencyProfile | None = None
    """mixed: the profile of copies within a domain; in a file, its name."""
    tokens: Count
    """Tokens of one rank."""
    hidden: Count
    top_k: Count
    buffers: Count
    """Message buffers that a rank keeps, each with room for every expert's tokens."""
    header: DataValue
    """Bytes of a buffered message before its values."""
    latency: TimeValue
    """Of the measured machine's network, which the intercepts hold."""
    intercepts: tuple[Intercept, ...]
    dispatch_send: TimeEstimate
    """Kernel that casts tokens and posts their messages, at `tokens` tokens; so the next three."""
    dispatch_receive: TimeEstimate
    """Kernel that packs arrived rows by expert."""
    combine_send: TimeEstimate
    combine_receive: TimeEstimate
    """Kernel that sums returned rows."""
    rows: tuple[LowLatencyRow, ...]

    @model_validator(mode="after")
    def _form_is_complete(self) -> Self:
        for field in ("domain", "within"):
            if (self.link == "mixed") != (getattr(self, field) is not None):
                raise ValueError(f"{field} is needed with link mixed, and only then")
        if self.within is not None and self.within.link != "nvlink":
            raise ValueError(f"within: link {self.within.link}; allowed: a profile of link nvlink")
        for field in ("rows", "intercepts"):
            sizes = [entry.ranks for entry in getattr(self, field)]
            if not sizes or sizes != sorted(set(sizes)):
                raise ValueError(f"{field}: ranks {sizes}; allowed: at least one, ascending")
        smallest = self.rows[0].ranks
        if self.crossing(smallest, self.domain) <= 0.0:
            raise ValueError(
                f"rows: ranks {smallest}; allowed with link {self.link}: more than "
                f"{self.domain or 1}, as no copy crosses a NIC otherwise"
            )
        for row in self.rows:
            for operation in get_args(MoeOperation):
                longest = self.intercept(operation, row.ranks, "high")
                if longest >= getattr(row, operation):
                    raise ValueError(
                        f"rows: {operation} among {row.ranks} ranks takes "
                        f"{format_seconds(getattr(row, operation))}; allowed: more than the "
                        f"highest intercept, {format_seconds(longest)}"
                    )
        return self

    def crossing(self, ranks: int, domain: int | None) -> float:
        """Share of evenly spread copies that cross the link in a group of `ranks`, on a machine
        whose NVLink domains have `domain` GPUs. A NIC carries no copy to its own GPU; over NVLink
        the send kernel stores those as well."""
        if self.link == "nvlink":
            return 1.0
        near = domain if self.link == "mixed" and domain is not None else 1
        return max(0.0, 1.0 - near / ranks)

    def fraction(self, operation: MoeOperation, ranks: int, end: End = "value") -> float:
        """Share of the line rate that a group of `ranks` achieves, between its neighbouring rows on
        the logarithm of the group size; beyond the rows, that of the nearest. `end`: with which
        figure of the intercept."""
        sizes = [row.ranks for row in self.rows]
        messages = message_bytes(self.hidden, dispatched=fp8_row_bytes(self.hidden))
        copies = self.tokens * self.top_k * messages[operation]
        achieved = [
            copies
            * self.crossing(row.ranks, self.domain)
            / (getattr(row, operation) - self.intercept(operation, row.ranks, end))
            / self.link_bandwidth
            for row in self.rows
        ]
        return _at_ranks(ranks, sizes, achieved)

    def intercept(self, operation: MoeOperation, ranks: int, end: End = "value") -> Seconds:
        """The time of next to no tokens in a group of `ranks`, between its neighbouring intercepts
        like `fraction`."""
        sizes = [entry.ranks for entry in self.intercepts]
        times = [getattr(getattr(entry, operation), end) for entry in self.intercepts]
        return _at_ranks(ranks, sizes, times)

    def covers(self, ranks: int) -> bool:
        """Whether `ranks` lies within the measured group sizes."""
        return self.rows[0].ranks <= ranks <= self.rows[-1].ranks

    def is_measured(self, ranks: int) -> bool:
        """Whether the group size was measured itself."""
        return any(row.ranks == ranks for row in self.rows)


def _at_ranks(ranks: int, sizes: Sequence[int], values: Sequence[float]) -> float:
    return float(np.interp(np.log(ranks), np.log(sizes), values))


def message_bytes(hidden: int, *, dispatched: Bytes) -> dict[MoeOperation, Bytes]:
    """Bytes of one copy of one token: values, scales and source of a dispatched row; BF16 values of
    a combined one (DeepEP, test_low_latency.py).

    Args:
        dispatched: values and scales of a dispatched row.
    """
    return {"dispatch": dispatched + META_BYTES, "combine": hidden * BF16_BYTES}


def fp8_row_bytes(hidden: int) -> Bytes:
    """Values and scales of a row in FP8, as published rows dispatch it."""
    return hidden + -(-hidden // TILE) * SCALE_BYTES


def wire_time(
    profile: LowLatencyProfile,
    operation: MoeOperation,
    *,
    copies: NDArray[np.float64],
    message: Bytes,
    ranks: int,
    link_bandwidth: BytesPerSecond,
    end: End = "value",
) -> NDArray[np.float64]:
    """Seconds until `copies` copies of `message` bytes have crossed a link of `link_bandwidth`,
    intercept excluded.

    The achieved share of the line rate is taken over from the profile, with the given figure of its
    intercept; of a mixed profile, copies and link are those of the NICs."""
    rate = profile.fraction(operation, ranks, end) * link_bandwidth
    return copies * message / rate


def kernel_time(
    at_profile: Seconds,
    profile: LowLatencyProfile,
    *,
    copies: NDArray[np.float64],
    floor: Seconds,
) -> NDArray[np.float64]:
    """Time of a send or receive kernel over `copies` copies: a floor, and the rest by copies."""
    share = copies / (profile.tokens * profile.top_k)
    return floor + max(0.0, at_profile - floor) * share


def known_low_latency() -> tuple[str, ...]:
    """Names of the shipped profiles, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def load_low_latency(name_or_path: str) -> LowLatencyProfile:
    """Load a profile by shipped name or by path. Raises ValueError, one line, if it is wrong."""
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path, where = Path(name_or_path), name_or_path
    else:
        path, where = FOLDER / f"{name_or_path}.yaml", f"low_latency/{name_or_path}.yaml"
        if name_or_path not in known_low_latency():
            meant = meant_or_known(
                name_or_path, known_low_latency(), otherwise="a path to a .yaml file"
            )
            raise ValueError(f"unknown low-latency profile {name_or_path!r}; {meant}")
    raw = read_yaml(path, where=where)
    if isinstance(raw.get("within"), str):
        raw["within"] = load_low_latency(raw["within"])
    return to_profile(LowLatencyProfile, raw, where=where)
