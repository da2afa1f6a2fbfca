"""dsv3sim show."""

import pytest
from typer.testing import CliRunner

from simulator.cli.app import app

RUN = CliRunner()


def test_a_schedule_is_one_row_per_rank():
    result = RUN.invoke(app, ["show", "schedule", "1f1b", "--ranks", "2", "--microbatches", "2"])
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines() if "0F0" in line or "1F0" in line]
    assert len(rows) == 2


@pytest.mark.parametrize("what", ["gpu", "cluster", "calibration"])
def test_without_a_name_everything_known_is_listed(what):
    result = RUN.invoke(app, ["show", what])
    assert result.exit_code == 0
    assert "h800" in result.stdout
