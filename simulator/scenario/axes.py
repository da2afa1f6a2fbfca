"""Values that a path takes in turn: those of `--vary`, and those that a scenario file varies."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from hardware_profiles.fields import parse_yaml
from hardware_profiles.suggestions import as_written

SEPARATOR = "+"
"""Between paths that vary together."""

_ALLOWED = "allowed: path=value,value,... such as training.schedule=1f1b,dualpipe"


@dataclass(frozen=True, slots=True)
class Axis:
    """What varies together: one path, or several that change in step."""

    paths: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    """[value][path]"""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "path=a,b,c", values as YAML; "cluster+calibration=[a, b],[c, d]" varies two.

        Raises:
            ValueError: any other text, or values that do not fit the paths.
        """
        left, equals, right = text.partition("=")
        if not equals:
            raise ValueError(f"--vary {text!r}: {_ALLOWED}")
        where = f"--vary {text!r}"
        return cls.of(left, parse_yaml(f"[{right}]", where=where), text=where)

    @classmethod
    def of(cls, joined: str, values: Sequence[Any], *, text: str = "") -> Self:
        """An axis of one path, or of several joined by "+", from its values.

        Args:
            text: how messages call it.

        Raises:
            ValueError: no path, no value, or values that do not fit the paths.
        """
        text = text or f"--vary {joined!r}"
        paths = tuple(path.strip() for path in joined.split(SEPARATOR))
        if not all(paths):
            raise ValueError(f"{text}: {_ALLOWED}")
        if not values:
            raise ValueError(f"{text}: no value; {_ALLOWED}")
        if len(paths) == 1:
            return cls(paths, tuple((value,) for value in values))
        for value in values:
            if not isinstance(value, list | tuple) or len(value) != len(paths):
                raise ValueError(
                    f"{text}: {as_written(value)} for {len(paths)} paths; allowed: a list of "
                    f"{len(paths)}, such as a+b=[1, 2],[3, 4]"
                )
        return cls(paths, tuple(tuple(value) for value in values))


def points(axes: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    """{path: value} at every combination of the values, the last axis fastest."""
    paths = [path for axis in axes for path in axis.paths]
    for values in itertools.product(*(axis.values for axis in axes)):
        yield dict(zip(paths, itertools.chain(*values), strict=True))


def file_axes(vary: Mapping[str, Any], *, where: str) -> list[Axis]:
    """The axes that a scenario file states, nested as its own fields are: {"operation": {"gpus":
    [8, 16]}}. A field "a+b" varies two in step, and an empty list or null varies nothing.

    Raises:
        ValueError: something else than a list of values.
    """
    return list(_axes(vary, (), where))


def _axes(vary: Mapping[str, Any], parents: tuple[str, ...], where: str) -> Iterator[Axis]:
    for name, inner in vary.items():
        joined = SEPARATOR.join(".".join((*parents, part)) for part in name.split(SEPARATOR))
        text = f"{where}: vary.{'.'.join((*parents, name))}"
        if isinstance(inner, Mapping):
            yield from _axes(inner, (*parents, name), where)
        elif isinstance(inner, list | tuple):
            if inner:
                yield Axis.of(joined, inner, text=text)
        elif inner is not None:
            raise ValueError(f"{text}: {as_written(inner)} is not allowed: a list of values")
