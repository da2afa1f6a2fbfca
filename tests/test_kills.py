"""Commands that are killed at random times lose nothing, and the next one goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).with_name("kills.py")
COMMANDS = ("run", "sweep", "calibrate", "training", "serving")


def kills(*options):
    """In a process of its own with one thread, which forks safely."""
    done = subprocess.run(
        [sys.executable, KILLS, *options],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_few_kills_lose_no_file_and_no_row():
    found = kills("--seed", "1", "--count", "9", "--seconds", "40")
    assert found["lost"] == 0
    assert sum(found[command] for command in COMMANDS) > 0


@pytest.mark.slow
def test_two_hundred_kills_lose_no_file_and_no_row():
    found = kills("--count", "200")
    assert found["lost"] == 0
    assert sum(found[command] for command in COMMANDS) == 200
