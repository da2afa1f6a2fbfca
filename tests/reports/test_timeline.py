"""The Perfetto trace read back: names, nesting, durations."""

import json
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest

from reports.perfetto import write_trace
from reports.tables import RunTables
from reports.timeline import trace_events

Event = dict[str, Any]


@pytest.fixture(scope="module")
def events(tables: RunTables, tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    path: Path = tmp_path_factory.mktemp("trace") / "perfetto.json"
    write_trace(trace_events(tables), path)
    loaded: list[Event] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return loaded


def _tracks(events: list[Event]) -> list[list[Event]]:
    slices = [event for event in events if event["ph"] == "X"]
    by_track = sorted(slices, key=lambda event: (event["pid"], event["tid"]))
    return [list(rows) for _, rows in groupby(by_track, key=lambda e: (e["pid"], e["tid"]))]


def test_processes_are_the_ranks_and_the_distinct_chunks(
    events: list[Event], tables: RunTables
) -> None:
    names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert names[:2] == ["pipeline rank 0 (stages 0, 3)", "pipeline rank 1 (stages 1, 2)"]
    assert names[4:] == [f"chunk {tables.pair} (as in the published profile)"]
    threads = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    assert threads == ["actions"] * 4 + ["compute", "communication"]
    named = {e["pid"] for e in events if e["name"] == "process_name"}
    assert {e["pid"] for e in events} == named


def test_actions_of_a_rank_follow_each_other_in_microseconds(
    events: list[Event], tables: RunTables
) -> None:
    for rank, track in enumerate(_tracks(events)[:4]):
        own = tables.actions[tables.actions["rank"] == rank]
        assert [e["name"] for e in track] == own["label"].tolist()
        assert [e["ts"] for e in track] == pytest.approx((own["start_s"] * 1e6).tolist())
        total = (own["end_s"] - own["start_s"]).sum() * 1e6
        assert sum(e["dur"] for e in track) == pytest.approx(total)
        for before, after in pairwise(track):
            assert after["ts"] >= before["ts"] + before["dur"] - 1e-6


def test_operators_nest_in_their_block_and_fill_it(events: list[Event]) -> None:
    for track in _tracks(events)[4:]:
        outer = [event for event in track if "provenance" not in event["args"]]
        inner = [event for event in track if "provenance" in event["args"]]
        assert track[: len(outer)] == outer, "a block comes before its operators"
        for before, after in pairwise(inner):
            assert after["ts"] >= before["ts"] + before["dur"] - 1e-6
        inside = 0
        for block in outer:
            end = block["ts"] + block["dur"]
            own = [e for e in inner if block["ts"] - 1e-6 <= e["ts"] < end - 1e-6]
            assert own
            assert max(e["ts"] + e["dur"] for e in own) <= end + 1e-6
            inside += len(own)
        assert inside == len(inner)
