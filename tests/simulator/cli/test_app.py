"""The command line: what it prints, where it writes, and how it refuses bad input."""

import json
import subprocess
import sys

import pandas as pd
import pytest

MAIN = "dualpipe_h800_2048"
SMALL = (
    "--set", "training.pp=2", "--set", "training.ep=32", "--set", "cluster.nodes=8",
    "--set", "training.global_batch_sequences=256", "--set", "model.num_nextn_predict_layers=1",
    "--set", "cluster.node.gpu.hbm_capacity=900 GiB",
)  # fmt: skip


def dsv3sim(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "simulator.cli", *arguments],
        capture_output=True, text=True, cwd=cwd, check=False,
    )  # fmt: skip


def test_json_is_one_object_on_stdout_and_writes_nothing(tmp_path):
    done = dsv3sim("run", MAIN, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert metrics["step_time_s"] > 0
    assert metrics["wall_clock_s"] > 0
    assert len(metrics["ranks"]) == 16
    assert not list(tmp_path.iterdir())


def test_a_run_writes_its_directory_and_prints_tables(tmp_path):
    done = dsv3sim("run", MAIN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    directory = tmp_path / "runs" / MAIN
    names = {path.name for path in directory.iterdir()}
    assert {"report.html", "metrics.json", "scenario.yaml", "events.parquet", "perfetto.json",
            "operators.parquet"} <= names  # fmt: skip
    assert "19.93" in done.stdout
    assert "beside published figures" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_brackets_in_names_are_no_markup(tmp_path):
    done = dsv3sim("run", "tpot_limit_cx7", "--out", "o[/red]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "report: o[/red]/report.html" in done.stdout
    compared = dsv3sim("compare", "o[/red]", "o[/red]", cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    assert "o[/red]" in compared.stdout


def test_a_resolved_scenario_runs_to_the_same_result(tmp_path):
    changes = ("--set", "training.schedule=zb1p")
    (tmp_path / "whole.yaml").write_text(dsv3sim("show", "scenario", MAIN, *changes).stdout)
    runs = [
        json.loads(dsv3sim("run", *arguments, "--json", cwd=tmp_path).stdout)
        for arguments in ([MAIN, *changes], ["whole.yaml"])
    ]
    for metrics in runs:
        # Named by their files: "dualpipe_h800_2048 with training.schedule=zb1p" and "whole".
        del metrics["wall_clock_s"], metrics["scenario"]
    assert runs[0] == runs[1]


def test_a_changed_run_says_so_and_leaves_the_directory_of_the_shipped_one_alone(tmp_path):
    changes = ("--set", "schedule=1f1b", "--set", "training.global_batch_sequences=7680")
    name = f"{MAIN} with training.global_batch_sequences=7680, training.schedule=1f1b"
    done = dsv3sim("run", MAIN, *changes, "--no-interval", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    directory = f"{MAIN}+training.global_batch_sequences=7680+training.schedule=1f1b"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [directory]
    written = json.loads((tmp_path / "runs" / directory / "metrics.json").read_text())
    assert written["published"] == []
    assert written["scenario"]["name"] == name
    assert len(written["scenario"]["published_for_other_inputs"]) == 14
    assert done.stdout.startswith(name[:60])
    assert "beside published figures" not in done.stdout
    left_out = "14 published figures are left out, being for other inputs (changed: training."
    assert left_out in done.stdout
    page = (tmp_path / "runs" / directory / "report.html").read_text()
    assert left_out in page
    assert f"<title>{name}" in page


def test_unfold_logs_every_operator_of_every_action(tmp_path):
    done = dsv3sim("run", MAIN, *SMALL, "--unfold", "--out", "whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    unfolded = pd.read_parquet(tmp_path / "whole" / "unfolded.parquet")
    actions = pd.read_parquet(tmp_path / "whole" / "events.parquet")
    actions = actions[actions["work"] != "optimizer"]
    ends = unfolded.groupby(["rank", "index"])["end_s"].max()
    pd.testing.assert_series_equal(
        ends.reset_index(drop=True), actions["end_s"].reset_index(drop=True), rtol=1e-12
    )


def test_compare_prints_runs_side_by_side(tmp_path):
    for schedule in ("1f1b", "dualpipe"):
        done = dsv3sim("run", MAIN, "--set", f"training.schedule={schedule}", "--json")
        (tmp_path / schedule).mkdir()
        (tmp_path / schedule / "metrics.json").write_text(done.stdout)
    done = dsv3sim("compare", "1f1b", "dualpipe", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for metric in ("step_time_s", "bubble_s", "peak_memory_bytes"):
        assert metric in done.stdout
    # DualPipe is the shipped schedule, so that only the other run is a changed one.
    assert f"1f1b: {MAIN} with training.schedule=1f1b" in done.stdout
    assert f"dualpipe: {MAIN} " in done.stdout


def test_runs_of_different_jobs_are_not_compared(tmp_path):
    for name, scenario in (
        ("training", {"scenario": {"name": "a", "job": "training"}}),
        ("decode", {"scenario": {"name": "b", "job": "serving_step"}, "phase": "decode"}),
        ("prefill", {"scenario": {"name": "c", "job": "serving_step"}, "phase": "prefill"}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(scenario | {"step_time_s": 1.0}))
    for first, second, line in (
        ("training", "decode", "training is a training run, decode is a serving_step run, decode"),
        ("decode", "prefill", "decode is a serving_step run, decode, prefill is a serving_step"),
    ):
        done = dsv3sim("compare", first, second, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(f"dsv3sim: compare: {line}")
        assert "; allowed: runs of one job and phase" in done.stderr
    (tmp_path / "swept").mkdir()
    (tmp_path / "swept" / "metrics.json").write_text(json.dumps({"scenario": "a", "rows": []}))
    done = dsv3sim("compare", "swept", "swept", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("dsv3sim: compare: swept is a sweep; allowed: runs (")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nope"], "unknown scenario 'nope'; known: "),
        (["run", MAIN, "--set", "cluster=h900"], "unknown cluster 'h900'; known: "),
        (["run", MAIN, "--set", "training.schedule=gpipe"], "unknown name 'gpipe'; known: "),
        (["run", MAIN, "--set", "training.pipeline=1"], "unknown field; known: "),
        (["run", MAIN, "--set", "training.pp=4"], "bytes"),
        (["run", "broken.yaml"], "broken.yaml: line 3: not valid YAML"),
        (["run", MAIN, "--out", "thesis"], "is not a run directory"),
        (["compare", "thesis"], "two or more"),
        (["compare", "thesis", "thesis"], "not a run directory"),
        (["show", "gpu", "h900"], "unknown GPU 'h900'; known: "),
        (["show", "schedule", "dualpipe", "--microbatches", "7"], "microbatches = 7, must be even"),
        (
            ["show", "schedule", "zb1p", "--virtual-stages", "2"],
            "must be left out; interleaved and",
        ),
        (["show", "schedule", "dualpipe", "--times", "1,2"], "allowed: four positive numbers"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_2(arguments, message, tmp_path):
    (tmp_path / "broken.yaml").write_text("description: x\nmodel: [\n")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    done = dsv3sim(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"broken.yaml", "thesis"}


@pytest.mark.parametrize(
    "arguments",
    [["gpu"], ["gpu", "h800_sxm"], ["cluster"], ["cluster", "h800_2048"], ["model"],
     ["model", "deepseek_v3"], ["scenario"], ["scenario", MAIN], ["schedule"],
     ["schedule", "dualpipev", "--ranks", "4", "--times", "1,1,1,3"],
     ["schedule", "interleaved_overlapped", "--ranks", "4", "--virtual-stages", "3"]],
)  # fmt: skip
def test_show_prints_what_there_is(arguments):
    done = dsv3sim("show", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_without_intervals_a_serving_step_has_none_and_a_job_that_has_none_says_so():
    step = dsv3sim("run", "decode_ep128_profile", "--json", "--no-interval")
    assert step.returncode == 0, step.stderr
    assert "interval_80" not in json.loads(step.stdout)
    assert step.stderr == ""
    bound = dsv3sim("run", "tpot_limit_cx7", "--json", "--no-interval")
    assert bound.returncode == 0, bound.stderr
    assert bound.stderr == "note: --no-interval: a tpot_limit job has no 80 % interval\n"


def test_a_training_step_is_attributed_to_causes_that_sum_to_it():
    done = dsv3sim("attribute", MAIN, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "remainder" in done.stdout
    # The published step is of another pipeline than this small one.
    assert "beyond the step" not in done.stdout
    assert "beyond the step" in dsv3sim("attribute", MAIN).stdout
    read = json.loads(dsv3sim("attribute", MAIN, *SMALL, "--json").stdout)
    assert sum(cause["seconds"] for cause in read["attribution"]) == pytest.approx(
        read["step_time_s"]
    )
    other = dsv3sim("attribute", "decode_ep128_profile")
    assert other.returncode == 2
    assert other.stderr.startswith("dsv3sim: ")
    assert other.stderr.count("\n") == 1
