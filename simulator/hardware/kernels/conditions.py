"""Restate kernel times for other SM counts and for what runs beside a kernel.

A row carries the SMs that its kernel had and the share of its time with an all-to-all in flight. A
row of an overlapped pair answers an overlapped question as it is; a row that holds for the other
condition only is converted by the ratio of its class in CalibrationProfile.overlap. Alone, a
memory-bound kernel fills all SMs whatever it was given; a persistent GEMM runs on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.calibration_parts import OverlapProfile, TilesProfile
from hardware_profiles.estimates import SlowdownEstimate
from hardware_profiles.schema import GpuProfile
from hardware_profiles.tables import Measurement
from hardware_profiles.units import Seconds
from simulator.hardware.kernels.families import batch_of_rows
from simulator.hardware.kernels.measured_rows import Rows
from simulator.hardware.kernels.roofline import Ideal, is_tensor, waves_and_bytes

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Conditions:
    """The two conditions, alone and beside an all-to-all, on the measured GPU."""

    gpu: GpuProfile
    overlap: OverlapProfile

    def ratio(self, kind: str) -> SlowdownEstimate:
        """How much slower a kernel runs beside an all-to-all."""
        overlap = self.overlap
        if not is_tensor(kind):
            return overlap.memory_bound
        return overlap.attention if kind.startswith("attention") else overlap.gemm

    def convert(
        self, rows: Sequence[Measurement], floor: Seconds, tiles: TilesProfile
    ) -> tuple[Rows, Rows]:
        """Bring the rows of one family and kernel set to both conditions: alone, and overlapped.

        A row of an overlapped pair was slowed for a share of its time: overlapped it answers as it
        is, alone that share is taken out by the ratio that the rows hold. Every other row was
        alone, and is slowed by that ratio. Kernels that ran on the communication SMs are brought to
        the compute SMs of a pair first.

        Args:
            floor: added to ideal times, what launching the operator's kernels takes.
            tiles: of the family's kernels.
        """
        kind = rows[0].kind
        of_rows = self.ratio(kind).of_rows
        batch = batch_of_rows(rows)
        share = np.array([row.all_to_all_share for row in rows])
        in_pair = np.array([row.pair for row in rows])
        squeezed = np.array([row.beside_compute for row in rows])
        if not is_tensor(kind):
            # A share of the SMs is a share of them whether or not anything runs on the others.
            squeezed |= (~in_pair) & (
                np.array([row.sms < self.gpu.sms for row in rows], dtype=np.bool_)
            )
        sms = np.array([row.sms for row in rows], dtype=np.float64)
        log_seconds = np.log(np.array([row.seconds for row in rows]))
        if not is_tensor(kind):
            squeeze = self.log_squeeze(sms, self.gpu.sms, slowdown=of_rows)
            log_seconds -= np.where(squeezed, squeeze, 0.0)
        slowed = np.where(squeezed, 1.0, share)
        to_alone = -np.log(1.0 + (of_rows - 1.0) * slowed)
        slowed = np.where(in_pair | squeezed, slowed, 1.0)
        to_pair = np.where(in_pair | squeezed, 0.0, np.log(of_rows))
        parts = waves_and_bytes(batch, sms, self.gpu, tiles)
        weights = np.array([row.repeats for row in rows])
        spread = np.array([np.nan if row.spread is None else row.spread for row in rows])
        left = self.gpu.sms - self.overlap.reference_communication_sms
        every_sm = np.full(len(rows), float(self.gpu.sms))
        alone, overlapped = (
            Rows(
                batch=batch,
                sms=sms if is_tensor(kind) else room,
                log_seconds=log_seconds + change,
                ideal=Ideal(*parts, floor),
                weights=weights,
                direct=direct,
                spread=spread,
                slowed=slowed,
            ).without_redundant()
            for room, change, direct in (
                (every_sm, to_alone, (share == 0.0) & ~squeezed),
                (np.where(squeezed, sms, left), to_pair, in_pair | squeezed),
            )
        )
        return alone, overlapped

    def log_more(self, kind: str, slowed: Array) -> Array:
        """Log slow-down beside an all-to-all beyond that of the rows, where its ratio is changed.

        Args:
            slowed: [operators] share of their time that it slows.
        """
        ratio = self.ratio(kind)
        more: Array = np.log1p((ratio.value - 1.0) * slowed)
        more -= np.log1p((ratio.of_rows - 1.0) * slowed)
        return more

    def log_squeeze(self, sms: Array, available: int, *, slowdown: float) -> Array:
        """Log slow-down of a memory-bound kernel on other SMs than an overlapped pair leaves it.

        Kernels that fill every free SM slow by 1.15 where 132 SMs become 112: seconds go by
        SMs ** -0.85, both numbers from the calibration. What the SMs that are gone do not explain
        slows on any number of them: the exponent is at most 1.

        Args:
            available: SMs of the GPU.
            slowdown: of memory-bound kernels beside an all-to-all.
        """
        overlap = self.overlap
        taken = overlap.reference_communication_sms
        total = self.gpu.sms
        exponent = min(1.0, np.log(slowdown) / np.log(total / (total - taken)))
        left = available * (1 - taken / total)
        log_slowdown: Array = exponent * np.log(left / sms)
        return log_slowdown
