"""Kill commands with SIGKILL at random times: nothing that was there is lost, and all goes on.

    python tests/kills.py [--seed 0] [--count 200] [--seconds 3600]

`run`, `sweep`, `calibrate` and both kinds of `plan` take turns. Each is killed at a random time of
its life, half of them while it writes, and after each kill what the user had is looked at: files
beside it are the same, a directory is the former one or the new one, no row of a sweep or a plan
that was kept is gone, a calibration agrees with its table. Now and then the command runs to its
end, after which no draft is left. All are forked of one process that has imported everything, so
that a kill costs no start-up.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pandas as pd  # noqa: E402, F401
import PIL.ImageDraw  # noqa: E402, F401
from small_plans import PLAN_SERVING, PLAN_TRAINING  # noqa: E402

from hardware_profiles.schema import load_calibration  # noqa: E402
from hardware_profiles.tables import load_measurements  # noqa: E402
from reports import (  # noqa: E402
    calibration_report,  # noqa: F401
    fabric,  # noqa: F401
    serving_plan_page,  # noqa: F401
    training_plan,  # noqa: F401
)
from reports.run_directory import MANIFEST_FILE, read_metrics  # noqa: E402
from reports.sweep import ROWS_FILE  # noqa: E402
from simulator.analysis.sweep import Point, read_rows  # noqa: E402
from simulator.cli.app import main as command_line  # noqa: E402

TRACEBACK = 99
"""Exit code of a command that ends in one."""
COMMANDS = ("run", "sweep", "calibrate", "training", "serving")
WHOLE_EVERY = 10
"""Every tenth command of a kind ends by itself."""
ROWS = "".join(f"{64 * n},7168,2112,{8 + 0.05 * n:.2f},0\n" for n in range(1, 41))
TABLES = (f"m,k,n,latency_us,mfu\n{ROWS}", f"m,k,n,latency_us,mfu\n{ROWS.replace('.', '.3')}")
"""Two tables of GEMMs, calibrated in turns, so that files of two calibrations can be told apart."""
ANEW = 4
"""Plans of so many turns are one plan, of one directory, interrupted and gone on with."""


def started(arguments: list[str], folder: Path) -> int:
    """The process of a command, forked of this one; what it says lies beside the folder."""
    child = os.fork()
    if child == 0:
        code = TRACEBACK
        try:
            os.setsid()
            os.chdir(folder)
            said = os.open(said_of(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, 1)
            os.dup2(said, 2)
            sys.argv = ["dsv3sim", *arguments]
            command_line()
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            # Nothing of the process that it is forked of is to be tidied up here.
            sys.stdout.flush()
            os._exit(code)
    return child


def said_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.said")


def ended(child: int) -> int:
    """Exit code of a process, negative the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Folder:
    """What a user has, and what was last known of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.turn = 0
        self.place = ""
        """Directory of the command of this turn."""
        self.rows: dict[str, dict[str, Point]] = {}
        """{directory: its rows as last seen}"""
        self.own = {"thesis.tex": "years of work", "a.csv": TABLES[0], "b.csv": TABLES[1]}
        for name, text in self.own.items():
            (path / name).write_text(text)
        self.calibrations: dict[str, str] = {}
        """{text of the table: text of its calibration}, of calibrations that ended."""

    def arguments(self, command: str) -> list[str]:
        """The command of this turn; each turn of a kind writes other contents to one place."""
        self.turn += 1
        plan = self.turn // (ANEW * len(COMMANDS))
        self.place = f"{command}_{plan}" if command in ("training", "serving") else command
        match command:
            case "run":
                return ["run", "all_to_all_64", "--set", f"seed={self.turn}", "--out", self.place]
            case "sweep":
                first = self.turn // (len(COMMANDS) + 1) * 4
                seeds = range(first, first + 12)
                # A finished sweep replaces the rows of other points.
                self.rows[self.place] = {
                    key: row for key, row in self.rows.get(self.place, {}).items()
                    if row.settings["seed"] in seeds
                }  # fmt: skip
                points = ",".join(map(str, seeds))
                return ["sweep", "all_to_all_64", "--vary", f"seed={points}", "--out", self.place]
            case "training":
                return [*PLAN_TRAINING, "--simulate", "4", "--out", self.place]
            case "serving":
                return [*PLAN_SERVING, "--out", self.place]
            case _:
                table = "ab"[self.turn // len(COMMANDS) % 2]
                return ["calibrate", f"{table}.csv", "--gpu", "h800_sxm", "--out", "mine.yaml",
                        "--report", self.place]  # fmt: skip

    def check(self, command: str) -> list[str]:
        """What is lost after a kill, in words."""
        lost = [
            f"{name} changed" for name, text in self.own.items()
            if (self.path / name).read_text() != text
        ]  # fmt: skip
        for directory in self.path.glob("[!.]*/"):
            missing = [
                file for file in (directory / MANIFEST_FILE).read_text().splitlines()
                if not (directory / file).exists()
            ]  # fmt: skip
            lost += [f"{directory.name}/{file} is missing" for file in missing]
            read_metrics(directory)
        directory, kept = self.path / self.place, self.path / f".{self.place}.{ROWS_FILE}"
        found = read_rows(directory / ROWS_FILE) | read_rows(kept)
        # Rows of a service's plan are done with once its answer is in its place.
        if command != "serving" or kept.exists() or not directory.exists():
            known = self.rows.get(self.place, {})
            lost += [f"row {row.settings}" for key, row in known.items() if key not in found]
        self.rows[self.place] = found
        if command == "calibrate" and (self.path / "mine.yaml").exists():
            profile = load_calibration(str(self.path / "mine.yaml"))
            (table,) = profile.measurements
            load_measurements(Path(table))
            # Named from its own folder; a draft of the table while the files take their places.
            text = (self.path / "mine.yaml").read_text().replace(Path(table).name, "TABLE")
            rows = Path(table).read_text()
            if text != self.calibrations.setdefault(rows, text):
                lost.append("the calibration is not of its table")
        return lost

    def existed(self) -> set[str]:
        return {path.name for path in self.path.iterdir() if not path.name.startswith(".")}

    def drafts(self, command: str) -> set[str]:
        """Hidden files of the places that a command writes to."""
        places = (".mine.", f".{self.place}.") if command == "calibrate" else f".{self.place}."
        return {path.name for path in self.path.iterdir() if path.name.startswith(places)}


def kill_commands(
    seed: int, count: int, seconds: float, say: Callable[[str], None] = print
) -> dict[str, int]:
    """Kill commands until `count` are killed or the time is over; counts of kills and losses."""
    rng = random.Random(seed)
    counts = dict.fromkeys((*COMMANDS, "ended", "lost"), 0)
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "user"
        own.mkdir()
        mine = Folder(own)
        life: dict[str, float] = {}
        for command in COMMANDS:
            begun = time.monotonic()
            assert ended(started(mine.arguments(command), mine.path)) == 0, command
            life[command] = time.monotonic() - begun
            assert mine.check(command) == []
        tries = 0
        while sum(counts[c] for c in COMMANDS) < count and time.monotonic() < until:
            command = COMMANDS[tries % len(COMMANDS)]
            tries += 1
            before = mine.existed()
            child = started(mine.arguments(command), mine.path)
            whole = tries // len(COMMANDS) % WHOLE_EVERY == WHOLE_EVERY - 1
            if not whole:
                # Most of what can be lost is at stake while results are written, at the end.
                time.sleep(life[command] * rng.choice((rng.uniform(0, 1), rng.uniform(0.6, 1.05))))
                os.killpg(child, signal.SIGKILL) if os.getpgid(child) == child else os.kill(
                    child, signal.SIGKILL
                )
            code = ended(child)
            lost = mine.check(command)
            lost += [f"{name} is gone" for name in before - mine.existed()]
            if whole:
                lost += [f"draft {name} is left" for name in mine.drafts(command)]
            if code not in ((0,) if whole else (0, -signal.SIGKILL)):
                lost.append(f"ended with {code}: {said_of(mine.path).read_text()[-2000:]}")
            counts[command if code == -signal.SIGKILL else "ended"] += 1
            counts["lost"] += len(lost)
            for text in lost:
                say(f"try {tries}, {command}: {text}")
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=3600)
    options = parser.parse_args()
    counts = kill_commands(options.seed, options.count, options.seconds)
    print(json.dumps(counts))
    return counts["lost"] > 0


if __name__ == "__main__":
    sys.exit(main())
