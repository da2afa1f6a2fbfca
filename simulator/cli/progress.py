"""Say on standard error how far a command has come: on a terminal as it goes, else every 10 s.

A command that counts what it does:

    with progress("simulating", total=len(points), unit="points") as shown:
        for point in points:
            run(point)
            shown.advance()

One whose simulation tells how far it has come: `simulate(scenario, watch=shown.watch)`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hardware_profiles.units import Seconds, unit_factor
from simulator.cli.options import Stopped
from simulator.execution.progress import HowFar

if TYPE_CHECKING:
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

EVERY_S: Seconds = 10.0
"""Between two lines where standard error is no terminal."""

PREFIX = "progress: "
"""What such a line begins with: it comes with time, not with what is worked out."""

SURE_S: Seconds = 1.0
"""Before that nothing is said of what is left."""


class Shown:
    """What a command says of how far it has come."""

    def __init__(
        self, what: str, *, total: int | None, unit: str, clock: Callable[[], Seconds]
    ) -> None:
        self._clock = clock
        self._live: Live | None = None
        self.says(what, total=total, unit=unit)

    def says(self, what: str, *, total: int | None = None, unit: str = "") -> None:
        """Begin another part of the work.

        Args:
            what: what is being done, such as "simulating day6_service".
            total: things to do, where they are counted.
            unit: what they are called, in the plural.
        """
        self._task = self._what = what
        self._total, self._unit = total, unit
        self._count = self._taken_over = 0
        self._share: float | None = None
        self._share_before = 0.0
        self._simulated_s: Seconds | None = None
        self._began_s = self._clock()

    def calls(self, what: str) -> None:
        """Give the present part of the work another name, such as one with the best so far."""
        self._task = self._what = what

    def advance(self, *, taken_over: bool = False) -> None:
        """Count one more thing as done; one that an earlier run did tells nothing of the rate."""
        self._count += 1
        self._taken_over += taken_over

    def watch(self, progress: HowFar) -> None:
        """Show how far a simulation says that it has come; another unit, or a count that starts
        again, begins another part, whose rate is that of what is still to come."""
        if self._unit and (progress.unit != self._unit or progress.count < self._count):
            self._taken_over, self._share_before = progress.count, progress.share or 0.0
            self._began_s = self._clock()
        self._what = progress.what or self._task
        self._share, self._count, self._unit = progress.share, progress.count, progress.unit
        self._simulated_s = progress.simulated_s

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Room for lines on standard output while a terminal shows progress."""
        if self._live is None:
            yield
            return
        self._live.stop()
        yield
        sys.stdout.flush()
        self._live.start()

    def line(self, columns: int | None = None) -> str:
        """All of it in one line: "simulating: 25%, 6 s left, 5 of 20 points, 2.5 points/s".

        Args:
            columns: what does not fit is left out from the end.
        """
        parts = self._parts()
        while len(parts) > 1 and columns is not None and len(_joined(self._what, parts)) > columns:
            parts.pop()
        return _joined(self._what, parts)

    def _parts(self) -> list[str]:
        """What is known of the present part of the work, what matters most first."""
        passed = self._clock() - self._began_s
        own, share = self._count - self._taken_over, self._share
        left: Seconds | None = None
        if self._total:
            share = self._count / self._total
            left = passed * (self._total - self._count) / own if own else None
        elif share is not None and share > self._share_before:
            left = passed * (1.0 - share) / (share - self._share_before)
        parts = [] if share is None else [f"{share:.0%}"]
        if passed >= SURE_S:
            parts.append(f"{duration(passed)} so far" if left is None else f"{duration(left)} left")
        if self._total:
            parts.append(f"{self._count:,} of {self._total:,} {self._unit}")
        if self._simulated_s is not None:
            parts.append(f"{duration(self._simulated_s)} simulated")
        if passed >= SURE_S and own:
            parts.append(_rate(own / passed, self._unit))
        if self._count and not self._total:
            unit = self._unit if self._count > 1 else _one(self._unit)
            parts.append(f"{self._count:,} {unit}")
        return parts

    def begin(self, live: Live) -> None:
        """Show it on a terminal from now on."""
        self._live = live
        live.start()


@contextmanager
def progress(
    what: str,
    *,
    total: int | None = None,
    unit: str = "",
    kept: Callable[[], str] | None = None,
) -> Iterator[Shown]:
    """Show on standard error how far the work inside has come.

    Args:
        what, total, unit: see `Shown.says`.
        kept: says, where the work is stopped, what of it is kept and how to go on.
    """
    shown = Shown(what, total=total, unit=unit, clock=time.monotonic)
    over = threading.Event()
    try:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live
            from rich.spinner import Spinner

            console = Console(stderr=True)
            spinner = Spinner("dots")
            live = Live(
                get_renderable=lambda: _beside(spinner, shown, console.width),
                console=console,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=True,
            )
            shown.begin(live)
            try:
                yield shown
            finally:
                live.stop()
        else:
            lines = threading.Thread(target=_say_now_and_then, args=(shown, over), daemon=True)
            lines.start()
            yield shown
    except Stopped as stop:
        if kept is not None:
            stop.kept = kept()
        raise
    finally:
        over.set()


def _say_now_and_then(shown: Shown, over: threading.Event) -> None:
    while not over.wait(EVERY_S):
        print(f"{PREFIX}{shown.line()}", file=sys.stderr, flush=True)


def _beside(spinner: Spinner, shown: Shown, columns: int) -> Text:
    from rich.text import Text

    sign = f"{spinner.render(time.monotonic())} "
    # Names come from users: a bracket in one is no markup.
    line = shown.line(columns - len(sign))
    return Text(sign + line, no_wrap=True, overflow="ellipsis")


def _joined(what: str, parts: Sequence[str]) -> str:
    return f"{what}: {', '.join(parts)}" if parts else what


def duration(seconds: Seconds) -> str:
    """A time as people say it: "42 s", "3 min 5 s", "2 h 10 min", "4 d 3 h"."""
    rest = round(seconds)
    parts: list[str] = []
    for name in ("d", "h", "min", "s"):
        count, rest = divmod(rest, round(unit_factor(name, "time")))
        if count:
            parts.append(f"{count} {name}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0 s"


def _rate(per_second: float, unit: str) -> str:
    if per_second < 1:
        return f"{1 / per_second:.3g} s per {_one(unit)}"
    return f"{per_second:,.0f} {unit}/s" if per_second >= 100 else f"{per_second:.3g} {unit}/s"


def _one(unit: str) -> str:
    """One of what is counted: "pass" of "passes"."""
    return unit.removesuffix("es") if unit.endswith("sses") else unit.removesuffix("s")
