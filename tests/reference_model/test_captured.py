"""A captured step computes what the same step computes kernel by kernel, and plain torch agrees."""

import pytest
import torch

from reference_model.captured import Captured, CapturedMicroBatch, can_capture
from reference_model.config import load_model_config
from reference_model.generate import generate, generate_with_draft
from reference_model.gpu import default_kernels, use_kernels
from reference_model.model import Transformer
from reference_model.precision import Recipe
from reference_model.train import initialize

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
gpu = pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu)])


def test_only_fp8_on_kernels_that_read_nothing_on_the_host_is_captured():
    cuda = torch.device("cuda")
    assert can_capture(Recipe("fp8", "mixed"), cuda)
    assert can_capture(Recipe("fp8", "triton"), cuda)
    assert not can_capture(Recipe("fp8", "library"), cuda)
    assert not can_capture(Recipe("bfloat16", "mixed"), cuda)
    assert not can_capture(Recipe("fp8", "mixed"), torch.device("cpu"))


def test_plain_torch_is_the_default_off_the_gpu_only():
    assert default_kernels(torch.device("cpu")) == "reference"
    assert default_kernels(torch.device("cuda", 1)) == "mixed"


def model_on(device: str, kernels: str, *, deterministic: bool = False) -> Transformer:
    use_kernels(kernels, deterministic=deterministic)
    recipe = Recipe("fp8", kernels)
    initial = Transformer(load_model_config("small"), recipe=recipe, device=torch.device("cpu"))
    # From variance 1 / fan-in roundings of FP8 would grow from layer to layer.
    initialize(initial, torch.Generator().manual_seed(0), deviation=0.006)
    model = Transformer(initial.config, recipe=recipe, device=torch.device(device))
    model.load_state_dict(initial.state_dict())
    return model


def batch(seed: int, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(512, (2, 98), generator=generator).to(device)


def gradients(model: Transformer) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def eager(model: Transformer, tokens: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    losses, saved = model.loss(tokens, prediction_weight=0.3)
    model.backward(saved)
    return float(losses.total), gradients(model)


def largest_error(got: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    return max(float((got[n] - exact[n]).norm() / exact[n].norm()) for n in exact)


@gpu
def test_one_graph_replayed_on_batches_of_different_routing_equals_eager(device):
    model = model_on(device, "mixed", deterministic=True)
    expected = [eager(model, batch(seed, device)) for seed in (1, 2)]
    model.zero_grad()
    captured = CapturedMicroBatch(model, batch(1, device), prediction_weight=0.3)
    assert not any(p.grad.any() for p in model.parameters())
    for seed, (loss, exact) in zip((1, 2), expected, strict=True):
        losses, _ = captured(batch(seed, device))
        assert float(losses.total) == loss
        assert largest_error(gradients(model), exact) == 0.0
        torch._foreach_zero_([p.grad for p in model.parameters()])


@gpu
def test_a_graph_reads_weights_as_they_are_now(device):
    model = model_on(device, "mixed")
    captured = CapturedMicroBatch(model, batch(1, device), prediction_weight=0.3)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.9)
    losses, _ = captured(batch(1, device))
    assert float(losses.total) == pytest.approx(eager(model, batch(1, device))[0], rel=1e-6)


@gpu
def test_plain_torch_and_the_fast_kernels_agree_to_the_rounding_of_fp8(device):
    loss, exact = eager(model_on(device, "reference"), batch(1, device))
    for kernels in ("mixed", "triton", "library"):
        got, grads = eager(model_on(device, kernels), batch(1, device))
        assert got == pytest.approx(loss, rel=2e-3)
        # Over all weights: an expert of few rows is another where one token's choice flips.
        difference = sum(float((grads[n] - exact[n]).square().sum()) for n in exact)
        assert difference < 0.1**2 * sum(float(g.square().sum()) for g in exact.values())


@gpu
def test_generation_from_graphs_equals_generation_without(device, monkeypatch):
    model = model_on(device, "mixed")
    prompts = batch(3, device)[:, :16]
    plain, drafted = (run(model, prompts, new_tokens=12) for run in (generate, generate_with_draft))
    assert torch.equal(plain.tokens, drafted.tokens)
    monkeypatch.setattr("reference_model.generate.can_capture", lambda *_: False)
    assert torch.equal(plain.tokens, generate(model, prompts, new_tokens=12).tokens)


@gpu
def test_a_captured_function_returns_the_same_tensor_with_new_values(device):
    double = Captured(lambda x: x * 2, torch.ones(3, device=device))
    first = double(torch.tensor([1.0, 2.0, 3.0], device=device))
    second = double(torch.tensor([4.0, 5.0, 6.0], device=device))
    assert first is second
    assert second.tolist() == [8.0, 10.0, 12.0]
