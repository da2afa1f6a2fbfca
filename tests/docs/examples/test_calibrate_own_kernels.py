"""The example of own kernel times: the step becomes shorter by what its products do."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "calibrate_own_kernels.py"


def products_s(run):
    """Time of all FP8 products of a step."""
    return sum(
        operator["total_s"]
        for operator in run.quick_metrics["operators"]
        if (operator["kind"], operator["dtype"]) == ("gemm", "fp8_e4m3")
    )


def test_the_step_is_shorter_by_what_its_products_save(tmp_path):
    example = runpy.run_path(str(EXAMPLE))
    shipped = example["simulate"](example["load_scenario"](example["SCENARIO"]))
    assert example["write_faster_products"](shipped, tmp_path / "products.csv") == 7
    own = example["calibrated"](tmp_path / "products.csv", tmp_path / "own.yaml")
    assert products_s(own) == pytest.approx(0.85 * products_s(shipped), rel=1e-3)
