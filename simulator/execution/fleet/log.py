"""The raw records of a fleet run: requests, iterations, token gaps and queue samples.

Rows leave in blocks of columns, in order of time, to whoever consumes them: CollectedLog keeps
them all, analysis turns them into statistics without keeping any. Nothing here knows a metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import ClassVar, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Column: TypeAlias = NDArray[np.float64]

_ROWS_PER_BLOCK = 4096
GAPS = ("end_s", "gap_s")
"""Columns of times between two tokens of a request that are no decode step."""


class Outcome(IntEnum):
    """How a request ended."""

    FINISHED = 0
    UNFINISHED = 1
    """Still in the service when the simulation ended."""
    REJECTED_TOO_LONG = 2
    """Its KV cache can never fit one rank."""
    REJECTED_QUEUE_FULL = 3
    REJECTED_NO_CAPACITY = 4
    """A pool has no instance at all."""


class RequestRow(NamedTuple):
    """One request, written when it ends. Times are seconds, -1 where it never came so far."""

    request: float
    """Its number, in order of arrival."""
    arrival_s: float
    prefill_start_s: float
    """Start of the first prefill pass that computed some of it."""
    first_token_s: float
    decode_start_s: float
    """Start of its first decode step."""
    end_s: float
    prompt_tokens: float
    output_tokens: float
    generated_tokens: float
    cached_tokens: float
    """Prompt tokens that its first prefill did not compute."""
    blocks: float
    """Prompt blocks with a hash."""
    hit_blocks: float
    priority: float
    preemptions: float
    restarts: float
    """After failures."""
    outcome: float
    prefill_instance: float
    """Number of the instance of its first pass and of its first decode step, -1 for none."""
    decode_instance: float


class IterationRow(NamedTuple):
    """One pass, or several decode steps with the same requests, of one instance."""

    instance: float
    start_s: float
    end_s: float
    steps: float
    """Decode steps; 0 for a pass without any."""
    batch: float
    """Requests that decode, over all ranks."""
    joined: float
    """Those of them whose first step this is: its gap stands in the rows of GAPS."""
    output_tokens: float
    """Tokens that decode steps gave, and first tokens that the pass gave."""
    first_step_s: float
    """End of the first decode step, from start_s."""
    last_step_s: float
    """Duration of the last decode step."""
    prefill_tokens: float
    """Prompt tokens computed."""
    prompt_tokens: float
    """Whole prompts, cached parts included, whose prefill ended here."""
    kv_tokens: float
    """KV cache held by all ranks, mean of start and end."""
    waiting: float
    """Requests in the instance's prefill queue at the start."""
    pass_s: float
    """Duration of the prefill pass."""
    even_pass_s: float
    """The same if all ranks had shared its work alike."""


class SampleRow(NamedTuple):
    """The fleet at one instant."""

    time_s: float
    waiting_prefill: float
    """Requests that no pass has begun."""
    waiting_decode: float
    """Requests with a first token that wait for KV cache in a decode instance."""
    in_system: float
    arrived: float
    """Since time 0."""
    ended: float


class RowBlock:
    """Rows as columns: ``block["end_s"]`` is an array of one value per row."""

    __slots__ = ("_fields", "rows")

    def __init__(self, fields: tuple[str, ...], rows: Column) -> None:
        self._fields = fields
        self.rows = rows

    def __getitem__(self, name: str) -> Column:
        return self.rows[:, self._fields.index(name)]

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, mask: NDArray[np.bool_]) -> RowBlock:
        """The rows for which ``mask`` is true."""
        return RowBlock(self._fields, self.rows[mask])


class FleetLog(Protocol):
    """Consumer of a fleet's rows."""

    def requests(self, block: RowBlock) -> None: ...
    def iterations(self, block: RowBlock) -> None: ...
    def gaps(self, block: RowBlock) -> None: ...
    def samples(self, block: RowBlock) -> None: ...
    def first_arrived(self, now_s: float) -> None:
        """The last of the first requests has arrived (see run_fleet); all rows up to now have been
        delivered."""
        ...

    def arrivals_ended(self, now_s: float) -> None:
        """The last request has arrived; all rows up to now have been delivered."""
        ...


class CollectedLog:
    """Keeps every row: for tests and short runs."""

    def __init__(self) -> None:
        self._blocks: dict[str, list[RowBlock]] = {"r": [], "i": [], "g": [], "s": []}

    def requests(self, block: RowBlock) -> None:
        self._blocks["r"].append(block)

    def iterations(self, block: RowBlock) -> None:
        self._blocks["i"].append(block)

    def gaps(self, block: RowBlock) -> None:
        self._blocks["g"].append(block)

    def samples(self, block: RowBlock) -> None:
        self._blocks["s"].append(block)

    def first_arrived(self, now_s: float) -> None:
        """Nothing to do: all rows are kept."""

    def arrivals_ended(self, now_s: float) -> None:
        """Nothing to do: all rows are kept."""

    def all_requests(self) -> RowBlock:
        """Every RequestRow, in order of their ends."""
        return joined_rows(RequestRow._fields, self._blocks["r"])

    def all_iterations(self) -> RowBlock:
        return joined_rows(IterationRow._fields, self._blocks["i"])

    def all_gaps(self) -> RowBlock:
        return joined_rows(GAPS, self._blocks["g"])


def joined_rows(fields: tuple[str, ...], blocks: list[RowBlock]) -> RowBlock:
    """Blocks of rows as one."""
    rows = [block.rows for block in blocks] or [np.empty((0, len(fields)))]
    return RowBlock(fields, np.concatenate(rows))


class LogWriter:
    """Collects rows and hands them in blocks to every log."""

    ROWS: ClassVar[int] = _ROWS_PER_BLOCK

    def __init__(self, logs: Sequence[FleetLog]) -> None:
        self._logs = logs
        self._requests: list[tuple[float, ...]] = []
        self._iterations: list[tuple[float, ...]] = []
        self._gaps: list[tuple[float, float]] = []
        self._samples: list[SampleRow] = []

    def request(self, row: tuple[float, ...]) -> None:
        """``row`` has the fields of RequestRow; a plain tuple because there are a million."""
        self._requests.append(row)
        if len(self._requests) >= self.ROWS:
            self.flush()

    def iteration(self, row: tuple[float, ...]) -> None:
        """``row`` has the fields of IterationRow; a plain tuple because there are millions."""
        self._iterations.append(row)
        if len(self._iterations) >= self.ROWS:
            self.flush()

    def gap(self, end_s: float, gap_s: float) -> None:
        self._gaps.append((end_s, gap_s))
        if len(self._gaps) >= self.ROWS:
            self.flush()

    def sample(self, row: SampleRow) -> None:
        self._samples.append(row)
        if len(self._samples) >= self.ROWS:
            self.flush()

    def first_arrived(self, now_s: float) -> None:
        self.flush()
        for log in self._logs:
            log.first_arrived(now_s)

    def arrivals_ended(self, now_s: float) -> None:
        self.flush()
        for log in self._logs:
            log.arrivals_ended(now_s)

    def flush(self) -> None:
        """Deliver everything, so that no kind of row runs ahead of another."""
        if self._iterations:
            iterations = RowBlock(IterationRow._fields, np.array(self._iterations))
            for log in self._logs:
                log.iterations(iterations)
            self._iterations.clear()
        if self._gaps:
            gaps = RowBlock(GAPS, np.array(self._gaps))
            for log in self._logs:
                log.gaps(gaps)
            self._gaps.clear()
        if self._samples:
            samples = RowBlock(SampleRow._fields, np.array(self._samples, dtype=float))
            for log in self._logs:
                log.samples(samples)
            self._samples.clear()
        if self._requests:
            requests = RowBlock(RequestRow._fields, np.array(self._requests, dtype=float))
            for log in self._logs:
                log.requests(requests)
            self._requests.clear()
