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
from simulator.hardware.kernels.related import related_batch, related_family
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
    forward = made_up()
    gradients = [
        replace(
            row,
            seconds=1.5 * row.seconds,
            conditions=(("accumulate", "yes"), ("out_dtype", "float32"), ("set", "made_up")),
        )
        for row in forward
    ]
    write_measurements(tmp_path / "shipped_rows.csv", [*forward, *gradients])
    write_measurements(tmp_path / "my_rows.csv", made_up(slower=2.0, kernel_set="mine"))
    shipped, mine = tmp_path / "shipped.yaml", tmp_path / "mine.yaml"
    calibrate_to_file([tmp_path / "shipped_rows.csv"], gpu="h800_sxm", out=shipped, base=None)
    calibrate_to_file([tmp_path / "my_rows.csv"], gpu="h800_sxm", out=mine, base=str(shipped))
    calibration = load_calibration(str(mine))
    model = KernelCostModel(
        cluster=load_cluster("h800_2048"), calibration=calibration, expert_parallel_ranks=8
    ).fit(calibration_measurements(calibration))
    sizes = {"m": np.array([4096]), "n": np.array([7168]), "k": np.array([2048])}
    predicted = model.predict_sizes(
        "gemm", sizes, dtype="fp8_e4m3", out_dtype="float32", accumulate=True, sms=132,
        overlapped=False,
    )  # fmt: skip
    # Shipped: the gradient takes 1.5 times the product. My product takes twice the shipped one.
    product = 5e-6 + 2 * 4096 * 7168 * 2048 / (0.6 * 1979e12)
    assert predicted.seconds[0] == pytest.approx(2.0 * 1.5 * product, rel=3e-3)
    assert predicted.provenance_names() == ["extrapolated"]
    gradient = Operator("w", "gemm", "weight_grad", "mlp", "fp8_e4m3", "float32",
                        (("k", 2048), ("m", 4096), ("n", 7168)), False, True)  # fmt: skip
    assert model.answered_by(gradient) == "mine in the ratio of shipped"
    norm = replace(gradient, kind="rmsnorm", dtype="bfloat16", out_dtype="bfloat16",
                   accumulate=False)  # fmt: skip
    # Shipped has no norm either: what completes it answers.
    assert model.answered_by(norm) == "h800_sxm"
