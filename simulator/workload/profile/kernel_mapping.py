"""Mapping files: which operator each kernel of a profile belongs to.

A mapping is data (hardware_profiles/mappings/*.yaml with ``format: kineto``, or a user's own file):
rules on the kernel's name, the host operator that launched it and the user annotation around that,
and the order of launches inside that annotation. Every mapping adds to the one for PyTorch programs
in general (`STANDARD`): what no rule of its own covers, those of that one may, and it launches as
that one says where it does not say itself. Sizes are whole numbers or arithmetic on what the trace
gives (`mapped_kernels` lists the names) and on variables that the mapping reads off other kernels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from hardware_profiles.estimates import TimeEstimate
from hardware_profiles.fields import ROOT, Profile, apply_overrides, read_yaml, to_profile
from hardware_profiles.renames import with_names_of_today
from hardware_profiles.suggestions import meant_or_known
from reference_model.formats import BITS
from reference_model.trace import KINDS
from simulator.workload.profile.expressions import Size, check_expression

STANDARD = "pytorch_profile"
"""The mapping of PyTorch programs in general, which every other one adds to."""

_RECORDED_TYPE = re.compile(r"input_\d+")


class OperatorEntry(Profile):
    """An operator that kernels may be."""

    kind: str
    dtype: str
    """An element type, or "input_0" for the recorded one of the host operator's first input."""
    out_dtype: str
    sizes: dict[str, Size]
    accumulate: bool = False
    """Whether the kernel adds into its result."""

    @field_validator("dtype", "out_dtype")
    @classmethod
    def _known_type(cls, dtype: str) -> str:
        if dtype not in BITS and not _RECORDED_TYPE.fullmatch(dtype):
            raise ValueError(f"{dtype!r} is no element type; known: {', '.join(BITS)}, input_0")
        return dtype

    @model_validator(mode="after")
    def _known_kind(self) -> OperatorEntry:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is no kernel family; known: {', '.join(KINDS)}")
        wrong = set(self.sizes) ^ set(KINDS[self.kind].sizes)
        if wrong:
            raise ValueError(f"sizes of {self.kind} are {', '.join(KINDS[self.kind].sizes)}")
        for size in self.sizes.values():
            check_expression(size)
        return self


class KernelRule(Profile):
    """Kernels by name and place, and what they are."""

    match: str = ""
    """Regular expression, found anywhere in the kernel's name; any name where it is empty. Its
    named groups are names for sizes: numbers, or element types for their bytes."""
    annotation: str | None = None
    """User annotation that the launch lies in. What such rules give the same name in one occurrence
    of an annotation is one launch of that operator."""
    host: str | None = None
    """Regular expression on the host operator that launched the kernel, or one around it: the
    innermost that any rule covers counts. What one call of a host operator launches is one launch
    of the operator; without host and annotation each kernel is one."""
    operator: str | None = None
    """What every match is."""
    operators: tuple[str, ...] = ()
    """What the first, second, ... match of one annotation is, in order of launch."""

    @field_validator("match", "host")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        return _checked_pattern(pattern)

    @model_validator(mode="after")
    def _one_of_both(self) -> KernelRule:
        if (self.operator is None) == (not self.operators):
            raise ValueError("needs either operator or operators")
        if not self.match and self.host is None:
            raise ValueError("needs match or host")
        return self


class VariableRule(Profile):
    """A number read off the launch of one kernel in each occurrence of an annotation."""

    match: str
    annotation: str
    value: Size

    @field_validator("match")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        return _checked_pattern(pattern) or ""


class KernelMapping(Profile):
    """One mapping file."""

    name: str
    format: Literal["kineto"]
    extends: str | None = None
    """A further file of the same folder whose tables this one adds to."""
    kernel_set: str
    """Version of the kernels, the condition ``set`` of measured rows."""
    devices: dict[str, str] = Field(default_factory=dict)
    """{device name in a profile: GPU profile, by name or path}; those of shipped GPUs are known."""
    launch_latency: TimeEstimate
    gap: TimeEstimate
    communication: tuple[str, ...] = ()
    """Patterns of kernels that move data between GPUs."""
    rank_wait: tuple[str, ...] = ()
    """Patterns of kernels that hold a barrier across ranks."""
    polled: tuple[str, ...] = ()
    """Patterns of kernels whose result the launching thread polls for in memory."""
    cluster: str | None = None
    """Cluster profile of the recorded machine; None where the network is not known."""
    expert_parallel_ranks: int | None = None
    """GPUs that share a layer's experts; None where it does not apply."""
    variables: dict[str, VariableRule] = Field(default_factory=dict)
    operators: dict[str, OperatorEntry] = Field(default_factory=dict)
    together: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """{operator: further kernels that belong to it}"""
    helpers: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """{kernel: kinds}: its time belongs to the operator of such a kind before it."""
    unmapped: dict[str, str] = Field(default_factory=dict)
    """{kernel, or kind of a named operator: why no operator stands for it}"""
    kernels: tuple[KernelRule, ...] = ()
    named_operators: bool = False
    """Whether the profile itself names its kernels' operators; rules are for the others."""

    @field_validator("communication", "rank_wait", "polled")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            _checked_pattern(pattern)
        return patterns

    @model_validator(mode="after")
    def _names_are_known(self) -> KernelMapping:
        parts = {part for group in self.together.values() for part in group}
        known = {*self.operators, *parts, *self.helpers, *self.unmapped}
        for rule in self.kernels:
            for name in (*rule.operators, *([rule.operator] if rule.operator else [])):
                if name not in known:
                    raise ValueError(f"kernels: {name!r} is in none of the file's tables")
        return self


def known_mappings() -> tuple[str, ...]:
    """Names of the shipped mappings for profiler traces, sorted."""
    found = []
    for path in sorted((ROOT / "mappings").glob("*.yaml")):
        if read_yaml(path, where=path.name).get("format") == "kineto":
            found.append(path.stem)
    return tuple(found)


def mapping_file(name_or_path: str, known: Sequence[str]) -> tuple[Path, str]:
    """The file of a mapping by shipped name or by path, and what to call it in messages.

    Raises:
        ValueError: no shipped mapping has the name; the message lists the known ones.
    """
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return Path(name_or_path), name_or_path
    path = ROOT / "mappings" / f"{name_or_path}.yaml"
    if not path.is_file():
        meant = meant_or_known(name_or_path, known, otherwise="a path to a .yaml file")
        raise ValueError(f"unknown mapping {name_or_path!r}; {meant}")
    return path, f"mappings/{name_or_path}.yaml"


def load_mapping(name_or_path: str) -> KernelMapping:
    """Load a mapping by shipped name or by path to a YAML file; ValueError for anything wrong."""
    path, where = mapping_file(name_or_path, known_mappings())
    raw = with_names_of_today(read_yaml(path, where=where), "mappings", where=where)
    base = raw.get("extends")
    if isinstance(base, str):
        further = path.parent / f"{base}.yaml"
        tables = read_yaml(
            further if further.is_file() else ROOT / "mappings" / f"{base}.yaml",
            where=f"{where}: extends: {base}",
        )
        raw = _joined(raw, tables, where=where)
    if raw.get("name") == STANDARD:
        return to_profile(KernelMapping, raw, where=where)
    standard = load_mapping(STANDARD)
    of_standard = read_yaml(ROOT / "mappings" / f"{STANDARD}.yaml", where=f"mappings/{STANDARD}")
    times = {name: of_standard[name] for name in ("launch_latency", "gap")}
    own = to_profile(KernelMapping, times | raw, where=where)
    return own.model_copy(
        update={
            "communication": own.communication + standard.communication,
            "rank_wait": own.rank_wait + standard.rank_wait,
            "operators": standard.operators | own.operators,
            "unmapped": standard.unmapped | own.unmapped,
            "kernels": own.kernels + standard.kernels,
        }
    )


def _joined(raw: Mapping[str, Any], tables: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """A mapping with the tables of another file, its own entries first; what is no table as it is,
    to be refused like any other."""
    merged: dict[str, Any] = {}
    for table in ("operators", "together", "helpers", "unmapped"):
        parts = [of.get(table, {}) for of in (tables, raw)]
        wrong = [part for part in parts if not isinstance(part, dict)]
        merged[table] = wrong[0] if wrong else {**parts[0], **parts[1]}
    return apply_overrides(dict(raw), merged, where=where)


def _checked_pattern(pattern: str | None) -> str | None:
    if pattern is not None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern
