"""The inputs that a step's time is held against: rates of the machine, overheads, waiting.

Each is scaled as a whole: an input that is known within an interval with both ends of it, and both
halves of one that a dispatch and a combine have. What a changed input says is written as a file
would say it, so that the same change of a whole run is a --set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hardware_profiles.calibration_parts import BesideCompute
from hardware_profiles.estimates import Estimate, TimeEstimate
from simulator.execution.serving_draws import priors_of
from simulator.scenario.files import Scenario
from simulator.scenario.serving import ServingStepJob
from simulator.scenario.training import TrainingJob

STEP = 0.01
"""Relative change, either way, that an elasticity is taken over."""

_COUNT_STEP = 0.03
"""The same of a count, at least one."""

_FAR = 1000.0
"""Factor at which more of a rate brings nothing more."""
_FAR_SMS = 64.0
"""The same of SMs: a tile has one."""
NOTHING = 1e-9
"""Relative change that makes another machine of the same."""

_SHORT = 14
"""Characters of a value that are shown as its file has them."""

_GPU = "cluster.node.gpu"
_PEAKS = {
    "FP4": ("fp4_e2m1",),
    "FP8": ("fp8_e4m3", "fp8_e5m2"),
    "MXFP8": ("mxfp8_e4m3",),
    "BF16": ("bfloat16", "float16"),
    "TF32": ("tfloat32",),
}
"""{arithmetic: operand types whose peaks are one}"""

_OF_CLUSTER = (
    ("SMs", "GPU", (f"{_GPU}.sms",)),
    ("SM clock", "GPU", (f"{_GPU}.sm_clock",)),
    ("HBM bandwidth", "GPU", (f"{_GPU}.hbm_bandwidth",)),
    ("L2 capacity", "GPU", (f"{_GPU}.l2_capacity",)),
    ("NVLink bandwidth", "network", (f"{_GPU}.nvlink_bandwidth",)),
    ("PCIe bandwidth", "network", (f"{_GPU}.pcie_bandwidth",)),
    ("NIC bandwidth", "network", ("cluster.node.nic.bandwidth",)),
    ("NVLink latency", "network", ("cluster.node.nvlink_latency",)),
    (
        "network latency",
        "network",
        ("cluster.fabric.same_leaf_latency", "cluster.fabric.cross_leaf_latency"),
    ),
)
"""(name, group, paths) of the machine's numbers."""


@dataclass(frozen=True, slots=True)
class ScaledInput:
    """One input of a job, and how a file says it."""

    name: str
    group: str
    """GPU, network, job or waiting."""
    values: Mapping[str, Any]
    """{path as of --set: value as a file has it}, all scaled together."""
    least: float = 0.0
    """Of its numbers; 1 of a slow-down."""
    most: float = _FAR
    """Factor of the largest value that is asked for."""

    @property
    def whole(self) -> bool:
        """Whether it is counted."""
        return any(isinstance(value, int) for value in self.values.values())

    @property
    def step(self) -> float:
        """Relative change that an elasticity is taken over, of a count a whole number of it."""
        if not self.whole:
            return STEP
        count = next(iter(self.values.values()))
        return float(max(1, round(_COUNT_STEP * count)) / count)

    @property
    def number(self) -> float:
        """Its first number, in the unit of the file."""
        return _first(next(iter(self.values.values())))

    @property
    def text(self) -> str:
        """Its first value, as a file has it."""
        value = next(iter(self.values.values()))
        while isinstance(value, dict):
            value = value["value"] if "value" in value else next(iter(value.values()))
        if isinstance(value, str):
            number, unit = _parts(value)
            return value if len(value) <= _SHORT else f"{number:.4g} {unit}"
        return f"{value:.3g}"

    def at(self, factor: float) -> dict[str, Any]:
        """{path: value} of the input times a factor."""
        return {path: _scaled(value, factor, self.least) for path, value in self.values.items()}

    def factor_of(self, changed: Mapping[str, Any]) -> float:
        """What changed values are over the own ones, of the first number."""
        return _first(next(iter(changed.values()))) / self.number


def inputs_of(scenario: Scenario) -> tuple[ScaledInput, ...]:
    """What the time of a training or serving step may depend on; only what the job has.

    Raises ValueError for a job of another kind.
    """
    job = scenario.job
    if not isinstance(job, TrainingJob | ServingStepJob):
        step = "a training or serving_step job; of a fleet, one of the steps that it is made of"
        raise ValueError(
            f"{scenario.where}: sensitivity: holds a {scenario.job_name} job; allowed: {step}, "
            "such as decode_ep144_day6, or dsv3sim sweep --vary with the values of any input"
        )
    found = [*_of_machine(scenario), *_of_job(scenario, job), *_of_waiting(scenario, job)]
    return tuple(each for each in found if each.number > 0)


def another_gpu(scenario: Scenario) -> dict[str, Any]:
    """{path: value} of a GPU that differs from the scenario's by nothing that can be seen."""
    path = f"{_GPU}.l2_capacity"
    return {path: _scaled(_of_file(scenario, path), 1.0 + NOTHING, 0.0)}


def _of_machine(scenario: Scenario) -> Iterator[ScaledInput]:
    for name, types in _PEAKS.items():
        paths = [
            f"{_GPU}.peak_compute.{each}"
            for each in types
            if each in scenario.cluster.node.gpu.peak_compute
        ]
        if paths:
            values = {path: _of_file(scenario, path) for path in paths}
            yield ScaledInput(f"{name} arithmetic", "GPU", values)
    for name, group, paths_of in _OF_CLUSTER:
        values = {path: _of_file(scenario, path) for path in paths_of}
        yield ScaledInput(name, group, values, most=_FAR_SMS if name == "SMs" else _FAR)


def _of_job(scenario: Scenario, job: TrainingJob | ServingStepJob) -> Iterator[ScaledInput]:
    own = scenario.job_name
    yield ScaledInput("gap between kernels", "job", {f"{own}.gap": _as_file(job.gap)})
    if job.communication_sms:
        sms = {f"{own}.communication_sms": job.communication_sms}
        yield ScaledInput("SMs of communication", "job", sms, most=2.0)
    stated = scenario.calibration.all_to_all
    beside: dict[str, Any] = {}
    if isinstance(job, TrainingJob) or job.normal_transfers:
        beside["calibration.all_to_all.beside_compute"] = _both(stated.beside_compute)
        freed = stated.without_waiting
        if freed is not None:
            for kind, each in (("dispatch", freed.dispatch), ("combine", freed.combine)):
                beside[f"calibration.all_to_all.without_waiting.{kind}"] = _as_file(each)
    elif job.all_to_all.beside_compute is not None:
        beside[f"{own}.all_to_all.beside_compute"] = _both(job.all_to_all.beside_compute)
    if beside:
        yield ScaledInput("all-to-all beside compute", "job", beside, least=1.0)
    if scenario.model.n_group > 1:
        groups = {"model.topk_group": scenario.model.topk_group}
        yield ScaledInput("expert groups per token", "job", groups, most=1.0)
    if isinstance(job, TrainingJob):
        if job.host_launch:
            launch = {f"{own}.host_launch": f"{job.host_launch!r} s"}
            yield ScaledInput("host time per launch", "job", launch)
        if not job.skew.is_none:
            rate = {f"{own}.optimizer.efficiency": _as_file(job.optimizer.efficiency)}
            yield ScaledInput("rate of the optimizer", "job", rate)
        return
    yield ScaledInput("host overhead", "job", {f"{own}.host_overhead": _as_file(job.host_overhead)})
    drafts = job.speculative_decoding
    if drafts is not None:
        accepted = {f"{own}.speculative_decoding.acceptance": drafts.acceptance}
        yield ScaledInput(
            "accepted drafts", "job", accepted, most=1.0 / max(drafts.acceptance, STEP)
        )


_WAITING = {
    "rows.max_over_mean": "rows of the busiest rank",
    "rows.zipf_exponent": "popularity of experts",
    "rows.drift": "drift of popularity",
    "rows_sd": "spread of rows",
    "clock_sd": "spread of clocks",
    "work_sd": "spread of attention work",
    "host_pause.rate": "pauses of hosts",
    "host_pause.seconds": "length of a pause",
    "slow_gpus.share": "share of slow machines",
    "slow_gpus.slowdown": "slow-down of slow machines",
}
"""{path below skew: name}"""


def _of_waiting(scenario: Scenario, job: TrainingJob | ServingStepJob) -> Iterator[ScaledInput]:
    for path, prior in priors_of(job.skew).items():
        least = 1.0 if path == "rows.max_over_mean" else 0.0
        values = {f"{scenario.job_name}.skew.{path}": _as_file(prior)}
        yield ScaledInput(_WAITING[path], "waiting", values, least=least)


def _of_file(scenario: Scenario, path: str) -> Any:
    """The value at a path of the resolved scenario, as its file has it."""
    value: Any = scenario.resolved
    for part in path.split("."):
        value = value[part]
    return value


def _as_file(known: Estimate) -> dict[str, Any]:
    """An input with an interval as a file has it."""
    unit = " s" if isinstance(known, TimeEstimate) else ""
    ends = {name: getattr(known, name) for name in ("value", "low", "high")}
    texts = {name: f"{value!r}{unit}" if unit else value for name, value in ends.items()}
    return {**texts, "source": known.source}


def _both(ratios: BesideCompute) -> dict[str, Any]:
    return {"dispatch": _as_file(ratios.dispatch), "combine": _as_file(ratios.combine)}


_NUMBER = re.compile(r"\s*([0-9.eE+-]+)\s*(\S*)\s*")


def _scaled(value: Any, factor: float, least: float) -> Any:
    """A value of a file times a factor; sources of values stay."""
    if isinstance(value, dict):
        return {
            name: each if name in ("source", "sources") else _scaled(each, factor, least)
            for name, each in value.items()
        }
    if isinstance(value, str):
        number, unit = _parts(value)
        return f"{max(least, number * factor)!r} {unit}"
    if isinstance(value, int):
        return max(1, round(value * factor))
    return max(least, value * factor)


def _first(value: Any) -> float:
    """The first number of a value of a file."""
    if isinstance(value, dict):
        return _first(value["value"] if "value" in value else next(iter(value.values())))
    return _parts(value)[0] if isinstance(value, str) else float(value)


def _parts(text: str) -> tuple[float, str]:
    """A number and its unit."""
    found = _NUMBER.fullmatch(text)
    assert found is not None, "the scenario has been read"
    return float(found[1]), found[2]
