"""Which prompts a pass computes: budgets, chunks, balance of ranks, priorities."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.execution.fleet.live_request import LiveRequest
from simulator.execution.fleet.prefill_queue import (
    PrefillPass,
    PrefillQueue,
    _marginal_costs,
    _RankLoad,
)
from simulator.workload.requests import Request


class Times:
    """1 ms a pass, 10 us a token, 10 ns a token attended to."""

    kv_capacity_tokens = 10**9
    page_tokens = 1

    def decode_step_s(self, batch: float, mean_context: float) -> float:
        raise AssertionError("prefill only")

    def prefill_pass_s(self, tokens: float, context: float) -> float:
        return 0.001 + tokens * (10e-6 + context * 10e-9)


def make_queue(ranks: int = 1, tokens: int = 1000, requests: int | None = None) -> PrefillQueue:
    return PrefillQueue(Times(), ranks=ranks, tokens_per_pass=tokens, requests_per_pass=requests)


def live(prompt: int, index: int = 0, priority: int = 0) -> LiveRequest:
    return LiveRequest(Request(index, 0.0, prompt, 1, priority))


def form(queue: PrefillQueue, ranks: int = 1, cached: int = 0) -> PrefillPass | None:
    return queue.next_pass(
        decoding=[0] * ranks, admit=lambda live, rank: True, begin=lambda live: cached
    )


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks() -> None:
    queue = make_queue()
    queue.push(live(2500))
    passes = [form(queue) for _ in range(3)]
    assert [p.tokens for p in passes if p] == [1000, 1000, 500]
    assert [len(p.completed) for p in passes if p] == [0, 0, 1]
    # The second chunk attends to the first as well.
    assert passes[1] is not None
    assert passes[1].duration_s == pytest.approx(0.001 + 1000 * (10e-6 + 1500.5 * 10e-9))
    assert queue.empty


def test_a_prompt_counts_as_load_until_its_last_pass_has_ended() -> None:
    queue = make_queue()
    request = live(1000)
    request.cost_s = 0.5
    queue.push(request)
    only = form(queue)
    assert only is not None
    assert (queue.empty, queue.cost_s) == (True, 0.5)
    queue.settle(only)
    assert queue.cost_s == 0.0


def test_cached_tokens_are_attended_to_and_not_computed() -> None:
    queue = make_queue()
    queue.push(live(1000))
    only = form(queue, cached=600)
    assert only is not None
    assert only.tokens == 400
    assert only.duration_s == pytest.approx(0.001 + 400 * (10e-6 + (600 + 200.5) * 10e-9))


def test_more_urgent_prompts_come_first_and_then_earlier_ones() -> None:
    queue = make_queue(tokens=100)
    for index, priority in ((0, 1), (1, 1), (2, 0)):
        queue.push(live(100, index, priority))
    order = []
    for _ in range(3):
        only = form(queue)
        assert only is not None
        order += [request.request.index for request in only.completed]
    assert order == [2, 0, 1]


def test_a_pass_starts_no_more_prompts_than_asked() -> None:
    queue = make_queue(requests=2)
    for index in range(5):
        queue.push(live(10, index))
    only = form(queue)
    assert only is not None
    assert (only.tokens, len(only.completed)) == (20, 2)


def test_a_prompt_without_kv_cache_holds_up_those_behind_it() -> None:
    queue = make_queue()
    queue.push(live(900, 0))
    queue.push(live(10, 1))
    refused = queue.next_pass(
        decoding=[0], admit=lambda live, rank: live.context < 100, begin=lambda live: 0
    )
    assert refused is None
    assert len(queue) == 2


def test_decoding_requests_take_their_part_of_the_budget() -> None:
    queue = make_queue()
    queue.push(live(1000))
    only = queue.next_pass(decoding=[300], admit=lambda live, rank: True, begin=lambda live: 0)
    assert only is not None
    assert only.tokens == 700


def test_new_prompts_go_to_the_rank_with_least_work() -> None:
    queue = make_queue(ranks=3)
    prompts = [live(prompt, index) for index, prompt in enumerate((900, 500, 400, 300))]
    for request in prompts:
        queue.push(request)
    assert form(queue, ranks=3) is not None
    assert [request.rank for request in prompts] == [0, 1, 2, 2]


def test_a_pass_of_even_ranks_would_take_the_mean_of_their_tokens() -> None:
    """400 tokens that attend to 200.5 each and 200 to 100.5: 300 per rank to 167.2 on average."""
    queue = make_queue(ranks=2)
    for index, prompt in enumerate((400, 200)):
        queue.push(live(prompt, index))
    both = form(queue, ranks=2)
    assert both is not None
    assert both.duration_s == pytest.approx(0.001 + 400 * (10e-6 + 200.5 * 10e-9))
    attended = (400 * 200.5 + 200 * 100.5) / 600
    assert both.even_s == pytest.approx(0.001 + 300 * (10e-6 + attended * 10e-9))


def test_what_one_more_token_costs_is_told_between_half_a_pass_and_a_whole_one() -> None:
    """1 ns t^2 + 10 ns t c: from 500 tokens to 1,000 a token costs (1 - 0.25) ms / 500."""

    class Curved(Times):
        def prefill_pass_s(self, tokens: float, context: float) -> float:
            return 1e-9 * tokens**2 + 1e-8 * tokens * context

    assert _marginal_costs(Curved(), 1000) == pytest.approx((1.5e-6, 1e-8))


def test_a_rank_takes_of_a_long_prompt_what_it_computes_in_the_time_of_a_full_pass() -> None:
    """1,000 tokens take 1,000 x (10 us + 500.5 x 10 ns) = 15.005 ms; behind 1,000 computed ones,
    645 take 645 x (10 us + 1,323 x 10 ns) = 14.983 ms and one more would make it 15.009 ms."""
    queue = make_queue(ranks=2)
    queue.push(live(2000))
    passes = [form(queue, ranks=2) for _ in range(3)]
    assert [each.tokens for each in passes if each] == [1000, 645, 355]


def test_a_long_prompt_does_not_hold_up_the_other_ranks() -> None:
    """Far into a prompt every token costs more, so its rank takes fewer of them."""
    queue = make_queue(ranks=2)
    deep = live(200_000)
    queue.push(deep)
    longest = Times().prefill_pass_s(1000, 500.5)
    while deep.computed < deep.context:
        each = form(queue, ranks=2)
        assert each is not None
        assert each.duration_s <= longest * (1 + 1e-9)


def test_a_rank_has_done_what_its_tokens_and_those_before_them_take() -> None:
    """400 tokens behind 600 take 400 x (10 us + 800.5 x 10 ns)."""
    queue = make_queue(ranks=2)
    request, load = live(1000), _RankLoad(tokens_left=1000, slots=9)
    request.computed = 600
    assert queue._compute(request, load, queue._room(request, load))
    assert (load.tokens, load.tokens_left, load.slots) == (400, 600, 8)
    assert load.work_s == pytest.approx(400 * (10e-6 + 800.5 * 10e-9), rel=1e-9)


@pytest.mark.parametrize(
    ("computed", "work_s", "tokens", "room"),
    [
        # 414 tokens take 414 x (10 us + 207.5 x 10 ns) = 4.999 ms of 5 ms, one more 5.013 ms.
        (0, 10.005e-3, 600, 414),
        # A token behind ten million takes 100 ms: an idle rank takes one, another none.
        (10_000_000, 0.0, 0, 1),
        (10_000_000, 1e-3, 10, 0),
        (0, 20e-3, 999, 0),
    ],
)
def test_a_rank_has_room_for_what_it_computes_in_the_rest_of_a_full_pass(
    computed: int, work_s: float, tokens: int, room: int
) -> None:
    request = live(computed + 2000)
    request.computed = computed
    load = _RankLoad(tokens_left=1000, slots=9, tokens=tokens, work_s=work_s)
    assert make_queue(ranks=2)._room(request, load) == room


def test_a_prompt_that_the_idlest_rank_has_no_cache_for_goes_to_the_next_idle_one() -> None:
    queue = make_queue(ranks=3)
    prompts = [live(prompt, index) for index, prompt in enumerate((900, 500, 100))]
    for request in prompts:
        queue.push(request)
    asked: list[tuple[int, int]] = []

    def admit(request: LiveRequest, rank: int) -> bool:
        asked.append((request.context, rank))
        return (request.context, rank) != (100, 2)

    queue.next_pass(decoding=[0] * 3, admit=admit, begin=lambda live: 0)
    assert asked == [(900, 0), (500, 1), (100, 2), (100, 1)]
    assert [request.rank for request in prompts] == [0, 1, 1]


@settings(deadline=None, max_examples=60)
@given(prompts=st.lists(st.integers(1, 3000), min_size=1, max_size=30), ranks=st.integers(1, 4))
def test_every_token_is_computed_once_within_the_budgets(prompts: list[int], ranks: int) -> None:
    queue = make_queue(ranks=ranks)
    for index, prompt in enumerate(prompts):
        queue.push(live(prompt, index))
    done, computed = [], 0
    while (each := form(queue, ranks)) is not None:
        assert 0 < each.tokens <= 1000 * ranks
        computed += each.tokens
        done += each.completed
        queue.settle(each)
    assert computed == sum(prompts)
    assert sorted(request.request.index for request in done) == list(range(len(prompts)))
    assert queue.empty
    assert queue.cost_s == 0.0


@pytest.mark.parametrize(("tokens", "costs"), [(1, (1.0, 0.0)), (2, (2.0, 0.5)), (10, (2.0, 0.5))])
def test_a_further_token_costs_its_share_near_a_full_pass(
    tokens: int, costs: tuple[float, float]
) -> None:
    """Passes of 5 s, 2 s for each token and half a second for each that it attends to; a pass of
    one token has no share."""
    times = SimpleNamespace(prefill_pass_s=lambda tokens, each: 5 + 2 * tokens + tokens * each / 2)
    assert _marginal_costs(times, tokens) == costs
