"""Times of a GPU's clock, by hand."""

import pytest

from reference_model.stream_notes import Note, idle_seconds, means, operator_seconds

GEMM = ("q", "forward", "gemm", "m=1", "fp8_e4m3")
SENT = ("moe.dispatch", "forward", "dispatch", "tokens=1", "fp8_e4m3")
NOTES = [
    Note("compute", 0, None),
    Note("compute", 0, GEMM),
    Note("communication", 1, None),
    Note("communication", 1, SENT),
    Note("compute", 2, None),
    Note("compute", 2, GEMM),
    Note("communication", 3, None),
    Note("communication", 3, SENT),
]
TIMES = [1000, 5000, 5500, 9000, 9200, 12000, 12100, 15000]
"""Nanoseconds: the second part waits from 5,000 to 9,200, and a transfer ends 3,000 after it."""


def test_a_compute_stream_is_idle_between_parts_and_till_the_last_transfer_ends():
    assert idle_seconds(NOTES, TIMES) == pytest.approx((9200 - 5000 + 15000 - 12000) * 1e-9)


def test_an_operator_takes_from_the_note_before_it_in_its_stream():
    assert [(at, round(seconds * 1e9)) for _, at, seconds in operator_seconds(NOTES, TIMES)] == [
        (5000, 4000), (9000, 3500), (12000, 2800), (15000, 2900),
    ]  # fmt: skip


def test_of_streams_that_do_not_wait_only_what_ends_while_both_run_counts():
    """Compute ends at 9,000 ns: the first transfer, of 3,500, counts, the second does not, nor what
    the pair beside them calls a transfer and does not move."""
    notes = [
        Note("transfers", 0, None), Note("transfers", 0, SENT),
        Note("transfers", 0, None), Note("transfers", 0, SENT),
        Note("compute", 0, None), Note("compute", 0, GEMM),
        Note("communication", 1, None), Note("communication", 1, SENT),
    ]  # fmt: skip
    times = [1000, 4500, 4500, 9500, 1000, 9000, 1000, 1001]
    found = means(notes, [times], while_both=True)
    assert {key: round(seconds[0] * 1e9) for key, seconds in found.items()} == {
        ("communication", "moe.dispatch", "forward"): 3500, ("compute", "q", "forward"): 8000,
    }  # fmt: skip


def test_an_operator_that_is_slowed_in_one_of_two_replays_takes_their_mean():
    """3,500 and 4,500 ns, and 2,900 in the part behind: 3,450 over four."""
    later = [*TIMES[:3], 10000, *TIMES[4:]]
    found = means(NOTES, [TIMES, later])
    assert found["communication", "moe.dispatch", "forward"][0] == pytest.approx(3450e-9)
