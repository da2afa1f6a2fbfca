"""What the layers of an overlapped pair take at least.

A slot of a pair joins one layer of the forward chunk with one of the backward chunk. Its two
streams run their tasks in order, and tasks wait for each other across the streams (`ORDER`, as
simulator.workload.chunk lowers it); a way that leads from a slot's begin to its end and on to the
next (`ONWARD`) is one that every pair of like layers must go, slot by slot. So the tasks on a way,
summed over layers, are a lower bound of a pair. The kernels of one stream are such a way, and so
are its transfers; where transfers take about as long as compute, ways that change between the two
are longer than either.

In slots of two layers that both exchange tokens, kernels run beside transfers and transfers beside
kernels, at the times of that. Splits may put different numbers of layers on the two stages of a
pair. A layer without a partner is then a chain of its own; two of those, one of each chunk, count
in the place of a slot where they take less. And a pair begins and ends with more than its ways: the
first kernel of the backward chunk waits for a combine, and the last combine of the forward chunk
for a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.analysis.plan.layer_seconds import Phases
from simulator.workload.chunk import FORWARD, INPUT_GRAD, RECOMPUTE, WEIGHT_GRAD

Times = NDArray[np.float64]

AGAIN, ATTENDS, SENDS, SHARED, ROUTED, COMBINES = (
    "again(B)", "attention(F)", "dispatch(F)", "shared(F)", "routed(F)", "combine(F)",
)  # fmt: skip
CARRIES, EXPERTS, LATE, RETURNS, ATTENDED, LAST = (
    "combine(B)", "mlp(B)", "mlp(W)", "dispatch(B)", "attention(B)", "attention(W)",
)  # fmt: skip

FORWARD_TASKS = (ATTENDS, SENDS, SHARED, ROUTED, COMBINES)

ORDER: Mapping[str, tuple[str, ...]] = {
    AGAIN: (ATTENDS, CARRIES),
    ATTENDS: (EXPERTS, SENDS),
    CARRIES: (SENDS, EXPERTS),
    EXPERTS: (LATE, RETURNS),
    SENDS: (RETURNS, ROUTED),
    LATE: (SHARED,),
    SHARED: (ROUTED,),
    ROUTED: (ATTENDED, COMBINES),
    RETURNS: (COMBINES, ATTENDED),
    ATTENDED: (LAST,),
    LAST: (),
    COMBINES: (),
}
"""{task: tasks of its slot that begin after it has ended}, each after all that it follows."""

ONWARD: Mapping[str, tuple[str, ...]] = {
    LAST: (AGAIN,),
    ATTENDED: (AGAIN,),
    COMBINES: (ATTENDS, CARRIES),
}
"""{task: tasks of the next slot that begin after it has ended}"""


def _ways() -> Iterator[tuple[str, ...]]:
    """Every way through a slot that can go on as it began; none whose tasks another one has too
    that begins alike."""

    def onward(way: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if way[0] in ONWARD.get(way[-1], ()):
            yield way
        for task in ORDER[way[-1]]:
            yield from onward((*way, task))

    every = [way for start in (AGAIN, ATTENDS, CARRIES) for way in onward((start,))]
    for way in every:
        if not any(set(way) < set(other) and way[0] == other[0] for other in every):
            yield way


WAYS = tuple(_ways())
KERNELS, TRANSFERS = range(2)
"""Places of the ways of one stream, before those of WAYS."""


@dataclass(frozen=True, slots=True)
class PairSeconds:
    """What one layer forward and one backward take of a pair, at least, by each way; its first is
    that of all kernels, its second that of all transfers, the others those of `WAYS`."""

    forward: Times
    """[ways, layouts], of a layer in the least of all conditions."""
    backward: Times
    """[ways, layouts]"""
    more: Times
    """[ways, layouts], of two layers that share a slot beyond that."""
    ends: Times
    """[ways, layouts], of a pair whose first and last layers share slots beyond its layers."""


def slot_seconds(phases: Phases) -> dict[str, Times]:
    """{task of a slot: seconds}"""
    ahead, again, back, late = (
        phases[phase] for phase in (FORWARD, RECOMPUTE, INPUT_GRAD, WEIGHT_GRAD)
    )
    return {
        AGAIN: again.attention + again.dispatch + again.mlp,
        ATTENDS: ahead.attention,
        SENDS: ahead.dispatch,
        SHARED: ahead.shared,
        ROUTED: ahead.routed,
        COMBINES: ahead.combine,
        CARRIES: back.combine,
        EXPERTS: back.mlp,
        LATE: late.mlp,
        RETURNS: back.dispatch,
        ATTENDED: back.attention,
        LAST: late.attention,
    }


def other_pair_seconds(paired: Phases) -> PairSeconds:
    """Bounds of layers that exchange no tokens, or of which there are few: kernels and transfers
    alone."""
    kernels, transfers = _streams(paired)
    forward, backward = (np.stack(both) for both in zip(kernels, transfers, strict=True))
    nothing = np.zeros((len(WAYS), forward.shape[1]))
    forward, backward = (np.concatenate([each, nothing]) for each in (forward, backward))
    return PairSeconds(forward, backward, np.zeros_like(forward), np.zeros_like(forward))


def _streams(phases: Phases) -> tuple[tuple[Times, Times], tuple[Times, Times]]:
    """Kernels of a layer forward and backward, and its transfers."""
    ahead, *back = (phases[phase] for phase in (FORWARD, RECOMPUTE, INPUT_GRAD, WEIGHT_GRAD))
    kernels = ahead.compute, np.sum([each.compute for each in back], axis=0)
    transfers = ahead.transfers, np.sum([each.transfers for each in back], axis=0)
    return kernels, transfers


def pair_seconds(paired: Phases, both: Phases) -> PairSeconds:
    """Bounds of layers that exchange tokens.

    Args:
        paired: times in a pair, the least of all conditions.
        both: times in a slot of two such layers.
    """
    least, beside = slot_seconds(paired), slot_seconds(both)
    few = other_pair_seconds(paired)
    kernels, transfers = _streams(both)
    forward, backward, more, ends = few.forward, few.backward, few.more, few.ends
    longest = _longest(beside, tuple(ORDER), tuple(ORDER))
    for number, way in enumerate((_KERNELS, _TRANSFERS, *WAYS)):
        whole = sum((beside[task] for task in way), np.zeros_like(longest))
        if number < 2:
            # With the gaps between kernels, and what is exchanged again.
            whole = np.sum((kernels, transfers)[number], axis=0)
        else:
            forward[number] = sum(least[task] for task in way if task in FORWARD_TASKS)
            backward[number] = sum(least[task] for task in way if task not in FORWARD_TASKS)
        leave = tuple(task for task, after in ONWARD.items() if way[0] in after)
        begins = np.maximum(0.0, _longest(beside, tuple(ORDER), leave) - whole)
        closes = np.maximum(0.0, _longest(beside, way[:1], tuple(ORDER)) - whole)
        ends[number] = np.minimum(begins + closes, np.maximum(0.0, longest - whole))
        # Without partners: what a lone layer of each chunk adds to the way, and no end beyond it.
        lone_forward, lone_backward = _lone(least, way)
        slots = np.minimum(whole, lone_forward + lone_backward - 2 * closes)
        more[number] = np.maximum(0.0, slots - forward[number] - backward[number])
    return PairSeconds(forward, backward, more, ends)


_KERNELS = (AGAIN, ATTENDS, EXPERTS, LATE, SHARED, ROUTED, ATTENDED, LAST)
_TRANSFERS = (CARRIES, SENDS, RETURNS, COMBINES)


def _lone(times: Mapping[str, Times], way: tuple[str, ...]) -> tuple[Times, Times]:
    """What a forward and a backward layer without partners add to a way, at least."""
    forward = times[ATTENDS] + np.maximum(times[SENDS], times[SHARED]) + times[ROUTED]
    backward = times[CARRIES] + times[EXPERTS] + np.maximum(times[LATE], times[RETURNS])
    backward = backward + times[ATTENDED]
    if way[-1] == COMBINES:
        return forward + times[COMBINES], backward
    return forward, times[AGAIN] + backward + times[LAST]


def _longest(times: Mapping[str, Times], first: tuple[str, ...], last: tuple[str, ...]) -> Times:
    """The longest way through a slot from one of some tasks to one of others."""
    until: dict[str, Times] = {}
    nothing = np.zeros_like(times[AGAIN])
    never = nothing - np.inf
    for task in ORDER:
        before = [until[other] for other, after in ORDER.items() if task in after]
        begin = nothing if task in first else never
        until[task] = np.maximum.reduce([begin, *before]) + times[task]
    found: Times = np.maximum.reduce([until[task] for task in last])
    return found
