"""Predictions: what is in their ends, the line between two of them, and parts of them."""

import numpy as np
import pytest

from simulator.hardware.prediction import (
    INTERPOLATED,
    MEASURED,
    MODELLED,
    Prediction,
    one_time,
)


def prediction(seconds, low, high, provenance, other_gpu):
    return Prediction(
        np.array(seconds),
        np.array(low),
        np.array(high),
        np.array(provenance, dtype=np.intp),
        ("gemm", "cast"),
        np.array(other_gpu),
    )


THESE = prediction([10.0, 2.0], [7.0, 1.0], [22.0, 4.0], [MEASURED, INTERPOLATED], [4.0, 0.0])
OTHERS = prediction([6.0, 2.0], [5.0, 1.0], [10.0, 2.0], [MODELLED, MEASURED], [2.0, 0.0])


def test_the_error_of_another_gpu_adds_to_a_kernels_own_in_quadrature():
    # Below 3 and 4 make 5, above 12 and 4 make sqrt(160); nothing is added to the second.
    low, high = THESE.ends()
    assert low.tolist() == [5.0, 1.0]
    assert high == pytest.approx([10.0 + 160**0.5, 4.0], rel=1e-15)


def test_between_two_predictions_times_are_on_the_line_and_the_worse_provenance_counts():
    middle = THESE.between(OTHERS, np.array([0.25, 0.5]))
    assert middle.seconds.tolist() == [7.0, 2.0]
    assert middle.low.tolist() == [5.5, 1.0]
    assert middle.high.tolist() == [13.0, 3.0]
    assert middle.other_gpu.tolist() == [2.5, 0.0]
    assert middle.provenance_names() == ["modelled", "interpolated"]


def test_a_part_keeps_all_that_is_known_of_its_times():
    (last,) = THESE.part(slice(1, 2)).seconds
    assert last == 2.0
    part = THESE.part(slice(0, 1))
    assert (part.family, part.provenance_names()) == (("gemm",), ["measured"])
    assert (part.low[0], part.high[0], part.other_gpu[0]) == (7.0, 22.0, 4.0)


def test_a_single_time_is_a_prediction_of_one():
    single = one_time(2.0, 1.0, 4.0, provenance=MODELLED, family="wire")
    assert [end.item() for end in single.ends()] == [1.0, 4.0]
    assert (single.seconds.item(), single.family) == (2.0, ("wire",))
    assert single.provenance_names() == ["modelled"]
