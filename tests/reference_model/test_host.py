"""All of a host at once, here two processes on CPUs: every part fills its table, and goes on."""

import csv
import json

import pytest

from reference_model.__main__ import main
from reference_model.config import CONFIG_FOLDER
from reference_model.host import counts_up_to, sizes_between
from tests.reference_model.test_pair import text

PARTS = ("alike", "collectives", "expert_parallel", "pair")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """A model of two layers, one of them a mixture of experts, and steps of a few tokens."""
    folder = tmp_path_factory.mktemp("host")
    raw = json.loads((CONFIG_FOLDER / "debug.json").read_text())
    config = folder / "tiny.json"
    config.write_text(json.dumps(raw | {"num_hidden_layers": 2, "num_nextn_predict_layers": 0}))
    order = folder / "order.jsonl"
    order.write_text(text(1))
    return [
        "host", "--out", str(folder / "tables"), "--config", str(config), "--ranks", "2",
        "--backend", "gloo", "--tokens", "16", "--sequences", "2", "--context", "16",
        "--repeats", "2", "--smallest", "1024", "--largest", "2048", "--together", "0.1",
        "--alone", "0.1", "--stretch", "0.1", "--order", str(order), "--communication-sms", "2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def tables(arguments):
    assert main(arguments) == 0
    return read(arguments)


def read(arguments):
    tables = {}
    for part in PARTS:
        with open(f"{arguments[2]}/{part}.csv", encoding="utf-8", newline="") as file:
            tables[part] = list(csv.DictReader(file))
    return tables


def conditions(line):
    return dict(pair.split("=") for pair in line["conditions"].split(";"))


def test_the_loop_runs_on_all_at_once_and_on_each_alone(tables):
    seen = {(conditions(line)["busy"], conditions(line)["gpu"]) for line in tables["alike"]}
    assert seen == {("all", "0"), ("all", "1"), ("alone", "0"), ("alone", "1")}


def test_every_collective_is_timed_at_every_size_launched_in_both_ways(tables):
    kinds = ("all_gather", "all_reduce", "all_to_all", "reduce_scatter", "send", "send_receive")
    seen = {
        (line["kind"], line["sizes"], conditions(line).get("launch", "eager"))
        for line in tables["collectives"]
    }
    assert seen == {
        (kind, f"bytes={size};ranks=2", launch)
        for kind in kinds
        for size in (1024, 2048)
        for launch in ("eager", "queued")
    }
    assert len(tables["collectives"]) == len(seen)


def test_every_rank_has_a_row_for_the_pair(tables):
    pairs = [line for line in tables["pair"] if line["kind"] == "pair"]
    assert [line["sizes"] for line in pairs] == ["communication_sms=2;tokens=16"] * 2
    assert [conditions(line)["rank"] for line in pairs] == ["0", "1"]


def test_a_pair_needs_an_order(capsys, tmp_path):
    assert main(["host", "--out", str(tmp_path), "--ranks", "2", "--parts", "pair"]) == 2
    assert "--parts pair: needs --order" in capsys.readouterr().err


def test_every_rank_has_a_row_for_each_transfer_of_each_step(tables):
    """Four transfers of a training step's one layer, two of a decode step's; two ranks; with even
    and with uneven routing."""
    jobs = [
        (conditions(line)["job"], conditions(line)["skew"]) for line in tables["expert_parallel"]
    ]
    assert {job: jobs.count(job) for job in jobs} == {
        ("train", "0"): 8, ("train", "1"): 8, ("decode", "0"): 4, ("decode", "1"): 4,
    }  # fmt: skip
    for line in tables["expert_parallel"]:
        assert float(conditions(line)["waiting_s"]) >= 0
        assert float(line["seconds"]) > 0


def test_a_second_run_finds_everything_in_the_tables(tables, arguments):
    assert main(arguments) == 0
    assert read(arguments) == tables


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--parts", "power"], "--parts 'power' is not one of alike, collectives, expert_parallel"),
        (["--ranks", "1"], "ranks = 1 must be at least 2: a host of one GPU has no peers"),
        (["--backend", "mpi"], "backend 'mpi' is not one of"),
        (["--repeats", "0"], "--repeats 0 must be at least 1"),
        (["--together", "0"], "--together 0.0 must be above 0"),
        (
            ["--parts", "expert_parallel", "--ranks", "3"],
            "ranks = 3 do not divide 8 routed experts",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, changes, message, tmp_path):
    assert main([*arguments, "--out", str(tmp_path / "other"), *changes]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_run_past_its_deadline_begins_no_part(capsys, arguments, tmp_path):
    assert main([*arguments, "--out", str(tmp_path / "other"), "--deadline", "0"]) == 0
    assert "stopped after 0 s; run again to go on" in capsys.readouterr().out


def test_sizes_double_and_groups_of_gpus_grow_to_all():
    assert sizes_between(65536, 300000) == [65536, 131072, 262144]
    assert counts_up_to(2) == [2]
    assert counts_up_to(4) == [2, 4]
    assert counts_up_to(6) == [2, 4, 6]
    assert counts_up_to(8) == [2, 4, 8]
