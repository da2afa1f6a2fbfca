"""Compare models by KV-cache bytes and training FLOPs per token, from their config.json files.

Covers dense models with grouped-query attention, and models of DeepSeek-V3's family as the
reference model counts them; the fields of the config say which. FLOPs follow Tables 2
and 4 of "Insights into DeepSeek-V3" (arXiv 2505.09343): 6 FLOPs for each matrix parameter that a
token passes through (head included; embedding, norms, router and multi-token prediction not), plus
the attention core, forward once and backward twice, causal: half the square of the context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardware_profiles.units import Bytes, Flops
from reference_model.config import parse_model_config, read_config_file, shipped_configs
from reference_model.parameter_counts import parameter_counts, training_flops_per_token

FOLDER = Path(__file__).parent / "comparison_models"
"""Published config.json files of models that are not of DeepSeek-V3's family, by name; the fields
that change neither KV cache nor FLOPs are left out."""

CONTEXT = 4096
"""Tokens of a sequence in Table 2 of arXiv 2505.09343."""

KV_BYTES = 2
"""Bytes of a cached value in Table 1 of arXiv 2505.09343: BF16."""

TRAINING_PASSES = 3
"""Forward, input gradient and weight gradient, each with as many FLOPs as the forward."""


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What one token costs."""

    name: str
    kv_cache_bytes: Bytes
    """All layers, `KV_BYTES` a value."""
    matrix_parameters: int
    """Those of the matrix products that one token passes through."""
    training_flops: Flops
    """Forward and backward at `CONTEXT`, causal."""


def known_models() -> tuple[str, ...]:
    """Models that can be compared by name, sorted: those of `FOLDER` and the shipped ones."""
    return tuple(sorted([*(path.stem for path in FOLDER.glob("*.json")), *shipped_configs()]))


def model_cost(name: str) -> ModelCost:
    """Cost of one of `known_models`, or of a config.json by path.

    Raises ValueError naming file and field.
    """
    path = FOLDER / f"{name}.json"
    raw, source = read_config_file(path if path.is_file() else name)
    if "kv_lora_rank" in raw:
        config = parse_model_config(raw, source=source)
        cached = config.num_hidden_layers * (config.kv_lora_rank + config.qk_rope_head_dim)
        return ModelCost(
            name=name,
            kv_cache_bytes=float(cached * KV_BYTES),
            matrix_parameters=parameter_counts(config).matrix,
            training_flops=training_flops_per_token(config, context=CONTEXT, causal=True),
        )
    layers = _field(raw, "num_hidden_layers", source)
    cached, attention, core = _grouped_query(raw, source)
    hidden = _field(raw, "hidden_size", source)
    dense = 3 * hidden * _field(raw, "intermediate_size", source)
    matrix = layers * (attention + dense) + _field(raw, "vocab_size", source) * hidden
    # One multiply-add is 2 FLOPs; half of the context is visible on average.
    per_context = layers * core * CONTEXT
    return ModelCost(
        name=name,
        kv_cache_bytes=float(layers * cached * KV_BYTES),
        matrix_parameters=matrix,
        training_flops=float(TRAINING_PASSES * (2 * matrix + per_context)),
    )


def compare_models(names: tuple[str, ...]) -> list[ModelCost]:
    """The cost of each model, in the order given."""
    return [model_cost(name) for name in names]


def _grouped_query(raw: Mapping[str, Any], source: str) -> tuple[int, int, int]:
    """Values cached, parameters, and sizes of the core's products summed, of one layer."""
    hidden, heads = _field(raw, "hidden_size", source), _field(raw, "num_attention_heads", source)
    kv_heads = _field(raw, "num_key_value_heads", source)
    width = raw.get("head_dim", hidden // heads)
    attention = 2 * hidden * width * (heads + kv_heads)  # Q and O, K and V
    return 2 * kv_heads * width, attention, 2 * heads * width


def _field(raw: Mapping[str, Any], name: str, source: str) -> int:
    value = raw.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{source}: {name} = {value!r}; allowed: a whole number above 0")
    return value
