"""A sequence over several GPUs: the work of all of them is that of one, but what each repeats."""

import math
from dataclasses import replace

import pytest

from reference_model.config import load_model_config
from simulator.workload.chunk import operators_of
from simulator.workload.context_parallel import check_pieces, operators_of_part
from simulator.workload.load import Load
from simulator.workload.memory import layer_memory
from simulator.workload.recorded import recorded_trace

CONTEXT, RANKS = 32_768, 8


def load(tokens: int) -> Load:
    return Load(
        tokens=tokens,
        sequences=1,
        context=CONTEXT,
        expert_rows=8 * tokens,
        received_rows=4 * tokens,
        local_experts=4,
        group_tokens=tokens,
        group_sequences=1,
    )


@pytest.fixture(scope="module")
def split():
    trace = recorded_trace(load_model_config("deepseek_v3"), "train")
    whole = operators_of(trace, load(CONTEXT))
    part = operators_of_part(trace, load(CONTEXT // RANKS), RANKS)
    return whole, part


def named(operators, name):
    return next(op for op in operators if op.name == name)


def test_two_pieces_of_each_gpu_attend_to_as_much_as_an_equal_share_of_the_whole(split):
    whole, part = (named(of("moe", "forward"), "attention.core") for of in split)

    # Pieces of 2,048 tokens: the first attends up to 2,048, the last up to 32,768; 17,408 between.
    assert dict(part.sizes) == dict(whole.sizes) | {
        "sequences": 2,
        "query_length": 2048,
        "kv_length": 17_408,
    }
    # q (2 kv - q) of all pieces: every pair of a query and a key before it, once.
    assert RANKS * part.flops == whole.flops
    backward = [named(of("moe", "input_grad"), "attention.core.input_grad") for of in split]
    assert RANKS * backward[1].flops == backward[0].flops


def test_every_sequence_has_two_pieces_on_each_gpu():
    trace = recorded_trace(load_model_config("deepseek_v3"), "train")
    two = replace(load(2 * CONTEXT // RANKS), sequences=2, group_sequences=2)
    core = named(operators_of_part(trace, two, RANKS)("moe", "forward"), "attention.core")
    assert (core["sequences"], core["query_length"]) == (4, 2048)


def test_every_gpu_expands_the_latents_of_all_tokens(split):
    whole, part = (of("moe", "forward") for of in split)

    for name in ("attention.kv_b_proj", "attention.k_nope.copy", "attention.kv_a_norm"):
        assert named(part, name) == named(whole, name)
    queries = named(part, "attention.q_b_proj")
    assert (queries["m"], named(whole, "attention.q_b_proj")["m"]) == (4096, 32_768)
    weight = named(split[1]("moe", "weight_grad"), "attention.kv_b_proj.weight_grad")
    assert weight["k"] == 32_768


def test_latents_are_gathered_before_and_their_gradients_summed_after(split):
    forward, backward = (split[1]("moe", phase) for phase in ("forward", "input_grad"))
    names = [op.name for op in forward]
    gather = named(forward, "attention.kv_latent.context_gather")

    assert names.index("attention.kv_latent.context_gather") + 1 == names.index(
        "attention.kv_latent.copy"
    )
    # 512 of the latent and 64 of the rotary key, BF16, of 32,768 tokens.
    assert gather.bytes_written == 32_768 * 576 * 2
    names = [op.name for op in backward]
    assert names.index("attention.kv_latent.context_gather") + 1 == names.index(
        "attention.kv_latent.copy"
    )
    assert names.index("attention.kv_latent.concat") + 1 == names.index(
        "attention.kv_latent.context_scatter"
    )
    assert named(backward, "attention.kv_latent.context_scatter").bytes_read == 32_768 * 576 * 2


def test_layers_without_attention_are_as_they_were(split):
    own = operators_of(
        recorded_trace(load_model_config("deepseek_v3"), "train"), load(CONTEXT // RANKS)
    )

    assert list(split[1]("head", "forward")) == list(own("head", "forward"))
    assert list(split[1]("embedding", "forward")) == list(own("embedding", "forward"))


def test_a_gpu_on_its_own_exchanges_nothing_and_two_do():
    trace = recorded_trace(load_model_config("deepseek_v3"), "train")
    one, two = (
        operators_of_part(trace, load(CONTEXT), ranks)("moe", "forward") for ranks in (1, 2)
    )
    assert list(one) == list(operators_of(trace, load(CONTEXT))("moe", "forward"))
    assert [op["ranks"] for op in two if op.kind == "gather_tokens"] == [2]


def test_operands_of_all_tokens_are_kept_for_the_weights_that_expand_latents():
    config = load_model_config("deepseek_v3")
    trace, own = recorded_trace(config, "train"), load(CONTEXT // RANKS)
    alone, shared = (
        layer_memory(config, trace, operators_of_part(trace, own, ranks), own, ["moe"])["moe"]
        for ranks in (1, RANKS)
    )

    # Eight times the tokens of the one matrix; all others are as they were.
    expands = "attention.kv_b_proj"
    beyond = 7 * alone.kept[expands]
    assert shared.kept == dict(alone.kept) | {expands: 8 * alone.kept[expands]}
    assert shared.deferred == alone.deferred + beyond
    assert shared.saved == alone.saved


def test_a_sequence_that_has_no_equal_pieces_is_refused():
    check_pieces(32_768, 8)
    check_pieces(4099, 1)
    with pytest.raises(ValueError, match=r"allowed: training\.sequence_length a multiple of 8"):
        check_pieces(4100, 2)
    with pytest.raises(ValueError, match=r"allowed: training\.sequence_length a multiple of 32"):
        check_pieces(4100, 8)


def test_two_gpus_compute_what_one_does():
    """The mathematics in torch: pieces 0 and 3 on one GPU, 1 and 2 on the other."""
    torch = pytest.importorskip("torch")
    from reference_model import operators as ops
    from reference_model.operators.registration import Site

    config = load_model_config("debug")
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float32)

    heads, length = 2, 16
    q, k = (random(1, length, heads, config.qk_head_dim) for _ in range(2))
    v = random(1, length, heads, config.v_head_dim)
    scale = 1 / math.sqrt(config.qk_head_dim)

    def attend(queries, keys, values):
        site = Site("forward", "attention")("attention.core")
        return ops.attention_forward(queries, keys, values, scale=scale, site=site)[0]

    whole = attend(q, k, v)
    piece = length // 4
    for held in ((0, 3), (1, 2)):
        for place in held:
            start, end = place * piece, (place + 1) * piece
            part = attend(q[:, start:end], k[:, :end], v[:, :end])
            torch.testing.assert_close(part, whole[:, start:end])


def test_a_backward_that_recomputes_nothing_sums_latents_and_rotary_keys_alike():
    trace = recorded_trace(load_model_config("deepseek_v3"), "train", recompute="none")
    part = operators_of_part(trace, load(CONTEXT // RANKS), RANKS)
    summed = named(part("moe", "input_grad"), "attention.kv_latent.context_scatter")
    assert dict(summed.sizes) == {"columns": 512 + 64, "ranks": RANKS, "rows": CONTEXT}
