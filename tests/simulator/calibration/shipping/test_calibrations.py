"""Shipped calibrations are what the command writes: none is edited by hand."""

from collections import defaultdict

import pytest

from hardware_profiles.fields import ROOT
from hardware_profiles.schema import known_calibrations, load_calibration, load_gpu
from hardware_profiles.tables import load_measurements, table_path
from simulator.calibration.family_fit import fit_families
from simulator.calibration.shipping.calibrations import (
    FITTED,
    RESTATED,
    calibration_text,
    known,
    main,
)
from simulator.hardware.kernels.families import family_of

FEW_ROWS = 20
"""Families that are fitted again; the largest take half a minute."""


def test_every_shipped_calibration_is_written_by_the_command():
    assert known() == known_calibrations()


@pytest.mark.parametrize("name", sorted(RESTATED))
def test_a_calibration_without_rows_is_the_file_that_the_command_writes(name):
    shipped = (ROOT / "calibrations" / f"{name}.yaml").read_text(encoding="utf-8")
    assert shipped == calibration_text(name)
    profile = load_calibration(name)
    assert profile.restatement.source
    assert profile.measurements == ()
    assert profile.restated_from == ("h200_sxm_reference",)


@pytest.mark.parametrize("name", sorted(FITTED))
def test_small_families_of_the_shipped_calibrations_are_what_a_fresh_fit_finds(name):
    profile = load_calibration(name)
    groups = defaultdict(list)
    for table in profile.measurements:
        for row in load_measurements(table_path(table)):
            if row.kernel_set in profile.kernel_sets:
                groups[family_of(row), row.kernel_set].append(row)
    small = [row for rows in groups.values() if len(rows) <= FEW_ROWS for row in rows]
    fresh, _ = fit_families(
        small,
        gpu=load_gpu(profile.gpu),
        floor=profile.kernel_floor.value,
        tiles=profile.tiles,
    )
    shipped = {
        (fit.kind, fit.dtype, fit.out_dtype, fit.accumulate, fit.kernel_set): fit
        for fit in profile.fits
    }
    assert len(fresh) >= 3
    for fit in fresh:
        same = shipped[fit.kind, fit.dtype, fit.out_dtype, fit.accumulate, fit.kernel_set]
        assert (same.rows, same.coverage) == (fit.rows, fit.coverage)
        assert same.edge.median == pytest.approx(fit.edge.median, rel=0.02, abs=1e-4)


def test_the_command_writes_where_it_is_told(tmp_path):
    main(["h100_sxm", "--into", str(tmp_path)])
    assert (tmp_path / "h100_sxm.yaml").read_text(encoding="utf-8") == calibration_text("h100_sxm")


def test_an_unknown_calibration_is_one_line(capsys):
    with pytest.raises(SystemExit):
        main(["nothing"])
    assert "calibration 'nothing' is not written here" in capsys.readouterr().err
