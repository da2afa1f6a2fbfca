"""Which family a config.json is of, and how its weights are stored.

A family or a format of weights that is not modelled is refused by name, with what is missing,
before a field is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

Fields = Mapping[str, Any]

_FP8_BLOCK = [128, 128]
"""Rows and columns of a weight that share a scale (DeepSeek-V3 Technical Report, section 3.3.2)."""

_LONGEST = 60
"""Characters of a text from the file in a message."""

_NAMES = {
    "deepseek": "DeepSeekMoE",
    "deepseek_v32": "DeepSeek-V3.2",
    "deepseek_v4": "DeepSeek-V4",
    "glm4_moe": "GLM-4.5",
    "glm_moe_dsa": "GLM-5",
    "kimi_k3": "Kimi-K3",
    "kimi_linear": "Kimi-Linear",
    "llama": "Llama",
    "minimax_m2": "MiniMax-M2",
    "mistral4": "Mistral 4",
    "mistral_large4": "Mistral Large 4",
    "mistral_large4_text": "Mistral Large 4",
    "mixtral": "Mixtral",
    "qwen3_moe": "Qwen3-MoE",
}
"""What people call a `model_type` that is recognised and not modelled."""

_MISSING = {
    "deepseek_v4": "compressed attention, hyper-connections and FP4 experts",
    "kimi_k3": "attention other than multi-head latent attention",
    "kimi_linear": "Kimi Delta Attention",
    "mistral4": "queries scaled by position",
    "mistral_large4": "sparse attention with shared indexers and layers without positions",
    "mistral_large4_text": "sparse attention with shared indexers and layers without positions",
}
"""{model_type: what its layers have and ours do not}, where one field does not tell."""

_OURS = ("", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "kimi_k2")
"""Of these a missing field is a mistake in the file, and no sign of another family."""

_DEFAULTS: dict[str, Any] = {
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 0,
    "first_k_dense_replace": 0,
    "rms_norm_eps": 1e-6,  # that of DeepSeek's checkpoints, and of transformers' config classes
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}
_DEEPSEEK_V2_DEFAULTS = {
    "norm_topk_prob": False, "scoring_func": "softmax", "topk_method": "greedy",
}  # fmt: skip
"""What absent fields mean to transformers' deepseek_v2, which writes no `scoring_func`."""


def language_fields(raw: Fields, source: str) -> dict[str, Any]:
    """The fields of the language model: those of `text_config` where a config wraps one, and the
    quantisation beside it.

    Raises ValueError where `text_config` is no object."""
    text = raw.get("text_config")
    if text is None:
        return dict(raw)
    if not isinstance(text, Mapping):
        raise ValueError(f"{source}: text_config = {text!r} must be an object of fields")
    outside = {
        name: raw[name] for name in ("quantization_config",) if raw.get(name) and name not in text
    }
    return {**text, **outside}


def with_defaults(raw: Fields) -> dict[str, Any]:
    """The fields, with those that are absent or null as what that means in their family."""
    family = _DEEPSEEK_V2_DEFAULTS if raw.get("model_type") == "deepseek_v2" else {}
    given = {name: value for name, value in raw.items() if value is not None}
    layers = raw.get("mlp_layer_types")
    if isinstance(layers, list):  # as transformers 5 writes it, of glm4_moe_lite for one
        given.setdefault("first_k_dense_replace", layers.count("dense"))
    scores_softmax = given.get("scoring_func") == "softmax" and given.get("n_group", 1) == 1
    ungrouped = {"topk_method": "greedy"} if scores_softmax else {}
    return {**_DEFAULTS, **ungrouped, **family, **given}


def check_family(raw: Fields, source: str) -> None:
    """Raise ValueError, one line with the family's name and what is missing, unless the fields are
    those of a mixture of experts with multi-head latent attention, in every layer its own."""
    missing = _missing(raw)
    if missing:
        raise ValueError(
            f"{source}: {_family(raw)} is not modelled: {missing}; allowed: models like "
            "DeepSeek-V3 and V3.2 (multi-head latent attention, mixture of experts)"
        )
    if raw.get("index_topk") is not None and _shares_indexers(raw):
        raise ValueError(
            f"{source}: {_family(raw)} is not modelled: layers that share the indexer of another "
            "(indexer_types, index_topk_pattern, index_topk_freq); allowed: an indexer in every "
            "layer"
        )


def _shares_indexers(raw: Fields) -> bool:
    """Whether some layers read what the indexer of an earlier one selected, as transformers'
    glm_moe_dsa decides it."""
    types, pattern = raw.get("indexer_types"), raw.get("index_topk_pattern")
    if types is not None:
        return not isinstance(types, list) or any(kind != "full" for kind in types)
    if pattern is not None:
        return not isinstance(pattern, str | list) or any(
            kind not in ("F", "full") for kind in pattern
        )
    return raw.get("index_topk_freq") not in (None, 0, 1)


def stored_recipe(raw: Fields, source: str) -> str:
    """Name of the recipe in which a file holds its weights, "fp8" where it does not say.

    Raises ValueError, one line with its name, for a format that is not modelled."""
    stored = raw.get("quantization_config")
    if stored is None:
        return "fp8"
    if not isinstance(stored, Mapping):
        raise ValueError(
            f"{source}: quantization_config = {stored!r} must be an object of fields, or null"
        )
    recipe = _recipe(stored, _left_out(stored, raw, source))
    if recipe is None:
        raise ValueError(
            f"{source}: quantization_config: {_format(stored)} is not modelled; allowed: fp8 in "
            "blocks of 128 x 128 or per tensor, INT4 experts in groups of 32 or 128, NVFP4 "
            "feed-forwards, MXFP8; without the field weights count as FP8"
        )
    return recipe


def _recipe(stored: Fields, left_out: frozenset[str] | None) -> str | None:
    """The recipe of a format, None where none is of it.

    Args:
        left_out: parts of the model that stay in BF16; None where the file lists none, and a
            format means what published checkpoints quantise.
    """
    weights = _grouped_weights(stored)
    kind = weights.get("type"), weights.get("num_bits")
    method, algorithm = stored.get("quant_method"), stored.get("quant_algo")
    whole = not left_out  # every product of layers is quantised
    block = stored.get("weight_block_size") if method == "fp8" else weights.get("block_structure")
    if block is not None and (method == "fp8" or kind == ("float", 8)):
        return "fp8" if block == _FP8_BLOCK and whole else None
    per_tensor = kind == ("float", 8) and weights.get("strategy") == "tensor"
    if whole and (method == "fp8" or (method, algorithm) == ("modelopt", "FP8") or per_tensor):
        return "fp8_per_tensor"
    if whole and (method, algorithm) == ("modelopt", "MXFP8"):
        return "mxfp8"
    if kind == ("int", 4) and left_out in (None, _ALL_BUT_EXPERTS):
        return _INT4.get(str(weights.get("group_size")))
    if (method, algorithm) == ("modelopt", "NVFP4") and stored.get("group_size", 16) == 16:
        return _NVFP4.get(left_out)
    return None


_INT4 = {"32": "int4", "128": "int4_128"}
"""{values that share a scale: recipe}"""
_ALL_BUT_EXPERTS = frozenset({"attention", "output", "dense", "shared"})
_NVFP4 = {
    None: "nvfp4",
    frozenset({"attention", "output"}): "nvfp4",
    frozenset({"attention"}): "nvfp4_o_proj",
}
"""{parts left out: recipe}"""


def _left_out(stored: Fields, raw: Fields, source: str) -> frozenset[str] | None:
    """Parts of the main model's layers whose weights a format leaves in BF16; None without a list
    of them."""
    lists = [stored.get(name) for name in ("ignore", "exclude_modules", "modules_to_not_convert")]
    patterns = next((listed for listed in lists if listed), None)
    if patterns is None:
        return None
    if not isinstance(patterns, list) or not all(isinstance(text, str) for text in patterns):
        raise ValueError(
            f"{source}: quantization_config: modules left out = {_short(patterns)!r} must be a list"
            " of names"
        )
    dense = raw.get("first_k_dense_replace")
    layer = f"model.layers.{dense if isinstance(dense, int) else 0}"
    modules = {
        "attention": f"{layer}.self_attn.q_b_proj",
        "output": f"{layer}.self_attn.o_proj",
        "dense": "model.layers.0.mlp.down_proj",
        "shared": f"{layer}.mlp.shared_experts.down_proj",
        "experts": f"{layer}.mlp.experts.0.down_proj",
    }
    return frozenset(
        part
        for part, module in modules.items()
        if any(_matches(pattern, module, source) for pattern in patterns)
    )


def _matches(pattern: str, module: str, source: str) -> bool:
    """Whether a pattern of modelopt (with *) or compressed-tensors (re:) names a module."""
    if not pattern.startswith("re:"):
        return fnmatchcase(module, pattern)
    try:
        return re.match(pattern.removeprefix("re:"), module) is not None
    except re.error:
        raise ValueError(
            f"{source}: quantization_config: {_short(pattern)!r} is no regular expression"
        ) from None


def _missing(raw: Fields) -> str:
    """What layers of another family have in the place of ours, and nothing where they are ours."""
    kind = str(raw.get("model_type", ""))
    heads, kv_heads = raw.get("num_attention_heads"), raw.get("num_key_value_heads")
    latent = raw.get("kv_lora_rank") is not None
    signs = (
        (kind in _MISSING, _MISSING.get(kind, "")),
        (raw.get("hc_mult") is not None, _MISSING["deepseek_v4"]),
        (raw.get("linear_attn_config") is not None, "linear attention"),
        (
            not latent and kv_heads not in (None, heads),
            f"grouped-query attention, {kv_heads!r} heads of keys and values for {heads!r} of"
            " queries",
        ),
        (not latent and kind not in _OURS, "attention without a latent (no kv_lora_rank)"),
        (
            raw.get("n_routed_experts") is None and kind not in _OURS,
            "layers without experts (no n_routed_experts)",
        ),
    )
    return next((missing for applies, missing in signs if applies), "")


def _family(raw: Fields) -> str:
    """What people call the family."""
    kind, architectures = raw.get("model_type"), raw.get("architectures")
    if isinstance(kind, str) and kind:
        return _short(_NAMES.get(kind, kind))
    if isinstance(architectures, list) and architectures:
        return _short(architectures[0])
    return "this model"


def _format(stored: Fields) -> str:
    """What people call a format of weights."""
    method = stored.get("quant_method", "a format without quant_method")
    weights, bits = _grouped_weights(stored), stored.get("bits")
    detail = stored.get("quant_algo") or (f"INT{bits}" if bits else "")
    if method == "fp8":
        block = stored.get("weight_block_size")
        detail = f"in blocks of {block}" if block else "per tensor"
    elif weights and not detail:
        size = weights.get("group_size")
        detail = f"{weights.get('type')}{weights.get('num_bits')}".upper()
        detail += f" in groups of {size}" if size else ""
    return _short(f"{method} {detail}")


def _grouped_weights(stored: Fields) -> Fields:
    """What compressed-tensors says of the weights of its first group; empty where there is none."""
    groups = stored.get("config_groups")
    listed = groups.values() if isinstance(groups, Mapping) else ()
    group = next((value for value in listed if isinstance(value, Mapping)), {})
    weights = group.get("weights")
    return weights if isinstance(weights, Mapping) else {}


def _short(text: object) -> str:
    """A text from the file as part of one line."""
    return " ".join(str(text).split())[:_LONGEST]
