"""A request between its arrival and its end."""

from simulator.execution.fleet.live_request import NEVER, LiveRequest
from simulator.execution.fleet.log import Outcome, RequestRow
from simulator.workload.requests import Request


def live(generated: int) -> LiveRequest:
    request = Request(index=7, arrival_s=3.0, prompt_tokens=100, output_tokens=20, priority=1)
    return LiveRequest(request, generated=generated)


def test_the_last_tokens_own_entry_comes_with_the_next_step():
    request = live(5)
    assert (request.context, request.kv_tokens, request.remaining) == (105, 104, 15)


def test_more_urgent_requests_sort_first_and_then_earlier_ones():
    assert live(0).order == (1, 7)


def test_the_log_keeps_what_never_came_as_minus_one():
    row = RequestRow(*live(0).row(9.0, Outcome.UNFINISHED))
    assert (row.request, row.arrival_s, row.end_s, row.outcome) == (7, 3.0, 9.0, Outcome.UNFINISHED)
    assert row.first_token_s == row.prefill_start_s == NEVER == -1.0
