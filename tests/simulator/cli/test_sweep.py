"""dsv3sim sweep and validate: from the command line, with files, resumed and refused."""

import json
import os
import re
import time
from signal import SIGINT, SIGTERM

import pytest
from command_line import dsv3sim, started, without_progress

from simulator.analysis.sweep import read_rows

SWEEP = ("sweep", "all_to_all_64", "--vary", "cluster.node.nic.bandwidth=200 Gbit/s,400 Gbit/s")


def test_a_sweep_prints_a_table_writes_a_directory_and_leaves_nothing_else(tmp_path):
    done = dsv3sim(*SWEEP, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "completion_s" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names == {"all_to_all_64-sweep", "index.html"}
    again = dsv3sim(*SWEEP, "--where", "completion_s<=0.2 ms", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "outside completion_s<=0.2 ms" in again.stdout


def test_a_faster_nic_is_not_slower_in_json(tmp_path):
    done = dsv3sim(*SWEEP, "--json", "--jobs", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    slow, fast = (row["metrics"]["completion_s"] for row in json.loads(done.stdout)["rows"])
    assert fast < slow
    assert not list(tmp_path.iterdir())


MANY = ("sweep", "all_to_all_64", "--vary", "seed=" + ",".join(map(str, range(200))))


@pytest.mark.parametrize(
    ("number", "name", "jobs"), [(SIGINT, "Ctrl-C", "2"), (SIGTERM, "SIGTERM", "1")]
)
def test_a_stopped_sweep_says_what_is_kept_and_goes_on_from_there(number, name, jobs, tmp_path):
    sweep = started(*MANY, "--jobs", jobs, cwd=tmp_path)
    kept = tmp_path / "runs" / ".all_to_all_64-sweep.rows.jsonl"
    while not (kept.exists() and kept.stat().st_size):
        assert sweep.poll() is None
        time.sleep(0.05)
    os.killpg(sweep.pid, number)
    out, said = sweep.communicate(timeout=30)
    assert out == ""
    assert sweep.returncode == 128 + number
    (line,) = without_progress(said).splitlines()
    found = re.fullmatch(
        rf"dsv3sim: stopped by {name}: (\d+) of 200 points are kept; the same command goes on from "
        "there",
        line,
    )
    assert int(found[1]) == len(read_rows(kept))
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        (("--vary", "seed"), "--vary 'seed'"),
        (("--vary", "sede=1,2"), "sede"),
        (("--where", "completion_s=3"), "--where"),
        (("--where", "completion=<3"), "--where"),
        (("--objective", "bytes_total"), "--objective"),
        (("--metric", "completion"), "unknown; did you mean completion_s?"),
        (("--dask", "tcp://127.0.0.1:1"), "no scheduler answers"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_writes_nothing(tmp_path, extra, word):
    done = dsv3sim(*SWEEP, *extra, "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert word in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_directory_of_another_kind_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    done = dsv3sim(*SWEEP, "--out", "mine", cwd=tmp_path)
    assert done.returncode == 2
    assert "not a run directory" in done.stderr
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_an_earlier_name_brings_one_note_however_many_points_use_it(tmp_path):
    vary = ("--vary", "kernel_gap.value=0.4 us,0.5 us")
    done = dsv3sim("sweep", "decode_ep8_h200", *vary, "--json", "--jobs", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    note = "note: --set: serving_step.kernel_gap is called serving_step.gap now"
    assert [line for line in done.stderr.splitlines() if "called" in line] == [note]
