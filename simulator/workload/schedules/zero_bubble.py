"""Schedules whose backward is split, so that weight gradients fill the bubbles.

ZB-H1 and ZB-H2 are the handcrafted forms of Qi et al. 2023 (Zero Bubble Pipeline Parallelism, arXiv
2401.10241, section 2); DeepSeek's papers call the first ZB1P. With several stages on each rank
ZB-H1 is what torch.distributed.pipelining calls interleaved zero bubble. ZBV is section 6 of the
same paper, whose memory arXiv 2405.15362 explains. None of these bubbles is zero in a step that all
ranks begin and end together: the last rank begins late and ends late by design, and the paper lets
it, as its optimizer validates the gradient norm afterwards (`training.optimizer.post_validation`).
"""

from collections import Counter
from collections.abc import Iterable

from reference_model.pipeline_actions import (
    FORWARD_WORK,
    INPUT_BACKWARD,
    WEIGHT_GRADIENT,
    Action,
    Chunk,
)
from simulator.workload.schedules.one_f_one_b import chunks_in_groups, group_size
from simulator.workload.schedules.order import Schedule, require_size


def zb_h1(ranks: int, microbatches: int, *, virtual_stages: int = 1) -> Schedule:
    """ZB-H1, or ZB1P: 1F1B whose backward is split, so that W fills the gaps.

    Rank r defers r weight gradients: its activations then number `ranks`, as on rank 0 of 1F1B.
    """
    require_size(virtual_stages >= 1, "zb_h1", "virtual_stages", virtual_stages, "at least 1")
    least = 1 if virtual_stages == 1 else ranks
    allowed = "at least 1" if virtual_stages == 1 else f"at least the {ranks} ranks"
    require_size(ranks >= 1, "zb_h1", "ranks", ranks, "at least 1")
    require_size(microbatches >= least, "zb_h1", "microbatches", microbatches, allowed)
    return _deferring("zb_h1", ranks, microbatches, virtual_stages=virtual_stages, ahead=1)


def zb_h2(ranks: int, microbatches: int) -> Schedule:
    """ZB-H2: ZB-H1 with twice the forwards ahead, which fill the bubble before the first I.

    Rank r defers 2 r weight gradients; every rank holds the activations of 2 ranks - 1.
    """
    _require_full("zb_h2", ranks, microbatches)
    return _deferring("zb_h2", ranks, microbatches, virtual_stages=1, ahead=2)


def _deferring(
    name: str, ranks: int, microbatches: int, *, virtual_stages: int, ahead: int
) -> Schedule:
    """1F1B that runs each weight gradient some backwards late.

    Args:
        ahead: forwards that a rank is ahead of the next one, and weight gradients that it defers
            fewer.
    """
    group = group_size(ranks, microbatches, virtual_stages)

    def order(rank: int) -> Iterable[Chunk]:
        turns = range(virtual_stages)
        forwards = chunks_in_groups(FORWARD_WORK, rank, turns, ranks, microbatches, group)
        backwards = chunks_in_groups(INPUT_BACKWARD, rank, turns[::-1], ranks, microbatches, group)
        weights = [chunk._replace(work=WEIGHT_GRADIENT) for chunk in backwards]
        lead = min(ahead * (ranks - 1 - rank) + (virtual_stages - 1) * group, len(forwards))
        late = ahead * rank
        yield from forwards[:lead]
        for place, backward in enumerate(backwards):
            yield from forwards[lead + place : lead + place + 1]
            yield backward
            if place >= late:
                yield weights[place - late]
        yield from weights[max(len(weights) - late, 0) :]

    return Schedule(
        name=name,
        microbatches=microbatches,
        placement=(tuple(stage % ranks for stage in range(ranks * virtual_stages)),),
        actions=tuple(tuple(Action(c) for c in order(rank)) for rank in range(ranks)),
    )


def zbv(ranks: int, microbatches: int) -> Schedule:
    """ZBV: stages folded into a V, so that a zero bubble takes no more memory than 1F1B.

    Each stage is cut in two. Half-stages 0 .. ranks-1 go down the ranks and ranks .. 2 ranks-1 come
    back up, as in DualPipeV; every rank holds the activations of 2 ranks half-stages.
    """
    _require_full("zbv", ranks, microbatches)

    def order(rank: int) -> Iterable[Chunk]:
        down, up = rank, 2 * ranks - 1 - rank
        done: Counter[tuple[int, str]] = Counter()

        def each(stage: int, works: str) -> Iterable[Chunk]:
            """The next micro-batch of each of some works on a half-stage."""
            for work in works:
                yield Chunk(work, stage, done[stage, work])
                done[stage, work] += 1

        back = INPUT_BACKWARD + WEIGHT_GRADIENT
        for _ in range(2 * (ranks - rank) - 1):
            yield from each(down, FORWARD_WORK)
        for _ in range(rank):
            yield from each(up, FORWARD_WORK)
            yield from each(down, FORWARD_WORK)
        for _ in range(ranks - rank):
            yield from each(up, FORWARD_WORK + back)
        while done[up, FORWARD_WORK] < microbatches:
            if done[down, FORWARD_WORK] < microbatches:
                yield from each(down, FORWARD_WORK)
            yield from each(down, back)
            yield from each(up, FORWARD_WORK + back)
        for _ in range(rank):
            yield from each(down, INPUT_BACKWARD)
            yield from each(up, INPUT_BACKWARD)
        for _ in range(ranks - rank):
            yield from each(down, back)
        for stage in (up, down):
            while done[stage, WEIGHT_GRADIENT] < microbatches:
                yield from each(stage, WEIGHT_GRADIENT)

    return Schedule(
        name="zbv",
        microbatches=microbatches,
        placement=((*range(ranks), *reversed(range(ranks))),),
        actions=tuple(tuple(Action(c) for c in order(rank)) for rank in range(ranks)),
    )


def _require_full(name: str, ranks: int, microbatches: int) -> None:
    """Enough micro-batches to fill the pipeline on the way there and back."""
    require_size(ranks >= 1, name, "ranks", ranks, "at least 1")
    allowed = f"at least 2 x {ranks} ranks - 1 = {2 * ranks - 1}"
    require_size(microbatches >= 2 * ranks - 1, name, "microbatches", microbatches, allowed)
