"""Chunks and actions as text, and where they run."""

import pytest

from simulator.workload.schedules.bidirectional import dualpipe
from simulator.workload.schedules.order import Chunk, parse_action


@pytest.mark.parametrize("text", ["", "0F", "F1", "0X1", "0F1&", "0F1&1B0&2B0", "-1F0"])
def test_text_that_is_no_action_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="must be stage, one of F, B, I, W"):
        parse_action(text)


def test_chunks_of_the_two_directions_run_on_mirrored_ranks() -> None:
    schedule = dualpipe(4, 8)
    assert schedule.rank_of(Chunk("F", 1, 3)) == 1
    assert schedule.rank_of(Chunk("F", 1, 4)) == 2
