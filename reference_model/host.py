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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from reference_model.config import ModelConfig
from reference_model.measure_alike import measure_alike
from reference_model.measure_arrivals import Job, measure_arrivals
from reference_model.measure_links import (
    COLLECTIVES,
    EAGER,
    QUEUED,
    TimedTransfer,
    time_between_ranks,
)
from reference_model.measure_pair import PairRuns, measure_pair

PARTS = ("alike", "collectives", "expert_parallel", "pair")


@dataclass(frozen=True, slots=True)
class HostRun:
    """What to measure, and how long."""

    config: ModelConfig
    model: str
    """Name of the config in the tables."""
    tokens: int
    """Of the loop's GEMM and attention."""
    together_s: float
    """The loop on all GPUs at once."""
    alone_s: float
    """The loop on each alone."""
    stretch_s: float
    """Of the loop that one row covers."""
    sizes: Sequence[int]
    """Bytes of the collectives."""
    jobs: Sequence[Job]
    """Expert-parallel steps."""
    repeats: int
    """Of each."""
    programs: int
    """SMs that move tokens in them."""
    pairs: PairRuns | None
    """None leaves the part out."""


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
    run: HostRun, *, parts: Sequence[str], ranks: int | None, backend: str, out: Path,
    deadline_s: float,
) -> None:  # fmt: skip
    """Measure what the tables in `out` lack; prints progress. Begins no part after deadline_s.

    ranks None: all GPUs at hand. Raises ValueError for fewer than two, or an unknown part."""
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"--parts {part!r} is not one of {', '.join(PARTS)}")
        if part == "pair" and run.pairs is None:
            raise ValueError("--parts pair: needs --order, the order of the pair")
    count = torch.cuda.device_count() if ranks is None else ranks
    if count < 2:
        raise ValueError(f"ranks = {count} must be at least 2: a host of one GPU has no peers")
    out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    for part in parts:
        left = deadline_s - (time.monotonic() - begun)
        if left <= 0:
            print(f"stopped after {deadline_s:g} s; run again to go on")
            return
        print(f"-- {part}, {count} ranks, {time.monotonic() - begun:.0f} s", flush=True)
        table = out / f"{part}.csv"
        if part == "alike":
            measure_alike(
                run.config, tokens=run.tokens, ranks=count, backend=backend, out=table,
                together_s=run.together_s, alone_s=run.alone_s, stretch_s=run.stretch_s,
            )  # fmt: skip
        elif part == "collectives":
            _measure_collectives(run.sizes, count, backend, table, left)
        elif part == "pair":
            assert run.pairs is not None
            measure_pair(
                run.pairs, ranks=count, backend=backend, out=table, timeout_s=min(left, 600.0)
            )
        else:
            measure_arrivals(
                run.config, run.jobs, model=run.model, ranks=count, backend=backend,
                repeats=run.repeats, programs=run.programs, out=table, timeout_s=min(left, 600.0),
            )  # fmt: skip


def _measure_collectives(
    sizes: Sequence[int], ranks: int, backend: str, out: Path, left_s: float
) -> None:
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
