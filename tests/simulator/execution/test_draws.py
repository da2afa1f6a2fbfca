"""Families move together, and the ends of an interval are quantiles that hold the value."""

import numpy as np
import pytest

from simulator.execution.draws import Draws, interval


def test_a_family_has_one_error():
    draws = Draws(np.random.default_rng(0), common_share=0.5)
    gemm = ("gemm", "fp8_e4m3", "bfloat16", False)
    assert draws.of(gemm) is draws.of(gemm)
    assert (draws.of(gemm) != draws.of(("gemm", "bfloat16", "bfloat16", False))).all()


def test_the_ends_are_quantiles_widened_to_the_value():
    samples = np.linspace(1, 2, 101)
    assert interval(samples, value=1.5) == pytest.approx([1.1, 1.9])
    assert interval(samples, value=0.9) == pytest.approx([0.9, 1.9])
