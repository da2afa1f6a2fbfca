"""Read the fields of a YAML file: text with units becomes a frozen profile in SI units.

A profile starts as a plain nested dict, exactly as its file says, so that a ``--set`` override can
replace any value before validation. Validation is strict: an unknown field, a missing or wrong
unit, a negative or impossible value is one ValueError that names file, field, value and what is
allowed.
"""

import hashlib
import re
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from math import inf
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from hardware_profiles.by_content import Keyed
from hardware_profiles.suggestions import as_written, closest, did_you_mean, meant_or_known
from hardware_profiles.units import UNITS, Dimension, parse_quantity
from hardware_profiles.whole_files import read_text

ROOT = Path(__file__).parent
"""Folder of the shipped profiles."""

LARGEST = 1e18
"""Largest number without a unit, and largest quantity in SI units, whose smallest above 0 is one
over this; the products of a few of those are still finite."""

PlainT = TypeVar("PlainT")

Raw = dict[str, Any]
"""A profile as its file says, before validation: nested dicts of text and counts."""


def _quantity(dimension: Dimension, zero_allowed: bool, value: object) -> float:
    try:
        quantity = parse_quantity(value, dimension, "")
    except ValueError as error:
        raise ValueError(str(error).removeprefix(": ")) from None
    if quantity < 0 or (quantity == 0 and not zero_allowed):
        allowed = "0 or more" if zero_allowed else "greater than 0"
        raise ValueError(f"{as_written(value)} is not allowed: it must be {allowed}")
    if quantity and not 1 / LARGEST <= quantity <= LARGEST:
        unit = next(unit for unit, factor in UNITS[dimension].items() if factor == 1.0)
        allowed = f"{1 / LARGEST:.0e} to {LARGEST:.0e} {unit}"
        raise ValueError(f"{as_written(value)} is not allowed: it must be {allowed}")
    return quantity


def _positive(dimension: Dimension) -> BeforeValidator:
    return BeforeValidator(partial(_quantity, dimension, False))


def _not_negative(dimension: Dimension) -> BeforeValidator:
    return BeforeValidator(partial(_quantity, dimension, True))


TimeValue = Annotated[float, _not_negative("time")]
DataValue = Annotated[float, _positive("data")]
BandwidthValue = Annotated[float, _positive("bandwidth")]
ComputeValue = Annotated[float, _positive("compute")]
FrequencyValue = Annotated[float, _positive("frequency")]
PowerValue = Annotated[float, _positive("power")]
PriceValue = Annotated[float, _not_negative("price")]
PriceRateValue = Annotated[float, _not_negative("price_rate")]
Count = Annotated[int, Field(strict=True, gt=0)]
"""A whole number of things. Counts and ratios are the only values without a unit."""
Ratio = Annotated[float, Field(strict=True, gt=0)]


class Profile(BaseModel):
    """Base of every profile: frozen, no unknown fields, no silent conversion between types."""

    # Built where first used: a run reads a few of all kinds of files.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    example: ClassVar[str] = ""
    """A file with every field, for messages to who misses one."""

    sources: dict[str, str] = {}
    """Where each value comes from: {field: datasheet, paper section or table}."""

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler, /
    ) -> CoreSchema:
        schema: CoreSchema = _numbers_alone(handler(source), cls)
        return schema

    @model_validator(mode="after")
    def _sources_name_fields(self) -> "Profile":
        known = set(type(self).model_fields) - {"sources"}
        unknown = sorted(set(self.sources) - known)
        if unknown:
            raise ValueError(
                f"sources names the unknown field {unknown[0]!r}; known: {_listed(known)}"
            )
        return self


def _numbers_alone(schema: Any, model: type[Profile]) -> Any:
    """A model's schema whose numbers are none of true and false, which Python counts as 1 and 0.

    Profiles in its fields have schemas of their own.
    """
    match schema:
        case {"type": "model", "cls": inner} if inner is not model:
            return schema
        case {"type": "int" | "float" as number}:
            return _not_boolean(schema, _WRONG_NUMBER[number])
        case {"type": "literal", "expected": allowed} if all(type(one) is int for one in allowed):
            *first, last = map(str, allowed)
            expected = f"{', '.join(first)} or {last}" if first else last
            return _not_boolean(schema, PydanticKnownError("literal_error", {"expected": expected}))
        case dict():
            return {name: _numbers_alone(part, model) for name, part in schema.items()}
        case list():
            return [_numbers_alone(part, model) for part in schema]
    return schema


_WRONG_NUMBER = {
    "int": PydanticKnownError("int_type"),
    "float": PydanticKnownError("float_type"),
}


def _not_boolean(schema: CoreSchema, error: PydanticKnownError) -> CoreSchema:
    """The same schema, with an error for true and false."""

    def check(value: object) -> object:
        if isinstance(value, bool):
            raise error
        return value

    return core_schema.no_info_before_validator_function(check, schema)


ProfileT = TypeVar("ProfileT", bound=Profile)


def read_yaml(path: Path, *, where: str, known: Collection[str] = ()) -> Raw:
    """Read a YAML mapping. Raises ValueError, one line, for anything else.

    Args:
        known: fields of such a file. Another one that merge keys (<<: *name) take up is there for
            them alone and is left out.
    """
    raw, merged = _parsed(read_text(path, where=where), where)
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: expected fields with values, found {type(raw).__name__}")
    if known:
        raw = {name: value for name, value in raw.items() if name in known or name not in merged}
    return raw


def parse_yaml(text: str, *, where: str) -> Any:
    """Read one YAML value. Raises ValueError, one line that starts with `where`, for anything else.

    Dates stay text, fields given twice are errors, and nothing but plain data is built.
    """
    return _parsed(text, where)[0]


def plain_copy(value: PlainT) -> PlainT:
    """The same nested dicts and lists anew: thirty times faster than copy.deepcopy."""
    copied: Any = value
    if isinstance(value, dict):
        copied = {
            key: item if type(item) in _SINGLE else plain_copy(item) for key, item in value.items()
        }
    elif isinstance(value, list):
        copied = [item if type(item) in _SINGLE else plain_copy(item) for item in value]
    anew: PlainT = copied
    return anew


_SINGLE = frozenset({str, int, float, bool, NoneType})
"""Types of values that hold no others."""


def _without_aliases(value: Any) -> Any:
    """The same, what a file says by an alias as a copy of its own."""
    if isinstance(value, dict):
        return {key: _without_aliases(item) for key, item in value.items()}
    return list(map(_without_aliases, value)) if isinstance(value, list) else value


def _parsed(text: str, where: str) -> tuple[Any, frozenset[str]]:
    """A YAML value, and the names of its fields whose values merge keys take up."""
    try:
        value, merged = _document(text)
        return plain_copy(value), merged
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        problem = error.problem or error.context
        raise ValueError(f"{where}: line {line}: not valid YAML: {problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


@lru_cache(maxsize=256)
def _document(text: str) -> tuple[Any, frozenset[str]]:
    """`_parsed` of a text that is read again and again; not to be changed."""
    loader = _StrictLoader(text)
    try:
        root = loader.get_single_node()
        if _values(root, {}) > MOST_VALUES:
            raise ValueError(f"over {MOST_VALUES} values, aliases written out")
        merged = _merged_fields(root)
        value = None if root is None else loader.construct_document(root)
        return _without_aliases(value), merged
    finally:
        loader.dispose()


GIVEN = "given to dsv3sim"
"""Source of a value that a flag or a change says."""


def apply_overrides(raw: Raw, overrides: Mapping[str, Any], *, where: str) -> Raw:
    """Return ``raw`` with each dotted path set to its value, and ``raw`` itself as it was.

    The two share what no path goes through, so that nothing inside is to be changed in place: the
    points of a sweep differ in a few values.

    Fields on the way that the file leaves out are made; entries of a list are called by their
    places, from 0 on. A path through a value that has no fields is an error here; unknown fields
    are found by ``to_profile``, which knows the allowed ones. Where the file says what a value
    comes from, one that changes comes from whoever changes it (`GIVEN`).
    """
    result = dict(raw)
    for path, value in overrides.items():
        *parents, last = path.split(".")
        target: Any = result
        for depth, key in enumerate(parents):
            fields = target
            name: Any = key
            if isinstance(fields, list):
                name = _place(key, fields, path, where)
            elif fields.get(key) is None:
                fields[key] = {}
            if not isinstance(fields[name], dict | list):
                reached = ".".join(parents[: depth + 1])
                inside = fields if isinstance(fields, dict) else {}
                known = _listed(
                    str(name) for name, value in inside.items() if isinstance(value, dict)
                )
                raise ValueError(
                    f"{where}: {path}: {reached!r} has no fields to set; "
                    f"known here with fields: {known or 'none'}"
                )
            target = fields[name] = fields[name].copy()
        if isinstance(target, list):
            target[_place(last, target, path, where)] = plain_copy(value)
            continue
        # Counts keep their type: a key such as 8 of nodes_per_token is a number in the file.
        numeric = last.isdigit() and any(isinstance(key, int) for key in target)
        target[int(last) if numeric else last] = plain_copy(value)
    for path in overrides:
        _say_it_is_given(raw, result, path.split("."), overrides)
    return result


def _say_it_is_given(
    raw: Raw, result: Raw, keys: Sequence[str], overrides: Mapping[str, Any]
) -> None:
    """Write who gives a value that changed into the sources of all that it lies in, in place.

    Args:
        raw: before the changes.
        result: after them, with copies of its own along the way.
        keys: the path of the value.
        overrides: all changes; a source among them stays what it says.
    """
    of_source = "sources" in keys or keys[-1] == "source"
    if of_source or value_at(raw, keys) == value_at(result, keys):
        return
    holder: Any = result
    for depth, key in enumerate(keys):
        if isinstance(holder, list):
            holder = value_at(holder, [key])
            continue
        if not isinstance(holder, dict):
            return  # Another change put something else in the place of what it lay in.
        rest = ".".join(keys[depth + 1 :])
        sources = holder.get("sources")
        beside = ".".join((*keys[:depth], "sources", key))
        if isinstance(sources, dict) and key in sources and beside not in overrides:
            given = f"{sources[key]}; {rest}: {GIVEN}" if rest else GIVEN
            holder["sources"] = sources | {key: given}
        own = ".".join((*keys[:depth], "source"))
        if not rest and "source" in holder and own not in overrides:
            holder["source"] = GIVEN if key == "value" else f"{holder['source']}; {key}: {GIVEN}"
        holder = value_at(holder, [key])


def value_at(raw: Any, keys: Iterable[str]) -> Any:
    """What lies in nested dicts and lists at some keys; None where nothing does."""
    for key in keys:
        inside = dict(enumerate(raw)) if isinstance(raw, list) else raw
        named = inside.items() if isinstance(inside, dict) else ()
        raw = next((value for name, value in named if str(name) == key), None)
    return raw


def _place(key: str, entries: list[Any], path: str, where: str) -> int:
    """The place in a list that a part of a path names."""
    if not (key.isascii() and key.isdigit() and int(key) < len(entries)):
        allowed = f"0 to {len(entries) - 1}" if entries else "none, as it is empty"
        raise ValueError(f"{where}: {path}: {key!r} is no place of a list; allowed: {allowed}")
    return int(key)


def to_profile(model: type[ProfileT], raw: Raw, *, where: str, at: str = "") -> ProfileT:
    """Turn a raw dict into a profile, or raise one ValueError: file, field, value, allowed.

    Args:
        at: field of the file that holds the dict; empty for a whole file.
    """
    try:
        found = _validated(model, Keyed(hashlib.sha256(repr(raw).encode()).digest(), raw))
    except ValidationError as error:
        raise ValueError(_one_line(model, error, where, at)) from None
    if isinstance(found, model):
        return found
    path, number = next(each for each in _numbers(raw, at) if not abs(each[1]) <= LARGEST)
    raise ValueError(
        f"{where}: {path}: {as_written(number)} is not allowed: a number of at most {LARGEST:.0e}"
    )


@lru_cache(maxsize=128)
def _validated(model: type[Profile], content: Keyed[Raw]) -> Profile | None:
    """The profile of a dict, the same object for what says the same, since profiles never change;
    None where a number is too large. Raises ValidationError for anything else."""
    if not _within_limits(content.value):
        return None
    return model.model_validate(content.value)


def _within_limits(value: object) -> bool:
    """Whether every number in nested mappings and lists is small enough."""
    if isinstance(value, str):
        return True
    if isinstance(value, int | float):
        return abs(value) <= LARGEST
    if isinstance(value, Mapping):
        return all(map(_within_limits, value.values()))
    return not isinstance(value, list | tuple) or all(map(_within_limits, value))


def _numbers(value: object, path: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number in nested mappings and lists, with the dotted path to it."""
    if isinstance(value, int | float):
        yield path, value
    inner = value.items() if isinstance(value, Mapping) else ()
    for key, item in enumerate(value) if isinstance(value, list | tuple) else inner:
        yield from _numbers(item, f"{path}.{key}".removeprefix("."))


def _one_line(model: type[Profile], error: ValidationError, where: str, at: str) -> str:
    details = error.errors(include_url=False)
    first = details[0]
    location = _named(model, first["loc"])
    same = [d for d in details if _named(model, d["loc"]) == location]
    field = ".".join(map(str, (at, *location) if at else location)) or model.__name__
    missing = [d for d in details if d["type"] == "missing"]
    if first["type"] == "extra_forbidden":
        parent = _model_at(model, location[:-1])
        known = parent.model_fields if parent else {}
        problem = f"unknown field; {meant_or_known(str(location[-1]), known)}"
    elif first["type"] == "missing":
        # All at once: who writes a file wants to know what is left to write.
        same = missing
        paths = [".".join(map(str, (at, *d["loc"]) if at else d["loc"])) for d in missing]
        field, problem = ", ".join(paths), "is missing" if len(paths) == 1 else "are missing"
        if model.example:
            problem += f"; {model.example} shows {'it' if len(paths) == 1 else 'them'}"
    elif first["type"] == "value_error":
        problem = str(first["ctx"]["error"])
    else:
        kinds = dict.fromkeys(map(_must_be, same))
        expected = (str(d.get("ctx", {}).get("expected", "")) for d in same)
        close = closest(str(first["input"]), re.findall(r"'([^']*)'", " ".join(expected)))
        problem = f"{as_written(first['input'])} is not allowed: it must be {', or '.join(kinds)}"
        problem += f"; {did_you_mean(close)}" if close else ""
        if kinds == {"fields": None}:
            problem += f"; dsv3sim show fields {field} lists them"
    more = f" (and {len(details) - len(same)} more)" if len(details) > len(same) else ""
    return f"{where}: {field}: {problem}{more}"


def _must_be(detail: Mapping[str, Any]) -> str:
    """What a value ought to have been, after "it must be"."""
    kind, limits = detail["type"], detail.get("ctx", {})
    for beginning, words in _KINDS.items():
        if kind.startswith(beginning):
            return words
    for name, words in _LIMITS.items():
        if kind == name:
            return f"{words} {next(iter(limits.values()))}"
    if kind == "literal_error":
        return str(limits["expected"])
    message = str(detail["msg"])
    return message.removeprefix("Input should be ").removeprefix("Input should ")


_KINDS = {
    "int_": "a whole number",
    "float_": "a number",
    "finite_": "a finite number",
    "bool_": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "fields",
    "model_": "fields",
}
_LIMITS = {
    "greater_than": "greater than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
}


def _named(model: type[Profile], location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A location less what pydantic calls the kinds of value that a field may have.

    A field of several kinds has an error for each of them; users know the field alone.
    """
    for position, part in enumerate(location[:-1]):
        parent = _model_at(model, location[:position])
        field = parent.model_fields.get(str(part)) if parent else None
        kinds = set(get_args(field.annotation)) - {NoneType} if field else set()
        if field and get_origin(field.annotation) in (Union, UnionType) and len(kinds) > 1:
            return (*location[: position + 1], *location[position + 2 :])
    return location


def _model_at(model: type[Profile], location: tuple[int | str, ...]) -> type[Profile] | None:
    """The profile class that field names and places of lists lead to from ``model``."""
    current: type[Profile] | None = model
    for part in location:
        if isinstance(part, int):
            continue
        if current is None or part not in current.model_fields:
            return None
        annotation = current.model_fields[str(part)].annotation
        candidates = (annotation, *get_args(annotation))
        current = next(
            (c for c in candidates if isinstance(c, type) and issubclass(c, Profile)), None
        )
    return current


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))


if TYPE_CHECKING:
    _Loader = yaml.SafeLoader
else:
    _Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(_Loader):
    """YAML's safe loader with plain text for dates, and errors where YAML would guess.

    A key given twice, of which YAML keeps the last, and a key that is a list or a mapping are
    errors with a line. What a merge key (<<) brings may be given again, as YAML has it.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                kind = "list" if isinstance(key_node, yaml.SequenceNode) else "mapping"
                raise _yaml_error(f"a {kind} cannot name a field; allowed: text", key_node)
            key = self.construct_object(key_node)
            if key in seen:
                raise _yaml_error(f"field {key!r} is given twice", key_node)
            seen.add(key)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


MOST_VALUES = 2**20
"""Of a YAML file, those that an alias repeats counted again; the largest shipped has thousands."""


def _values(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Values in a node when every alias in it is written out; infinite where it holds itself."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = inf
        inner = node.value
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_values(part, known) for part in inner)
    return known[id(node)]


def _merged_fields(root: yaml.Node | None) -> frozenset[str]:
    """Fields of a mapping whose values are merged somewhere below it."""
    taken: set[int] = set()
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                waiting.append(value)
                if key.tag == _MERGE:
                    taken |= {id(value), *map(id, value.value if _is_list(value) else ())}
    fields = root.value if isinstance(root, yaml.MappingNode) else ()
    return frozenset(str(key.value) for key, value in fields if id(value) in taken)


def _is_list(node: yaml.Node) -> bool:
    return isinstance(node, yaml.SequenceNode)


_MERGE = "tag:yaml.org,2002:merge"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"

# No field of a profile or scenario is a date, and an impossible one would not even be read.
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in _StrictLoader.yaml_implicit_resolvers.items()
}


def _yaml_error(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
