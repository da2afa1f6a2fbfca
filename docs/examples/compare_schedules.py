"""Compare pipeline schedules of one training job: load, change, simulate, compare, plot.

python docs/examples/compare_schedules.py [picture.png]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from simulator import Metric, Run, load_scenario, simulate
from simulator.analysis.every_metric import METRICS

SCENARIO = "dualpipe_h800_2048"
SCHEDULES = ("1f1b", "zb_h1", "dualpipe")
SHOWN = ("step_time_s", "bubble_s", "mfu_causal")


def simulate_schedules(scenario: str, schedules: tuple[str, ...]) -> dict[str, Run[Any]]:
    """The job of a scenario with each of some pipeline schedules, all else as it is."""
    return {
        schedule: simulate(load_scenario(scenario, [f"training.schedule={schedule}"]))
        for schedule in schedules
    }


def compare(runs: dict[str, Run[Any]], metrics: list[Metric]) -> str:
    """A line per metric with its value in each run; a star marks the best one."""
    lines = [" " * 22 + "".join(f"{name:>14}" for name in runs)]
    for metric in metrics:
        values = {name: run.quick_metrics[metric.name] for name, run in runs.items()}
        best = min(values.values()) if metric.better == "less" else max(values.values())
        cells = (f"{value:.4g}{'*' if value == best else ' '}" for value in values.values())
        label = f"{metric.name} ({metric.unit})"
        lines.append(f"{label:22}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def plot(runs: dict[str, Run[Any]], picture: Path) -> None:
    """Draw how long each pipeline rank waits, one line per run."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, run in runs.items():
        waits = [rank["bubble_s"] for rank in run.quick_metrics["ranks"]]
        axes.plot(range(len(waits)), waits, marker="o", label=name)
    axes.set(xlabel="pipeline rank", ylabel="bubble (s)", ylim=(0, None))
    axes.legend()
    figure.savefig(picture)


def main() -> None:
    """Compare the schedules and, where a file is named, draw them."""
    runs = simulate_schedules(SCENARIO, SCHEDULES)
    print(compare(runs, [METRICS["training"][name] for name in SHOWN]))
    for name in sys.argv[1:2]:
        plot(runs, Path(name))


if __name__ == "__main__":
    main()
