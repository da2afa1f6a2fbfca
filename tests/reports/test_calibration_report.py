"""The page of a calibration: what is pooled, what is drawn, and that it opens without a network."""

import dataclasses
import json

import pandas as pd
import pytest

from hardware_profiles.schema import load_calibration
from hardware_profiles.tables import Measurement
from reports.calibration_report import pooled_errors, write_calibration_run
from simulator.calibration.family_fit import HeldOutRow
from simulator.calibration.fit import Calibration


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


def calibration(rows):
    return Calibration(
        profile=load_calibration("h800_sxm").model_copy(update={"name": "made_up"}),
        measurements=tuple(row.measurement for row in rows),
        held_out=tuple(rows),
        unmapped=("strange: 1 kernels, 3e-05 s: no rule",),
        warnings=("2 x set aside: line 3, 4",),
        read_by=("rows.csv: measurements, 60 rows",),
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


def test_rows_between_others_are_pooled_by_family_with_their_noise(rows):
    (pooled,) = pooled_errors(calibration(rows))
    assert (pooled.tables, pooled.rows) == (1, 56)
    assert pooled.median == pytest.approx(0.01)
    assert pooled.worst == pytest.approx(0.5)
    assert pooled.noise_median is None
    assert not pooled.suspect


def test_tables_with_few_rows_are_not_pooled(rows):
    assert pooled_errors(calibration(rows[:39])) == []


def test_an_error_far_below_the_noise_is_suspect(rows):
    again = [
        dataclasses.replace(row.measurement, seconds=1.2 * row.measurement.seconds) for row in rows
    ]
    result = calibration(rows)
    repeated = dataclasses.replace(result, measurements=(*result.measurements, *again))
    (pooled,) = pooled_errors(repeated)
    assert pooled.noise_median == pytest.approx(0.18, abs=0.03)
    assert pooled.suspect


def test_the_run_directory_holds_page_figures_rows_and_errors(rows, tmp_path):
    write_calibration_run(calibration(rows), tmp_path / "run", inputs={"gpu": "h800_sxm"})
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "2 x set aside" in page
    assert "strange: 1 kernels" in page
    assert page.count("</script>") == page.count("<script>") == 2
    assert "<script src" not in page
    assert "<link" not in page
    assert len(pd.read_parquet(tmp_path / "run" / "held_out.parquet")) == 60
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["pooled"][0]["rows"] == 56
    names = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert names == {"parity.png", "parity.svg", "coverage.png", "coverage.svg"}


def test_a_calibration_without_a_judged_family_still_has_a_page(tmp_path):
    write_calibration_run(calibration([]), tmp_path / "run", inputs={})
    assert "No table has that many rows" in (tmp_path / "run" / "report.html").read_text()
