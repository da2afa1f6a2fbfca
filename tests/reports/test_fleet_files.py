"""Files of a fleet's requests."""

from types import SimpleNamespace

import numpy as np

from reports import fleet_files
from reports.fleet_files import fleet_events, instance_names, request_columns
from simulator.execution.fleet.log import IterationRow, RequestRow, RowBlock

INSTANCES = [SimpleNamespace(pool="prefill", kv_capacity_tokens=1000),
             SimpleNamespace(pool="prefill", kv_capacity_tokens=1000),
             SimpleNamespace(pool="decode", kv_capacity_tokens=4000)]  # fmt: skip


def rows(of, *given):
    return RowBlock(
        of._fields, np.array([[dict.fromkeys(of._fields, 0.0) | row][0][n] for row in given
                              for n in of._fields]).reshape(len(given), -1)
    )  # fmt: skip


REQUESTS = rows(
    RequestRow,
    {"request": 0, "arrival_s": 1.0, "prefill_start_s": 2.0, "first_token_s": 3.0,
     "decode_start_s": 3.5, "end_s": 5.5, "generated_tokens": 6, "prompt_tokens": 100,
     "cached_tokens": 64, "prefill_instance": 1, "decode_instance": 2},
    {"request": 1, "arrival_s": 1.5, "prefill_start_s": -1, "first_token_s": -1,
     "decode_start_s": -1, "end_s": 1.5, "outcome": 3, "prefill_instance": -1,
     "decode_instance": -1},
)  # fmt: skip
ITERATIONS = rows(
    IterationRow,
    {"instance": 1, "start_s": 2.0, "end_s": 3.0, "prefill_tokens": 36, "waiting": 4},
    {"instance": 2, "start_s": 3.5, "end_s": 5.5, "steps": 5, "batch": 1, "kv_tokens": 1000},
)
RECORDS = SimpleNamespace(all_requests=lambda: REQUESTS, kept_iterations=lambda: ITERATIONS)


def test_instances_are_numbered_within_their_pool():
    assert instance_names(INSTANCES) == ["prefill 0", "prefill 1", "decode 0"]


def test_a_request_is_a_row_with_its_latencies_and_instances():
    columns = request_columns(RECORDS, INSTANCES)
    first = {name: values[0] for name, values in columns.items()}
    assert (first["queueing_s"], first["ttft_s"], first["tpot_s"]) == (1.0, 2.0, 0.5)
    assert (first["cached_tokens"], first["outcome"]) == (64, "finished")
    assert (first["prefill_instance"], first["decode_instance"]) == ("prefill 1", "decode 0")
    refused = {name: values[1] for name, values in columns.items()}
    assert (refused["outcome"], refused["decode_instance"]) == ("rejected_queue_full", "none")
    assert np.isnan([refused["ttft_s"], refused["prefill_start_s"]]).all()


def test_an_arrow_leads_from_the_pass_of_a_request_to_its_first_decode_step():
    events = list(fleet_events(RECORDS, INSTANCES))
    start, end = (e for e in events if e["ph"] in "sf")
    assert (start["pid"], start["ts"]) == (2, 3e6 - 0.001)
    assert (end["pid"], end["ts"]) == (3, 3.5e6)
    slices = [event["name"] for event in events if event["ph"] == "X"]
    assert slices == ["prefill 36 tokens", "decode 1 requests x 5"]
    spans = [event["name"] for event in events if event["ph"] == "b"]
    assert spans == ["request 0: 100 + 0 tokens", "queue", "prefill", "wait for decode", "decode"]
    shares = [event["args"]["%"] for event in events if event["name"] == "KV cache (% in use)"]
    assert shares == [0.0, 25.0]


def test_of_many_requests_a_trace_shows_every_so_manieth_and_says_so(monkeypatch):
    monkeypatch.setattr(fleet_files, "MOST_REQUESTS", 3)
    first = REQUESTS.rows[0]
    many = RowBlock(RequestRow._fields, np.tile(first, (7, 1)))
    many.rows[:, RequestRow._fields.index("request")] = range(7)
    records = SimpleNamespace(all_requests=lambda: many, kept_iterations=lambda: ITERATIONS)
    events = list(fleet_events(records, INSTANCES))
    shown = {event["id"] for event in events if event["ph"] in "bsf"}
    assert shown == {0, 3, 6}
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert names[-1] == "requests, one of every 3"
