"""dsv3sim init serving."""

import json

from command_line import dsv3sim

ASKED = ("--gpu", "h200", "--rate", "2", "--prompt", "512", "--output", "64")


def test_a_service_is_written_and_runs(tmp_path):
    made = dsv3sim("init", "serving", "mine.yaml", *ASKED, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout == (
        "mine.yaml: 2 requests/s of 512 tokens in, 64 out; run it with dsv3sim run mine.yaml\n"
    )
    run = dsv3sim("run", "mine.yaml", "--json", "--no-interval", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["verdict"] == "stable"
    assert found["nodes"] == 1.0
    # 6.45 stays of 2 s + 64 x 50 ms at 2 requests/s.
    assert found["requests"]["arrived"] == 68


def test_what_does_not_fit_is_refused_and_no_file_is_left(tmp_path):
    for asked, said in (
        (("--colocated", "8"), "allowed: instances x GPUs of each, such as 4x32"),
        (("--gpu", "h100"), "weights 79.29 GiB"),
        (("--decode", "1x8"), "needs the pools prefill and decode, or colocated; given: decode"),
        (("--rate", "0"), "--rate 0.0: allowed: requests per second, more than 0"),
        (("--tpot", "50"), "--tpot: '50' has no unit"),
    ):
        done = dsv3sim("init", "serving", "mine.yaml", *ASKED, *asked, cwd=tmp_path)
        assert done.returncode == 2, asked
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
