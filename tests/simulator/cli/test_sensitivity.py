"""dsv3sim sensitivity."""

import json

from command_line import dsv3sim


def test_sensitivity_prints_every_input_the_strongest_first(tmp_path):
    done = dsv3sim(
        "sensitivity",
        "decode_ep144_day6",
        "--ideal",
        "--json",
        "--out",
        "it",
        "--only",
        "SM clock",
        "--only",
        "HBM bandwidth",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    sizes = [abs(row["elasticity"]) for row in found["rows"]]
    assert sizes == sorted(sizes, reverse=True)
    assert found["rows"][0]["name"] == "HBM bandwidth"
    assert json.loads((tmp_path / "it" / "metrics.json").read_text()) == found


def test_a_job_that_has_no_step_is_refused_in_one_line():
    done = dsv3sim("sensitivity", "mooncake_conversation")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "dsv3sim: scenarios/mooncake_conversation.yaml: sensitivity: holds a fleet job; allowed: "
    )
    assert done.stderr.count("\n") == 1
