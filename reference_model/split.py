"""Say how a layer is split over the GPUs of a tensor-parallel group. Free of torch."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from reference_model.config import ModelConfig


class Split(NamedTuple):
    """How many GPUs the heads and widths of a layer are split over.

    Between what is split, a GPU works on its own share of the tokens (sequence parallelism)."""

    tensor: int = 1
    """GPUs that share heads, dense and shared feed-forwards, and the vocabulary."""
    expert_tensor: int = 1
    """GPUs that share the width of each routed expert."""


WHOLE = Split()


def part_of(config: ModelConfig, split: Split) -> ModelConfig:
    """The config of what one GPU holds outside the experts: its heads, its part of the width of
    dense feed-forwards, and its part of the vocabulary.

    Raises ValueError naming the field that the GPUs do not divide."""
    tensor, experts = split
    shared = config.n_shared_experts * config.moe_intermediate_size
    for field, size, name, ranks in (
        ("num_attention_heads", config.num_attention_heads, "tensor_parallel", tensor),
        ("intermediate_size", config.intermediate_size, "tensor_parallel", tensor),
        ("n_shared_experts x moe_intermediate_size", shared, "tensor_parallel", tensor),
        ("vocab_size", config.vocab_size, "tensor_parallel", tensor),
        ("moe_intermediate_size", config.moe_intermediate_size, "expert_tensor_parallel", experts),
    ):
        if ranks < 1 or size % ranks:
            fitting = ", ".join(
                str(number) for number in range(1, min(size, 64) + 1) if size % number == 0
            )
            raise ValueError(
                f"{name}: {ranks} does not divide {field} {size} of the model; allowed: {fitting}"
            )
    if tensor > 1 and config.indexer is not None:
        raise ValueError(
            f"tensor_parallel: {tensor}: the indexer of sparse attention is not split; allowed: 1 "
            "for this model, with training.context_parallel 1 and more training.pp or training.ep"
        )
    return replace(
        config,
        num_attention_heads=config.num_attention_heads // tensor,
        intermediate_size=config.intermediate_size // tensor,
        vocab_size=config.vocab_size // tensor,
    )
