"""Keep what became of each request of a fleet, and what its instances did for a while.

Statistics are gathered in bounded memory; these records are for whoever wants to look at requests
one by one. Requests are kept all, iterations from an instant on until there are many.
"""

from __future__ import annotations

import numpy as np

from simulator.execution.fleet.log import (
    Column,
    IterationRow,
    Outcome,
    RequestRow,
    RowBlock,
    joined_rows,
)

MOST_ITERATIONS = 20_000
"""Iterations that are kept: a trace of them opens in a second."""


class FleetRecords:
    """A FleetLog that keeps rows."""

    def __init__(self, *, from_s: float, most_iterations: int = MOST_ITERATIONS) -> None:
        """
        Args:
            from_s: iterations that begin earlier are not kept.
        """
        self._from_s = from_s
        self._room = most_iterations
        self._requests: list[RowBlock] = []
        self._iterations: list[RowBlock] = []

    def requests(self, block: RowBlock) -> None:
        self._requests.append(block)

    def iterations(self, block: RowBlock) -> None:
        if self._room > 0:
            kept = block.where(block["start_s"] >= self._from_s)
            kept = kept.where(np.arange(len(kept)) < self._room)
            self._room -= len(kept)
            self._iterations.append(kept)

    def gaps(self, block: RowBlock) -> None:
        """Not kept."""

    def samples(self, block: RowBlock) -> None:
        """Not kept."""

    def first_arrived(self, now_s: float) -> None:
        """Nothing to do: requests are kept all."""

    def arrivals_ended(self, now_s: float) -> None:
        """Nothing to do: requests are kept all."""

    def all_requests(self) -> RowBlock:
        """Every request in order of arrival."""
        rows = joined_rows(RequestRow._fields, self._requests)
        return RowBlock(RequestRow._fields, rows.rows[np.argsort(rows["request"], kind="stable")])

    def kept_iterations(self) -> RowBlock:
        """The iterations of the stretch, in order of their ends."""
        return joined_rows(IterationRow._fields, self._iterations)


def queueing_s(requests: RowBlock) -> Column:
    """[requests], from arrival to the first pass; NaN of one that no pass has begun."""
    return _passed(requests["arrival_s"], requests["prefill_start_s"])


def ttft_s(requests: RowBlock) -> Column:
    """[requests], from arrival to the first token; NaN of one without any."""
    return _passed(requests["arrival_s"], requests["first_token_s"])


def tpot_s(requests: RowBlock) -> Column:
    """[requests], time per output token after the first; NaN of one that has not ended with two."""
    later = requests["generated_tokens"] - 1
    over = _passed(requests["first_token_s"], requests["end_s"])
    known = (later > 0) & (requests["outcome"] == Outcome.FINISHED)
    return np.where(known, over / np.where(later > 0, later, 1.0), np.nan)


def _passed(start: Column, end: Column) -> Column:
    return np.where((start >= 0) & (end >= 0), end - start, np.nan)
