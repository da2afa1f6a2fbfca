"""A model's shape, parameter counts and FLOPs per token, from its config.json. Free of torch.

Field names are those of the Hugging Face checkpoint, so that the config.json of any model of the
DeepSeek-V3 family loads unchanged. Fields that are not listed here do not change the mathematics
and are ignored; values that would change it in a way the model does not implement are errors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from reference_model.families import (
    check_family,
    language_fields,
    stored_recipe,
    with_defaults,
)

CONFIG_FOLDER = Path(__file__).parent / "configs"

ALIASES = {
    "deepseek_r1": "deepseek_v3",
    "deepseek_v3_0324": "deepseek_v3",
    "deepseek_v3_1": "deepseek_v3",
    "kimi_k2_instruct": "kimi_k2",
    "moonlight": "moonlight_16b_a3b",
}
"""{name that people write: shipped config of the same fields}"""

# Field -> values under which the mathematics is the one implemented; the first is the meaning of a
# field that is absent.
_SUPPORTED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "attention_dropout": (0, None),
    "tie_word_embeddings": (False,),
    "moe_layer_freq": (1,),
    "rope_interleave": (True,),
    "sliding_window": (None,),
}
_ROPE_TYPES = ("default", "yarn")
_GATES = (("sigmoid", "noaux_tc"), ("softmax", "greedy"), ("softmax", "group_limited_greedy"))
"""Pairs of `scoring_func` and `topk_method`: DeepSeek-V3's, and the two of DeepSeek-V2."""
_LARGEST = 10**12  # sizes beyond it are typing errors; products of a few are still finite
_MOST_LAYERS = 10**4  # each is a row of tasks
_MINIMUM_GROUP = 2  # a group is ranked by the sum of its two best experts


SHAPE_FIELDS = (
    "vocab_size", "hidden_size", "num_attention_heads", "q_lora_rank", "kv_lora_rank",
    "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "intermediate_size",
    "moe_intermediate_size", "n_shared_experts", "n_routed_experts", "num_experts_per_tok",
)  # fmt: skip
"""Fields of `ModelConfig` that fix the operators of its layers and their sizes, beside those of its
indexer. The others say how many layers of a kind there are, or change values and no shapes."""
INDEX_FIELDS = ("index_topk", "index_n_heads", "index_head_dim")
"""Sizes of the indexer of sparse attention: all of them or none."""


@dataclass(frozen=True, slots=True)
class Yarn:
    """YaRN extension of the rotary embedding (arXiv:2309.00071), as in DeepSeek-V3's config."""

    factor: float
    """Context extension factor s."""
    original_max_position_embeddings: int
    """Context length before the extension."""
    beta_fast: float
    """Rotations over the original context above which a frequency is left as it is."""
    beta_slow: float
    """Rotations below which a frequency is divided by `factor`; a ramp lies in between."""
    mscale: float
    """Of the rotated parts; see `mscale_all_dim`."""
    mscale_all_dim: float
    """Temperature of the softmax; the rotated parts are scaled by the ratio of the two, and where
    either is 0 by a temperature that follows from `factor`."""
    attention_factor: float | None = None
    """Scale of the rotated parts in the place of all that."""
    truncate: bool = True
    """Whether the ramp begins and ends at whole pairs of dimensions."""


class IndexerSizes(NamedTuple):
    """The indexer of one layer's sparse attention."""

    top_k: int
    heads: int
    dim: int
    query_latent: int
    """Width of the query latent, which it shares with the attention."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of a DeepSeek-V3-like model."""

    vocab_size: int
    """Tokens of the vocabulary; rows of embedding and output head."""
    hidden_size: int
    """Width of the hidden state."""
    num_hidden_layers: int
    """Transformer layers, without multi-token prediction."""
    first_k_dense_replace: int
    """Leading layers whose feed-forward is dense; the others are mixture-of-experts."""
    num_nextn_predict_layers: int
    """Multi-token prediction modules: 0 or 1."""

    # multi-head latent attention
    num_attention_heads: int
    """Query heads of a layer."""
    q_lora_rank: int | None
    """Width of the query latent; None projects queries from the hidden state directly."""
    kv_lora_rank: int
    """Width of the latent of keys and values, which the KV cache keeps."""
    qk_nope_head_dim: int
    """Width of a query or key head that is not rotated."""
    qk_rope_head_dim: int
    """Width of a query head that is rotated, and of the one rotated key of all heads, which the KV
    cache keeps too."""
    v_head_dim: int
    """Width of a value head."""
    rope_theta: float
    """Base of the frequencies of the rotary embedding."""
    rope_scaling: Yarn | None
    """YaRN extension of the rotary embedding (arXiv:2309.00071); none: not extended."""

    # feed-forward
    intermediate_size: int
    """Width of the feed-forward of a dense layer."""
    moe_intermediate_size: int
    """Width of one expert."""
    n_shared_experts: int
    """Experts of a layer that every token goes through, as one of so many times the width."""
    n_routed_experts: int
    """Experts of a layer that the gate chooses from."""
    num_experts_per_tok: int
    """Routed experts that a token goes to."""
    n_group: int
    """Groups that the routed experts of a layer are divided into."""
    topk_group: int
    """Groups of experts that one token may choose from."""
    norm_topk_prob: bool
    """Whether the weights of the chosen experts are divided by their sum."""
    routed_scaling_factor: float
    """Factor of the weights of the chosen experts."""
    scoring_func: str
    """What makes scores of the gate's logits: sigmoid, or softmax over all experts."""
    topk_method: str
    """noaux_tc ranks groups by the sum of their two best scores and adds a correction bias to
    scores for the choice; group_limited_greedy ranks groups by their best one; greedy has none."""

    rms_norm_eps: float
    """Added to the mean square in every RMSNorm."""

    recipe: str = "fp8"
    """Types in which the file holds its weights, as its `quantization_config` says; of serving by
    default: fp8, bfloat16, int4, int4_128, fp8_per_tensor, nvfp4, nvfp4_o_proj or mxfp8."""

    # sparse attention: an indexer chooses what each query reads; all None without it
    index_topk: int | None = None
    """Tokens that a query reads at most."""
    index_n_heads: int | None = None
    """Query heads of the indexer."""
    index_head_dim: int | None = None
    """Width of a head of the indexer."""
    indexer_rope_interleave: bool = False
    """Whether the indexer rotates dimensions 2 i and 2 i + 1 together (GLM-5), or i and that half
    of them further (DeepSeek-V3.2)."""

    @property
    def indexer(self) -> IndexerSizes | None:
        """What the indexer's sizes are; None of a model that attends to the whole context."""
        if self.index_topk is None:
            return None
        assert self.index_n_heads is not None
        assert self.index_head_dim is not None
        assert self.q_lora_rank is not None
        return IndexerSizes(
            self.index_topk, self.index_n_heads, self.index_head_dim, self.q_lora_rank
        )

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def has_correction_bias(self) -> bool:
        """Whether a bias that balances load without an auxiliary loss takes part in the choice."""
        return self.topk_method == "noaux_tc"

    @property
    def num_moe_layers(self) -> int:
        """Mixture-of-experts layers of the main model."""
        return self.num_hidden_layers - self.first_k_dense_replace

    @property
    def digest(self) -> str:
        """SHA-256 of every field: equal digests, equal models."""
        return _digest(self._values())

    @property
    def shape_digest(self) -> str:
        """SHA-256 of `SHAPE_FIELDS`, with an indexer of `INDEX_FIELDS` too: equal digests, equal
        operators at equal workloads."""
        names = SHAPE_FIELDS if self.indexer is None else (*SHAPE_FIELDS, *INDEX_FIELDS)
        return _digest({name: getattr(self, name) for name in names})

    def _values(self) -> dict[str, Any]:
        """Every field but those of the usual gate, weights, dense attention and YaRN, which older
        digests do not hold."""
        values = asdict(self)
        if self.indexer is None:
            for name in (*INDEX_FIELDS, "indexer_rope_interleave"):
                del values[name]
        if self.recipe == "fp8":
            del values["recipe"]
        if (self.scoring_func, self.topk_method) == _GATES[0]:
            del values["scoring_func"], values["topk_method"]
        if yarn := values["rope_scaling"]:
            usual = {"attention_factor": None, "truncate": True}
            values["rope_scaling"] = {
                name: value
                for name, value in yarn.items()
                if name not in usual or value != usual[name]
            }
        return values


def _digest(values: Mapping[str, Any]) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def shipped_configs() -> list[str]:
    """Names of the configs that come with the package."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.json"))


def load_model_config(source: str | Path) -> ModelConfig:
    """Read a shipped config by name, or a config.json by path.

    Raises ValueError naming file, field, value and what is allowed."""
    raw, label = read_config_file(source)
    return parse_model_config(raw, source=label)


def read_config_file(source: str | Path) -> tuple[dict[str, Any], str]:
    """The fields of a shipped config or a config.json as they stand in the file, those of the
    language model where it wraps one, and the name that errors give it: the one asked for.

    Raises ValueError where there is no such file, or it holds no JSON object."""
    path = _config_path(source)
    raw = language_fields(_read_object(path, str(source)), str(source))
    # Where modelopt says how it stored the weights beside the config, not in it.
    beside = path.with_name(f"{path.name.removesuffix('config.json')}hf_quant_config.json")
    if "quantization_config" not in raw and path.name.endswith("config.json") and beside.is_file():
        stored = _read_object(beside, str(beside)).get("quantization")
        if isinstance(stored, Mapping):
            raw["quantization_config"] = {"quant_method": "modelopt", **stored}
    return raw, str(source)


def _read_object(path: Path, label: str) -> dict[str, Any]:
    """The fields of a JSON file; ValueError, one line, where it holds no JSON object."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{label}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ValueError(f"{label}: cannot be read: not UTF-8 text") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{label}: not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{label}: {type(raw).__name__} in place of an object of fields")
    return raw


def _config_path(source: str | Path) -> Path:
    """Where a shipped config lies, or the file, or the config.json of the folder, that was named.

    Names are compared without case, "-" and "." like "_"."""
    path = Path(source)
    if path.suffix == ".json":
        return path
    name = str(source).lower().replace("-", "_").replace(".", "_")
    shipped = CONFIG_FOLDER / f"{ALIASES.get(name, name)}.json"
    if shipped.is_file():
        return shipped
    if path.is_dir():
        return path / "config.json"
    known = [*shipped_configs(), *ALIASES]
    close = get_close_matches(name, known, n=1)
    meant = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    raise ValueError(
        f"model {str(source)!r} is neither a shipped one, a .json file, nor a folder with a "
        f"config.json; {meant}"
    )


def parse_model_config(raw: Mapping[str, Any], *, source: str) -> ModelConfig:
    """Check the fields of a config.json; `source` is the name that errors give it."""
    raw = language_fields(raw, source)
    check_family(raw, source)
    recipe = stored_recipe(raw, source)
    raw = with_defaults(raw)
    for name, allowed in _SUPPORTED.items():
        value = raw.get(name, allowed[0])
        if value not in allowed:
            raise ValueError(
                f"{source}: {name} = {value!r} is not supported, allowed: {list(allowed)}"
            )
    scaling = _rope_scaling(raw, source)
    values: dict[str, Any] = {**_gate(raw, source), **_indexer(raw, source), "recipe": recipe}
    for item in fields(ModelConfig):
        if item.name in values:
            continue
        if item.name == "rope_scaling":
            values[item.name] = _yarn(scaling, values["rope_theta"], source)
        elif item.name == "rope_theta":
            values[item.name] = _rope_theta(raw, scaling, source)
        elif item.name in raw:
            values[item.name] = _checked(item.name, str(item.type), raw[item.name], source)
        elif item.name == "q_lora_rank":
            values[item.name] = None
        else:
            raise ValueError(f"{source}: {item.name} is missing")
    config = ModelConfig(**values)
    _check_shape(config, raw.get("num_key_value_heads", config.num_attention_heads), source)
    return config


def _gate(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """How the gate scores and chooses, and the groups that a greedy choice does not look at."""
    gate = raw["scoring_func"], raw["topk_method"]
    if gate not in _GATES:
        raise ValueError(
            f"{source}: scoring_func = {gate[0]!r} with topk_method = {gate[1]!r} is not"
            f" supported, allowed: {', '.join(' with '.join(pair) for pair in _GATES)}"
        )
    if raw.get("model_type") == "deepseek_v2" and raw["norm_topk_prob"]:
        # DeepSeek's code does not scale what it normalises, transformers' does not normalise.
        raise ValueError(
            f"{source}: norm_topk_prob = {raw['norm_topk_prob']!r} is not supported in deepseek_v2,"
            " allowed: false"
        )
    ungrouped = {"n_group": 1, "topk_group": 1} if gate[1] == "greedy" else {}
    return {"scoring_func": gate[0], "topk_method": gate[1], **ungrouped}


def _indexer(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The sizes of sparse attention's indexer, where the config has `index_topk`."""
    if raw.get("index_topk") is None:
        return dict.fromkeys(INDEX_FIELDS) | {"indexer_rope_interleave": False}
    values: dict[str, Any] = {}
    for name in INDEX_FIELDS:
        if raw.get(name) is None:
            raise ValueError(f"{source}: {name} is missing beside index_topk = {raw['index_topk']}")
        values[name] = _checked(name, "int", raw[name], source)
        if values[name] < 1:
            raise ValueError(f"{source}: {name} = {values[name]} must be at least 1")
    if raw.get("q_lora_rank") is None:
        raise ValueError(
            f"{source}: index_topk = {raw['index_topk']} without q_lora_rank is not supported: the "
            "indexer reads the query latent; allowed: a q_lora_rank, or index_topk null"
        )
    rotated = raw.get("qk_rope_head_dim", 0)
    if isinstance(rotated, int) and values["index_head_dim"] < rotated:
        raise ValueError(
            f"{source}: index_head_dim = {values['index_head_dim']} must be at least "
            f"qk_rope_head_dim = {rotated}, which the indexer rotates"
        )
    # transformers' glm_moe_dsa rotates interleaved pairs whatever the field says.
    interleaved = raw.get("indexer_rope_interleave", raw.get("model_type") == "glm_moe_dsa")
    return values | {
        "indexer_rope_interleave": _checked("indexer_rope_interleave", "bool", interleaved, source)
    }


def _checked(name: str, kind: str, value: Any, source: str) -> Any:
    """`value` as the type that the field is annotated with."""
    if value is None and "None" in kind:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind.startswith("bool"):
        if isinstance(value, bool):
            return value
        raise ValueError(f"{source}: {name} = {value!r} must be true or false")
    if kind.startswith("int"):
        most = _MOST_LAYERS if name.endswith("_layers") else _LARGEST
        if number and isinstance(value, int) and 0 <= value <= most:
            return value
        raise ValueError(f"{source}: {name} = {value!r} must be a whole number, 0 to {most:.0e}")
    if number and 0 < value <= _LARGEST:
        return float(value)
    raise ValueError(
        f"{source}: {name} = {value!r} must be a number above 0, at most {_LARGEST:.0e}"
    )


def _rope_scaling(raw: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """`rope_scaling`, or `rope_parameters` as transformers 5 writes it; empty where neither is."""
    scaling = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(scaling, Mapping):
        raise ValueError(f"{source}: rope_scaling = {scaling!r} must be an object or null")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in _ROPE_TYPES:
        raise ValueError(
            f"{source}: rope_scaling.type = {kind!r} is not supported, allowed: {list(_ROPE_TYPES)}"
        )
    for holder in (raw, scaling):
        share = holder.get("partial_rotary_factor")
        if share not in (None, 1):
            raise ValueError(
                f"{source}: partial_rotary_factor = {share!r} is not supported, allowed: [1, None]"
            )
    length = "original_max_position_embeddings"
    if kind == "yarn" and length in raw and raw[length] != scaling.get(length):
        raise ValueError(
            f"{source}: {length} = {raw[length]!r}, in rope_scaling {scaling.get(length)!r}; "
            "allowed: in rope_scaling only"
        )
    return scaling


def _rope_theta(raw: Mapping[str, Any], scaling: Mapping[str, Any], source: str) -> float:
    """Base of the rotary frequencies, which stands beside the scaling or inside it."""
    beside, inside = raw.get("rope_theta"), scaling.get("rope_theta")
    if beside is not None and inside is not None and beside != inside:
        raise ValueError(
            f"{source}: rope_theta = {beside!r}, in rope_parameters {inside!r}; allowed: one of "
            "them, or the same in both"
        )
    given = [value for value in (inside, beside) if value is not None]
    theta: float = _checked("rope_theta", "float", given[0] if given else 10000.0, source)
    return theta


def _yarn(scaling: Mapping[str, Any], theta: float, source: str) -> Yarn | None:
    if scaling.get("rope_type", scaling.get("type", "default")) == "default":
        return None
    # What fields that are absent or null mean to transformers.
    values: dict[str, Any] = {"beta_fast": 32, "beta_slow": 1, "mscale": 0, "mscale_all_dim": 0}
    names = [item.name for item in fields(Yarn)]
    values |= {name: scaling[name] for name in names if scaling.get(name) is not None}
    truncate = values.pop("truncate", True)
    if not isinstance(truncate, bool):
        raise ValueError(f"{source}: rope_scaling.truncate = {truncate!r} must be true or false")
    for name in names:
        value = values.get(name)
        if name == "truncate" or (name == "attention_factor" and value is None):
            continue
        number = None if isinstance(value, bool) else value
        if not isinstance(number, int | float) or not 0 <= number <= _LARGEST:
            raise ValueError(
                f"{source}: rope_scaling.{name} = {value!r} must be a number, 0 to {_LARGEST:.0e}"
            )
    if values["factor"] < 1:
        raise ValueError(f"{source}: rope_scaling.factor = {values['factor']!r} must be at least 1")
    for name in ("beta_fast", "beta_slow"):
        if not values[name]:
            raise ValueError(f"{source}: rope_scaling.{name} = 0 must be above 0, or left out")
    length = values.pop("original_max_position_embeddings")
    if length < 1 or length != int(length):
        raise ValueError(
            f"{source}: rope_scaling.original_max_position_embeddings = {length!r} must be a "
            "whole number, 1 or more"
        )
    if theta <= 1:
        raise ValueError(f"{source}: rope_theta = {theta:g} must be above 1 for YaRN")
    return Yarn(
        original_max_position_embeddings=int(length),
        truncate=truncate,
        **{name: float(value) for name, value in values.items()},
    )


def _check_shape(config: ModelConfig, key_value_heads: Any, source: str) -> None:
    """Relations between fields, without which there is no such model."""
    for name in (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "kv_lora_rank",
        "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "intermediate_size",
        "moe_intermediate_size", "n_shared_experts", "n_routed_experts", "num_experts_per_tok",
        "n_group", "topk_group",
    ):  # fmt: skip
        if getattr(config, name) < 1:
            raise ValueError(f"{source}: {name} = {getattr(config, name)} must be at least 1")
    if config.q_lora_rank == 0:
        raise ValueError(f"{source}: q_lora_rank = 0 must be null or at least 1")
    if key_value_heads not in (config.num_attention_heads, None):
        raise ValueError(
            f"{source}: num_key_value_heads = {key_value_heads!r} must equal num_attention_heads"
            f" = {config.num_attention_heads}"
        )
    if config.qk_rope_head_dim % 2:
        raise ValueError(f"{source}: qk_rope_head_dim = {config.qk_rope_head_dim} must be even")
    if config.num_nextn_predict_layers > 1:
        raise ValueError(
            f"{source}: num_nextn_predict_layers = {config.num_nextn_predict_layers} is not"
            " supported, allowed: 0 or 1"
        )
    if config.first_k_dense_replace > config.num_hidden_layers:
        raise ValueError(
            f"{source}: first_k_dense_replace = {config.first_k_dense_replace} must be at most"
            f" num_hidden_layers = {config.num_hidden_layers}"
        )
    groups, remainder = config.n_group, config.n_routed_experts % config.n_group
    if remainder or config.n_routed_experts // groups < _MINIMUM_GROUP:
        raise ValueError(
            f"{source}: n_group = {groups} must divide n_routed_experts ="
            f" {config.n_routed_experts} into groups of at least {_MINIMUM_GROUP}"
        )
    if config.topk_group > groups:
        raise ValueError(
            f"{source}: topk_group = {config.topk_group} must be at most n_group = {groups}; "
            f"set topk_group too, to at most {groups}"
        )
    choices = config.topk_group * (config.n_routed_experts // groups)
    if config.num_experts_per_tok > choices:
        raise ValueError(
            f"{source}: num_experts_per_tok = {config.num_experts_per_tok} must be at most the"
            f" {choices} experts of topk_group = {config.topk_group} groups"
        )
