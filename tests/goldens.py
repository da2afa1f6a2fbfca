"""Metrics of many runs, kept to the last digit, so that no change moves a number unseen.

`python tests/goldens.py` writes goldens.json again; the difference shows in version control what a
change has moved. Text is left out, and so is what depends on the machine that ran. Values of one
path in a long list (ranks, flows, requests) are kept as their count, their sum and their sum
weighted by position.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GOLDENS = Path(__file__).with_suffix(".json")

MAIN = "dualpipe_h800_2048"
CHANGED = (
    (MAIN, "cluster.node.gpu=h200_sxm"),
    (MAIN, "training.schedule=1f1b", "training.pp=8"),
    (MAIN, "training.ep=32", "training.global_batch_sequences=7680"),
    (MAIN, "cluster.failures=['nic:3/1']"),
    (MAIN, "training.skew.rows.max_over_mean=1.3"),
    (
        "fsdp_b200_256",
        "cluster.nodes=1",
        "model.num_hidden_layers=4",
        "training.ep=8",
        "training.optimizer.offload=cpu",
        "training.ema=float32",
    ),
    ("decode_ep128_profile", "skew.rows.zipf_exponent=0.5"),
    ("decode_ep144_day6", "cluster.node.gpu=h20_sxm"),
    ("prefill_ep32_profile", "skew.rows.max_over_mean=1.2"),
    ("deepep_normal", "cluster.failures=['nic:1/2']"),
    (
        "all_to_all_64",
        "cluster=h200_8",
        "collective.operation={name: all_reduce, gpus: 8, bytes_per_gpu: 64 MiB}",
        "collective.transport=nccl",
    ),
    ("day6_service", "fleet.requests.synthetic.rate=250 Hz"),
)
"""Runs beside the shipped scenarios: another GPU, schedule, group size, failure or load."""

SET = " --set "

LONG = 8
"""More values than this of one path are kept as sums."""

OF_THE_MACHINE = frozenset(
    {"wall_clock_s", "events_per_second", "simulated_s_per_s", "littles_law_error"}
)
"""Metrics that say how fast the simulation itself ran, or what its sums round to."""


def names() -> list[str]:
    """Every golden run as the command line would say it: the scenario and its changes."""
    from simulator.scenario.files import known_scenarios

    return [*known_scenarios(), *(SET.join(run) for run in CHANGED)]


def job_of(name: str) -> str:
    """The job of a golden run, read from its file alone: loading all of them takes seconds."""
    from hardware_profiles.fields import read_yaml
    from simulator.scenario.files import JOBS, SCENARIOS

    scenario = name.split(SET, maxsplit=1)[0]
    raw = read_yaml(SCENARIOS / f"{scenario}.yaml", where=scenario)
    return next(job for job in JOBS if job in raw)


def golden(name: str) -> dict[str, Any]:
    """Run a scenario with its changes; its metrics as {path: values, or [count, sum, weighted]}."""
    from simulator.analysis.run import simulate
    from simulator.scenario.files import load_scenario

    scenario, *changes = name.split(SET)
    metrics = simulate(load_scenario(scenario, changes)).metrics
    columns: dict[str, list[float | bool | None]] = {}
    for path, value in _leaves(metrics, ""):
        columns.setdefault(path, []).append(value)
    return {path: _kept(column) for path, column in sorted(columns.items())}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, float | bool | None]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in OF_THE_MACHINE:
                yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, f"{path}[]")
    elif not isinstance(value, str):
        yield path, value


def _kept(column: list[float | bool | None]) -> list[Any]:
    if len(column) <= LONG or any(value is None for value in column):
        return column
    numbers = [float(value) for value in column if value is not None]
    weighted = math.fsum(place * value for place, value in enumerate(numbers, start=1))
    return [len(numbers), math.fsum(numbers), weighted]


def main() -> None:
    """Write every golden again, or those whose name holds one of the words given."""
    words = sys.argv[1:]
    known = json.loads(GOLDENS.read_text()) if words and GOLDENS.exists() else {}
    for name in names():
        if not words or any(word in name for word in words):
            print(name, file=sys.stderr)
            known[name] = golden(name)
    ordered = {name: known[name] for name in names() if name in known}
    GOLDENS.write_text(json.dumps(ordered, indent=1) + "\n")


if __name__ == "__main__":
    main()
