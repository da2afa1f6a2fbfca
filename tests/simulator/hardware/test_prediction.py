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


def prediction(seconds, low, high, provenance, common):
    return Prediction(
        np.array(seconds),
        np.array(low),
        np.array(high),
        np.array(provenance, dtype=np.intp),
        ("gemm", "cast"),
        np.array(common),
    )


# Logarithms below and above of what the kernels of a run have in common; none of the second.
COMMON = np.log([[4.0, 1.0], [4.0, 1.0]])
THESE = prediction([8.0, 2.0], [1.0, 1.0], [64.0, 4.0], [MEASURED, INTERPOLATED], COMMON)
OTHERS = prediction([6.0, 2.0], [5.0, 1.0], [10.0, 2.0], [MODELLED, MEASURED], COMMON / 2)


def test_what_all_kernels_have_in_common_adds_to_a_kernels_own_error_in_quadrature():
    # Factors of 8 and 4 either way: 2^sqrt(3^2 + 2^2) = 2^sqrt(13). The second keeps its own.
    low, high = THESE.ends()
    assert low == pytest.approx([8.0 / 2**13**0.5, 1.0], rel=1e-12)
    assert high == pytest.approx([8.0 * 2**13**0.5, 4.0], rel=1e-12)


def test_between_two_predictions_times_are_on_the_line_and_the_worse_provenance_counts():
    middle = THESE.between(OTHERS, np.array([0.25, 0.5]))
    assert middle.seconds.tolist() == [6.5, 2.0]
    assert middle.low.tolist() == [4.0, 1.0]
    assert middle.high.tolist() == [23.5, 3.0]
    assert middle.common.tolist() == [[0.625 * np.log(4.0), 0.0]] * 2
    assert middle.provenance_names() == ["modelled", "interpolated"]


def test_a_part_keeps_all_that_is_known_of_its_times():
    (last,) = THESE.part(slice(1, 2)).seconds
    assert last == 2.0
    part = THESE.part(slice(0, 1))
    assert (part.family, part.provenance_names()) == (("gemm",), ["measured"])
    assert (part.low[0], part.high[0]) == (1.0, 64.0)
    assert part.common.tolist() == [[np.log(4.0)]] * 2


def test_a_single_time_is_a_prediction_of_one():
    single = one_time(2.0, 1.0, 4.0, provenance=MODELLED, family="wire")
    assert [end.item() for end in single.ends()] == pytest.approx([1.0, 4.0], rel=1e-12)
    assert (single.seconds.item(), single.family) == (2.0, ("wire",))
    assert single.provenance_names() == ["modelled"]
