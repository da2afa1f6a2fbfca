"""Streaming statistics against numpy on the whole data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.analysis.streaming import LogHistogram, TimeBins


def test_quantiles_and_mean_agree_with_all_values_at_hand() -> None:
    values = np.random.default_rng(0).lognormal(-3.0, 2.0, 50_000)
    histogram = LogHistogram()
    for chunk in np.split(values, 10):
        histogram.add(chunk)
    assert histogram.count == 50_000
    assert histogram.mean == pytest.approx(values.mean(), rel=1e-12)
    probabilities = (0.5, 0.9, 0.99)
    exact = np.quantile(values, probabilities, method="inverted_cdf")
    assert histogram.quantiles(probabilities) == pytest.approx(exact.tolist(), rel=1e-3)


def test_weights_count_like_repeated_values() -> None:
    weighted, repeated = LogHistogram(), LogHistogram()
    weighted.add([1.0, 2.0, 5.0], [3, 1, 6])
    repeated.add([1.0] * 3 + [2.0] + [5.0] * 6)
    assert weighted.summary() == repeated.summary()


def test_zeros_are_values_of_zero() -> None:
    histogram = LogHistogram()
    histogram.add([1.0])
    histogram.add_zeros(3)
    assert histogram.quantiles([0.5]) == [0.0]
    assert histogram.mean == 0.25


def test_nothing_counted_has_no_mean_and_no_quantile() -> None:
    summary = LogHistogram().summary()
    assert summary == {"mean": None, "p50": None, "p90": None, "p95": None, "p99": None, "count": 0}


spans = st.lists(
    st.tuples(st.floats(0, 500), st.just(0.0) | st.floats(0.001, 200), st.floats(0, 10)),
    min_size=1,
    max_size=40,
)


@settings(deadline=None)
@given(spans=spans)
def test_bins_keep_every_amount_and_spread_it_evenly(
    spans: list[tuple[float, float, float]],
) -> None:
    bins = TimeBins(("x",), width_s=1.0, bins=16)
    starts, lengths, amounts = (np.array(column) for column in zip(*spans, strict=True))
    bins.add_over(starts, starts + lengths, x=amounts)
    assert bins["x"].sum() == pytest.approx(amounts.sum(), rel=1e-9, abs=1e-9)
    width = bins.width_s
    expected = np.zeros(16)
    for start, length, amount in spans:
        if length == 0:
            expected[int(start / width)] += amount
            continue
        for index in range(16):
            overlap = min(start + length, (index + 1) * width) - max(start, index * width)
            expected[index] += amount * max(overlap, 0.0) / length
    assert bins["x"] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_bins_merge_as_time_goes_on_and_stay_as_many() -> None:
    bins = TimeBins(("x",), width_s=1.0, bins=4)
    for time in range(100):
        bins.add_at(np.array([float(time)]), x=np.array([1.0]))
    assert bins.width_s == 32.0
    assert list(bins["x"]) == [32.0, 32.0, 32.0, 4.0]
