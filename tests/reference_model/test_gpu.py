"""What a Hopper GPU must show: rates of the FP8 GEMMs, and a full-size layer."""

import statistics

import pytest
import torch

from reference_model import gpu
from reference_model.config import load_model_config
from reference_model.kernels import load_backend
from reference_model.kernels.reference import KERNELS as reference
from reference_model.kernels.triton_heads import launch_attention_backward_preprocess
from reference_model.measure import TimingRequest, time_request
from reference_model.measure_grid import ALL_SMS, WORKLOADS, gemm_operator, grouped
from reference_model.precision import Recipe
from reference_model.profiling import profile_layer
from reference_model.recorder import LAYERS, record_layer
from reference_model.trace import Workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SHAPES = [(2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048)]
"""(n, k) of six DeepSeek-V3 weights."""


def relative_error(x: torch.Tensor, exact: torch.Tensor) -> float:
    return float((x.double() - exact.double()).norm() / exact.double().norm())


def rate(operator, kernels: str) -> float:
    """FLOP/s."""
    seconds, _, _ = time_request(TimingRequest(operator, kernels, ALL_SMS, partition=False))
    return operator.flops / seconds


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("kernels", ["triton", "library"])
def test_the_gemms_are_correct_at_full_size(n, k, kernels):
    torch.manual_seed(n + k)
    x = torch.randn(4096, k, device="cuda")
    x *= torch.where(torch.rand_like(x) < 0.01, 30.0, 1.0)
    backend = load_backend(kernels)
    a = backend.quantize_tiles(x, power_of_two_scales=False)
    b = backend.quantize_blocks(torch.randn(n, k, device="cuda"), power_of_two_scales=False)
    out = backend.gemm_fp8(*a, *b, out_dtype=torch.float32)
    exact = reference.gemm_fp8(*a, *b, out_dtype=torch.float32)
    assert out.isfinite().all()
    assert relative_error(out, exact) < 1e-3  # of the tensor cores' 14 bits within 128 elements


def test_the_triton_gemm_keeps_up_with_the_library():
    shares = []
    for n, k in SHAPES:
        operator = gemm_operator(4096, n, k)
        triton, library = rate(operator, "triton"), rate(operator, "library")
        shares.append(triton / library)
        print(f"n = {n}, k = {k}: Triton {triton:.3e} FLOP/s, library {library:.3e} FLOP/s")
    assert statistics.median(shares) >= 0.6
    assert min(shares) >= 0.5


def test_the_grouped_gemm_is_fast():
    operator = grouped("grouped_gemm", 4 * 8192, 4096, 7168, 4)
    assert rate(operator, "library") >= 700e12


@pytest.mark.parametrize("kernels", ["triton", "library"])
def test_weight_gradients_of_uneven_experts(kernels):
    """As training routes at first: experts' rows begin anywhere, and some experts have none."""
    rows, experts, out, into = 16384, 32, 512, 256
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(experts, generator=generator) ** 6
    shares[::4] = 0
    sizes = (shares / shares.sum() * rows).int()
    sizes[-1] += rows - int(sizes.sum())
    assert (sizes.cumsum(0) % 16).any()
    sizes = sizes.cuda()
    backend = load_backend(kernels)
    options = {"group_sizes": sizes, "power_of_two_scales": True}
    a, b = (
        backend.quantize_tiles_transposed(torch.randn(rows, n, device="cuda"), **options)
        for n in (out, into)
    )
    before = torch.randn(experts, out, into, device="cuda")
    gradient, exact = before.clone(), before.clone()
    backend.grouped_gemm_fp8_weight_grad(*a, *b, group_sizes=sizes, gradient=gradient)
    reference.grouped_gemm_fp8_weight_grad(*a, *b, group_sizes=sizes, gradient=exact)
    assert relative_error(gradient, exact) < 1e-3
    assert torch.equal(gradient[sizes == 0], before[sizes == 0])


@pytest.mark.parametrize(
    ("layer_kind", "kernels"),
    [("moe", "triton"), *((kind, "library") for kind in LAYERS)],
)
def test_a_full_size_layer_issues_on_cuda_what_it_issues_on_meta(layer_kind, kernels):
    config, workload = load_model_config("deepseek_v3"), WORKLOADS["train"]
    operators, outside, _ = profile_layer(
        config, layer_kind, workload, recipe=Recipe("fp8", kernels), seed=0
    )
    meta = record_layer(config, layer_kind, workload, recipe=Recipe("fp8", "reference")).recorded
    assert [operator for operator, _, _ in operators] == meta
    assert all(took > 0 for _, took, _ in operators)
    seconds = sum(took for _, took, _ in operators)
    assert outside < 0.02 * seconds
    print(f"{layer_kind}, {kernels}: {seconds:.3e} s of kernels")


def test_a_layer_that_does_not_fit_names_its_sizes():
    config = load_model_config("deepseek_v3")
    tokens = 2**22
    workload = Workload(tokens, 4096, tokens // 4096, 8 * tokens, 7 * tokens, 4)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=f"tokens={tokens}"):
        profile_layer(config, "moe", workload, recipe=Recipe("fp8", "library"), seed=0)


def test_library_kernels_equal_the_operators_own_bodies():
    gpu.use_kernels("mixed")
    q, k = (torch.randn(2, 256, 4, 192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    v = torch.randn(2, 256, 4, 128, device="cuda", dtype=torch.bfloat16)
    out, log_sum = gpu.cudnn_attention_forward(q, k, v, scale=0.07, site="")
    exact, exact_sum = gpu.ops.attention_forward._init_fn(q, k, v, scale=0.07, site="")
    assert relative_error(out, exact) < 5e-3
    assert relative_error(log_sum, exact_sum) < 1e-5
    grad = torch.randn_like(v)
    delta, _ = launch_attention_backward_preprocess(out, grad, qk_dim=192, site="")
    totals = [torch.zeros(q.shape, device="cuda") for _ in range(2)]
    got = gpu.cudnn_attention_backward(
        totals[0], q, k, v, grad, log_sum, delta, scale=0.07, site=""
    )
    wanted = gpu.ops.attention_backward._init_fn(
        totals[1], q, k, v, grad, log_sum, delta, scale=0.07, site=""
    )
    for x, y in zip((totals[0], *got), (totals[1], *wanted), strict=True):
        assert relative_error(x, y) < 1e-2
