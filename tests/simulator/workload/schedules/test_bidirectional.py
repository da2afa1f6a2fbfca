"""DualPipe and DualPipeV: counts and layouts are those of the papers."""

from reference_model.pipeline_actions import Action
from simulator.workload.schedules.bidirectional import dualpipe, dualpipev
from simulator.workload.schedules.one_f_one_b import interleaved


def test_dualpipe_has_the_chunk_counts_of_the_published_code() -> None:
    """16 ranks, 120 micro-batches, h = distance from the end: F 23-h, I 15-h, full B 8 or 9,
    W 15-h, F&B 97+h; at the turning point one pair runs as F and B instead."""
    schedule = dualpipe(16, 120)
    for rank, expected in {
        0: (23, 15, 8, 15, 97),
        15: (23, 15, 8, 15, 97),
        7: (17, 8, 9, 8, 103),
    }.items():
        works = [action.work for action in schedule.actions[rank]]
        assert tuple(works.count(work) for work in ("F", "I", "B", "W", "F&B")) == expected


def test_dualpipe_holds_a_stage_and_its_mirror_and_dualpipev_two_half_stages() -> None:
    assert [dualpipe(8, 16).stages_of(rank) for rank in range(8)] == [
        (min(r, 7 - r), max(r, 7 - r)) for r in range(8)
    ]
    assert [dualpipev(4, 8).stages_of(rank) for rank in range(4)] == [(r, 7 - r) for r in range(4)]
    assert dualpipev(4, 8).stages == 8
    assert interleaved(4, 8, virtual_stages=3).stages_of(1) == (1, 5, 9)


def test_dualpipe_ranks_mirror_each_other_with_the_directions_exchanged() -> None:
    schedule = dualpipe(8, 20)
    for rank in range(4):
        mirrored = [
            Action(*(c._replace(microbatch=(c.microbatch + 10) % 20) for c in action.chunks))
            for action in schedule.actions[rank]
        ]
        assert mirrored == list(schedule.actions[7 - rank])


def test_dualpipe_and_dualpipev_share_one_order() -> None:
    """A rank of DualPipe and one of DualPipeV of half the ranks do the same works in a row."""
    for rank in range(4):
        works = [
            [action.work for action in schedule.actions[rank]]
            for schedule in (dualpipe(8, 40), dualpipev(4, 20))
        ]
        assert works[0] == works[1]
