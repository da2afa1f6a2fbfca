"""Find out what there is without a run."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from simulator.cli.app import command_line
from simulator.scenario.files import SCENARIOS, known_scenarios

RUN = CliRunner()


def said(*arguments):
    result = RUN.invoke(command_line(), list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_list_names_every_shipped_scenario_and_all_kinds_are_listed():
    assert set(json.loads(said("list", "scenarios", "--json"))["scenarios"]) == set(
        known_scenarios()
    )
    assert list(json.loads(said("list", "--json"))) == [
        "scenarios", "models", "gpus", "clusters", "calibrations", "schedules",
    ]  # fmt: skip
    assert "h800_sxm" in said("list", "gpus")


def test_a_scenario_is_shown_as_it_is_written_and_whole_where_asked():
    name = "dualpipe_h800_2048"
    assert said("show", "scenario", name) == (SCENARIOS / f"{name}.yaml").read_text("utf-8")
    whole = yaml.safe_load(said("show", "scenario", name, "--resolved", "--set", "training.pp=8"))
    assert whole["training"]["pp"] == 8
    assert whole["cluster"]["node"]["gpu"]["name"] == "h800_sxm"


def test_what_is_written_is_not_changed():
    result = RUN.invoke(
        command_line(), ["show", "scenario", "dualpipe_h800_2048", "--set", "training.pp=8"]
    )
    assert str(result.exception) == (
        "show scenario: --set changes a scenario as a whole; allowed: --resolved"
    )


def test_without_a_path_the_fields_of_a_file_are_shown_and_its_jobs():
    shown = said("show", "fields")
    assert "a scenario file" in shown
    assert "One optimizer step of a pipeline-" in shown
    every = json.loads(said("show", "fields", "--json"))["fields"]
    assert len(every) > 600
    assert {"training.pp", "cluster.node.nic.bandwidth"} <= {field["path"] for field in every}


def test_metrics_are_found_by_name_by_beginning_and_by_job():
    def names(*arguments):
        found = json.loads(said("show", "metrics", *arguments, "--json"))["metrics"]
        return [metric["name"] for metric in found]

    assert names("completion_s") == ["completion_s"]
    assert names("ranks.3.forward_s") == ["ranks.forward_s"]
    assert "ttft_s" in names("--job", "fleet")
    assert "ttft_s" not in names("--job", "training")


def test_a_schema_is_json_that_names_its_file():
    assert json.loads(said("show", "schema", "cluster"))["title"] == "dsv3sim cluster"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("list", "gpu"), "list gpu: did you mean gpus?"),
        (("show", "schema", "clusters"), "show schema clusters: did you mean cluster?"),
        (("show", "fields", "training.shedule"),
         "no field 'training.shedule'; did you mean training.schedule?"),
        (("show", "metrics", "step_tme_s"),
         "metric 'step_tme_s': unknown; did you mean step_time_s?"),
        (("show", "metrics", "--job", "fleets"), "--job fleets: unknown job; did you mean fleet?"),
    ],
)  # fmt: skip
def test_a_mistake_brings_what_is_meant(arguments, message):
    assert str(RUN.invoke(command_line(), list(arguments)).exception) == message


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert said("--version") == f"dsv3sim {version('dsv3sim')}\n"


def test_what_a_run_says_in_each_form():
    run = ("run", "all_to_all_64", "--metric", "completion_s")
    seconds = json.loads(said(*run, "--json"))["completion_s"]
    assert seconds["unit"] == "s"
    assert said(*run, "--format", "csv") == (
        f"metric,value,unit,ideal,low_80,high_80\ncompletion_s,{seconds['value']},s,,,\n"
    )
    assert "completion_s" in said(*run)
    refused = RUN.invoke(command_line(), [*run, "--json", "--format", "csv"])
    assert str(refused.exception) == "--json --format csv: two formats; allowed: one of them"
