"""A Gaussian process on log ratios: rows are met, far from them it returns to what is typical."""

import numpy as np
import pytest

from reference_model.trace import Operator
from simulator.hardware.kernels import gaussian_process
from simulator.hardware.kernels.gaussian_process import (
    NEAREST,
    Process,
    feature_names,
    features_of,
)
from simulator.hardware.kernels.roofline import Ideal, batch_of

ONE_AXIS = np.arange(5.0)[:, None]


def product(m, n, k):
    return Operator(
        name="gemm",
        kind="gemm",
        phase="forward",
        segment="mlp",
        dtype="fp8_e4m3",
        out_dtype="bfloat16",
        sizes=(("k", k), ("m", m), ("n", n)),
        recompute=False,
        accumulate=False,
    )


def test_the_features_of_a_product_are_octaves_of_its_sizes_its_sms_and_its_roofline():
    batch = batch_of([product(8, 64, 256)])
    # 262,144 FLOPs; 2 seconds of waves on 4 SMs are 8 SM-seconds, 2^-15 for each FLOP.
    ideal = Ideal(np.array([2.0]), np.array([0.5]), 0.0)
    assert feature_names(batch) == ("k", "m", "n", "sms", "peak", "waves/bytes", "waste")
    assert features_of(batch, np.array([4.0]), ideal).tolist() == [[8, 3, 6, 2, 1, 2, -15]]


def matern(distance):
    return (1 + 3**0.5 * distance) * np.exp(-(3**0.5) * distance)


def test_far_from_all_rows_the_mean_is_their_median_and_the_deviation_that_of_the_process():
    process = Process(ONE_AXIS, np.array([0.0, 0.2, 0.7, 0.8, 0.9]), [2.0], noise=0.25)
    mean, deviation = process.predict(np.array([[1e6]]))
    assert mean == pytest.approx([0.7])
    assert deviation == pytest.approx([np.sqrt(1 + 0.25)])


def test_noise_falls_with_each_octave_of_a_feature_but_no_further_than_rows_reach():
    # The median row at 1 octave has a noise of 0.04; half an octave less deviation for each octave
    # halves the variance: 0.08 at 0 and 0.02 at 2, as beyond.
    rows = np.array([[0.0], [1.0], [2.0]])
    slopes = np.array([-0.5])
    process = Process(rows, np.zeros(3), [1e-3], noise=0.04, noise_slopes=slopes)
    _, deviation = process.predict(np.array([[-10.0], [0.5], [2.5], [10.0]]))
    assert deviation**2 == pytest.approx([1.08, 1 + 0.04 * 2**0.5, 1.02, 1.02])
    # At a row itself 1 + noise - 1 / (1 + noise); without it, so far from the others, 1 + noise.
    _, deviation = process.predict(rows)
    noise = np.array([0.08, 0.04, 0.02])
    assert deviation**2 == pytest.approx(1 + noise - 1 / (1 + noise))
    ((_, left_out),) = process.held_out(np.arange(3))
    assert left_out**2 == pytest.approx(1 + noise)


def test_the_nearest_of_many_rows_are_those_of_the_least_distances():
    squared = np.random.default_rng(0).permutation(3 * 2000).reshape(3, 2000).astype(float)
    found = np.sort(gaussian_process._nearest(squared, NEAREST), axis=1)
    assert (found == np.sort(np.argsort(squared, axis=1)[:, :NEAREST], axis=1)).all()


def test_near_one_of_two_rows_the_mean_weighs_both_by_their_covariances():
    # About the median, 0: rows at -1 and 1, two lengths apart; asked at the second.
    process = Process(np.array([[0.0], [4.0]]), np.array([-1.0, 1.0]), [2.0], noise=0.25)
    mean, deviation = process.predict(np.array([[4.0]]))
    # The inverse of [[1.25, c], [c, 1.25]] applied to (c, 1).
    c = matern(2.0)
    first, second = ((1.25 * one - c * other) / (1.25**2 - c**2) for one, other in ((c, 1), (1, c)))
    assert mean == pytest.approx([second - first])
    assert deviation == pytest.approx([np.sqrt(1.25 - c * first - second)])


def test_along_a_feature_in_which_no_rows_differ_the_mean_stays_and_the_deviation_grows():
    process = Process(np.zeros((1, 1)), np.array([0.7]), [2.0], noise=0.25)
    mean, deviation = process.predict(np.array([[0.0], [2.0], [1e6]]))
    assert mean == pytest.approx([0.7] * 3)
    left = 1.25 - 1 / 1.25
    apart = 2 * (1 - np.array([1.0, matern(1.0), 0.0]))
    assert deviation == pytest.approx(np.sqrt(left + apart))


def test_rows_without_noise_are_met_and_what_lies_between_is_between():
    ratios = np.array([0.0, 1.0, 4.0, 2.0, 2.0])
    process = Process(ONE_AXIS, ratios, [3.0], noise=1e-9)
    assert process.predict(ONE_AXIS)[0] == pytest.approx(ratios, abs=1e-6)
    assert 0.0 < process.predict(np.array([[0.5]]))[0][0] < 1.0


def test_a_row_left_out_with_its_group_is_predicted_from_the_others_alone():
    ratios = np.array([0.0, 1.0, 4.0, 2.0, 2.0])
    ((errors, _),) = Process(ONE_AXIS, ratios, [3.0]).held_out(np.array([0, 0, 1, 2, 2]))
    others = [2, 3, 4]
    rest = Process(ONE_AXIS[others], ratios[others], [3.0])
    # The typical ratio, from which the level starts, is that of all rows: 2 here as there.
    assert ratios[:2] - errors[:2] == pytest.approx(rest.predict(ONE_AXIS[:2])[0])


def test_several_groupings_at_once_give_what_each_gives_alone():
    ratios = np.array([0.0, 1.0, 4.0, 2.0, 2.0])
    process = Process(ONE_AXIS, ratios, [3.0])
    pairs, alone, some = np.array([0, 0, 1, 2, 2]), np.arange(5), np.array([1, 3])
    both = process.held_out(pairs, alone, chosen=some)
    for groups, (errors, deviation) in zip((pairs, alone), both, strict=True):
        ((own_errors, own_deviation),) = process.held_out(groups, chosen=some)
        assert errors.tolist() == own_errors.tolist()
        assert deviation.tolist() == own_deviation.tolist()


@pytest.mark.parametrize("widths", [True, False])
def test_predictions_made_a_few_at_a_time_for_the_memory_are_the_same(monkeypatch, widths):
    """Room for 1,000 distances to 192 rows: five places at once."""
    rng = np.random.default_rng(0)
    process = Process(rng.normal(size=(4 * NEAREST, 3)), rng.normal(size=4 * NEAREST))
    asked = rng.normal(size=(12, 3))
    at_once = process.predict(asked, widths=widths)
    monkeypatch.setattr(gaussian_process, "MOST_DISTANCES", 1000)
    assert [some.stop - some.start for some in process._chunks(12)] == [5, 5, 5]
    for values, few in zip(at_once, process.predict(asked, widths=widths), strict=True):
        assert few == pytest.approx(values, rel=1e-9)


def test_predictions_from_the_nearest_rows_do_not_depend_on_the_company():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4 * NEAREST, 3))
    process = Process(features, rng.normal(size=4 * NEAREST))
    asked = rng.normal(size=(700, 3))
    together = process.predict(asked)
    alone = [process.predict(asked[number : number + 1]) for number in (0, 511, 512, 699)]
    for number, (mean, deviation) in zip((0, 511, 512, 699), alone, strict=True):
        assert mean[0] == pytest.approx(together[0][number], rel=1e-9)
        assert deviation[0] == pytest.approx(together[1][number], rel=1e-9)


@pytest.mark.parametrize("count", [20, 200])
@pytest.mark.parametrize("widths", [False, True])
def test_a_prediction_is_the_same_to_the_last_bit_whatever_else_is_asked_for(count, widths):
    rng = np.random.default_rng(0)
    process = Process(rng.random((count, 3)), rng.random(count), [0.3, 0.5, 0.9])
    asked = rng.random((70, 3))
    together = np.stack(process.predict(asked, widths=widths), axis=1)
    alone = [np.concatenate(process.predict(asked[[n]], widths=widths)) for n in range(70)]
    assert np.array_equal(together, alone)
