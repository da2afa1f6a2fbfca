"""Calibrations on the terminal: every input that no table holds is named, with its source."""

import dataclasses

import numpy as np
import pytest

from hardware_profiles.schema import known_calibrations, load_calibration, load_gpu
from reports.calibration import (
    calibration_tables,
    collective_table,
    explained_tables,
    low_latency_table,
    normal_table,
    pooled_table,
)
from reports.calibration_report import PooledError
from simulator.calibration.collective_fit import CollectiveErrors
from simulator.calibration.kernel_choice import choose_versions
from simulator.calibration.low_latency_fit import FittedLowLatency
from simulator.calibration.normal_fit import FittedLaw
from simulator.calibration.sources import read_sources
from simulator.hardware.network.normal_law import NormalLaw

GEMM = "m,k,n,latency_us,mfu\n64,7168,1536,10.9,0.065\n4096,7168,1536,0.01,0.58\n"


def cells(table, column):
    return list(table.columns[column].cells)


@pytest.mark.parametrize("name", known_calibrations())
def test_every_input_is_shown_with_its_source(name):
    profile = load_calibration(name)
    inputs = calibration_tables(profile)[-1]
    shown = dict(zip(cells(inputs, 0), cells(inputs, 2), strict=True))
    assert {"tiles.overhead", "common_share", "all_to_all.sms_per_channel"} <= set(shown)
    assert {
        "other_gpu.value",
        "all_to_all.beside_compute.dispatch.value",
        "kernel_floor.value",
    } <= set(shown)
    assert all(shown.values()), [path for path, source in shown.items() if not source]


def test_an_input_is_shown_under_the_name_that_sets_it():
    changed = load_calibration("h800_sxm", {"tiles.overhead": 16, "other_gpu.high": 1.5})
    inputs = calibration_tables(changed)[-1]
    shown = dict(zip(cells(inputs, 0), cells(inputs, 1), strict=True))
    assert shown["tiles.overhead"] == "16"
    assert shown["other_gpu.value"].endswith("to 1.5")


@pytest.mark.parametrize(
    ("name", "kind", "whose"),
    [
        ("h800_sxm", "engine", "DeepSeek's training profile, InferSim, DeepGEMM, FlashMLA, DeepEP"),
        ("gb200_reference", "reference", "the reference model's own"),
    ],
)
def test_a_calibration_says_whose_kernels_its_times_are(name, kind, whose):
    inputs = calibration_tables(load_calibration(name))[-1]
    row = cells(inputs, 0).index("kernels.kind")
    assert cells(inputs, 1)[row] == kind
    assert cells(inputs, 2)[row].startswith(f"{whose} (202")


def test_the_ratio_of_an_fp8_cache_is_shown_for_each_architecture():
    inputs = calibration_tables(load_calibration("h20_sxm"))[-1]
    shown = dict(zip(cells(inputs, 0), cells(inputs, 1), strict=True))
    assert shown["fp8_cache.hopper.value"] == "1.03\n1 to 1.1"
    assert shown["fp8_cache.blackwell.value"] == "0.62\n0.44 to 0.95"


def titles(name):
    return [str(table.title) for table in calibration_tables(load_calibration(name))]


def test_a_calibration_without_rows_says_whose_rows_it_takes():
    elsewhere, _ = calibration_tables(load_calibration("rtx_4090"))
    assert cells(elsewhere, 0) == ["every kernel family"]
    assert cells(elsewhere, 1) == ["h200_sxm_reference"]
    assert cells(elsewhere, 2) == ["1\n0.5 to 2"]
    assert len(titles("h800_sxm")) == 5
    assert "rows of other GPUs" in titles("h800_sxm")[3]


def test_pooled_errors_stand_beside_the_noise_floor():
    error = PooledError(
        family="gemm",
        tables=2,
        rows=1234,
        median=0.02,
        p90=0.1,
        worst=0.5,
        noise_median=0.05,
        noise_p90=0.11,
    )
    table = pooled_table([error], 40)
    row = [cells(table, number)[0] for number in range(len(table.columns))]
    assert row == ["gemm", "2", "1,234", "2.0 / 10.0%", "5.0 / 11.0%", "below the noise"]
    assert len(pooled_table([dataclasses.replace(error, median=0.06)], 40).columns) == 5
    assert cells(pooled_table([], 40), 0) == ["none: every table has fewer rows"]


def test_collective_operations_are_shown_by_range_of_size():
    errors = CollectiveErrors(
        size=np.array([1024.0, 2048.0, 2.0**25]),
        ranks=np.full(3, 2),
        error=np.log([1.02, 1.04, 1.1]),
        noise=np.zeros(0),
    )
    table = collective_table("mine", {("all_gather", "any"): errors})
    # In the first range the smaller error lies inside what the other says, the larger does not; the
    # last range has one size, which nothing judges.
    assert [cells(table, i) for i in range(6)] == [
        ["all_gather, any", "all_gather, any"],
        ["2 KiB", "32 MiB"],
        ["2", "1"],
        ["3.0% / 3.8%", "10.0% / 10.0%"],
        ["none", "none"],
        ["50%", "0%"],
    ]


def test_normal_kernels_are_shown_by_direction_and_nodes():
    law = NormalLaw(start=1e-5, ramp=1e-5, softness=1.2, copy=1e10, corner=4.0)
    found = FittedLaw(law, 0.9, np.log([1.02, 1.04]), np.log([1.1, 1.1]))
    table = normal_table({("combine", 4): found})
    assert [cells(table, i) for i in range(4)] == [
        ["combine, 4"],
        ["2"],
        ["3.0% / 3.8%"],
        ["10.0% / 10.0%"],
    ]


def test_low_latency_kernels_are_shown_by_direction():
    rows = {"dispatch": np.log([1.02, 1.04, 1.1]), "combine": np.log([1.01, 0.8])}
    fitted = FittedLowLatency(
        load_gpu("gb200"),
        4,
        128,
        7168,
        8,
        256,
        seconds={},
        intercepts={},
        longest={},
        left_out=rows,
        source="",
    )
    # Off by 0.8 is off by a quarter, as a ratio.
    assert [cells(low_latency_table(fitted), i) for i in range(3)] == [
        ["dispatch", "combine"],
        ["3", "2"],
        ["4.0% / 10.0%", "13.0% / 25.0%"],
    ]


def test_files_kernels_and_what_is_set_aside_are_named(tmp_path):
    (tmp_path / "0.1").mkdir()
    (tmp_path / "0.1" / "gemm.csv").write_text(GEMM, encoding="utf-8")
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    read = read_sources([tmp_path], gpu="h800_sxm")
    sources, kernels, aside = explained_tables(read, choose_versions(read, named=()))
    assert cells(sources, 0) == ["0.1/gemm.csv: infersim_gemm, 1 rows"]
    found = [cells(kernels, column) for column in range(4)]
    assert found == [["gemm fp8_e4m3 -> bfloat16"], ["infersim"], ["yes"], ["1"]]
    too_fast, unknown = cells(aside, 0)
    assert "faster than the peaks of h800_sxm allow" in too_fast
    assert unknown.startswith("notes.csv: not read: no mapping knows the columns a, b")
