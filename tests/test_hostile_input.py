"""No input ends in a traceback, a hang or a figure that is no number.

Files of every format are broken at random, and fields of every shipped scenario are set to values
that nobody would mean. Each input runs in this process through the command line's own entry point
and either gives finite figures or one line with exit code 2. About a minute of them is tried in
every run of the suite; `make hour` tries others for an hour.
"""

import itertools
import json
import os
import random
import re
import signal
import time
from functools import cache
from pathlib import Path

import pytest
from invariants import SHORT

from simulator.cli.app import main
from simulator.scenario.files import known_scenarios, load_scenario

ROOT = Path(__file__).resolve().parents[1]
LONGEST_S = 60
"""A single input that works for longer hangs, however busy the machine is; so does one that waits
ten times as long."""
LONGEST_LINE = 1200

QUICK = ("--json", "--no-interval")
HOSTILE = (
    "0", "-1", "1", "3", "1.5", "-0.0", "1e-30", "1e17", "1" + "0" * 400, "nan", ".nan", ".inf",
    "-.inf", "null", "''", "[]", "{}", "true", "x" * 300, "[/red]", "1 ns", "0 s", "1e300 s",
    "-5 us", "1e-300 GB/s", "1e30 GB/s", "5 GB", "2024-01-01", "[1,2,3]", "{a: 1}", "/dev/zero",
    "../../etc/passwd", "/", "4294967296", "1000003", "h100_sxm", "fp4", "'\x00'", "\u00e9",
    "<<: 1", "*a", "!!python/object:x y", "1 TiB", "0 Hz", "9223372036854775808", "\ufeff", "=1+1",
)  # fmt: skip


class Hang(BaseException):
    """Not an Exception, so that no handler takes it for an error of the input."""


def check(arguments, capsys, monkeypatch):
    """Run the command line on one input; it ends with finite figures or one line."""

    def hang(*_):
        raise Hang(arguments)

    # Models of other shapes are refused and not recorded, which takes seconds each.
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    monkeypatch.setattr("sys.argv", ["dsv3sim", *arguments])
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, hang)
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    signal.setitimer(signal.ITIMER_REAL, 10 * LONGEST_S)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if not line.startswith("note: ")]
    assert ended.value.code in (0, 2), arguments
    if ended.value.code == 2:
        assert len(lines) == 1, (arguments, lines)
        assert re.match(r"dsv3sim: \S", lines[0]), arguments
        assert len(lines[0]) <= LONGEST_LINE, (arguments, lines[0])
    assert not re.search(r"\b(NaN|Infinity)\b", shown.out), arguments


def field_paths(value, path=""):
    """Dotted paths of all fields that a scenario has, those of named files included."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        here = f"{path}.{key}".removeprefix(".")
        if key not in ("sources", "published"):
            yield here
            yield from field_paths(inner, here)


@cache
def paths_of(scenario):
    return sorted(field_paths(load_scenario(scenario).resolved))


def check_fields(seed, count, capsys, monkeypatch):
    rng = random.Random(seed)
    for _ in range(count):
        name = rng.choice(known_scenarios())
        changes = list(SHORT.get(name, ()))
        for _ in range(rng.choice((1, 1, 2))):
            changes.append(f"{rng.choice(paths_of(name))}={rng.choice(HOSTILE)}")
        options = [part for change in changes for part in ("--set", change)]
        check(["run", name, *options, *QUICK], capsys, monkeypatch)


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:15:{46 + second}.6805900,{374 + second},{44 - second}\n" for second in range(9)
)
MOONCAKE = "".join(
    json.dumps({"timestamp": 300 * n, "input_length": 700, "output_length": 9, "hash_ids": [0, n]})
    + "\n"
    for n in range(9)
)
PROFILE = {
    "deviceProperties": [{"id": 0, "name": "NVIDIA H800"}],
    "traceEvents": [
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 1, "tid": 1,
         "ts": 10 * n, "dur": 2, "args": {"correlation": n, "External id": n}}
        for n in range(1, 5)
    ] + [
        {"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": 7, "ts": 10 * n + 5, "dur": 4,
         "args": {"correlation": n, "device": 0, "stream": 7, "grid": [8, 1, 1], "External id": n}}
        for n, name in enumerate(("ncclDevKernel_AllReduce", "nvjet_hsh", "gemm", "fill"), start=1)
    ],
}  # fmt: skip


def shipped(path, lines=None):
    return "\n".join((ROOT / path).read_text(encoding="utf-8").splitlines()[:lines]) + "\n"


FORMATS = {
    "own.csv": (
        shipped("hardware_profiles/measurements/h800_sxm.csv", 30),
        lambda path: ["calibrate", path, "--gpu", "h800_sxm", "--out", f"{path}.yaml"],
    ),
    "gemm.csv": (
        "m,k,n,latency_us,mfu\n64,7168,2112,11.2,0.09\n128,7168,2112,12.5,0.16\n",
        lambda path: ["calibrate", path, "--gpu", "h800_sxm", "--out", f"{path}.yaml"],
    ),
    "profile.json": (
        json.dumps(PROFILE),
        lambda path: ["replay", path, "--gpu", "h800_sxm", "--json"],
    ),
    "azure.csv": (
        AZURE,
        lambda path: ["run", "azure_conversation", "--set", f"requests.file={path}",
                      "--set", "warm_up=0 s", *QUICK],
    ),
    "mooncake.jsonl": (
        MOONCAKE,
        lambda path: ["run", "mooncake_conversation", "--set", f"requests.file={path}",
                      "--set", "warm_up=0 s", *QUICK],
    ),
    "step.yaml": (
        shipped("simulator/scenario/shipped/decode_ep8_h200.yaml"),
        lambda path: ["run", path, *QUICK],
    ),
    "training.yaml": (
        shipped("simulator/scenario/shipped/dualpipe_h800_2048.yaml"),
        lambda path: ["run", path, *QUICK],
    ),
    "config.json": (
        shipped("reference_model/configs/deepseek_v3.json"),
        lambda path: ["run", "decode_ep8_h200", "--set", f"model={path}", *QUICK],
    ),
    "shown.json": (
        shipped("reference_model/configs/deepseek_v3.json"),
        lambda path: ["show", "model", path],
    ),
    "calibration.yaml": (
        shipped("hardware_profiles/calibrations/h20_sxm.yaml"),
        lambda path: ["run", "decode_ep32_h20", "--set", f"calibration={path}", *QUICK],
    ),
    "gpu.yaml": (
        shipped("hardware_profiles/gpus/h20_sxm.yaml"),
        lambda path: ["run", "decode_ep32_h20", "--set", f"cluster.node.gpu={path}", *QUICK],
    ),
    "cluster.yaml": (
        shipped("hardware_profiles/clusters/h200_8.yaml"),
        lambda path: ["run", "decode_ep8_h200", "--set", f"cluster={path}", *QUICK],
    ),
    "metrics.json": (
        '{"step_s": 0.03, "kernels": {"prefill": 1}, "interval_80": {"step_s": [0.02, 0.04]}}',
        lambda path: ["compare", str(Path(path).parent), str(Path(path).parent)],
    ),
}  # fmt: skip
"""Name of a file -> its text before it is broken, and the command that reads it."""


def broken(text, rng):
    """The text with a few random faults: bytes, lines, numbers and words."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        place, lines = rng.randrange(len(text) + 1), text.splitlines(keepends=True) or [""]
        number = [found.span() for found in re.finditer(r"-?\d+\.?\d*(e-?\d+)?", text)]
        word = [found.span() for found in re.finditer(r"[A-Za-z_]{3,}", text)]
        line = rng.randrange(len(lines))
        match rng.choice(("insert", "delete", "cut", "double", "drop", "number", "word")):
            case "insert":
                text = text[:place] + rng.choice(HOSTILE) + text[place:]
            case "delete":
                text = text[:place] + text[place + rng.choice((1, 5, 50)) :]
            case "cut":
                text = text[:place]
            case "double":
                text = "".join([*lines[:line], lines[line], *lines[line:]])
            case "drop":
                text = "".join([*lines[:line], *lines[line + 1 :]])
            case "number" if number:
                start, end = rng.choice(number)
                text = text[:start] + rng.choice(HOSTILE) + text[end:]
            case "word" if word:
                start, end = rng.choice(word)
                shuffled = "".join(rng.sample(text[start:end], end - start))
                text = text[:start] + rng.choice((*HOSTILE, shuffled)) + text[end:]
    return text


def check_file(name, seed, count, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    rng = random.Random(f"{name} {seed}")
    text, command = FORMATS[name]
    path = folder / name
    for _ in range(count):
        path.write_text(broken(text, rng), encoding="utf-8")
        check(command(str(path)), capsys, monkeypatch)


COMMANDS = (
    ("run", "{}"),
    ("run", "all_to_all_64", "--out", "{}"),
    ("run", "all_to_all_64", "--set", "{}"),
    ("sweep", "all_to_all_64", "--json", "--vary", "seed={}"),
    ("sweep", "all_to_all_64", "--json", "--vary", "{}"),
    ("sweep", "all_to_all_64", "--json", "--vary", "cluster.node.nic.bandwidth={},200 Gbit/s"),
    ("sweep", "all_to_all_64", "--json", "--vary", "seed=1,2", "--where", "completion_s<={}"),
    ("sweep", "all_to_all_64", "--json", "--vary", "seed=1,2", "--objective", "{}"),
    ("sweep", "all_to_all_64", "--json", "--vary", "seed=1,2", "--metric", "{}"),
    ("sweep", "all_to_all_64", "--json", "--vary", "seed=1", "--jobs", "{}"),
    ("compare", "{}", "{}"),
    ("attribute", "{}"),
    ("validate", "{}"),
    ("replay", "{}", "--json"),
    ("replay", "profile.json", "--json", "--gpu", "{}"),
    ("replay", "profile.json", "--json", "--mapping", "{}"),
    ("calibrate", "{}", "--gpu", "h800_sxm", "--out", "mine.yaml"),
    ("calibrate", "gemm.csv", "--gpu", "{}", "--out", "mine.yaml"),
    ("calibrate", "gemm.csv", "--gpu", "h800_sxm", "--out", "{}"),
    ("calibrate", "gemm.csv", "--gpu", "h800_sxm", "--out", "mine.yaml", "--mapping", "{}"),
    ("calibrate", "gemm.csv", "--gpu", "h800_sxm", "--out", "mine.yaml", "--base", "{}"),
    ("calibrate", "gemm.csv", "--gpu", "h800_sxm", "--out", "mine.yaml", "--sets", "{}"),
    ("calibrate", "gemm.csv", "--gpu", "h800_sxm", "--explain", "--column", "{}"),
    ("show", "gpu", "{}"),
    ("show", "cluster", "{}"),
    ("show", "model", "{}"),
    ("show", "scenario", "{}"),
    ("show", "schedule", "{}"),
    ("show", "schedule", "1f1b", "--ranks", "{}"),
    ("show", "schedule", "1f1b", "--microbatches", "{}"),
    ("show", "schedule", "1f1b", "--times", "{}"),
    ("show", "pair", "{}"),
)
"""Every command, with a place for a hostile value in each argument and option."""


def check_command(command, value, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("profile.json", "gemm.csv"):
        (folder / name).write_text(FORMATS[name][0], encoding="utf-8")
    check([part.format(value) for part in command], capsys, monkeypatch)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_hostile_argument_or_option_ends_in_figures_or_one_line(
    command, tmp_path, capsys, monkeypatch
):
    rng = random.Random(" ".join(command))
    for value in rng.sample(HOSTILE, 2):
        check_command(command, value, tmp_path, capsys, monkeypatch)


@pytest.mark.parametrize("seed", range(4))
def test_hostile_values_of_any_field_end_in_figures_or_one_line(seed, capsys, monkeypatch):
    check_fields(seed, 40, capsys, monkeypatch)


@pytest.mark.parametrize("name", FORMATS)
def test_a_broken_file_ends_in_figures_or_one_line(name, tmp_path, capsys, monkeypatch):
    check_file(name, 0, 10, tmp_path, capsys, monkeypatch)


@pytest.mark.slow
def test_hostile_input_of_all_kinds_for_ten_minutes_or_an_hour(tmp_path, capsys, monkeypatch):
    """Every field of every scenario in turn, every format, every command, until the time is over.

    `make hour` sets HOSTILE_SECONDS, and the seed to the time of day.
    """
    rng = random.Random(os.environ.get("HOSTILE_SEED", "0"))
    until = time.monotonic() + float(os.environ.get("HOSTILE_SECONDS", "600"))
    fields = [(name, path) for name in known_scenarios() for path in paths_of(name)]
    rng.shuffle(fields)
    tried = 0
    for name, path in itertools.cycle(fields):
        if time.monotonic() > until:
            break
        changes = (*SHORT.get(name, ()), f"{path}={rng.choice(HOSTILE)}")
        options = [part for change in changes for part in ("--set", change)]
        check(["run", name, *options, *QUICK], capsys, monkeypatch)
        seed = rng.randrange(10**9)
        check_file(rng.choice(list(FORMATS)), seed, 1, tmp_path, capsys, monkeypatch)
        check_command(rng.choice(COMMANDS), rng.choice(HOSTILE), tmp_path, capsys, monkeypatch)
        tried += 3
    with capsys.disabled():
        print(f"\n{tried} inputs, {len(fields)} fields: no traceback, no hang, no NaN")


@pytest.mark.parametrize("name", FORMATS)
def test_the_files_that_are_broken_are_read_when_they_are_whole(name, tmp_path, monkeypatch):
    """Else every one of them would be refused for another reason."""
    text, command = FORMATS[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dsv3sim", *command(str(tmp_path / name))])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
