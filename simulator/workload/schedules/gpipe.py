"""GPipe: every forward of a step, then every backward.

Source: Huang et al. 2019 (arXiv 1811.06965); backwards in the order of the micro-batches, as
torch.distributed.pipelining has them.
"""

from reference_model.pipeline_actions import FORWARD_WORK, FULL_BACKWARD, Action, Chunk
from simulator.workload.schedules.order import Schedule, require_size


def gpipe(ranks: int, microbatches: int) -> Schedule:
    """GPipe: all forwards, then all backwards; activations of every micro-batch are held."""
    require_size(ranks >= 1, "gpipe", "ranks", ranks, "at least 1")
    require_size(microbatches >= 1, "gpipe", "microbatches", microbatches, "at least 1")
    return Schedule(
        name="gpipe",
        microbatches=microbatches,
        placement=(tuple(range(ranks)),),
        actions=tuple(
            tuple(
                Action(Chunk(work, rank, microbatch))
                for work in (FORWARD_WORK, FULL_BACKWARD)
                for microbatch in range(microbatches)
            )
            for rank in range(ranks)
        ),
    )
