"""Kernels of the same product: rows of the one say how fast the other is."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_rows import made_up

from hardware_profiles.schema import load_calibration, load_cluster
from hardware_profiles.tables import write_measurements
from reference_model.trace import Operator
from simulator.calibration.calibration_files import calibrate_to_file
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernels.families import calibration_measurements
from simulator.hardware.kernels.related import is_another_result, related_batch, related_family
from simulator.hardware.kernels.roofline import batch_of

GEMM = ("gemm", "fp8_e4m3", "bfloat16", False)
WEIGHT_GRAD = ("gemm", "fp8_e4m3", "float32", True)
GROUPED = ("grouped_gemm", "fp8_e4m3", "bfloat16", False)


@pytest.mark.parametrize(
    ("family", "known", "related"),
    [
        (WEIGHT_GRAD, {GEMM, GROUPED}, GEMM),
        (WEIGHT_GRAD, {GEMM, ("gemm", "fp8_e4m3", "float32", False)},
         ("gemm", "fp8_e4m3", "float32", False)),
        (WEIGHT_GRAD, {("gemm", "bfloat16", "float32", False)}, None),
        (("grouped_gemm_weight_grad", "fp8_e4m3", "float32", True), {GEMM, GROUPED}, GROUPED),
        (("rmsnorm", "bfloat16", "bfloat16", False), {GEMM}, None),
    ],
)  # fmt: skip
def test_products_of_the_same_operand_type_are_related(family, known, related):
    assert related_family(family, known, known) == related
    assert related_family(family, known, set()) is None


@pytest.mark.parametrize(
    ("family", "other", "is_one"),
    [
        (("gemm", "bfloat16", "float32", False), ("gemm", "bfloat16", "bfloat16", False), True),
        (("gemm", "bfloat16", "float32", False), ("gemm", "fp8_e4m3", "bfloat16", False), False),
        (WEIGHT_GRAD, GEMM, False),
        (WEIGHT_GRAD, ("gemm", "fp8_e4m3", "bfloat16", True), True),
        (("gemm", "fp8_e4m3", "float32", False), GROUPED, False),
        (("rmsnorm", "bfloat16", "float32", False), ("rmsnorm", "bfloat16", "bfloat16", False),
         False),
    ],
)  # fmt: skip
def test_a_product_into_another_type_is_one_that_adds_into_its_result_as_the_other_does(
    family, other, is_one
):
    assert is_another_result(family, other) is is_one


def test_a_grouped_weight_gradient_has_the_flops_of_the_forward_product():
    op = Operator(
        name="down", kind="grouped_gemm_weight_grad", phase="weight_grad", segment="mlp",
        dtype="fp8_e4m3", out_dtype="float32",
        sizes=(("groups", 4), ("m", 7168), ("n", 2048), ("rows", 32768)),
        recompute=False, accumulate=True,
    )  # fmt: skip
    product = related_batch(batch_of([op]), GROUPED)
    assert dict(zip(product.names, product.sizes[0].tolist(), strict=True)) == {
        "rows": 32768, "n": 7168, "k": 2048, "groups": 4,
    }  # fmt: skip
    assert product.flops.tolist() == [op.flops] == [2 * 32768 * 7168 * 2048]


def test_each_query_of_a_sparse_core_is_a_sequence_of_what_it_selects():
    op = Operator(
        name="core", kind="sparse_mla", phase="forward", segment="attention",
        dtype="bfloat16", out_dtype="bfloat16",
        sizes=(("heads", 128), ("kv_length", 8192), ("latent_dim", 512), ("query_length", 2),
               ("rope_dim", 64), ("sequences", 16), ("top_k", 2048)),
        recompute=False, accumulate=False,
    )  # fmt: skip
    dense = related_batch(batch_of([op]), ("mla_decode", "bfloat16", "bfloat16", False))
    assert dict(zip(dense.names, dense.sizes[0].tolist(), strict=True)) == {
        "sequences": 32, "query_length": 1, "kv_length": 2048, "heads": 128, "latent_dim": 512,
        "rope_dim": 64,
    }  # fmt: skip
    assert dense.flops.tolist() == [op.flops] == [2 * 32 * 128 * 2048 * 1088]


def test_a_weight_gradient_without_rows_is_scaled_by_the_rows_of_its_product(tmp_path):
    model = mine_completed_by(tmp_path, 1.5, out_dtype="float32", accumulate="yes")
    sizes = {"m": np.array([4096]), "n": np.array([7168]), "k": np.array([2048])}
    predicted = model.predict_sizes(
        "gemm", sizes, dtype="fp8_e4m3", out_dtype="float32", accumulate=True, sms=132,
        overlapped=False,
    )  # fmt: skip
    # Shipped: the gradient takes 1.5 times the product. My product takes twice the shipped one.
    assert predicted.seconds[0] == pytest.approx(2.0 * 1.5 * product_seconds(2048), rel=3e-3)
    assert predicted.provenance_names() == ["extrapolated"]
    gradient = Operator("w", "gemm", "weight_grad", "mlp", "fp8_e4m3", "float32",
                        (("k", 2048), ("m", 4096), ("n", 7168)), False, True)  # fmt: skip
    assert model.answered_by(gradient) == "mine in the ratio of shipped"
    norm = replace(gradient, kind="rmsnorm", dtype="bfloat16", out_dtype="bfloat16",
                   accumulate=False)  # fmt: skip
    # Shipped has no norm either: what completes it answers.
    assert model.answered_by(norm) == "h800_sxm"


def test_a_product_into_another_type_takes_the_time_of_own_rows(tmp_path):
    model = mine_completed_by(tmp_path, 1.5, out_dtype="float16", accumulate="no")
    sizes = {"m": np.array([4096]), "n": np.array([7168]), "k": np.array([7168])}
    product, other = (
        model.predict_sizes("gemm", sizes, dtype="fp8_e4m3", out_dtype=out_dtype,
                            accumulate=False, sms=132, overlapped=False)
        for out_dtype in ("bfloat16", "float16")
    )  # fmt: skip
    # What shipped makes of it, 1.5 times its own product, says nothing of my kernel.
    assert other.seconds[0] == pytest.approx(product.seconds[0], rel=1e-12)
    assert product.seconds[0] == pytest.approx(2.0 * product_seconds(7168), rel=5e-4)
    assert other.provenance_names() == ["modelled"]
    asked = Operator("p", "gemm", "forward", "mlp", "fp8_e4m3", "float16",
                     (("k", 7168), ("m", 4096), ("n", 7168)), False, False)  # fmt: skip
    assert model.answered_by(asked) == "mine"


def product_seconds(k):
    """Seconds of the made-up product of 4,096 x 7,168 x k."""
    return 5e-6 + 2 * 4096 * 7168 * k / (0.6 * 1979e12)


def mine_completed_by(folder, slower, *, out_dtype, accumulate):
    """A calibration of products that take twice the shipped ones, completed by one that also has
    rows of these into another type, `slower` times as long."""
    forward = made_up()
    others = [
        replace(
            row,
            seconds=slower * row.seconds,
            conditions=(("accumulate", accumulate), ("out_dtype", out_dtype), ("set", "made_up")),
        )
        for row in forward
    ]
    write_measurements(folder / "shipped_rows.csv", [*forward, *others])
    write_measurements(folder / "my_rows.csv", made_up(slower=2.0, kernel_set="mine"))
    shipped, mine = folder / "shipped.yaml", folder / "mine.yaml"
    calibrate_to_file([folder / "shipped_rows.csv"], gpu="h800_sxm", out=shipped, base=None)
    calibrate_to_file([folder / "my_rows.csv"], gpu="h800_sxm", out=mine, base=str(shipped))
    calibration = load_calibration(str(mine))
    return KernelCostModel(
        cluster=load_cluster("h800_2048"), calibration=calibration, expert_parallel_ranks=8
    ).fit(calibration_measurements(calibration))
