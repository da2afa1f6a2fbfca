"""dsv3sim compare."""

import json

from command_line import MAIN, dsv3sim


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


def test_compare_puts_one_step_on_several_clusters():
    done = dsv3sim("compare", "decode_ep72_h100", "--cluster", "h100_96", "--cluster", "h200_8",
                   "--set", "skew=none", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert (first["cluster"], first["gpu"], second["gpu"]) == ("h100_96", "h100_sxm", "h200_sxm")
    assert "reason" in second


def test_a_change_without_a_cluster_is_refused():
    done = dsv3sim("compare", "a", "b", "--set", "x=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "dsv3sim: compare: --set and --json: allowed with --cluster\n"


def test_clusters_that_are_all_too_small_are_refused_in_one_line():
    done = dsv3sim("compare", "decode_ep72_h100", "--cluster", "h200_8", "--set", "skew=none")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "dsv3sim: compare --cluster: none can run decode_ep72_h100: h200_8: gpus 72: allowed: "
        "at most the 8 of cluster h200_8\n"
    )
