"""What a run changes of its scenario file, and which published figures it may stand beside.

A published figure belongs to the inputs of the file that names it. The resolved scenario is held
against that file value by value, so that a change counts by what it does, not by how it is written:
another cluster's name, a cluster of the same content, a bandwidth in another unit.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from math import isclose

from hardware_profiles.fields import Profile

NO_INPUTS = (
    "description",
    "seed",
    "pretraining.runs",
    "published",
    # A published transfer names its number of GPUs; which ones run beside it is nothing to it.
    "vary.operation.gpus",
    "analysis",
    "cluster.name",
    "calibration.name",
)
"""Paths that move no simulated figure."""

NO_INPUT_FIELDS = frozenset({"low", "high", "source", "sources"})
"""The same, wherever they stand: ends of intervals, and where values come from."""

PRICES = ("cluster.gpu_price", "cluster.fabric.switch_price", "cluster.fabric.link_price")
"""Paths that move figures of cost only."""

SHOWN_CHARACTERS = 60
"""Longest text of one change in a title."""

DIRECTORY_CHARACTERS = 96
"""Longest name of a directory; a longer one ends in a digest."""

_EXACT = 1e-12
"""Relative difference of two spellings of one quantity."""


def differences(one: object, other: object, path: str = "") -> Iterator[str]:
    """Dotted paths at which two values differ: profiles, dataclasses, mappings and sequences."""
    if one is other or one == other:
        return
    inside, others = _parts(one), _parts(other)
    if inside is not None and others is not None:
        for name in dict.fromkeys((*inside, *others)):
            below = f"{path}.{name}" if path else name
            yield from differences(inside.get(name), others.get(name), below)
    elif not _equal(one, other):
        yield path


def matters(path: str, metric: str) -> bool:
    """Whether another value at a path of a scenario can move a metric."""
    if _under(path, NO_INPUTS) or not NO_INPUT_FIELDS.isdisjoint(path.split(".")):
        return False
    return not _under(path, PRICES) or metric.startswith("cost_")


def effective(overrides: Mapping[str, str], changed: Sequence[str]) -> tuple[str, ...]:
    """Overrides as "path=value", sorted, less those that leave the file's own value or that only
    say other words or figures.

    Args:
        overrides: path -> value, as given.
        changed: paths at which the scenario differs from its file.
    """
    acting = {
        path
        for path in overrides
        if not _under(path, ("description", "published"))
        and any(_under(place, (path,)) or _under(path, (place,)) for place in changed)
    }
    # Inside a profile that is exchanged, setting a value back to the file's is a change too.
    return tuple(
        f"{path}={value}" for path, value in sorted(overrides.items()) if _under(path, acting)
    )


def shown(changes: Iterable[str]) -> str:
    """Changes in one line, long values cut."""
    return ", ".join(
        change if len(change) <= SHOWN_CHARACTERS else f"{change[: SHOWN_CHARACTERS - 3]}..."
        for change in changes
    )


def directory_name(name: str, changes: Sequence[str]) -> str:
    """The name of a run's directory: one for each set of changes, readable as far as it goes.

    A digest tells apart what characters or length keep out of it.
    """
    whole = "+".join((name, *changes))
    readable = re.sub(r"[^\w.+=-]+", "-", whole)
    readable = readable.replace("=-", "=").replace("-+", "+").rstrip("-")
    if readable == whole and len(whole) <= DIRECTORY_CHARACTERS:
        return whole
    end = f"-{digest(whole)}"
    return f"{readable[: DIRECTORY_CHARACTERS - len(end)]}{end}"


def digest(text: str) -> str:
    """A few characters that tell a text from others."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _parts(value: object) -> Mapping[str, object] | None:
    if isinstance(value, Profile):
        return {name: getattr(value, name) for name in type(value).model_fields}
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): entry for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return {str(place): entry for place, entry in enumerate(value)}
    return None


def _equal(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return isclose(one, other, rel_tol=_EXACT)
    return one == other


def _under(path: str, roots: Iterable[str]) -> bool:
    return any(path == root or path.startswith(f"{root}.") for root in roots)
