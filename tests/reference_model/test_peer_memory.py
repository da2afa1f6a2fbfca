"""Two ranks in one process exchange tokens over memory that both reach."""

import pytest
import torch

from reference_model import peer_operators as peer_ops
from reference_model.expert_parallel import layout_of
from reference_model.peer_memory import PeerMemory, use_peer_memory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 2**16


@pytest.fixture
def memories():
    """The memory of two ranks, which no barrier keeps apart: each operator runs twice on both, and
    the second time everything has arrived."""
    pools = [torch.zeros(SIZE, dtype=torch.uint8, device=DEVICE) for _ in range(2)]

    def of_rank(rank):
        def view(shape, dtype, offset):
            size = torch.Size(shape).numel() * dtype.itemsize
            # A tensor of its own, as results of an operator have to be.
            storage = pools[rank][offset : offset + size]
            return torch.from_dlpack(storage).view(dtype).view(*shape)

        return PeerMemory(
            view=view, size=SIZE, rank=rank, programs=3, barrier=lambda: None,
            addresses=torch.tensor([pool.data_ptr() for pool in pools], device=DEVICE),
        )  # fmt: skip

    yield [of_rank(0), of_rank(1)]
    for name in ("dispatch_to_peers", "dispatch_cached_to_peers", "combine_from_peers",
                 "combine_backward_from_peers"):  # fmt: skip
        operator = getattr(peer_ops, name)
        operator.register_kernel(DEVICE, operator._init_fn)


def on_both(memories, call):
    """The results of call(rank) on each rank."""
    for _ in range(2):
        results = []
        for rank, memory in enumerate(memories):
            memory.rewind(0)
            use_peer_memory(memory, device=DEVICE)
            results.append(call(rank))
    return results


REACHED = (
    torch.tensor([[True, False], [True, True], [False, True]]),
    torch.tensor([[False, True], [True, True], [False, True]]),
)
"""[rank]: which ranks each of its three tokens goes to."""


def layouts():
    counts = [reached.sum(dim=0).tolist() for reached in REACHED]
    return [
        layout_of(reached.to(DEVICE), counts, counts, rank=rank)
        for rank, reached in enumerate(REACHED)
    ]


def test_the_layout_says_where_rows_land():
    first, second = layouts()
    assert (first.source.tolist(), second.source.tolist()) == ([0, 1, 1, 2], [1, 0, 1, 2])
    assert first.token_rows.tolist() == [[0, -1], [1, 2], [-1, 3]]
    assert (first.sent, first.received, first.first) == ([2, 2], [2, 1], [0, 0])
    assert (second.sent, second.received, second.first) == ([1, 3], [2, 3], [2, 2])
    assert (first.first_back, second.first_back) == ([0, 0], [2, 1])
    assert (first.expanded, second.expanded) == (3, 5)


def test_tokens_arrive_with_scales_choices_and_weights(memories):
    tokens = [torch.full((3, 32), 10.0 * rank) + torch.arange(3.0)[:, None] for rank in range(2)]
    choices = torch.tensor([[0, 1], [1, 5], [6, 7]], device=DEVICE)  # 4 experts a rank

    def dispatch(rank):
        layout = layouts()[rank]
        x = tokens[rank].to(DEVICE)
        return peer_ops.dispatch_to_peers(
            x.to(torch.float8_e4m3fn), x[:, :1] / 8, choices, x[:, :2] / 4, layout.source,
            sent=layout.sent, received=layout.received, first=layout.first,
            local_experts=4, site="",
        )  # fmt: skip

    (values, scales, first_choices, weights), (others, *_) = on_both(memories, dispatch)
    assert values.float()[:, 0].tolist() == [0.0, 1.0, 11.0]
    assert others.float()[:, 0].tolist() == [1.0, 2.0, 10.0, 11.0, 12.0]
    assert scales[:, 0].tolist() == [0.0, 0.125, 1.375]
    assert scales.stride() == (1, 3)
    assert first_choices.tolist() == [[0, 1], [1, 5], [1, 5]]
    assert weights[:, 1].tolist() == [0.0, 0.25, 2.75]


def test_what_returns_is_added_to_the_shared_experts_output(memories):
    """Each rank returns 1 x its number + 1 for every row: a token of both ranks gets 3."""

    def combine(rank):
        layout = layouts()[rank]
        rows = sum(layout.received)
        return peer_ops.combine_backward_from_peers(
            torch.full((rows, 32), rank + 1.0, dtype=torch.bfloat16, device=DEVICE),
            torch.full((3, 32), 0.5, dtype=torch.bfloat16, device=DEVICE),
            torch.full((rows, 2), rank + 1.0, device=DEVICE), layout.token_rows,
            sent=layout.received, received=layout.sent, first=layout.first_back, site="",
        )  # fmt: skip

    (total, factors), (others, _) = on_both(memories, combine)
    assert total[:, 31].tolist() == [1.5, 3.5, 2.5]
    assert factors[:, 1].tolist() == [1.0, 3.0, 2.0]
    assert others[:, 0].tolist() == [2.5, 3.5, 2.5]


def test_memory_that_is_too_small_says_what_is_needed(memories):
    memories[0].take(1, SIZE - 256, torch.uint8)
    with pytest.raises(ValueError, match="peer memory of 65536 bytes is too small: 65280 are taken,"
                                         " 512 more are needed"):  # fmt: skip
        memories[0].take(2, 64, torch.float32)
