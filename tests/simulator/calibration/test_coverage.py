"""Shares of truths inside, what chance makes of them, and a score that punishes width."""

from math import log

import pytest

from simulator.calibration.coverage import Coverage, coverage


def test_of_five_truths_three_lie_within_a_factor_of_two():
    """Score: each interval is log 4 wide; 4 lies log 2 above its end, 0.25 log 2 below:
    log 4 + 10 (log 2 + log 2) / 5."""
    found = coverage([1.0, 2.0, 0.5, 4.0, 0.25], [0.5] * 5, [2.0] * 5)

    assert (found.trials, found.inside, found.share) == (5, 3, 0.6)
    assert found.width == pytest.approx(3.0)
    assert found.score == pytest.approx(log(4) + 4 * log(2))


def test_wider_intervals_hold_more_and_score_worse_once_all_are_inside():
    narrow = coverage([1.0, 1.1], [0.9, 0.9], [1.2, 1.2])
    wide = coverage([1.0, 1.1], [0.5, 0.5], [2.0, 2.0])

    assert narrow.share == wide.share == 1.0
    assert narrow.score < wide.score


def test_a_share_has_the_interval_that_wilson_gives_it():
    """8 of 10: (8 + 1.9207) / 13.8415 = 0.7167, and half of it
    1.95996 sqrt(0.016 + 0.0096) / 1.3841 = 0.2266."""
    assert Coverage(10, 8, 0.1, 0.2).share_95 == pytest.approx((0.4902, 0.9433), abs=1e-4)


@pytest.mark.parametrize(
    ("inside", "as_stated"), [(71, False), (73, True), (87, True), (88, False)]
)
def test_of_a_hundred_between_72_and_87_are_eighty_percent_but_for_chance(inside, as_stated):
    found = Coverage(100, inside, 0.1, 0.2)

    assert found.as_stated is as_stated
    assert found.cells()[:2] == ("100", f"{inside}%")
    assert found.cells()[2].endswith("not 80%") is not as_stated
