"""A run directory appears whole or not at all, and replaces only an earlier run."""

import ctypes
import errno
import json
import signal
import subprocess
import sys

import pandas as pd
import pytest

from reports.run_directory import check_replaceable, read_metrics, write_run


def write(directory, *, value=1.0, write_report=lambda draft: None):
    write_run(
        directory,
        scenario="name: test\n",
        metrics={"step_time_s": value},
        tables={"events": pd.DataFrame({"start_s": [0.0]})},
        write_report=write_report,
    )


def test_a_run_directory_holds_scenario_metrics_events_and_report(tmp_path):
    write(tmp_path / "run", write_report=lambda draft: (draft / "report.html").write_text("x"))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "scenario.yaml",
        "metrics.json",
        "events.parquet",
        "report.html",
        ".dsv3sim-run",
    }
    assert read_metrics(tmp_path / "run") == {"step_time_s": 1.0}


def test_a_second_run_replaces_the_first(tmp_path):
    write(tmp_path / "run", value=1.0)
    write(tmp_path / "run", value=2.0)
    assert read_metrics(tmp_path / "run") == {"step_time_s": 2.0}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_failure_leaves_the_earlier_run_and_nothing_else(tmp_path):
    write(tmp_path / "run", value=1.0)

    def fail(draft):
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError):
        write(tmp_path / "run", value=2.0, write_report=fail)
    assert read_metrics(tmp_path / "run") == {"step_time_s": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_goes_into_an_empty_directory_that_is_there(tmp_path):
    (tmp_path / "run").mkdir()
    write(tmp_path / "run", value=3.0)
    assert read_metrics(tmp_path / "run") == {"step_time_s": 3.0}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_disk_that_is_full_is_one_line_and_leaves_the_earlier_run(tmp_path):
    write(tmp_path / "run", value=1.0)

    def fill(draft):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ValueError, match=r"run: cannot be written: No space left on device"):
        write(tmp_path / "run", value=2.0, write_report=fill)
    assert read_metrics(tmp_path / "run") == {"step_time_s": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


KILLED = """
import os, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
import pandas as pd
from reports.run_directory import write_run
write_run(Path({directory!r}), scenario="", metrics={{}}, tables={{}},
          write_report=lambda draft: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_the_draft_of_a_killed_run_is_removed_by_the_next_and_a_living_one_is_not(tmp_path):
    write(tmp_path / "run", value=1.0)
    program = KILLED.format(path=sys.path, directory=str(tmp_path / "run"))
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    assert read_metrics(tmp_path / "run") == {"step_time_s": 1.0}
    seen = []
    write(
        tmp_path / "run",
        value=2.0,
        write_report=lambda draft: seen.extend(path.name for path in tmp_path.iterdir()),
    )
    assert len(seen) == 2  # the earlier run and this one's own draft
    write(tmp_path / "run", write_report=lambda draft: write(tmp_path / "run", value=5.0))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_without_an_exchange_of_names_three_renames_do(tmp_path, monkeypatch):
    write(tmp_path / "run", value=1.0)
    monkeypatch.setattr(ctypes, "CDLL", lambda *names, **options: object())
    write(tmp_path / "run", value=2.0)
    assert read_metrics(tmp_path / "run") == {"step_time_s": 2.0}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_between_two_renames_loses_no_run(renames, tmp_path, monkeypatch):
    """Where names cannot be exchanged: the earlier run away, the draft into its place, the earlier
    run under the draft's name. What is killed then runs again."""
    write(tmp_path / "run", value=1.0)
    program = KILLED_BETWEEN.format(path=sys.path, directory=str(tmp_path / "run"), renames=renames)
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -signal.SIGKILL
    seen = []

    def write_report(draft):
        if (tmp_path / "run").exists():
            seen.append(read_metrics(tmp_path / "run"))

    write(tmp_path / "run", value=3.0, write_report=write_report)
    assert seen == [{"step_time_s": 2.0 if renames == 2 else 1.0}]
    assert read_metrics(tmp_path / "run") == {"step_time_s": 3.0}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


KILLED_BETWEEN = """
import ctypes, os, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
from reports.run_directory import write_run
ctypes.CDLL = lambda *names, **options: object()
rename, done = Path.rename, []
def counted(one, other):
    if len(done) == {renames}:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(other)
    return rename(one, other)
Path.rename = counted
write_run(Path({directory!r}), scenario="", metrics={{"step_time_s": 2.0}}, tables={{}},
          write_report=lambda draft: None)
"""


def test_a_directory_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is not a run directory"):
        write(tmp_path / "run")
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"


def test_a_path_where_no_directory_can_stand_is_refused_before_any_work(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    for path, named in (("loop", "loop"), ("file/run", "file"), ("file", "file")):
        with pytest.raises(ValueError, match=f"{named}: exists and is not a directory"):
            check_replaceable(tmp_path / path)
    check_replaceable(tmp_path / "new" / "run")


def test_what_a_user_put_into_a_run_directory_is_left_alone(tmp_path):
    write(tmp_path / "run", value=1.0)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes.txt, which no run wrote"):
        write(tmp_path / "run", value=2.0)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert read_metrics(tmp_path / "run") == {"step_time_s": 1.0}


def test_a_link_to_a_run_directory_is_followed(tmp_path):
    write(tmp_path / "run", value=1.0)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    write(tmp_path / "link", value=2.0)
    assert (tmp_path / "link").is_symlink()
    assert read_metrics(tmp_path / "run") == {"step_time_s": 2.0}


def test_metrics_that_are_not_numbers_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"not JSON compliant|Out of range"):
        write(tmp_path / "run", value=float("nan"))
    assert not list(tmp_path.iterdir())


def test_reading_what_is_no_run_says_so(tmp_path):
    with pytest.raises(ValueError, match="not a run directory"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="holds list"):
        read_metrics(tmp_path)
