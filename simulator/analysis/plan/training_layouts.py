"""Layouts of a training job: the axes of the search, and the values that are tried."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reference_model.trace import RECOMPUTATIONS, Split
from simulator.hardware.network.clusters import gpus_per_domain
from simulator.scenario.files import Scenario
from simulator.scenario.training import TrainingJob
from simulator.workload.layout import model_layers
from simulator.workload.recorded import is_recorded
from simulator.workload.schedules.known import SCHEDULES, WITH_VIRTUAL_STAGES

AXES: Mapping[str, str] = {
    "pp": "pp",
    "ep": "ep",
    "tp": "tensor_parallel",
    "etp": "expert_tensor_parallel",
    "cp": "context_parallel",
    "micro_batch": "micro_batch_sequences",
    "schedule": "schedule",
    "zero": "zero",
    "recompute": "recompute",
}
"""{axis of the search: field of a training job}. What is not among them keeps the value of the
scenario: nothing measured says how a step responds to it, as to the SMs of communication."""

VIRTUAL_STAGES = (2, 4)
"""Stages on each GPU with which interleaved schedules are tried; zb_h1 with one as well."""

MOST_SEQUENCES = 8
"""Of a micro-batch that is tried."""

LEAST_PIECE = 4096
"""Tokens of a sequence that a GPU keeps at least where GPUs share sequences, of what is tried: what
they exchange in every layer is for sequences that one GPU cannot hold."""


@dataclass(frozen=True, slots=True)
class TrainingLayout:
    """One point of the search."""

    pp: int
    ep: int
    tp: int
    etp: int
    cp: int
    micro_batch: int
    schedule: str
    virtual_stages: int | None
    """Stages on each GPU; None for those that the schedule has."""
    zero: int
    recompute: str

    @property
    def settings(self) -> dict[str, object]:
        """{path of a scenario: value}"""
        found: dict[str, object] = {
            f"training.{field}": getattr(self, axis) for axis, field in AXES.items()
        }
        virtual = "default" if self.virtual_stages is None else self.virtual_stages
        return found | {"training.virtual_stages": virtual}

    def __str__(self) -> str:
        """ "PP16 EP64 dualpipe", with what else is not as usual."""
        sizes = {"TP": self.tp, "ETP": self.etp, "CP": self.cp}
        shared = [f"{name}{size}" for name, size in sizes.items() if size > 1]
        stages = "" if self.virtual_stages is None else f" x{self.virtual_stages}"
        others = [f"micro-batch {self.micro_batch}", f"ZeRO-{self.zero}"]
        if self.recompute != "published":
            others.append(f"recompute {self.recompute}")
        return " ".join(
            [f"PP{self.pp}", f"EP{self.ep}", *shared, f"{self.schedule}{stages}", *others]
        )


def layout_of_job(job: TrainingJob) -> TrainingLayout:
    """The layout that a job has."""
    virtual = None if job.virtual_stages == "default" else job.virtual_stages
    values = {axis: getattr(job, name) for axis, name in AXES.items()}
    return TrainingLayout(**values, virtual_stages=virtual)


def axis_values(
    scenario: Scenario, fixed: Mapping[str, Sequence[object]]
) -> dict[str, tuple[object, ...]]:
    """{axis: values that are tried}, schedules as (name, virtual stages).

    GPUs that share layers or sequences exchange them within every layer, and are looked for among
    the GPUs that NVLink joins.

    Args:
        fixed: {axis: values in the place of the usual ones}.

    Raises:
        ValueError: an axis that there is not.
    """
    unknown = [axis for axis in fixed if axis not in AXES]
    if unknown:
        raise ValueError(
            f"--fix {unknown[0]}: no axis of the search; allowed: {', '.join(AXES)}, each with "
            "values, such as --fix pp=8,16"
        )
    job, model, gpus = scenario.job_as(TrainingJob), scenario.model, scenario.cluster.gpus
    layers = len(model_layers(model))
    joined = gpus_per_domain(scenario.cluster, group=gpus)
    near = _divisors(gpus, most=min(joined, gpus))
    powers = tuple(2**n for n in range(MOST_SEQUENCES.bit_length()))
    usual: dict[str, tuple[object, ...]] = {
        "pp": _divisors(gpus, most=layers),
        "ep": _divisors(math.gcd(gpus, model.n_routed_experts), most=gpus),
        "tp": near,
        "etp": tuple(
            n
            for n in near
            if n == 1 or any(recorded_recomputations(scenario, Split(m, n)) for m in near)
        ),
        "cp": tuple(n for n in near if n == 1 or job.sequence_length >= n * LEAST_PIECE),
        "micro_batch": tuple(n for n in powers if n <= job.global_batch_sequences),
        "schedule": tuple(SCHEDULES),
        "zero": (0, 1, 2, 3),
        "recompute": RECOMPUTATIONS,
    }
    found = usual | {axis: tuple(values) for axis, values in fixed.items()}
    found["schedule"] = tuple(
        (name, stages) for name in found["schedule"] for stages in _stages_tried(str(name))
    )
    return found


def recorded_recomputations(scenario: Scenario, split: Split) -> list[str]:
    """Recomputations with which layers that GPUs share so are recorded."""
    folder = None if scenario.file.traces is None else Path(scenario.file.traces)
    recipe = scenario.job_as(TrainingJob).recipe
    return [
        choice
        for choice in RECOMPUTATIONS
        if is_recorded(scenario.model, "train", recipe, split, choice, folder=folder)
    ]


def _stages_tried(name: str) -> tuple[int | None, ...]:
    if name not in WITH_VIRTUAL_STAGES:
        return (None,)
    return (None, *VIRTUAL_STAGES) if name == "zb_h1" else VIRTUAL_STAGES


def _divisors(number: int, *, most: int) -> tuple[int, ...]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    every = dict.fromkeys((*small, *(number // n for n in reversed(small))))
    return tuple(n for n in every if n <= most)
