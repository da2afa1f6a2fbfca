"""Say what slow ranks cost a recorded data- and pipeline-parallel training job.

A trace holds, of some steps, every forward and backward of every micro-batch on every stage and
data-parallel replica, and the transfers and collectives around them. Its steps are simulated again
from the durations alone, in the same order: 1F1B over the stages with the replicas as an axis, then
the collectives, each of which starts when the last of its ranks is ready. Three questions:

- how long a step takes without what the durations do not explain ("as run");
- how long it would take were every operation as long as the mean of its kind ("even"), transfers as
  their median;
- how long where the operations of one rank, stage or kind alone keep their own durations.

Form of the traces, even durations and questions: StragglerAnalysis (OSDI'25, arXiv 2505.05713),
whose published results the answers are held against. All times of a step are relative to its start.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.fields import read_yaml
from hardware_profiles.units import Seconds
from hardware_profiles.whole_files import read_text
from reference_model.pipeline_actions import FORWARD_WORK
from reference_model.trace import Operator
from simulator.calibration.table_files import FileColumns, read_columns
from simulator.execution import timeline
from simulator.execution.pipeline import run_pipeline
from simulator.workload.schedules.one_f_one_b import one_f_one_b
from simulator.workload.task_graph import Stream, Task, TaskGraph

Array = NDArray[np.float64]

FORWARD_COMPUTE, BACKWARD_COMPUTE = "forward-compute", "backward-compute"
GATHER, REDUCE = "params-all-gather", "grads-reduce-scatter"
EMBEDDING, CLIP = "embedding-grads-all-reduce", "optimizer-clip-main-grad"
ONCE: Mapping[str, tuple[int, ...]] = {
    "gc": (),
    "layernorm-grads-all-reduce": (),
    "optimizer": (),
    GATHER: (2,),
    REDUCE: (2,),
    EMBEDDING: (0,),
    CLIP: (0, 2),
}
"""{what happens once per step: axes of [stages, 1, replicas, steps] whose ranks do it together}"""
MEANS = (FORWARD_COMPUTE, BACKWARD_COMPUTE, "gc", "optimizer")
"""Kinds whose even duration is the mean; of others it is the median."""
ONWARDS: Mapping[str, int] = {"forward": 1, "backward": -1}
"""{direction of a send: stages from who sends to who receives}"""
AS_RUN, EVEN = "as run", "even"
MOST_SECONDS = 1e9
"""Thirty years, of a time in a trace."""
MOST_NAMED = 20
"""Steps or causes that a message lists."""
MOST_DIGITS = 19
"""Of the number of a step."""


@dataclass(frozen=True, slots=True)
class StragglerTrace:
    """Durations of a job, seconds; a transfer or collective lasts from when the last of its ranks
    is there."""

    steps: tuple[int, ...]
    work_s: Mapping[str, Array]
    """{forward-compute, backward-compute: [stages, micro-batches, replicas, steps]}"""
    sends_s: Mapping[str, Array]
    """{forward-pp-comm, backward-pp-comm: the same}, as each stage receives; 0 where it does not"""
    once_s: Mapping[str, Array]
    """{what happens once per step: [stages, 1, replicas, steps]}; 0 where a stage has none"""

    @property
    def kinds(self) -> dict[str, Array]:
        """Durations of all kinds of operation."""
        return {**self.work_s, **self.sends_s, **self.once_s}


def recorded_jobs(folder: Path) -> list[str]:
    """Jobs of a folder: NAME of each trace-NAME.parquet.

    Raises ValueError where it holds none."""
    found = sorted(path.stem.removeprefix("trace-") for path in folder.glob("trace-*.parquet"))
    if not found:
        raise ValueError(
            f"--stragglers {folder}: no trace; allowed: a folder of trace-NAME.parquet, "
            "meta-NAME.yaml and result-NAME.json"
        )
    return found


def read_recorded_job(folder: Path, name: str) -> StragglerTrace:
    """The trace of a job: trace-NAME.parquet and meta-NAME.yaml.

    Raises ValueError naming the file where its job is none that this module knows."""
    described = folder / f"meta-{name}.yaml"
    meta = read_yaml(described, where=str(described))
    for field in ("vpp_size", "pp_size", "dp_size"):
        if type(meta.get(field)) is not int or meta[field] < 1:
            raise ValueError(
                f"{described}: {field}: {meta.get(field)!r}; allowed: a whole number from 1"
            )
    path = folder / f"trace-{name}.parquet"
    if meta["vpp_size"] != 1 or meta["pp_size"] < 2:
        raise ValueError(f"{path}: allowed: one stage per rank and at least two stages")
    columns = read_columns(path)
    limits = {"stage": meta["pp_size"], "dp_rank": meta["dp_size"], "seq_id": None, "step": None}
    try:
        return arranged(
            {"optype": _column(columns, "optype")}
            | {name: _places(_column(columns, name), name, most) for name, most in limits.items()}
            | {name: _seconds(_column(columns, name), name) for name in ("start_ts", "duration")},
            stages=meta["pp_size"],
            replicas=meta["dp_size"],
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _column(columns: FileColumns, name: str) -> NDArray[Any]:
    if name not in columns:
        raise ValueError(f"column {name!r} is missing")
    return np.asarray(columns[name])


def _seconds(values: NDArray[Any], name: str) -> Array:
    """Times of a column; those of durations are not negative."""
    least = -MOST_SECONDS if name == "start_ts" else 0.0
    try:
        seconds = values.astype(np.float64)
    except (TypeError, ValueError):
        seconds = np.array([np.nan])
    if not np.all((seconds >= least) & (seconds <= MOST_SECONDS)):
        raise ValueError(f"column {name!r}; allowed: seconds from {least:g} to {MOST_SECONDS:g}")
    return seconds


def _places(values: NDArray[Any], name: str, most: int | None) -> NDArray[np.int64]:
    """Whole numbers from 0 of a column, below `most`."""
    if values.dtype.kind not in "iu" or np.any(values < 0) or (most and np.any(values >= most)):
        raise ValueError(
            f"column {name!r}; allowed: whole numbers from 0" + (f" to {most - 1}" if most else "")
        )
    return values.astype(np.int64)


def arranged(columns: Mapping[str, NDArray[Any]], *, stages: int, replicas: int) -> StragglerTrace:
    """A trace as arrays.

    Args:
        columns: one value per operation: optype, stage, dp_rank, step, seq_id (number of its kind
            on its stage), start_ts and duration in seconds.

    Raises ValueError where a stage lacks a micro-batch, or takes no time."""
    steps, step = np.unique(columns["step"], return_inverse=True)
    starts = columns["start_ts"].astype(np.float64)
    ends = starts + columns["duration"].astype(np.float64)
    places = [columns[name].astype(np.intp) for name in ("stage", "seq_id", "dp_rank")]
    forwards = columns["optype"] == FORWARD_COMPUTE
    micro_batches = int(places[1][forwards].max(initial=-1)) + 1
    if not 0 < micro_batches * stages * replicas * len(steps) <= np.count_nonzero(forwards):
        raise ValueError("a stage does not compute every micro-batch of every step")

    def spans(kind: str, count: int) -> tuple[Array, Array]:
        """Start and end of one kind, [stages, count, replicas, steps]; NaN where there is none."""
        chosen = columns["optype"] == kind
        if np.any(places[1][chosen] >= count):
            raise ValueError(f"{kind!r} happens more than {count} times on a stage in a step")
        place = (*(part[chosen] for part in places), step[chosen])
        found = []
        for values in (starts, ends):
            array = np.full((stages, count, replicas, len(steps)), np.nan)
            array[place] = values[chosen]
            found.append(array)
        return found[0], found[1]

    work = {}
    for kind in (FORWARD_COMPUTE, BACKWARD_COMPUTE):
        begun, done = spans(kind, micro_batches)
        work[kind] = done - begun
    if any(np.isnan(seconds).any() for seconds in work.values()):
        raise ValueError("a stage does not compute every micro-batch of every step")
    if any(not seconds.any(axis=(0, 1, 2)).all() for seconds in work.values()):
        raise ValueError("a step whose computations take no time")

    sends = {}
    for direction, onwards in ONWARDS.items():
        sent, _ = spans(f"{direction}-send", micro_batches)
        begun, done = spans(f"{direction}-recv", micro_batches)
        there = np.fmax(begun, np.roll(sent, onwards, axis=0))
        sends[f"{direction}-pp-comm"] = np.nan_to_num(np.maximum(done - there, 0.0))

    once = {}
    for kind, shared in ONCE.items():
        begun, done = spans(kind, 1)
        there = np.fmax.reduce(begun, axis=shared, keepdims=True) if shared else begun
        once[kind] = np.nan_to_num(np.maximum(done - there, 0.0))
    return StragglerTrace(tuple(steps.tolist()), work, sends, once)


def kept(trace: StragglerTrace) -> dict[tuple[str, str], Mapping[str, Array]]:
    """{(what differs, which): {kind: durations}} of every question that a trace is asked.

    ("as run", "") and ("even", ""); else ("kind", its name), ("stage", number), ("replica", number)
    where only these keep their own durations.
    """
    even: dict[str, Array] = {}
    for kind, seconds in trace.kinds.items():
        own = seconds[[stage for stage in range(len(seconds)) if seconds[stage].any()]]
        middle = np.mean if kind in MEANS else np.median
        value = float(middle(own)) if own.size else 0.0
        even[kind] = np.where(seconds.any(axis=(1, 2, 3), keepdims=True), value, 0.0)
    stages, _, replicas, _ = trace.work_s[FORWARD_COMPUTE].shape
    of_stage = np.arange(stages)[:, None, None, None]
    of_replica = np.arange(replicas)[:, None]
    found: dict[tuple[str, str], Mapping[str, Array]] = {
        (AS_RUN, ""): trace.kinds,
        (EVEN, ""): {kind: even[kind] + 0 * own for kind, own in trace.kinds.items()},
    }
    for name, own in trace.kinds.items():
        found["kind", name] = {**found[EVEN, ""], name: own}
    for what, of, count in (("stage", of_stage, stages), ("replica", of_replica, replicas)):
        for number in range(count):
            found[what, str(number)] = {
                kind: np.where(of == number, own, even[kind]) for kind, own in trace.kinds.items()
            }
    return found


def step_times(seconds: Mapping[str, Array]) -> Array:
    """[steps, *axes], seconds of every step with these durations.

    Args:
        seconds: {kind: [stages, micro-batches or 1, replicas, steps, *axes]}
    """
    forward, backward = seconds[FORWARD_COMPUTE], seconds[BACKWARD_COMPUTE]
    stages, micro_batches = forward.shape[:2]
    schedule = one_f_one_b(stages, micro_batches)
    of_action = [
        (forward if action.work == FORWARD_WORK else backward)[rank, action.chunk.microbatch]
        for rank, row in enumerate(schedule.actions)
        for action in row
    ]
    # The first stage starts with its parameters; later ones have theirs before its first result.
    gathered = _together(0.0 * seconds[GATHER], seconds[GATHER], axes=(2,))
    of_action[0] = of_action[0] + gathered[0, 0]
    sends = {direction: seconds[f"{direction}-pp-comm"].mean(axis=1) for direction in ONWARDS}
    run = run_pipeline(
        schedule,
        np.stack(of_action),
        transfer_s={
            (stage - onwards, stage): sends[direction][stage]
            for direction, onwards in ONWARDS.items()
            for stage in range(stages)
            if 0 <= stage - onwards < stages
        },
        blocking_sends=False,
    )
    last = np.append(run.index[1:] == 0, True)
    ready = run.end_s[last][:, None] + seconds["gc"] + seconds["layernorm-grads-all-reduce"]
    ends = _together(ready[[0, -1]], seconds[EMBEDDING][[0, -1]], axes=(0,))
    ready = np.concatenate((ends[:1], ready[1:-1], ends[1:]))
    ready = _together(ready, seconds[REDUCE], axes=(2,))
    ready = _together(ready, seconds[CLIP], axes=(0, 2))
    done: Array = (ready + seconds["optimizer"]).max(axis=(0, 1, 2))
    return done


_EXCHANGE = TaskGraph(
    "exchange",
    layers=("step",),
    operators=(
        Operator(
            name="exchange",
            kind="copy",
            phase="forward",
            segment="",
            dtype="bfloat16",
            out_dtype="bfloat16",
            sizes=(("columns", 1), ("rows", 1)),
            recompute=False,
            accumulate=False,
        ),
    ),
    tasks=tuple(
        Task(0, Stream.COMPUTE, 0, -1, part, overlapped=False, collective=collective)
        for part, collective in (("ready", False), ("exchange", True))
    ),
)


def _together(ready_s: Array, took_s: Array, *, axes: tuple[int, ...]) -> Array:
    """When each rank ends a collective that starts once the last of `axes` is ready."""
    ready_s, took_s = np.broadcast_arrays(ready_s, took_s)
    first = np.moveaxis(
        np.stack((ready_s, took_s)), [axis + 1 for axis in axes], range(1, 1 + len(axes))
    )
    flat = first.reshape(2, -1, *first.shape[1 + len(axes) :])
    ends = timeline.run(_EXCHANGE, flat, 0.0, rank_axis=0).end_s[1]
    return np.moveaxis(ends.reshape(first.shape[1:]), range(len(axes)), axes)


@dataclass(frozen=True, slots=True)
class Slowdown:
    """What a job loses because ranks differ."""

    steps_s: Mapping[int, Seconds]
    """{step: seconds}, as run, without delays that no duration explains."""
    even_s: Mapping[int, Seconds]
    """The same, were all operations of a kind alike."""
    slowdown: float
    """Mean of the first over mean of the second."""
    causes: Mapping[str, Mapping[str, float]]
    """{kind, stage, replica: {which: the same, where only this keeps its own durations}}"""


def straggler_cost(trace: StragglerTrace) -> Slowdown:
    """What slow ranks cost, and which."""
    asked = kept(trace)
    kinds = list(trace.kinds)
    stacked = {kind: np.stack([case[kind] for case in asked.values()], axis=-1) for kind in kinds}
    times = dict(zip(asked, step_times(stacked).T, strict=True))
    as_run, even = times[AS_RUN, ""], times[EVEN, ""]
    causes: dict[str, dict[str, float]] = {}
    for (what, which), steps in times.items():
        if which:
            causes.setdefault(what, {})[which] = float(steps.mean() / even.mean())
    return Slowdown(
        steps_s=dict(zip(trace.steps, as_run.tolist(), strict=True)),
        even_s=dict(zip(trace.steps, even.tolist(), strict=True)),
        slowdown=float(as_run.mean() / even.mean()),
        causes=causes,
    )


def held_against_published(folder: Path, name: str) -> tuple[Slowdown, Slowdown]:
    """What slow ranks cost a recorded job: simulated, and as its authors found.

    Raises ValueError naming the file that cannot be read, or is of another job."""
    simulated = straggler_cost(read_recorded_job(folder, name))
    published = published_cost(folder, name)
    known = {"step": list(map(str, simulated.steps_s))} | {
        what: list(causes) for what, causes in simulated.causes.items()
    }
    for what, which in (
        *(("step", str(step)) for step in (*published.steps_s, *published.even_s)),
        *((what, which) for what, causes in published.causes.items() for which in causes),
    ):
        if which not in known[what]:
            raise ValueError(
                f"{folder / f'result-{name}.json'}: {what} {which!r} is not in the trace; "
                f"known: {', '.join(known[what][:MOST_NAMED])}"
            )
    return simulated, published


def published_cost(folder: Path, name: str) -> Slowdown:
    """What the authors of a trace found, from result-NAME.json.

    Raises ValueError naming the file where a figure is missing or is none."""
    path = folder / f"result-{name}.json"
    try:
        found = json.loads(read_text(path, where=str(path)))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None

    def figure(value: Any, field: str) -> float:
        if type(value) not in (int, float) or not 0 < value <= MOST_SECONDS:
            raise ValueError(f"{path}: {field}: {value!r}; allowed: over 0, up to {MOST_SECONDS:g}")
        return float(value)

    def figures(field: str) -> dict[str, float]:
        values = found.get(field) if isinstance(found, dict) else None
        if not isinstance(values, dict) or not values:
            raise ValueError(f"{path}: {field}: allowed: one number per name")
        return {name: figure(value, f"{field}.{name}") for name, value in values.items()}

    def of_steps(field: str) -> dict[int, float]:
        values = figures(field)
        wrong = [name for name in values if not (name.isdecimal() and len(name) < MOST_DIGITS)]
        if wrong:
            raise ValueError(f"{path}: {field}: {wrong[0]!r}; allowed: numbers of steps")
        return {int(step): seconds for step, seconds in values.items()}

    named = {"kind": "optype", "stage": "stage", "replica": "dp_rank"}
    return Slowdown(
        steps_s=of_steps("step_t_nodelay"),
        even_s=of_steps("step_t_noblk"),
        slowdown=figure(found.get("blocking_slowdown"), "blocking_slowdown"),
        causes={what: figures(f"blocking_decompose_by_{theirs}") for what, theirs in named.items()},
    )
