"""A ledger of predictions, written before what they are about is measured.

A file of JSON lines that is only ever added to. A line holds

    about          what is predicted, in words that name one measurement
    quantity       what the number is, such as "step time"
    predicted      the expected value; seconds, or the unit of the quantity
    interval_80    its low and high end
    digest         of the run: scenario, the files that it names, code and shipped data; the same
                   digest gives the same prediction again
    date           on which it was written
    truth_known    whether the author had seen what was to be measured, or something like it
    note           what somebody who reads the number has to know
    ideal          the same with equal ranks, where there is such a number
    scenario       digest of the resolved scenario
    program        digest of code and shipped data
    priors         digest of the settings of skew (docs/priors.md)

The last four stand in lines since they were added. Measured values never enter the file; `judge`
sets them beside it. `dsv3sim validate --write-ledger LEDGER` adds what the simulator says of every
shipped scenario and shows no published figure; `--whole --predict LEDGER` adds the whole steps of a
lease that is still to come, and `--whole --ledger LEDGER` holds the lines against steps that were
measured (whole_runs.py).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from sys import float_info
from typing import Any

from hardware_profiles.whole_files import read_text, write_whole
from simulator.analysis.published import metric_at
from simulator.analysis.run_key import program_digest, run_key
from simulator.scenario.files import Scenario, write_resolved
from simulator.scenario.inputs import SETTINGS


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """One prediction."""

    about: str
    quantity: str
    predicted: float
    interval_80: tuple[float, float]
    digest: str
    date: str
    """YYYY-MM-DD."""
    truth_known: bool
    note: str = ""
    ideal: float | None = None
    scenario: str = ""
    program: str = ""
    priors: str = ""

    def error(self, measured: float) -> float:
        """Relative to the measured value."""
        return self.predicted / measured - 1

    def inside(self, measured: float) -> bool:
        """Whether the measured value lies in the 80% interval."""
        low, high = self.interval_80
        return low <= measured <= high


def read_ledger(path: Path) -> list[LedgerLine]:
    """All predictions of a file, oldest first.

    Raises ValueError naming file and line where one is no prediction."""
    found = []
    for number, text in enumerate(read_text(path, where=str(path)).splitlines(), start=1):
        try:
            found.append(_line(json.loads(text)))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: line {number} is no prediction: {error}") from None
    return found


def check_ledger(path: Path) -> None:
    """Raise ValueError where predictions cannot be added to a file, before they are made."""
    if not path.parent.is_dir():
        raise ValueError(f"{path}: cannot be written: no such directory: {path.parent}")
    if os.path.lexists(path):  # a link in a circle does not exist, and stays as it is
        read_ledger(path)


def _line(values: Any) -> LedgerLine:
    if not isinstance(values, dict):
        raise ValueError(f"{values!r} is no object with fields")
    known = {field.name: str(field.type) for field in fields(LedgerLine)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"field {unknown[0]!r} is unknown; allowed: {', '.join(sorted(known))}")
    missing = sorted(NEEDED - set(values))
    if missing:
        raise ValueError(f"field {missing[0]!r} is missing")
    for name, value in values.items():
        if not VALUES[known[name]](value):
            raise ValueError(f"field {name!r}: {value!r}; allowed: {known[name]}")
    low, high = values["interval_80"]
    if not low <= values["predicted"] <= high:
        raise ValueError(f"{values['predicted']} is not within {low} and {high}")
    return LedgerLine(**{**values, "interval_80": (low, high)})


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= float_info.max


NEEDED = {field.name for field in fields(LedgerLine) if field.default is MISSING}
VALUES: Mapping[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "float": _is_number,
    "float | None": lambda value: value is None or _is_number(value),
    "tuple[float, float]": lambda value: (
        isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
    ),
}
"""{type of a field: whether a value read from JSON is of it}"""


def append_to_ledger(path: Path, lines: Iterable[LedgerLine]) -> None:
    """Add predictions at the end of a file, all or none; what stands there stays as it is.

    Raises ValueError where what stands there is no ledger, or the file cannot be written."""
    check_ledger(path)
    former = read_text(path, where=str(path)) if path.exists() else ""
    if former and not former.endswith("\n"):
        former += "\n"
    text = "".join(json.dumps(asdict(line), ensure_ascii=False) + "\n" for line in lines)
    if text:
        write_whole(path, former + text)


def scenario_lines(
    scenario: Scenario, metrics: Mapping[str, Any], *, date: str, known: bool = False
) -> list[LedgerLine]:
    """What a run says of every quantity that has an interval.

    A scenario with published figures counts as known in all of its quantities: they follow from
    one another. Changed, it is another job, of which they say nothing.

    Args:
        metrics: of its run, with intervals.
        date: YYYY-MM-DD.
        known: whether the author had seen the truth, though the scenario names none of it.
    """
    ideal = metrics.get("ideal", {})
    values = {
        path: metric_at(metrics, path) or metric_at(metrics, f"{path}.mean")
        for path in metrics["interval_80"]
    }
    return [
        LedgerLine(
            about=scenario.name,
            quantity=path,
            predicted=value,
            interval_80=(low, high),
            digest=run_key(scenario),
            date=date,
            truth_known=known or (bool(scenario.file.published) and not scenario.changes),
            ideal=ideal.get(path, value),
            scenario=_short(write_resolved(scenario)),
            program=program_digest()[:16],
            priors=_short(SETTINGS.read_text(encoding="utf-8")),
        )
        for path, (low, high) in metrics["interval_80"].items()
        if (value := values[path]) is not None
    ]


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def judge(
    lines: Iterable[LedgerLine], measured: Mapping[str, float]
) -> list[tuple[LedgerLine, float]]:
    """The predictions whose measurement is there, with it, in the ledger's order.

    Args:
        measured: {what a prediction is about: its measured value}
    """
    return [(line, measured[line.about]) for line in lines if line.about in measured]
