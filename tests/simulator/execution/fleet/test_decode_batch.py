"""The decode batch's counts against a batch that is stepped one token at a time."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.execution.fleet.decode_batch import DecodeBatch
from simulator.execution.fleet.live_request import LiveRequest
from simulator.workload.requests import Request


def live(prompt: int, output: int, rank: int = 0, index: int = 0) -> LiveRequest:
    """A request that has its first token."""
    request = LiveRequest(Request(index, 0.0, prompt, output), generated=1)
    request.rank = rank
    return request


joins = st.lists(
    st.tuples(st.integers(1, 50), st.integers(2, 40), st.integers(0, 2), st.integers(0, 30)),
    min_size=1,
    max_size=20,
)


@settings(deadline=None)
@given(joins=joins, per_step=st.sampled_from([1.0, 1.85, 2.0]))
def test_leavers_and_kv_cache_equal_those_of_single_steps(
    joins: list[tuple[int, int, int, int]], per_step: float
) -> None:
    batch = DecodeBatch(3, per_step, slack=0)
    present: dict[LiveRequest, float] = {}
    for step in range(80):
        for index, (prompt, output, rank, at) in enumerate(joins):
            if at == step:
                request = live(prompt, output, rank, index)
                batch.join(request)
                present[request] = 0.0
        for rank in range(3):
            expected = sum(
                request.kv_tokens + gained
                for request, gained in present.items()
                if request.rank == rank
            )
            assert batch.kv_tokens(rank) == pytest.approx(expected, abs=1e-9)
        if not batch.total:
            continue
        present = {request: gained + per_step for request, gained in present.items()}
        done = {r for r, gained in present.items() if gained >= r.remaining - 1e-9}
        assert (batch.steps_to_next_leave() == 1) == bool(done)
        assert set(batch.advance(1)) == done
        present = {r: gained for r, gained in present.items() if r not in done}
    assert batch.total == len(present)


def test_a_request_taken_out_keeps_its_whole_tokens() -> None:
    batch = DecodeBatch(1, 1.85, slack=0)
    request, other = live(10, 100), live(10, 100, index=1)
    batch.join(other)
    batch.advance(2)
    batch.join(request)
    batch.advance(3)
    assert batch.remove(request) == 5
    assert batch.kv_tokens(0) == pytest.approx(10 + 5 * 1.85)
    # Three more to come after the first: the last of them only when it is complete.
    short = live(10, 4, index=2)
    batch.join(short)
    batch.step += 2
    assert batch.received(short) == 2


def test_room_is_that_of_the_tightest_rank() -> None:
    batch = DecodeBatch(2, 1.0, slack=0)
    batch.join(live(50, 100, rank=0))
    batch.join(live(10, 100, rank=1))
    batch.join(live(10, 100, rank=1, index=1))
    assert batch.steps_of_room(100, [20, 0]) == 30
    assert DecodeBatch(2, 1.0, slack=0).steps_of_room(100, [0, 0]) == math.inf


def test_the_heaviest_rank_depends_on_what_requests_and_tokens_cost() -> None:
    batch = DecodeBatch(2, 1.0, slack=0)
    batch.join(live(100, 10, rank=0))
    batch.join(live(10, 10, rank=1))
    batch.join(live(10, 10, rank=1, index=1))
    assert batch.heaviest_rank(1.0, 0.0) == 1
    assert batch.heaviest_rank(1.0, 1.0) == 0


def test_two_requests_that_grow_outweigh_one_that_began_larger() -> None:
    """100 + 50 tokens against 20 + 2 x 50 after 50 steps, 200 against 220 after 100."""
    batch = DecodeBatch(2, 1.0, slack=0)
    batch.join(live(100, 1000, rank=0))
    for index in (0, 1):
        batch.join(live(10, 1000, rank=1, index=index))
    batch.advance(50)
    assert batch.heaviest_rank(0.0, 1.0) == 0
    batch.advance(50)
    assert batch.heaviest_rank(0.0, 1.0) == 1


def test_the_latest_of_the_least_urgent_is_preempted_first() -> None:
    batch = DecodeBatch(1, 1.0, slack=0)
    urgent = LiveRequest(Request(5, 0.0, 10, 10, priority=0), generated=1)
    patient = [LiveRequest(Request(n, 0.0, 10, 10, priority=1), generated=1) for n in (3, 1)]
    for request in (urgent, *patient):
        request.rank = 0
        batch.join(request)
    assert batch.last_joined(0) is patient[0]


def test_the_rest_of_every_last_page_is_held_and_takes_room() -> None:
    """Prompts of 50, and of twice 10; 2 tokens a step, 3 steps done, 7 tokens to a page's end."""
    batch = DecodeBatch(2, 2.0, slack=7)
    batch.join(live(50, 100, rank=0))
    batch.join(live(10, 100, rank=1))
    batch.join(live(10, 100, rank=1, index=1))
    batch.advance(3)
    assert [batch.kv_tokens(rank) for rank in (0, 1)] == [56, 32]
    assert [batch.held_tokens(rank) for rank in (0, 1)] == [63, 46]
    assert batch.total_kv_tokens == 56 + 32
    assert batch.total_held_tokens == 63 + 46
    # Rank 0 has 100 - 20 - 63 tokens left for 2 a step, rank 1 100 - 46 for 4.
    assert batch.steps_of_room(100, [20, 0]) == 17 / 2
    assert batch.steps_of_room(100, [0, 20]) == 34 / 4
