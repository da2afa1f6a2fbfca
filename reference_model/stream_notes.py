"""Notes of the time on the streams of a GPU: behind every operator, by a kernel of its own.

A note is one thread that writes the GPU's clock, so that parts and operators of several streams can
be told apart in a step that is replayed from a graph. It lengthens what it stands behind by a
microsecond or two. On a CPU the host's clock is read."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reference_model.calls import describe_call
from reference_model.measure import pairs_text
from reference_model.operators import NAMESPACE
from reference_model.pair_order import COMMUNICATION, COMPUTE, Part

UNHINDERED = "transfers"
"""Stream of transfers that wait for nothing but one another."""
_NANO = 1e-9
"""The clock counts nanoseconds."""


def write_time(times: Tensor, place: int) -> None:
    """Write the time in ns to times[place], int64, when the current stream has come here."""
    if times.device.type == "cuda":
        from reference_model.kernels import triton_peer

        triton_peer.note_time(times, place)
    else:
        times[place] = time.perf_counter_ns()


class Note(NamedTuple):
    """A moment in a stream: a part begins, or an operator is over."""

    stream: str
    part: int
    operator: tuple[str, str, str, str, str] | None
    """Name, phase, kind, sizes and type; None where a part begins."""


class Notes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the time behind every operator that is issued inside it."""

    def __init__(self, device: torch.device, room: int = 1 << 16) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.times = torch.zeros(room, dtype=torch.int64, device=device)
        self.notes: list[Note] = []
        self.part = (0, COMPUTE)

    def begin(self, number: int, part: Part) -> None:
        """A part begins."""
        self.stream_begins(number, part.stream)

    def stream_begins(self, number: int, stream: str) -> None:
        """What is noted from here on belongs to a part on a stream."""
        self.part = (number, stream)
        self.note(None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == NAMESPACE:
            o = describe_call(func, args, kwargs or {}, result)
            self.note((o.name, o.phase, o.kind, pairs_text(o.sizes), o.dtype))
        return result

    def note(self, operator: tuple[str, str, str, str, str] | None) -> None:
        """An operator is over; None: a part begins."""
        number, stream = self.part
        place = len(self.notes)
        self.notes.append(Note(stream, number, operator))
        write_time(self.times, place)


def idle_seconds(notes: Sequence[Note], times: Sequence[int]) -> float:
    """Time of the compute stream between the end of a part and the begin of the next, and what the
    other stream still needs when it is through."""
    own = [(n, t) for n, t in zip(notes, times, strict=True) if n.stream == COMPUTE]
    begins = [at for at, (note, _) in enumerate(own) if note.operator is None]
    gaps = [own[at][1] - own[at - 1][1] if at else own[0][1] - min(times) for at in begins]
    return (sum(gaps) + max(times) - own[-1][1]) * _NANO


def operator_seconds(notes: Sequence[Note], times: Sequence[int]) -> list[tuple[Note, int, float]]:
    """Each operator, when it ends, and the time since the note before it in its stream and part."""
    last: dict[str, int] = {}
    found = []
    for note, at in zip(notes, times, strict=True):
        if note.operator is not None:
            found.append((note, at, (at - last[note.stream]) * _NANO))
        last[note.stream] = at
    return found


def means(
    notes: Sequence[Note], times: Sequence[Sequence[int]], *, while_both: bool = False
) -> dict[tuple[str, str, str], tuple[float, str, str, str]]:
    """Mean seconds over layers and replays, kind, sizes and type by (stream, name, phase).

    Means, because a pair takes the sum of its operators: one that the other stream slows in two of
    five layers has a median without any of it.

    while_both: only what ends while compute and unhindered transfers both run counts, and of
    transfers only the unhindered ones: those of the pair beside them move nothing."""
    seconds: dict[tuple[str, str, str], list[float]] = {}
    described: dict[tuple[str, str, str], tuple[str, str, str]] = {}
    moving = {
        note.operator[:2] for note in notes
        if note.stream == UNHINDERED and note.operator is not None
    }  # fmt: skip
    for taken in times:
        until = math.inf
        if while_both:
            until = min(
                max(at for n, at in zip(notes, taken, strict=True) if n.stream == stream)
                for stream in (COMPUTE, UNHINDERED)
            )
        for note, at, took in operator_seconds(notes, taken):
            assert note.operator is not None
            name, phase, *what = note.operator
            still = note.stream == COMMUNICATION and (name, phase) in moving
            if still or at > until:
                continue
            key = (COMMUNICATION if note.stream == UNHINDERED else note.stream, name, phase)
            seconds.setdefault(key, []).append(took)
            described[key] = (what[0], what[1], what[2])
    return {key: (statistics.fmean(found), *described[key]) for key, found in seconds.items()}
