"""The memory of one serving GPU: weights, buffers, and room for KV cache.

Weights are those of parameter counts, in the types of the recipe's products (recipes.py) and BF16
elsewhere. The key and value up-projection is BF16 where it is absorbed: in decode, and with sparse
attention in prefill too. Of what is split over GPUs (TensorParallel) each holds a part; latent
projections, gate, norms and indexers lie on all. The KV cache holds the normed latent and the
rotary key, once for all heads, so GPUs that share heads hold it twice over. Its FP8 form keeps the
latent in FP8 with one FP32 scale for 128 values and the rotary key in BF16 (FlashMLA: 656 bytes a
token and layer). The keys of an indexer lie beside it in FP8, 132 bytes of 128 values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hardware_profiles.low_latency_kernels import LowLatencyProfile
from hardware_profiles.schema import ClusterProfile, GpuProfile
from hardware_profiles.units import Bytes, format_bytes
from reference_model.config import ModelConfig
from reference_model.formats import ACTIVATIONS, TILE
from reference_model.parameter_counts import parameter_counts
from reference_model.trace import Operator
from simulator.scenario.serving import ServingStepJob, TensorParallel
from simulator.workload.memory import GpuMemory, Infeasible
from simulator.workload.recipes import (
    RECIPES,
    PrecisionRecipe,
    multiplies,
    recipe_name,
    weight_bytes_of,
)

_BF16, _FP32 = 2, 4
# Size of the activations of each kind that multiplies by a weight.
_WEIGHTED = {
    "gemm": "m", "batched_gemm": "m", "grouped_gemm": "rows", "masked_grouped_gemm": "rows",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class KvCapacity:
    """Room for KV cache on one GPU."""

    memory: GpuMemory
    capacity: Bytes
    """Memory of the GPU."""
    bytes_per_token: Bytes
    """All layers."""
    tokens: int
    """Tokens that fit, whole pages."""
    needed_tokens: int
    """Tokens of the job's requests, whole pages."""
    largest_group: int
    """Requests of the job's context that fit the KV cache and the all-to-all's buffers, of the GPUs
    that share heads together; each of them holds the latents of all."""
    largest_batch: int
    """The same for each GPU."""
    limit: str
    """What the batch is limited by."""


def micro_batch_tokens(job: ServingStepJob) -> int:
    """Tokens of the larger micro-batch of one GPU, drafted ones included."""
    requests = job.requests
    drafted = 0 if job.speculative_decoding is None else job.speculative_decoding.draft_tokens
    whole = requests.tokens_per_gpu
    if whole is None:
        whole = -(-job.group_requests // job.attention_tp) * (1 + drafted)
    return -(-whole // job.micro_batches)


def kv_bytes_per_token(config: ModelConfig, dtype: str, *, draft_layers: int = 0) -> Bytes:
    """Bytes of one token in the KV cache of all layers: 70,272 in DeepSeek-V3 and BF16, 78,324 in
    DeepSeek-V3.2 with the FP8 keys of its indexer, whatever `dtype` says of the rest."""
    if dtype == "bfloat16":
        layer = (config.kv_lora_rank + config.qk_rope_head_dim) * _BF16
    else:
        layer = _in_fp8(config.kv_lora_rank) + config.qk_rope_head_dim * _BF16
    if config.indexer is not None:
        layer += _in_fp8(config.indexer.dim)
    return float((config.num_hidden_layers + draft_layers) * layer)


def _in_fp8(values: int) -> int:
    """Bytes of values in FP8 and of the FP32 scales of their tiles."""
    return values + -(-values // TILE) * _FP32


def weight_bytes(config: ModelConfig, recipe: PrecisionRecipe, *, gpus: int) -> Bytes:
    """Weights of the main model on one of `gpus` GPUs that share its routed experts and hold all
    else whole, as a prefill pass has them; embedding, head, norms and gates are BF16 in every
    recipe."""
    return _weights(
        config, recipe, TensorParallel(), experts=config.n_routed_experts / gpus, local_shared=True,
        absorbed=config.indexer is not None, draft_layers=0,
    )  # fmt: skip


def _wide_attention(config: ModelConfig) -> int:
    """Parameters of one layer's attention that no recipe quantises: norms of latents, and of an
    indexer the norm of its key and the projection that weighs its heads."""
    norms = (config.q_lora_rank or 0) + config.kv_lora_rank
    if config.indexer is None:
        return norms
    return norms + 2 * config.indexer.dim + config.indexer.heads * config.hidden_size


def serving_memory(
    job: ServingStepJob,
    *,
    config: ModelConfig,
    low_latency: LowLatencyProfile | None,
    operators: Iterable[Operator],
) -> GpuMemory:
    """What lies on one GPU beside the KV cache.

    Args:
        low_latency: the profile that the job names, None with normal kernels.
    """
    recipe = RECIPES[recipe_name(job.recipe, config)]
    experts = config.n_routed_experts + job.experts.redundant
    tokens = job.memory.buffer_tokens or micro_batch_tokens(job)
    buffers = 0.0
    rooms = 0.0
    if job.expert_tp == 1 and low_latency is not None:
        message = config.hidden_size * _BF16 + low_latency.header
        buffers = low_latency.buffers * float(experts * tokens * message)
        wide = _BF16 * (config.hidden_size + 2 * config.moe_intermediate_size)
        # Both operands of products have the scales of activations, one for 128 values in FP8.
        stored = ACTIVATIONS[recipe.dispatched].stored_bytes
        operands = stored(1, config.hidden_size) + stored(1, config.moe_intermediate_size)
        # Of its share of the experts, each has a room for the tokens of every GPU.
        rooms = float(experts * tokens * (operands + wide))
    elif job.expert_tp == 1:
        buffers = job.all_to_all.buffers or 0.0
    return GpuMemory(
        weights=_weights_of(job, config, recipe),
        all_to_all_buffers=buffers,
        expert_buffers=rooms,
        workspace=max((_activations(op) for op in operators), default=0.0),
        reserved=job.memory.reserved,
    )


def _activations(operator: Operator) -> Bytes:
    """Bytes that an operator reads and writes beside weights and KV cache."""

    def moved(**sizes: int) -> int:
        changed = tuple((name, sizes.get(name, value)) for name, value in operator.sizes)
        at = replace(operator, sizes=changed)
        return at.bytes_read + at.bytes_written

    if operator.kind in ("mla_decode", "sparse_mla"):
        return float(moved(kv_length=0))
    if operator.kind == "index_scores":
        return float(moved(kv_length=0) + operator.bytes_written)
    rows = _WEIGHTED.get(operator.kind)
    # With no rows nothing but the weight is left.
    return float(moved() - (0 if rows is None else moved(**{rows: 0})))


def kv_capacity(
    job: ServingStepJob,
    *,
    config: ModelConfig,
    cluster: ClusterProfile,
    low_latency: LowLatencyProfile | None,
    operators: Iterable[Operator],
) -> KvCapacity:
    """Tokens of KV cache that fit, and the largest batch of the job's context (see serving_memory).

    Raises Infeasible where weights and buffers alone exceed the memory.
    """
    drafts = _draft_layers(job, config)
    memory = serving_memory(job, config=config, low_latency=low_latency, operators=operators)
    capacity = cluster.node.gpu.hbm_capacity
    per_token = kv_bytes_per_token(config, job.memory.kv_cache, draft_layers=drafts)
    page = job.memory.page_tokens
    if memory.total > capacity:
        raise Infeasible(
            f"each GPU needs {format_bytes(memory.total)} beside its KV cache, "
            f"{format_bytes(memory.total - capacity)} more than its {format_bytes(capacity)}: "
            f"{memory}; {_ways_out(job, config, cluster.node.gpu, low_latency, memory)}"
        )
    tokens = int((capacity - memory.total) / (per_token * page)) * page
    requests = job.requests
    if job.phase == "decode":
        assert requests.context_tokens is not None
        context, batch = requests.context_tokens, job.group_requests
    else:
        assert requests.tokens_per_gpu is not None
        assert requests.prompt_tokens is not None
        context = requests.prompt_tokens + requests.cached_tokens
        batch = -(-requests.tokens_per_gpu * job.attention_tp // requests.prompt_tokens)
    pages = -(-context // page) * page
    largest = tokens // pages
    limit = (
        f"KV cache: {largest} requests of {context} tokens fill "
        f"{format_bytes(largest * pages * per_token)} of "
        f"{format_bytes(capacity - memory.total)} left by weights and buffers"
    )
    if job.attention_tp > 1:
        limit += f", on each of the {job.attention_tp} GPUs that share their heads"
    room = _buffer_room(job)
    if room is not None and room * job.attention_tp < largest:
        largest = room * job.attention_tp
        limit = (
            f"memory.buffer_tokens: {job.memory.buffer_tokens} tokens of each of "
            f"{job.micro_batches} micro-batches are {room} requests"
        )
    return KvCapacity(
        memory=memory,
        capacity=capacity,
        bytes_per_token=per_token,
        tokens=tokens,
        needed_tokens=batch * pages,
        largest_group=largest,
        largest_batch=largest // job.attention_tp,
        limit=limit,
    )


def _ways_out(
    job: ServingStepJob,
    config: ModelConfig,
    gpu: GpuProfile,
    low_latency: LowLatencyProfile | None,
    memory: GpuMemory,
) -> str:
    """Which of twice, four times, ... as many GPUs would hold the weights beside the rest, and in
    which other recipes those of the job would."""
    own = recipe_name(job.recipe, config)
    others = {
        name: serving_memory(
            job.model_copy(update={"recipe": name}),
            config=config,
            low_latency=low_latency,
            operators=(),
        )
        for name in RECIPES
        if multiplies(name, gpu)
    }
    smaller = [
        f"{name} ({format_bytes(other.weights)} of weights)"
        for name, other in others.items()
        if other.total + memory.workspace <= gpu.hbm_capacity
    ]
    ways = [f"recipe {', '.join(smaller)}"] if smaller else []
    room = gpu.hbm_capacity - (memory.total - memory.weights)
    gpus = job.gpus
    while job.expert_tp == 1 and gpus < config.n_routed_experts:
        gpus *= 2
        slots = config.n_routed_experts + job.experts.redundant
        redundant = job.experts.redundant + -slots % gpus
        experts = job.experts.model_copy(update={"redundant": redundant})
        larger = job.model_copy(update={"gpus": gpus, "experts": experts})
        if _weights_of(larger, config, RECIPES[own]) <= room:
            # Expert groups of the hierarchical policy may not spread over that many nodes.
            grouped = job.experts.placement == "hierarchical"
            placed = ", experts.placement global" if grouped else ""
            ways.insert(0, f"gpus {gpus} with experts.redundant {redundant}{placed}")
            break
    if ways:
        return f"would fit: {'; '.join(ways)}"
    return "allowed: fewer tokens per GPU, smaller buffers, or a GPU with more memory"


def _buffer_room(job: ServingStepJob) -> int | None:
    """Requests a GPU whose tokens fit the buffers of low-latency transfers, None where these grow
    with the batch or other kernels run."""
    tokens = job.memory.buffer_tokens
    if tokens is None or job.phase != "decode" or job.all_to_all.kernels != "low_latency":
        return None
    drafted = 0 if job.speculative_decoding is None else job.speculative_decoding.draft_tokens
    return tokens * job.micro_batches // (1 + drafted)


def check_kv_fits(kv: KvCapacity) -> None:
    """Raise Infeasible, saying by how many tokens the requests exceed the KV cache."""
    if kv.needed_tokens > kv.tokens:
        raise Infeasible(
            f"requests hold {kv.needed_tokens} tokens of KV cache per GPU, "
            f"{kv.needed_tokens - kv.tokens} more than the {kv.tokens} that fit; {kv.limit}; "
            "allowed: fewer requests or tokens per GPU, more gpus, or an FP8 cache"
        )


def _draft_layers(job: ServingStepJob, config: ModelConfig) -> int:
    """Prediction modules on each GPU."""
    return 0 if job.speculative_decoding is None else min(1, config.num_nextn_predict_layers)


def _weights_of(job: ServingStepJob, config: ModelConfig, recipe: PrecisionRecipe) -> Bytes:
    """Weights on one GPU of a deployment in a recipe."""
    return _weights(
        config,
        recipe,
        job.tensor_parallel,
        experts=(config.n_routed_experts + job.experts.redundant) / job.gpus,
        local_shared=job.experts.shared_expert == "local",
        absorbed=job.phase == "decode" or config.indexer is not None,
        draft_layers=_draft_layers(job, config),
    )


def _weights(
    config: ModelConfig,
    recipe: PrecisionRecipe,
    split: TensorParallel,
    *,
    experts: float,
    local_shared: bool,
    absorbed: bool,
    draft_layers: int,
) -> Bytes:
    """Weights on one GPU.

    Args:
        experts: whole routed experts of each layer that make up what the GPU has of them.
        local_shared: whether the shared expert lies on the GPU besides.
        absorbed: whether the up-projection of keys and values is BF16.
    """
    counts, c = parameter_counts(config), config

    def attention(recipe: PrecisionRecipe) -> Bytes:
        """Of one layer, its norms included."""
        each = weight_bytes_of(recipe.attention)
        up = c.kv_lora_rank * c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim)
        queries = (c.q_lora_rank or c.hidden_size) * c.num_attention_heads * c.qk_head_dim
        output = c.num_attention_heads * c.v_head_dim * c.hidden_size
        wide = _wide_attention(c)
        latents = counts.attention - wide - queries - up - output
        by_head = queries * each + output * weight_bytes_of(recipe.output)
        by_head += up * (_BF16 if absorbed else each)
        kept = (wide + counts.layer_norms) * _BF16
        return latents * each + by_head / split.attention + kept

    def moe(recipe: PrecisionRecipe) -> Bytes:
        """Feed-forward of one mixture-of-experts layer."""
        shared = counts.shared_experts / split.shared_expert if local_shared else 0.0
        return (
            experts * counts.expert * weight_bytes_of(recipe.experts)
            + shared * weight_bytes_of(recipe.feed_forward)
            + counts.router * _BF16
        )

    vocabulary = 2 * -(-c.vocab_size // split.vocabulary) * c.hidden_size
    dense = counts.dense_feed_forward / split.dense * weight_bytes_of(recipe.feed_forward)
    module = recipe.of_prediction
    beside_layer = (counts.mtp - counts.moe_layer) * weight_bytes_of(module.feed_forward)
    return (
        c.num_hidden_layers * attention(recipe)
        + c.first_k_dense_replace * dense
        + c.num_moe_layers * moe(recipe)
        + (vocabulary + counts.final_norm) * _BF16
        + draft_layers * (attention(module) + moe(module) + beside_layer)
    )
