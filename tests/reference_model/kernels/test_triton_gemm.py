"""FP8 products by Triton against reference.py."""

import pytest
import torch

from reference_model.kernels.reference import KERNELS as reference
from reference_model.kernels.triton_backend import KERNELS as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

E4M3 = torch.float8_e4m3fn


def random_with_outliers(*shape: int, seed: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    x = x * torch.where(torch.rand(shape, generator=generator) < 0.01, 100.0, 1.0)
    return x.to(DEVICE, dtype)


def sizes_of(*sizes: int) -> torch.Tensor:
    return torch.tensor(sizes, dtype=torch.int32, device=DEVICE)


def relative_error(x: torch.Tensor, exact: torch.Tensor) -> float:
    return float((x.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize(("m", "n", "k"), [(70, 192, 256), (16, 128, 208)])
def test_gemm(m, n, k):
    a, a_scales = reference.quantize_tiles(
        random_with_outliers(m, k, seed=8), power_of_two_scales=False
    )
    b, b_scales = reference.quantize_blocks(
        random_with_outliers(n, k, seed=9), power_of_two_scales=False
    )
    out = kernels.gemm_fp8(a, a_scales, b, b_scales, out_dtype=torch.float32)
    exact = reference.gemm_fp8(a, a_scales, b, b_scales, out_dtype=torch.float32)
    # Tensor cores keep about 14 bits of each partial sum; the interpreter keeps float32.
    assert relative_error(out, exact) < (1e-6 if DEVICE == "cpu" else 1e-3)


def test_weight_gradient_accumulates():
    dy, x = random_with_outliers(208, 96, seed=10), random_with_outliers(208, 150, seed=11)
    options = {"group_sizes": sizes_of(208), "power_of_two_scales": False}
    operands = (
        *reference.quantize_tiles_transposed(dy, **options),
        *reference.quantize_tiles_transposed(x, **options),
    )
    gradient = random_with_outliers(96, 150, seed=12)
    expected = gradient.clone()
    kernels.gemm_fp8_weight_grad(*operands, gradient=gradient)
    reference.gemm_fp8_weight_grad(*operands, gradient=expected)
    assert relative_error(gradient, expected) < (1e-6 if DEVICE == "cpu" else 1e-3)


@pytest.mark.parametrize("sizes", [(64, 64), (3, 0, 125), (0, 128, 0, 0, 0)])
def test_grouped_gemms(sizes):
    rows, groups = sum(sizes), len(sizes)
    group_sizes = sizes_of(*sizes)
    a, a_scales = reference.quantize_tiles(
        random_with_outliers(rows, 256, seed=13), power_of_two_scales=False
    )
    b, b_scales = reference.quantize_blocks(
        random_with_outliers(groups, 192, 256, seed=14), power_of_two_scales=False
    )
    options = {"group_sizes": group_sizes, "out_dtype": torch.float32}
    out = kernels.grouped_gemm_fp8(a, a_scales, b, b_scales, **options)
    exact = reference.grouped_gemm_fp8(a, a_scales, b, b_scales, **options)
    assert relative_error(out, exact) < (1e-6 if DEVICE == "cpu" else 1e-3)

    capacity = max(sizes) + 2
    room = torch.zeros(groups, capacity, 256, device=DEVICE).to(E4M3)
    room_scales = torch.zeros(groups, 2, capacity, device=DEVICE).mT
    for group, (part, scales) in enumerate(zip(a.split(sizes), a_scales.split(sizes), strict=True)):
        room[group, : len(part)], room_scales[group, : len(part)] = part, scales
    masked = kernels.masked_grouped_gemm_fp8(
        room, room_scales, b, b_scales, group_rows=group_sizes, out_dtype=torch.float32
    )
    for group, part in enumerate(out.split(sizes)):
        assert torch.equal(masked[group, : len(part)], part)


@pytest.mark.parametrize(
    "sizes", [(128, 128), (3, 0, 125), (130, 0, 126), (0, 131, 0, 0, 261, 1, 0), (0, 7)]
)
def test_grouped_weight_gradients(sizes):
    """Groups begin and end anywhere, and some have no rows."""
    rows = sum(sizes)
    options = {"group_sizes": sizes_of(*sizes), "power_of_two_scales": False}
    operands = (
        *reference.quantize_tiles_transposed(random_with_outliers(rows, 96, seed=15), **options),
        *reference.quantize_tiles_transposed(random_with_outliers(rows, 72, seed=16), **options),
    )
    gradient = random_with_outliers(len(sizes), 96, 72, seed=17)
    expected = gradient.clone()
    kernels.grouped_gemm_fp8_weight_grad(
        *operands, group_sizes=options["group_sizes"], gradient=gradient
    )
    reference.grouped_gemm_fp8_weight_grad(
        *operands, group_sizes=options["group_sizes"], gradient=expected
    )
    assert relative_error(gradient, expected) < (1e-6 if DEVICE == "cpu" else 1e-3)


def test_a_weight_gradient_takes_any_number_of_rows():
    """Quantisation begins each row of its result where memory transfers can."""
    rows, sizes = 203, sizes_of(203)
    operands, expected = [], []
    for columns, seed in ((40, 18), (72, 19)):
        x = random_with_outliers(rows, columns, seed=seed)
        options = {"group_sizes": sizes, "power_of_two_scales": False}
        operands += kernels.quantize_tiles_transposed(x, **options)
        expected += reference.quantize_tiles_transposed(x, **options)
    gradient = torch.zeros(40, 72, device=DEVICE)
    wanted = torch.zeros_like(gradient)
    kernels.gemm_fp8_weight_grad(*operands, gradient=gradient)
    reference.gemm_fp8_weight_grad(*expected, gradient=wanted)
    assert relative_error(gradient, wanted) < 1e-3
    with pytest.raises(ValueError, match="a_row_stride = 203: allowed multiples of 16"):
        kernels.gemm_fp8_weight_grad(*expected, gradient=gradient)


def test_a_k_that_memory_transfers_cannot_address_is_refused():
    a = torch.zeros(16, 200, device=DEVICE).to(E4M3)
    b = torch.zeros(128, 200, device=DEVICE).to(E4M3)
    with pytest.raises(ValueError, match="k = 200: allowed multiples of 16"):
        kernels.gemm_fp8(
            a,
            torch.zeros(16, 2, device=DEVICE),
            b,
            torch.zeros(1, 2, device=DEVICE),
            out_dtype=torch.bfloat16,
        )
