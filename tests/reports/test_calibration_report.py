"""The page of a calibration: what is pooled, what is drawn, and that it opens without a network."""

import dataclasses
import json

import pandas as pd
import pytest
from made_up_rows import held_out

from hardware_profiles.schema import load_calibration
from reports.calibration_report import pooled_errors, write_calibration_run
from simulator.calibration.fit import Calibration
from simulator.calibration.imported_rows import ImportedRows
from simulator.workload.profile.mapped_kernels import UnmappedKernel


def calibration(rows):
    return Calibration(
        profile=load_calibration("h800_sxm").model_copy(update={"name": "made_up"}),
        read=ImportedRows(
            measurements=tuple(row.measurement for row in rows),
            unmapped=(UnmappedKernel("strange", "no rule", 1, 3e-5),),
            warnings=("2 x set aside: line 3, 4",),
            read_by=("rows.csv: measurements, 60 rows",),
        ),
        held_out=tuple(rows),
    )


def test_rows_between_others_are_pooled_by_family_with_their_noise():
    (pooled,) = pooled_errors(calibration(held_out()))
    assert (pooled.tables, pooled.rows) == (1, 56)
    assert pooled.median == pytest.approx(0.01)
    assert pooled.worst == pytest.approx(0.5)
    assert pooled.noise_median is None
    assert not pooled.suspect


def test_tables_with_few_rows_are_not_pooled():
    assert pooled_errors(calibration(held_out()[:39])) == []


def test_an_error_far_below_the_noise_is_suspect():
    again = [
        dataclasses.replace(one.measurement, seconds=1.2 * one.measurement.seconds)
        for one in held_out()
    ]
    result = calibration(held_out())
    rows = dataclasses.replace(result.read, measurements=(*result.read.measurements, *again))
    repeated = dataclasses.replace(result, read=rows)
    (pooled,) = pooled_errors(repeated)
    assert pooled.noise_median == pytest.approx(0.18, abs=0.03)
    assert pooled.suspect


def test_the_run_directory_holds_page_figures_rows_and_errors(tmp_path):
    write_calibration_run(calibration(held_out()), tmp_path / "run", inputs={"gpu": "h800_sxm"})
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "2 x set aside" in page
    assert "strange: 1 kernels" in page
    assert page.count("</script>") == page.count("<script>") == 1
    assert len(pd.read_parquet(tmp_path / "run" / "held_out.parquet")) == 60
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["pooled"][0]["rows"] == 56
    names = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert {name.rpartition(".")[0].rpartition("_made_up_")[2] for name in names} == {
        "predicted_against_measured", "where_there_are_rows",
    }  # fmt: skip


def test_a_calibration_without_a_judged_family_still_has_a_page(tmp_path):
    write_calibration_run(calibration([]), tmp_path / "run", inputs={})
    assert "No table has that many rows" in (tmp_path / "run" / "report.html").read_text()
