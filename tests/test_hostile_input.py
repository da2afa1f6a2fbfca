"""No input ends in a traceback, a hang or a figure that is no number.

Files of every format are broken at random, and fields of every shipped scenario are set to values
that nobody would mean. Each input runs in this process through the command line's own entry point
and either gives finite figures or one line with exit code 2. About a minute of them is tried in
every run of the suite; `make hour` tries others for an hour.
"""

import dataclasses
import itertools
import json
import os
import random
import re
import signal
import socket
import time
import traceback
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from invariants import SHORT
from small_plans import HELD, PLAN_SERVING, PLAN_TRAINING

from reference_model.config import load_model_config
from reference_model.trace import trace_name
from simulator.cli.app import main
from simulator.cli.progress import PREFIX
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
    "loop",
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
    lines = [line for line in shown.err.splitlines() if not line.startswith(("note: ", PREFIX))]
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


NCCL = """\
# nccl-tests version 2.17.6 nccl-headers=22807 nccl-library=22807
# Collective test starting: alltoall_perf
# nThread 1 nGpus 2 minBytes 1048576 maxBytes 2097152 step: 2(factor) warmup iters: 5 iters: 20
#  Rank  0 Group  0 Pid  15784 on  host-a device  0 [0000:1b:00] NVIDIA H200
#  Rank  1 Group  0 Pid  15784 on  host-a device  1 [0000:43:00] NVIDIA H200
#       size         count      type   redop    root     time   algbw   busbw #wrong     time
     1048576        131072     float    none      -1    19.41   54.02   27.01      0    19.30
     2097152        262144     float    none      -1    22.80   91.98   45.99      0    22.61
"""
POPULARITY = "layer,expert,rows\n" + "".join(
    f"{layer},{expert},{1 + expert % 7}\n" for layer in range(58) for expert in range(256)
)
PREDICTION = {
    "about": "a step", "quantity": "step time", "predicted": 0.02, "interval_80": [0.01, 0.03],
    "digest": "0123456789abcdef", "date": "2026-11-28", "truth_known": False,
}  # fmt: skip
OPERATIONS = "optype,stage,dp_rank,step,seq_id,start_ts,duration\n" + "".join(
    f"{kind},{stage},{replica},7,0,{start},{duration}\n"
    for stage in range(2)
    for replica in range(2)
    for kind, start, duration in (
        ("params-all-gather", 0, 0.25), ("gc", 8, 0.01), ("layernorm-grads-all-reduce", 10, 0.01),
        ("grads-reduce-scatter", 10.75, 3), ("optimizer-clip-main-grad", 13.75, 0.25),
        ("optimizer", 14, 1), ("forward-compute", 0.25 + 1.5 * stage, 1 + stage),
        ("backward-compute", 8.25 - 4.5 * stage, 2 + 2 * stage),
        ("embedding-grads-all-reduce", 10.25, 0.5), ("forward-recv", 0.25, 1.5),
        ("forward-send", 1.25, 0.5), ("backward-recv", 1.25, 7), ("backward-send", 7.75, 0.5),
    )
)  # fmt: skip
FOUND = {
    "step_t_nodelay": {"7": 15.0}, "step_t_noblk": {"7": 14.0}, "blocking_slowdown": 1.1,
    "blocking_decompose_by_optype": {"gc": 1.0}, "blocking_decompose_by_stage": {"0": 1.0},
    "blocking_decompose_by_dp_rank": {"0": 1.0},
}  # fmt: skip


def recorded_job(path):
    """Table of operations as the Parquet file of a recorded job; what is no table as it is."""
    parquet = Path(path).with_suffix(".parquet")
    try:
        pd.read_csv(path).to_parquet(parquet)
    except Exception:
        parquet.write_bytes(Path(path).read_bytes())
    return ["validate", "--json", "--stragglers", str(parquet.parent)]


NARROW = dataclasses.replace(load_model_config("debug"), vocab_size=608)
"""A model that no shipped recording is of."""
RECORDING = trace_name(NARROW.shape_digest[:16], "decode", "fp8")


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
    "nccl.txt": (
        NCCL,
        lambda path: ["calibrate", path, "--gpu", "h200_sxm", "--explain"],
    ),
    "columns.yaml": (
        shipped("hardware_profiles/mappings/infersim_gemm.yaml"),
        lambda path: ["calibrate", "gemm.csv", "--gpu", "h800_sxm", "--explain",
                      "--mapping", path],
    ),
    "kernels.yaml": (
        shipped("hardware_profiles/mappings/pytorch_profile.yaml"),
        lambda path: ["replay", "profile.json", "--gpu", "h800_sxm", "--json", "--mapping", path],
    ),
    "transport.yaml": (
        shipped("hardware_profiles/transports/nccl_h100_sxm.yaml"),
        lambda path: ["run", "deepep_normal", "--set", f"transport={path}", *QUICK],
    ),
    "low_latency.yaml": (
        shipped("hardware_profiles/low_latency/deepep_h800_rdma.yaml"),
        lambda path: ["run", "decode_ep320_report", "--set",
                      f"all_to_all.low_latency={path}", *QUICK],
    ),
    "server.yaml": (
        shipped("hardware_profiles/servers/ktransformers_4090d.yaml"),
        lambda path: ["run", "offload_ktransformers", "--set", f"server={path}", *QUICK],
    ),
    "popularity.csv": (
        POPULARITY,
        lambda path: ["run", "decode_ep8_h200", "--set", "skew.rows.form=popularity",
                      "--set", f"skew.rows.file={path}", *QUICK],
    ),
    "ledger.jsonl": (
        json.dumps(PREDICTION) + "\n",
        lambda path: ["validate", "--whole", "--json", "--ledger", path],
    ),
    "trace-a.csv": (OPERATIONS, recorded_job),
    "meta-a.yaml": (
        "dp_size: 2\npp_size: 2\nvpp_size: 1\n",
        lambda path: recorded_job(Path(path).with_name("trace-a.csv")),
    ),
    "result-a.json": (
        json.dumps(FOUND),
        lambda path: recorded_job(Path(path).with_name("trace-a.csv")),
    ),
    RECORDING: (
        shipped("reference_model/traces/debug.decode.jsonl").replace(
            load_model_config("debug").shape_digest, NARROW.shape_digest
        ),
        lambda path: ["run", "decode_ep8_h200", *QUICK, "--set", "model=narrow.json",
                      "--set", f"traces={Path(path).parent}"],
    ),
    "metrics.json": (
        '{"step_s": 0.03, "kernels": {"prefill": 1}, "interval_80": {"step_s": [0.02, 0.04]}}',
        lambda path: ["compare", str(Path(path).parent), str(Path(path).parent)],
    ),
}  # fmt: skip
"""Name of a file -> its text before it is broken, and the command that reads it."""


def write_whole_files(folder):
    """One file of every format, unbroken: commands read some beside the one that is broken. And a
    link to itself."""
    for name, (text, _) in FORMATS.items():
        (folder / name).write_text(text, encoding="utf-8")
    if not (folder / "loop").is_symlink():
        (folder / "loop").unlink(missing_ok=True)
        (folder / "loop").symlink_to("loop")
    narrow = json.dumps(dataclasses.asdict(NARROW))
    (folder / "narrow.json").write_text(narrow, encoding="utf-8")


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
    write_whole_files(folder)
    for _ in range(count):
        path.write_text(broken(text, rng), encoding="utf-8")
        check(command(str(path)), capsys, monkeypatch)


OWN = (*PLAN_TRAINING, "--json", "--simulate", "1")
GIVEN = (
    "plan", "training", *HELD, "--json", "--simulate", "1", "--model", "debug", "--gpu", "h100",
    "--gpus", "16", "--batch", "32",
)  # fmt: skip
SERVING = (*PLAN_SERVING, "--json")
TRACED = tuple(part for part in SERVING if part not in ("--prompt", "512", "--output", "16"))
"""Without lengths, which requests have of their own."""
A_GPU = ("init", "gpu", "new.yaml")
A_CLUSTER = ("init", "cluster", "new.yaml", "--gpu", "h100", "--gpus", "16")
A_TRAINING = ("init", "training", "new.yaml", "--batch", "512", "--gpu", "h100", "--gpus", "64")
A_SERVICE = (
    "init", "serving", "new.yaml", "--gpu", "h200", "--rate", "1", "--prompt", "512", "--output",
    "64",
)  # fmt: skip


def with_each(command, options):
    """The command with a hostile value for one of some options; the last of two that are given
    counts."""
    return tuple((*command, f"--{option}", "{}") for option in options.split())


PLANS = (
    ("plan", "training", "--from", "{}", "--json"),
    *with_each(OWN, "fix memory-limit set simulate out"),
    (*OWN, "--fix", "pp={}"),
    (*OWN, "--fix", "schedule={}"),
    *with_each(OWN, "budget tokens"),
    (*OWN, "--budget", "32 USD/h", "--tokens", "{}"),
    *with_each(GIVEN, "model gpu gpus cluster calibration batch sequence recipe memory-limit"),
    *with_each(SERVING, "gpu rate prompt output ttft tpot percentile model length-cv cached"),
    *with_each(SERVING, "recipe kv-cache requests format cluster out"),
    (*TRACED, "--requests", "{}"),
    (*TRACED, "--requests", "azure.csv", "--format", "{}"),
    (*TRACED, "--requests", "{}", "--format", "azure"),
)
"""Commands that work out many runs for one answer."""
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
    ("sweep", "all_to_all_64", "--json", "--vary", "seed=1", "--set", "{}"),
    ("sweep", "all_to_all_64", "--vary", "seed=1", "--out", "{}"),
    ("sweep", "decode_ep8_h200", "--json", "--interval", "--vary", "requests.context_tokens={}"),
    ("run", "decode_ep8_h200", "--json", "--ideal", "--set", "{}"),
    ("run", "decode_ep8_h200", "--json", "--set", "skew={}"),
    ("run", "decode_ep8_h200", *QUICK, "--set", "fidelity={}"),
    ("run", "decode_ep8_h200", *QUICK, "--set", "events={}"),
    ("run", "dualpipe_h800_2048", *QUICK, "--set", "training.schedule={}"),
    ("compare", "{}", "{}"),
    ("compare", "{}", "{}", "--out", "{}"),
    ("compare", "{}", "--json", "--cluster", "h200_8"),
    ("compare", "decode_ep8_h200", "--json", "--cluster", "{}", "--set", "skew=none"),
    ("compare", "decode_ep8_h200", "--json", "--cluster", "h200_8", "--set", "{}"),
    ("sensitivity", "{}", "--json"),
    *with_each(
        ("sensitivity", "decode_ep8_h200", "--ideal", "--json", "--only", "HBM bandwidth"),
        "target only set out",
    ),
    ("init", "gpu", "{}.yaml"),
    *with_each(A_GPU, "like architecture sms clock bf16 fp8 fp4 memory hbm l2 nvlink pcie power"),
    ("init", "cluster", "{}", "--gpu", "h100", "--gpus", "16"),
    *with_each(
        A_CLUSTER, "gpu gpus like gpus-per-node nvlink-domain nic nics-per-node topology price"
    ),
    ("init", "training", "{}", "--batch", "512", "--gpu", "h100", "--gpus", "64"),
    *with_each(
        A_TRAINING,
        "batch model sequence gpu gpus cluster calibration recipe pp ep tp cp micro-batch "
        "schedule zero recompute",
    ),
    ("init", "serving", "{}", *A_SERVICE[3:]),
    *with_each(
        A_SERVICE,
        "rate prompt output gpu cluster prefill decode colocated model ttft tpot length-cv "
        "cached recipe kv-cache",
    ),
    ("attribute", "{}"),
    ("attribute", "dualpipe_h800_2048", "--json", "--set", "{}"),
    ("validate", "{}"),
    ("validate", "--whole", "--json", "--lease", "{}"),
    ("validate", "--whole", "--json", "--ledger", "{}"),
    ("validate", "--whole", "--lease", "h200_sxm_1", "--predict", "{}"),
    ("validate", "all_to_all_64", "--write-ledger", "{}"),
    ("validate", "{}", "--write-ledger", "ledger.jsonl"),
    ("validate", "all_to_all_64", "--write-ledger", "ledger.jsonl", "--known", "{}"),
    ("validate", "--json", "--stragglers", "{}"),
    ("replay", "{}", "--json"),
    ("replay", "profile.json", "--json", "--set", "{}"),
    ("replay", "profile.json", "--out", "{}"),
    ("replay", "profile.json", "--json", "--recorded-gpu", "{}"),
    ("replay", "profile.json", "--json", "--gpu", "{}"),
    ("replay", "profile.json", "--json", "--mapping", "{}"),
    ("calibrate", "{}", "--gpu", "h800_sxm", "--out", "mine.yaml"),
    ("calibrate", "gemm.csv", "--gpu", "{}", "--out", "mine.yaml"),
    ("calibrate", "gemm.csv", "--gpu", "h800_sxm", "--out", "{}"),
    ("calibrate", "gemm.csv", "--gpu", "h800_sxm", "--out", "mine.yaml", "--mapping", "{}"),
    ("calibrate", "gemm.csv", "--gpu", "h800_sxm", "--out", "mine.yaml", "--base", "{}"),
    ("calibrate", "gemm.csv", "--gpu", "h800_sxm", "--out", "mine.yaml", "--sets", "{}"),
    ("calibrate", "gemm.csv", "--gpu", "h800_sxm", "--explain", "--column", "{}"),
    ("calibrate", "gemm.csv", "--gpu", "h800_sxm", "--out", "mine.yaml", "--report", "{}"),
    ("show", "calibration", "{}"),
    ("show", "restatement", "{}", "h200_8", "h200_sxm"),
    ("show", "restatement", "h800_sxm", "{}", "h200_sxm"),
    ("show", "restatement", "h800_sxm", "h200_8", "{}"),
    ("show", "gpu", "{}"),
    ("show", "cluster", "{}"),
    ("show", "model", "{}"),
    ("show", "model", "deepseek_v3", "{}"),
    ("show", "model", "deepseek_v3", "--context", "{}"),
    ("show", "model", "deepseek_v3", "--gpus", "{}"),
    ("show", "scenario", "{}"),
    ("show", "scenario", "decode_ep8_h200", "--resolved", "--set", "{}"),
    ("show", "fields", "{}"),
    ("show", "metrics", "{}"),
    ("show", "metrics", "--job", "{}"),
    ("show", "schema", "{}"),
    ("list", "{}"),
    ("run", "all_to_all_64", "--metric", "{}"),
    ("run", "all_to_all_64", "--metric", "completion_s", "--format", "{}"),
    ("run", "all_to_all_64", "--format", "csv", "--set", "{}"),
    ("run", "decode_ep8_h200", *QUICK, "--from-events", "{}"),
    ("{}",),
    ("plan", "{}"),
    ("init", "{}"),
    ("show", "schedule", "{}"),
    ("show", "schedule", "1f1b", "--ranks", "{}"),
    ("show", "schedule", "1f1b", "--microbatches", "{}"),
    ("show", "schedule", "1f1b", "--times", "{}"),
    ("show", "schedule", "interleaved", "--virtual-stages", "{}"),
    ("show", "pair", "{}"),
    ("show", "pair", "dualpipe_h800_2048", "--order", "{}"),
    ("show", "pair", "dualpipe_h800_2048", "--measured", "{}"),
)
"""Every command, with a place for a hostile value in each argument and option."""


def check_command(command, value, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    write_whole_files(folder)
    (folder / "new.yaml").unlink(missing_ok=True)
    check([part.replace("{}", value) for part in command], capsys, monkeypatch)
    drafts = f".{socket.gethostname()[:40]}."
    assert [path.name for path in folder.iterdir() if drafts in path.name] == [], command


def short_name(command):
    """Of a command, what it is and what is hostile."""
    return " ".join((*command[:2], *command[-2:]))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_hostile_argument_or_option_ends_in_figures_or_one_line(
    command, tmp_path, capsys, monkeypatch
):
    rng = random.Random(" ".join(command))
    for value in rng.sample(HOSTILE, 2):
        check_command(command, value, tmp_path, capsys, monkeypatch)


@pytest.mark.parametrize("value", ["", "run [/red]", "run d", "plan training --fi", "run 'é"])
def test_a_shell_that_completes_what_is_typed_gets_words_and_no_traceback(
    value, capsys, monkeypatch
):
    words = f"dsv3sim {value}"
    monkeypatch.setenv("_DSV3SIM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(max(1, len(words.split()) - 1)))
    monkeypatch.setattr("sys.argv", ["dsv3sim"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", PLANS, ids=short_name)
def test_a_hostile_option_of_a_plan_ends_in_figures_or_one_line(
    command, tmp_path, capsys, monkeypatch
):
    value = random.Random(" ".join(command)).choice(HOSTILE)
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
    tried, faults = 0, []

    def one(checked, *arguments):
        """Try one input; a fault is written down and the next is tried."""
        nonlocal tried
        tried += 1
        try:
            checked(*arguments, capsys, monkeypatch)
        except (Exception, Hang) as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            faults.append(f"{arguments}: {error!r:.600} at {last.filename}:{last.lineno}")
            with capsys.disabled():
                print(f"\n{faults[-1]}", flush=True)

    for name, path in itertools.cycle(fields):
        if time.monotonic() > until:
            break
        changes = (*SHORT.get(name, ()), f"{path}={rng.choice(HOSTILE)}")
        options = [part for change in changes for part in ("--set", change)]
        one(check, ["run", name, *options, *QUICK])
        seed = rng.randrange(10**9)
        one(check_file, rng.choice(list(FORMATS)), seed, 1, tmp_path)
        command = rng.choice((*COMMANDS, *PLANS))
        one(check_command, command, rng.choice(HOSTILE), tmp_path)
    with capsys.disabled():
        print(f"\n{tried} inputs, {len(fields)} fields: {len(faults)} tracebacks, hangs or NaN")
    assert not faults


@pytest.mark.parametrize("name", FORMATS)
def test_the_files_that_are_broken_are_read_when_they_are_whole(name, tmp_path, monkeypatch):
    """Else every one of them would be refused for another reason."""
    _, command = FORMATS[name]
    write_whole_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dsv3sim", *command(str(tmp_path / name))])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
