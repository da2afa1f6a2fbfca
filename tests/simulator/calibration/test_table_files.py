"""Files of measurements: tables as they are, printed output as one line for each result."""

import gzip
from pathlib import Path

import pandas as pd
import pytest

from simulator.calibration import table_files
from simulator.calibration.table_files import read_columns
from simulator.calibration.tables import import_table

NCCL_TESTS = """\
# nccl-tests version 2.17.6 nccl-headers=22807 nccl-library=22807
# Collective test starting: alltoall_perf
# nThread 1 nGpus 2 minBytes 1048576 maxBytes 2097152 step: 2(factor) warmup iters: 5 iters: 20
# Using devices
#  Rank  0 Group  0 Pid  15784 on  host-a device  0 [0000:1b:00] NVIDIA H200
#  Rank  1 Group  0 Pid  15784 on  host-a device  1 [0000:43:00] NVIDIA H200
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
     1048576        131072     float    none      -1    19.41   54.02   27.01      0    19.30   54.33   27.16    N/A
     2097152        262144     float    none      -1    22.80   91.98   45.99      0    22.61   92.75   46.38    N/A
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 36.6
"""  # noqa: E501

DEEPEP_NORMAL = """\
[config] num_tokens=4096, hidden=7168, num_topk=8
[layout] Kernel performance: 0.052 ms
[tuning] SMs 24, NVL chunk 4: 120.10 GB/s (NVL), t: 652.00 us
[tuning] Best dispatch (FP8): SMs 24, NVL chunk 20: 153.20 GB/s (NVL), t: 520.40 us
[tuning] Best dispatch (BF16): SMs 24, NVL chunk 16: 158.00 GB/s (NVL), t: 978.50 us
[tuning] Best combine: SMs 24, NVL chunk 6: 158.40 GB/s (NVL), t: 976.10 us
"""

DEEPEP_LOW_LATENCY = """\
Allocating buffer size: 2116.29 MB ...
[rank 0] Dispatch + combine bandwidth: 47.10 GB/s, avg_t=470.89 us, min_t=468.00 us, max_t=475.00 us
[rank 0] Dispatch bandwidth: 98.00 GB/s, avg_t=77.40 us | Combine bandwidth: 128.80 GB/s, avg_t=114.00 us
[rank 0] Dispatch send/recv time: 20.49 + 14.10 us | Combine send/recv time: 22.97 + 16.20 us
"""  # noqa: E501


def test_nccl_tests_output_is_a_line_for_each_size(tmp_path):
    path = tmp_path / "alltoall.log"
    path.write_text(NCCL_TESTS, encoding="utf-8")
    columns = read_columns(path)
    assert columns["operation"].tolist() == ["alltoall", "alltoall"]
    assert columns["version"].tolist() == ["2.28.7", "2.28.7"]
    assert columns["time"].tolist() == ["19.41", "22.80"]
    first, second = import_table(path, gpu="h200_sxm").measurements
    assert (first.kind, dict(first.sizes)) == ("all_to_all", {"bytes": 1048576, "ranks": 2})
    assert (first.seconds, second.seconds) == (19.41e-6, 22.8e-6)
    assert first.kernel_set == "nccl_2.28.7"


def test_nccl_tests_between_hosts_are_set_aside(tmp_path):
    path = tmp_path / "alltoall.log"
    path.write_text(NCCL_TESTS.replace("on  host-a device  1", "on  host-b device  1"), "utf-8")
    table = import_table(path, gpu="h200_sxm")
    assert table.measurements == ()
    assert table.warnings == (
        "alltoall.log: 2 x set aside: between hosts: transfers of a network are the cluster's: "
        "line 2, 3",
    )


def test_output_of_deepeps_normal_tests_gives_its_best_results(tmp_path):
    path = tmp_path / "intranode.txt"
    path.write_text(DEEPEP_NORMAL, encoding="utf-8")
    stated = {"num_experts": "256", "nodes": "1"}
    fp8, bf16, combine = import_table(path, gpu="h800_sxm", stated=stated).measurements
    # 8 (1 - C(224, 8) / C(256, 8)) = 5.295 of 8 GPUs: 21,687 copies of 4,096 tokens.
    assert dict(fp8.sizes) == {"tokens": 4096, "rows": 21687, "hidden": 7168, "top_k": 8}
    assert (fp8.kind, fp8.dtype, fp8.sms, fp8.seconds) == (
        "dispatch", "fp8_e4m3", 24, pytest.approx(520.4e-6),
    )  # fmt: skip
    assert (bf16.dtype, combine.kind) == ("bfloat16", "combine")
    assert (bf16.seconds, combine.seconds) == (pytest.approx(978.5e-6), pytest.approx(976.1e-6))


def test_output_of_deepeps_low_latency_test_is_read_with_what_it_does_not_print(tmp_path):
    path = tmp_path / "low_latency.txt"
    path.write_text(DEEPEP_LOW_LATENCY, encoding="utf-8")
    stated = {
        "num_tokens": "128", "hidden": "7168", "num_topk": "8", "num_experts": "288", "nodes": "1",
    }  # fmt: skip
    dispatch, combine = import_table(path, gpu="h800_sxm", stated=stated).measurements
    assert (dispatch.seconds, combine.seconds) == (pytest.approx(77.4e-6), pytest.approx(114e-6))
    assert dict(dispatch.sizes)["rows"] == 1024
    # 288 experts in groups of 3 occupy 96 SMs.
    assert (dispatch.sms, dispatch.condition("layout")) == (96, "low_latency")
    # Rows between nodes are of no use without the rate of the NICs.
    assert dispatch.condition("nic") == "400 Gbit/s"


def test_files_that_would_fill_the_memory_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(table_files, "MOST_BYTES", 1000)
    rows = pd.DataFrame({"m": [64] * 2000})
    rows.to_csv(tmp_path / "large.csv", index=False)
    rows.to_parquet(tmp_path / "unpacks.parquet")
    rows.iloc[:0].to_parquet(tmp_path / "empty.parquet")
    (tmp_path / "packed.csv").write_bytes(gzip.compress(b"m,k\n1,2\n"))
    for path, message in (
        (tmp_path / "large.csv", r"6002 bytes; allowed: at most"),
        (tmp_path / "packed.csv", "not UTF-8 text"),
        (Path("/dev/zero"), "cannot be read: not a file"),
        (tmp_path, "cannot be read: not a file"),
    ):
        with pytest.raises(ValueError, match=f"^{path}: {message}"):
            read_columns(path)
    monkeypatch.setattr(table_files, "MOST_BYTES", 2**20)
    monkeypatch.setattr(table_files, "MOST_ROWS", 1999)
    with pytest.raises(ValueError, match=r"unpacks\.parquet: .*2000 rows; allowed: at most"):
        read_columns(tmp_path / "unpacks.parquet")
    assert len(read_columns(tmp_path / "empty.parquet")["m"]) == 0
