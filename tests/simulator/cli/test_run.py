"""dsv3sim run."""

import json

import pandas as pd
from command_line import MAIN, SMALL, dsv3sim


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
    changes = ("--set", "training.schedule=zb_h1")
    (tmp_path / "whole.yaml").write_text(
        dsv3sim("show", "scenario", MAIN, "--resolved", *changes).stdout
    )
    runs = [
        json.loads(dsv3sim("run", *arguments, "--json", cwd=tmp_path).stdout)
        for arguments in ([MAIN, *changes], ["whole.yaml"])
    ]
    for metrics in runs:
        # Named by their files: "dualpipe_h800_2048 with training.schedule=zb_h1" and "whole".
        del metrics["wall_clock_s"], metrics["scenario"]
    assert runs[0] == runs[1]


def test_a_changed_run_says_so_and_leaves_the_directory_of_the_shipped_one_alone(tmp_path):
    changes = ("--set", "schedule=1f1b", "--set", "training.global_batch_sequences=7680")
    name = f"{MAIN} with training.global_batch_sequences=7680, training.schedule=1f1b"
    done = dsv3sim("run", MAIN, *changes, "--no-interval", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    directory = f"{MAIN}+training.global_batch_sequences=7680+training.schedule=1f1b"
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names == {directory, "index.html"}
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


def test_without_intervals_a_serving_step_has_none_and_a_job_that_has_none_says_so():
    step = dsv3sim("run", "decode_ep128_profile", "--json", "--no-interval")
    assert step.returncode == 0, step.stderr
    assert "interval_80" not in json.loads(step.stdout)
    assert step.stderr == ""
    bound = dsv3sim("run", "tpot_limit_cx7", "--json", "--no-interval")
    assert bound.returncode == 0, bound.stderr
    assert bound.stderr == "note: --no-interval: a tpot_limit job has no 80% interval\n"


def test_ideal_ranks_are_a_run_without_skew_and_a_job_that_has_none_says_so():
    ideal = dsv3sim("run", MAIN, "--ideal", "--no-interval", "--json")
    assert ideal.returncode == 0, ideal.stderr
    metrics = json.loads(ideal.stdout)
    assert metrics["scenario"]["changes"] == ["training.skew=none"]
    assert {"ideal", "waiting", "interval_80"}.isdisjoint(metrics)
    assert len(metrics["published"]) == 14
    refused = dsv3sim("run", "all_to_all_64", "--ideal", "--json")
    assert refused.returncode == 2
    assert refused.stderr == (
        "dsv3sim: scenarios/all_to_all_64.yaml: --ideal: a collective job has no skew of its own; "
        "allowed: with a training or serving_step job\n"
    )
