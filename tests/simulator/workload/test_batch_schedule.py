"""Steps of a phase whose batch grows, worked out by hand."""

import numpy as np

from simulator.workload.batch_schedule import batch_sizes, step_seconds


def test_a_constant_batch_ends_with_a_whole_step() -> None:
    # 1,000 tokens in steps of 3 x 100: three steps leave 100 tokens, which take a fourth.
    assert batch_sizes(1000, 3, sequence_length=100).tolist() == [3, 3, 3, 3]


def test_a_batch_grows_linearly_in_the_tokens_seen_to_its_full_size() -> None:
    # From 2 to 6 sequences over 80 tokens, 0.05 per token; sequences of 4 tokens: 2 at 0 tokens,
    # 2.4 at 8, 2.8 at 16, 3.2 at 24, 3.8 at 36, 4.4 at 48, 5.2 at 64, then 6 from 84 on.
    sizes = batch_sizes(156, 6, sequence_length=4, first_sequences=2, growing_tokens=80)

    assert sizes.tolist() == [2, 2, 2, 3, 3, 4, 5, 6, 6, 6]


def test_times_between_two_simulated_sizes_lie_on_the_line_between_theirs() -> None:
    times = step_seconds(np.array([10, 15, 20, 40]), {10: 1.0, 20: 2.0, 40: 3.0})

    assert times.tolist() == [1.0, 1.5, 2.0, 3.0]
