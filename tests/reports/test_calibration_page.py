"""The page of a calibration."""

from made_up_rows import held_out, row

from reports.calibration_charts import panels_of
from reports.calibration_page import MOST_POINTS, coverage_chart, parity_chart
from simulator.calibration.family_fit import HeldOutRow


def test_parity_shows_ends_of_a_shape_apart():
    (panel,) = panels_of(held_out())
    equal, between, ends = parity_chart(panel).series
    assert equal.x == equal.y
    assert (len(between.x), len(ends.x)) == (56, 4)


def test_the_coverage_map_joins_the_rows_of_a_shape():
    (panel,) = panels_of(held_out())
    lines, marks = coverage_chart(panel).series
    assert list(lines.y).count(None) == 2
    assert len(marks.x) == 60


def test_a_large_table_is_thinned_but_keeps_its_worst_row():
    many = [
        HeldOutRow(row(m, 4096, 2048, 1e-5), 3e-5 if m == 1234 else 1.01e-5, False)
        for m in range(1, 2 * MOST_POINTS)
    ]
    (panel,) = panels_of(many)
    drawn = parity_chart(panel).series[1]
    assert MOST_POINTS <= len(drawn.x) <= MOST_POINTS + 10
    assert max(drawn.y) == 3e-5
