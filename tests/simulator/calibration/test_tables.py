"""Other tools' tables: what they measured comes in, what cannot be true is set aside and named."""

import csv
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hardware_profiles.tables import load_measurements, table_path, write_measurements
from simulator.calibration import table_files
from simulator.calibration.table_mappings import load_table_mapping, table_mappings
from simulator.calibration.tables import import_table

SHARED = Path(__file__).resolve().parents[3] / ".." / "shared" / "measured"
GEMM = ["m", "k", "n", "latency_us", "mfu"]
GOOD = [["64", "7168", "1536", "10.9", "0.065"], ["4096", "7168", "1536", "78.1", "0.58"]]


def write(path, header, lines):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *lines])
    return path


def gemm(tmp_path, *lines, header=GEMM):
    return write(tmp_path / "gemm.csv", header, lines)


def test_a_table_is_known_by_its_columns(tmp_path):
    table = import_table(gemm(tmp_path, *GOOD), gpu="h800_sxm")
    assert (table.read_by, table.warnings) == (("infersim_gemm, 2 rows",), ())
    first = table.measurements[0]
    assert (first.kind, dict(first.sizes)) == ("gemm", {"m": 64, "n": 1536, "k": 7168})
    assert first.seconds == pytest.approx(10.9e-6)
    assert (first.sms, first.kernel_set) == (132, "infersim")


def test_parquet_gives_the_same_rows_as_csv(tmp_path):
    columns = {
        "m": [64, 4096], "k": [7168, 7168], "n": [1536, 1536], "latency_us": [10.9, 78.1],
        "mfu": [0.065, 0.58],
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "gemm.parquet")
    from_parquet = import_table(tmp_path / "gemm.parquet", gpu="h800_sxm").measurements
    from_csv = import_table(gemm(tmp_path, *GOOD), gpu="h800_sxm").measurements
    assert [row.seconds for row in from_parquet] == [row.seconds for row in from_csv]
    assert [row.sizes for row in from_parquet] == [row.sizes for row in from_csv]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("nan", "no number"),
        ("", "no number"),
        ("12 us", "no number"),
        ("inf", "no number"),
        ("0", "not positive"),
        ("-3.5", "not positive"),
        ("0.0109", "faster than the peaks"),
        ("10900000", "far off all other rows"),
    ],
)
def test_a_time_that_cannot_be_is_set_aside_with_its_line(tmp_path, cell, reason):
    bad = ["128", "7168", "1536", cell, "0.1"]
    table = import_table(gemm(tmp_path, GOOD[0], bad, GOOD[1]), gpu="h800_sxm")
    assert len(table.measurements) == 2
    (warning,) = table.warnings
    assert "1 x set aside" in warning
    assert reason in warning
    assert warning.endswith("line 3")


@pytest.mark.parametrize("size", ["x", "", "-64", "64.5", "1e30"])
def test_a_size_that_cannot_be_is_set_aside(tmp_path, size):
    table = import_table(gemm(tmp_path, *GOOD, [size, *GOOD[0][1:]]), gpu="h800_sxm")
    assert (len(table.measurements), lines_aside(table)) == (2, 1)


def test_a_missing_column_is_one_error_that_names_it(tmp_path):
    path = gemm(tmp_path, ["64", "7168", "10.9", "0.1"], header=["m", "k", "latency_us", "mfu"])
    with pytest.raises(ValueError, match="also needs n") as error:
        import_table(path, gpu="h800_sxm")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="column 'n' is missing"):
        import_table(path, gpu="h800_sxm", mapping="infersim_gemm")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'm,k\n"1,2\n3'])
def test_what_is_no_table_is_one_error(tmp_path, content):
    path = tmp_path / "broken.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.csv") as error:
        import_table(path, gpu="h800_sxm")
    assert "\n" not in str(error.value)


def test_a_broken_parquet_file_is_one_error(tmp_path):
    path = tmp_path / "broken.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"broken\.parquet"):
        import_table(path, gpu="h800_sxm")


def test_rows_of_a_grouped_gemm_are_recovered_from_its_utilisation(tmp_path):
    header = ["num_local_experts", "hidden_size", "intermediate_size", "seq_len_per_gpu",
              "tokens_per_expert", "up_proj_us", "up_mfu", "down_proj_us", "down_mfu"]  # fmt: skip
    path = write(
        tmp_path / "grouped.csv", header,
        [["4", "7168", "2048", "4096", "8192", "1500", "0.6", "800", "0.55"]],
    )  # fmt: skip
    up, down = import_table(path, gpu="h800_sxm").measurements
    assert dict(up.sizes)["rows"] == round(0.6 * 1979e12 * 1500e-6 / (2 * 4096 * 7168))
    assert dict(down.sizes)["rows"] == round(0.55 * 1979e12 * 800e-6 / (2 * 7168 * 2048))


def test_arithmetic_of_a_mapping_cannot_run_code(tmp_path):
    mapping = tmp_path / "evil.yaml"
    mapping.write_text(
        "name: evil\nformat: table\nsource: x\ncolumns: [m]\nkernels:\n"
        "  - {kind: gemm, dtype: bfloat16, out_dtype: bfloat16, unit: us, kernel_set: x,\n"
        "     sizes: {m: m, n: 1, k: 1}, seconds: \"__import__('os')\"}\n"
    )
    with pytest.raises(ValueError, match="is not allowed"):
        import_table(gemm(tmp_path, *GOOD), gpu="h800_sxm", mapping=str(mapping))


@pytest.mark.parametrize("name", table_mappings())
def test_every_shipped_mapping_loads(name):
    mapping = load_table_mapping(name)
    assert bool(mapping.kernels) != bool(mapping.unused)


def lines_aside(table):
    """As its warnings say, of which each is of other lines."""
    return sum(int(count) for count in re.findall(r": (\d+) x set aside", " ".join(table.warnings)))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("gpu", "file", "rows", "aside"),
    [
        ("h800_sxm", "h800/gemm_fp8.csv", 110, 0),
        ("h800_sxm", "h800/grouped_gemm_decode_fp8.csv", 94, 0),
        ("h800_sxm", "h800/mla_decode.csv", 41, 0),
        ("h200_sxm", "h200/gemm.csv", 5827, 0),
        ("h200_sxm", "h200/deepep_normal.csv", 2064, 0),
        # 43 lines of equal loads of at least 4,096 tokens, each the time of five kernels.
        ("h200_sxm", "h200/moe_prefill.csv", 43 * 5, 363 - 43),
    ],
)
def test_the_shared_tables_come_in_whole(gpu, file, rows, aside):
    if not (SHARED / file).is_file():
        pytest.skip(f"no {SHARED / file}")
    # This earlier subset has no column that says which phase a line is of.
    stated = {"op_name": "moe_context"} if "moe" in file else {}
    table = import_table(SHARED / file, gpu=gpu, stated=stated)
    assert len(table.measurements) == rows
    assert lines_aside(table) == aside


cells = st.one_of(
    st.integers(-10, 2**40).map(str), st.floats().map(str), st.text(max_size=6), st.just("")
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lines=st.lists(st.lists(cells, min_size=5, max_size=5), max_size=6))
def test_any_cells_give_rows_or_counted_lines_or_one_error(tmp_path, lines):
    path = gemm(tmp_path, *lines)
    try:
        table = import_table(path, gpu="h800_sxm")
    except ValueError as error:
        one_line = "\n" not in str(error)
        assert one_line
        return
    assert all(math.isfinite(row.seconds) and row.seconds > 0 for row in table.measurements)
    assert all(value >= 0 for row in table.measurements for _, value in row.sizes)
    assert all(" x set aside: " in warning for warning in table.warnings)
    assert bool(table.warnings) == (len(table.measurements) < len(lines))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=200), ending=st.sampled_from([".csv", ".parquet"]))
def test_any_bytes_are_a_table_or_one_error(tmp_path, content, ending):
    path = tmp_path / f"any{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        import_table(path, gpu="h800_sxm")
    assert "\n" not in str(error.value)


def test_a_column_that_is_there_twice_is_one_error(tmp_path):
    path = gemm(tmp_path, ["64", "7168", "1536", "10.9", "0.1", "5"], header=[*GEMM, "m"])
    with pytest.raises(ValueError, match="column 'm' is there more than once"):
        import_table(path, gpu="h800_sxm")


DEEPEP = ["device", "node_num", "hidden_size", "num_token", "num_topk", "num_experts",
          "combine_avg_t_us", "dispatch_avg_t_us"]  # fmt: skip


def deepep(path, *lines):
    return write(path, DEEPEP, [[device, 1, 7168, *rest] for device, *rest in lines])


def test_rows_of_another_gpu_are_set_aside_row_by_row(tmp_path):
    path = deepep(
        tmp_path / "ll.csv",
        ("NVIDIA H100 80GB HBM3", 1, 8, 256, "14.4", "13.2"),
        ("NVIDIA B200", 1, 8, 256, "11.1", "10.9"),
        ("NVIDIA H100 80GB HBM3", 2, 8, 256, "14.2", "13.7"),
    )
    table = import_table(path, gpu="h100_sxm")
    assert [round(row.seconds * 1e6, 1) for row in table.measurements] == [13.2, 13.7, 14.4, 14.2]
    assert table.warnings == (
        "ll.csv: 1 x set aside: measured on NVIDIA B200 (--gpu b200_sxm), not on h100_sxm: line 3",
    )


def test_rows_equal_to_another_gpus_are_reported_as_copies(tmp_path):
    path = deepep(
        tmp_path / "ll.csv",
        ("NVIDIA H100 80GB HBM3", 1, 8, 256, "14.402", "13.194"),
        ("NVIDIA H200", 1, 8, 256, "14.402", "13.194"),
        ("NVIDIA H200", 2, 8, 256, "14.2", "13.7"),
    )
    table = import_table(path, gpu="h200_sxm")
    assert table.warnings[0] == (
        "ll.csv: 1 row equals a row of NVIDIA H100 80GB HBM3 to the last digit: a copy, measured "
        "on one of the two"
    )


def test_the_version_of_the_folder_counts_before_the_column(tmp_path):
    folder = tmp_path / "nccl" / "2.27.3"
    folder.mkdir(parents=True)
    path = write(
        folder / "nccl.csv",
        ["version", "op_name", "kernel_source", "nccl_dtype", "num_gpus", "message_size",
         "latency"],
        [["2.29.2", "all_reduce", "NCCL", "half", "8", "1024", "0.0231"]],
    )  # fmt: skip
    table = import_table(path, gpu="h100_sxm")
    (row,) = table.measurements
    assert (row.kind, dict(row.sizes), row.dtype) == (
        "all_reduce", {"bytes": 2048, "ranks": 8}, "float16",
    )  # fmt: skip
    assert row.kernel_set == "nccl_2.27.3"
    assert row.source == (
        "ai-dynamo/aiconfigurator perf tables, NCCL, 2.27.3, nccl.csv; its version column says "
        "2.29.2"
    )
    assert [(known.name, known.version) for known in table.sets] == [("nccl_2.27.3", (2, 27, 3))]


PRODUCTS = ["kernel_source", "gemm_dtype", "m", "n", "k", "version", "latency"]
LAUNCH_US = 1.2
# 64 x 2048 by 7168 x 2048 in FP8 with a scale of 4 bytes for 128 values or a block of 128 by 128,
# out in BF16: what each kernel of the line moves.
PRODUCT_BYTES = 64 * (2048 + 16 * 4) + 7168 * 2048 + 56 * 16 * 4 + 64 * 7168 * 2
CAST_BYTES = 64 * 2048 * 2 + 64 * (2048 + 16 * 4)
PACKING_BYTES = 7168 * 16 * (4 + 4)


@pytest.mark.parametrize(
    ("gpu", "hbm_bytes_per_us", "packed"), [("h200_sxm", 4.8e6, 0), ("b200_sxm", 7.7e6, 1)]
)
def test_a_quantised_product_is_timed_with_its_cast(tmp_path, gpu, hbm_bytes_per_us, packed):
    lines = [["deepgemm", kind, "64", "7168", "2048", "0.5.14", "0.02"]
             for kind in ("bfloat16", "fp8_block")]  # fmt: skip
    table = import_table(write(tmp_path / "gemm.csv", PRODUCTS, lines), gpu=gpu)
    alone, quantised = table.measurements
    assert (alone.kind, alone.dtype, alone.seconds) == ("gemm", "bfloat16", pytest.approx(20e-6))
    assert (quantised.kind, quantised.dtype) == ("gemm", "fp8_e4m3")
    product = LAUNCH_US + PRODUCT_BYTES / hbm_bytes_per_us
    others = LAUNCH_US + CAST_BYTES / hbm_bytes_per_us
    # DeepGEMM packs the weights' scales by four kernels on Blackwell.
    others += packed * (4 * LAUNCH_US + PACKING_BYTES / hbm_bytes_per_us)
    assert quantised.seconds == pytest.approx(20e-6 * product / (product + others), rel=1e-6)
    assert len(table.warnings) == 1 + packed
    assert lines_aside(table) == 0


def test_a_kernel_whose_share_is_no_row_belongs_to_a_module(tmp_path):
    mapping = tmp_path / "mine.yaml"
    mapping.write_text(
        "name: mine\nformat: table\nsource: mine\ncolumns: [us]\nkernels:\n"
        "  - {kind: copy, dtype: bfloat16, out_dtype: bfloat16, sizes: {rows: 1, columns: 8},"
        " seconds: us, unit: us, kernel_set: mine, aside: none of mine}\n"
    )
    with pytest.raises(ValueError, match=r"kernels: copy: aside: allowed beside part_of"):
        load_table_mapping(str(mapping))


def test_a_column_that_is_the_same_in_every_line_can_be_stated(tmp_path):
    path = write(
        tmp_path / "own.csv", ["M", "N", "K", "time (us)"], [["4096", "7168", "2048", "240"]]
    )
    with pytest.raises(ValueError, match="matrix_products, which also needs dtype"):
        import_table(path, gpu="h100_sxm")
    (row,) = import_table(path, gpu="h100_sxm", stated={"dtype": "bf16"}).measurements
    assert (row.kind, row.dtype, dict(row.sizes)) == (
        "gemm", "bfloat16", {"m": 4096, "n": 7168, "k": 2048},
    )  # fmt: skip
    assert row.seconds == pytest.approx(240e-6)
    with pytest.raises(ValueError, match=r"--column M: own\.csv has a column of that name"):
        import_table(path, gpu="h100_sxm", stated={"M": "1"})


def test_a_table_of_another_kernel_with_the_same_columns_asks_for_a_mapping(tmp_path):
    # MLA decode of 16 sequences at 1,024 tokens in 3,265.7 us is 0.0014 of the peak, not 0.01:
    # 2 x 16 x 128 x 1024 x 1088 / 3265.7e-6 / 989e12.
    path = write(
        tmp_path / "decode.csv",
        ["dtype", "kv_dtype", "batch_size", "kv_len", "latency_us", "mfu"],
        [["bf16", "bf16", "16", "1024", "3265.7", "0.01"]],
    )
    with pytest.raises(ValueError, match=r"mfu is 7\.08 times .* name one with --mapping"):
        import_table(path, gpu="h800_sxm")
    assert len(import_table(path, gpu="h800_sxm", mapping="infersim_mla_decode").measurements) == 1


def test_the_worked_example_of_the_page_is_read_as_it_says(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "own_kernel_tables.md").read_text("utf-8")
    table = page.split("```\n")[3].removesuffix("\n") + "\n"
    (tmp_path / "products.csv").write_text(table, encoding="utf-8")
    mapping = page.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "my_products.yaml").write_text(mapping, encoding="utf-8")
    read = import_table(
        tmp_path / "products.csv", gpu="h200_sxm", mapping=str(tmp_path / "my_products.yaml")
    )
    first, second = read.measurements
    assert (first.kernel_set, first.dtype, first.seconds) == (
        "cublas", "bfloat16", pytest.approx(191.3e-6),
    )  # fmt: skip
    assert dict(second.sizes) == {"m": 64, "n": 7168, "k": 2048}
    assert read.warnings == ("products.csv: 1 x set aside: first call: line 4",)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "kernels"),
    [
        ("gemm/sglang/0.5.14/gemm_perf.parquet", {("gemm", "bfloat16"): 28574,
                                                   ("gemm", "fp8_e4m3"): 23757}),
        ("mla/sglang/0.5.14/context_mla_perf.parquet", {("mla_prefill", "bfloat16"): 2774}),
        ("mla/sglang/0.5.14/generation_mla_perf.parquet", {("mla_decode", "bfloat16"): 4590}),
        ("mla/sglang/0.5.10/wideep_context_mla_perf.parquet", {}),
        ("mla_bmm/sglang/0.5.14/mla_bmm_perf.parquet", {("batched_gemm", "bfloat16"): 720,
                                                        ("batched_gemm", "fp8_e4m3"): 700}),
        ("mlp/sglang/0.5.6.post2/wideep_context_mlp_perf.parquet", {}),
        ("moe/sglang/0.5.10/wideep_generation_moe_perf.parquet",
         {("masked_grouped_gemm", "fp8_e4m3"): 84, ("swiglu", "bfloat16"): 42}),
        ("comm/nccl/2.27.3/nccl_perf.parquet",
         {("all_reduce", "float16"): 104, ("all_reduce", "int8"): 98,
          ("all_gather", "float16"): 102, ("all_gather", "int8"): 114,
          ("reduce_scatter", "float16"): 104, ("reduce_scatter", "int8"): 102,
          ("all_to_all", "float16"): 92, ("all_to_all", "int8"): 100}),
        ("comm/sglang/0.5.6.post2/wideep_deepep_normal_perf.parquet",
         {("dispatch", "fp8_e4m3"): 347 - 75, ("combine", "bfloat16"): 347}),
    ],
)  # fmt: skip
def test_the_published_tables_of_h100_are_read_as_they_are(file, kernels):
    path = SHARED / "public" / "h100_sxm" / file
    if not path.is_file():
        pytest.skip(f"no {path}")
    table = import_table(path, gpu="h100_sxm")
    assert Counter((row.kind, row.dtype) for row in table.measurements) == kernels


def test_transfers_that_cannot_be_are_set_aside_with_their_lines(tmp_path):
    rows = list(load_measurements(table_path("host/h200_sxm_transfers")))
    rows[3] = replace(rows[3], sizes=(("bytes", 1024), ("ranks", 1)))
    # 1 GiB of an all-to-all among two, half of which leaves a GPU: 1.193 ms at 450 GB/s.
    sizes = (("bytes", 2**30), ("ranks", 2))
    rows[-2] = replace(rows[-2], kind="all_to_all", seconds=1.19e-3, sizes=sizes)
    rows[-1] = replace(rows[-1], kind="all_to_all", seconds=1.20e-3, sizes=sizes)
    path = tmp_path / "transfers.csv"
    write_measurements(path, rows)
    told = import_table(path, gpu="h200_sxm")
    assert len(told.measurements) == len(rows) - 2
    reasons = " ".join(told.warnings)
    assert "needs bytes (at least 1) and ranks (at least 2): line 2" in reasons
    assert "faster than the peaks of h200_sxm allow (another unit or GPU?): line 5" in reasons


@pytest.mark.parametrize(
    ("kind", "sizes", "says"),
    [
        ("gemn", "k=1;m=1;n=1", "own.csv: measurement of s: kind: 'gemn' is unknown; known: "),
        ("gemm", "k=1;m=1", "own.csv: measurement of s: sizes: gemm needs k, m, n; found k, m"),
        (
            "combine",
            "hidden=7168;rows=8;tokens=0;top_k=8",
            "sizes: hidden=7168;rows=8;tokens=0;top_k=8; allowed: from 1, of combine",
        ),
    ],
)
def test_a_row_of_a_table_of_our_own_that_is_of_no_kernel_is_named(tmp_path, kind, sizes, says):
    path = tmp_path / "own.csv"
    line = f"{kind},{sizes},fp8_e4m3,24,1e-3,,s,nodes=1"
    path.write_text(f"kind,sizes,dtype,sms,seconds,spread,source,conditions\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(says)):
        import_table(path, gpu="h800_sxm")


def test_of_a_table_of_too_many_lines_every_so_many_is_read_and_named_by_its_own_number(
    tmp_path, monkeypatch
):
    """Of ten lines every third: 2, 5, 8 and 11 of the file; the time of line 8 is none."""
    monkeypatch.setattr(table_files, "MOST_LINES", 4)
    path = tmp_path / "gemm.csv"
    rows = [f"{64 * n},7168,2112,{'x' if n == 7 else 8 + 4 * n},0" for n in range(1, 11)]
    path.write_text("\n".join(["m,k,n,latency_us,mfu", *rows]))
    found = import_table(path, gpu="h800_sxm")
    assert [dict(row.sizes)["m"] // 64 for row in found.measurements] == [1, 4, 10]
    assert found.warnings[0].endswith("lines: one of 3 is read, from the first on")
    assert found.warnings[1].endswith("line 8")
    monkeypatch.setattr(table_files, "MOST_LINES", 10)
    parsed, read_csv = [], pd.read_csv
    monkeypatch.setattr(pd, "read_csv", lambda *a, **k: parsed.append(a[0]) or read_csv(*a, **k))
    assert len(import_table(path, gpu="h800_sxm").measurements) == 9
    assert parsed == [path]  # a large table takes seconds
