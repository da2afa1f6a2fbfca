"""dsv3sim validate."""

import json
import os
import time
from pathlib import Path
from signal import SIGINT

from command_line import dsv3sim, started, without_progress


def test_validate_holds_scenarios_against_published_figures(tmp_path):
    names = ("tpot_limit_cx7", "offload_ktransformers")
    done = dsv3sim("validate", *names, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "TPOT limit" in done.stdout
    assert "median error of the 3 predictions" in done.stdout
    rows = json.loads(dsv3sim("validate", *names, "--json", cwd=tmp_path).stdout)["figures"]
    assert [row["scenario"] for row in rows] == [names[0]] + [names[1]] * 4
    assert sum(row["is_evidence"] for row in rows) == 3
    assert all(row["source"] for row in rows)
    assert not list(tmp_path.iterdir())


def test_validating_a_scenario_without_published_figures_says_which_have_some(tmp_path):
    done = dsv3sim("validate", "azure_code", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "scenarios/azure_code.yaml: no published figures to hold a run against" in done.stderr
    assert "such as day6_service, decode_ep144_day6" in done.stderr


def test_validating_a_scenario_that_does_not_exist_names_the_known_ones(tmp_path):
    done = dsv3sim("validate", "tpot_limit_cx8", cwd=tmp_path)
    assert done.returncode == 2
    assert "tpot_limit_cx7" in done.stderr


def test_whole_steps_go_with_a_lease_whose_tables_are_there(tmp_path):
    done = dsv3sim("validate", "--whole", "--lease", "h300_sxm_1", cwd=tmp_path)
    assert done.returncode == 2
    assert "--lease 'h300_sxm_1' is not one of h100_sxm_1, " in done.stderr
    ledger = dsv3sim("validate", "--whole", "--predict", "ledger.jsonl", cwd=tmp_path)
    assert "--predict needs --lease" in ledger.stderr
    figures = dsv3sim("validate", "--lease", "h100_sxm_1", cwd=tmp_path)
    assert "--predict, --lease and --ledger go with --whole" in figures.stderr
    done = dsv3sim("validate", "--whole", "--lease", "h200_sxm_2", "--predict", "l.jsonl",
                   cwd=tmp_path)  # fmt: skip
    assert "h200_sxm_2: is measured already; predictions come before" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_ledger_is_held_against_the_steps_that_were_measured(tmp_path):
    ledger = Path(__file__).parents[3] / "docs" / "predictions.jsonl"
    done = dsv3sim("validate", "--whole", "--ledger", str(ledger), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "173 of 197 measured values lie in their intervals" in " ".join(done.stdout.split())
    found = dsv3sim("validate", "--whole", "--ledger", str(ledger), "--json", cwd=tmp_path)
    rows = json.loads(found.stdout)["predictions"]
    unseen = [row for row in rows if not row["truth_known"]]
    assert (len(rows), len(unseen), sum(row["inside"] for row in unseen)) == (197, 20, 16)


def test_a_folder_without_recorded_jobs_is_refused(tmp_path):
    done = dsv3sim("validate", "--stragglers", ".", cwd=tmp_path)

    assert done.returncode == 2
    assert "--stragglers .: no trace; allowed: a folder of trace-NAME.parquet" in done.stderr


def test_changes_go_with_a_ledger_alone(tmp_path):
    done = dsv3sim("validate", "tpot_limit_cx7", "--set", "seed=1", cwd=tmp_path)
    assert done.returncode == 2
    assert "--set goes with --write-ledger" in done.stderr


def test_a_stopped_validate_leaves_what_it_printed_and_says_how_to_go_on(tmp_path):
    names = ("tpot_limit_cx7", "offload_ktransformers", "day6_service")
    run = started("validate", *names, cwd=tmp_path)
    printed = ""
    while "2 sockets, 6" not in printed:  # Of the second scenario; the third takes a minute.
        printed += run.stdout.readline()
    time.sleep(2)  # A table counts as printed once it is whole.
    os.killpg(run.pid, SIGINT)
    _, said = run.communicate(timeout=60)
    assert "TPOT limit" in printed
    assert run.returncode == 130
    assert without_progress(said) == (
        "dsv3sim: stopped by Ctrl-C: what is printed stands; the rest: dsv3sim validate "
        "day6_service\n"
    )


def test_predictions_are_written_down_once(tmp_path):
    """A bound has no interval; the decode step's step time, TPOT and throughputs have."""
    names = ("tpot_limit_cx7", "decode_tp8_h200")
    done = dsv3sim("validate", *names, "--write-ledger", "l.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "l.jsonl").read_text()
    assert done.stdout == f"{len(text.splitlines())} predictions added to l.jsonl\n"
    assert {json.loads(line)["about"] for line in text.splitlines()} == {"decode_tp8_h200"}
    again = dsv3sim("validate", *names, "--write-ledger", "l.jsonl", cwd=tmp_path)
    assert again.stdout == "0 predictions added to l.jsonl; 1 of 2 runs stand there already\n"
    assert (tmp_path / "l.jsonl").read_text() == text


def test_a_stopped_ledger_keeps_what_has_run_and_goes_on_from_there(tmp_path):
    ledger = tmp_path / "l.jsonl"
    run = started(
        "validate", "decode_tp8_h200", "day6_service", "--write-ledger", "l.jsonl", cwd=tmp_path
    )
    while not ledger.exists():  # Of the first scenario; the second takes a minute.
        time.sleep(0.05)
    time.sleep(1)  # What is written counts a moment later.
    os.killpg(run.pid, SIGINT)
    _, said = run.communicate(timeout=60)
    kept = len(ledger.read_text().splitlines())
    assert run.returncode == 130
    assert without_progress(said) == (
        f"dsv3sim: stopped by Ctrl-C: {kept} predictions of 1 of 2 scenarios are kept; the same "
        "command goes on from there\n"
    )
