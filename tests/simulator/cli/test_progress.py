"""What a command says of how far it has come, by a clock of the test's own."""

import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
from command_line import started, without_progress

from simulator.cli import progress as module
from simulator.cli.options import Stopped
from simulator.cli.progress import Shown, duration, progress
from simulator.execution.progress import HowFar


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def shown_at(seconds, what="simulating", *, total=None, unit=""):
    """What is shown of work that began at 0 s, and the clock that now says `seconds`."""
    clock = Clock()
    shown = Shown(what, total=total, unit=unit, clock=clock)
    clock.now = seconds
    return shown, clock


def test_points_that_are_counted_have_a_share_a_rate_and_time_left():
    shown, _ = shown_at(10.0, total=20, unit="points")
    for _ in range(5):
        shown.advance()
    # 5 points in 10 s are 2 s each, and 15 are left.
    assert shown.line() == "simulating: 25%, 30 s left, 5 of 20 points, 2 s per point"


def test_points_of_an_earlier_run_count_but_say_nothing_of_the_rate():
    shown, _ = shown_at(10.0, total=20, unit="points")
    for number in range(15):
        shown.advance(taken_over=number < 10)
    assert shown.line() == "simulating: 75%, 10 s left, 15 of 20 points, 2 s per point"


def test_a_fleet_says_its_share_its_requests_and_its_simulated_time():
    shown, _ = shown_at(8.0, "simulating day6_service")
    shown.watch(HowFar(0.2, 2000, "requests", 754.0))
    assert shown.line() == (
        "simulating day6_service: 20%, 32 s left, 12 min 34 s simulated, 250 requests/s, "
        "2,000 requests"
    )


def test_on_a_narrow_terminal_the_last_parts_are_left_out_and_no_digit_is_cut():
    shown, _ = shown_at(8.0, "simulating day6_service")
    shown.watch(HowFar(0.2, 2000, "requests", 754.0))
    assert shown.line(80) == (
        "simulating day6_service: 20%, 32 s left, 12 min 34 s simulated, 250 requests/s"
    )
    assert shown.line(60) == "simulating day6_service: 20%, 32 s left"
    assert shown.line(10) == "simulating day6_service: 20%"


def test_a_fleet_of_unknown_length_says_how_long_it_has_run():
    shown, _ = shown_at(8.0)
    shown.watch(HowFar(None, 12, "requests", 60.0))
    assert shown.line() == "simulating: 8 s so far, 1 min simulated, 1.5 requests/s, 12 requests"


def test_in_the_first_second_nothing_is_said_of_rate_and_time():
    shown, _ = shown_at(0.5, total=20, unit="points")
    shown.advance()
    assert shown.line() == "simulating: 5%, 1 of 20 points"


def test_the_rate_is_that_of_the_part_that_is_still_to_come():
    shown, clock = shown_at(5.0, "simulating")
    shown.watch(HowFar(0.4, 400, "requests", 60.0))
    shown.watch(HowFar(None, 7, "passes", what="working out times of passes"))
    clock.now = 15.0
    assert shown.line() == "working out times of passes: 10 s so far, 7 passes"
    shown.watch(HowFar(0.5, 500, "requests", 75.0))
    clock.now = 17.0
    shown.watch(HowFar(0.6, 600, "requests", 90.0))
    # A tenth in 2 s, and four tenths are left.
    assert shown.line() == (
        "simulating: 60%, 8 s left, 1 min 30 s simulated, 50 requests/s, 600 requests"
    )


def test_a_run_that_starts_again_is_counted_from_its_own_beginning():
    shown, clock = shown_at(0.0)
    clock.now = 10.0
    shown.watch(HowFar(0.6, 600, "requests"))
    clock.now = 12.0
    shown.watch(HowFar(0.7, 100, "requests"))
    clock.now = 14.0
    shown.watch(HowFar(0.8, 500, "requests"))
    # 400 requests and a tenth of it in the two seconds since.
    assert shown.line() == "simulating: 80%, 4 s left, 200 requests/s, 500 requests"


def test_another_unit_and_another_part_begin_to_count_anew():
    shown, clock = shown_at(100.0, "calibrating")
    shown.watch(HowFar(0.5, 1, "files", what="reading a.csv"))
    assert shown.line() == "reading a.csv: 50%, 1 min 40 s left, 100 s per file, 1 file"
    shown.watch(HowFar(0.0, 0, "rows", what="fitting"))
    clock.now = 104.0
    shown.watch(HowFar(0.25, 400, "rows", what="fitting"))
    assert shown.line() == "fitting: 25%, 12 s left, 100 rows/s, 400 rows"
    shown.says("writing")
    clock.now = 105.0
    assert shown.line() == "writing: 1 s so far"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min"), (3600, "1 h"), (3605, "1 h"), (7830, "2 h 10 min"),
     (90061, "1 d 1 h")],
)  # fmt: skip
def test_a_duration_has_two_units_at_most(seconds, text):
    assert duration(seconds) == text


def test_work_keeps_its_count_under_another_name():
    shown, _ = shown_at(10.0, total=20, unit="layouts")
    for _ in range(5):
        shown.advance()
    shown.calls("simulating, best so far 17.7 s")
    assert shown.line() == (
        "simulating, best so far 17.7 s: 25%, 30 s left, 5 of 20 layouts, 2 s per layout"
    )


WORK = """
import time
from simulator.cli.progress import progress
with progress("simulating", total=2, unit="runs") as shown:
    shown.advance()
    time.sleep(0.3)
    with shown.aside():
        print("a row")
"""


def test_on_a_terminal_it_is_shown_as_it_goes_and_standard_output_stays_plain():
    mine, its = pty.openpty()
    work = subprocess.run(
        [sys.executable, "-c", WORK], stdout=subprocess.PIPE, stderr=its, check=True
    )
    os.close(its)
    said = os.read(mine, 10_000).decode()
    os.close(mine)
    assert work.stdout == b"a row\n"
    assert "simulating: 50%, 1 of 2 runs" in said


def test_into_a_pipe_a_line_comes_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    with progress("simulating", total=2, unit="runs") as shown:
        shown.advance()
        time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert set(lines) == {"progress: simulating: 50%, 1 of 2 runs"}
    assert len(lines) >= 2


def test_a_short_command_says_nothing_into_a_pipe(capsys):
    with progress("simulating"):
        pass
    assert capsys.readouterr() == ("", "")


def test_what_is_stopped_says_what_is_kept():
    with pytest.raises(Stopped) as stopped, progress("simulating", kept=lambda: "two rows"):
        raise Stopped(signal.SIGINT)
    assert stopped.value.kept == "two rows"


def test_a_stopped_run_says_how_to_go_on(tmp_path):
    run = started("run", "synthetic_1m", "--json", cwd=tmp_path)
    time.sleep(3)
    run.send_signal(signal.SIGINT)
    out, said = run.communicate(timeout=30)
    assert (out, run.returncode) == ("", 130)
    assert re.fullmatch(
        r"dsv3sim: stopped by Ctrl-C: nothing half-written is left; the same command runs again\n",
        without_progress(said),
    )
