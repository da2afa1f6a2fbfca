"""The comparison trains the runs it says, on the same data, and measures what it says."""

import csv
import dataclasses
import math

import numpy as np
import pytest

from reference_model.precision_comparison import (
    compare_precisions,
    compared_settings,
    gradient_errors,
    plot_comparison,
    product_errors,
    relative_errors,
    smoothed,
    write_comparison,
)
from reference_model.train import TrainingSettings

SETTINGS = TrainingSettings(
    config="debug", precision="bf16", kernels="reference", device="cpu", steps=2, sequences=1,
    first_sequences=1, context=16, peak_learning_rate=3e-3, warmup_steps=1, schedule="report",
    gamma=0.001, balance_alpha=0.0, seed=4, initial_deviation=0.0,
    data="markov", symbols=8, concentration=0.1,
    data_seed=0,
)  # fmt: skip
OPTIONS = {"seeds": 2, "kernels": ["reference"], "held_out_batches": 1}


def test_smoothing_averages_the_last_steps():
    assert smoothed(np.array([4.0, 2.0, 0.0, 2.0]), 2).tolist() == [4.0, 3.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="window = 0 must be at least 1"):
        smoothed(np.ones(2), 0)


def test_the_relative_error_counts_the_last_half_only():
    baseline = np.full(6, 2.0)
    losses = np.array([9.0, 9.0, 9.0, 2.02, 1.98, 2.0])
    errors = relative_errors(losses, baseline, window=1)
    assert errors == pytest.approx([0.01, -0.01, 0.0])


def test_runs_differ_in_what_their_names_say_and_in_nothing_else():
    runs = compared_settings(SETTINGS, seeds=2, kernels=["reference", "per_tensor", "library"])
    names = ["bf16 seed 4", "bf16 seed 5", "fp32", "fp8", "fp8 per tensor", "fp8 library"]
    assert list(runs) == names
    assert {run.data_seed for run in runs.values()} == {0}
    assert runs["fp8"].seed == runs["fp8 library"].seed == 4
    assert [run.kernels for run in runs.values()][3:] == ["reference", "per_tensor", "library"]


def test_a_comparison_is_written_and_drawn(tmp_path):
    seen = []
    runs = compare_precisions(
        SETTINGS, **OPTIONS, processes=1, on_trained=lambda name, _: seen.append(name)
    )
    assert seen == ["bf16 seed 4", "bf16 seed 5", "fp32", "fp8"]
    assert list(runs) == seen
    errors = relative_errors(runs["fp8"].losses, runs["bf16 seed 4"].losses, window=1)
    assert 0 < np.abs(errors).mean() < 0.05
    write_comparison(runs, tmp_path / "losses.csv")
    with (tmp_path / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["fp8"]) == runs["fp8"].losses[1]
    plot_comparison(runs, tmp_path / "losses.png", window=1, floor=1.0)
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_one_seed_has_no_spread():
    with pytest.raises(ValueError, match="seeds = 1 must be at least 2"):
        compare_precisions(
            SETTINGS, **(OPTIONS | {"seeds": 1}), processes=1, on_trained=lambda *_: None
        )


def test_processes_change_nothing():
    alone, beside = (
        compare_precisions(SETTINGS, **OPTIONS, processes=count, on_trained=lambda *_: None)
        for count in (1, 2)
    )
    assert list(alone) == list(beside)
    for one, other in zip(alone.values(), beside.values(), strict=True):
        assert one.losses.tolist() == pytest.approx(other.losses.tolist(), rel=1e-6)


def test_each_part_of_the_recipe_matters_where_it_should():
    errors = {
        (e.name, e.k, e.outliers): e.error
        for e in product_errors(lengths=(128, 8192), outliers=(1e5,), seed=0)
    }
    assert errors["fp8 no promotion", 8192, 1.0] > 2 * errors["fp8", 8192, 1.0]
    assert errors["fp8 no promotion", 128, 1e5] < 1.1 * errors["fp8", 128, 1e5]
    assert errors["fp8 per tensor", 128, 1e5] > 5 * errors["fp8", 128, 1e5]
    assert errors["fp8 per tensor", 8192, 1.0] < 1.2 * errors["fp8", 8192, 1.0]


def test_a_gradient_in_fp8_is_nearer_to_fp32_than_that_of_another_batch():
    bf16, fp8, other = gradient_errors(dataclasses.replace(SETTINGS, initial_deviation=0.006))
    assert 0 < bf16.error < fp8.error < other.error
    assert fp8.median <= fp8.worst
    assert 0 <= bf16.changed <= fp8.changed < 1
    assert math.isnan(other.changed)
