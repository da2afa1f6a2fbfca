"""Families move together, and the ends of an interval are quantiles that hold the value."""

import numpy as np
import pytest

from hardware_profiles.estimates import TimeEstimate
from simulator.execution.draws import (
    Draws,
    drawn,
    ends,
    estimated,
    interval,
    scaled_seconds,
    variance_shares,
)
from simulator.hardware.prediction import EXTRAPOLATED, MEASURED, NORMAL_80, Prediction, one_time
from simulator.scenario.inputs import Prior


def test_an_interval_rests_on_256_draws():
    draws = Draws(np.random.default_rng(0), common_share=0.5)
    assert draws.common.shape == draws.device.shape == draws.of("gemm").shape == (256,)


def test_a_family_has_one_error():
    draws = Draws(np.random.default_rng(0), common_share=0.5)
    gemm = ("gemm", "fp8_e4m3", "bfloat16", False)
    assert draws.of(gemm) is draws.of(gemm)
    assert (draws.of(gemm) != draws.of(("gemm", "bfloat16", "bfloat16", False))).all()


def test_a_stage_without_layers_has_no_times_in_any_sample():
    draws = Draws(np.random.default_rng(0), common_share=0.5, samples=3)
    none = np.empty(0)
    nothing = Prediction(none, none, none, np.empty(0, dtype=np.intp), (), np.empty((2, 0)))
    assert scaled_seconds(nothing, draws).shape == (0, 3)


def test_times_that_are_alike_move_alike_and_each_family_as_drawn_in_its_order():
    """Four times of two kernels: what is drawn for the two alone, in the place of each."""
    two = Prediction(
        np.array([2.0, 3.0]), np.array([1.0, 2.0]), np.array([4.0, 5.0]),
        np.array([MEASURED, EXTRAPOLATED], dtype=np.intp), ("gemm", "cast"), np.zeros((2, 2)),
    )  # fmt: skip
    four = two.at([0, 1, 1, 0])
    first, second = (
        scaled_seconds(times, Draws(np.random.default_rng(0), common_share=0.5, samples=3))
        for times in (two, four)
    )
    assert second.tolist() == first[[0, 1, 1, 0]].tolist()


def test_an_interval_reaches_from_the_tenth_to_the_ninetieth_percentile():
    assert ends(np.arange(101.0)) == [10.0, 90.0]
    # Of 12 numbers, 1.1 and 9.9 places behind the first.
    assert ends(np.arange(12.0)[::-1]) == pytest.approx([1.1, 9.9], rel=1e-15)
    assert ends(np.array([7.0])) == [7.0, 7.0]


@pytest.mark.parametrize("size", [*range(1, 32), 256])
def test_the_ends_are_what_numpy_says_to_the_last_bit(size):
    samples = np.random.default_rng(size).lognormal(size=size)
    assert ends(samples) == np.quantile(samples, [0.1, 0.9]).tolist()


def test_the_parts_of_an_all_to_all_err_together():
    draws = Draws(np.random.default_rng(0), common_share=0.5)
    assert draws.of("dispatch") is draws.of(("combine", "bfloat16", "bfloat16", False))


def test_a_device_moves_measured_kernels_of_every_family_as_one():
    """Known exactly by themselves, times of 2 and 3 s keep their ratio and move by the device: at
    its 90th percentile by a factor of 1.5, at its 10th by one of 1.25."""
    draws = Draws(np.random.default_rng(0), common_share=0.5, samples=2)
    draws.device = NORMAL_80 * np.array([1.0, -1.0])
    exact = np.array([2.0, 3.0])
    common = np.log([[1.25, 1.25], [1.5, 1.5]])
    provenance = np.array([MEASURED, MEASURED], dtype=np.intp)
    times = Prediction(exact, exact, exact, provenance, ("gemm", "cast"), common)

    assert scaled_seconds(times, draws) == pytest.approx(np.array([[3.0, 1.6], [4.5, 2.4]]))


@pytest.mark.parametrize(
    ("ends", "found"),
    [
        # 2 at the median, 8 and 0.25 at the ends: factors of 4 up and 8 down for each 1.2816 sd.
        ((2.0, 0.25, 8.0), [0.25, 2.0, 8.0, 4.0]),
        # With zero at the low end the value itself is normal, and half of these draws are zero.
        ((0.0, 0.0, 0.5), [0.0, 0.0, 0.5, 0.25]),
        ((0.25, 0.0, 1.0), [0.0, 0.25, 1.0, 0.625]),
        ((1.0, 1.0, 1.0), [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_a_prior_has_its_ends_at_the_10th_and_90th_percentile(ends, found):
    value, low, high = ends
    prior = Prior(value=value, low=low, high=high, source="made up")
    normal = 1.2816 * np.array([-1.0, 0.0, 1.0, 0.5])
    assert drawn(prior, normal).tolist() == pytest.approx(found, rel=1e-12)


def test_a_stated_time_has_its_ends_at_the_10th_and_90th_percentile_and_is_not_below_zero():
    time = TimeEstimate(value="2 s", low="1 s", high="5 s", source="made up")
    normal = NORMAL_80 * np.array([-1.0, 0.0, 1.0, 0.5, -3.0])
    assert estimated(time, normal).tolist() == pytest.approx([1.0, 2.0, 5.0, 3.5, 0.0])


def test_the_ends_are_quantiles_widened_to_the_value():
    samples = np.linspace(1, 2, 101)
    assert interval(samples, value=1.5) == pytest.approx([1.1, 1.9])
    assert interval(samples, value=0.9) == pytest.approx([0.9, 1.9])


def test_an_input_that_decides_everything_explains_all_and_one_that_decides_nothing_none():
    """16 draws of two values: groups by the first input have no variance of their own. By the
    second each has one draw of either, so all variance is within: less than none between."""
    first, second = np.repeat([0.0, 1.0], 8), np.tile(np.arange(8.0), 2)
    shares = variance_shares({"first": first, "second": second}, np.exp(first))
    assert shares == {"first": 1.0, "second": 0.0}
    assert variance_shares({"first": first}, np.ones(16)) == {"first": 0.0}


def test_chance_is_taken_out_of_what_an_input_explains():
    """24 draws in 8 groups of 3 with logs -1, 0 and 1 each, but 4 more in half of the groups. The
    variance is 2/3 + 4; within groups it is 2/3, of 16 degrees of freedom of 24: 1. So 1 - 1 x
    23 / 24 / (14/3) = 0.7946 is explained."""
    logs = np.tile([-1.0, 0.0, 1.0], 8) + np.repeat([0.0, 4.0], 12)
    shares = variance_shares({"input": np.arange(24.0)}, np.exp(logs))
    assert shares["input"] == pytest.approx(1 - 23 / 24 / (14 / 3), rel=1e-12)
    # Eight groups of eight that do not vary within explain all of it.
    steps = np.exp(np.repeat(np.arange(8.0), 8))
    assert variance_shares({"input": np.arange(64.0)}, steps) == {"input": 1.0}


@pytest.mark.parametrize(
    ("provenance", "common_share", "factor"),
    [
        # A measured kernel errs by itself: one standard deviation of 1.2816 in log 2.
        (MEASURED, 0.36, 2.0),
        # 0.6 of the common draw of -1 and 0.8 of its own of 1.
        (EXTRAPOLATED, 0.36, 2.0 ** (0.8 - 0.6)),
        (EXTRAPOLATED, 0.0, 2.0),
        (EXTRAPOLATED, 1.0, 0.5),
    ],
)
def test_a_share_of_the_variance_of_extrapolated_kernels_is_common_to_them(
    provenance, common_share, factor
):
    """3 s of 1.5 to 6, with draws at the ends of the interval."""
    draws = Draws(np.random.default_rng(0), common_share=common_share, samples=1)
    draws.of("gemm")[:] = NORMAL_80
    draws.common[:] = -NORMAL_80
    times = one_time(3.0, 1.5, 6.0, provenance=provenance, family="gemm")
    assert scaled_seconds(times, draws).tolist() == [[pytest.approx(3.0 * factor, rel=1e-12)]]
