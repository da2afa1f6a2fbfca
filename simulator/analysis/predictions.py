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
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

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


def read_ledger(path: Path) -> list[LedgerLine]:
    """All predictions of a file, oldest first.

    Raises ValueError naming file and line where one is no prediction."""
    found = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found.append(_line(json.loads(text)))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: line {number} is no prediction: {error}") from None
    return found


def _line(values: dict[str, Any]) -> LedgerLine:
    known = {field.name for field in fields(LedgerLine)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"field {unknown[0]!r} is unknown; allowed: {', '.join(sorted(known))}")
    low, high = values["interval_80"]
    if not low <= values["predicted"] <= high:
        raise ValueError(f"{values['predicted']} is not within {low} and {high}")
    return LedgerLine(**{**values, "interval_80": (low, high)})


def append_to_ledger(path: Path, lines: Iterable[LedgerLine]) -> None:
    """Add predictions at the end of a file; what stands there stays as it is."""
    text = "".join(json.dumps(asdict(line), ensure_ascii=False) + "\n" for line in lines)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def scenario_lines(
    scenario: Scenario, metrics: Mapping[str, Any], *, date: str, known: bool = False
) -> list[LedgerLine]:
    """What a run says of every quantity that has an interval.

    A scenario with published figures counts as known in all of its quantities: they follow from
    one another.

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
            truth_known=known or bool(scenario.file.published),
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


@dataclass(frozen=True, slots=True)
class Judged:
    """A prediction beside what was measured after it."""

    line: LedgerLine
    measured: float

    @property
    def error(self) -> float:
        """Relative to the measured value."""
        return self.line.predicted / self.measured - 1

    @property
    def inside(self) -> bool:
        """Whether the measured value lies in the 80 % interval."""
        low, high = self.line.interval_80
        return low <= self.measured <= high


def judge(lines: Iterable[LedgerLine], measured: Mapping[str, float]) -> list[Judged]:
    """The predictions whose measurement is there, in the ledger's order.

    Args:
        measured: {what a prediction is about: its measured value}
    """
    return [Judged(line, measured[line.about]) for line in lines if line.about in measured]


def is_only_added_to(before: str, now: str) -> bool:
    """Whether the text of a ledger now is what it was, with nothing but lines after it."""
    return now.startswith(before) and (not before or before.endswith("\n"))
