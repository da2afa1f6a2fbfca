import pytest
import torch

from reference_model.kernels import load_backend
from reference_model.kernels.reference import KERNELS as reference
from reference_model.kernels.reference import round_to_e4m3, scale_of

E4M3 = torch.float8_e4m3fn


def random_with_outliers(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return x * torch.where(torch.rand(shape, generator=generator) < 0.01, 100.0, 1.0)


def relative_error(x: torch.Tensor, exact: torch.Tensor) -> float:
    return float((x.double() - exact.double()).norm() / exact.double().norm())


def e4m3_values() -> torch.Tensor:
    """Every finite E4M3 code as float32."""
    codes = torch.arange(256, dtype=torch.uint8).view(E4M3).float()
    return codes[codes.isfinite()]


def test_every_e4m3_code_rounds_to_itself():
    values = e4m3_values()
    assert len(values) == 254
    assert torch.equal(round_to_e4m3(values), values)
    assert torch.equal(round_to_e4m3(values).to(E4M3).float(), values)


def test_midpoints_round_to_the_even_code_and_their_neighbours_to_the_nearest():
    values = e4m3_values().unique().sort().values
    low, high = values[:-1], values[1:]
    middle = (low + high) / 2
    even = torch.where(low.to(E4M3).view(torch.uint8) % 2 == 0, low, high)
    assert torch.equal(round_to_e4m3(middle), even)
    below = torch.nextafter(middle, low)
    above = torch.nextafter(middle, high)
    assert torch.equal(round_to_e4m3(below), low)
    assert torch.equal(round_to_e4m3(above), high)


def test_magnitudes_above_448_saturate():
    x = torch.tensor([449.0, 464.0, 480.0, 1e30, float("inf"), -5000.0])
    expected = torch.tensor([448.0] * 5 + [-448.0])
    assert torch.equal(round_to_e4m3(x), expected)


@pytest.mark.parametrize("power_of_two_scales", [False, True])
def test_each_tile_has_its_own_scale_and_an_error_of_at_most_half_a_step(power_of_two_scales):
    x = random_with_outliers(5, 384, seed=1)
    x[2, 128:256] = 0
    q, scales = reference.quantize_tiles(x, power_of_two_scales=power_of_two_scales)
    assert q.dtype == E4M3
    assert scales.shape == (5, 3)
    assert scales.stride() == (1, 5)
    back = reference.dequantize_tiles(q, scales, dtype=torch.float32)
    spread = scales.repeat_interleave(128, dim=1)
    # Half a step is 2^-4 of a value in a normal binade and 2^-10 of the scale below.
    assert ((back - x).abs() <= (x.abs() * 2**-4).maximum(spread * 2**-10) * (1 + 1e-6)).all()
    assert (back[2, 128:256] == 0).all()
    if power_of_two_scales:
        assert (torch.frexp(scales).mantissa == 0.5).all()


def test_a_power_of_two_scale_is_the_next_one_up():
    amax = torch.tensor([448.0, 449.0, 896.0, 0.0, 1.0])
    scales = scale_of(amax, power_of_two_scales=True)
    assert torch.equal(scales, torch.tensor([1.0, 2.0, 2.0, 2.0**-126, 2.0**-8]))


def test_the_last_tile_may_be_narrow():
    x = random_with_outliers(4, 200, seed=2)
    q, scales = reference.quantize_tiles(x, power_of_two_scales=False)
    narrow, narrow_scales = reference.quantize_tiles(x[:, 128:], power_of_two_scales=False)
    assert scales.shape == (4, 2)
    assert torch.equal(q[:, 128:].float(), narrow.float())
    assert torch.equal(scales[:, 1:], narrow_scales)


def test_transposed_tiles_restart_at_each_group():
    x = random_with_outliers(300, 64, seed=3)
    sizes = torch.tensor([130, 0, 170], dtype=torch.int32)
    q, scales = reference.quantize_tiles_transposed(x, group_sizes=sizes, power_of_two_scales=False)
    assert q.shape == (64, 300)
    assert scales.shape == (64, 5)
    first = reference.quantize_tiles(x[:130].t(), power_of_two_scales=False)
    last = reference.quantize_tiles(x[130:].t(), power_of_two_scales=False)
    assert torch.equal(q[:, :130].float(), first[0].float())
    assert torch.equal(scales[:, :2], first[1])
    assert torch.equal(q[:, 130:].float(), last[0].float())
    assert torch.equal(scales[:, 3:], last[1])


def test_blocks_share_one_scale_for_128_by_128_elements():
    w = random_with_outliers(2, 192, 320, seed=4)
    q, scales = reference.quantize_blocks(w, power_of_two_scales=False)
    assert q.shape == w.shape
    assert scales.shape == (2, 2, 3)
    assert scales[1, 0, 1] == w[1, :128, 128:256].abs().max() / 448
    back = reference.dequantize_blocks(q, scales, dtype=torch.float32)
    assert relative_error(back, w) < 0.04


@pytest.mark.parametrize(("m", "n", "k"), [(17, 192, 256), (64, 128, 320)])
def test_the_gemm_equals_the_dequantised_product(m, n, k):
    a, a_scales = reference.quantize_tiles(
        random_with_outliers(m, k, seed=5), power_of_two_scales=False
    )
    b, b_scales = reference.quantize_blocks(
        random_with_outliers(n, k, seed=6), power_of_two_scales=False
    )
    out = reference.gemm_fp8(a, a_scales, b, b_scales, out_dtype=torch.float32)
    exact_a = reference.dequantize_tiles(a, a_scales, dtype=torch.float64)
    exact_b = reference.dequantize_blocks(b, b_scales, dtype=torch.float64)
    assert relative_error(out, exact_a @ exact_b.t()) < 1e-6


def test_the_grouped_gemms_equal_one_gemm_a_group():
    sizes = torch.tensor([3, 0, 130], dtype=torch.int32)
    a, a_scales = reference.quantize_tiles(
        random_with_outliers(133, 256, seed=7), power_of_two_scales=False
    )
    b, b_scales = reference.quantize_blocks(
        random_with_outliers(3, 128, 256, seed=8), power_of_two_scales=False
    )
    out = reference.grouped_gemm_fp8(
        a, a_scales, b, b_scales, group_sizes=sizes, out_dtype=torch.bfloat16
    )
    alone = reference.gemm_fp8(a[3:], a_scales[3:], b[2], b_scales[2], out_dtype=torch.bfloat16)
    assert torch.equal(out[3:], alone)

    capacity = torch.zeros(3, 140, 256).to(E4M3)
    capacity_scales = torch.zeros(3, 140, 2)
    capacity[2, :130], capacity_scales[2, :130] = a[3:], a_scales[3:]
    masked = reference.masked_grouped_gemm_fp8(
        capacity,
        capacity_scales,
        b,
        b_scales,
        group_rows=torch.tensor([0, 0, 130], dtype=torch.int32),
        out_dtype=torch.bfloat16,
    )
    assert torch.equal(masked[2, :130], alone)


def test_the_grouped_weight_gradient_accumulates_dy_transposed_x_for_each_group():
    sizes = torch.tensor([100, 0, 156], dtype=torch.int32)
    dy, x = random_with_outliers(256, 64, seed=9), random_with_outliers(256, 96, seed=10)
    options = {"group_sizes": sizes, "power_of_two_scales": False}
    a, a_scales = reference.quantize_tiles_transposed(dy, **options)
    b, b_scales = reference.quantize_tiles_transposed(x, **options)
    gradient = torch.ones(3, 64, 96)
    reference.grouped_gemm_fp8_weight_grad(
        a, a_scales, b, b_scales, group_sizes=sizes, gradient=gradient
    )
    assert (gradient[1] == 1).all()
    assert relative_error(gradient[0] - 1, dy[:100].double().t() @ x[:100].double()) < 0.06
    assert relative_error(gradient[2] - 1, dy[100:].double().t() @ x[100:].double()) < 0.06


def test_fused_swiglu_quantises_what_swiglu_gives():
    gate_up = random_with_outliers(6, 512, seed=11)
    q, scales = reference.swiglu_quantize(gate_up, power_of_two_scales=True)
    gate, up = gate_up.double().chunk(2, dim=1)
    exact = gate * torch.sigmoid(gate) * up
    back = reference.dequantize_tiles(q, scales, dtype=torch.float32)
    assert relative_error(back, exact) < 0.04


def test_group_sizes_that_do_not_cover_the_rows_are_refused():
    x = torch.ones(10, 128)
    with pytest.raises(ValueError, match=r"group_sizes \[4, 5\]: 10 rows"):
        reference.quantize_tiles_transposed(
            x, group_sizes=torch.tensor([4, 5]), power_of_two_scales=False
        )


def test_an_unknown_backend_names_the_known_ones():
    with pytest.raises(ValueError, match="backend 'cuda': allowed reference, triton, library"):
        load_backend("cuda")
