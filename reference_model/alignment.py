"""Check that FP8 kernels can take a config's sizes as they are.

Scales belong to 128 elements along K and to 128 x 128 elements of a weight (Technical Report,
section 3.3.2). A size that is no multiple of 128 has a last tile or block that is narrower; nothing
is padded in memory, the kernels fill it with zeros as they read it. Memory transfers move 16 bytes:
a size that is no multiple of 16 is refused.
"""

from reference_model.config import ModelConfig
from reference_model.kernels.reference import TILE, TRANSFER
from reference_model.precision import Recipe

GPU_BACKENDS = ("triton", "library", "mixed")
"""Backends whose operands move by the bulk tensor copy engine; the others take any size."""


def weight_sizes(config: ModelConfig) -> dict[str, int]:
    """Feature counts of the FP8 weights by what they are: each is K of one GEMM or another."""
    heads = config.num_attention_heads
    sizes = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "moe_intermediate_size": config.moe_intermediate_size,
        "kv_lora_rank": config.kv_lora_rank,
        "kv_lora_rank + qk_rope_head_dim": config.kv_lora_rank + config.qk_rope_head_dim,
        "heads x (qk_nope_head_dim + v_head_dim)": heads
        * (config.qk_nope_head_dim + config.v_head_dim),
        "heads x v_head_dim": heads * config.v_head_dim,
        "heads x (qk_nope_head_dim + qk_rope_head_dim)": heads * config.qk_head_dim,
    }
    if config.q_lora_rank is not None:
        sizes["q_lora_rank"] = config.q_lora_rank
    return sizes


def size_notes(config: ModelConfig) -> list[str]:
    """One line for each size that is no multiple of 128, saying how it is handled."""
    return [
        f"{name} = {size}: of its tiles of {TILE} the last has {size % TILE}, "
        "filled with zeros as it is read, not padded in memory"
        for name, size in weight_sizes(config).items()
        if size % TILE
    ]


def check_recipe(config: ModelConfig, recipe: Recipe) -> list[str]:
    """`check_sizes` and `size_notes` where a recipe runs FP8 kernels on a GPU; else no notes."""
    if not recipe.fp8 or recipe.kernels not in GPU_BACKENDS:
        return []
    check_sizes(config)
    return size_notes(config)


def check_sizes(config: ModelConfig) -> None:
    """Refuse a config with a size that FP8 kernels on a GPU cannot address."""
    for name, size in weight_sizes(config).items():
        if size % TRANSFER:
            raise ValueError(
                f"{name} = {size}: FP8 kernels on a GPU take multiples of {TRANSFER}; nearest are"
                f" {size // TRANSFER * TRANSFER} and {-(-size // TRANSFER) * TRANSFER}"
            )
