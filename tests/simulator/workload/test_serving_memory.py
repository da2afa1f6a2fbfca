"""KV cache, weights and buffers of a serving GPU."""

from dataclasses import replace

import pytest

from hardware_profiles.low_latency_kernels import load_low_latency
from hardware_profiles.schema import load_cluster
from reference_model.config import load_model_config
from reference_model.parameter_counts import parameter_counts
from reference_model.trace import Operator
from simulator.scenario.files import load_scenario
from simulator.workload import serving_memory as serving_memory_module
from simulator.workload.memory import GpuMemory, Infeasible
from simulator.workload.recipes import RECIPES
from simulator.workload.serving_memory import (
    check_kv_fits,
    kv_bytes_per_token,
    kv_capacity,
    micro_batch_tokens,
    serving_memory,
    weight_bytes,
)

V3 = load_model_config("deepseek_v3")


def job_of(name, *changes):
    return load_scenario(name, list(changes)).job


def capacity(name, *changes):
    scenario = load_scenario(name, list(changes))
    return capacity_of(scenario, scenario.cluster)


def capacity_of(scenario, cluster):
    job = scenario.job
    return kv_capacity(
        job, config=scenario.model, cluster=cluster, low_latency=profile_of(job), operators=()
    )


def profile_of(job):
    name = job.all_to_all.low_latency
    return None if name is None else load_low_latency(name)


def test_a_token_of_deepseek_v3_takes_70272_bytes():
    assert kv_bytes_per_token(V3, "bfloat16") == 70_272
    # FlashMLA's FP8 cache: 656 bytes a token and layer.
    assert kv_bytes_per_token(V3, "fp8_e4m3") == 61 * 656
    assert kv_bytes_per_token(V3, "bfloat16", draft_layers=1) == 62 * 1152


def test_the_keys_of_an_indexer_take_132_bytes_a_token_and_layer_beside_the_cache():
    sparse = load_model_config("deepseek_v3_2")
    assert kv_bytes_per_token(sparse, "bfloat16") == 61 * (1152 + 132) == 78_324
    assert kv_bytes_per_token(sparse, "fp8_e4m3") == 61 * (656 + 132) == 48_068
    assert kv_bytes_per_token(load_model_config("glm_5"), "bfloat16") == 78 * (1152 + 132)


def test_weights_of_an_indexer_lie_on_every_gpu_and_its_head_weights_in_bf16():
    job = job_of("decode_tp8_h200")
    dense, sparse = (
        serving_memory(job, config=config, low_latency=None, operators=()).weights
        for config in (V3, load_model_config("deepseek_v3_2"))
    )
    wide = 7168 * 64 + 2 * 128
    # In blocks of 128 x 128 with an FP32 scale each.
    quantized = (1536 * 64 * 128 + 7168 * 128) * (1 + 4 / 128**2)
    assert sparse - dense == pytest.approx(61 * (quantized + 2 * wide), rel=1e-9)


def test_low_latency_buffers_are_those_that_deepep_allocates():
    # DeepEP issue 28: 2116.291072 MB for 288 experts, 128 tokens, 7,168 values.
    job = job_of("decode_ep144_day6")
    memory = serving_memory(job, config=V3, low_latency=profile_of(job), operators=())
    assert memory.all_to_all_buffers == pytest.approx(2116.291072e6, rel=1e-3)
    # Two experts of each of 144 GPUs with a room for 128 tokens of every GPU: what arrives in FP8,
    # what leaves in BF16, gate and up in BF16 and their product in FP8; 56 and 16 FP32 scales.
    room = 7168 * (1 + 2) + 2048 * (2 * 2 + 1) + (56 + 16) * 4
    assert memory.expert_buffers == 2 * 144 * 128 * room == 1_180_827_648


@pytest.mark.parametrize(
    ("recipe", "operand_bytes"),
    [
        ("bfloat16", 2 * (7168 + 2048)),
        # 4-bit weights are multiplied in BF16.
        ("int4", 2 * (7168 + 2048)),
        ("fp8_per_tensor", 7168 + 2048),
        # A power of two of one byte for 32 values; a byte for 16 of half a byte.
        ("mxfp8", (7168 + 2048) * 33 // 32),
        ("nvfp4", (7168 + 2048) * 9 // 16),
    ],
)
def test_tokens_in_the_rooms_of_experts_have_the_scales_of_their_recipe(recipe, operand_bytes):
    job = job_of("decode_ep144_day6").model_copy(update={"recipe": recipe})
    memory = serving_memory(job, config=V3, low_latency=profile_of(job), operators=())
    assert memory.expert_buffers == 2 * 144 * 128 * (2 * (7168 + 2 * 2048) + operand_bytes)


def test_normal_kernels_keep_the_queues_that_their_scenario_names():
    job = job_of("prefill_ep32_profile", "all_to_all.buffers=2 GB")
    assert serving_memory(job, config=V3, low_latency=None, operators=()).all_to_all_buffers == 2e9
    with pytest.raises(ValueError, match=r"all_to_all\.buffers is needed with kernels normal"):
        job_of("prefill_ep32_profile", "all_to_all.buffers=null")


def test_all_experts_over_all_gpus_hold_the_whole_model_once():
    job = job_of("decode_ep128_profile")
    counts = parameter_counts(V3)
    memory = serving_memory(job, config=V3, low_latency=profile_of(job), operators=())
    replicated = memory.weights - 2 * 58 * counts.expert * (1 + 4 / 128**2)
    expected = 61 * counts.attention + 3 * counts.dense_feed_forward + 58 * counts.shared_experts
    # FP8 but for BF16 vocabulary and absorbed up-projection: within a few per cent of one byte.
    vocabulary = 2 * (counts.embedding + counts.head)
    assert replicated == pytest.approx(expected + vocabulary, rel=0.07)


def test_weights_of_a_recipe_are_those_of_a_serving_gpu_in_fp8_and_two_bytes_each_in_bf16():
    job = job_of("prefill_ep32_profile", "experts.redundant=0", "gpus=32")
    served = serving_memory(job, config=V3, low_latency=None, operators=()).weights
    assert weight_bytes(V3, RECIPES["fp8"], gpus=32) == pytest.approx(served, rel=1e-12)
    # 7 of 8 parts of 58 layers of 256 experts lie elsewhere.
    elsewhere = 58 * 256 * 3 * 7168 * 2048 * 7 / 8
    assert weight_bytes(V3, RECIPES["bfloat16"], gpus=8) == 2 * (671_026_419_200 - elsewhere)


def test_tensor_parallelism_splits_all_but_latents_gate_and_norms():
    job = job_of("decode_tp8_h200")
    fp8 = 1 + 4 / 128**2  # a byte, and an FP32 scale for each block
    experts = 58 * 256 * 3 * 7168 * 2048 // 8
    shared = 58 * 3 * 7168 * 2048 // 8
    dense = 3 * 3 * 7168 * 18432 // 8
    latents = 7168 * 1536 + 7168 * (512 + 64)
    up = 128 * 512 * (128 + 128) // 8
    by_head = 128 * 1536 * (128 + 64) // 8 + up + 128 * 128 * 7168 // 8
    # The absorbed up-projection is BF16.
    attention = 61 * ((latents + by_head) * fp8 + up * (2 - fp8))
    norms = 61 * 2 * (1536 + 512 + 2 * 7168) + 2 * 7168
    gate = 58 * 2 * 256 * (7168 + 1)
    vocabulary = 2 * 2 * 129280 // 8 * 7168
    expected = (experts + shared + dense) * fp8 + attention + norms + gate + vocabulary
    weights = serving_memory(job, config=V3, low_latency=None, operators=()).weights
    assert weights == expected == 85_267_989_360  # 79.4 GiB
    whole = job_of("decode_tp8_h200", "dense_tp=1", "shared_expert_tp=1", "vocabulary_tp=1")
    kept = serving_memory(whole, config=V3, low_latency=None, operators=()).weights
    assert kept == expected + 7 * ((shared + dense) * fp8 + vocabulary)


KIMI = load_model_config("kimi_k2")


@pytest.mark.parametrize(
    ("recipe", "value"),
    [
        # Half a byte and 2 bytes for a group of 32, of 128.
        ("int4", 0.5 + 2 / 32),
        ("int4_128", 0.5 + 2 / 128),
    ],
)
def test_int4_experts_of_kimi_k2_take_half_a_byte_and_their_scales(recipe, value):
    job = job_of("decode_tp8_h200", "model=kimi_k2", f"recipe={recipe}")
    experts = 60 * 384 * 3 * 7168 * 2048 // 8 * value
    beside = 60 * 3 * 7168 * 2048 + 3 * 7168 * 18432  # shared experts and a dense layer
    by_head = 64 * 1536 * (128 + 64) + 64 * 512 * (128 + 128) + 64 * 128 * 7168
    latents = 7168 * 1536 + 7168 * (512 + 64)
    rest = (beside + 61 * by_head + 2 * 163840 * 7168) // 8 + 61 * latents
    rest += 61 * (1536 + 512 + 2 * 7168) + 7168 + 60 * 384 * (7168 + 1)
    weights = serving_memory(job, config=KIMI, low_latency=None, operators=()).weights
    assert weights == experts + 2 * rest
    assert round(weights / 2**30, 2) == {"int4": 70.95, "int4_128": 65.41}[recipe]


def test_weights_of_deepseek_v3_per_gpu_of_eight_in_every_recipe():
    """TP8 in decode, the absorbed up-projection in BF16 throughout; GiB."""
    held = {}
    for name in RECIPES:
        job = job_of("decode_tp8_h200", f"recipe={name}")
        held[name] = serving_memory(job, config=V3, low_latency=None, operators=()).weights
    experts = 58 * 256 * 3 * 7168 * 2048 // 8
    feed_forward = experts + (58 * 3 * 7168 * 2048 + 3 * 3 * 7168 * 18432) // 8
    output = 61 * 128 * 128 * 7168 // 8
    assert held["bfloat16"] - held["int4"] == experts * (2 - 0.5 - 2 / 32)
    assert held["bfloat16"] - held["nvfp4"] == feed_forward * (2 - 0.5 - 1 / 16)
    assert held["nvfp4"] - held["nvfp4_o_proj"] == output * (2 - 0.5 - 1 / 16)
    blocks = held["fp8"] - held["fp8_per_tensor"]  # 4 bytes for a block
    assert held["mxfp8"] - held["fp8_per_tensor"] == blocks / 4 * 128**2 / 32
    assert {name: round(size / 2**30, 2) for name, size in held.items()} == {
        "fp8": 79.41, "bfloat16": 157.92, "int4": 48.49, "int4_128": 44.92,
        "fp8_per_tensor": 79.39, "nvfp4": 47.86, "nvfp4_o_proj": 46.66, "mxfp8": 81.85,
    }  # fmt: skip


def test_deepseek_v3_in_bf16_exceeds_eight_h200_and_kimi_k2_in_int4_fits():
    message = (
        r"30\.6 GiB more than its 131\.3 GiB: weights 157\.9 GiB, .*would fit: recipe fp8 "
        r"\(79\.41 GiB of weights\), int4 \(48\.49 GiB of weights\), int4_128 \(44\.92 GiB of "
        r"weights\), fp8_per_tensor \(79\.39 GiB of weights\)$"
    )
    with pytest.raises(Infeasible, match=message):
        capacity("decode_tp8_h200", "recipe=bf16")
    kimi = capacity("decode_tp8_h200", "model=kimi_k2", "recipe=int4")
    assert kimi.needed_tokens == 64 * 4096
    check_kv_fits(kimi)


def test_the_workspace_holds_neither_weights_nor_cache():
    scenario = load_scenario("decode_tp8_h200")
    job = scenario.job
    core = Operator(
        name="attention.core", kind="mla_decode", phase="forward", segment="attention",
        dtype="bfloat16", out_dtype="bfloat16", recompute=False, accumulate=False,
        sizes=tuple(
            {"heads": 16, "kv_length": 4096, "latent_dim": 512, "query_length": 1,
             "rope_dim": 64, "sequences": 64}.items()
        ),
    )  # fmt: skip
    product = replace(
        core, name="head.proj", kind="gemm", sizes=(("k", 7168), ("m", 64), ("n", 16160))
    )

    def workspace(*operators):
        return serving_memory(job, config=V3, low_latency=None, operators=operators).workspace

    # Queries in, results out, and a log-sum-exp for each.
    assert workspace(core) == 64 * 16 * (576 * 2 + 512 * 2 + 4)
    assert workspace(product) == 64 * (7168 + 16160) * 2
    # The largest operator counts: 64 queries of 16 heads move 2,180 bytes each.
    assert workspace(product, core) == workspace(core, product) == workspace(product)
    # Scores of two queries to 4,096 keys are written in FP32, and read no more than their queries.
    scores = replace(
        core, kind="index_scores", dtype="fp8_e4m3", out_dtype="float32",
        sizes=tuple(
            {"dim": 128, "heads": 64, "kv_length": 4096, "query_length": 1, "sequences": 2}.items()
        ),
    )  # fmt: skip
    assert workspace(scores) == 2 * 64 * (128 + 4 + 4) + 2 * 4096 * 4


def test_fewer_bytes_a_token_or_shared_heads_change_what_fits():
    plain = capacity("decode_ep128_profile")
    fp8 = capacity("decode_ep128_profile", "memory.kv_cache=fp8_e4m3")
    assert fp8.tokens / plain.tokens == pytest.approx(1152 / 656, rel=0.01)
    assert plain.largest_batch == plain.tokens // 4096
    shared = capacity("decode_ep320_report")
    assert shared.needed_tokens == 48 * 4096 * 4  # a group of 4 holds all its latents 4 times


def test_pages_round_every_request_up():
    paged = capacity("decode_ep128_profile", "requests.context_tokens=4097")
    assert paged.needed_tokens == 128 * (4096 + 64)


def test_the_largest_batch_is_that_of_the_cache_or_of_the_buffers():
    cached = capacity("mtp_ep128", "memory.buffer_tokens=512")
    assert cached.limit.startswith("KV cache: ")
    buffered = capacity("mtp_ep128")
    # Two micro-batches of 128 tokens, two tokens a request.
    assert buffered.largest_batch == 128 < cached.largest_batch
    assert buffered.limit.startswith("memory.buffer_tokens: 128 tokens of each of 2 micro-batches")


def test_a_batch_that_does_not_fit_says_by_how_many_tokens():
    kv = capacity("decode_ep128_profile", "requests.requests_per_gpu=256")
    missing = 256 * 4096 - kv.tokens
    assert missing > 0
    with pytest.raises(Infeasible, match=f"{missing} more than the {kv.tokens} that fit"):
        check_kv_fits(kv)


def test_weights_that_do_not_fit_say_by_how_much():
    scenario = load_scenario("decode_ep128_profile")
    small = load_cluster("h800_2048", {"node.gpu.hbm_capacity": "24 GB"})
    with pytest.raises(Infeasible, match="beside its KV cache"):
        capacity_of(scenario, small)


def test_weights_that_do_not_fit_name_a_number_of_gpus_that_hold_them():
    few = ("gpus=8", "requests.requests_per_gpu=1", "requests.context_tokens=64")
    with pytest.raises(Infeasible, match=r"fit: gpus 16 with experts\.redundant 0; recipe int4_"):
        capacity("decode_ep128_profile", *few)
    capacity("decode_ep128_profile", "gpus=16", *few[1:])


def test_gpus_over_which_expert_groups_do_not_spread_are_named_with_another_placement():
    # 24 GPUs are three nodes, which do not divide the 8 expert groups of hierarchical placement.
    few = ("experts.redundant=8", "cluster.node.gpu.hbm_capacity=76 GiB")
    message = r"fit: gpus 24 with experts\.redundant 8, experts\.placement global; recipe int4 "
    with pytest.raises(Infeasible, match=message):
        capacity("prefill_ep32_profile", "gpus=12", *few)
    capacity("prefill_ep32_profile", "gpus=24", "experts.placement=global", *few)


def test_weights_that_do_not_fit_name_the_redundant_experts_that_fill_twice_the_gpus():
    """256 experts and 8 fill 264 slots; with 8 more each of 16 GPUs has 17."""
    few = ("gpus=8", "experts.redundant=8", "requests.requests_per_gpu=1")
    with pytest.raises(Infeasible, match=r"fit: gpus 16 with experts\.redundant 16$"):
        capacity("decode_ep128_profile", *few, "requests.context_tokens=64")


def ways_out(name, *changes, **parts):
    """Ways out of a GPU with these parts beside its weights."""
    scenario = load_scenario(name, list(changes))
    job, gpu = scenario.job, scenario.cluster.node.gpu
    memory = GpuMemory(**{"weights": 0.0, "workspace": 0.0, "reserved": 0.0} | parts)
    return serving_memory_module._ways_out(job, V3, gpu, profile_of(job), memory)


def test_more_gpus_are_a_way_out_where_their_weights_fit_beside_the_rest_to_the_byte():
    few = ("decode_ep128_profile", "gpus=8", "requests.requests_per_gpu=1")
    larger = job_of(few[0], "gpus=16", few[2])
    weights = serving_memory(larger, config=V3, low_latency=None, operators=()).weights
    rest = load_scenario("decode_ep128_profile").cluster.node.gpu.hbm_capacity - weights
    assert ways_out(*few, reserved=rest).startswith("would fit: gpus 16 ")
    assert ways_out(*few, reserved=rest + 1).startswith("would fit: gpus 32 ")


def test_a_recipe_is_a_way_out_where_it_fits_beside_the_workspace_to_the_byte():
    job = job_of("decode_tp8_h200", "recipe=int4_128")
    int4 = serving_memory(job, config=V3, low_latency=None, operators=())
    room = load_scenario("decode_tp8_h200").cluster.node.gpu.hbm_capacity - int4.total
    fitting = ways_out("decode_tp8_h200", "recipe=bf16", workspace=room)
    assert fitting == "would fit: recipe int4_128 (44.92 GiB of weights)"
    none = "allowed: fewer tokens per GPU, smaller buffers, or a GPU with more memory"
    assert ways_out("decode_tp8_h200", "recipe=bf16", workspace=room + 1) == none


@pytest.mark.parametrize(("modules", "layers"), [(0, 0), (1, 1), (3, 1)])
def test_a_gpu_drafts_with_one_prediction_module_where_the_model_has_any(modules, layers):
    config = replace(V3, num_nextn_predict_layers=modules)
    assert serving_memory_module._draft_layers(job_of("mtp_ep128"), config) == layers
    assert serving_memory_module._draft_layers(job_of("decode_ep8_h200"), config) == 0


def test_drafted_tokens_and_those_of_all_that_share_heads_count_into_a_micro_batch():
    # 33 requests of two tokens in two micro-batches; 48 in four fours.
    assert micro_batch_tokens(job_of("mtp_ep128", "requests.requests_per_gpu=33")) == 33
    assert micro_batch_tokens(job_of("decode_ep320_report")) == 24


def test_a_draft_module_adds_a_layer_its_projection_and_its_norms():
    drafting = job_of("mtp_ep128")
    plain = job_of("mtp_ep128", "speculative_decoding=null")
    given = {"config": V3, "low_latency": profile_of(plain), "operators": ()}
    added = serving_memory(drafting, **given).weights - serving_memory(plain, **given).weights
    with_scales = 1 + 4 / 128**2
    in_fp8 = 7168 * 1536 + 7168 * 576 + 1536 * 24576 + 16384 * 7168
    expert = 3 * 7168 * 2048
    # Of 256 experts on 128 GPUs two, and the shared one. The absorbed up-projection is BF16.
    layer = (in_fp8 + 3 * expert) * with_scales + 512 * 32768 * 2
    layer += 2 * (1536 + 512 + 2 * 7168) + 2 * (256 * 7168 + 256)
    assert added == pytest.approx(layer + (2 * 7168**2 + 3 * 7168) * with_scales, rel=1e-12)


def test_buffers_bound_the_batch_of_all_gpus_that_share_heads():
    """Two tokens of each of two micro-batches are 4 requests a GPU, 16 of four."""
    bound = capacity("decode_ep320_report", "memory.buffer_tokens=2")
    assert (bound.largest_batch, bound.largest_group) == (4, 16)
    free = capacity("decode_ep320_report", "memory.buffer_tokens=null")
    assert free.limit.startswith("KV cache: ")
    assert free.largest_batch == free.largest_group // 4
    assert free.limit.endswith(
        "left by weights and buffers, on each of the 4 GPUs that share their heads"
    )
    # Buffers of 64 tokens have room for 512 requests of four GPUs, their caches for 243.
    cached = capacity("decode_ep320_report", "memory.buffer_tokens=64")
    assert (cached.largest_group, cached.limit[:8]) == (243, "KV cache")
    assert capacity("decode_ep128_profile").limit.endswith(" left by weights and buffers")
    two = capacity("decode_tp8_h200", "attention_tp=2", "gpus=8")
    assert two.limit.endswith(", on each of the 2 GPUs that share their heads")


def test_a_prefill_pass_holds_the_prompts_that_its_tokens_are_begun_of():
    # 16,384 tokens are four prompts of 4,096, and five of 3,500, a page being 64 tokens.
    assert capacity("prefill_ep32_profile").needed_tokens == 4 * 4096
    begun = capacity("prefill_ep32_profile", "requests.prompt_tokens=3500")
    assert begun.needed_tokens == 5 * 3520
    # Four GPUs that share heads hold the 16 prompts of all.
    assert capacity("prefill_ep32_report").needed_tokens == 16 * 4096
    # 1,000 tokens of each are there before, so that it has 5,120.
    cached = capacity("prefill_ep32_profile", "requests.cached_tokens=1000")
    assert cached.needed_tokens == 4 * 5120
