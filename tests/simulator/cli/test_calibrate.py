"""dsv3sim calibrate."""

import json

import pytest
from typer.testing import CliRunner

from hardware_profiles.schema import load_calibration, load_transport
from simulator.cli.app import command_line


def test_the_command_prints_errors_and_counts_what_it_left_out(tmp_path):
    source = tmp_path / "gemm.csv"
    lines = [f"{m},7168,1536,{5 + m / 60},0.1" for m in (64, 128, 256, 512, 1024, 2048)]
    source.write_text("m,k,n,latency_us,mfu\n" + "\n".join([*lines, "4096,7168,1536,-1,0"]))
    out = tmp_path / "mine.yaml"
    report = tmp_path / "report"
    arguments = ["calibrate", str(source), "--gpu", "h800_sxm", "--out", str(out)]
    arguments += ["--report", str(report)]
    result = CliRunner().invoke(command_line(), arguments)
    assert result.exit_code == 0, result.output
    assert "1 x set aside: latency_us is not positive: line 8" in result.output
    assert "worst rows" in result.output
    assert "read by gemm.csv: infersim_gemm, 6 rows" in result.output
    assert (report / "report.html").is_file()
    shown = CliRunner().invoke(command_line(), ["show", "calibration", str(out)])
    assert shown.exit_code == 0
    assert "worst rows" in shown.output


def nccl_tests(seconds):
    """What all_gather_perf prints between two H200, {bytes: microseconds}."""
    lines = [
        "# nccl-tests version 2.17.6 nccl-headers=22807 nccl-library=22807",
        "# Collective test starting: all_gather_perf",
        "#  Rank  0 Group  0 Pid  1 on  host-a device  0 [0000:1b:00] NVIDIA H200",
        "#  Rank  1 Group  0 Pid  1 on  host-a device  1 [0000:43:00] NVIDIA H200",
        "#   size   count   type   redop  root   time   algbw   busbw #wrong   time",
    ]
    for size, time in seconds.items():
        rates = f"{size / time / 1e3:.2f}  {size / time / 2e3:.2f}"
        lines.append(
            f"{size}  {size // 8}  float  none  -1  {time}  {rates}  0  {time}  {rates}  0"
        )
    return "\n".join([*lines, ""])


def test_output_of_nccl_tests_becomes_a_transport_beside_the_calibration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "gather.log"
    source.write_text(nccl_tests({2**20: 12.0, 2**22: 24.0, 2**24: 96.0, 2**26: 384.0}))
    out = tmp_path / "mine.yaml"
    arguments = ["calibrate", str(source), "--gpu", "h200_sxm", "--out", str(out)]
    arguments += ["--report", str(tmp_path / "report")]
    result = CliRunner().invoke(command_line(), arguments)
    assert result.exit_code == 0, result.output
    beside = tmp_path / "mine_collectives.yaml"
    # Left out, 1 MiB takes the 24 us of the next size: a factor of two.
    assert "transport mine_collectives: error of left-out sizes" in result.output
    assert load_calibration(str(out)).collectives == str(beside)
    measured = load_transport(str(beside)).measured
    assert measured.library == "nccl_2.28.7"
    (operation,) = measured.operations
    assert operation.curves[0].points[2.0**22] == pytest.approx(24e-6)
    changes = ["all_to_all_64", "--set", "cluster=h200_8", "--json"]
    changes += ["--set", "collective.operation={name: all_gather, gpus: 2, bytes_per_gpu: 4 MiB}"]
    run = CliRunner().invoke(
        command_line(), ["run", *changes, "--set", f"collective.transport={beside}"]
    )
    assert json.loads(run.stdout)["completion_s"] == pytest.approx(24e-6)
    # Its own transport is written again; that of another is not.
    assert CliRunner().invoke(command_line(), arguments).exit_code == 0
    out.unlink()
    refused = CliRunner().invoke(command_line(), arguments)
    assert "which no calibration of that name rests on" in str(refused.exception)
