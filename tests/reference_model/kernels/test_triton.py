"""The Triton kernels against reference.py: natively where there is a GPU, else interpreted."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from reference_model.kernels import BACKENDS, load_backend, reference
from reference_model.kernels import triton_backend as kernels
from reference_model.kernels.device import check_device

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


def assert_quantized_alike(got, expected):
    """Equal scales, and values that differ only where a float32 result fell on the other side."""
    assert got[0].shape == expected[0].shape
    assert got[1].stride() == expected[1].stride()
    torch.testing.assert_close(got[1], expected[1], rtol=1e-6, atol=0)
    different = got[0].float() != expected[0].float()
    assert different.float().mean() < 1e-3


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_has_the_functions_of_the_reference(name):
    backend = load_backend(name)
    for function_name, function in inspect.getmembers(reference, inspect.isfunction):
        if "quantize" in function_name or "gemm" in function_name:
            assert inspect.signature(getattr(backend, function_name)) == inspect.signature(function)


def test_every_e4m3_code_survives_and_midpoints_round_to_even():
    codes = torch.arange(256, dtype=torch.uint8).view(E4M3).float()
    values = codes[codes.isfinite()].unique().sort().values
    middle = (values[:-1] + values[1:]) / 2
    probes = torch.cat(
        (values, middle, torch.nextafter(middle, values[1:]), torch.nextafter(middle, values[:-1]))
    )
    # 448 in every tile makes its scale 1, so that the probe itself is rounded.
    x = torch.full((len(probes), 128), 448.0)
    x[:, 1] = probes
    q, scales = kernels.quantize_tiles(x.to(DEVICE), power_of_two_scales=False)
    assert (scales == 1).all()
    assert torch.equal(q[:, 1].float().cpu(), reference.round_to_e4m3(probes))


@pytest.mark.parametrize("power_of_two_scales", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles(power_of_two_scales, dtype):
    x = random_with_outliers(70, 320, seed=1, dtype=dtype)
    x[3, 128:256] = 0
    options = {"power_of_two_scales": power_of_two_scales}
    q, scales = kernels.quantize_tiles(x, **options)
    assert_quantized_alike((q, scales), reference.quantize_tiles(x, **options))
    back = kernels.dequantize_tiles(q, scales, dtype=torch.float32)
    assert torch.equal(back, reference.dequantize_tiles(q, scales, dtype=torch.float32))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device; the interpreter casts NaN to 384")
def test_a_nan_stays_one():
    x = random_with_outliers(2, 128, seed=2)
    x[1, 5] = float("nan")
    q, _ = kernels.quantize_tiles(x, power_of_two_scales=False)
    assert q[1, 5].float().isnan()
    assert not q[0].float().isnan().any()


@pytest.mark.parametrize("sizes", [(300,), (130, 0, 170), (0, 256, 44)])
def test_transposed_tiles(sizes):
    x = random_with_outliers(300, 100, seed=3, dtype=torch.bfloat16)
    options = {"group_sizes": sizes_of(*sizes), "power_of_two_scales": False}
    assert_quantized_alike(
        kernels.quantize_tiles_transposed(x, **options),
        reference.quantize_tiles_transposed(x, **options),
    )


@pytest.mark.parametrize("gather", [False, True])
def test_transposed_tiles_of_a_quantised_matrix(gather):
    q, scales = reference.quantize_tiles(
        random_with_outliers(150, 200, seed=4), power_of_two_scales=True
    )
    row_source = torch.randint(150, (150,), generator=torch.Generator().manual_seed(0))
    options = {
        "row_source": row_source.int().to(DEVICE) if gather else None,
        "group_sizes": sizes_of(20, 130),
        "power_of_two_scales": False,
    }
    assert_quantized_alike(
        kernels.requantize_tiles_transposed(q, scales, **options),
        reference.requantize_tiles_transposed(q, scales, **options),
    )


def test_blocks():
    w = random_with_outliers(2, 192, 200, seed=5)
    q, scales = kernels.quantize_blocks(w, power_of_two_scales=False)
    expected = reference.quantize_blocks(w, power_of_two_scales=False)
    assert_quantized_alike((q, scales), expected)
    back = kernels.dequantize_blocks(q, scales, dtype=torch.float32)
    assert torch.equal(back, reference.dequantize_blocks(q, scales, dtype=torch.float32))


def test_fused_swiglu():
    gate_up = random_with_outliers(40, 400, seed=6, dtype=torch.bfloat16)
    weights = random_with_outliers(40, seed=7)
    options = {"power_of_two_scales": False}
    assert_quantized_alike(
        kernels.swiglu_quantize(gate_up, **options), reference.swiglu_quantize(gate_up, **options)
    )
    assert_quantized_alike(
        kernels.weighted_swiglu_quantize(gate_up, weights, **options),
        reference.weighted_swiglu_quantize(gate_up, weights, **options),
    )
    assert_quantized_alike(
        kernels.swiglu_quantize_transposed(gate_up, **options),
        reference.swiglu_quantize_transposed(gate_up, **options),
    )


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


def test_a_gpu_without_fp8_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    with pytest.raises(ValueError, match=r"NVIDIA A100: compute capability 8.0 has no FP8"):
        check_device(SimpleNamespace(is_cuda=True, device="cuda:0"))


def test_a_device_without_fp8_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="device cpu: a CUDA device of compute"):
        kernels.quantize_tiles(torch.ones(1, 128), power_of_two_scales=False)
    with pytest.raises(ValueError, match="device cpu"):
        load_backend("library").gemm_fp8(
            torch.zeros(16, 128).to(E4M3),
            torch.zeros(16, 1),
            torch.zeros(128, 128).to(E4M3),
            torch.zeros(1, 1),
            out_dtype=torch.bfloat16,
        )
