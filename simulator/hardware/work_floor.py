"""More work takes no less time: measured rows bound from below whatever is larger in every size.

Rows of attention are few and lie far apart; the efficiency of one sequence and that of sixteen
differ so much that a mean of their curves would dip between them, by a third on the H800. Between
the contexts of rows a dip of up to 2 % remains at two and three sequences.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.hardware.roofline import Batch

Array = NDArray[np.float64]

MONOTONE_KINDS = frozenset({"mla_decode", "attention_forward", "attention_backward"})
"""Kinds that this holds for: no size of theirs is rounded up to a tile that a larger one fills."""


class WorkFloor:
    """Times of rows as lower bounds."""

    def __init__(self, batch: Batch, sms: Array, log_seconds: Array) -> None:
        """Store the distinct rows.

        Args:
            batch: operators of the rows.
            sms: [rows] that they had.
            log_seconds: [rows] what the family's model says for them.
        """
        self._work, first = np.unique(_work(batch, sms), axis=0, return_index=True)
        self._log_seconds = log_seconds[first]
        self._varies = np.ptp(self._work, axis=0) > 0

    def raise_to(self, log_seconds: Array, batch: Batch, sms: Array) -> Array:
        """[operators] log seconds, raised to the longest row with no more work on no fewer SMs."""
        work = _work(batch, sms)
        fixed = ~self._varies
        comparable = np.flatnonzero((work[:, fixed] >= self._work[0, fixed]).all(axis=1))
        work = work[np.ix_(comparable, self._varies)]
        raised = log_seconds.copy()
        lowest = np.full(len(comparable), -np.inf)
        for row, seconds in zip(
            self._work[:, self._varies], self._log_seconds.tolist(), strict=True
        ):
            larger = (work >= row).all(axis=1)
            lowest[larger] = np.maximum(lowest[larger], seconds)
        raised[comparable] = np.maximum(raised[comparable], lowest)
        return raised


def _work(batch: Batch, sms: Array) -> Array:
    """[operators, sizes + 1] what takes longer the larger it is: sizes, and fewer SMs."""
    work: Array = np.column_stack([batch.sizes.astype(np.float64), -sms])
    return work
