"""Schedules whose backward is split, so that weight gradients fill the bubbles.

Source: Qi et al. 2023, Zero Bubble Pipeline Parallelism (arXiv 2401.10241), whose ZB-H1 is ZB1P.
"""

from collections.abc import Iterable

from simulator.workload.schedules.order import (
    FORWARD,
    INPUT_BACKWARD,
    WEIGHT_GRADIENT,
    Action,
    Chunk,
    Schedule,
    require_size,
)


def zb1p(ranks: int, microbatches: int) -> Schedule:
    """ZB1P, the ZB-H1 order: 1F1B whose backward is split, so that W fills the gaps.

    Rank r defers r weight gradients: its activations then number `ranks`, as on rank 0 of 1F1B.
    """
    require_size(ranks >= 1, "zb1p", "ranks", ranks, "at least 1")
    require_size(
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
