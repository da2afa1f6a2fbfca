"""Orders are those of torch.distributed.pipelining, cell by cell, where it has the schedule.

Its schedules work their orders out from a few counts, without processes or a model.
"""

from __future__ import annotations

from typing import Any

import pytest

from simulator.workload.schedules.known import build_schedule
from simulator.workload.schedules.order import Schedule


def order_of_torch(name: str, *, ranks: int, microbatches: int, on_each: int) -> list[list[str]]:
    """[rank], texts of the actions of a schedule class of torch, in this project's form."""
    torch_schedules = pytest.importorskip(
        "torch.distributed.pipelining.schedules", reason="the orders are torch's own"
    )
    maker = getattr(torch_schedules, name)
    made = maker.__new__(maker)
    rounds = max(1, microbatches // ranks)
    counts = {
        "_n_microbatches": microbatches,
        "_num_stages": ranks * on_each,
        "num_stages": ranks * on_each,
        "pp_group_size": ranks,
        "n_local_stages": on_each,
        "number_of_rounds": rounds,
        "microbatches_per_round": microbatches // rounds,
    }
    for field, value in counts.items():
        setattr(made, field, value)
    if hasattr(maker, "_calculate_single_rank_operations"):
        rows = [made._calculate_single_rank_operations(rank) for rank in range(ranks)]
    else:
        rows = list(made._get_pipeline_order().values())
    return [[text(one) for one in row if one is not None and one.is_compute_op] for row in rows]


def text(action: Any) -> str:
    """One action of torch: "0F12", or "0F12&7B3" of two that overlap."""
    if action.sub_actions is not None:
        return "&".join(map(text, action.sub_actions))
    return f"{action.stage_index}{action.computation_type.value}{action.microbatch_index}"


def texts(schedule: Schedule) -> list[list[str]]:
    return [[str(action) for action in row] for row in schedule.actions]


@pytest.mark.parametrize(
    ("name", "of_torch", "on_each", "sizes"),
    [
        ("gpipe", "ScheduleGPipe", 1, [(1, 1), (4, 2), (4, 9), (16, 24)]),
        ("zbv", "ScheduleZBVZeroBubble", 2, [(1, 1), (2, 3), (4, 7), (4, 12), (16, 40)]),
        ("dualpipev", "ScheduleDualPipeV", 2, [(2, 4), (4, 8), (4, 13), (16, 40)]),
    ],
)
def test_a_schedule_of_one_size_on_each_rank(
    name: str, of_torch: str, on_each: int, sizes: list[tuple[int, int]]
) -> None:
    for ranks, microbatches in sizes:
        found = order_of_torch(of_torch, ranks=ranks, microbatches=microbatches, on_each=on_each)
        schedule = build_schedule(name, ranks, microbatches, virtual_stages=None)
        assert texts(schedule) == found, (ranks, microbatches)


@pytest.mark.parametrize(("ranks", "microbatches"), [(1, 1), (4, 4), (4, 9), (16, 24)])
def test_1f1b_but_for_how_torch_writes_the_last_rank(ranks: int, microbatches: int) -> None:
    """Its text of a rank that runs no forward ahead numbers the forwards from 1 on; it performs
    them from 0 on."""
    found = order_of_torch("Schedule1F1B", ranks=ranks, microbatches=microbatches, on_each=1)
    last = [f"{ranks - 1}{work}{m}" for m in range(microbatches) for work in "FB"]
    assert found[-1] == [
        one if "B" in one else f"{ranks - 1}F{int(one.partition('F')[2]) + 1}" for one in last
    ]
    schedule = build_schedule("1f1b", ranks, microbatches, virtual_stages=None)
    assert texts(schedule) == [*found[:-1], last]


@pytest.mark.parametrize(
    ("name", "of_torch"),
    [("interleaved", "ScheduleInterleaved1F1B"), ("zb_h1", "ScheduleInterleavedZeroBubble")],
)
@pytest.mark.parametrize("on_each", [2, 3, 4])
def test_interleaved_stages_at_every_count_that_torch_takes(
    name: str, of_torch: str, on_each: int
) -> None:
    """Micro-batches in equal groups: as many groups as the ranks go into them."""
    for ranks in (1, 2, 4, 8):
        least = 1 if name == "interleaved" else ranks
        for microbatches in range(least, 25):
            if microbatches % max(1, microbatches // ranks):
                continue
            found = order_of_torch(
                of_torch, ranks=ranks, microbatches=microbatches, on_each=on_each
            )
            schedule = build_schedule(name, ranks, microbatches, virtual_stages=on_each)
            assert texts(schedule) == found, (ranks, microbatches)


@pytest.mark.parametrize("ranks", [1, 4, 16])
def test_zb_h1_is_the_interleaved_zero_bubble_of_one_stage_on_each_rank(ranks: int) -> None:
    found = order_of_torch(
        "ScheduleInterleavedZeroBubble", ranks=ranks, microbatches=2 * ranks, on_each=1
    )
    schedule = build_schedule("zb_h1", ranks, 2 * ranks, virtual_stages=None)
    assert texts(schedule) == found
