"""A step over several ranks is one command, and bad input is one line."""

import json

import pytest

from reference_model.__main__ import main
from reference_model.config import CONFIG_FOLDER
from simulator.workload.schedules.bidirectional import dualpipe
from simulator.workload.schedules.grid import render_grid
from tests.reference_model.test_pair import text


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A model of two layers, to be quick."""
    raw = json.loads((CONFIG_FOLDER / "debug.json").read_text()) | {"num_hidden_layers": 2}
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    path.write_text(json.dumps(raw))
    return str(path)


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def test_a_step_over_two_ranks_is_that_of_one(capsys, config):
    out = run(capsys, "expert-parallel", "--config", config, "--sequences", 1, "--context", 32)
    assert "differ by at most" in out
    assert "dispatch, forward" in out
    assert "rank 1" in out


def test_the_printed_schedule_drives_the_ranks(capsys, tmp_path):
    path = tmp_path / "order.txt"
    path.write_text(render_grid(dualpipe(2, 4)))
    out = run(capsys, "pipeline", "--schedule", path, "--sequences", 1, "--context", 16)
    assert "2 ranks, 2 stages, 4 micro-batches" in out
    assert "differ from serial by" in out


def test_the_order_that_is_shown_drives_a_pair(capsys, tmp_path):
    path = tmp_path / "order.jsonl"
    path.write_text(text(1))
    out = run(capsys, "pair", "--order", path, "--recipe", "float32", "--context", 16)
    assert "2 ranks, float32, tokens moved by gloo" in out
    assert "gradients  differ by at most 0.0e+00" in out


def test_node_limits_are_counted(capsys):
    out = run(capsys, "node-limited", "--tokens", 2000)
    assert "at most 4" in out
    assert "closed form 3.629" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["expert-parallel", "--ranks", "3"], "ranks = 3 do not divide 8 routed experts"),
        (["expert-parallel", "--backend", "mpi"], "backend 'mpi' is not one of"),
        (["node-limited", "--nodes", "7"], "destinations = 7 do not divide 256 experts"),
        (["pipeline", "--schedule", "/nonexistent"], "/nonexistent: cannot be read"),
        (["pair", "--order", "/nonexistent"], "/nonexistent: cannot be read"),
        (
            ["pair", "--order", "/nonexistent", "--communication-sms", "0"],
            "--communication-sms 0 must be at least 1",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
