"""Every schedule by its name, with its bubble at ideal times.

A schedule is added as one function of (ranks, microbatches), in its family's module, and a line
in SCHEDULES; its bubble formula is a line in BUBBLE_FORMULAS. One whose ranks hold any number of
stages takes `virtual_stages` as well and is named in WITH_VIRTUAL_STAGES. The tests run every one
through checks.check_schedule.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from simulator.workload.schedules.bidirectional import dualpipe, dualpipev
from simulator.workload.schedules.one_f_one_b import (
    interleaved,
    interleaved_overlapped,
    one_f_one_b,
    one_f_one_b_overlapped,
)
from simulator.workload.schedules.order import Action, Schedule, require_size
from simulator.workload.schedules.zero_bubble import zb1p

SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    "1f1b": one_f_one_b,
    "1f1b_overlapped": one_f_one_b_overlapped,
    "interleaved": interleaved,
    "interleaved_overlapped": interleaved_overlapped,
    "zb1p": zb1p,
    "dualpipe": dualpipe,
    "dualpipev": dualpipev,
}


WITH_VIRTUAL_STAGES = ("interleaved", "interleaved_overlapped")
"""Schedules whose ranks hold as many stages as asked for."""


def build_schedule(
    name: str, ranks: int, microbatches: int, *, virtual_stages: int | None
) -> Schedule:
    """The schedule of a known name; without `virtual_stages` with as many as it has by default.

    Raises ValueError where the schedule cannot have these sizes.
    """
    if virtual_stages is None:
        return SCHEDULES[name](ranks, microbatches)
    require_size(
        name in WITH_VIRTUAL_STAGES,
        name,
        "virtual_stages",
        virtual_stages,
        f"left out; {' and '.join(WITH_VIRTUAL_STAGES)} take it",
    )
    return SCHEDULES[name](ranks, microbatches, virtual_stages=virtual_stages)


class IdealTimes(NamedTuple):
    """Duration of each work, the same on every rank. Seconds, or any one unit of time."""

    forward: float
    input_backward: float
    weight_gradient: float
    overlapped: float

    @property
    def full_backward(self) -> float:
        return self.input_backward + self.weight_gradient

    def of(self, action: Action) -> float:
        """Duration of one action."""
        match action.work:
            case "F":
                return self.forward
            case "B":
                return self.full_backward
            case "I":
                return self.input_backward
            case "W":
                return self.weight_gradient
            case _:
                return self.overlapped


def _one_f_one_b_bubble(ranks: int, times: IdealTimes) -> float:
    return (ranks - 1) * (times.forward + times.full_backward)


def _zb1p_bubble(ranks: int, times: IdealTimes) -> float:
    return (ranks - 1) * (times.forward + times.full_backward - 2 * times.weight_gradient)


def _bidirectional_bubble(stages: int, times: IdealTimes) -> float:
    return (stages / 2 - 1) * (times.overlapped + times.full_backward - 3 * times.weight_gradient)


BUBBLE_FORMULAS: Mapping[str, Callable[[int, IdealTimes], float]] = {
    "1f1b": _one_f_one_b_bubble,
    "1f1b_overlapped": _one_f_one_b_bubble,
    "interleaved": _one_f_one_b_bubble,
    "interleaved_overlapped": _one_f_one_b_bubble,
    "zb1p": _zb1p_bubble,
    "dualpipe": _bidirectional_bubble,
    "dualpipev": lambda ranks, times: _bidirectional_bubble(2 * ranks, times),
}
"""Largest bubble of a rank as a function of (ranks, times of one chunk), without transfer times.

Table 2 of arXiv 2412.19437 and the README of deepseek-ai/DualPipe; interleaved: section 2.2 of
arXiv 2104.04473. Where a rank holds v stages a chunk is one of them: with v stages in the place of
one the bubble of interleaved is that of 1F1B over v. 1F1B and interleaved are always exact, in
pairs where F&B is at least F and B and at most F + B (rank r, with 2 (ranks - 1 - r) pairs fewer
than the last, then waits that many times F + B - F&B less), ZB1P where W is no longer than F and I,
DualPipe where F = I = W and F&B = F + B.
"""
