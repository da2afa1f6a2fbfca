"""Pipelines that take no less, by hand."""

from fractions import Fraction

import numpy as np
import pytest

from simulator.analysis.plan.pair_seconds import PairSeconds
from simulator.analysis.plan.pipeline_bounds import (
    ends_of_ranks,
    pipeline_seconds,
    there_and_back,
)
from simulator.analysis.plan.schedule_facts import schedule_facts


def test_ends_of_a_pipeline_by_hand():
    # Two ranks, two micro-batches, a share x of the layers on the last: it ends no earlier than
    # 2 x + (1 - x), the first than 2 (1 - x). The two meet at x = 1/3, at 4/3.
    assert ends_of_ranks(np.array([1.0]), np.array([2]), np.array([2])) == pytest.approx(
        float(Fraction(4, 3))
    )
    assert ends_of_ranks(np.array([1.0]), np.array([1]), np.array([5])) == 1.0
    assert ends_of_ranks(np.array([0.0]), np.array([8]), np.array([4])) == 2.0


def test_the_path_to_the_last_rank_and_back_by_hand():
    # Two ranks, eight micro-batches, forward a third: 1 / (1 / 7 + 3 / 20) beside one passage.
    assert there_and_back(1 / 3, 8, 2) == pytest.approx(float(1 + Fraction(140, 41)))
    assert there_and_back(1 / 3, 1, 2) == 0.0


def pipelines(name, virtual, microbatches, **given):
    """One layout of two ranks."""
    column = {"fullest": 1.0, "send": 0.0, "sends": 0.0} | given
    facts = [schedule_facts(name, virtual, 2, microbatches)]
    return {"facts": facts} | {key: np.array([value]) for key, value in column.items()}


# Of the usual layers a forward takes 2 and a backward 3; of the other one 1 each, also in pairs.
ALONE = {"forward": np.array([[2.0], [1.0]]), "backward": np.array([[3.0], [1.0]])}
NO_PAIRS = {
    "forward": ALONE["forward"][None],
    "backward": ALONE["backward"][None],
    "more": np.zeros((1, 1)),
    "ends": np.zeros((1, 1)),
}
PAIRS = {
    "forward": np.array([[[1.0], [1.0]]]),
    "backward": np.array([[[2.0], [1.0]]]),
    "more": np.array([[0.4]]),
    "ends": np.array([[0.5]]),
}


def seconds(times, of, *, gap=0.0, staggered=False):
    (found,) = pipeline_seconds(
        **ALONE, pair=PairSeconds(**times), **of, counts=[6, 1], usual=0, gap=gap,
        staggered=staggered,
    )  # fmt: skip
    return float(found)


def test_gpipe_fills_and_drains_over_all_ranks():
    # 6 x 5 + 2 of a micro-batch, four of them and one more for the other rank, shared by two.
    assert seconds(NO_PAIRS, pipelines("gpipe", None, 4)) == 5 / 2 * 32
    # Six kernels of each of two stages have no gap after them.
    assert seconds(NO_PAIRS, pipelines("gpipe", None, 4), gap=0.1) == 5 / 2 * (32 - 1.2)
    assert seconds(NO_PAIRS, pipelines("gpipe", None, 4), staggered=True) == 4 / 2 * 32


def test_pairs_take_their_layers_what_two_share_a_slot_take_more_and_their_ends():
    # Of eight forwards or backwards of a stage five to seven run in pairs: of a usual layer at
    # least 7/8 x 1 + 1/8 x 2 and 7/8 x 2 + 1/8 x 3, and 5/8 x 0.4 more but for one layer, which
    # may have the other kind beside it. 5/8 of four stages are pairs, two of them with the other.
    total = 6 * 3.25 + 2 + 5 * 0.25
    overlapped = pipelines("interleaved_overlapped", 2, 8)
    assert seconds(PAIRS, overlapped) == 8 / 2 * (total + (2.5 - 2) * 0.5)


def test_the_fullest_rank_runs_all_its_layers():
    overlapped = pipelines("interleaved_overlapped", 2, 8, fullest=4.0)
    assert seconds(PAIRS, overlapped) == 8 * (4 * 3.25 + 3 * 0.25)


def test_a_rank_waits_for_its_sends_but_those_at_the_ends():
    # 48 sends of all micro-batches but two of each rank, shared by two ranks.
    overlapped = pipelines("interleaved_overlapped", 2, 8, send=0.1, sends=6.0)
    assert seconds(PAIRS, overlapped) == pytest.approx(92 + 44 / 2 * 0.1)
