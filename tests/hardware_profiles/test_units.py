"""Units: text to SI floats and back."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware_profiles.units import (
    UNITS,
    format_bandwidth,
    format_bytes,
    format_quantity,
    format_seconds,
    parse_quantity,
    unit_factor,
)


@pytest.mark.parametrize(
    ("text", "dimension", "expected"),
    [
        ("400 Gbit/s", "bandwidth", 50e9),
        ("50 GB/s", "bandwidth", 50e9),
        ("3.35 TB/s", "bandwidth", 3.35e12),
        ("80 GiB", "data", 80 * 1024**3),
        ("84943110144 B", "data", 84943110144.0),
        ("2.8 us", "time", 2.8e-6),
        ("989 TFLOP/s", "compute", 989e12),
        ("1830 MHz", "frequency", 1.83e9),
        ("2 USD/h", "price_rate", 2 / 3600),
        ("1e3 ms", "time", 1.0),
        (".5s", "time", 0.5),
        ("-1 us", "time", -1e-6),
    ],
)
def test_a_quantity_reads_as_its_si_value(text, dimension, expected):
    assert parse_quantity(text, dimension, "file: field") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("value", [400, 4.0e9, "400", True, None, "1e9", [1]])
def test_a_bare_number_is_an_error_that_names_the_place_and_an_example(value):
    with pytest.raises(ValueError, match=r"^nic\.yaml: bandwidth: .*400 Gbit/s"):
        parse_quantity(value, "bandwidth", "nic.yaml: bandwidth")


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("400 Gb/s", "bandwidth"),
        ("400 gbit/s", "bandwidth"),
        ("400 GBIT/s", "bandwidth"),
        ("3 GB", "bandwidth"),
        ("3 Gb", "data"),
        ("3 S", "time"),
        ("3 mS", "time"),
        ("989 TFLOPS", "compute"),
        ("10 kiB", "data"),
        ("nan s", "time"),
        ("inf s", "time"),
        ("1e999 s", "time"),
        ("1 2 s", "time"),
        ("", "time"),
        ("s", "time"),
    ],
)
def test_a_wrong_unit_is_an_error(text, dimension):
    with pytest.raises(ValueError, match=r"^here: "):
        parse_quantity(text, dimension, "here")


@given(
    value=st.floats(min_value=1e-12, max_value=1e18),
    dimension=st.sampled_from(sorted(UNITS)),
    digits=st.integers(min_value=2, max_value=12),
)
def test_shown_text_reads_back_to_the_shown_digits(value, dimension, digits):
    text = format_quantity(value, dimension, digits=digits)
    assert parse_quantity(text, dimension, "shown") == pytest.approx(
        value, rel=10.0 ** (1 - digits)
    )


@given(dimension=st.sampled_from(sorted(UNITS)), data=st.data())
def test_every_unit_is_read_by_its_factor(dimension, data):
    unit = data.draw(st.sampled_from(sorted(UNITS[dimension])))
    assert parse_quantity(f"3 {unit}", dimension, "x") == pytest.approx(
        3 * unit_factor(unit, dimension)
    )


def test_output_picks_the_unit_a_reader_expects():
    assert format_seconds(0.129) == "129 ms"
    assert format_seconds(19.926) == "19.93 s"
    assert format_seconds(999.99e-6) == "1 ms"
    assert format_seconds(0.0) == "0 ns"
    assert format_bytes(84943110144) == "79.11 GiB"
    assert format_bandwidth(50e9) == "50 GB/s"


def test_a_value_that_is_not_finite_is_not_shown():
    with pytest.raises(ValueError, match="finite"):
        format_seconds(float("nan"))


@pytest.mark.parametrize(
    ("text", "dimension", "meant"),
    [
        ("400 Gbps", "bandwidth", "Gbit/s"),
        ("400 Gb/s", "bandwidth", "Gbit/s"),
        ("50 GBps", "bandwidth", "GB/s"),
        ("50 gb/s", "bandwidth", "GB/s or Gbit/s"),
        ("4 TB", "bandwidth", "TB/s"),
        ("50 GB/sec", "bandwidth", "GB/s"),
        ("80 gib", "data", "GiB or Gibit"),
        ("80 Gb", "data", "Gbit"),
        ("64 KB", "data", "kB"),
        ("5 sec", "time", "s"),
        ("5 minutes", "time", "min"),
        ("5 µs", "time", "us"),
        ("989 TFLOPS", "compute", "TFLOP/s"),
        ("989 tflops", "compute", "TFLOP/s"),
        ("1830 Mhz", "frequency", "MHz"),
        ("2 $/hour", "price_rate", "USD/h"),
        ("700 watts", "power", "W"),
    ],
)
def test_a_unit_that_is_spelt_otherwise_brings_the_one_that_is_meant(text, dimension, meant):
    unit = text.partition(" ")[2]
    of = dimension.replace("_", " ")
    said = f"a: {text!r}: unknown unit {unit!r} for {of}; did you mean {meant}?"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        parse_quantity(text, dimension, "a")


def test_a_unit_of_something_else_brings_all_that_are_allowed():
    with pytest.raises(
        ValueError, match=r"allowed: s, ms, us, ns, min, h, d; for example 2\.8 us$"
    ):
        parse_quantity("5 GB", "time", "a.yaml: field")
