"""What backward computes again costs FLOPs and saves bytes, and changes no gradient."""

from itertools import pairwise

import pytest
import torch

from reference_model.config import load_model_config
from reference_model.model import Transformer
from reference_model.precision import Recipe
from reference_model.recorder import (
    UNSEEN,
    choose_recomputation,
    record_layer,
    record_trace,
)
from reference_model.trace import (
    PHASES,
    RECOMPUTATIONS,
    TRACE_FOLDER,
    Workload,
    load_trace,
    trace_name,
)

TOKENS, ROWS, RECEIVED = 4096, 32768, 30000
LOAD = Workload(
    tokens=TOKENS, context=TOKENS, sequences=1, expert_rows=ROWS,
    received_rows=RECEIVED, local_experts=4,
)  # fmt: skip
HIDDEN, HEADS = 7168, 128


@pytest.fixture(scope="module")
def traces():
    names = {
        choice: trace_name("deepseek_v3", "train", "fp8", recompute=choice)
        for choice in RECOMPUTATIONS
    }
    return {choice: load_trace(TRACE_FOLDER / name) for choice, name in names.items()}


def gradients(recipe, recompute):
    config = load_model_config("debug")
    model = Transformer(config, recipe=Recipe(recipe, "reference"), device=torch.device("cpu"))
    model.initialize(torch.Generator().manual_seed(1))
    choose_recomputation(model, recompute)
    tokens = torch.randint(config.vocab_size, (2, 34), generator=torch.Generator().manual_seed(2))
    _, saved = model.loss(tokens, prediction_weight=0.3)
    model.backward(saved)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("recipe", "recompute"),
    [
        ("float32", "none"),
        ("float32", "attention"),
        ("float32", "layer"),
        # The output of attention that is computed again was never rounded to E5M6, and so differs.
        ("fp8", "none"),
    ],
)
def test_gradients_are_the_same_whatever_is_recomputed(recipe, recompute):
    usual, found = gradients(recipe, "published"), gradients(recipe, recompute)
    assert all(torch.equal(found[name], usual[name]) for name in usual)


@pytest.mark.parametrize("recipe", ["fp8", "bfloat16"])
@pytest.mark.parametrize("recompute", ["none", "attention", "layer"])
def test_shipped_recordings_equal_new_ones(recipe, recompute):
    found = record_trace(
        load_model_config("deepseek_v3"), model="deepseek_v3", recipe=Recipe(recipe, "reference"),
        recompute=recompute,
    )  # fmt: skip
    name = trace_name("deepseek_v3", "train", recipe, recompute=recompute)
    assert found == load_trace(TRACE_FOLDER / name)


@pytest.mark.parametrize("recompute", ["none", "attention", "layer"])
def test_the_last_norms_are_recomputed_unless_nothing_is(recompute):
    """Of the head, and of what multi-token prediction joins."""
    config = load_model_config("debug")
    for kind, norms in (("head", {"head.norm"}), ("mtp", {"mtp.hidden_norm", "head.norm"})):
        record = record_layer(
            config, kind, UNSEEN,
            recipe=Recipe("fp8", "reference"), recompute=recompute,
        )  # fmt: skip
        again = {o.name for o in record.recorded if o.recompute and o.phase == "input_grad"}
        assert norms <= again if recompute != "none" else not norms & again


def flops(trace, kind, *phases):
    return sum(o.flops for phase in phases for o in trace.operators(kind, phase, LOAD))


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_each_choice_costs_the_flops_of_what_it_repeats(traces, kind):
    """Of a layer: 2 FLOPs for each multiply-add; a causal core takes half of its products."""
    none, published, attention, layer = (
        flops(traces[choice], kind, *PHASES)
        for choice in ("none", "published", "attention", "layer")
    )
    up = 2 * TOKENS * (1536 * HEADS * 192 + 512 * HEADS * 256)
    core = 2 * HEADS * (192 + 128) * TOKENS**2 // 2
    assert published - none == up
    assert attention - published == core
    forward = flops(traces["none"], kind, "forward")
    assert layer - none == forward
    assert flops(traces["layer"], kind, "recompute") == forward


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_each_choice_keeps_the_bytes_of_what_it_does_not_repeat(traces, kind):
    """Per token, between the forward of a layer and its backward."""
    kept = {choice: trace.saved_bytes(kind, "forward", LOAD) for choice, trace in traces.items()}
    stream = 2 * HIDDEN
    # Both normed inputs and the stream between them for what attention added; queries, keys, and
    # values with the part of the keys that they lie beside; latents, normed and not, for the joint
    # one; the input of the experts as it was cast.
    heads = 2 * HEADS * (192 + 192 + 256)
    latents = 2 * (1536 + 512 + 512) - 2 * (512 + 64)
    cast = HIDDEN + 4 * HIDDEN // 128 if kind == "moe" else 0
    none = 3 * stream - stream + heads + latents + cast
    assert kept["none"] - kept["published"] == TOKENS * none
    # Output of attention, 12 bits for each value and a scale for 128; the sums of its scores.
    out = HEADS * 128 * 12 // 8 + 4 * HEADS + 4 * HEADS
    assert kept["published"] - kept["attention"] == TOKENS * out
    assert kept["layer"] == TOKENS * stream
    assert traces["layer"].saved_bytes(kind, "recompute", LOAD) == kept["none"]


def test_a_layer_that_is_recomputed_repeats_its_forward_but_the_combine(traces):
    forward = traces["none"].operators("moe", "forward", LOAD)
    again = traces["layer"].operators("moe", "recompute", LOAD)
    assert [o.name for o in again] == [o.name for o in forward[:-1]]
    assert forward[-1].name == "moe.combine"
    assert all(o.recompute for o in again)
    assert [p for p in PHASES if traces["none"].operators("moe", p, LOAD) == []] == ["recompute"]


def test_choices_nest():
    """Each keeps at most what the one before it keeps."""
    config = load_model_config("debug")
    for kind in ("dense", "moe"):
        kept = [
            record_layer(
                config, kind, UNSEEN, recipe=Recipe("fp8", "reference"), recompute=choice
            ).saved["forward"]
            for choice in ("none", "published", "attention", "layer")
        ]
        assert all(more > less for more, less in pairwise(kept))
