"""dsv3sim plan serving: a small service from the command line, and what is refused."""

import json

import pytest
import yaml
from command_line import dsv3sim

# Two GPUs hold the model, so that few deployments are tried.
SMALL = (
    "plan", "serving", "--model", "moonlight_16b_a3b", "--gpu", "h200", "--rate", "20",
    "--prompt", "512", "--output", "16", "--ttft", "200 ms", "--tpot", "20 ms", "--jobs", "1",
)  # fmt: skip


def test_the_plan_is_a_scenario_that_runs_and_keeps_its_limits(tmp_path):
    done = dsv3sim(*SMALL, "--no-sensitivity", "--json", "--out", "plans/mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["plans"]
    assert found["gpus"] == 2
    assert found["nodes"] == 0.25
    # 2 USD per hour and GPU.
    assert found["usd_per_hour"] == pytest.approx(4.0)
    assert found["recommendation"].startswith("Take 0.25 nodes (2 h200_sxm): colocated 1 x ")
    assert [path.name for path in tmp_path.iterdir()] == ["plans"]
    assert [path.name for path in (tmp_path / "plans").iterdir()] == ["mine"]
    written = yaml.safe_load((tmp_path / "plans" / "mine" / "scenario.yaml").read_text())
    assert written["fleet"] == found["scenario"]["fleet"]
    run = dsv3sim("run", "plans/mine/scenario.yaml", "--json", "--no-interval", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    metrics = json.loads(run.stdout)
    assert metrics["ttft_s"]["p90"] == found["measured"]["ttft_s"]
    assert metrics["tpot_s"]["p90"] == found["measured"]["tpot_s"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--percentile", "80"), "--percentile 80: allowed: 50, 90, 95, 99"),
        (("--rate", "-1"), "--rate -1.0: allowed: requests per second, more than 0"),
        (("--gpu", "h300"), "unknown GPU 'h300'"),
        (("--recipe", "fp3"), "fp3"),
        (
            ("--requests", "azure_code"),
            "--prompt with --requests, which have their own lengths; allowed: one of the two",
        ),
    ],
)
def test_bad_input_is_one_line(asked, message, tmp_path):
    done = dsv3sim(*SMALL, *asked, "--out", "plan", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--requests", "nowhere"), "unknown scenario 'nowhere'"),
        (("--requests", "x.csv", "--format", "azure"), "requests.file: x.csv: cannot be read"),
        ((), "--rate is missing; allowed: requests per second, such as --rate 10"),
    ],
)
def test_requests_that_are_not_there_are_one_line(asked, message, tmp_path):
    done = dsv3sim("plan", "serving", "--gpu", "h200", *asked, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr


def test_a_plan_that_finds_nothing_ends_with_2_and_says_what_came_nearest(tmp_path):
    done = dsv3sim(*SMALL, "--tpot", "10 us", "--no-sensitivity", "--out", "plan", cwd=tmp_path)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert "nearest is decode TP2, where a token of one request alone takes " in last
    assert " of 10 us; allowed: --tpot above '" in last
    assert list(tmp_path.iterdir()) == []


def test_a_machine_is_asked_for(tmp_path):
    done = dsv3sim("plan", "serving", "--rate", "1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2, "dsv3sim: needs --gpu or --cluster, one of the two\n"
    )  # fmt: skip
