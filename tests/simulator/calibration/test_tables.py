"""Other tools' tables: what they measured comes in, what cannot be true is set aside and named."""

import csv
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.calibration.tables import (
    import_table,
    load_table_mapping,
    table_mappings,
)

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
    assert (table.mapping, table.set_aside, table.warnings) == ("infersim_gemm", 0, ())
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
    assert table.set_aside == 1
    assert len(table.warnings) == 1
    assert reason in table.warnings[0]
    assert table.warnings[0].endswith("line 3")


@pytest.mark.parametrize("size", ["x", "", "-64", "64.5", "1e30"])
def test_a_size_that_cannot_be_is_set_aside(tmp_path, size):
    table = import_table(gemm(tmp_path, *GOOD, [size, *GOOD[0][1:]]), gpu="h800_sxm")
    assert (len(table.measurements), table.set_aside) == (2, 1)


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


@pytest.mark.shared
@pytest.mark.parametrize(
    ("gpu", "file", "rows"),
    [
        ("h800_sxm", "h800/gemm_fp8.csv", 110),
        ("h800_sxm", "h800/grouped_gemm_decode_fp8.csv", 94),
        ("h800_sxm", "h800/mla_decode.csv", 41),
        ("h200_sxm", "h200/gemm.csv", 5827),
        ("h200_sxm", "h200/deepep_normal.csv", 2064),
        ("h200_sxm", "h200/moe_prefill.csv", 0),
    ],
)
def test_the_shared_tables_come_in_whole(gpu, file, rows):
    if not (SHARED / file).is_file():
        pytest.skip(f"no {SHARED / file}")
    table = import_table(SHARED / file, gpu=gpu)
    assert len(table.measurements) == rows
    assert (table.set_aside == 0) == (rows > 0)


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
    assert bool(table.set_aside) == bool(table.warnings)


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
