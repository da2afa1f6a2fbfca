"""dsv3sim plan training."""

import json
from signal import SIGINT

import pytest
from command_line import dsv3sim
from small_plans import CHANGES, SCENARIO
from typer.testing import CliRunner

from simulator.analysis.sweep import Point
from simulator.cli.app import command_line
from simulator.cli.options import Stopped
from simulator.scenario.files import load_scenario

FEW = (
    "--fix", "tp=1", "--fix", "pp=1,2", "--fix", "ep=8", "--fix", "micro_batch=1", "--fix",
    "zero=1", "--fix", "recompute=published", "--simulate", "2", "--jobs", "1",
)  # fmt: skip
SMALL = [part for change in CHANGES for part in ("--set", change)]


def test_the_chosen_layout_is_a_scenario_that_runs_and_a_second_call_takes_its_rows(tmp_path):
    command = ("plan", "training", "--from", SCENARIO, *SMALL, *FEW, "--out", "found", "--json")
    done = dsv3sim(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["simulated"] == 2
    best = plan["rows"][0]
    job = load_scenario(str(tmp_path / "found" / "scenario.yaml")).job
    assert job.schedule == best["settings"]["training.schedule"]
    assert job.skew.setting == "bias_balanced"
    again = json.loads(dsv3sim(*command, cwd=tmp_path).stdout)
    assert again["rows"] == plan["rows"]


def test_a_rent_is_in_the_place_of_a_number_of_gpus(tmp_path):
    rent = ("--set", "cluster.gpu_price=2 USD/h", "--budget", "35 USD/h", "--tokens", "1e9")
    command = ("plan", "training", "--from", SCENARIO, *SMALL, *FEW, *rent, "--out", "found")
    done = dsv3sim(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "within the budget, of 16, 8 GPUs" in done.stdout
    assert "The budget buys 16 GPUs at 32 USD/h: an ideal step of " in done.stdout
    assert load_scenario(str(tmp_path / "found" / "scenario.yaml")).cluster.gpus == 16
    assert "What the budget buys" in (tmp_path / "found" / "report.html").read_text()
    kept = json.loads((tmp_path / "found" / "metrics.json").read_text())
    assert kept["budget"]["gpus_tried"] == [16, 8]


@pytest.mark.parametrize(
    ("layouts", "out", "kept"),
    [
        (1, ["--out", "found"], "1 simulated layout is kept; the same command goes on"),
        (2, ["--out", "found"], "2 simulated layouts are kept; the same command goes on"),
        (2, ["--json"], "no layout is kept without a directory (--out)"),
    ],
)
def test_a_plan_that_is_stopped_says_what_is_kept(layouts, out, kept, monkeypatch, tmp_path):
    def stopped(*_, done, **__):
        for number in range(layouts):
            done(Point({}, str(number), {"step_time_s": 2.0}))
        raise Stopped(SIGINT)

    monkeypatch.setattr("simulator.analysis.plan.training.plan_training", stopped)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Stopped) as stop:
        CliRunner().invoke(command_line(), ["plan", "training", "--from", SCENARIO, *out])
    assert stop.value.kept == kept


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--gpu", "h100", "--gpus", "512"), "--batch is missing"),
        (("--batch", "8"), "neither --cluster nor both of --gpu and --gpus"),
        (("--from", SCENARIO, "--gpus", "8"), "--gpus with --from"),
        (("--from", SCENARIO, "--fix", "sms=8"), "--fix 'sms=8': allowed: AXIS=VALUE"),
        (("--from", SCENARIO, "--fix", "pp=x"), "allowed: whole numbers, such as --fix pp=1,2"),
        (("--from", SCENARIO, "--memory-limit", "80"), "--memory-limit"),
        (
            ("--from", "dualpipe_h800_2048", "--memory-limit", "900 GiB"),
            "--memory-limit 900 GiB: allowed: more than 0 and at most the 79.11 GiB of h800_sxm",
        ),
        (("--from", SCENARIO, "--recipe", "bf16"), "--recipe with --from"),
        (
            ("--model", "debug", "--gpu", "h100", "--gpus", "16", "--batch", "1"),
            "debug_on_16_h100_sxm: no layout of ",
        ),
        (("--batch", "8", "--gpus", "8", "--budget", "9 USD/h"), "--gpus and --budget; allowed"),
        (("--batch", "8", "--tokens", "1e9"), "--tokens without --budget"),
        (("--from", SCENARIO, "--budget", "1 USD/h"), "pays for no node of 8 h800_sxm"),
        (("--from", "mtp_one_node"), "holds a serving_step job; allowed here: training"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(flags, said, tmp_path):
    done = dsv3sim("plan", "training", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
