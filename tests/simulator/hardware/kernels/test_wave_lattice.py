"""A lattice over waves and bytes: rows are met, and nothing falls as either part grows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware_profiles.schema import load_calibration, load_gpu
from hardware_profiles.tables import Measurement
from simulator.calibration.fit import table_of
from simulator.hardware.kernels.wave_lattice import WaveLattice

H800 = load_gpu("h800_sxm")
TILES = load_calibration("h800_sxm").tiles
FLOOR = 1e-6


def row(rows, groups, seconds, *, n=4096, k=7168):
    return Measurement(
        kind="masked_grouped_gemm",
        sizes=(("groups", groups), ("k", k), ("n", n), ("rows", rows)),
        dtype="fp8_e4m3",
        sms=132,
        seconds=seconds,
        spread=None,
        source="made up",
        conditions=(("out_dtype", "bfloat16"), ("set", "made_up")),
    )


def table(rows):
    return table_of(rows, H800, FLOOR, TILES)


def loads(noise=0.0):
    """A kernel that reaches 70 % of its peaks."""
    rng = np.random.default_rng(0)
    places = [
        (rows * groups, groups, n, k)
        for rows in (1, 8, 32, 64, 128, 256, 512, 1024)
        for groups in (2, 4, 8, 16, 32)
        for n, k in ((4096, 7168), (7168, 2048))
    ]
    unit = table([row(rows, groups, 1.0, n=n, k=k) for rows, groups, n, k in places])
    seconds = np.exp(unit.log_ideal + noise * rng.normal(size=len(places))) / 0.7
    timed = zip(places, seconds, strict=True)
    return table([row(r, g, float(s), n=n, k=k) for (r, g, n, k), s in timed])


def fitted(rows):
    return WaveLattice(
        rows.batch, ideal=rows.ideal, log_seconds=rows.log_seconds, stiffness=(0.01, 0.1)
    )


NOISY = fitted(loads(noise=0.1))


def seconds(places):
    asked = table([row(rows, groups, 1.0) for rows, groups in places])
    return np.exp(NOISY.predict(asked.batch, asked.sms, asked.ideal))


def test_rows_of_one_efficiency_are_met():
    rows = loads()
    found = fitted(rows).predict(rows.batch, rows.sms, rows.ideal)
    # Between knots the peak has a kink where bytes and waves are equal.
    assert np.median(np.abs(found - rows.log_seconds)) < 0.01
    assert np.abs(found - rows.log_seconds).max() < 0.1


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.integers(1, 100_000), min_size=2, max_size=30))
def test_more_rows_never_take_less_time(rows):
    assert (np.diff(seconds([(count, 16) for count in sorted(rows)])) >= -1e-15).all()


@settings(max_examples=50, deadline=None)
@given(busy=st.lists(st.integers(1, 64), min_size=2, max_size=20), each=st.integers(1, 300))
def test_more_busy_experts_never_take_less_time(busy, each):
    places = [(each * count, count) for count in sorted(busy)]
    assert (np.diff(seconds(places)) >= -1e-15).all()


def test_beyond_the_rows_time_goes_as_the_roofline_does():
    near, far = seconds([(2**19, 32), (2**20, 32)])
    assert far / near == pytest.approx(2, rel=0.01)
