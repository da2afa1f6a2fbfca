"""Let a cache know what it has worked out by what that was worked out from.

    @lru_cache(maxsize=8)
    def fitted(calibration: Keyed[CalibrationProfile], rows: Keyed[tuple[Measurement, ...]]): ...

    fitted(profile_key(calibration), rows_key(rows))

A profile holds mappings, so that it has no hash of its own; two that say the same have one key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from hardware_profiles.fields import Profile

NOTHING: Mapping[str, Any] = {}

T = TypeVar("T")
ProfileT = TypeVar("ProfileT", bound="Profile")


@dataclass(frozen=True, slots=True)
class Keyed(Generic[T]):
    """A value with the key that stands for it: equal keys, equal results."""

    key: Hashable
    value: T = field(compare=False, repr=False)


def profile_key(profile: ProfileT, *, without: Mapping[str, Any] = NOTHING) -> Keyed[ProfileT]:
    """A profile by what its fields say.

    Args:
        without: fields that do not count, {name: True, or the same of the profile in it}.
    """
    digest = _digest_of(object_key(profile), Keyed(repr(without), without))
    return Keyed((type(profile), digest), profile)


@lru_cache(maxsize=256)
def _digest_of(profile: Keyed[Profile], without: Keyed[Mapping[str, Any]]) -> str:
    """Of what the fields of a profile say; profiles never change."""
    text = profile.value.model_dump_json(exclude=dict(without.value))
    return hashlib.sha256(text.encode()).hexdigest()


def object_key(value: T) -> Keyed[T]:
    """Something that never changes by which object it is; a cache that keeps the key keeps it."""
    return Keyed(id(value), value)


def rows_key(rows: Iterable[T]) -> Keyed[tuple[T, ...]]:
    """The same of rows: those of one text of a table are the same ones."""
    every = tuple(rows)
    return Keyed(tuple(map(id, every)), every)
