"""The example of docs/pretraining.md runs, and its lines say what it says of them."""

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[3] / "docs/examples/goodput_by_gpus.py"


def test_the_example_prints_and_draws_goodput_on_each_number_of_gpus(tmp_path):
    picture = tmp_path / "goodput.svg"
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--out", picture, "--runs", "2", "--gpus", "2048", "8192"],
        capture_output=True,
        text=True,
        check=True,
    )

    *_, spares, fast = done.stdout.splitlines()
    assert spares == "and 200 spares: 98.6%, 95.7%"
    assert fast == "and failures seen in 1 min, restart in 2 min: 99.6%, 99.0%"
    assert picture.read_text().startswith("<?xml")
