"""Coverage maps and parity plots."""

import pytest

from hardware_profiles.tables import Measurement
from reports.calibration_charts import MOST_POINTS, coverage_chart, panels_of, parity_chart
from simulator.calibration.family_fit import HeldOutRow


def gemm(m, n, k, seconds, kernel_set="made_up"):
    return Measurement(
        kind="gemm",
        sizes=(("k", k), ("m", m), ("n", n)),
        dtype="fp8_e4m3",
        sms=132,
        seconds=seconds,
        spread=None,
        source="made up </script>",
        conditions=(("out_dtype", "bfloat16"), ("set", kernel_set)),
    )


@pytest.fixture
def rows():
    """Two shapes of 30 rows each, 1 % too slow, but one row by half; ends of a shape are edges."""
    made = []
    for n in (4096, 7168):
        for number in range(30):
            timed = gemm(64 * (number + 1), n, 2048, 1e-5 * (number + 1))
            wrong = 1.5 if (n, number) == (4096, 7) else 1.01
            made.append(HeldOutRow(timed, wrong * timed.seconds, number in (0, 29)))
    return made


def test_the_coverage_map_joins_the_rows_of_a_shape(rows):
    (panel,) = panels_of(rows)
    assert sorted(panel.spans) == [
        (4096 * 2048, 64, 30 * 64),
        (7168 * 2048, 64, 30 * 64),
    ]
    lines, marks = coverage_chart(panel)["data"]
    assert lines["x"].count(None) == 2
    assert len(marks["x"]) == 60


def test_parity_shows_ends_of_a_shape_apart(rows):
    (panel,) = panels_of(rows)
    equal, between, ends = parity_chart(panel)["data"]
    assert equal["x"] == equal["y"]
    assert (len(between["x"]), len(ends["x"])) == (56, 4)


def test_a_large_table_is_thinned_but_keeps_its_worst_row(rows):
    many = [
        HeldOutRow(gemm(m, 4096, 2048, 1e-5), 3e-5 if m == 4321 else 1.01e-5, False)
        for m in range(1, 2 * MOST_POINTS)
    ]
    (panel,) = panels_of(many)
    drawn = parity_chart(panel)["data"][1]
    assert MOST_POINTS <= len(drawn["x"]) <= MOST_POINTS + 10
    assert max(drawn["y"]) == 3e-5
