from pathlib import Path

import pytest

from hardware_profiles.tables import load_measurements, table_path
from reference_model.achieved import achieved, ceilings, load_timed
from reference_model.measure_grid import ALL_SMS
from reference_model.trace import KINDS

TABLE = table_path("h200_sxm_reference")


@pytest.fixture(scope="module")
def timed():
    return load_timed(TABLE)


def test_the_h200_table_is_one_that_profiles_can_read(timed):
    rows = load_measurements(TABLE)
    assert len(rows) == len(timed) > 2000
    assert {row.kind for row in rows} <= set(KINDS)
    assert len({(r.kind, r.sizes, r.dtype, r.sms, r.conditions) for r in rows}) == len(rows)
    assert all("NVIDIA H200" in row.source and "driver" in row.source for row in rows)


def test_no_kernel_runs_faster_than_the_chip(timed):
    # Datasheet: 1,979 FP8 and 989 BF16 TFLOP/s, 4.8 TB/s; data that fits L2 may move faster.
    peak = {"fp8_e4m3": 1979e12, "bfloat16": 989.5e12, "float32": 989.5e12, "int64": 0, "e5m6": 0}
    for row in timed:
        assert row.flops_per_s <= peak[row.operator.dtype]
    assert ceilings(timed)[1] < 4.8e12


def test_the_six_shapes_and_the_grouped_gemm_reach_what_was_asked(timed):
    rates = {
        (row.operator.kind, dict(row.operator.sizes)["n"], row.operator["k"], row.kernel_set): (
            row.flops_per_s
        )
        for row in timed
        if row.sms == ALL_SMS
        and not row.operator.accumulate
        and (
            (row.operator.kind == "gemm" and row.operator["m"] == 4096)
            or (
                row.operator.kind == "grouped_gemm"
                and (row.operator["rows"], row.operator["groups"]) == (32768, 4)
            )
        )
    }
    shapes = [(2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048)]
    shares = sorted(
        rates["gemm", n, k, "dsv3sim_triton"] / rates["gemm", n, k, "dsv3sim_library"]
        for n, k in shapes
    )
    assert shares[0] >= 0.5
    assert (shares[2] + shares[3]) / 2 >= 0.6
    assert rates["grouped_gemm", 4096, 7168, "dsv3sim_library"] >= 700e12


def test_every_kind_is_reported_beside_its_ceiling(timed):
    reported = achieved(timed)
    assert {a.kind for a in reported} == {row.operator.kind for row in timed}
    assert all(a.flops_share is None or 0 < a.flops_share <= 1 for a in reported)


def test_a_table_with_other_columns_is_refused(tmp_path: Path):
    path = tmp_path / "table.csv"
    path.write_text("kind,seconds\n", encoding="utf-8")
    with pytest.raises(ValueError, match="columns are"):
        load_timed(path)
