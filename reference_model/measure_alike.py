"""Measure how alike the GPUs of one host are.

An FP8 GEMM and attention run again and again on all GPUs at once, and on one at a time.

The loop takes turns: about 50 ms of one kernel, then of the other. A row holds the median time of
one launch of a kernel over a stretch of some seconds, its deviation between turns, and what the GPU
reported meanwhile: SM clock, power and temperature. Conditions that say which row it is:

    gpu             number of the GPU
    busy            "all" GPUs at once, or it "alone"
    from_s, to_s    the stretch, since the loop began
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import distributed

from reference_model.config import ModelConfig
from reference_model.gpu import choose_kernels
from reference_model.measure import (
    KernelTiming,
    append_rows,
    device_source,
    known_conditions,
    pairs_text,
)
from reference_model.measure_device import watch
from reference_model.measure_grid import gemm_operator, sized_operator
from reference_model.measured_calls import build
from reference_model.moments import Moment, moment, seconds_between, wait_for_device
from reference_model.ranks import rank_device, run_ranks
from reference_model.trace import Operator

ALL = "all"
_TURN_SECONDS = 0.05
_FIELDS = ("clocks.sm", "power.draw.instant", "temperature.gpu")
_EVERY_MS = 250
_MEGA = 10.0**6
"""nvidia-smi reports megahertz."""
_START_SECONDS = 120.0
"""Time that processes may take to start, beside the loop itself."""


class Turn(NamedTuple):
    """Some launches of one kernel in a row."""

    operator: int
    """Which of the loop's."""
    begun_s: float
    """Since the loop began."""
    seconds: float
    """Of one launch."""


def loop_operators(config: ModelConfig, *, tokens: int) -> list[Operator]:
    """A GEMM of the model's shared experts, and attention over one sequence of `tokens`."""
    return [
        gemm_operator(tokens, 2 * config.moe_intermediate_size, config.hidden_size),
        sized_operator(
            "attention_forward",
            "bfloat16",
            "bfloat16",
            {
                "sequences": 1,
                "query_length": tokens,
                "kv_length": tokens,
                "heads": config.num_attention_heads,
                "qk_dim": config.qk_head_dim,
                "v_dim": config.v_head_dim,
            },
        ),
    ]


def measure_alike(
    config: ModelConfig,
    *,
    tokens: int,
    ranks: int,
    backend: str,
    out: Path,
    together_s: float,
    alone_s: float,
    stretch_s: float,
) -> None:
    """Run the loop on all GPUs for together_s seconds, then on each alone for alone_s, and append
    the rows of those that the table at `out` lacks; prints every row."""
    operators = loop_operators(config, tokens=tokens)
    done = {(row["busy"], int(row["gpu"])) for row in known_conditions(out)}
    for busy in (ALL, *range(ranks)):
        wanted = range(ranks) if busy == ALL else [int(busy)]
        name = ALL if busy == ALL else "alone"
        if all((name, gpu) in done for gpu in wanted):
            continue
        duration_s = together_s if busy == ALL else alone_s
        loops = run_ranks(
            _run_loop,
            (operators, backend, list(wanted), duration_s),
            ranks=ranks,
            backend=backend,
            timeout_s=_START_SECONDS + duration_s,
        )
        for gpu in wanted:
            turns, samples, source, sms = loops[gpu]
            rows = stretches(
                operators, [Turn(*turn) for turn in turns], samples,
                gpu=gpu, busy=name, sms=sms, source=source,
                duration_s=duration_s, stretch_s=stretch_s,
            )  # fmt: skip
            append_rows(rows, out)
            for row in rows:
                print(f"GPU {gpu} {row.kind}: {row.seconds:.4e} s, {row.conditions}", flush=True)


def _run_loop(
    rank: int,
    ranks: int,
    operators: Sequence[Operator],
    backend: str,
    busy: Sequence[int],
    duration_s: float,
) -> tuple[list[tuple[int, float, float]], list[tuple[float, ...]], str, int]:
    """The loop of one process: turns, samples, source and multiprocessors."""
    if rank not in busy:
        return [], [], "", 0
    device = rank_device(backend)
    kernels = choose_kernels(None, device)
    sms, gpu = 1, None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        sms, gpu = properties.multi_processor_count, f"GPU-{properties.uuid}"
        kernels = "library"
    calls = [build(o, kernels=kernels, device=device) for o in operators]
    launches = []
    for call in calls:
        call()
        wait_for_device(device)
        start = moment(device)
        call()
        once = seconds_between(start, moment(device))
        launches.append(max(1, math.ceil(_TURN_SECONDS / once)))
    if len(busy) == ranks:
        distributed.barrier()
    if gpu is None:
        turns, samples = _take_turns(calls, launches, device, duration_s), []
    else:
        with watch(*_FIELDS, gpu=gpu, every_ms=_EVERY_MS) as samples:
            turns = _take_turns(calls, launches, device, duration_s)
    return [(*turn,) for turn in turns], samples, device_source(device), sms


def _take_turns(
    calls: Sequence[object], launches: Sequence[int], device: torch.device, duration_s: float
) -> list[Turn]:
    first = moment(device)
    begun = time.monotonic()
    marks: list[tuple[int, Moment, Moment]] = []
    while time.monotonic() - begun < duration_s:
        for index, (call, count) in enumerate(zip(calls, launches, strict=True)):
            assert callable(call)
            start = moment(device)
            for _ in range(count):
                call()
            marks.append((index, start, moment(device)))
        if len(marks) > len(calls):  # one round ahead of the GPU
            seconds_between(first, marks[-len(calls) - 1][2])
    wait_for_device(device)
    return [
        Turn(index, seconds_between(first, start), seconds_between(start, end) / launches[index])
        for index, start, end in marks
    ]


def stretches(
    operators: Sequence[Operator],
    turns: Sequence[Turn],
    samples: Sequence[tuple[float, ...]],
    *,
    gpu: int,
    busy: str,
    sms: int,
    source: str,
    duration_s: float,
    stretch_s: float,
) -> list[KernelTiming]:
    """The loop of one GPU as rows, one for each stretch and kernel that began a turn in it.

    Args:
        samples: clock in MHz, power in W and temperature in degrees Celsius, evenly over the loop;
            on a CPU none.
    """
    rows = []
    for number in range(math.ceil(duration_s / stretch_s)):
        begin, end = number * stretch_s, min(duration_s, (number + 1) * stretch_s)
        seen = [
            sample
            for at, sample in enumerate(samples)
            if begin <= (at + 0.5) / len(samples) * duration_s < end
        ]
        for index, o in enumerate(operators):
            seconds = [
                turn.seconds
                for turn in turns
                if turn.operator == index and begin <= turn.begun_s < end
            ]
            if not seconds:
                continue
            values: list[tuple[str, object]] = [
                ("set", "dsv3sim_alike"), ("statistic", "median"), ("timing", "events"),
                ("out_dtype", o.out_dtype), ("repeats", len(seconds)),
                ("gpu", gpu), ("busy", busy), ("from_s", f"{begin:g}"), ("to_s", f"{end:g}"),
            ]  # fmt: skip
            if seen:
                clock, power, heat = (
                    statistics.median(column) for column in zip(*seen, strict=True)
                )
                values += [
                    ("clock_hz", f"{clock * _MEGA:.4g}"),
                    ("power_w", f"{power:.4g}"),
                    ("temperature_c", f"{heat:g}"),
                ]
            rows.append(
                KernelTiming(
                    kind=o.kind,
                    sizes=pairs_text(o.sizes),
                    dtype=o.dtype,
                    sms=sms,
                    seconds=statistics.median(seconds),
                    spread=statistics.pstdev(seconds) / statistics.mean(seconds),
                    source=source,
                    conditions=pairs_text(values),
                )
            )
    return rows
