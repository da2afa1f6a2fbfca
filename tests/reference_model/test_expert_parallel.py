"""A step over two ranks is the step of one, and the recorder sees what crosses between them."""

import dataclasses

import pytest
import torch

from reference_model.config import load_model_config
from reference_model.expert_parallel import check_expert_parallel
from reference_model.precision import Recipe

DEBUG = dataclasses.replace(load_model_config("debug"), num_hidden_layers=2)


def check(recipe, config=DEBUG, *, kernels="reference", **changes):
    arguments = {
        "recipe": Recipe(recipe, kernels), "ranks": 2, "sequences": 1, "context": 128,
        "seed": 0, "backend": "gloo", "timeout_s": 120.0,
    }  # fmt: skip
    return check_expert_parallel(config, **(arguments | changes))


@pytest.fixture(scope="module")
def float32():
    return check("float32")


@pytest.fixture(scope="module")
def fp8_of_one_rank():
    """Each token chooses experts of one rank only, so that nothing is summed across ranks."""
    return check("fp8", dataclasses.replace(DEBUG, n_group=2, topk_group=1))


def test_two_ranks_compute_what_one_does(float32):
    assert sum(float32.losses) / 2 == pytest.approx(float32.single_loss, rel=1e-6)
    assert float32.largest_gradient_error < 1e-5


def test_fp8_crosses_ranks_unchanged(fp8_of_one_rank):
    assert sum(fp8_of_one_rank.losses) / 2 == pytest.approx(fp8_of_one_rank.single_loss, rel=1e-6)
    assert fp8_of_one_rank.largest_gradient_error < 1e-5


def test_what_one_rank_sends_the_other_gets_back(float32):
    """Each dispatch is followed by a combine of the same rows the other way round."""
    first, second = float32.traffic
    assert len(first) == len(second) == 2 * 4  # a layer and the prediction module's, four each
    hidden, top_k = DEBUG.hidden_size, DEBUG.num_experts_per_tok
    sizes = {
        ("dispatch", "forward"): hidden * 4 + top_k * (8 + 4),
        ("combine", "forward"): hidden * 4,
        ("dispatch", "input_grad"): hidden * 4,
        ("combine", "input_grad"): hidden * 4 + top_k * 4,
    }
    for ours, theirs in zip(first, second, strict=True):
        row = sizes[ours.kind, ours.phase]
        assert (ours.kind, ours.phase, ours.name) == (theirs.kind, theirs.phase, theirs.name)
        assert all(count % row == 0 for count in (*ours.bytes_to, *theirs.bytes_to))
    rows = [[t.bytes_to[1 - r] // sizes[t.kind, t.phase] for t in traffic]
            for r, traffic in enumerate(float32.traffic)]  # fmt: skip
    for layer in range(0, len(first), 2):
        sent, returned = layer, layer + 1
        assert rows[0][sent] == rows[1][returned]
        assert rows[1][sent] == rows[0][returned]
    assert rows[0] != rows[1]  # uneven


def test_fp8_travels_in_dispatch_and_bfloat16_in_combine(fp8_of_one_rank):
    tiles = DEBUG.hidden_size // 128
    for traffic in fp8_of_one_rank.traffic:
        for item in traffic:
            assert item.dtype == ("fp8_e4m3" if item.kind == "dispatch" else "bfloat16")
        cached = next(t for t in traffic if (t.kind, t.phase) == ("dispatch", "input_grad"))
        assert sum(cached.bytes_to) == 128 * (DEBUG.hidden_size + 4 * tiles)  # each token once


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(("recipe", "kernels"), [("float32", "reference"), ("fp8", "library")])
def test_two_gpus_compute_what_one_does(recipe, kernels):
    one_rank_a_token = dataclasses.replace(DEBUG, n_group=2, topk_group=1)
    result = check(recipe, one_rank_a_token, kernels=kernels, backend="nccl")
    assert sum(result.losses) / 2 == pytest.approx(result.single_loss, rel=1e-6)
    assert result.largest_gradient_error < 1e-5


def test_ranks_that_do_not_divide_the_experts_are_refused():
    with pytest.raises(ValueError, match="ranks = 3 do not divide 8 routed experts"):
        check("float32", ranks=3)
