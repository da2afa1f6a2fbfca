"""The ledger of predictions: what a line holds, and that lines are only ever added."""

import hashlib
import json
import math
import re
import subprocess
from pathlib import Path

import pytest

from simulator.analysis.predictions import (
    LedgerLine,
    append_to_ledger,
    judge,
    read_ledger,
    scenario_lines,
)
from simulator.scenario.files import load_scenario

ROOT = Path(__file__).parents[3]
LEDGER = ROOT / "docs" / "predictions.jsonl"

LINE = LedgerLine(
    about="h200_sxm_2: prefill four_layers 1 x 4096 graph",
    quantity="seconds of a step",
    predicted=0.031,
    interval_80=(0.029, 0.033),
    digest="0123456789abcdef",
    date="2026-11-28",
    truth_known=False,
    note="from the operators of h200_sxm_1",
)


def is_only_added_to(before, now):
    """Whether the text of a ledger now is what it was, with nothing but lines after it."""
    return now.startswith(before) and (not before or before.endswith("\n"))


def test_lines_are_added_at_the_end_and_read_back(tmp_path):
    path = tmp_path / "ledger.jsonl"
    append_to_ledger(path, [LINE])
    before = path.read_text(encoding="utf-8")
    append_to_ledger(path, [LINE])
    assert read_ledger(path) == [LINE, LINE]
    assert is_only_added_to(before, path.read_text(encoding="utf-8"))


def test_a_prediction_is_judged_once_it_is_measured():
    """0.031 s said and 0.0300 measured: 3.3% too much, within 0.029 to 0.033; 0.034 is not."""
    assert judge([LINE], {LINE.about: 0.0300, "another": 1.0}) == [(LINE, 0.0300)]
    assert LINE.error(0.0300) == pytest.approx(0.0310 / 0.0300 - 1)
    assert LINE.inside(0.0300)
    assert not LINE.inside(0.034)
    assert judge([LINE], {}) == []


def test_a_ledger_that_lost_or_changed_a_line_is_told_from_one_that_grew():
    assert is_only_added_to("", "a\n")
    assert is_only_added_to("a\n", "a\nb\n")
    assert not is_only_added_to("a\n", "b\na\n")
    assert not is_only_added_to("a\nb\n", "a\n")
    assert not is_only_added_to("a", "ab\n")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"predicted": 0.05}, "0.05 is not within 0.029 and 0.033"),
        ({"measured": 0.03}, "field 'measured' is unknown"),
        ({"predicted": "0.03"}, "field 'predicted': '0.03'; allowed: float"),
        ({"predicted": 10**400}, "field 'predicted': 1000"),
        ({"ideal": math.nan}, "field 'ideal': nan; allowed: float | None"),
        ({"interval_80": [0.02]}, "field 'interval_80': [0.02]; allowed: tuple[float, float]"),
        ({"truth_known": "no"}, "field 'truth_known': 'no'; allowed: bool"),
        ({"about": None}, "field 'about': None; allowed: str"),
    ],
)
def test_a_line_that_is_no_prediction_is_named(tmp_path, change, says):
    path = tmp_path / "ledger.jsonl"
    append_to_ledger(path, [LINE])
    values = json.loads(path.read_text(encoding="utf-8")) | change
    path.write_text(json.dumps(values) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 is no prediction") as error:
        read_ledger(path)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [("[1]\n", "[1] is no object with fields"), ('{"about": "a"}\n', "field 'date' is missing")],
)
def test_a_line_without_the_fields_of_a_prediction_is_named(tmp_path, text, says):
    path = tmp_path / "ledger.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"line 1 is no prediction: {says}")):
        read_ledger(path)


def test_a_ledger_that_cannot_be_added_to_stays_as_it_is(tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("what I think\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"notes\.txt: line 1 is no prediction"):
        append_to_ledger(other, [LINE])
    assert other.read_text(encoding="utf-8") == "what I think\n"
    with pytest.raises(ValueError, match=r"gone/a\.jsonl: cannot be written: no such directory"):
        append_to_ledger(tmp_path / "gone" / "a.jsonl", [LINE])


def test_a_last_line_that_does_not_end_is_ended_before_others_follow(tmp_path):
    path = tmp_path / "ledger.jsonl"
    append_to_ledger(path, [LINE])
    path.write_text(path.read_text(encoding="utf-8").rstrip("\n"), encoding="utf-8")
    append_to_ledger(path, [LINE])
    assert read_ledger(path) == [LINE, LINE]


def test_the_ledger_that_comes_with_the_project_reads():
    lines = read_ledger(LEDGER)
    assert len({line.about for line in lines}) >= 32
    assert {line.truth_known for line in lines} == {True, False}


def test_a_run_is_written_down_with_its_ideal_beside_the_expected_value():
    scenario = load_scenario("decode_ep32_b200")
    metrics = {
        "tpot_s": {"mean": 0.021},
        "ranks": [{"bubble_s": 2.0}],
        "ideal": {"tpot_s": 0.020},
        "interval_80": {"tpot_s": [0.019, 0.023], "ranks.0.bubble_s": [1.5, 2.5]},
    }

    time, bubble = scenario_lines(scenario, metrics, date="2026-11-28")

    assert (time.about, time.quantity) == ("decode_ep32_b200", "tpot_s")
    assert (time.predicted, time.ideal, time.interval_80) == (0.021, 0.020, (0.019, 0.023))
    assert (bubble.predicted, bubble.ideal) == (2.0, 2.0)
    assert [len(d) for d in (time.digest, time.scenario, time.program, time.priors)] == [16] * 4


@pytest.mark.parametrize(("name", "known"), [("dualpipe_h800_2048", True), ("azure_code", False)])
def test_a_scenario_with_published_figures_counts_as_known(name, known):
    scenario = load_scenario(name)
    metrics = {"step_time_s": 1.0, "interval_80": {"step_time_s": [0.9, 1.2]}}

    (line,) = scenario_lines(scenario, metrics, date="2026-11-28")

    assert line.truth_known is known
    (seen,) = scenario_lines(scenario, metrics, date="2026-11-28", known=True)
    assert seen.truth_known


def test_a_changed_scenario_is_another_job_and_named_by_its_changes():
    changes = ("training.pp=8", "training.ep=32")
    metrics = {"step_time_s": 1.0, "interval_80": {"step_time_s": [0.9, 1.2]}}
    scenario = load_scenario("dualpipe_h800_2048", changes)

    (line,) = scenario_lines(scenario, metrics, date="2026-11-28")

    assert line.about == "dualpipe_h800_2048 with training.ep=32, training.pp=8"
    assert not line.truth_known


def test_lines_of_the_last_release_stand_as_they_were():
    """The first 64, of November 2026, byte for byte."""
    lines = LEDGER.read_bytes().splitlines(keepends=True)[:64]

    assert hashlib.sha256(b"".join(lines)).hexdigest() == (
        "8c2bcd7c4e6edfeebc69320f65dbacf63f53d95ec53edb99e59c50056cc85c50"
    )


def test_what_the_last_commit_predicted_is_still_predicted():
    name = LEDGER.relative_to(ROOT).as_posix()
    shown = subprocess.run(
        ["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if shown.returncode:
        pytest.skip("no git history of the ledger at hand")
    assert is_only_added_to(shown.stdout, LEDGER.read_text(encoding="utf-8"))


def test_no_predictions_write_no_file_and_a_link_in_a_circle_is_left_alone(tmp_path):
    append_to_ledger(tmp_path / "new.jsonl", [])
    assert not (tmp_path / "new.jsonl").exists()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match="loop: cannot be read"):
        append_to_ledger(tmp_path / "loop", [])
    assert (tmp_path / "loop").is_symlink()
