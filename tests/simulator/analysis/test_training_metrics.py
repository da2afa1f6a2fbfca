"""Figures of a training step that follow from the times of its ranks."""

import pytest

from simulator.analysis.training_metrics import RankTimes, uneven_ranks


def busy(seconds):
    return RankTimes(seconds, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("chosen", "way_out"),
    [
        (False, "training.stages=default looks for a faster split"),
        (
            True,
            "whole layers and memory allow no faster split of those tried; fewer training.pp might",
        ),
    ],
)
def test_a_rank_that_keeps_the_others_waiting_is_named_with_its_share(chosen, way_out):
    # A mean of 10: rank 2 works a fifth more, rank 0 a quarter less than rank 2.
    (text,) = uneven_ranks([busy(seconds) for seconds in (9.0, 9.0, 12.0)], chosen=chosen)
    assert text == (
        "stages: pipeline rank 2 works 20% longer than the mean of the ranks, and rank 0 25% less "
        f"than it; {way_out}"
    )


@pytest.mark.parametrize("seconds", [(9.6, 9.6, 10.8), (1.0,)])
def test_a_tenth_over_the_mean_is_what_whole_layers_leave(seconds):
    assert uneven_ranks([busy(each) for each in seconds], chosen=True) == []
