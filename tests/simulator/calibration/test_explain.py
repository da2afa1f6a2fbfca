"""What would be read as what, without fitting."""

from simulator.calibration.explain import ReadKernels, explain_sources

GEMM = "m,k,n,latency_us,mfu\n64,7168,1536,10.9,0.065\n4096,7168,1536,0.01,0.58\n"


def test_files_kernels_and_what_is_set_aside_are_named(tmp_path):
    (tmp_path / "0.1").mkdir()
    (tmp_path / "0.1" / "gemm.csv").write_text(GEMM, encoding="utf-8")
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    found = explain_sources([tmp_path], gpu="h800_sxm")
    assert found.read_by == ("0.1/gemm.csv: infersim_gemm, 1 rows",)
    assert found.kernels == (ReadKernels("gemm fp8_e4m3 -> bfloat16", "infersim", 1, True),)
    too_fast, unknown = found.aside
    assert "faster than the peaks of h800_sxm allow" in too_fast
    assert unknown.startswith("notes.csv: not read: no mapping knows the columns a, b")
