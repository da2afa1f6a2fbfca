"""Hold the simulator against whole steps of the reference model, measured on GPUs.

`python -m reference_model bench` writes two tables for each lease of a GPU: whole steps, and the
operators of these steps, each timed by itself (hardware_profiles/measurements/whole). A step is
simulated from a table of operators:

    same lease       the operators were timed on this very GPU: what errs is how they are put
                     together
    another device   of another lease; the error is split into that of the kernels, group by group,
                     and the same lease's error, which is left of the composition; five operators
                     timed at both clocks tell kernels from clocks (`probe`)

Nothing is fitted to whole steps. Intervals hold what kernel times leave unexplained, and for a GPU
of the same kind how GPUs of one kind differ.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, hypot, log, nan
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from hardware_profiles.estimates import Estimate
from hardware_profiles.fields import ROOT
from hardware_profiles.schema import load_calibration
from hardware_profiles.tables import Measurement, format_pairs, load_measurements
from hardware_profiles.units import Seconds, Watts
from reference_model.config import CONFIG_FOLDER
from simulator.analysis.intervals import serving_interval
from simulator.analysis.predictions import LedgerLine
from simulator.analysis.run import simulate
from simulator.analysis.run_key import run_key
from simulator.execution.draws import interval
from simulator.execution.progress import HowFar, Watch, unwatched
from simulator.execution.serving_run import ServingRun
from simulator.execution.training import TrainingRun
from simulator.execution.training_draws import draw_step
from simulator.hardware.kernels.roofline import is_tensor
from simulator.scenario import files
from simulator.scenario.files import Scenario, load_scenario

TABLES = ROOT / "measurements" / "whole"
TEMPLATES = files.SCENARIOS.parent / "whole"
"""Scenarios of one GPU, by the trace that they need."""

OPERATORS = "_operators"
"""What the name of a lease's table of operators adds to that of its steps."""
TRAIN_MICROBATCH, TRAIN_STEP, PREFILL, DECODE = (
    "train_microbatch", "train_step", "prefill", "decode_step",
)  # fmt: skip
_TRACE = {TRAIN_MICROBATCH: "train", TRAIN_STEP: "train", PREFILL: "prefill", DECODE: "decode"}

SAME_KIND = Estimate(
    value=1.0,
    low=0.95,
    high=1.05,
    source="two H100s of different leases, 2,802 kernels each: median difference 1.4%, a tenth of "
    "them over 6.9%; of four H200s on one host the slowest took 1.6% longer than the fastest",
)
"""Time of a step on one GPU over that on another of its kind."""


@dataclass(frozen=True, slots=True)
class Step:
    """One whole step, as a row of a lease's table."""

    lease: str
    """Name of the table, e.g. "h200_sxm_1"."""
    job: str
    model: str
    sequences: int
    context: int
    kernels: str
    launch: str
    seconds: Seconds
    """Measured."""
    host_seconds: Seconds | None
    """That the host takes to launch it, where it is launched kernel by kernel."""
    operators: int
    """That it issues."""
    clock_hz: float
    """SM clock while it ran."""
    power_w: Watts
    """Of the board while it ran."""

    @property
    def gpu(self) -> str:
        """The GPU of the lease."""
        return gpu_of(self.lease)

    @property
    def about(self) -> str:
        """What the ledger calls it."""
        return f"{self.lease}: {self.label}"

    @property
    def label(self) -> str:
        """The step in words, lease apart."""
        model = self.model.rpartition("/")[2]
        return f"{self.job} {model} {self.sequences} x {self.context} {self.launch}"


def measured_steps() -> dict[str, Seconds]:
    """{what a prediction of the ledger is about: measured seconds}"""
    return {step.about: step.seconds for step in every_step()}


def every_step() -> list[Step]:
    """The steps of all leases."""
    return [step for lease in leases() for step in read_steps(TABLES / f"{lease}.csv")]


def gpu_of(lease: str) -> str:
    """The GPU profile that a lease's tables belong to."""
    return lease.rpartition("_")[0]


def leases(job: str | None = None) -> tuple[str, ...]:
    """Names of the leases whose tables are shipped, sorted; with a job those whose operators say
    what its steps take."""
    every = sorted(p.stem for p in TABLES.glob("*.csv") if not p.stem.endswith(OPERATORS))
    if job is None:
        return tuple(every)
    return tuple(
        lease
        for lease in every
        if any(_TRACE[s.job] == _TRACE[job] for s in read_steps(TABLES / f"{lease}.csv"))
    )


def read_steps(path: Path) -> list[Step]:
    """The steps of one lease's table whose operators are in its table of operators."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Step(
                lease=path.stem,
                job=line["job"],
                model=line["model"],
                sequences=int(line["sequences"]),
                context=int(line["context"]),
                kernels=line["kernels"],
                launch=line["launch"],
                seconds=float(line["seconds"]),
                host_seconds=float(line["host_seconds"]) if line["host_seconds"] else None,
                operators=int(line["operators"]),
                clock_hz=float(line["clock_hz"]),
                power_w=float(line["power_w"]),
            )
            for line in csv.DictReader(file)
            if line["timed_operator_seconds"]
        ]


def planned(lease: str) -> list[Step]:
    """The steps that a lease is to time from a graph; their times are not known."""
    with (CONFIG_FOLDER / "whole" / "runs.csv").open(encoding="utf-8", newline="") as file:
        return [
            Step(
                lease=lease,
                job=line["job"],
                model=line["model"],
                sequences=int(line["sequences"]),
                context=int(line["context"]),
                kernels="mixed",
                launch=line["launch"],
                seconds=nan,
                host_seconds=None,
                operators=0,
                clock_hz=nan,
                power_w=nan,
            )
            for line in csv.DictReader(file)
            if line["launch"] == "graph"
        ]


# -- a step as a scenario --------------------------------------------------------------------------


def scenario_of(step: Step, lease: str, *, operators_only: bool = True) -> Scenario:
    """The scenario of a step, simulated from the operators of a lease.

    Args:
        lease: whose table of operators is used; of another GPU than the step's, its times are
            restated.
        operators_only: whether that table alone is used, not the GPU's shipped ones beside it.
    """
    measured = gpu_of(lease)
    trace = _TRACE[step.job]
    shipped = load_calibration(f"{measured}_reference")
    tables, sets = [f"whole/{lease}{OPERATORS}"], [f"dsv3sim_{step.kernels}"]
    if not operators_only:
        tables += shipped.measurements
        sets += shipped.kernel_sets
    changes: dict[str, Any] = {
        "model": step.model,
        "cluster.node.gpu": step.gpu,
        "calibration": shipped.name,
        "calibration.measurements": tables,
        "calibration.kernel_sets": sets,
        "calibration.fits": [],
        "calibration.basis": "measured",
    }
    clock = sustained_clock(lease, step.job)
    if clock is not None:
        changes["calibration.sustained_clock"] = clock.model_dump()
    if measured != step.gpu:
        changes["calibration.restatement"] = shipped.other_gpu.model_dump()
    host = 0.0
    if step.launch == "eager" and step.host_seconds is not None:
        host = step.host_seconds / step.operators
    if trace == "train":
        changes |= {
            "training.micro_batch_sequences": step.sequences,
            "training.global_batch_sequences": step.sequences,
            "training.sequence_length": step.context,
            "training.host_launch": f"{host} s",
        }
    elif trace == "prefill":
        changes |= {
            "serving_step.requests.tokens_per_gpu": step.sequences * step.context,
            "serving_step.requests.prompt_tokens": step.context,
            "serving_step.host_launch": f"{host} s",
        }
    else:
        changes |= {
            "serving_step.requests.requests_per_gpu": step.sequences,
            "serving_step.requests.context_tokens": step.context,
            "serving_step.host_launch": f"{host} s",
        }
    return load_scenario(
        str(TEMPLATES / f"{trace}.yaml"), [f"{path}={value}" for path, value in changes.items()]
    )


def sustained_clock(lease: str, job: str) -> Estimate | None:
    """The clock of a kind of step over that of bursts, for a lease whose operators were timed in
    bursts alone; None where they were timed in turns as well, which tells."""
    rows = load_measurements(TABLES / f"{lease}{OPERATORS}.csv")
    if any(row.state == "sustained" for row in rows):
        return None
    steps = read_steps(TABLES / f"{lease}.csv")
    kind = TRAIN_MICROBATCH if job == TRAIN_STEP else job
    of_kind = [s for s in steps if s.job == kind]
    # Without a graph the GPU may wait for its host, and its clock rise meanwhile.
    clocks = [s.clock_hz for s in of_kind if s.launch == "graph"] or [s.clock_hz for s in of_kind]
    highest = max(s.clock_hz for s in steps)
    return Estimate(
        value=median(clocks) / highest,
        low=min(clocks) / highest,
        high=max(clocks) / highest,
        source=f"own measurement: SM clock of {kind} steps over the highest, lease {lease}",
    )


# -- what a run says -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Predicted:
    """A simulated step."""

    seconds: Seconds
    low: Seconds
    high: Seconds
    """Ends of the 80% interval."""
    families: Mapping[str, Seconds]
    """Kernel family -> its kernels' time; what is left of the step as "gaps, host"."""


def predict(
    scenario: Scenario, *, optimizer: bool = False, spread: Estimate | None = None
) -> Predicted:
    """Simulate a step.

    Args:
        optimizer: whether the optimizer is part of a training step.
        spread: of whole steps between the GPU that was timed and the one that is simulated.
    """
    result = simulate(scenario).result
    if isinstance(result, TrainingRun):
        drawn = draw_step(result)
        seconds = result.step.pipeline_time_s
        low, high = interval(drawn.pipeline_s, value=seconds)
        times = [
            (operator.kind, float(took))
            for chunk in result.step.chunks.values()
            for operator, took in zip(
                chunk.log.graph.task_operators(), chunk.cost.seconds, strict=True
            )
        ]
        if optimizer:
            seconds = result.step.step_time_s
            low, high = interval(drawn.step_s, value=seconds)
            times.append(("optimizer", result.step.optimizer[0].total_s))
    else:
        assert isinstance(result, ServingRun), "the templates hold no other job"
        step = result.step
        seconds = step.step_s
        low, high = serving_interval(step, seed=scenario.file.seed)
        operators = step.log.graph.task_operators()
        times = [
            (operator.kind, float(took))
            for operator, took in zip(operators, step.seconds, strict=True)
        ]
    if spread is not None:
        low = seconds * exp(-hypot(log(seconds / low), log(spread.value / spread.low)))
        high = seconds * exp(hypot(log(high / seconds), log(spread.high / spread.value)))
    families: dict[str, Seconds] = {}
    for kind, took in times:
        family = kernel_group(kind)
        families[family] = families.get(family, 0.0) + took
    families[REST] = seconds - sum(families.values())
    return Predicted(seconds, low, high, families)


REST = "gaps, host"
FAMILIES = ("products", "expert products", "attention", "memory-bound", "optimizer")


def kernel_group(kind: str) -> str:
    """Which of FAMILIES a kind of operator belongs to."""
    if kind == "optimizer":
        return kind
    if kind.startswith(("attention", "mla", "sparse_mla", "index_scores")) and is_tensor(kind):
        return "attention"
    if "grouped_gemm" in kind:
        return "expert products"
    return "products" if is_tensor(kind) else "memory-bound"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A measured step, and the same simulated twice."""

    step: Step
    same: Predicted
    """From the operators of its own lease."""
    other_lease: str
    other: Predicted
    """From those of another device."""

    @property
    def composition_error(self) -> float:
        """Relative error of the step composed of operators of the same lease."""
        return self.same.seconds / self.step.seconds - 1

    @property
    def other_error(self) -> float:
        """Relative error of the step composed of the other device's operators."""
        return self.other.seconds / self.step.seconds - 1

    @property
    def inside(self) -> bool:
        """Whether the measured time lies in the other device's 80% interval."""
        return self.other.low <= self.step.seconds <= self.other.high

    @property
    def errors(self) -> dict[str, Seconds]:
        """What the other device's error is made of: by kernel family, and of the composition.

        They sum to simulated less measured time."""
        names = dict.fromkeys((*self.other.families, *self.same.families))
        return {
            **{
                name: self.other.families.get(name, 0.0) - self.same.families.get(name, 0.0)
                for name in names
            },
            "composition": self.same.seconds - self.step.seconds,
        }

    @property
    def left(self) -> float:
        """|sum of the errors| over the sum of their amounts: 1 where none cancels another."""
        every = list(self.errors.values())
        return abs(sum(every)) / max(sum(map(abs, every)), np.finfo(np.float64).tiny)


def compare_step(step: Step, others: Sequence[str]) -> list[Comparison]:
    """Simulate a step from the operators of its own lease and from those of each other one."""
    same = predict(scenario_of(step, step.lease), optimizer=step.job == TRAIN_STEP)
    return [Comparison(step, same, lease, predict_from(step, lease)[1]) for lease in others]


@dataclass(frozen=True, slots=True)
class Probe:
    """What five operators tell of two devices, as relative differences of their times."""

    kernels: float
    """In bursts, at the highest clock: chip, memory and the kernels' own version."""
    clock: float
    """What the operators timed in turns differ by beyond that: the clock that power allows."""
    operators: tuple[str, ...]


PROBED = 5
"""Operators of a probe: timed in bursts and in turns they take 20 s on a GPU."""


def probe(own: Sequence[Measurement], other: Sequence[Measurement]) -> Probe | None:
    """Compare two devices by the longest training operators, one of a kind, that both tables hold
    in bursts and in turns; None where they hold too few.

    Times of `other` over those of `own`, geometric mean."""
    tables = [_by_state(rows) for rows in (own, other)]
    shared = set.intersection(*(set(table[state]) for table in tables for state in (False, True)))
    of_kind: dict[str, _OperatorKey] = {}
    for key in sorted(shared, key=lambda key: -tables[0][True][key]):
        of_kind.setdefault(key[0], key)
    longest = list(of_kind.values())[:PROBED]
    if len(longest) < PROBED:
        return None

    def difference(state: bool) -> float:
        ratios = [tables[1][state][key] / tables[0][state][key] for key in longest]
        return sum(map(log, ratios)) / len(ratios)

    bursts, turns = difference(False), difference(True)
    names = tuple(f"{key[0]} {format_pairs(key[1])}" for key in longest)
    return Probe(exp(bursts) - 1, exp(turns - bursts) - 1, names)


_OperatorKey = tuple[str, tuple[tuple[str, int], ...], str, str, bool]


def _by_state(rows: Sequence[Measurement]) -> dict[bool, dict[_OperatorKey, Seconds]]:
    """{timed in the turns of a training step, rather than in bursts: {operator: seconds}}"""
    found: dict[bool, dict[_OperatorKey, Seconds]] = {False: {}, True: {}}
    for row in rows:
        in_turns = row.state == "sustained"
        if not in_turns or row.job == TRAIN_MICROBATCH:
            key = (row.kind, row.sizes, row.dtype, row.out_dtype, row.accumulate)
            found[in_turns][key] = row.seconds
    return found


def probe_leases(own: str, other: str) -> Probe | None:
    """The probe of two leases, by their tables of operators."""
    rows = [load_measurements(TABLES / f"{lease}{OPERATORS}.csv") for lease in (own, other)]
    return probe(*rows)


def predict_from(step: Step, lease: str) -> tuple[Scenario, Predicted]:
    """Simulate a step from the operators of another device, those of its GPU's shipped tables
    beside them."""
    scenario = scenario_of(step, lease, operators_only=False)
    spread = SAME_KIND if gpu_of(lease) == step.gpu else None
    return scenario, predict(scenario, optimizer=step.job == TRAIN_STEP, spread=spread)


def ledger_lines(lease: str, *, date: str) -> list[LedgerLine]:
    """What the simulator says of the steps of a lease that is still to come, from the operators of
    every lease so far.

    Args:
        lease: its name, e.g. "h200_sxm_2".
        date: YYYY-MM-DD.
    """
    if lease in leases():
        raise ValueError(f"--lease {lease}: is measured already; predictions come before")
    timed = {(step.label, step.gpu) for step in every_step()}
    found = []
    for step in planned(lease):
        for source in leases(step.job):
            scenario, said = predict_from(step, source)
            found.append(
                LedgerLine(
                    about=step.about,
                    quantity="seconds of a step",
                    predicted=said.seconds,
                    interval_80=(said.low, said.high),
                    digest=run_key(scenario),
                    date=date,
                    truth_known=(step.label, step.gpu) in timed,
                    note=f"from the operators of {source}",
                )
            )
    return found


def check_lease(lease: str) -> None:
    """Raise ValueError for a lease whose tables are not shipped."""
    if lease not in leases():
        raise ValueError(f"--lease {lease!r} is not one of {', '.join(leases())}")


def comparisons(lease: str | None = None, watch: Watch = unwatched) -> list[Comparison]:
    """Every measured step, of one lease or of all, beside the operators of each other lease.

    Args:
        watch: told before every step how many are done.
    """
    steps = [
        (own, step)
        for own in ([lease] if lease else leases())
        for step in read_steps(TABLES / f"{own}.csv")
    ]
    found: list[Comparison] = []
    for done, (own, step) in enumerate(steps):
        watch(HowFar(done / len(steps), done, "steps"))
        found += compare_step(step, [other for other in leases(step.job) if other != own])
    return found


def json_of(one: Comparison) -> dict[str, Any]:
    """A comparison as JSON: seconds, relative errors, and what the error is made of."""
    return {
        "lease": one.step.lease,
        "step": one.step.label,
        "measured_s": one.step.seconds,
        "same_lease_s": one.same.seconds,
        "composition_error": one.composition_error,
        "other_lease": one.other_lease,
        "other_lease_s": one.other.seconds,
        "other_error": one.other_error,
        "interval_80": [one.other.low, one.other.high],
        "inside": one.inside,
        "errors_s": one.errors,
        "left_of_errors": one.left,
    }
