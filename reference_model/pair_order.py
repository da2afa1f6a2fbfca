"""The order of an overlapped pair, part by part, as data for whoever runs one.

A file of it has one JSON object a line, in the order of issue, as `dsv3sim show pair SCENARIO
--order FILE` writes it:

    {"stream": "communication", "phase": "forward", "layer": 0, "segment": "dispatch",
     "after": [1], "operators": 2}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

COMPUTE, COMMUNICATION = "compute", "communication"
FORWARD, INPUT_GRAD, WEIGHT_GRAD = "forward", "input_grad", "weight_grad"

_SEGMENTS = {
    FORWARD: ("attention", "dispatch", "mlp", "mlp", "combine"),
    INPUT_GRAD: ("combine", "mlp", "dispatch", "attention"),
    WEIGHT_GRAD: ("mlp", "attention"),
}
"""Phase -> the parts of a layer, in their order. In forward, mlp begins with what needs no
dispatched tokens."""


class Part(NamedTuple):
    """Operators of one segment of one layer that a rank issues together: one line of an order."""

    stream: str
    """compute or communication."""
    phase: str
    """forward of the one micro-batch, input_grad or weight_grad of the other."""
    layer: int
    """In the order in which the phase goes through them, from 0."""
    segment: str
    """attention, dispatch, mlp or combine."""
    after: tuple[int, ...]
    """Parts, from 0, that have to be over before it begins, besides those of its stream."""
    operators: int
    """How many operators it is."""


def parse_pair_order(text: str, *, source: str) -> tuple[Part, ...]:
    """Read an order; `source` is the name that errors give it.

    Raises ValueError where a line cannot be read or waits for one that is not before it, or where
    layers do not pass through all their parts in turn."""
    parts: list[Part] = []
    for number, line in enumerate(text.splitlines()):
        where = f"{source}, line {number + 1}"
        try:
            fields = json.loads(line)
            part = Part(**fields | {"after": tuple(fields["after"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{where}: {line[:80]!r} is not a JSON object with {', '.join(Part._fields)}"
            ) from error
        if part.stream not in (COMPUTE, COMMUNICATION) or part.phase not in _SEGMENTS:
            raise ValueError(
                f"{where}: stream {part.stream!r}, phase {part.phase!r}: allowed {COMPUTE} or"
                f" {COMMUNICATION}; {', '.join(_SEGMENTS)}"
            )
        if any(not 0 <= earlier < number for earlier in part.after):
            raise ValueError(f"{where}: after {list(part.after)}: allowed 0 to {number - 1}")
        parts.append(part)
    _check_parts(parts, source)
    return tuple(parts)


def order_text(order: Sequence[Part]) -> str:
    """The file of an order."""
    return "".join(f"{json.dumps(part._asdict())}\n" for part in order)


def layers_of(order: Sequence[Part]) -> int:
    """Layers that each phase of an order goes through."""
    return 1 + max(part.layer for part in order)


def _check_parts(order: Sequence[Part], source: str) -> None:
    if not order:
        raise ValueError(f"{source}: holds no part")
    for phase, segments in _SEGMENTS.items():
        wanted = [(layer, segment) for layer in range(layers_of(order)) for segment in segments]
        found = [(part.layer, part.segment) for part in order if part.phase == phase]
        if found != wanted:
            at = next((n for n, both in enumerate(zip(found, wanted, strict=False))
                       if both[0] != both[1]), min(len(found), len(wanted)))  # fmt: skip
            raise ValueError(
                f"{source}: part {at} of {phase} is {found[at] if at < len(found) else 'missing'};"
                f" allowed {wanted[at] if at < len(wanted) else 'none'}, of (layer, segment)"
            )
