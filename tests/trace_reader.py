"""Read a file of trace events back, as Perfetto and chrome://tracing do, and say what is wrong."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections import defaultdict
from pathlib import Path
from typing import Any

Event = dict[str, Any]
_ROUNDING = 2e-3
"""Microseconds: two ends, each a whole nanosecond."""


class Trace:
    """The events of a file, sorted as a reader needs them."""

    def __init__(self, path: Path) -> None:
        self.events: list[Event] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        self.processes = self._names("process_name", lambda e: e["pid"])
        self.threads = self._names("thread_name", lambda e: (e["pid"], e["tid"]))
        self.slices: dict[tuple[int, int], list[Event]] = defaultdict(list)
        for event in self.of("X"):
            self.slices[event["pid"], event["tid"]].append(event)
        for track in self.slices.values():
            track.sort(key=lambda e: (e["ts"], -e["dur"]))

    def of(self, phase: str) -> list[Event]:
        """Events of one kind."""
        return [event for event in self.events if event["ph"] == phase]

    def _names(self, kind: str, key: Any) -> dict[Any, str]:
        return {key(e): e["args"]["name"] for e in self.of("M") if e["name"] == kind}

    def counters(self) -> set[str]:
        """Names of the counters."""
        return {event["name"] for event in self.of("C")}

    def faults(self) -> list[str]:
        """Everything that a reader would drop or show wrongly."""
        return [*self._unnamed(), *self._crossing(), *self._unbound(), *self._bad_counters(),
                *self._unpaired()]  # fmt: skip

    def _unnamed(self) -> list[str]:
        found = [
            f"process {event['pid']} has no name"
            for event in self.events
            if event["ph"] != "M" and event["pid"] not in self.processes
        ]
        found += [f"track {track} has no name" for track in self.slices
                  if track not in self.threads]  # fmt: skip
        found += [f"a slice without a name at {e['ts']}" for e in self.of("X") if not e["name"]]
        return found

    def _crossing(self) -> list[str]:
        """Slices of a track that end inside one another."""
        found = []
        for track, slices in self.slices.items():
            stack: list[float] = []
            for event in slices:
                if event["dur"] < 0:
                    found.append(f"{track}: {event['name']} ends before it starts")
                while stack and stack[-1] <= event["ts"] + _ROUNDING:
                    stack.pop()
                end = event["ts"] + event["dur"]
                if stack and end > stack[-1] + _ROUNDING:
                    found.append(f"{track}: {event['name']} at {event['ts']} crosses another")
                stack.append(end)
        return found

    def _unbound(self) -> list[str]:
        """Arrows that lack an end, run backwards, or begin or end where there is no slice."""
        ends: dict[Any, list[Event]] = defaultdict(list)
        for event in (*self.of("s"), *self.of("f")):
            ends[event["cat"], event["id"]].append(event)
        found = []
        for key, pair in ends.items():
            if [event["ph"] for event in pair] != ["s", "f"]:
                found.append(f"arrow {key} has ends {[event['ph'] for event in pair]}")
                continue
            start, end = pair
            if start["ts"] > end["ts"]:
                found.append(f"arrow {key} runs backwards")
            found += [
                f"arrow {key} has no slice at its {event['ph']}"
                for event in pair
                if not self._slice_at(event)
            ]
        return found

    def _slice_at(self, event: Event) -> bool:
        track = self.slices[event["pid"], event["tid"]]
        place = bisect_right(track, event["ts"] + _ROUNDING, key=lambda e: e["ts"])
        # One of few slices that began before holds it: an operator, its block.
        return any(
            slice_["ts"] - _ROUNDING <= event["ts"] <= slice_["ts"] + slice_["dur"] + _ROUNDING
            for slice_ in track[max(0, place - 50) : place]
        )

    def _bad_counters(self) -> list[str]:
        found = [
            f"{event['name']} is {value}"
            for event in self.of("C")
            for value in event["args"].values()
            if not math.isfinite(value)
        ]
        return found + [f"{name} says no unit" for name in self.counters() if "(" not in name]

    def _unpaired(self) -> list[str]:
        """Spans that begin and never end, or the other way round."""
        open_spans: dict[Any, list[str]] = defaultdict(list)
        found = []
        for event in (e for e in self.events if e["ph"] in "be"):
            stack = open_spans[event["cat"], event["id"]]
            if event["ph"] == "b":
                stack.append(event["name"])
            elif not stack or stack.pop() != event["name"]:
                found.append(f"span {event['id']}: {event['name']} ends and did not begin")
        return found + [f"span {key} never ends" for key, stack in open_spans.items() if stack]
