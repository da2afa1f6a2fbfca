"""Pipeline schedules as data: the order of every rank's actions.

A schedule holds order only. When an action starts, and how long a rank waits before it, is what
the simulation finds out (simulator.execution.pipeline). Works, after the zero-bubble papers:

    F    forward of one micro-batch through one stage
    B    its full backward: input and weight gradients
    I    its backward for inputs only; the weight gradient is deferred
    W    a weight gradient that was deferred
    F&B  a forward and a full backward chunk of two micro-batches, overlapped operator by operator

Text form of a chunk: stage, work, micro-batch ("0F12"); of a pair: "0F12&7B3".

Sources: 1F1B, Narayanan et al. 2021 (arXiv 2104.04473, also the interleaved form); micro-batch
groups of the interleaved form, NVIDIA/Megatron-LM, `microbatch_group_size_per_vp_stage`; 1F1B in
pairs, the same repository's `--overlap-moe-expert-parallel-comm` (combined 1F1B: one more forward
ahead, then each forward under the backward of an earlier micro-batch; Megatron-LM has it for
interleaved stages and for one rank, here the same rule holds for any number of stages); ZB1P, the
ZB-H1 order of Qi et al. 2023 (arXiv 2401.10241); DualPipe, DeepSeek-V3 Technical Report (arXiv
2412.19437) section 3.2.1, and DualPipeV, both by phases as in the repository deepseek-ai/DualPipe.

A schedule is added as one function of (ranks, microbatches) and a line in SCHEDULES; its bubble
formula, if it has one, is a line in BUBBLE_FORMULAS. One whose ranks hold any number of stages
takes `virtual_stages` as well and is named in WITH_VIRTUAL_STAGES. The tests run every one through
schedule_checks.validate.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FORWARD = "F"
FULL_BACKWARD = "B"
INPUT_BACKWARD = "I"
WEIGHT_GRADIENT = "W"
OVERLAPPED = "F&B"
WORKS = (FORWARD, OVERLAPPED, FULL_BACKWARD, INPUT_BACKWARD, WEIGHT_GRADIENT)


class Chunk(NamedTuple):
    """One work of one stage on one micro-batch."""

    work: str
    """F, B, I or W."""
    stage: int
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.work}{self.microbatch}"


class Action(NamedTuple):
    """What a rank does without interruption: one chunk, or a forward and a backward overlapped."""

    chunk: Chunk
    """The only chunk, or the forward chunk of a pair."""
    overlapped: Chunk | None = None
    """The full backward chunk that runs inside the same action."""

    @property
    def work(self) -> str:
        """One of WORKS."""
        return self.chunk.work if self.overlapped is None else OVERLAPPED

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        return (self.chunk,) if self.overlapped is None else (self.chunk, self.overlapped)

    def __str__(self) -> str:
        return str(self.chunk) if self.overlapped is None else f"{self.chunk}&{self.overlapped}"


_CHUNK_TEXT = re.compile(r"(\d+)([FBIW])(\d+)")


def parse_action(text: str) -> Action:
    """Read an action back from its text form: parse_action(str(action)) == action.

    Raises ValueError where the text is not of that form.
    """
    matches = [_CHUNK_TEXT.fullmatch(part) for part in text.split("&")]
    chunks = [Chunk(m[2], int(m[1]), int(m[3])) for m in matches if m is not None]
    if len(chunks) != len(matches) or len(chunks) > 2:
        raise ValueError(
            f"action {text!r}: must be stage, one of F, B, I, W, and micro-batch, such as 0F12, "
            f"or a pair such as 0F12&7B3"
        )
    return Action(*chunks)


@dataclass(frozen=True)
class Schedule:
    """The order of actions of every rank of one pipeline."""

    name: str
    microbatches: int
    """Micro-batches of one step, over all directions. With two directions the first half of the
    micro-batches takes direction 0 and the second half direction 1."""
    placement: tuple[tuple[int, ...], ...]
    """[direction, stage]: the rank that runs this stage for micro-batches of this direction."""
    actions: tuple[tuple[Action, ...], ...]
    """[rank]: actions in order."""

    @property
    def ranks(self) -> int:
        return len(self.actions)

    @property
    def stages(self) -> int:
        return len(self.placement[0])

    @property
    def directions(self) -> int:
        return len(self.placement)

    @cached_property
    def needs(self) -> list[list[tuple["Need", ...]]]:
        """`dependencies` of the schedule, worked out once."""
        return dependencies(self)

    def direction_of(self, microbatch: int) -> int:
        """Direction in which a micro-batch passes the pipeline."""
        return microbatch * self.directions // self.microbatches

    def rank_of(self, chunk: Chunk) -> int:
        """Rank on which a chunk runs."""
        return self.placement[self.direction_of(chunk.microbatch)][chunk.stage]

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """Stages whose parameters a rank holds, ascending."""
        return tuple(
            stage for stage in range(self.stages) if any(p[stage] == rank for p in self.placement)
        )


def one_f_one_b(ranks: int, microbatches: int) -> Schedule:
    """1F1B: each rank alternates forward and full backward once the pipeline is full."""
    return _alternating("1f1b", ranks, microbatches, virtual_stages=1, pairs=False)


def one_f_one_b_overlapped(ranks: int, microbatches: int) -> Schedule:
    """1F1B in pairs: the forward of one micro-batch under the backward of an earlier one."""
    return _alternating("1f1b_overlapped", ranks, microbatches, virtual_stages=1, pairs=True)


def interleaved(ranks: int, microbatches: int, *, virtual_stages: int = 2) -> Schedule:
    """Interleaved 1F1B: rank r holds stages r, r + ranks, ..., as many as `virtual_stages`."""
    return _alternating(
        "interleaved", ranks, microbatches, virtual_stages=virtual_stages, pairs=False
    )


def interleaved_overlapped(ranks: int, microbatches: int, *, virtual_stages: int = 2) -> Schedule:
    """Interleaved 1F1B in pairs: a forward under the backward of an earlier micro-batch."""
    return _alternating(
        "interleaved_overlapped", ranks, microbatches, virtual_stages=virtual_stages, pairs=True
    )


def _alternating(
    name: str, ranks: int, microbatches: int, *, virtual_stages: int, pairs: bool
) -> Schedule:
    """The 1F1B family: some forwards ahead, then one forward and one backward in turn.

    Micro-batches advance in groups: a group passes one stage of the rank, then the next. Backwards
    take the same groups with the stages in reverse.

    pairs: whether a forward and the backward that follows it form one action.
    """
    _require(ranks >= 1, name, "ranks", ranks, "at least 1")
    _require(virtual_stages >= 1, name, "virtual_stages", virtual_stages, "at least 1")
    if virtual_stages == 1:
        _require(microbatches >= 1, name, "microbatches", microbatches, "at least 1")
        group = microbatches
    else:
        _require(
            microbatches >= ranks, name, "microbatches", microbatches, f"at least the {ranks} ranks"
        )
        group = _group_size(ranks, microbatches)
    groups = [
        range(first, min(first + group, microbatches)) for first in range(0, microbatches, group)
    ]
    total = microbatches * virtual_stages

    def chunks(work: str, rank: int, turns: Sequence[int]) -> list[Chunk]:
        return [
            Chunk(work, turn * ranks + rank, microbatch)
            for members in groups
            for turn in turns
            for microbatch in members
        ]

    def order(rank: int) -> Iterable[Action]:
        forwards = [Action(c) for c in chunks(FORWARD, rank, range(virtual_stages))]
        backwards = [Action(c) for c in chunks(FULL_BACKWARD, rank, range(virtual_stages)[::-1])]
        # With one stage a rank is pp-1-r forwards ahead. With more, a round trip takes twice as
        # long from rank to rank and the first stages of the group come before its last. A round
        # trip takes as long in pairs, since what a pair makes leaves at its end; and there a rank
        # is one more forward ahead, or a pair's backward would wait for its own forward.
        round_trip = 2 if pairs or virtual_stages > 1 else 1
        lead = round_trip * (ranks - 1 - rank) + (virtual_stages - 1) * group + pairs
        lead = min(lead, total)
        yield from forwards[:lead]
        for forward, backward in zip(forwards[lead:], backwards, strict=False):
            if pairs:
                yield Action(forward.chunk, backward.chunk)
            else:
                yield from (forward, backward)
        yield from backwards[total - lead :]

    return Schedule(
        name=name,
        microbatches=microbatches,
        placement=(tuple(stage % ranks for stage in range(ranks * virtual_stages)),),
        actions=tuple(tuple(order(rank)) for rank in range(ranks)),
    )


def _group_size(ranks: int, microbatches: int) -> int:
    """Micro-batches that pass one stage of a rank before the rank's next stage begins.

    The smallest number that Megatron-LM accepts: no group, the last one included, is smaller than
    the ranks, or the first rank would wait for the group to come round again.
    """
    return next(
        size for size in range(ranks, microbatches + 1) if not 0 < microbatches % size < ranks
    )


def zb1p(ranks: int, microbatches: int) -> Schedule:
    """ZB1P, the ZB-H1 order: 1F1B whose backward is split, so that W fills the gaps.

    Rank r defers r weight gradients: its activations then number `ranks`, as on rank 0 of 1F1B.
    """
    _require(ranks >= 1, "zb1p", "ranks", ranks, "at least 1")
    _require(
        microbatches >= ranks, "zb1p", "microbatches", microbatches, f"at least the {ranks} ranks"
    )

    def order(rank: int) -> Iterable[Chunk]:
        lead = ranks - 1 - rank
        for forward in range(lead):
            yield Chunk(FORWARD, rank, forward)
        for backward in range(microbatches):
            forward = lead + backward
            if forward < microbatches:
                yield Chunk(FORWARD, rank, forward)
            yield Chunk(INPUT_BACKWARD, rank, backward)
            if backward >= rank:
                yield Chunk(WEIGHT_GRADIENT, rank, backward - rank)
        for weight in range(microbatches - rank, microbatches):
            yield Chunk(WEIGHT_GRADIENT, rank, weight)

    return Schedule(
        name="zb1p",
        microbatches=microbatches,
        placement=(tuple(range(ranks)),),
        actions=tuple(tuple(Action(c) for c in order(rank)) for rank in range(ranks)),
    )


def dualpipe(ranks: int, microbatches: int) -> Schedule:
    """DualPipe: both ends feed the pipeline; rank r holds stages r and ranks-1-r."""
    _require(ranks >= 2 and ranks % 2 == 0, "dualpipe", "ranks", ranks, "even and at least 2")
    _require(
        microbatches % 2 == 0 and microbatches >= 2 * ranks,
        "dualpipe",
        "microbatches",
        microbatches,
        f"even and at least 2 x {ranks} ranks = {2 * ranks}",
    )
    half = ranks // 2
    per_direction = microbatches // 2

    def order(rank: int) -> tuple[Action, ...]:
        # On a rank of the second half the directions exchange their roles.
        near, far = (0, 1) if rank < half else (1, 0)
        stage = {0: rank, 1: ranks - 1 - rank}
        return _bidirectional_order(
            position=min(rank, ranks - 1 - rank),
            half=half,
            per_direction=per_direction,
            stages=(stage[near], stage[far]),
            first_microbatches=(near * per_direction, far * per_direction),
        )

    return Schedule(
        name="dualpipe",
        microbatches=microbatches,
        placement=(tuple(range(ranks)), tuple(reversed(range(ranks)))),
        actions=tuple(order(rank) for rank in range(ranks)),
    )


def dualpipev(ranks: int, microbatches: int) -> Schedule:
    """DualPipeV: DualPipe cut in half, its stages folded into a V.

    Each stage is cut in two. Half-stages 0 .. ranks-1 go down the ranks and ranks .. 2 ranks-1 come
    back up, so that rank r holds half-stages r and 2 ranks-1-r and one copy of the parameters.
    """
    _require(ranks >= 1, "dualpipev", "ranks", ranks, "at least 1")
    _require(
        microbatches >= 2 * ranks,
        "dualpipev",
        "microbatches",
        microbatches,
        f"at least 2 x {ranks} ranks = {2 * ranks}",
    )
    return Schedule(
        name="dualpipev",
        microbatches=microbatches,
        placement=((*range(ranks), *reversed(range(ranks))),),
        actions=tuple(
            _bidirectional_order(
                position=rank,
                half=ranks,
                per_direction=microbatches,
                stages=(rank, 2 * ranks - 1 - rank),
                first_microbatches=(0, 0),
            )
            for rank in range(ranks)
        ),
    )


class _Cursor:
    """Next chunk of each work on one rank; the near direction is 0 and the far one is 1."""

    def __init__(self, stages: tuple[int, int], first_microbatches: tuple[int, int]) -> None:
        self._stages = stages
        self._forward = list(first_microbatches)
        self._backward = list(first_microbatches)
        self._deferred: deque[Chunk] = deque()

    def forward(self, direction: int) -> Chunk:
        self._forward[direction] += 1
        return Chunk(FORWARD, self._stages[direction], self._forward[direction] - 1)

    def backward(self, direction: int, *, inputs_only: bool) -> Chunk:
        self._backward[direction] += 1
        work = INPUT_BACKWARD if inputs_only else FULL_BACKWARD
        chunk = Chunk(work, self._stages[direction], self._backward[direction] - 1)
        if inputs_only:
            self._deferred.append(chunk._replace(work=WEIGHT_GRADIENT))
        return chunk

    def weight(self) -> Chunk:
        return self._deferred.popleft()


def _bidirectional_order(
    *,
    position: int,
    half: int,
    per_direction: int,
    stages: tuple[int, int],
    first_microbatches: tuple[int, int],
) -> tuple[Action, ...]:
    """The eight phases that DualPipe and DualPipeV share.

    position: distance from the end where the near direction enters, 0 .. half-1 (half-1 is the
    turning point). stages, first_microbatches: of the near and the far direction on this rank.
    """
    cursor = _Cursor(stages, first_microbatches)
    to_turn = half - 1 - position
    near, far = 0, 1
    actions: list[Action] = []

    def forward(direction: int) -> None:
        actions.append(Action(cursor.forward(direction)))

    def backward(direction: int, *, inputs_only: bool = False) -> None:
        actions.append(Action(cursor.backward(direction, inputs_only=inputs_only)))

    def weight() -> None:
        actions.append(Action(cursor.weight()))

    def pair(forward_direction: int, backward_direction: int) -> None:
        actions.append(
            Action(
                cursor.forward(forward_direction),
                cursor.backward(backward_direction, inputs_only=False),
            )
        )

    for _ in range(2 * to_turn):  # 1: fill
        forward(near)
    for _ in range(position + 1):  # 2: the other direction has arrived
        forward(near)
        forward(far)
    for _ in range(to_turn):  # 3: the first gradients come back; W fills the wait for the next F
        backward(far, inputs_only=True)
        weight()
        forward(far)
    for i in range(per_direction - 2 * half + position + 1):  # 4: steady state
        if i == 0 and to_turn == 0:
            # At the turning point the far gradient arrives late enough that overlapping this one
            # pair would only delay the forward.
            forward(near)
            backward(far)
        else:
            pair(near, far)
        pair(far, near)
    for _ in range(to_turn):  # 5: the near direction has no forward left
        backward(far)
        pair(far, near)
    # 6: drain; the second half of these 2 (position + 1) backwards puts its W off.
    for i in range(position + 1):
        backward(far, inputs_only=2 * i >= position + 1)
        backward(near, inputs_only=2 * i + 1 >= position + 1)
    for _ in range(to_turn):  # 7: W fills the wait for the last gradients
        weight()
        backward(near, inputs_only=True)
    for _ in range(position + 1):  # 8: what is left
        weight()
    return tuple(actions)


SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    "1f1b": one_f_one_b,
    "1f1b_overlapped": one_f_one_b_overlapped,
    "interleaved": interleaved,
    "interleaved_overlapped": interleaved_overlapped,
    "zb1p": zb1p,
    "dualpipe": dualpipe,
    "dualpipev": dualpipev,
}


WITH_VIRTUAL_STAGES = ("interleaved", "interleaved_overlapped")
"""Schedules whose ranks hold as many stages as asked for."""


def build_schedule(
    name: str, ranks: int, microbatches: int, *, virtual_stages: int | None
) -> Schedule:
    """The schedule of a known name; without `virtual_stages` with as many as it has by default.

    Raises ValueError where the schedule cannot have these sizes.
    """
    if virtual_stages is None:
        return SCHEDULES[name](ranks, microbatches)
    _require(
        name in WITH_VIRTUAL_STAGES,
        name,
        "virtual_stages",
        virtual_stages,
        f"left out; {' and '.join(WITH_VIRTUAL_STAGES)} take it",
    )
    return SCHEDULES[name](ranks, microbatches, virtual_stages=virtual_stages)


class IdealTimes(NamedTuple):
    """Duration of each work, the same on every rank. Seconds, or any one unit of time."""

    forward: float
    input_backward: float
    weight_gradient: float
    overlapped: float

    @property
    def full_backward(self) -> float:
        return self.input_backward + self.weight_gradient

    def of(self, action: Action) -> float:
        """Duration of one action."""
        match action.work:
            case "F":
                return self.forward
            case "B":
                return self.full_backward
            case "I":
                return self.input_backward
            case "W":
                return self.weight_gradient
            case _:
                return self.overlapped


def _one_f_one_b_bubble(ranks: int, times: IdealTimes) -> float:
    return (ranks - 1) * (times.forward + times.full_backward)


def _zb1p_bubble(ranks: int, times: IdealTimes) -> float:
    return (ranks - 1) * (times.forward + times.full_backward - 2 * times.weight_gradient)


def _bidirectional_bubble(stages: int, times: IdealTimes) -> float:
    return (stages / 2 - 1) * (times.overlapped + times.full_backward - 3 * times.weight_gradient)


BUBBLE_FORMULAS: Mapping[str, Callable[[int, IdealTimes], float]] = {
    "1f1b": _one_f_one_b_bubble,
    "1f1b_overlapped": _one_f_one_b_bubble,
    "interleaved": _one_f_one_b_bubble,
    "interleaved_overlapped": _one_f_one_b_bubble,
    "zb1p": _zb1p_bubble,
    "dualpipe": _bidirectional_bubble,
    "dualpipev": lambda ranks, times: _bidirectional_bubble(2 * ranks, times),
}
"""Largest bubble of a rank as a function of (ranks, times of one chunk), without transfer times.

Table 2 of arXiv 2412.19437 and the README of deepseek-ai/DualPipe; interleaved: section 2.2 of
arXiv 2104.04473. Where a rank holds v stages a chunk is one of them: with v stages in the place of
one the bubble of interleaved is that of 1F1B over v. 1F1B and interleaved are always exact, in
pairs where F&B is at least F and B and at most F + B (rank r, with 2 (ranks - 1 - r) pairs fewer
than the last, then waits that many times F + B - F&B less), ZB1P where W is no longer than F and I,
DualPipe where F = I = W and F&B = F + B.
"""


class Need(NamedTuple):
    """One thing an action waits for: the chunk (work, stage) inside an earlier action."""

    rank: int
    position: int
    """Position of the earlier action in the order of its rank."""
    work: str
    """F: activations. B: gradients, whether a B or an I makes them."""
    stage: int
    """Stage of the earlier chunk."""


def dependencies(schedule: Schedule) -> list[list[tuple[Need, ...]]]:
    """What each action waits for: [rank][index].

    F needs the F of the stage before, B and I their own F and the B or I of the stage after, W its
    I. Chunks that no rank performs are left out; schedule_checks.validate reports them.
    """
    where: dict[tuple[str, int, int], tuple[int, int]] = {}
    for rank, actions in enumerate(schedule.actions):
        for index, action in enumerate(actions):
            for work, stage, microbatch in action.chunks:
                made = FULL_BACKWARD if work == INPUT_BACKWARD else work
                where[made, stage, microbatch] = (rank, index)
    last = schedule.stages - 1

    def needs(chunk: Chunk) -> Iterable[Need]:
        work, stage, microbatch = chunk
        wanted: list[tuple[str, int]] = []
        if work == FORWARD:
            if stage > 0:
                wanted.append((FORWARD, stage - 1))
        elif work == WEIGHT_GRADIENT:
            wanted.append((FULL_BACKWARD, stage))
        else:
            wanted.append((FORWARD, stage))
            if stage < last:
                wanted.append((FULL_BACKWARD, stage + 1))
        for made, at in wanted:
            if (made, at, microbatch) in where:
                yield Need(*where[made, at, microbatch], made, at)

    return [
        [tuple(need for chunk in action.chunks for need in needs(chunk)) for action in actions]
        for actions in schedule.actions
    ]


@dataclass(frozen=True, slots=True)
class HeldActivations:
    """Activations that one rank holds during each of its actions, counted in stage chunks."""

    stages: tuple[int, ...]
    """Stages of the rank, ascending: the columns of the two arrays."""
    whole: NDArray[np.int64]
    """[action, stage]: micro-batches whose input gradient is still to come or just running."""
    deferred: NDArray[np.int64]
    """[action, stage]: micro-batches that only a deferred weight gradient still needs."""


def held_activations(schedule: Schedule, rank: int) -> HeldActivations:
    """Count what a rank holds during each action: an F fills a chunk, a B or a W empties it.

    After an I a chunk counts as deferred. The bytes of the two kinds differ by stage and model.
    """
    stages = schedule.stages_of(rank)
    column = {stage: i for i, stage in enumerate(stages)}
    actions = schedule.actions[rank]
    # Row k of a change takes effect with action k; what an action frees is free from k + 1 on.
    whole = np.zeros((len(actions) + 1, len(stages)), dtype=np.int64)
    deferred = np.zeros_like(whole)
    for index, action in enumerate(actions):
        for work, stage, _ in action.chunks:
            if work == FORWARD:
                whole[index, column[stage]] += 1
            elif work == WEIGHT_GRADIENT:
                deferred[index + 1, column[stage]] -= 1
            else:
                whole[index + 1, column[stage]] -= 1
                if work == INPUT_BACKWARD:
                    deferred[index + 1, column[stage]] += 1
    return HeldActivations(stages, whole.cumsum(axis=0)[:-1], deferred.cumsum(axis=0)[:-1])


def peak_in_flight(schedule: Schedule) -> tuple[int, ...]:
    """Most stage chunks whose activations a rank holds at once, whole or deferred; one per rank."""
    held = (held_activations(schedule, rank) for rank in range(schedule.ranks))
    return tuple(int((h.whole + h.deferred).sum(axis=1).max(initial=0)) for h in held)


def render_grid(schedule: Schedule) -> str:
    """One row per rank, one cell per action in order; the stages of the rank come first."""
    header, rows = _row_headers(schedule), schedule.actions
    width = max((len(str(action)) for row in rows for action in row), default=0)
    return "\n".join(
        f"{head} | {' '.join(str(action).ljust(width) for action in row).rstrip()}"
        for head, row in zip(header, rows, strict=True)
    )


def render_window(schedule: Schedule, marks: Mapping[int, int], *, reach: int) -> str:
    """The actions within `reach` of a marked one ({rank: index}), which is set in >>...<<.

    Ranks without a mark show the same columns as the first marked rank.
    """
    centre = next(iter(marks.values()), 0)
    lines = []
    for rank, (head, row) in enumerate(zip(_row_headers(schedule), schedule.actions, strict=True)):
        middle = min(marks.get(rank, centre), max(len(row) - 1, 0))
        first, end = max(middle - reach, 0), min(middle + reach + 1, len(row))
        cells = [
            f">>{row[i]}<<" if marks.get(rank) == i else str(row[i]) for i in range(first, end)
        ]
        before = f"({first} before) " if first else ""
        after = f" ({len(row) - end} after)" if end < len(row) else ""
        lines.append(f"{head} | {before}{' '.join(cells)}{after}")
    return "\n".join(lines)


def _row_headers(schedule: Schedule) -> list[str]:
    word = "half-stages" if schedule.name == "dualpipev" else "stages"
    held = [schedule.stages_of(rank) for rank in range(schedule.ranks)]
    texts = [
        f"rank {rank} ({word if len(stages) > 1 else 'stage'} "
        f"{', '.join(str(stage) for stage in _in_order_of_use(schedule, rank, stages))})"
        for rank, stages in enumerate(held)
    ]
    width = max(len(text) for text in texts)
    return [text.ljust(width) for text in texts]


def _in_order_of_use(schedule: Schedule, rank: int, stages: tuple[int, ...]) -> list[int]:
    """Stages of a rank, that of direction 0 first where there are two directions."""
    if schedule.directions == 1:
        return list(stages)
    return [placed.index(rank) for placed in schedule.placement]


def _require(condition: bool, schedule: str, field: str, value: int, allowed: str) -> None:
    if not condition:
        raise ValueError(f"schedule {schedule}: {field} = {value}, must be {allowed}")
