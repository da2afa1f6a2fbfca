"""Describe every field that files may have: its kind, unit, default and meaning.

Kinds come from the annotations that check the files, meanings from the docstrings under the fields.
A path is that of `--set`; N in it is a place of a list, NAME a name that a file chooses.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from typing import Any, get_type_hints

from pydantic_core import PydanticUndefined

from hardware_profiles.estimates import Estimate
from hardware_profiles.fields import Profile
from hardware_profiles.schema import CalibrationProfile, ClusterProfile, GpuProfile
from hardware_profiles.suggestions import closest, did_you_mean
from hardware_profiles.units import Dimension, example_of, format_quantity
from reference_model.config import ModelConfig
from simulator.scenario.field_kinds import FieldBlock, ValueKind, blocks_in, described, kinds_of
from simulator.scenario.scenario_file import JOBS, ScenarioFile, job_type

NAMED_FILES: Mapping[str, FieldBlock] = {
    "model": ModelConfig,
    "cluster": ClusterProfile,
    "gpu": GpuProfile,
    "calibration": CalibrationProfile,
}
"""{field of a scenario: what the file that it names holds}"""

OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "tp": ("tensor_parallel", "attention_tp"),
    "tensor_model_parallel_size": ("tensor_parallel", "attention_tp"),
    "tensor_parallel_size": ("tensor_parallel", "attention_tp"),
    "pipeline_model_parallel_size": ("pp",),
    "pipeline_parallel_size": ("pp",),
    "pipeline_parallel": ("pp",),
    "expert_model_parallel_size": ("ep",),
    "expert_parallel": ("ep",),
    "cp": ("context_parallel",),
    "context_parallel_size": ("context_parallel",),
    "etp": ("expert_tensor_parallel", "expert_tp"),
    "vpp": ("virtual_stages",),
    "gbs": ("global_batch_sequences",),
    "global_batch_size": ("global_batch_sequences",),
    "batch": ("global_batch_sequences", "requests_per_gpu"),
    "batch_size": ("global_batch_sequences", "requests_per_gpu"),
    "mbs": ("micro_batch_sequences",),
    "micro_batch_size": ("micro_batch_sequences",),
    "seq_len": ("sequence_length", "context_tokens"),
    "seq_length": ("sequence_length", "context_tokens"),
    "max_num_seqs": ("max_batch",),
    "recompute_granularity": ("recompute",),
    "precision": ("recipe",),
    "dtype": ("recipe",),
    "layers": ("num_hidden_layers",),
    "topk": ("num_experts_per_tok",),
    "top_k": ("num_experts_per_tok",),
}
"""{what Megatron-LM, vLLM and people call a field: its names here}"""

MOST = 3
"""Paths that are suggested at once."""

REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class Field:
    """One field that a file may have."""

    path: str
    kinds: tuple[ValueKind, ...]
    default: str
    """As a file would have it; "required" where it has none, empty for a block of fields."""
    meaning: str

    @property
    def kind(self) -> str:
        """Its kind in words, with what is allowed."""
        return described(self.kinds)

    @property
    def dimension(self) -> Dimension | None:
        return next((kind.dimension for kind in self.kinds if kind.dimension), None)

    @property
    def example(self) -> str:
        """How a quantity is written; empty of what has no unit."""
        return example_of(self.dimension) if self.dimension is not None else ""

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "type": self.kind,
            "unit": self.dimension,
            "example": self.example or None,
            "default": self.default or None,
            "choices": [choice for kind in self.kinds for choice in kind.choices] or None,
            "meaning": self.meaning,
        }


@cache
def scenario_fields() -> tuple[Field, ...]:
    """Every field of a scenario file, those of its job and of the files that it names included."""
    return tuple(_scenario_fields())


def _scenario_fields() -> Iterator[Field]:
    for field in fields_of(ScenarioFile):
        yield field
        if field.path in NAMED_FILES:
            yield from fields_of(NAMED_FILES[field.path], field.path)
    for name in JOBS:
        job = job_type(name)
        yield Field(name, (ValueKind("fields", block=job),), "", first_sentence(job))
        yield from fields_of(job, name)


def fields_of(block: FieldBlock, path: str = "") -> Iterator[Field]:
    """Every field of a block and of the blocks in it, but for where values come from (`sources`);
    an estimate's parts are value, low, high and source and stand for themselves."""
    for field in described_fields(block):
        here = f"{path}.{field.path}" if path else field.path
        yield replace(field, path=here)
        for below, one in blocks_in(field.kinds):
            if not issubclass(one, Estimate):
                yield from fields_of(one, f"{here}.{below}" if below else here)


def described_fields(block: FieldBlock) -> Iterator[Field]:
    """The fields of a block itself, their names in the place of paths."""
    meanings = _meanings(block)
    for name, kinds, default in _own_fields(block):
        yield Field(name, kinds, default, meanings.get(name, ""))


def find_fields(path: str) -> list[Field]:
    """The fields at a path and below it; else those whose path ends in it, as pp of training.pp.

    Raises:
        ValueError: no field has such a path; the message names what may be meant.
    """
    every = scenario_fields()
    wanted = as_described(path)
    at = [field for field in every if field.path == wanted]
    at += [field for field in every if field.path.startswith(f"{wanted}.")]
    at = at or [field for field in every if field.path.endswith(f".{wanted}")]
    if not at:
        meant = paths_meant(path)
        allowed = did_you_mean(meant) if meant else "dsv3sim show fields lists all"
        raise ValueError(f"no field {path!r}; {allowed}")
    return at


def as_described(path: str) -> str:
    """A path of --set as descriptions have it: "published.3.value" is "published.N.value"."""
    return ".".join("N" if part.isdigit() else part for part in path.split("."))


def is_field(path: str) -> bool:
    """Whether a file may have a field at a path of --set."""
    parts = as_described(path).split(".")
    if len(parts) > 1 and parts[-1] in _OF_ESTIMATES:
        parts.pop()
    if parts[0] == "vary" or "sources" in parts:
        return True
    return any(_holds(field, parts) for field in scenario_fields())


_OF_ESTIMATES = frozenset({"value", "low", "high", "source", "in_rows"})


def _holds(field: Field, parts: list[str]) -> bool:
    """Whether a path is a field's, or that of an entry in it which is no block of its own."""
    own = field.path.split(".")
    below = {"map": 1, "list": 1, "anything": len(parts)}
    deep = max((below.get(kind.name, 0) for kind in field.kinds), default=0)
    return len(own) <= len(parts) <= len(own) + deep and all(
        one in (part, "NAME") for one, part in zip(own, parts, strict=False)
    )


def paths_meant(path: str, job: str | None = None) -> list[str]:
    """Paths that somebody may have meant who wrote one that does not exist, at most three: a field
    that others call so, one spelt alike, one of that name elsewhere, one whose meaning has the
    word.

    Args:
        job: of the scenario whose path it is.
    """
    foreign = set(JOBS) - {job} if job is not None else set()
    foreign |= {"gpu"} if job not in (None, "replay") else set()  # Only a replay names one.
    ours = {f.path: f for f in scenario_fields() if f.path.split(".")[0] not in foreign}
    parent, _, last = as_described(path).rpartition(".")
    near = {p.rpartition(".")[2]: p for p in ours if p.rpartition(".")[0] == (parent or job)}
    names: dict[str, list[str]] = {}
    for one in sorted(ours, key=lambda p: (p.count("."), p)):
        names.setdefault(one.rpartition(".")[2], []).append(one)
    also = OTHER_NAMES.get(last.lower(), ())
    found = [one for name in also for one in names.get(name, ())]
    root = path.split(".", maxsplit=1)[0]
    elsewhere = names.get(last, [])
    elsewhere = [one for one in elsewhere if one.split(".")[0] == root] or elsewhere
    found = found or [near[name] for name in closest(last, near)] or elsewhere
    found = found or [one for name in closest(last, names) for one in names[name]]
    if not found:
        words = [word for word in last.lower().split("_") if len(word) > 3]
        pool = near.values() or ours
        told = [p for p in pool if words and all(w in ours[p].meaning.lower() for w in words)]
        found = sorted(told, key=lambda p: (len(ours[p].meaning), p))
    return list(dict.fromkeys(found))[:MOST]


# -- one block ---------------------------------------------------------------------------------


def _own_fields(block: FieldBlock) -> Iterator[tuple[str, tuple[ValueKind, ...], str]]:
    """(name, kinds, default as text) of each field of a block."""
    if issubclass(block, Profile):
        for name, field in block.model_fields.items():
            if name != "sources":
                kinds = kinds_of(field.annotation, field.metadata)
                default = REQUIRED if field.is_required() else _as_text(field.default, kinds)
                yield name, kinds, default
        return
    hints = get_type_hints(block)
    for one in fields(block):
        kinds = kinds_of(hints[one.name])
        yield one.name, kinds, REQUIRED if one.default is MISSING else _as_text(one.default, kinds)


def _as_text(value: Any, kinds: tuple[ValueKind, ...]) -> str:
    """A default as a file would have it."""
    dimension = next((kind.dimension for kind in kinds if kind.dimension), None)
    if value is None:
        return "none"
    if isinstance(value, Profile) or value is PydanticUndefined:
        return ""
    if dimension is not None and isinstance(value, int | float):
        return format_quantity(float(value), dimension) if value else f"0 {_unit(dimension)}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(str, value))}]"
    return str(value)


def _unit(dimension: Dimension) -> str:
    return example_of(dimension).split()[1]


def first_sentence(block: FieldBlock) -> str:
    """What a block of fields is, as its docstring begins."""
    return " ".join((inspect.getdoc(block) or "").partition("\n\n")[0].split())


def _meanings(block: FieldBlock) -> dict[str, str]:
    """{field: the docstring under it}, those of the classes that it is made of included."""
    found: dict[str, str] = {}
    for one in reversed(block.__mro__):
        if one.__module__.split(".")[0] in ("simulator", "hardware_profiles", "reference_model"):
            found |= _docs_of_module(one.__module__).get(one.__name__, {})
    return found


@cache
def _docs_of_module(module: str) -> dict[str, dict[str, str]]:
    """{class: {field: docstring}} of a module."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    found: dict[str, dict[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            own = found.setdefault(node.name, {})
            for field, below in zip(node.body, node.body[1:], strict=False):
                match field, below:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str(text))),
                    ):
                        own[name] = " ".join(text.split())
    return found
