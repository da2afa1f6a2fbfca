"""The element-wise Triton kernels against the operators' own bodies, interpreted on a CPU."""

import pytest
import torch

from reference_model import operators
from reference_model.kernels import triton_elementwise as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

SITE = "forward:test:call"


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def assert_same(name: str, *arguments, of=kernels, **options) -> None:
    """Equal results, and equal changes to every argument, of a kernel in module `of`."""
    copies = [x.clone() if isinstance(x, torch.Tensor) else x for x in arguments]
    got = getattr(of, f"launch_{name}")(*arguments, **options, site=SITE)
    expected = getattr(operators, name)._init_fn(*copies, **options, site=SITE)
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-6)
    for changed, wanted in zip(arguments, copies, strict=True):
        if isinstance(changed, torch.Tensor):
            torch.testing.assert_close(changed, wanted, rtol=2e-5, atol=2e-6)


def test_norms():
    x, residual, weight = normal(5, 200, seed=1), normal(5, 200, seed=2), normal(200, seed=3)
    assert_same("rmsnorm", x, weight, eps=1e-6)
    assert_same("rmsnorm_residual", x, residual, weight, eps=1e-6)


def test_norm_backward_adds_to_the_weight_gradient():
    grad, x, residual_grad = (normal(5, 200, seed=seed) for seed in (4, 5, 6))
    weight, total = normal(200, seed=7), normal(200, seed=8)
    assert_same("rmsnorm_backward", grad, x, weight, total, eps=1e-6)
    assert_same("rmsnorm_residual_backward", grad, residual_grad, x, weight, total, eps=1e-6)


def test_swiglu_backward():
    gate_up, grad, weights = normal(3, 140, seed=12), normal(3, 70, seed=13), normal(3, seed=14)
    assert_same("swiglu_backward", gate_up, grad)
    assert_same("weighted_swiglu_forward_backward", gate_up, weights, grad)


def test_unpermute_sums_the_local_rows():
    rows = torch.tensor([[0, -1, 2], [-1, -1, -1], [1, 3, -1]], dtype=torch.int32, device=DEVICE)
    assert_same("unpermute", normal(4, 50, seed=15), rows)


@pytest.mark.parametrize(("rows", "columns"), [(3, 256), (16, 136)])
def test_e5m6_packs_the_same_bits(rows, columns):
    x = normal(rows, columns, seed=16)
    x[0, :128] = 0
    x[1, 5] = 3e4
    assert_same("quantize_e5m6", x)
    packed, scales = operators.quantize_e5m6._init_fn(x, site=SITE)
    assert_same("dequantize_e5m6", packed, scales, dtype=torch.float32)


def test_cross_entropy():
    logits = normal(4, 300, seed=17)
    targets = torch.tensor([0, 299, 7, 100], device=DEVICE)
    assert_same("cross_entropy", logits, targets)
    _, log_sum = operators.cross_entropy._init_fn(logits, targets, site=SITE)
    assert_same("cross_entropy_backward", logits, targets, log_sum, weight=0.5)


def test_norms_read_a_part_of_wider_rows():
    wide, weight = normal(5, 300, seed=1), normal(200, seed=3)
    assert_same("rmsnorm", wide[:, 50:250], weight, eps=1e-6)
    grads, total = normal(5, 300, seed=4), normal(200, seed=8)
    assert_same("rmsnorm_backward", grads[:, :200], wide[:, 50:250], weight, total, eps=1e-6)


def test_transpose_moves_every_byte():
    x = normal(3, 130, 70, seed=18).to(torch.float8_e4m3fn)
    got = kernels.launch_transpose(x, site=SITE)
    assert torch.equal(got.view(torch.uint8), x.view(torch.uint8).mT.contiguous())


def test_swiglu_forward():
    gate_up, weights = normal(3, 140, seed=12), normal(3, seed=14)
    assert_same("swiglu", gate_up)
    assert_same("weighted_swiglu", gate_up, weights)


def test_embedding_backward_adds_the_rows_of_equal_tokens():
    table, grad = normal(6, 40, seed=23), normal(4, 40, seed=24)
    tokens = torch.tensor([2, 5, 2, 0], device=DEVICE)
    assert_same("embedding_backward", table, tokens, grad)
