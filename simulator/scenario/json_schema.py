"""JSON Schema of the files that people write, so that editors complete, explain and check them.

A schema says what a field may hold by itself; what fields must be to each other, a run says. Where
a block of fields is expected, a word is let through: a name of a file, or of a setting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from hardware_profiles.calibration_parts import BesideCompute
from hardware_profiles.estimates import Estimate
from hardware_profiles.schema import TransportProfile
from hardware_profiles.units import UNITS, example_of
from simulator.scenario.describe import NAMED_FILES, REQUIRED, described_fields, first_sentence
from simulator.scenario.field_kinds import FieldBlock, ValueKind
from simulator.scenario.scenario_file import JOBS, ScenarioFile, job_type

FILES: Mapping[str, FieldBlock] = {
    "scenario": ScenarioFile,
    "cluster": NAMED_FILES["cluster"],
    "gpu": NAMED_FILES["gpu"],
    "calibration": NAMED_FILES["calibration"],
    "transport": TransportProfile,
}
"""{what `dsv3sim show schema` may be asked for: what such a file holds}"""

_MAY_BE_LEFT_OUT = frozenset({"gap"})
"""Fields that a run fills in, though the job needs them."""

_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_BOUNDS = {">=": "minimum", ">": "exclusiveMinimum", "<=": "maximum", "<": "exclusiveMaximum"}


def json_schema(file: str) -> dict[str, Any]:
    """The schema of a kind of file: one of FILES."""
    shared: dict[str, Any] = {}
    schema = _block(FILES[file], shared)
    if file == "scenario":
        properties = schema["properties"]
        for name, block in NAMED_FILES.items():
            inside = {"type": "object"} if name == "model" else _reference(block, shared)
            properties[name]["anyOf"] = [{"type": "string"}, inside, {"type": "null"}]
        for name in JOBS:
            job = job_type(name)
            properties[name] = {"description": first_sentence(job), **_reference(job, shared)}
        schema["oneOf"] = [{"required": [name]} for name in JOBS]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"dsv3sim {file}",
        **schema,
        "$defs": shared,
    }


def _block(block: FieldBlock, shared: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required = []
    for one in described_fields(block):
        properties[one.path] = {"description": one.meaning} | _any_of(
            [_kind(kind, shared) for kind in one.kinds]
        )
        if one.default == REQUIRED and one.path not in _MAY_BE_LEFT_OUT:
            required.append(one.path)
    if not is_dataclass(block):
        properties["sources"] = {
            "description": "Where each value comes from.",
            "type": "object",
            "additionalProperties": {"type": "string"},
        }
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _reference(block: FieldBlock, shared: dict[str, Any]) -> dict[str, Any]:
    name = block.__name__
    if name not in shared:
        shared[name] = {}  # Taken: a block may hold itself.
        shared[name] = _block(block, shared)
    return {"$ref": f"#/$defs/{name}"}


def _any_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _kind(kind: ValueKind, shared: dict[str, Any]) -> dict[str, Any]:
    schema = _of_kind(kind, shared)
    return {"anyOf": [schema, {"type": ["string", "number"]}]} if kind.other_forms else schema


def _of_kind(kind: ValueKind, shared: dict[str, Any]) -> dict[str, Any]:
    if kind.dimension is not None:
        units = "|".join(re.escape(unit) for unit in UNITS[kind.dimension])
        return {
            "type": "string",
            "pattern": rf"^\s*{_NUMBER}\s*({units})\s*$",
            "examples": example_of(kind.dimension).split(" or "),
        }
    if kind.choices:
        return {"enum": list(kind.choices)}
    if kind.block is not None:
        forms = [_reference(kind.block, shared), {"type": ["string", "number"]}]
        if kind.block is BesideCompute:
            forms.insert(1, _reference(Estimate, shared))  # One for both of its parts.
        return {"anyOf": forms}
    inner = _any_of([_kind(one, shared) for one in kind.inner]) if kind.inner else {}
    plain: dict[str, dict[str, Any]] = {
        "true or false": {"type": "boolean"},
        "whole number": {"type": "integer"},
        "number": {"type": "number"},
        "text": {"type": "string"},
        "null": {"type": "null"},
        "list": {"type": "array", "items": inner},
        "map": {"type": "object", "additionalProperties": inner},
    }
    bounds = dict(bound.split() for bound in kind.bounds)
    return {
        **plain.get(kind.name, {}),
        **{_BOUNDS[sign]: float(value) for sign, value in bounds.items()},
    }
