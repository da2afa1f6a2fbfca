"""What a shell completes."""

import os

import pytest
import typer
from typer.testing import CliRunner

from simulator.cli import completion
from simulator.cli.app import command_line


@pytest.mark.parametrize(
    ("names", "begun", "found"),
    [
        ("scenario_names", "dual", ["dualpipe_h800_2048"]),
        ("gpu_names", "h2", ["h200_sxm", "h20_sxm"]),
        ("cluster_names", "gb", ["gb200_1152", "gb200_nvl72"]),
        ("model_names", "kimi", ["kimi_k2", "kimi_k2_thinking"]),
        ("calibration_names", "h800_d", ["h800_decode"]),
        ("schedule_names", "dual", ["dualpipe", "dualpipev"]),
        ("metric_names", "step_t", ["step_time_s"]),
        ("field_paths", "training.sch", ["training.schedule"]),
        ("gpu_names", "nothing", []),
    ],
)
def test_names_that_begin_so_are_offered(names, begun, found):
    assert getattr(completion, names)(begun) == found


@pytest.mark.parametrize(
    ("begun", "found"),
    [
        ("training.sche", ["training.schedule="]),
        ("training.schedule=dual", ["training.schedule=dualpipe", "training.schedule=dualpipev"]),
        ("cluster=gb200_n", ["cluster=gb200_nvl72"]),
        ("cluster.node.gpu=h20_", ["cluster.node.gpu=h20_sxm"]),
        ("training.recompute=a", ["training.recompute=attention"]),
        ("serving_step.head=", ["serving_step.head=true", "serving_step.head=false"]),
        ("training.pp=", []),
    ],
)
def test_a_change_is_offered_as_a_path_and_then_with_the_values_that_it_may_have(begun, found):
    assert completion.settings(begun) == found


def test_every_command_that_takes_a_gpu_cluster_model_or_metric_offers_its_names():
    group = typer.main.get_command(command_line())
    offered = {"gpu", "cluster", "model", "metric", "calibration", "changes", "scenario"}
    silent = []

    def look(command, words):
        for name, inner in getattr(command, "commands", {}).items():
            look(inner, (*words, name))
        for one in getattr(command, "params", ()):
            if one.name in offered and one._custom_shell_complete is None:
                silent.append((*words, one.name))

    look(group, ())
    assert silent == []


def test_a_shell_is_told_of_the_names_as_it_asks():
    asked = {
        "_DSV3SIM_COMPLETE": "complete_bash", "COMP_WORDS": "dsv3sim init gpu x --like h20",
        "COMP_CWORD": "5",
    }  # fmt: skip
    found = CliRunner().invoke(
        command_line(), [], env=os.environ | asked, prog_name="dsv3sim", complete_var=None
    )
    assert found.stdout.split() == ["h200_sxm", "h20_sxm"]
