"""Surfaces: smooth data are met, strays are not, and left-out errors are those of a second fit."""

import numpy as np
import pytest

from simulator.hardware.kernels import surfaces
from simulator.hardware.kernels.surfaces import Surface, Term

RNG = np.random.default_rng(1)
PLACES = RNG.uniform(0, 8, (80, 2))
VALUES = np.sin(PLACES[:, 0] / 2) + 0.2 * PLACES[:, 1]


def term(places, *, stiffness=(0.001, 0.001)):
    return [Term(places, np.ones(len(places)), stiffness)]


def test_a_smooth_function_is_met_between_its_rows():
    surface = Surface(term(PLACES), VALUES)
    inner = RNG.uniform(1.5, 6.5, (200, 2))
    truth = np.sin(inner[:, 0] / 2) + 0.2 * inner[:, 1]
    assert np.median(np.abs(surface.predict(term(inner)) - truth)) < 0.02


def test_a_stray_row_does_not_pull_the_surface():
    strayed = VALUES + np.where(np.arange(len(VALUES)) == 40, 3.0, 0.0)
    at = Surface(term(PLACES, stiffness=(0.1, 0.1)), strayed).predict(term(PLACES))
    assert abs(at[40] - VALUES[40]) < 0.2


def test_beyond_the_rows_the_edge_value_holds():
    surface = Surface(term(PLACES), VALUES)
    far = np.array([[8.0, 4.0], [80.0, 4.0]])
    far[0, 0] = PLACES[:, 0].max() + 1
    near, beyond = surface.predict(term(far))
    assert near == pytest.approx(beyond)


def test_both_ways_to_solve_give_one_surface(monkeypatch):
    few = Surface(term(PLACES[:40]), VALUES[:40])
    monkeypatch.setattr(surfaces, "_by_rows", surfaces._by_knots)
    many = Surface(term(PLACES[:40]), VALUES[:40])
    assert few.predict(term(PLACES)) == pytest.approx(many.predict(term(PLACES)), abs=1e-3)
    assert few.leave_one_out_ == pytest.approx(many.leave_one_out_, abs=1e-3)


def test_left_out_errors_are_those_of_a_fit_without_the_row():
    noisy = VALUES + RNG.normal(0, 0.1, len(VALUES))
    surface = Surface(term(PLACES, stiffness=(0.1, 0.1)), noisy)
    apart = []
    for row in (3, 30, 60):
        rest = np.arange(len(noisy)) != row
        without = Surface(term(PLACES[rest], stiffness=(0.1, 0.1)), noisy[rest])
        refitted = noisy[row] - without.predict(term(PLACES[row : row + 1]))[0]
        apart.append(abs(refitted - surface.leave_one_out_[row]))
    # Weights of the other rows move a little without it, and a knot less may lie in its corner.
    assert np.median(apart) < 0.03


def test_a_feature_switches_a_term_on_only_where_it_applies():
    on = (np.arange(len(PLACES)) % 2).astype(float)
    terms = [*term(PLACES), Term(PLACES[:, :1], on, (0.01,), 0.01)]
    surface = Surface(terms, VALUES + on)
    off = [*term(PLACES), Term(PLACES[:, :1], np.zeros(len(on)), (0.01,), 0.01)]
    both = surface.predict(terms) - surface.predict(off)
    assert (both[on == 0] == 0).all()
    assert np.median(both[on == 1]) > 0.5
