"""Calibrating from a table of 100,000 rows takes at most 30 s of one core, report included.

Run with: python -m pytest tests/benchmarks --benchmark-only. Without benchmarks the same runs on
few rows, once.
"""

import numpy as np
import pytest

from reports.calibration_report import write_calibration_run
from simulator.calibration.calibration_files import calibrate_to_file

ROWS, FEW = 100_000, 2_000
PEAK, REACHED, LAUNCH = 1979e12, 0.6, 5e-6


@pytest.fixture
def table(benchmark, tmp_path):
    """GEMMs that reach 60 % of the peak beyond a launch, scattered by 5 %."""
    count = ROWS if benchmark.enabled else FEW
    rng = np.random.default_rng(0)
    m = rng.integers(1, 65536, count)
    n, k = (rng.choice([256, 512, 1536, 2048, 4096, 7168, 16384], count) for _ in range(2))
    seconds = (LAUNCH + 2.0 * m * n * k / (REACHED * PEAK)) * np.exp(0.05 * rng.normal(size=count))
    path = tmp_path / "gemm.csv"
    lines = zip(m, k, n, seconds * 1e6, strict=True)
    path.write_text(
        "m,k,n,latency_us,mfu\n" + "".join(f"{a},{b},{c},{us:.4f},0\n" for a, b, c, us in lines),
        encoding="utf-8",
    )
    return path


def test_time_to_calibrate(benchmark, table, tmp_path):
    def run():
        out = tmp_path / "mine.yaml"
        result, _ = calibrate_to_file([table], gpu="h800_sxm", out=out, base=None)
        write_calibration_run(result, tmp_path / "run", inputs={})
        return result

    result = benchmark.pedantic(run, rounds=1)
    (fit,) = result.profile.fits
    assert fit.interpolated.median < 0.1
