"""Find the metric that a figure of a run is, by its path in the JSON.

A name is the last parts of a figure's path in the JSON of a run: "ranks.forward_s" stands for
"ranks.3.forward_s", and "step_time_s" for "comparisons.ideal_ranks.step_time_s" as well. A name
that ends before its path does stands for all below it: "memory" for "memory.0.weights".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from hardware_profiles.suggestions import closest, did_you_mean
from simulator.analysis.metric import STATISTICS, Metric
from simulator.analysis.step_metrics import EVERY_JOB, OFFLOAD, SERVING_STEP, TPOT_LIMIT, TRAINING
from simulator.analysis.system_metrics import COLLECTIVE, FLEET, PRETRAINING, REPLAY

METRICS: Mapping[str, Mapping[str, Metric]] = {
    job: {metric.name: metric for metric in (*EVERY_JOB, *own)}
    for job, own in (
        ("training", TRAINING),
        ("pretraining", PRETRAINING),
        ("serving_step", SERVING_STEP),
        ("tpot_limit", TPOT_LIMIT),
        ("offload", OFFLOAD),
        ("collective", COLLECTIVE),
        ("fleet", FLEET),
        ("replay", REPLAY),
    )
}
"""{job: {name: metric}}"""


def leading(job: str) -> list[str]:
    """Names of the metrics that tables and pages of a job's runs begin with, in order."""
    return [name for name, metric in METRICS[job].items() if metric.leads]


def unknown_metric(name: str, known: Collection[str]) -> str:
    """What to say of a name that no metric has."""
    close = closest(name, known)
    allowed = did_you_mean(close) if close else "dsv3sim show metrics lists all"
    return f"metric {name!r}: unknown; {allowed}"


def metric_of(path: str, job: str | None = None) -> Metric | None:
    """The metric that the figure at a dotted path of a run is; None where it is none.

    Args:
        job: the run's; without it the first job that has the name, since a name has one unit and
            one better direction in all of them.
    """
    parts = [part for part in path.replace("[]", "").split(".") if not part.isdigit()]
    if len(parts) > 1 and parts[-1] in STATISTICS:
        parts.pop()
    tables = METRICS.values() if job is None else (METRICS[job],)
    for end in range(len(parts), 0, -1):
        for start in range(end):
            name = ".".join(parts[start:end])
            for table in tables:
                if name in table:
                    return table[name]
    return None
