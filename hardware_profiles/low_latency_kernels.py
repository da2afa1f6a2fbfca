"""What low-latency all-to-all kernels achieve: measured rows in, wire times of any size out.

Low-latency dispatch and combine (DeepEP) send every copy of a token straight to the GPU of its
expert, without forwarding. Their time grows with bytes from a small intercept, so one measured row
a group size gives the bandwidth that a rank achieves: bytes / (time - intercept). Bytes are counted
as DeepEP's own test counts them: all copies, those to the own rank included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.fields import (
    ROOT,
    BandwidthValue,
    Count,
    DataValue,
    Profile,
    TimeValue,
    read_yaml,
    validate,
)
from hardware_profiles.schema import TimeEstimate
from hardware_profiles.units import Bytes, BytesPerSecond, Seconds

FOLDER = ROOT / "low_latency"

SCALE_BYTES = 4
"""One FP32 scale for each tile of a dispatched row."""
TILE = 128
META_BYTES = 16
"""Source index and padding that travel with each dispatched row."""
BF16_BYTES = 2


class LowLatencyRow(Profile):
    """Times of one group size, kernels sending and receiving at once."""

    ranks: Count
    dispatch: TimeValue
    combine: TimeValue


class LowLatencyProfile(Profile):
    """Published or measured rows of one machine, all for the same tokens, hidden size and top-k."""

    name: str
    link: Literal["nic", "nvlink"]
    """What the copies travel over."""
    link_bandwidth: BandwidthValue
    """Line rate of that link on the measured machine, per GPU and direction."""
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
    dispatch_intercept: TimeEstimate
    """Time of a dispatch of next to no tokens."""
    combine_intercept: TimeEstimate
    dispatch_send: TimeEstimate
    """Kernel that casts tokens and posts their messages, at `tokens` tokens; so the next three."""
    dispatch_receive: TimeEstimate
    """Kernel that packs arrived rows by expert."""
    combine_send: TimeEstimate
    combine_receive: TimeEstimate
    """Kernel that sums returned rows."""
    rows: tuple[LowLatencyRow, ...]

    def fraction(self, operation: Operation, ranks: int) -> float:
        """Share of the line rate that a group of `ranks` achieves, between its neighbouring rows on
        the logarithm of the group size; beyond the rows, that of the nearest."""
        sizes = np.log([row.ranks for row in self.rows])
        moved = self.tokens * self.top_k * message_bytes(operation, self.hidden)
        times = np.array([getattr(row, operation) for row in self.rows])
        achieved = moved / (times - self.intercept(operation).value) / self.link_bandwidth
        return float(np.interp(np.log(ranks), sizes, achieved))

    def intercept(self, operation: Operation) -> TimeEstimate:
        """The time of next to no tokens."""
        return self.dispatch_intercept if operation == "dispatch" else self.combine_intercept

    def covers(self, ranks: int) -> bool:
        """Whether `ranks` lies within the measured group sizes."""
        return self.rows[0].ranks <= ranks <= self.rows[-1].ranks

    def is_measured(self, ranks: int) -> bool:
        """Whether the group size was measured itself."""
        return any(row.ranks == ranks for row in self.rows)


Operation = Literal["dispatch", "combine"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)


def message_bytes(operation: Operation, hidden: int) -> Bytes:
    """Bytes of one copy of one token: FP8 values, scales and source of a dispatched row; BF16
    values of a combined one (DeepEP, test_low_latency.py)."""
    if operation == "dispatch":
        return hidden + -(-hidden // TILE) * SCALE_BYTES + META_BYTES
    return hidden * BF16_BYTES


def wire_time(
    profile: LowLatencyProfile,
    operation: Operation,
    *,
    copies: NDArray[np.float64],
    hidden: int,
    ranks: int,
    link_bandwidth: BytesPerSecond,
) -> NDArray[np.float64]:
    """Seconds until `copies` copies have crossed a link of `link_bandwidth`, intercept excluded.

    The achieved share of the line rate is taken over from the profile."""
    rate = profile.fraction(operation, ranks) * link_bandwidth
    return copies * message_bytes(operation, hidden) / rate


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
            raise ValueError(
                f"unknown low-latency profile {name_or_path!r}; "
                f"known: {', '.join(known_low_latency())}; or give a path to a .yaml file"
            )
    profile = validate(LowLatencyProfile, read_yaml(path, where=where), where=where)
    sizes = [row.ranks for row in profile.rows]
    if not sizes or sizes != sorted(set(sizes)):
        raise ValueError(f"{where}: rows: ranks {sizes}; allowed: at least one row, ascending")
    return profile
