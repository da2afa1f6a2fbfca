"""Every pipeline schedule of one training job within the same memory, and where its step goes.

python docs/examples/schedules_at_equal_memory.py [path=value ...]

Each schedule splits the layers as suits it and recomputes what makes its step shortest of all that
fits the GPU's memory; one that does not fit at all gets half the micro-batches (mb). The parts of a
line sum to its step: kernels of the chunks, all-to-all that nothing hides, waiting for other ranks
of the pipeline, sends between them, the optimizer, and ranks that differ.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from hardware_profiles.units import format_bytes
from simulator import Run, load_scenario, simulate
from simulator.scenario.training import TrainingJob
from simulator.workload.memory import Infeasible
from simulator.workload.schedules.known import SCHEDULES

SCENARIO = "dualpipe_h800_2048"
RECOMPUTATIONS = ("published", "attention", "layer")
"""From what keeps most to what keeps least."""
PARTS: Mapping[str, tuple[str, ...]] = {
    "exposed": ("exposed all-to-all", "all-to-all slow-down"),
    "bubble": ("bubble",),
    "sends": ("pipeline transfers",),
    "optimizer": (
        "gradient reduction",
        "optimizer update",
        "orthogonalization",
        "parameter gather",
    ),
    "differ": ("uncertain inputs", "imbalance", "documents", "slower GPUs", "host"),
}
"""{part of the step: causes of the attribution}; what is left are the kernels of the chunks."""


def simulate_fitting(scenario: str, schedule: str, changes: Sequence[str]) -> Run[Any]:
    """The run that ends first of those that fit, over what a layer recomputes; with half the
    micro-batches, or a quarter and so on, where none fits with all of them.

    Raises:
        ValueError: no run at all, for a reason other than memory.
    """
    job = load_scenario(scenario, changes).job_as(TrainingJob)
    sequences = job.global_batch_sequences
    while True:
        runs = []
        for recompute in RECOMPUTATIONS:
            chosen = (
                f"training.schedule={schedule}",
                f"training.recompute={recompute}",
                f"training.global_batch_sequences={sequences}",
                "training.stages=default",
            )
            with suppress(Infeasible):
                runs.append(simulate(load_scenario(scenario, [*changes, *chosen])))
        if runs:
            return min(runs, key=lambda run: float(run.result.step.step_time_s))
        sequences //= 2


def line(run: Run[Any]) -> str:
    """One line of the table."""
    metrics, job = run.metrics, run.result.job
    causes = {row["name"]: row["seconds"] for row in metrics["attribution"]}
    parts = {name: sum(causes.pop(c, 0.0) for c in of_part) for name, of_part in PARTS.items()}
    cells = (run.result.step.step_time_s, sum(causes.values()), *parts.values())
    return (
        f"{job.schedule:22} {run.result.schedule.microbatches:5} {job.recompute:10}"
        f"{metrics['mfu_causal']:6.1%}{metrics['step_time_s']:9.2f}"
        + "".join(f"{cell:10.2f}" for cell in cells)
        + f"{format_bytes(metrics['peak_memory_bytes']):>11}"
    )


def head() -> str:
    """The line above the table."""
    cells = "".join(f"{name:>10}" for name in ("ideal", "kernels", *PARTS))
    return (
        f"{'schedule':22} {'mb':>5} {'recompute':10}{'MFU':>6}{'step (s)':>9}{cells}{'memory':>11}"
    )


def main() -> None:
    """Print the table, a line as soon as it is known."""
    print(head())
    for schedule in SCHEDULES:
        print(line(simulate_fitting(SCENARIO, schedule, sys.argv[1:])), flush=True)


if __name__ == "__main__":
    main()
