"""Coverage maps and parity plots."""

from made_up_rows import held_out

from reports.calibration_charts import panels_of


def test_a_panel_spans_the_rows_of_each_shape():
    (panel,) = panels_of(held_out())
    assert sorted(panel.spans) == [
        (4096 * 2048, 64, 30 * 64),
        (7168 * 2048, 64, 30 * 64),
    ]
    assert (panel.right_name, panel.up_name, int(panel.edge.sum())) == ("n x k", "m", 4)
