"""The bubble of each schedule as a closed form of ideal times: no transfers, equal ranks.

Where a rank holds v stages a chunk is one of them: with v stages in the place of one the bubble of
interleaved is that of 1F1B over v. Each form is exact in its domain, which the tests go through:

    1f1b, gpipe        any times (arXiv 2104.04473, section 2.1)
    interleaved        any times (section 2.2); fewer micro-batches than ranks wait for each other
                       at each further stage of a rank
    .._overlapped      F&B at least F and B and at most F + B: rank r, with 2 (ranks - 1 - r) pairs
                       fewer than the last, then waits that many times F + B - F&B less
    zb_h1, zb_h2       W no longer than F and I (arXiv 2401.10241, table 1)
    zbv                W no longer than F, and F no longer than I
    dualpipe, ..v      F = I = W and F&B = F + B (arXiv 2412.19437, table 2)
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from reference_model.pipeline_actions import Action
from simulator.workload.schedules.order import Schedule


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


def _one_f_one_b(schedule: Schedule, times: IdealTimes) -> float:
    ranks = schedule.ranks
    further = schedule.stages // ranks - 1
    missing = max(ranks - schedule.microbatches, 0)
    return (ranks - 1 + further * missing) * (times.forward + times.full_backward)


def _zb_h1(schedule: Schedule, times: IdealTimes) -> float:
    filled = min(schedule.microbatches, schedule.ranks) - 1
    hops = (schedule.ranks - 1) * (times.forward + times.input_backward)
    return hops - filled * times.weight_gradient


def _zb_h2(schedule: Schedule, times: IdealTimes) -> float:
    # The last rank begins ranks - 1 forwards late, whatever else fills its bubble.
    return max((schedule.ranks - 1) * times.forward, _zb_h2_staggered(schedule, times))


def _zb_h2_staggered(schedule: Schedule, times: IdealTimes) -> float:
    exposed = times.forward + times.input_backward - 2 * times.weight_gradient
    return (schedule.ranks - 1) * exposed


def _zbv(schedule: Schedule, times: IdealTimes) -> float:
    late = (schedule.ranks - 1) * times.input_backward
    return max(late, _zbv_staggered(schedule, times))


def _zbv_staggered(schedule: Schedule, times: IdealTimes) -> float:
    return 2 * (schedule.ranks - 1) * (times.input_backward - times.weight_gradient)


def _bidirectional(schedule: Schedule, times: IdealTimes) -> float:
    exposed = times.overlapped + times.full_backward - 3 * times.weight_gradient
    return (schedule.stages / 2 - 1) * exposed


BUBBLE_FORMULAS: Mapping[str, Callable[[Schedule, IdealTimes], float]] = {
    "gpipe": _one_f_one_b,
    "1f1b": _one_f_one_b,
    "1f1b_overlapped": _one_f_one_b,
    "interleaved": _one_f_one_b,
    "interleaved_overlapped": _one_f_one_b,
    "zb_h1": _zb_h1,
    "zb_h2": _zb_h2,
    "zbv": _zbv,
    "dualpipe": _bidirectional,
    "dualpipev": _bidirectional,
}
"""Largest bubble of a rank in a step that all ranks begin and end together."""

STAGGERED_BUBBLE_FORMULAS: Mapping[str, Callable[[Schedule, IdealTimes], float]] = {
    **BUBBLE_FORMULAS,
    "zb_h2": _zb_h2_staggered,
    "zbv": _zbv_staggered,
}
"""The same where each rank begins its next step as soon as it has ended this one."""
