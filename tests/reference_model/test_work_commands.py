"""Each claim is one command, and bad input is one line."""

import json

import pytest

from reference_model.__main__ import main
from reference_model.config import CONFIG_FOLDER
from simulator.workload.experts import read_popularity

TINY = [
    "--context",
    "8",
    "--batch",
    "1",
    "--symbols",
    "8",
    "--warmup",
    "1",
    "--held-out-batches",
    "1",
]


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


def test_training_goes_on_where_it_was_stopped(capsys, config, tmp_path):
    train = ["train", "--config", config, "--steps", 4, *TINY]
    whole = run(capsys, *train)
    stopped = run(capsys, *train, "--stop-after", 2, "--out", tmp_path)
    resumed = run(capsys, "train", "--resume", tmp_path, "--held-out-batches", 1)
    assert "stopped    after step 2" in stopped
    assert "resumed    at step 2" in resumed

    def last(output):
        return next(line for line in output.splitlines() if line.startswith("last step"))

    assert last(whole) == last(resumed)
    assert "held out   loss" in whole


def test_generation_is_exact_and_says_what_it_measured(capsys, config, tmp_path):
    run(capsys, "train", "--config", config, "--steps", 2, *TINY, "--out", tmp_path)
    out = run(capsys, "generate", "--run", tmp_path, "--sequences", 2, "--new-tokens", 6)
    assert "exact      all 12 tokens" in out
    assert "of drafts" in out
    assert "1.77 to 1.82 for DeepSeek-V3 at its own, published acceptance" in out


def test_precisions_are_compared(capsys, config, tmp_path):
    out = run(
        capsys, "compare-precision", "--config", config, "--steps", 2, *TINY, "--seeds", 2,
        "--out", tmp_path,
    )  # fmt: skip
    assert "published bound: 0.25%" in out
    for name in ("bf16 seed 1", "fp8", "fp8 per tensor", "fp8 no promotion"):
        assert f"\n{name:<18}" in out
    assert (tmp_path / "losses.png").is_file()


def test_first_gradients_are_compared(capsys, config):
    out = run(capsys, "gradient-error", "--config", config, "--initial-deviation", 0.006, *TINY)
    assert "weights of deviation 0.006" in out
    assert [line.split("  ")[0] for line in out.splitlines()[2:]] == [
        "bf16", "fp8", "fp32, another batch"
    ]  # fmt: skip


def test_balance_writes_histograms_that_the_simulator_reads(capsys, config, tmp_path):
    out = run(capsys, "balance", "--config", config, "--steps", 5, *TINY, "--out", tmp_path)
    for title in ("bias steps of 0.005", "no balancing", "auxiliary loss x 0.01"):
        assert title in out
    for name in ("bias", "none", "loss"):
        popularity = read_popularity(tmp_path / name / "expert_load.csv", layers=1, experts=8)
        assert popularity.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--steps", "0"], "steps = 0 must be at least 1"),
        (["train", "--precision", "int8"], "precision 'int8' is not one of"),
        (["train", "--config", "gpt"], "model 'gpt' is neither"),
        (["train", "--data", "wiki"], "data 'wiki' is not one of"),
        (["train", "--schedule", "linear"], "schedule 'linear' is not one of"),
        (["train", "--resume", "/nonexistent"], "there is no checkpoint to resume from"),
        (["train", "--checkpoint-every", "0"], "--checkpoint-every 0 must be at least 1"),
        (["compare-precision", "--seeds", "1"], "seeds = 1 must be at least 2"),
        (["balance", "--gamma", "-1"], "gamma = -1.0 must not be negative"),
        (["generate", "--run", "/nonexistent"], "there is no checkpoint to resume from"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
