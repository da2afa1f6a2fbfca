"""dsv3sim replay."""

import json

import pytest
from command_line import dsv3sim


def test_a_file_that_is_no_profile_is_one_line(tmp_path):
    (tmp_path / "notes.json").write_text("{}")
    done = dsv3sim("replay", "notes.json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dsv3sim: notes.json: ")
    assert len(done.stderr.splitlines()) == 1


def test_the_recorded_gpu_is_asked_for_where_the_profile_names_none(tmp_path):
    """A collective alone, between ranks: communication, whatever the mapping."""
    kernel = {"ph": "X", "cat": "kernel", "tid": 7, "ts": 10, "dur": 100}
    kernel |= {"name": "ncclDevKernel_AllReduce_Sum_bf16_RING_LL", "args": {"stream": 7}}
    (tmp_path / "trace.json").write_text(json.dumps([kernel]))
    done = dsv3sim("replay", "trace.json", "--gpu", "h800_sxm", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dsv3sim: trace.json: names no device; say which GPU it is from")
    asked = ("replay", "trace.json", "--recorded-gpu", "h100_sxm", "--gpu", "h800_sxm", "--json")
    result = json.loads(dsv3sim(*asked, cwd=tmp_path).stdout)
    assert (result["recorded_gpu"], result["gpu"]) == ("h100_sxm", "h800_sxm")
    assert result["span_s"] == result["communication_busy_s"] == pytest.approx(1e-4)
