"""Whose kernels a run is predicted with, and what others of the same GPU would give."""

from pathlib import Path

import numpy as np
import pytest

from hardware_profiles.fields import ROOT
from hardware_profiles.schema import known_calibrations, load_calibration, load_gpu
from simulator.analysis.kernels_used import (
    difference_in_kind,
    kernels_used,
    other_calibration,
    time_by_calibration,
)
from simulator.analysis.run import metrics_of, simulate
from simulator.scenario.files import load_scenario

SHARED = Path(__file__).parents[4] / "shared"
TABLE = SHARED / "measured/public/b200_sxm/mla/sglang/0.5.14/generation_mla_perf.parquet"


@pytest.mark.parametrize("name", known_calibrations())
def test_what_rests_on_the_reference_models_rows_says_so(name):
    calibration = load_calibration(name)
    own = calibration.measurements and not name.endswith("_reference")
    assert calibration.kernels.kind == ("engine" if own else "reference")


@pytest.mark.shared
@pytest.mark.skipif(not TABLE.exists(), reason="no measured data beside the checkout")
def test_the_ratio_of_an_fp8_cache_on_blackwell_is_that_of_the_published_table():
    from pyarrow.parquet import read_table

    times = {}
    for row in read_table(TABLE).to_pylist():
        size = (row["num_heads"], row["batch_size"], row["isl"], row["step"])
        times.setdefault(size, {}).setdefault(row["kv_cache_dtype"], []).append(row["latency"])

    def quantiles(heads):
        ratios = [
            min(of["fp8"]) / min(of["bfloat16"])
            for size, of in times.items()
            if size[0] == heads and len(of) == 2 and min(of["bfloat16"]) >= 0.05
        ]
        return np.round(np.quantile(ratios, [0.1, 0.5, 0.9]), 2).tolist()

    stated = load_calibration("h800_decode").fp8_cache["blackwell"]
    assert quantiles(128) == [0.56, stated.value, stated.high]
    assert quantiles(16)[0] == stated.low


def test_kernels_of_another_gpu_and_for_another_job_are_named():
    used = kernels_used(load_calibration("h800_sxm"), load_gpu("h200_sxm"), "decode")
    assert used == {
        "calibration": "h800_sxm",
        "measured_on": "h800_sxm",
        "gpu": "h200_sxm",
        "basis": "datasheet",
        "kind": "engine",
        "name": "DeepSeek's training profile, InferSim, DeepGEMM, FlashMLA, DeepEP",
        "date": "2025-02 to 2025-04",
        "made_for": "training and prefill",
    }
    silent = load_calibration("h800_sxm").model_copy(update={"kernels": None})
    assert kernels_used(silent, load_gpu("h800_sxm"), "training") == {
        "calibration": "h800_sxm",
        "measured_on": "h800_sxm",
        "gpu": "h800_sxm",
        "basis": "measured",
        "kind": "not stated",
    }


def test_kernels_timed_on_a_gpu_of_a_users_are_measured_there_and_only_there(tmp_path):
    mine = tmp_path / "mine.yaml"
    shipped = (ROOT / "gpus" / "h800_sxm.yaml").read_text(encoding="utf-8")
    mine.write_text(shipped.replace("3.35 TB/s", "4.8 TB/s", 1), encoding="utf-8")
    calibration = load_calibration("h800_sxm").model_copy(update={"gpu": str(mine)})
    on_it, on_shipped = (
        kernels_used(calibration, load_gpu(gpu), "training") for gpu in (str(mine), "h800_sxm")
    )
    assert (on_it["measured_on"], on_it["gpu"], on_it["basis"]) == (
        "h800_sxm", "h800_sxm", "measured",
    )  # fmt: skip
    assert on_shipped == {**on_it, "basis": "datasheet"}


@pytest.mark.parametrize(
    ("scenario", "changes", "other"),
    [
        ("decode_ep8_h200", [], "h200_sxm_reference"),
        ("decode_ep8_h200", ["calibration=h200_sxm_reference"], "h200_sxm"),
        ("decode_ep32_b200", [], "b200_sxm_reference"),
        ("decode_ep32_h20", [], "h20_sxm"),
        ("prefill_ep32_h100", [], "h100_sxm_reference"),
        ("prefill_ep32_h100", ["calibration=h100_sxm_reference"], "h100_sxm"),
        ("dualpipe_h800_2048", ["calibration=h200_sxm_reference"], "h800_sxm"),
    ],
)
def test_others_are_those_of_the_other_kind_for_the_job_on_the_nearest_gpu(
    scenario, changes, other
):
    assert other_calibration(load_scenario(scenario, changes)).name == other


def test_a_run_says_what_a_step_takes_with_kernels_of_the_other_kind():
    name = "decode_ep8_h200"
    run = simulate(load_scenario(name))
    engine, reference = run.quick_metrics, metrics_of(name, ["calibration=h200_sxm_reference"])
    assert run.other_kernels() == {
        "calibration": "h200_sxm_reference",
        "kind": "reference",
        "metric": "step_time_s",
        "seconds": pytest.approx(reference["step_time_s"], rel=1e-12),
        "ratio": pytest.approx(reference["step_time_s"] / engine["step_time_s"], rel=1e-12),
    }


def test_runs_on_kernels_of_different_kind_are_told_apart():
    def run(calibration, kind):
        return {"kernels": {"calibration": calibration, "kind": kind}, "step_time_s": 1.0}

    engine, reference = run("h800_decode", "engine"), run("h200_sxm_reference", "reference")
    assert difference_in_kind([engine, run("h800_sxm", "engine")]) == ""
    assert difference_in_kind([{"completion_s": 1.0}, engine]) == ""
    of_fleet = {"kernels": {"decode": reference["kernels"]}}
    for other in (reference, of_fleet):
        assert difference_in_kind([engine, other]) == (
            "kernels of different kind (engine: h800_decode; reference: h200_sxm_reference): these "
            "runs differ by whose kernels they are predicted with, not by their machines and "
            "settings alone"
        )


def test_time_is_counted_by_the_calibration_whose_rows_decide_it():
    own = load_calibration("h200_sxm_reference").model_copy(
        update={"name": "mine", "completed_by": ("h200_sxm_reference",)}
    )
    times = [
        ("mine", 4e-3),
        ("mine in the ratio of h200_sxm_reference", 2e-3),
        ("h200_sxm_reference", 3e-3),
        ("mine", 1e-3),
        ("deepep_h200_nvlink", 10e-3),
    ]
    found = time_by_calibration(own, times)
    assert found["own_rows_share"] == pytest.approx(0.35)
    assert found["time_by_calibration"] == {
        "mine": pytest.approx(0.25),
        "mine in the ratio of h200_sxm_reference": pytest.approx(0.1),
        "h200_sxm_reference": pytest.approx(0.15),
        "deepep_h200_nvlink": pytest.approx(0.5),
    }
    assert time_by_calibration(load_calibration("h200_sxm_reference"), times) == {}
