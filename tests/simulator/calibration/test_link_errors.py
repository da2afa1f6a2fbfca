"""Errors of transfers on sizes left out."""

from dataclasses import replace

import numpy as np

from hardware_profiles.schema import LinkProfile, load_calibration, load_gpu, read_profile
from hardware_profiles.tables import load_measurements, table_path, write_measurements
from simulator.calibration.fit import fit_calibration, fit_families
from simulator.calibration.link_errors import launch_noise, leave_one_out, leave_regions_out
from simulator.calibration.tables import import_table

BANDWIDTH = 450e9
WIRE = 2.0 ** np.arange(10, 31)
LINK = LinkProfile(launch_s=20e-6, start_s=10e-6, share=0.85)


def seconds(scatter: float) -> np.ndarray:
    noise = np.exp(scatter * np.random.default_rng(0).normal(size=len(WIRE)))
    return np.maximum(LINK.launch_s, LINK.start_s + WIRE / (LINK.share * BANDWIDTH)) * noise


def test_transfers_that_follow_the_physics_are_predicted_without_themselves():
    assert np.abs(leave_one_out(WIRE, seconds(0.0), BANDWIDTH)).max() < 0.02
    assert np.median(np.abs(leave_regions_out(WIRE, seconds(0.0), BANDWIDTH))) < 0.01


def test_scatter_shows_in_the_errors_and_in_the_noise_floor():
    scattered = seconds(0.1)
    noise = launch_noise(WIRE, scattered, LINK, BANDWIDTH)
    assert 5 < len(noise) < len(WIRE)
    assert 0.03 < np.median(np.abs(noise)) < 0.3
    assert np.median(np.abs(leave_one_out(WIRE, scattered, BANDWIDTH))) > 0.02


def test_own_transfers_are_judged_kind_by_kind():
    rows = load_measurements(table_path("host/h200_sxm_transfers"))
    raw, _ = read_profile("calibrations", "h200_sxm")
    fits, held_out = fit_families(rows, gpu=load_gpu("h200_sxm"), floor=1e-6, tiles=None)
    assert [fit.kind for fit in fits] == ["all_to_all", "peer_copy", "send"]
    assert len(held_out) == len(rows)
    shipped = {fit["kind"]: fit for fit in raw["fits"] if fit["estimator"] == "link"}
    for fit in fits:
        assert fit.link is not None
        assert fit.noise is not None
        assert fit.regions is not None
        assert fit.interpolated is not None
        assert fit.coverage["bytes"] == (1024, 2**30)
        assert fit.interpolated.median == shipped[fit.kind]["interpolated"]["median"]
        # No better than launches repeat, nor much worse.
        assert fit.interpolated.median < 0.1


def test_transfers_that_cannot_be_are_set_aside_with_their_lines(tmp_path):
    rows = [
        replace(row, sizes=(("bytes", 1024), ("ranks", 1))) if number == 3 else row
        for number, row in enumerate(load_measurements(table_path("host/h200_sxm_transfers")))
    ]
    rows[-1] = replace(rows[-1], seconds=1e-9, sizes=(("bytes", 2**30), ("ranks", 2)))
    path = tmp_path / "transfers.csv"
    write_measurements(path, rows)
    told = import_table(path, gpu="h200_sxm")
    assert len(told.measurements) == len(rows) - 2
    reasons = " ".join(told.warnings)
    assert "needs bytes (at least 1) and ranks (at least 2): line" in reasons
    assert "faster than the peaks of h200_sxm allow" in reasons


def test_families_of_few_rows_are_named(tmp_path):
    path = tmp_path / "few.csv"
    write_measurements(path, load_measurements(table_path("host/h200_sxm_transfers"))[-3:])
    result = fit_calibration([path], gpu="h200_sxm", name="few", base=load_calibration("h200_sxm"))
    assert result.profile.fits == ()
    assert result.warnings == ("3 rows of fewer than 5 sizes a family are not judged: send",)
