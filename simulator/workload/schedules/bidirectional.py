"""DualPipe and DualPipeV: both directions of a pipeline meet in overlapped pairs.

Sources: DualPipe, DeepSeek-V3 Technical Report (arXiv 2412.19437), section 3.2.1, and DualPipeV,
both by phases as in the repository deepseek-ai/DualPipe.
"""

from collections import deque

from reference_model.pipeline_actions import (
    FORWARD_WORK,
    FULL_BACKWARD,
    INPUT_BACKWARD,
    WEIGHT_GRADIENT,
    Action,
    Chunk,
)
from simulator.workload.schedules.order import Schedule, require_size


def dualpipe(ranks: int, microbatches: int) -> Schedule:
    """DualPipe: both ends feed the pipeline; rank r holds stages r and ranks-1-r."""
    require_size(ranks >= 2 and ranks % 2 == 0, "dualpipe", "ranks", ranks, "even and at least 2")
    require_size(
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
    require_size(ranks >= 1, "dualpipev", "ranks", ranks, "at least 1")
    require_size(
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
        return Chunk(FORWARD_WORK, self._stages[direction], self._forward[direction] - 1)

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
