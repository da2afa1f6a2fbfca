"""Decode steps that are one event: their sum, and how many have ended at a moment."""

import pytest

from simulator.execution.fleet.iteration import Iteration

# Steps of 2, 2.5, 3 and 3.5 seconds after a pass of 10 seconds, from time 100.
FOUR_STEPS = Iteration(
    start_s=100.0, lead_s=10.0, steps=4, first_s=2.0, slope_s=0.5, batch=1,
    joined=[], prefill=None, kv_tokens=0.0, waiting=0,
)  # fmt: skip


def test_steps_sum_to_their_arithmetic_series():
    assert [FOUR_STEPS.steps_s(n) for n in range(5)] == [0.0, 2.0, 4.5, 7.5, 11.0]
    assert FOUR_STEPS.duration_s() == 21.0


@pytest.mark.parametrize(
    ("now_s", "done"),
    [
        (105.0, 0),
        (110.0, 0),
        (111.9, 0),
        (112.0, 1),
        (114.5, 2),
        (117.4, 2),
        (121.0, 4),
        (130.0, 4),
    ],
)
def test_a_step_counts_once_it_has_ended(now_s, done):
    assert FOUR_STEPS.steps_done(now_s) == done
