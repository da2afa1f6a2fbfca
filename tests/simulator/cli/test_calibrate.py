"""dsv3sim calibrate."""

from typer.testing import CliRunner

from simulator.cli.app import app


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
