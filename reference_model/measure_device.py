"""Measure this machine's GPU itself: its clock and power under load, and what launches take."""

import math
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from reference_model.measure import (
    KernelTiming,
    TimingRequest,
    conditions,
    multiprocessors,
    pairs_text,
    record_event,
    require_hopper,
    seconds_between_events,
)
from reference_model.measured_calls import build

_REPLAYS = 7
_EMPTY_LAUNCHES = 1000
"""Of the smallest kernel, to tell what launches take."""
_MILLI = 1e-3
"""torch reports elapsed time in milliseconds."""

# -- clocks and power ------------------------------------------------------------------------------


def sustain(request: TimingRequest, *, source: str, duration_s: float) -> KernelTiming:
    """Run an operator back to back for duration_s and watch clock and power."""
    device = require_hopper()
    calls = [build(request.operator, kernels=request.kernels, device=device) for _ in range(2)]
    for call in calls * 2:
        call()
    torch.cuda.synchronize()
    once = seconds_between_events(lambda: [call() for call in calls]) / len(calls)
    rounds = max(20, math.ceil(duration_s / once / len(calls)))
    with watch() as samples:
        marks = [record_event()]
        for _ in range(20):
            for _ in range(rounds // 20):
                for call in calls:
                    call()
            marks.append(record_event())
        marks[-1].synchronize()
    launches = rounds // 20 * len(calls)
    second_half = samples[len(samples) // 2 :] or samples
    mega = 10.0**6  # nvidia-smi reports megahertz
    return sustained_row(
        request,
        source=source,
        duration_s=duration_s,
        seconds=marks[0].elapsed_time(marks[-1]) * _MILLI / (20 * launches),
        first_seconds=marks[0].elapsed_time(marks[1]) * _MILLI / launches,
        clock_hz=statistics.median(clock for clock, _ in second_half) * mega,
        power_w=statistics.median(power for _, power in second_half),
    )


def sustained_row(
    request: TimingRequest,
    *,
    source: str,
    duration_s: float,
    seconds: float,
    first_seconds: float,
    clock_hz: float,
    power_w: float,
) -> KernelTiming:
    """A sustained run as a row, with clock and power among its conditions.

    Args:
        seconds: mean of a launch over the run.
        first_seconds: mean over the first twentieth, before the chip settles.
        clock_hz: median SM clock over the second half.
        power_w: median power over the second half.
    """
    values = dict(part.split("=") for part in conditions(request, timing="sustained").split(";"))
    values |= {
        "set": "dsv3sim_sustained",
        "statistic": "mean",
        "repeats": "1",
        "duration_s": f"{duration_s:g}",
        "first_seconds": f"{first_seconds:.6g}",
        "clock_hz": f"{clock_hz:.4g}",
        "power_w": f"{power_w:.4g}",
    }
    o = request.operator
    return KernelTiming(
        kind=o.kind,
        sizes=pairs_text(o.sizes),
        dtype=o.dtype,
        sms=request.sms,
        seconds=seconds,
        spread=abs(seconds - first_seconds) / seconds,
        source=source,
        conditions=pairs_text(values.items()),
    )


@contextmanager
def watch(
    *fields: str, gpu: str | None = None, every_ms: int = 50
) -> Iterator[list[tuple[float, ...]]]:
    """Sample fields of nvidia-smi, by default (SM clock in MHz, power in W), while the block runs,
    of the current GPU or of the one with this UUID."""
    if gpu is None:
        gpu = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    command = [
        "nvidia-smi",
        f"--query-gpu={','.join(fields or ('clocks.sm', 'power.draw.instant'))}",
        "--format=csv,noheader,nounits",
        f"--loop-ms={every_ms}",
        f"--id={gpu}",
    ]
    samples: list[tuple[float, ...]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield samples
        finally:
            process.terminate()
            text = process.stdout.read() if process.stdout else ""
            for line in text.splitlines():
                samples.append(tuple(float(value) for value in line.split(",")))


# -- launches --------------------------------------------------------------------------------------


def launch_times() -> dict[str, float]:
    """Seconds of the smallest kernels, and from the start of one to the start of the next.

    kernel, kernel_mixed     a kernel's own time: of one kernel again and again, and of eight
                             different ones in turns, mean
    eager                    from start to start, launched one by one
    graph, graph_mixed       the same in a CUDA graph

    In a graph the next of the same kernels starts sooner than a different one. Everything is timed
    before the profiler is first used, which slows launches down for the rest of the process."""
    device = require_hopper()
    x = torch.ones(1, device=device)
    same = [lambda: x.add_(1)] * _EMPTY_LAUNCHES
    kinds = (x.add_, x.mul_, x.sub_, x.div_, x.fmod_, x.clamp_max_, x.clamp_min_, x.pow_)
    mixed = [partial(kinds[place % len(kinds)], 1) for place in range(_EMPTY_LAUNCHES)]

    def burst(calls: Sequence[Callable[[], object]]) -> None:
        for call in calls:
            call()

    times = {}
    for name, calls in (("graph", same), ("graph_mixed", mixed)):
        burst(calls)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            burst(calls)
        graph.replay()
        torch.cuda.synchronize()
        spans = [seconds_between_events(graph.replay) for _ in range(_REPLAYS)]
        times[name] = statistics.median(spans) / len(calls)
    spans = [seconds_between_events(lambda: burst(same)) for _ in range(_REPLAYS)]
    times["eager"] = statistics.median(spans) / len(same)
    for name, calls in (("kernel", same), ("kernel_mixed", mixed)):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            burst(calls)
            torch.cuda.synchronize()
        micro = _MILLI * _MILLI  # the profiler reports microseconds
        own = [event.device_time * micro for event in profile.events() if event.device_time > 0]
        times[name] = statistics.mean(own)
    return times


def launch_rows(times: dict[str, float], *, source: str) -> list[KernelTiming]:
    """What `launch_times` measured, as rows of kinds launch_kernel, launch_eager, ..."""
    values = [("set", "dsv3sim_launches"), ("statistic", "median"), ("timing", "events")]
    return [
        KernelTiming(
            kind=f"launch_{name}",
            sizes=pairs_text([("elements", 1)]),
            dtype="float32",
            sms=multiprocessors(),
            seconds=seconds,
            spread=0.0,
            source=source,
            conditions=pairs_text(values),
        )
        for name, seconds in times.items()
    ]
