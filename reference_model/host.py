"""Measure all GPUs of one host together, and write one table per part.

    alike            an FP8 GEMM and attention on all GPUs and on one at a time (measure_alike.py)
    collectives      NCCL by size, between 2, 4, ... all of them (measure_links.py)
    expert_parallel  steps whose experts are spread over them, who waits (measure_arrivals.py)
    pair             an overlapped pair in an order that is given, by SMs of communication
                     (measure_pair.py)

A part goes on where its table stops. On CPUs, over gloo, the same program runs with a small model:
its times mean nothing, its tables have the same form."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from reference_model.measure_links import (
    COLLECTIVES,
    EAGER,
    QUEUED,
    TimedTransfer,
    time_between_ranks,
)

Measure = Callable[[int, Path, float], None]
"""Measures a part among so many ranks into a table, while so many seconds are left."""


def sizes_between(smallest: int, largest: int) -> list[int]:
    """Sizes from smallest to largest, each twice the last."""
    sizes = [smallest]
    while sizes[-1] * 2 <= largest:
        sizes.append(sizes[-1] * 2)
    return sizes


def counts_up_to(ranks: int) -> list[int]:
    """2, 4, 8, ... and `ranks`."""
    counts = [count for count in sizes_between(2, ranks) if count < ranks]
    return [*counts, ranks]


def measure_host(
    parts: Mapping[str, Measure], *, ranks: int | None, out: Path, deadline_s: float
) -> None:
    """Measure what the tables in `out` lack, part by part; prints progress. Begins no part after
    deadline_s.

    ranks None: all GPUs at hand. Raises ValueError for fewer than two."""
    count = torch.cuda.device_count() if ranks is None else ranks
    if count < 2:
        raise ValueError(f"ranks = {count} must be at least 2: a host of one GPU has no peers")
    out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    for part, measure in parts.items():
        left = deadline_s - (time.monotonic() - begun)
        if left <= 0:
            print(f"stopped after {deadline_s:g} s; run again to go on")
            return
        print(f"-- {part}, {count} ranks, {time.monotonic() - begun:.0f} s", flush=True)
        measure(count, out / f"{part}.csv", left)


def measure_collectives(
    sizes: Sequence[int], *, ranks: int, backend: str, out: Path, left_s: float
) -> None:
    """Time every collective of `sizes` bytes, launched in both ways, among 2, 4, ... `ranks` ranks;
    stops after left_s and says so."""
    begun = time.monotonic()
    transfers = [
        TimedTransfer(kind, size, launch)
        for size in sizes
        for kind in COLLECTIVES
        for launch in (EAGER, QUEUED)
    ]
    for count in counts_up_to(ranks):
        left = left_s - (time.monotonic() - begun)
        if not time_between_ranks(
            transfers, ranks=count, backend=backend, out=out, deadline_s=left
        ):
            print("collectives stopped at the deadline; run again to go on")
