"""Put one job on several machines: how long it takes, what it costs, what power it draws.

A cluster brings its GPU; kernel times are those of the scenario's calibration where the GPU is the
scenario's, and of the nearest shipped one otherwise. Rent is the cluster's, power that of the GPU's
board while it works: that of measured whole steps of the reference model, as a share of the board's
limit, and of a GPU that nobody measured the same share of its own limit. CPUs, switches and cooling
are not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

from hardware_profiles.schema import GpuProfile, load_cluster, load_gpu
from hardware_profiles.units import Watts
from simulator.analysis.metric import Metric
from simulator.analysis.run import STEP_TIMES, simulate
from simulator.analysis.whole_runs import DECODE, PREFILL, TRAIN_MICROBATCH, Step, every_step
from simulator.scenario.files import Scenario, load_scenario
from simulator.scenario.serving import ServingStepJob
from simulator.scenario.starting_hardware import nearest_calibration
from simulator.scenario.training import TrainingJob

ON_CLUSTERS = (
    Metric("step_time_s", "s", "less", "time of one step, or of one prefill pass"),
    Metric(
        "tokens_per_second_per_gpu",
        "tokens/s",
        "more",
        "tokens trained on, computed of prompts or generated, per second per GPU",
        leads=True,
    ),
    Metric("usd_per_gpu_second", "USD/s", None, "rent of one GPU"),
    Metric(
        "usd_per_million_tokens",
        "USD",
        "less",
        "rent of the GPUs while they work on 10^6 of these tokens",
        leads=True,
    ),
    Metric("watts_per_gpu", "W", None, "power of a GPU's board while it works"),
    Metric(
        "joules_per_token",
        "J",
        "less",
        "energy of the GPUs' boards per token",
        leads=True,
    ),
)
"""Figures of a step on a cluster, in the order of tables."""
RATES = {
    "training": "tokens_per_second_per_gpu",
    "prefill": "input_tokens_per_second_per_gpu",
    "decode": "output_tokens_per_second_per_gpu",
}
"""{kind of step: metric that says what it is good for}"""
_MEASURED_AS = {"training": TRAIN_MICROBATCH, "prefill": PREFILL, "decode": DECODE}
"""{kind of step: the measured steps that draw its power}"""
_MILLION = 10**6
"""Tokens that a price is given for."""


def board_power(
    gpu: GpuProfile, kind: str, steps: Iterable[Step] | None = None
) -> tuple[Watts, Watts, Watts, tuple[str, ...]]:
    """Power of a GPU's board in a kind of step, see the module: median, least and most of the
    measured steps, and the GPUs that they ran on, others than its own where that was not measured.

    Args:
        kind: of RATES.
        steps: measured ones, of which those count that a graph launches; all that there are where
            not given.
    """
    steps = every_step() if steps is None else steps
    alike = [step for step in steps if step.job == _MEASURED_AS[kind] and step.launch == "graph"]
    own = [step for step in alike if step.gpu == gpu.name] or alike
    shares = [step.power_w / load_gpu(step.gpu).power for step in own]
    found = (share * gpu.power for share in (median(shares), min(shares), max(shares)))
    watts, low, high = found
    return watts, low, high, tuple(sorted({step.gpu for step in own}))


def kind_of_step(scenario: Scenario) -> str:
    """Key of RATES. Raises ValueError for a job that is no step."""
    job = scenario.job
    if isinstance(job, ServingStepJob):
        return job.phase
    if isinstance(job, TrainingJob):
        return "training"
    raise ValueError(
        f"{scenario.where}: compare --cluster: holds a {scenario.job_name} job; allowed: a "
        "training or serving_step job; of others, runs of each cluster and compare of their "
        "directories"
    )


def on_clusters(
    name: str,
    changes: Sequence[str],
    clusters: Sequence[str],
    *,
    done: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """One job on several clusters, as plain values; "reason" of one that it cannot run on.

    Args:
        done: called after each cluster.

    Raises ValueError for a scenario or cluster that does not exist, or a job that is no step.
    """
    written = load_scenario(name, changes)
    kind, own = kind_of_step(written), written.cluster.node.gpu.name
    found = []
    for cluster in clusters:
        found.append(_on(name, changes, cluster, kind, own))
        done()
    return found


def _on(name: str, changes: Sequence[str], cluster: str, kind: str, own: str) -> dict[str, Any]:
    """The job on one cluster.

    Args:
        own: GPU that the scenario's calibration was chosen for.
    """
    gpu = load_cluster(cluster).node.gpu
    found: dict[str, Any] = {"cluster": cluster, "gpu": gpu.name}
    chosen = [*changes, f"cluster={cluster}"]
    stated = any(text.startswith("calibration=") for text in changes)
    if not stated and gpu.name != own:
        chosen.append(f"calibration={nearest_calibration(gpu, kind)}")
    scenario = load_scenario(name, chosen)
    found["calibration"] = scenario.calibration.name
    try:
        metrics = simulate(scenario).quick_metrics
    except ValueError as error:
        return found | {"reason": str(error)}
    rate = metrics[RATES[kind]]
    watts, low, high, measured_on = board_power(gpu, kind)
    job = scenario.job
    seconds = next(metrics[path] for path in STEP_TIMES if metrics.get(path) is not None)
    return found | {
        "gpus": job.gpus if isinstance(job, ServingStepJob) else scenario.cluster.gpus,
        "step_time_s": seconds,
        "tokens_per_second_per_gpu": rate,
        "usd_per_million_tokens": scenario.cluster.gpu_price * _MILLION / rate,
        "usd_per_gpu_second": scenario.cluster.gpu_price,
        "watts_per_gpu": watts,
        "watts_80": [low, high],
        "power_measured_on": list(measured_on),
        "joules_per_token": watts / rate,
        "kernels": metrics["kernels"],
    }
