"""Rows that say what a GPU is like, and what nvidia-smi says of it."""

import time

import pytest

from reference_model import measure, measure_device
from reference_model.measure_device import launch_rows, sustained_row, watch
from reference_model.measure_grid import ALL_SMS, gemm_operator

ANSWERS = """#!/bin/sh
case "$*" in
  *--loop-ms=50*) echo "1980, 650.5"; echo "1410, 700.0"; exec sleep 9 ;;
  *) echo " H200 , 1980 "; echo "H200, 1755" ;;
esac
"""
"""nvidia-smi of a machine with two GPUs."""


@pytest.fixture
def answering(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(ANSWERS, encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_a_row_for_each_time_of_a_launch(monkeypatch):
    monkeypatch.setattr(measure_device, "multiprocessors", lambda: ALL_SMS)
    rows = launch_rows({"eager": 2.5e-6, "graph": 1e-6}, source="a test")
    assert [row.cells() for row in rows] == [
        (
            f"launch_{name}", "elements=1", "float32", str(ALL_SMS), seconds, "0", "a test",
            "set=dsv3sim_launches;statistic=median;timing=events",
        )
        for name, seconds in (("eager", "2.5e-06"), ("graph", "1e-06"))
    ]  # fmt: skip


def test_a_sustained_row_is_the_mean_and_spreads_from_the_first_of_it(monkeypatch):
    """1 us at first and 1.25 us over all: 20% of the mean apart."""
    monkeypatch.setattr(measure, "multiprocessors", lambda: ALL_SMS)
    asked = measure.TimingRequest(gemm_operator(64, 256, 128), "library", ALL_SMS, partition=False)
    row = sustained_row(
        asked, source="a test", duration_s=10.0,
        seconds=1.25e-6, first_seconds=1e-6, clock_hz=1.755e9, power_w=699.6,
    )  # fmt: skip
    assert (row.seconds, row.spread) == (1.25e-6, pytest.approx(0.2, rel=1e-12))
    said = dict(pair.split("=") for pair in row.conditions.split(";"))
    assert {name: said[name] for name in ("set", "statistic", "repeats", "timing")} == {
        "set": "dsv3sim_sustained", "statistic": "mean", "repeats": "1", "timing": "sustained",
    }  # fmt: skip
    assert (said["duration_s"], said["first_seconds"]) == ("10", "1e-06")
    assert (said["clock_hz"], said["power_w"]) == ("1.755e+09", "699.6")


def test_nvidia_smi_is_asked_of_the_first_gpu(answering):
    assert measure.smi("name", "clocks.max.sm") == ["H200", "1980"]


def test_what_is_sampled_while_a_block_runs_is_known_after_it(answering):
    with watch(gpu="GPU-1") as samples:
        assert samples == []
        time.sleep(0.2)
    assert samples == [(1980.0, 650.5), (1410.0, 700.0)]
