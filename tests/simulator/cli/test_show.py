"""dsv3sim show."""

import pytest
from typer.testing import CliRunner

from reference_model.pair_order import layers_of, parse_pair_order
from simulator.cli.app import command_line
from simulator.workload.recipes import RECIPES

RUN = CliRunner()


def test_a_schedule_is_one_row_per_rank():
    result = RUN.invoke(
        command_line(), ["show", "schedule", "1f1b", "--ranks", "2", "--microbatches", "2"]
    )
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines() if "0F0" in line or "1F0" in line]
    assert len(rows) == 2


@pytest.mark.parametrize("what", ["gpu", "cluster", "calibration"])
def test_without_a_name_everything_known_is_listed(what):
    result = RUN.invoke(command_line(), ["show", what])
    assert result.exit_code == 0
    assert "h800" in result.stdout


@pytest.mark.parametrize("name", ["deepseek_v3", "DeepSeek-R1", "kimi-k2"])
def test_a_model_is_shown_with_parameters_cache_and_weights_of_each_recipe(name):
    result = RUN.invoke(command_line(), ["show", "model", name, "--gpus", "16"])
    assert result.exit_code == 0
    total = "1,026,408,232,448" if name == "kimi-k2" else "671,026,419,200"
    rows = [row.strip("│ ").split("│") for row in result.stdout.splitlines() if "│" in row]
    shown = {label.strip(): value.strip() for label, value in rows}
    assert shown["parameters, without multi-token prediction"] == total
    assert shown["KV cache per token, BF16, bytes"] == "70,272"
    assert shown["KV cache per token, FP8, bytes"] == "40,016"
    weights = [label for label in shown if label.startswith("weights, ")]
    assert [label.split(", ")[-1] for label in weights] == list(RECIPES)


def test_models_are_shown_side_by_side():
    names = ["kimi-k2-thinking", "deepseek-v3.1", "moonlight"]
    result = RUN.invoke(command_line(), ["show", "model", *names], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    rows = [row.strip("│ ").split("│") for row in result.stdout.splitlines() if "│" in row]
    shown = {label.strip(): [value.strip() for value in values] for label, *values in rows}
    assert shown["recipe of the file"] == ["int4", "fp8", "fp8"]
    assert shown["KV cache per token, BF16, bytes"] == ["70,272", "70,272", "31,104"]
    # All else whole on each GPU: 11.77 billion parameters of Kimi-K2 in BF16 beside 1/8 of its
    # 1,014.69 billion of experts at 9/16 of a byte.
    beside = 1_026_408_232_448 - 60 * 384 * 3 * 7168 * 2048
    held = 2 * beside + 60 * 384 * 3 * 7168 * 2048 / 8 * 9 / 16
    assert shown["weights, int4"][0] == f"{held / 2**30:.4g} GiB" == "88.28 GiB"


def test_without_a_name_models_are_listed_with_their_parameters():
    result = RUN.invoke(command_line(), ["show", "model"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    line = "27 layers, 15,706,484,224 parameters, 2,451,435,008 activated"
    assert line in result.stdout


def test_a_pair_is_shown_part_by_part_and_written_for_the_reference_model(tmp_path):
    path = tmp_path / "order.jsonl"
    result = RUN.invoke(command_line(), ["show", "pair", "pair_two_h200", "--order", str(path)])
    assert result.exit_code == 0
    assert "communication exposed" in result.stdout
    order = parse_pair_order(path.read_text(encoding="utf-8"), source="the order")
    assert layers_of(order) == 4
    assert len(order) == 4 * 11


def test_only_a_training_step_has_a_pair():
    result = RUN.invoke(command_line(), ["show", "pair", "decode_nvl72"])
    assert isinstance(result.exception, ValueError)
    assert "a serving_step job has no pair; allowed: a training scenario" in str(result.exception)


@pytest.mark.parametrize("option", ["--context", "--gpus"])
def test_a_number_beyond_any_machine_is_refused(option):
    result = RUN.invoke(command_line(), ["show", "model", "small", option, "1" + "0" * 400])
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.output
