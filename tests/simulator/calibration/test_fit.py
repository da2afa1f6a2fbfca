"""A calibration names what it could not judge, and is as exact as its rows allow."""

from pathlib import Path

import numpy as np
import pytest
from made_up_rows import BASE, made_up

from hardware_profiles.tables import load_measurements, table_path, write_measurements
from simulator.calibration.fit import fit_calibration

SHARED = Path(__file__).resolve().parents[3] / ".." / "shared" / "measured"


def test_families_of_few_rows_are_named_and_so_are_rows_that_decide_nothing(tmp_path):
    path = tmp_path / "few.csv"
    copies = load_measurements(table_path("host/h200_sxm_transfers"))
    peer = [row for row in copies if row.kind == "peer_copy"]
    write_measurements(path, [*made_up()[:3], *peer])
    result = fit_calibration([path], gpu="h200_sxm", name="few", base=BASE)
    assert result.profile.fits == ()
    assert result.read.warnings[:2] == (
        "21 rows are of no kernel or collective operation and decide nothing: peer_copy",
        "3 rows of fewer than 5 sizes a family are not judged: gemm",
    )


@pytest.mark.shared
def test_left_out_rows_of_the_h200_tables_are_within_their_targets():
    files = ["mla_decode.csv", "mla_prefill.csv"]
    if not all((SHARED / "h200" / file).is_file() for file in files):
        pytest.skip(f"no {SHARED / 'h200'}")
    # Either type of cache: without names one of the two would be taken.
    sets = [
        f"aiconfigurator_flash_attention_{phase}_{cache}_cache"
        for phase in ("decode", "prefill")
        for cache in ("bfloat16", "fp8")
    ]
    result = fit_calibration(
        [SHARED / "h200" / file for file in files], gpu="h200_sxm", name="x", base=BASE, sets=sets
    )
    for kind, (median, p90) in {"mla_decode": (0.02, 0.07), "mla_prefill": (0.02, 0.09)}.items():
        errors = [
            abs(one.error)
            for one in result.held_out
            if one.measurement.kind == kind and not one.edge
        ]
        assert np.median(errors) <= median
        assert np.quantile(errors, 0.9) <= p90
