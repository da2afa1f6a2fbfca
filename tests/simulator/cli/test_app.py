"""The command line: what it prints, where it writes, and how it refuses bad input."""

import os
import subprocess
import sys

import pytest
from command_line import MAIN, dsv3sim


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "nope"],
            "unknown scenario 'nope'; dsv3sim list scenarios shows all; or ",
        ),
        (["run", MAIN, "--set", "cluster=h900"], "unknown cluster 'h900'; known: "),
        (["run", MAIN, "--set", "training.schedule=hanayo"], "unknown name 'hanayo'; known: "),
        (
            ["run", MAIN, "--set", "training.pipeline=1"],
            "unknown field; did you mean training.pp, ",
        ),
        (["run", MAIN, "--set", "training.pp=4"], "28.67 GiB more than its 79.11 GiB: "),
        (["run", "broken.yaml"], "broken.yaml: line 3: not valid YAML"),
        (["run", MAIN, "--out", "thesis"], "is not a run directory"),
        (["compare", "thesis"], "two or more"),
        (["compare", "thesis", "thesis"], "not a run directory"),
        (["show", "gpu", "h900"], "unknown GPU 'h900'; known: "),
        (["show", "schedule", "dualpipe", "--microbatches", "7"], "microbatches = 7, must be even"),
        (
            ["show", "schedule", "zb_h2", "--virtual-stages", "2"],
            "must be left out; interleaved, ",
        ),
        (["show", "schedule", "dualpipe", "--times", "1,2"], "allowed: four positive numbers"),
        (["show", "schedule", "1f1b", "--ranks", "100000"], "at most 100,000 micro-batches times"),
        (
            ["show", "schedule", "interleaved", "--virtual-stages", "1000000000000"],
            "--ranks 8 --microbatches 20 --virtual-stages 1000000000000: too many to print",
        ),
        (["run", MAIN, "--out", "a" * 300], f"{'a' * 60}...{'a' * 59}: File name too long"),
        (["run", MAIN, "--set", f"training.schedule={'long ' * 500}"], "dualpipe"),
        (["show", "model", "big.json"], "hidden_size = 1000000"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_2(arguments, message, tmp_path):
    (tmp_path / "broken.yaml").write_text("description: x\nmodel: [\n")
    (tmp_path / "big.json").write_text(f'{{"vocab_size": 8, "hidden_size": 1{"0" * 400}}}')
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    done = dsv3sim(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"broken.yaml", "big.json", "thesis"}
    assert len(done.stderr) < 1000


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


@pytest.mark.parametrize(("wished", "threads"), [(None, "1"), ("3", "3")])
def test_products_of_matrices_take_one_thread_where_the_user_wishes_no_other(wished, threads):
    name = "OPENBLAS_NUM_THREADS"
    env = {key: value for key, value in os.environ.items() if key != name}
    program = (
        "import os, sys\n"
        "from simulator.cli.app import main\n"
        "sys.argv = ['dsv3sim', '--version']\n"
        "try:\n    main()\n"
        f"finally:\n    assert 'numpy' not in sys.modules\n    print(os.environ['{name}'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=env if wished is None else env | {name: wished},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == [threads], done.stderr


def test_a_full_disk_behind_the_output_is_one_line():
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "simulator.cli", "show", "scenario"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "dsv3sim: standard output: No space left on device\n"


def test_output_that_nobody_reads_ends_quietly():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "simulator.cli", "show", "scenario"],
        stdout=write, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
