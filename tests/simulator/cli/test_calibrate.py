"""dsv3sim calibrate."""

import math

import numpy as np
from typer.testing import CliRunner

from hardware_profiles.tables import Measurement
from simulator.cli.app import app


def row(m, n, k, seconds, kernel_set="made_up"):
    return Measurement(
        kind="gemm",
        sizes=(("k", k), ("m", m), ("n", n)),
        dtype="fp8_e4m3",
        sms=132,
        seconds=seconds,
        spread=None,
        source="made up",
        conditions=(("out_dtype", "bfloat16"), ("set", kernel_set)),
    )


def made_up(*, noise=0.0, seed=0, kernel_set="made_up", slower=1.0):
    """A kernel that reaches 60 % of the peak beyond a launch of 5 us."""
    rng = np.random.default_rng(seed)
    return [
        row(
            m, n, k,
            slower * (5e-6 + 2 * m * n * k / (0.6 * 1979e12)) * math.exp(noise * rng.normal()),
            kernel_set,
        )
        for m in (256, 512, 1024, 2048, 4096, 8192, 16384)
        for n in (1536, 4096, 7168, 24576)
        for k in (2048, 7168)
    ]  # fmt: skip


def test_the_command_prints_errors_and_counts_what_it_left_out(tmp_path):
    source = tmp_path / "gemm.csv"
    lines = [f"{m},7168,1536,{5 + m / 60},0.1" for m in (64, 128, 256, 512, 1024, 2048)]
    source.write_text("m,k,n,latency_us,mfu\n" + "\n".join([*lines, "4096,7168,1536,-1,0"]))
    out = tmp_path / "mine.yaml"
    report = tmp_path / "report"
    arguments = ["calibrate", str(source), "--gpu", "h800_sxm", "--out", str(out)]
    arguments += ["--report", str(report)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "1 x set aside: latency_us is not positive: line 8" in result.output
    assert "worst rows" in result.output
    assert "read by gemm.csv: infersim_gemm, 6 rows" in result.output
    assert (report / "report.html").is_file()
    shown = CliRunner().invoke(app, ["show", "calibration", str(out)])
    assert shown.exit_code == 0
    assert "worst rows" in shown.output
