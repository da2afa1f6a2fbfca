"""The example of own kernel times: the step becomes shorter by what its products do."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "calibrate_own_kernels.py"


def seconds_of(run, *, products):
    """Time of each operator of a step: its FP8 products, or all others."""
    return {
        (operator["layer"], operator["name"]): operator["total_s"]
        for operator in run.quick_metrics["operators"]
        if ((operator["kind"], operator["dtype"]) == ("gemm", "fp8_e4m3")) is products
    }


def test_the_step_is_shorter_by_what_its_products_save(tmp_path):
    example = runpy.run_path(str(EXAMPLE))
    shipped = example["simulate"](example["load_scenario"](example["SCENARIO"]))
    assert example["write_faster_products"](shipped, tmp_path / "products.csv") == 7
    own = example["calibrated"](tmp_path / "products.csv", tmp_path / "own.yaml")
    before, after = (sum(seconds_of(run, products=True).values()) for run in (shipped, own))
    assert after == pytest.approx(0.85 * before, rel=1e-3)
    others = seconds_of(shipped, products=False)
    assert seconds_of(own, products=False) == pytest.approx(others, rel=1e-9)
    # Nothing else of the step changed, and nothing runs beside a product that could hide it.
    ideals = [run.quick_metrics["ideal"]["step_time_s"] for run in (shipped, own)]
    assert ideals[0] - ideals[1] == pytest.approx(0.15 * before, abs=1e-6)
