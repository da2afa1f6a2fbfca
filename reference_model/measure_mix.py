"""Time the operators of a step in turns, at the clock that the step itself runs at.

A burst of one operator (measure.py) is over before the chip heats up, so it runs at the highest
clock. A long step draws all the power there is and runs at a lower one. Here every distinct
operator is captured in a graph of as many launches as the step has of it, and the graphs are
replayed one after the other, over and over: the chip works on the step's own mix, at its power.

Every graph is timed by the events on either side of it, less what starting a graph takes, which
graphs of one and of many empty kernels among the others tell. An operator whose launches take too
little together has no row.

A decode step is short and stays near the highest clock, but its kernels are short too, and each
begins colder than in a burst: it comes after another one. So its operators are timed where they
stand (`time_in_order`): launched in the step's order in one graph, each by what the graph loses
without its launches.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from reference_model.measure import (
    KernelTiming,
    TimingRequest,
    capture,
    conditions,
    input_sets,
    pairs_text,
    record_event,
    smi,
)
from reference_model.measure_device import watch
from reference_model.measured_calls import build

_LEAST_SECONDS = 1e-4
"""Launches of an operator that take less together are too short for a row of their own."""
_LARGEST_ERROR = 0.2
"""Of an operator timed in order, standard error over time: beyond it there is no row."""
_EMPTY_KERNELS = 101
_REPLAYS_IN_TURN = 4
"""Of the graph of a step, and of the same without an operator, one behind the other."""
_TURNS_OF_CAPTURE = 2
"""That count; one goes before them."""
_FEWEST_CAPTURES = 3
"""Of the graphs of a step in order."""
_MILLI, _MEGA = 1e-3, 10.0**6


@dataclass(frozen=True, slots=True)
class MixTiming:
    """The operators of one step, timed in turns."""

    seconds: Mapping[TimingRequest, float]
    """One launch each, mean over the second half of the turns or, in order, over all captures;
    starting a graph is not in it."""
    spread: Mapping[TimingRequest, float]
    """Standard deviation over mean: of the turns or, in order, of the mean of all captures."""
    turns: int
    """Behind the means."""
    clock_hz: float
    highest_clock_hz: float
    """Of the GPU, which bursts run at."""
    power_w: float
    together_s: float
    """All of them in one graph, in the step's order; not a number where they took turns."""


def time_mix(
    counts: Mapping[TimingRequest, int], *, duration_s: float, device: torch.device
) -> MixTiming:
    """Replay the operators of a step in turns for duration_s.

    Args:
        counts: launches of each operator in the step, in the order of the step.
    """
    calls = [_calls(request, count, device) for request, count in counts.items()]
    graphs = [_captured(of_one) for of_one in calls]
    one = torch.zeros(1, device=device)
    empties = [_captured([lambda: one.add_(1)] * kernels) for kernels in (1, _EMPTY_KERNELS)]
    begun = time.monotonic()
    marks: list[list[torch.cuda.Event]] = []
    with watch() as samples:
        while len(marks) < 4 or time.monotonic() - begun < duration_s:
            marks.append(_replay([*empties, *graphs]))
            if len(marks) > 1:
                marks[-2][-1].synchronize()
        torch.cuda.synchronize()
    kept = marks[len(marks) // 2 :]
    spans = [[a.elapsed_time(b) * _MILLI for a, b in pairwise(turn)] for turn in kept]
    for graph in (*empties, *graphs):
        graph.reset()
    start = starting_seconds(
        statistics.median(turn[0] for turn in spans), statistics.median(turn[1] for turn in spans)
    )
    seconds, spread = {}, {}
    for place, (request, count) in enumerate(counts.items(), start=len(empties)):
        each = [(turn[place] - start) / count for turn in spans]
        seconds[request] = statistics.mean(each)
        spread[request] = statistics.pstdev(each) / statistics.mean(each)
    return MixTiming(seconds, spread, len(kept), *_clocks(samples), float("nan"))


def time_in_order(
    issued: Sequence[TimingRequest], *, duration_s: float, device: torch.device
) -> MixTiming:
    """Replay the operators of a step in its order, and without each of them, for duration_s.

    Two graphs of the same launches differ by some microseconds for as long as they live. That is
    nothing to a step, but as much as a small operator, and it would be in every difference from one
    graph of the step: so each operator is held against graphs of the step of their own, and all of
    them are captured anew several times.

    Args:
        issued: the operators of the step, in its order.
    """
    counts = Counter(issued)
    calls = {request: iter(_calls(request, count, device)) for request, count in counts.items()}
    launches = [(request, next(calls[request])) for request in issued]
    begun = time.monotonic()
    lost: list[dict[TimingRequest, float]] = []
    together: list[float] = []
    seen: list[tuple[float, ...]] = []
    while len(lost) < _FEWEST_CAPTURES or time.monotonic() - begun < duration_s:
        means, samples = _time_in_pairs(launches, list(counts))
        seen += samples
        together.append(statistics.mean(means[::2]))
        lost.append(dict(zip(counts, lost_seconds(means), strict=True)))
    seconds, spread = {}, {}
    for request, count in counts.items():
        each = [capture[request] / count for capture in lost]
        seconds[request] = statistics.mean(each)
        error = statistics.stdev(each) / len(each) ** 0.5
        spread[request] = error / abs(seconds[request])
    return MixTiming(
        seconds, spread, len(lost) * _TURNS_OF_CAPTURE, *_clocks(seen), statistics.mean(together)
    )


def _time_in_pairs(
    launches: Sequence[tuple[TimingRequest, Callable[[], object]]],
    left_out: Sequence[TimingRequest],
) -> tuple[list[float], list[tuple[float, ...]]]:
    """Mean seconds of a graph of all launches, of one without the first operator, of another one of
    all, of one without the second operator and so on; and samples of clock and power meanwhile."""
    graphs: list[torch.cuda.CUDAGraph] = []
    for one in left_out:
        for without in (None, one):
            issued = [call for request, call in launches if request != without]
            graphs.append(_captured(issued, graphs[0] if graphs else None))
    # A graph that follows another starts at once; the first of a turn is not counted.
    turn = [graphs[0], *(graph for graph in graphs for _ in range(_REPLAYS_IN_TURN))]
    spans = []
    with watch() as samples:
        for _ in range(1 + _TURNS_OF_CAPTURE):
            marks = _replay(turn)
            marks[-1].synchronize()
            spans.append([a.elapsed_time(b) * _MILLI for a, b in pairwise(marks)][1:])
    for graph in graphs:
        graph.reset()
    # Clock and power settle in the first turn.
    means = [statistics.mean(times) for times in zip(*spans[1:], strict=True)]
    return [
        statistics.mean(means[place : place + _REPLAYS_IN_TURN])
        for place in range(0, len(means), _REPLAYS_IN_TURN)
    ], samples


def lost_seconds(spans: Sequence[float]) -> list[float]:
    """What a step loses without each operator: of spans of the step and of the same without one,
    in turns, each against the step before and, where there is one, the step behind it."""
    wholes, withouts = [*spans[::2], spans[-2]], spans[1::2]
    return [
        (before + behind) / 2 - without
        for (before, behind), without in zip(pairwise(wholes), withouts, strict=True)
    ]


def _clocks(samples: Sequence[tuple[float, ...]]) -> tuple[float, float, float]:
    """SM clock and highest SM clock in Hz, power in W, of the second half of the samples."""
    seen = samples[len(samples) // 2 :]
    return (
        statistics.median([clock for clock, _ in seen] or [0.0]) * _MEGA,
        float(smi("clocks.max.sm")[0]) * _MEGA,
        statistics.median([power for _, power in seen] or [0.0]),
    )


def starting_seconds(one: float, many: float) -> float:
    """What starting a graph takes: of graphs of 1 and of 101 empty kernels, what is left at none.

    Empty kernels follow each other every (many - one) / 100 seconds."""
    return one - (many - one) / (_EMPTY_KERNELS - 1)


def mix_rows(
    timing: MixTiming, counts: Mapping[TimingRequest, int], *, job: str, source: str
) -> list[KernelTiming]:
    """Rows of the operators that are told apart: whose launches take long enough together in
    turns, or several times their standard error in order.

    Args:
        job: kind of step whose operators took their turns.
    """
    rows = []
    in_order = math.isfinite(timing.together_s)
    for request, count in counts.items():
        together = count * timing.seconds[request]
        if in_order:
            told = together > 0 and timing.spread[request] < _LARGEST_ERROR
        else:
            told = together >= _LEAST_SECONDS
        if not told:
            continue
        o = request.operator
        how = "order" if in_order else "turns"
        values = dict(p.split("=") for p in conditions(request, timing=how).split(";")) | {
            "state": "in_order" if in_order else "sustained",
            "job": job,
            "statistic": "mean",
            "repeats": str(timing.turns * count),
            "clock_hz": f"{timing.clock_hz:.4g}",
            "burst_clock_hz": f"{timing.highest_clock_hz:.4g}",
            "power_w": f"{timing.power_w:.4g}",
        }
        rows.append(
            KernelTiming(
                kind=o.kind,
                sizes=pairs_text(o.sizes),
                dtype=o.dtype,
                sms=request.sms,
                seconds=timing.seconds[request],
                spread=timing.spread[request],
                source=source,
                conditions=pairs_text(values.items()),
            )
        )
    return rows


def _calls(request: TimingRequest, count: int, device: torch.device) -> list[Callable[[], object]]:
    """`count` launches of an operator, which rotate among inputs that exceed the L2 cache."""
    sets = min(count, input_sets(request.operator, device))
    calls = [build(request.operator, kernels=request.kernels, device=device) for _ in range(sets)]
    for call in calls * 2:
        call()
    return [calls[launch % sets] for launch in range(count)]


def _captured(
    calls: Sequence[Callable[[], object]], like: torch.cuda.CUDAGraph | None = None
) -> torch.cuda.CUDAGraph:
    """The calls as a graph; what they work on has to outlive it.

    like: a graph whose memory it shares, so that the same launch writes to the same place."""
    graph = torch.cuda.CUDAGraph()
    with capture(graph, like):
        for call in calls:
            call()
    return graph


def _replay(graphs: Sequence[torch.cuda.CUDAGraph]) -> list[torch.cuda.Event]:
    """Replay all; the events before, between and after them."""
    events = [record_event()]
    for graph in graphs:
        graph.replay()
        events.append(record_event())
    return events
