"""Calibrations on the terminal: every input that no table holds is named, with its source."""

import pytest

from hardware_profiles.schema import known_calibrations, load_calibration
from reports.calibration import calibration_tables


def cells(table, column):
    return list(table.columns[column].cells)


@pytest.mark.parametrize("name", known_calibrations())
def test_every_input_is_shown_with_its_source(name):
    profile = load_calibration(name)
    inputs = calibration_tables(profile)[-1]
    shown = dict(zip(cells(inputs, 0), cells(inputs, 2), strict=True))
    assert {"tiles.overhead", "common_share", "all_to_all.sms_per_channel"} <= set(shown)
    assert {"other_gpu.value", "overlap.dispatch.value", "kernel_floor.value"} <= set(shown)
    assert all(shown.values()), [path for path, source in shown.items() if not source]


def test_an_input_is_shown_under_the_name_that_sets_it():
    changed = load_calibration("h800_sxm", {"tiles.overhead": 16, "other_gpu.high": 1.5})
    inputs = calibration_tables(changed)[-1]
    shown = dict(zip(cells(inputs, 0), cells(inputs, 1), strict=True))
    assert shown["tiles.overhead"] == "16"
    assert shown["other_gpu.value"].endswith("to 1.5")


def test_a_calibration_without_rows_has_no_tables_of_errors():
    assert len(calibration_tables(load_calibration("rtx_4090"))) == 1
    assert len(calibration_tables(load_calibration("h800_sxm"))) == 4
