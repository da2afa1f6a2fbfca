"""What may stand in a field of a file: its kind of value, unit, choices and bounds.

Read from the annotations that also check the files, so that neither can say something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator

from hardware_profiles.fields import Profile
from hardware_profiles.units import Dimension

FieldBlock = type[Any]
"""A profile, or the dataclass of a model's config: fields with values."""


@dataclass(frozen=True, slots=True)
class ValueKind:
    """One kind of value that a field may have."""

    name: str
    """In words: whole number, number, text, true or false, a choice, a quantity, fields, list, map,
    null, anything."""
    dimension: Dimension | None = None
    """Of a quantity."""
    choices: tuple[str | int | bool, ...] = ()
    bounds: tuple[str, ...] = ()
    """Such as ">= 1"."""
    block: FieldBlock | None = None
    """What the fields are."""
    inner: tuple[ValueKind, ...] = ()
    """Kinds of the entries of a list or a map."""
    other_forms: bool = False
    """Whether it is also read from a word or a bare number."""

    @property
    def text(self) -> str:
        """The kind as people say it, with what is allowed: "whole number >= 1", "list of text"."""
        if self.choices:
            return " | ".join(map(_as_yaml, self.choices))
        name = {
            "list": f"list of {described(self.inner)}",
            "map": f"{described(self.inner)} by name",
            "quantity": (self.dimension or "").replace("_", " "),
        }.get(self.name, self.name)
        return f"{name} {' and '.join(self.bounds)}".rstrip()


def described(kinds: Iterable[ValueKind]) -> str:
    """Several kinds in one text: "whole number >= 1, or default"."""
    return ", or ".join(dict.fromkeys(kind.text for kind in kinds if kind.name != "null"))


def kinds_of(annotation: Any, metadata: Iterable[Any] = ()) -> tuple[ValueKind, ...]:
    """The kinds of value that an annotation allows, those of a union in its order."""
    metadata = tuple(metadata)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kinds_of(arguments[0], (*arguments[1:], *metadata))
    if origin in (Union, UnionType):
        return tuple(kind for one in arguments for kind in kinds_of(one, metadata))
    other_forms = any(isinstance(one, BeforeValidator) for one in metadata)
    kind = _one_kind(annotation, origin, arguments, metadata)
    return (replace(kind, other_forms=other_forms and kind.dimension is None),)


def _one_kind(
    annotation: Any, origin: Any, arguments: tuple[Any, ...], metadata: tuple[Any, ...]
) -> ValueKind:
    """The kind of an annotation that is no union."""
    dimension = _dimension(metadata)
    if dimension is not None:
        least = ">= 0" if dimension[1] else "> 0"
        return ValueKind("quantity", dimension=dimension[0], bounds=(least,))
    if origin is Literal:
        return ValueKind("choice", choices=arguments)
    if origin in (tuple, list, frozenset, set):
        return ValueKind("list", inner=kinds_of(arguments[0]) if arguments else ())
    if origin in (dict, Mapping):
        return ValueKind("map", inner=kinds_of(arguments[1]))
    return _plain(annotation, metadata)


def blocks_in(kinds: Iterable[ValueKind]) -> list[tuple[str, FieldBlock]]:
    """(what stands in the path below the field, the block) of every block that a field may hold:
    "" for the field itself, "N" for entries of a list, "NAME" for those of a map."""
    found: list[tuple[str, FieldBlock]] = []
    for kind in kinds:
        if kind.block is not None:
            found.append(("", kind.block))
        step = {"list": "N", "map": "NAME"}.get(kind.name)
        if step is not None:
            found += [(step, block) for below, block in blocks_in(kind.inner) if not below]
    return found


def _plain(annotation: Any, metadata: tuple[Any, ...]) -> ValueKind:
    if annotation in (None, NoneType):
        return ValueKind("null")
    names = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    if annotation in names:
        bounds = _bounds(metadata)
        if annotation is int:
            bounds = tuple(">= 1" if one == "> 0" else one for one in bounds)
        return ValueKind(names[annotation], bounds=bounds)
    if isinstance(annotation, type) and (
        issubclass(annotation, Profile) or is_dataclass(annotation)
    ):
        return ValueKind("fields", block=annotation)
    return ValueKind("anything")


def _dimension(metadata: tuple[Any, ...]) -> tuple[Dimension, bool] | None:
    """Dimension of a quantity, and whether it may be 0."""
    for one in metadata:
        function = one.func if isinstance(one, BeforeValidator) else None
        if isinstance(function, partial) and function.func.__name__ == "_quantity":
            dimension, zero_allowed = function.args
            return dimension, zero_allowed
    return None


def _bounds(metadata: tuple[Any, ...]) -> tuple[str, ...]:
    found = []
    for one in metadata:
        for part in getattr(one, "metadata", None) or (one,):
            match part:
                case Gt(gt=least):
                    found.append(f"> {least:g}")
                case Ge(ge=least):
                    found.append(f">= {least:g}")
                case Lt(lt=most):
                    found.append(f"< {most:g}")
                case Le(le=most):
                    found.append(f"<= {most:g}")
    return tuple(found)


def _as_yaml(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
