"""What a calibration's own rows say, and how sure they are."""

import numpy as np
import pytest
from cost_models import (
    WITHOUT_TRACE,
    fitted,
    gemm,
)

from simulator.hardware.costs import NotCalibrated


def test_intervals_between_rows_and_beyond_them_hold_what_the_calibration_says():
    # The 80% quantile of held-out errors over the deviation of the process, times the deviation.
    family = ("gemm", "fp8_e4m3", "bfloat16", False)
    model = WITHOUT_TRACE.kernels_.own.families[False, family]
    (inside, outside), *_ = model.scales
    fit = next(
        fit
        for fit in WITHOUT_TRACE.calibration.fits
        if (fit.kind, fit.kernel_set) == ("gemm", "infersim")
    )
    assert (inside, outside) == fit.widths
    told = {
        name: WITHOUT_TRACE.predict([op], sms=132, overlapped=False)
        for name, op in (
            ("between", gemm(3000, 1536, 7168)),
            ("another shape", gemm(3000, 2000, 7168)),
            ("far", gemm(3000, 200_000, 60_000)),
        )
    }
    widths = [float(np.log(each.high / each.seconds)[0]) for each in told.values()]
    assert widths == sorted(widths)
    assert [each.provenance_names()[0] for each in told.values()] == [
        "interpolated",
        "extrapolated",
        "extrapolated",
    ]


def test_a_table_without_the_named_kernel_sets_says_so():
    with pytest.raises(NotCalibrated, match="h800_sxm: no measured compute kernel"):
        fitted(rows=[])
