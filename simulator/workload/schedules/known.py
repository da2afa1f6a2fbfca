"""Every schedule by its name.

A schedule is added as one function of (ranks, microbatches), in its family's module, and a line
in SCHEDULES; its closed form is a line in bubbles.BUBBLE_FORMULAS. One whose ranks hold any number
of stages takes `virtual_stages` as well and is named in WITH_VIRTUAL_STAGES. The tests run every
one through checks.check_schedule.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from hardware_profiles.suggestions import meant_or_known
from simulator.workload.schedules.bidirectional import dualpipe, dualpipev
from simulator.workload.schedules.files import is_schedule_file, read_schedule
from simulator.workload.schedules.gpipe import gpipe
from simulator.workload.schedules.one_f_one_b import (
    interleaved,
    interleaved_overlapped,
    one_f_one_b,
    one_f_one_b_overlapped,
)
from simulator.workload.schedules.order import Schedule, require_size
from simulator.workload.schedules.zero_bubble import zb_h1, zb_h2, zbv

SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "1f1b_overlapped": one_f_one_b_overlapped,
    "interleaved": interleaved,
    "interleaved_overlapped": interleaved_overlapped,
    "zb_h1": zb_h1,
    "zb_h2": zb_h2,
    "zbv": zbv,
    "dualpipe": dualpipe,
    "dualpipev": dualpipev,
}


WITH_VIRTUAL_STAGES = ("interleaved", "interleaved_overlapped", "zb_h1")
"""Schedules whose ranks hold as many stages as asked for."""


def build_schedule(
    name: str, ranks: int, microbatches: int, *, virtual_stages: int | None
) -> Schedule:
    """The schedule of a known name, or of a file; without `virtual_stages` with as many as it has
    by default.

    Raises ValueError where the schedule cannot have these sizes.
    """
    if is_schedule_file(name):
        read = read_schedule(Path(name))
        stages = read.stages // read.ranks if virtual_stages is None else virtual_stages
        for field, found, asked in (
            ("ranks", read.ranks, ranks),
            ("microbatches", read.microbatches, microbatches),
            ("virtual_stages", read.stages // read.ranks, stages),
        ):
            if found != asked:
                raise ValueError(f"{name}: {field} = {asked}, must be {found}, as in the file")
        return read
    if name not in SCHEDULES:
        meant = meant_or_known(name, SCHEDULES, otherwise="a path to a file")
        raise ValueError(f"unknown name {name!r}; {meant}")
    if ranks * microbatches > MOST_KEPT:
        return _built(name, ranks, microbatches, virtual_stages)
    return _kept(name, ranks, microbatches, virtual_stages)


MOST_KEPT = 2**16
"""Ranks times micro-batches of a schedule that is kept for the next run: bounds memory."""


def _built(name: str, ranks: int, microbatches: int, virtual_stages: int | None) -> Schedule:
    if virtual_stages is None:
        return SCHEDULES[name](ranks, microbatches)
    require_size(
        name in WITH_VIRTUAL_STAGES,
        name,
        "virtual_stages",
        virtual_stages,
        f"left out; {', '.join(WITH_VIRTUAL_STAGES)} take it",
    )
    return SCHEDULES[name](ranks, microbatches, virtual_stages=virtual_stages)


_kept = lru_cache(maxsize=16)(_built)
"""The same schedules, built once: runs that differ in other things than their order share one."""
