"""dsv3sim plan training."""

import json

import pytest
from command_line import dsv3sim
from small_plans import CHANGES, SCENARIO

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
        (("--from", "mtp_one_node"), "holds a serving_step job; allowed here: training"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(flags, said, tmp_path):
    done = dsv3sim("plan", "training", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
