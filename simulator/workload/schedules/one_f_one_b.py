"""1F1B and what has come of it: interleaved stages, and pairs that overlap all-to-all.

Sources: 1F1B, Narayanan et al. 2021 (arXiv 2104.04473, also the interleaved form); micro-batch
groups of the interleaved form, NVIDIA/Megatron-LM, `microbatch_group_size_per_vp_stage`; 1F1B in
pairs, the same repository's `--overlap-moe-expert-parallel-comm` (combined 1F1B: one more forward
ahead, then each forward under the backward of an earlier micro-batch; Megatron-LM has it for
interleaved stages and for one rank, here the same rule holds for any number of stages).
"""

from collections.abc import Iterable

from reference_model.pipeline_actions import FORWARD_WORK, FULL_BACKWARD, Action, Chunk
from simulator.workload.schedules.order import Schedule, require_size


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
    for field, value in (
        ("ranks", ranks),
        ("virtual_stages", virtual_stages),
        ("microbatches", microbatches),
    ):
        require_size(value >= 1, name, field, value, "at least 1")
    group = group_size(ranks, microbatches, virtual_stages)
    total = microbatches * virtual_stages

    def chunks(work: str, rank: int, turns: range) -> list[Chunk]:
        return chunks_in_groups(work, rank, turns, ranks, microbatches, group)

    def order(rank: int) -> Iterable[Action]:
        forwards = [Action(c) for c in chunks(FORWARD_WORK, rank, range(virtual_stages))]
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


def group_size(ranks: int, microbatches: int, virtual_stages: int) -> int:
    """Micro-batches that pass one stage of a rank before the rank's next stage begins.

    The smallest number that Megatron-LM accepts: no group, the last one included, is smaller than
    the ranks, or the first rank would wait for the group to come round again. Fewer micro-batches
    than ranks are one group, which waits, as in torch.distributed.pipelining; and so are all where
    a rank has one stage.
    """
    if virtual_stages == 1:
        return microbatches
    sizes = range(ranks, microbatches + 1)
    return next((size for size in sizes if not 0 < microbatches % size < ranks), microbatches)


def chunks_in_groups(
    work: str, rank: int, turns: range, ranks: int, microbatches: int, group: int
) -> list[Chunk]:
    """One work of a rank in order: a group of micro-batches passes one stage, then the next.

    Args:
        turns: the rank's stages in the order in which a group passes them, by number on the rank.
    """
    return [
        Chunk(work, turn * ranks + rank, microbatch)
        for first in range(0, microbatches, group)
        for turn in turns
        for microbatch in range(first, min(first + group, microbatches))
    ]
