"""Fits of families: held-out errors are real, and noise is measured."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_rows import BASE, made_up, row

from hardware_profiles.schema import load_gpu
from simulator.calibration import family_fit
from simulator.calibration.family_fit import fit_families

H800 = load_gpu("h800_sxm")
FLOOR = BASE.kernel_floor.value


def test_a_kernel_that_follows_its_roofline_is_predicted_without_its_rows():
    (fit,), held_out = fit_families(made_up(), gpu=H800, floor=FLOOR, tiles=BASE.tiles)
    assert fit.interpolated.median < 0.05
    assert fit.interpolated.rows + fit.edge.rows == fit.rows == len(held_out) == 56
    assert fit.coverage["m"] == (256, 16384)
    assert len(fit.worst) == 10


def test_the_error_of_noisy_rows_is_at_least_their_noise():
    quiet, noisy = (
        fit_families(made_up(noise=noise), gpu=H800, floor=FLOOR, tiles=BASE.tiles)[0][0]
        for noise in (0.0, 0.2)
    )
    assert noisy.interpolated.median > 0.07
    assert noisy.interpolated.quantile_80 > 2 * quiet.interpolated.quantile_80


def test_the_noise_floor_is_how_far_rows_of_one_tile_lie_apart():
    rows = [row(m, 4096, 7168, 2e-5) for m in (1, 2, 3, 4)]
    rows.append(row(64, 4096, 7168, 3e-5))
    (fit,), _ = fit_families(rows, gpu=H800, floor=FLOOR, tiles=BASE.tiles)
    assert fit.noise.rows == 5
    assert fit.noise.worst == pytest.approx(1 / 3, abs=0.2)
    assert fit.noise.median == 0


def test_of_very_many_rows_lengths_are_chosen_among_some_and_all_are_judged(monkeypatch):
    def fit():
        (found,), held_out = fit_families(made_up(), gpu=H800, floor=FLOOR, tiles=BASE.tiles)
        return found, len(held_out)

    (of_all, judged), asked = fit(), []
    assert judged == 56
    monkeypatch.setattr(family_fit, "SEARCHED_AMONG", 56)
    assert fit() == (of_all, 56)
    monkeypatch.setattr(family_fit, "SEARCHED_AMONG", 40)
    score = family_fit._score
    monkeypatch.setattr(
        family_fit, "_score", lambda table, *rest: asked.append(len(table)) or score(table, *rest)
    )
    of_some, judged = fit()
    assert (set(asked), judged, of_some.rows) == ({40}, 56, 56)


def test_the_noise_of_many_rows_falls_with_their_time_as_they_scatter(monkeypatch):
    """A scatter that halves with each two octaves of time at peak has a slope of -0.5; of fewer
    rows nothing is said."""
    scatter = np.random.default_rng(0)
    rows = [
        row(m, n, 4096, 1e-9 * m * n * np.exp(scatter.normal(0.0, 0.3 * (m * n / 2**17) ** -0.5)))
        for m in range(128, 4096, 256)
        for n in range(1024, 16384, 1024)
    ]
    assert len(rows) == 240
    monkeypatch.setattr(family_fit, "LEAST_ROWS_FOR_SLOPE", 240)
    (fit,), _ = fit_families(rows, gpu=H800, floor=FLOOR, tiles=BASE.tiles)
    assert fit.noise_slope == pytest.approx(-0.5, abs=0.1)

    (fit,), _ = fit_families(rows[1:], gpu=H800, floor=FLOOR, tiles=BASE.tiles)
    assert fit.noise_slope is None


def test_versions_of_a_kernel_never_share_a_fit():
    both = [*made_up(kernel_set="old", slower=2.0), *made_up(kernel_set="new")]
    apart = fit_families(both, gpu=H800, floor=FLOOR, tiles=BASE.tiles)[0]
    alone = fit_families(made_up(kernel_set="new"), gpu=H800, floor=FLOOR, tiles=BASE.tiles)[0]
    assert [fit.kernel_set for fit in apart] == ["new", "old"]
    assert apart[0] == alone[0]


def test_what_lies_between_two_numbers_of_sms_is_known_by_both():
    """Scatter of 10% makes rows on 108, 112 and 132 SMs look as if they knew nothing of each other:
    the search shortens the length by steps of 1.2 and 0.6 from 4 octaves, to 0.11. The gap from 112
    to 132 is 0.237 octaves: 4 exp(-2.4) = 0.363 is the last step above it."""
    scatter = np.random.default_rng(0)
    rows = [
        replace(made, sms=sms, seconds=made.seconds * 132 / sms * np.exp(scatter.normal(0.0, 0.1)))
        for made in made_up()
        for sms in (108, 112, 132)
    ]

    (fit,), _ = fit_families(rows, gpu=H800, floor=FLOOR, tiles=BASE.tiles)

    assert fit.lengths["sms"] == pytest.approx(4 * np.exp(-2.4), rel=1e-3)
