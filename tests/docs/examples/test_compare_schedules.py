"""The example of the front door runs, and shows what the runs hold."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "compare_schedules.py"


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def runs(example):
    return example["simulate_schedules"](example["SCENARIO"], ("1f1b", "dualpipe"))


def test_the_comparison_marks_the_better_value_of_each_metric(example, runs):
    metrics = example["METRICS"]["training"]
    shown = example["compare"](runs, [metrics["step_time_s"], metrics["mfu_causal"]])
    head, *lines = shown.splitlines()
    assert head.split() == ["1f1b", "dualpipe"]
    slow, fast = (run.quick_metrics for run in runs.values())
    assert [line.split() for line in lines] == [
        ["step_time_s", "(s)", f"{slow['step_time_s']:.4g}", f"{fast['step_time_s']:.4g}*"],
        ["mfu_causal", "(share)", f"{slow['mfu_causal']:.4g}", f"{fast['mfu_causal']:.4g}*"],
    ]


def test_the_picture_is_drawn(example, runs, tmp_path):
    example["plot"](runs, tmp_path / "bubbles.png")
    assert (tmp_path / "bubbles.png").read_bytes().startswith(b"\x89PNG")
