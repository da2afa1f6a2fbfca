"""dsv3sim attribute."""

import json

import pytest
from command_line import MAIN, SMALL, dsv3sim


def test_a_training_step_is_attributed_to_causes_that_sum_to_it():
    done = dsv3sim("attribute", MAIN, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "remainder" in done.stdout
    # The published step is of another pipeline than this small one.
    assert "beyond the step" not in done.stdout
    assert "beyond the step" in dsv3sim("attribute", MAIN).stdout
    read = json.loads(dsv3sim("attribute", MAIN, *SMALL, "--json").stdout)
    assert sum(cause["seconds"] for cause in read["attribution"]) == pytest.approx(
        read["step_time_s"]
    )
    other = dsv3sim("attribute", "decode_ep128_profile")
    assert other.returncode == 2
    assert other.stderr.startswith("dsv3sim: ")
    assert other.stderr.count("\n") == 1


def test_a_whole_run_is_attributed_to_causes_that_sum_to_it():
    changes = ("--set", "pretraining.runs=3")
    done = dsv3sim("attribute", "dense_16k_h100_incidents", *changes)
    assert done.returncode == 0, done.stderr
    assert "work done again" in done.stdout
    read = json.loads(dsv3sim("attribute", "dense_16k_h100_incidents", *changes, "--json").stdout)
    assert sum(read["days_by_cause"].values()) == pytest.approx(read["days"], rel=1e-12)
