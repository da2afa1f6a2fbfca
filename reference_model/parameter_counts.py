"""Parameters of a model by part, and the operations that training takes per token."""

from dataclasses import dataclass

from reference_model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Numbers of parameters, by the part that holds them."""

    embedding: int
    head: int
    """Output projection; the multi-token prediction module shares it, and the embedding."""
    final_norm: int
    attention: int
    """One layer's attention: projections, the norms of its latents, and the indexer."""
    indexer: int
    """Of these, the indexer of sparse attention; 0 without it."""
    layer_norms: int
    """One layer's two norms of the residual stream."""
    dense_feed_forward: int
    expert: int
    """One routed expert of one layer."""
    shared_experts: int
    """All shared experts of one layer."""
    router: int
    """One layer's gate, its correction bias included where it has one."""
    dense_layer: int
    moe_layer: int
    mtp: int
    """The multi-token prediction modules without the shared embedding and head; 0 if none."""
    total: int
    """Embedding, layers, final norm and head of the main model."""
    activated: int
    """Parameters of the main model that one token passes through, without the embedding."""
    matrix: int
    """Activated parameters that count in the FLOP rule 6 N: those of matrix products, without
    embedding, norms, router and indexer (the accounting behind Table 4 of arXiv:2505.09343)."""


def parameter_counts(config: ModelConfig) -> ParameterCounts:
    """Parameters of a model of this config."""
    c = config
    queries = c.num_attention_heads * c.qk_head_dim
    query_matrix = (
        c.hidden_size * queries
        if c.q_lora_rank is None
        else c.q_lora_rank * (c.hidden_size + queries)
    )
    attention_matrix = (
        query_matrix
        + c.hidden_size * (c.kv_lora_rank + c.qk_rope_head_dim)
        + c.kv_lora_rank * c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim)
        + c.num_attention_heads * c.v_head_dim * c.hidden_size
    )
    indexer_matrix = 0
    if c.indexer is not None:
        # Queries from their latent, a key and the weights of the heads from the hidden state.
        indexer_matrix = c.indexer.heads * (c.indexer.query_latent * c.indexer.dim + c.hidden_size)
        indexer_matrix += c.hidden_size * c.indexer.dim
    # Beside them the weight and the bias of the key's norm.
    indexer = indexer_matrix + (0 if c.indexer is None else 2 * c.indexer.dim)
    attention = attention_matrix + (c.q_lora_rank or 0) + c.kv_lora_rank + indexer
    layer_norms = 2 * c.hidden_size
    dense_feed_forward = 3 * c.hidden_size * c.intermediate_size
    expert = 3 * c.hidden_size * c.moe_intermediate_size
    shared_experts = c.n_shared_experts * expert
    router = c.n_routed_experts * (c.hidden_size + (1 if c.has_correction_bias else 0))
    experts_on_path = shared_experts + c.num_experts_per_tok * expert
    vocabulary = c.vocab_size * c.hidden_size
    dense_layer = attention + layer_norms + dense_feed_forward
    moe_layer = attention + layer_norms + router + shared_experts + c.n_routed_experts * expert
    # Norms of the two inputs, their 2H -> H projection, one layer, and a norm before the head.
    mtp = c.num_nextn_predict_layers * (moe_layer + 2 * c.hidden_size**2 + 3 * c.hidden_size)
    dense, moe = c.first_k_dense_replace, c.num_moe_layers
    outside_layers = vocabulary + c.hidden_size
    return ParameterCounts(
        embedding=vocabulary,
        head=vocabulary,
        final_norm=c.hidden_size,
        attention=attention,
        indexer=indexer,
        layer_norms=layer_norms,
        dense_feed_forward=dense_feed_forward,
        expert=expert,
        shared_experts=shared_experts,
        router=router,
        dense_layer=dense_layer,
        moe_layer=moe_layer,
        mtp=mtp,
        total=vocabulary + outside_layers + dense * dense_layer + moe * moe_layer,
        activated=outside_layers
        + dense * dense_layer
        + moe * (attention + layer_norms + router + experts_on_path),
        matrix=vocabulary
        + dense * (attention_matrix + dense_feed_forward)
        + moe * (attention_matrix + experts_on_path),
    )


def training_flops_per_token(config: ModelConfig, *, context: int, causal: bool) -> float:
    """FLOPs of forward and backward for one token of a sequence of `context` tokens.

    6 N for the matrix products (`ParameterCounts.matrix`) plus the attention core of every layer of
    the main model: 2 FLOPs x context x heads x (QK + V dimension) forward, twice that backward.
    `causal` counts the lower triangle only, half of the square. Multi-token prediction, router and
    recomputation are not part of it. At a context of 4,096 DeepSeek-V3 needs 249.8 GFLOP causal and
    280.5 non-causal, the accounting that reproduces 385 and 432 TFLOP/s at 19.926 s a step
    (arXiv:2505.09343, Table 4).

    With sparse attention the core is that of the selected tokens, a query's own counted. The
    indexer has no backward: 2 N, and 2 FLOPs x context x index heads x their dimension."""
    dimensions = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    counts = parameter_counts(config)
    read = float(context) / (2 if causal else 1)
    indexing = 0.0
    if config.indexer is not None:
        top_k, heads, dim, _ = config.indexer
        scored = (context + 1) / 2 if causal else context
        indexing = 2.0 * (counts.indexer - 2 * dim + scored * heads * dim)
        # The first top_k tokens of a sequence read all up to their own, the others top_k.
        few = min(context, top_k)
        read = few * (1 - few / context) + few / context * ((few + 1) / 2 if causal else few)
    core = 3 * 2 * read * dimensions
    return 6.0 * counts.matrix + (core + indexing) * config.num_hidden_layers
