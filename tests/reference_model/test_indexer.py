"""The indexer's choice, worked out plainly, in both forms of its scores."""

import dataclasses

import pytest
import torch

from reference_model.config import load_model_config
from reference_model.indexer import Indexer, LayerNorm
from reference_model.layers import Angles, rotary_angles
from reference_model.operators import Site
from reference_model.precision import Operand, Recipe

CPU = torch.device("cpu")
SITE = Site("forward", "attention")


def config(**changes):
    sizes = {"index_topk": 3, "index_n_heads": 4, "index_head_dim": 64}
    return dataclasses.replace(load_model_config("debug"), **sizes | changes)


def indexer(recipe="float32", **changes):
    generator = torch.Generator().manual_seed(0)
    made = Indexer(config(**changes), recipe=Recipe(recipe, "reference"), device=CPU)
    with torch.no_grad():
        for parameter in made.requires_grad_(False).parameters():
            size = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1.0
            parameter.normal_(0, size, generator=generator)
    return made


def inputs(made, tokens=10):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, config().hidden_size, generator=generator)
    latent = torch.randn(tokens, made.sizes.query_latent, generator=generator)
    return x, latent, rotary_angles(config(), tokens, device=CPU)


@torch.no_grad()
def selected(made, x, latent, angles):
    queries = made.queries(made.wq_b.quantize_input(latent, SITE), x, angles, SITE)
    keys = made.keys(made.wk.quantize_input(x, SITE), angles, SITE)
    return made.select(queries, made.quantize_keys(keys, angles.length, SITE), None, SITE)


def turned(x, angles, *, halves):
    """x [tokens, heads, dim] rotated as complex numbers, back in the order that it came in."""
    dim = 2 * angles.cos.shape[1]
    first, second = (
        (slice(0, dim // 2), slice(dim // 2, dim))
        if halves
        else (slice(0, dim, 2), slice(1, dim, 2))
    )
    result = x.clone()
    number = torch.complex(x[..., first], x[..., second])
    number = number * torch.complex(angles.cos, angles.sin)[:, None, :]
    result[..., first], result[..., second] = number.real, number.imag
    return result


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_query_selects_the_tokens_of_the_largest_weighted_products(interleaved):
    made = indexer(indexer_rope_interleave=interleaved)
    x, latent, angles = inputs(made)
    q = turned((latent @ made.wq_b.weight.T).view(10, 4, 64), angles, halves=not interleaved)
    k = x @ made.wk.weight.T
    k = (k - k.mean(1, keepdim=True)) / (k.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
    k = k * made.k_norm.weight + made.k_norm.bias
    k = turned(k[:, None], angles, halves=not interleaved)[:, 0]
    weights = x @ made.weights_proj.weight.T
    choice = selected(made, x, latent, angles)[0]
    for query in range(10):
        scores = [
            sum(float(weights[query, h] * (q[query, h] @ k[s]).relu()) for h in range(4))
            for s in range(query + 1)
        ]
        best = sorted(range(query + 1), key=lambda s: -scores[s])[:3]
        assert sorted(choice[query].tolist()) == sorted(best + [-1] * (3 - len(best)))


def test_scores_of_fp8_select_nearly_the_same_tokens():
    """Of 32 out of 256 tokens, at least 30 on average: FP8 moves those near the border."""
    choices = []
    for recipe in ("float32", "fp8"):
        made = indexer(recipe, index_topk=32, index_n_heads=16)
        x, latent, angles = inputs(made, tokens=256)
        dtype = made.recipe.dtype
        choices.append(selected(made, x.to(dtype), latent.to(dtype), angles)[0, 32:])
    same = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(*choices, strict=True)]
    assert sum(same) / len(same) > 29.5


def test_queries_of_a_step_are_the_last_tokens_of_their_sequences():
    made = indexer()
    x, latent, angles = inputs(made)
    whole = selected(made, x, latent, angles)
    with torch.no_grad():
        keys = made.keys(Operand(x, None), angles, SITE).view(1, 10, 64)
        room = torch.cat((keys, torch.full((1, 5, 64), 1e3)), dim=1)  # nothing of it is seen
        last = Angles(angles.cos[None, 7:9], angles.sin[None, 7:9])
        queries = made.queries(Operand(latent[7:9], None), x[7:9], last, SITE)
        lengths = torch.tensor([9], dtype=torch.int32)
        step = made.select(queries, Operand(room, None), lengths, SITE)
    assert step.sort().values.tolist() == whole[:, 7:9].sort().values.tolist()


def test_a_key_of_fp8_takes_132_bytes():
    made = indexer("fp8", index_head_dim=128)
    keys = made.quantize_keys(torch.randn(6, 128).bfloat16(), 3, SITE)
    assert (keys.values.shape, keys.scales.shape) == ((2, 3, 128), (2, 3))
    assert keys.values.element_size() * 128 + keys.scales.element_size() == 132


def test_the_norm_of_keys_has_a_mean_and_a_bias():
    norm = LayerNorm("norm", 4, eps=0.0, device=CPU)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        norm.bias.fill_(0.5)
        # Mean 3, standard deviation sqrt(5): -3, -1, 1, 3 over it.
        found = norm(torch.tensor([[0.0, 2.0, 4.0, 6.0]]), SITE)
    expected = torch.tensor([[-3.0, -2.0, 3.0, 12.0]]) / 5**0.5 + 0.5
    torch.testing.assert_close(found, expected)
