"""Goodput of one training run against its number of GPUs, and what keeps it up.

    python docs/examples/goodput_by_gpus.py --out goodput_by_gpus.svg

Failures come at a fixed rate per GPU-hour; the step takes as long on every number of GPUs, so that
only failures, checkpoints and spares differ. Each line changes one thing more than the one before.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from simulator import load_scenario, simulate

SCENARIO = "dense_16k_h100_incidents"
OVERLAPPED = (
    "pretraining.checkpoint.overlapped=true",
    "pretraining.checkpoint.copy_bandwidth_per_gpu=20 GB/s",
)
SPARES = (*OVERLAPPED, "pretraining.spares.nodes=200")
FAST = (
    *SPARES,
    "pretraining.restart=2 min",
    *(f"pretraining.failures.{kind}.detection=1 min" for kind in ("gpu", "network", "node")),
    "pretraining.failures.software.detection=1 min",
)
LINES = {
    "as shipped: checkpoints stop training, 64 spares": (),
    "checkpoints written in the background": OVERLAPPED,
    "and 200 spares": SPARES,
    "and failures seen in 1 min, restart in 2 min": FAST,
}


def goodput(gpus: int, changes: tuple[str, ...], *, runs: int) -> float:
    """Share of a run of about nine days in steps that were kept."""
    scenario = load_scenario(
        SCENARIO,
        [
            *changes,
            f"pretraining.gpus={gpus}",
            f"pretraining.runs={runs}",
            "pretraining.phases.0.tokens=2.0e+12",
        ],
    )
    return float(simulate(scenario).quick_metrics["goodput"])


def main() -> None:
    """Simulate every line, print its figures and draw them."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=Path("goodput_by_gpus.svg"))
    options.add_argument("--runs", type=int, default=10)
    options.add_argument(
        "--gpus", type=int, nargs="+", default=[2048, 4096, 8192, 16384, 32768, 65536, 100000]
    )
    asked = options.parse_args()
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, changes in LINES.items():
        shares = [goodput(gpus, changes, runs=asked.runs) for gpus in asked.gpus]
        axes.plot(asked.gpus, shares, marker="o", label=label)
        print(f"{label}: {', '.join(f'{share:.1%}' for share in shares)}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(asked.gpus, [f"{gpus:,}" for gpus in asked.gpus])
    axes.set_xlabel("GPUs")
    axes.set_ylabel("goodput")
    axes.set_ylim(0, 1)
    axes.grid(color="#e2e2de")
    axes.legend(frameon=False, loc="lower left")
    figure.savefig(asked.out)


if __name__ == "__main__":
    main()
