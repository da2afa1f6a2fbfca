"""Prepare the fleet of a scenario for simulation, step times of its pools included.

The times of one iteration are those expected of ranks that differ as the step scenario's skew says.
They come from the one-step serving model, asked at grid points only (powers
of two of tokens and context; of batches also one and a half times those) and interpolated linearly
in between; each point is asked once. A pass is asked as equal prompts: the mean number of tokens
that its tokens attend to fixes their length, and where that is longer than the pass itself, the
tokens cached before them.

The memory of an instance is that of its largest iteration: a pass of tokens_per_pass tokens of one
prompt (keys of tokens cached before it are rebuilt in pieces no larger, as chunked prefill of vLLM
and SGLang does), or a step of max_batch requests. What the step scenario has of requests does not
count.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count

import yaml

from simulator.execution.fleet.accounts import FleetRun
from simulator.execution.fleet.fleet import run_fleet
from simulator.execution.fleet.kept_points import KnownTimes, read_points, write_points
from simulator.execution.fleet.log import FleetLog
from simulator.execution.fleet.step_times import (
    AffineStepTimes,
    Grid,
    InterpolatedStepTimes,
    StepTimes,
)
from simulator.execution.progress import HowFar, Watch, unwatched
from simulator.execution.serving_draws import expected_s
from simulator.execution.serving_model import ServingModel
from simulator.execution.serving_run import prepare_serving, rebalancing
from simulator.execution.serving_step import (
    IterationLoad,
    ServingStep,
    decode_load,
    iteration,
    job_load,
    prefill_load,
    price_together,
)
from simulator.scenario.files import Scenario, load_scenario
from simulator.scenario.fleet import FleetJob, PoolSpec, StepScenario
from simulator.scenario.inputs import NONE
from simulator.scenario.serving import ServingStepJob, StepRequests
from simulator.workload.recorded import traces_in
from simulator.workload.serving_memory import kv_bytes_per_token, kv_capacity, micro_batch_tokens

# Powers of two: a pass of 2^n tokens is made of whole prompts of any smaller power of two.
_SIZES = tuple(2**n for n in range(18))
# A decode step grows unevenly where a full batch begins to wait for transfers.
_BATCHES = tuple(sorted({*_SIZES, *(3 * 2**n for n in range(3, 16))}))
_PROMPTS = tuple(2**n for n in range(5, 19))
# A prompt of 2^n tokens attends to 2^(n-1) of them on average.
_CONTEXTS = tuple(prompt // 2 for prompt in _PROMPTS)


@dataclass(frozen=True, slots=True)
class FleetSimulation:
    """A fleet that is ready to run. A log takes what happens, while it happens."""

    scenario: Scenario
    job: FleetJob
    step_times: Mapping[str, StepTimes]
    """Of each pool."""
    models: Mapping[str, ServingModel]
    """The one-step models behind them: {"prefill", "decode"}, empty for coefficients."""
    points: Mapping[str, KnownTimes]
    """Of each of those, the times of grid points that are known so far."""

    @property
    def step_times_from(self) -> Mapping[str, str]:
        """What the step times of each pool rest on, in words."""
        return {name: _basis(pool) for name, pool in self.job.pools.items()}

    def run(
        self,
        *logs: FleetLog,
        watch: Watch = unwatched,
        first: int | None = None,
        only_first: bool = False,
    ) -> FleetRun:
        """Simulate the fleet; the same scenario gives the same rows.

        Args:
            logs: all get every row.
            watch, first, only_first: as of run_fleet.
        """
        return run_fleet(
            self.job,
            self.step_times,
            self.scenario.cluster,
            seed=self.scenario.file.seed,
            logs=logs,
            watch=watch,
            first=first,
            only_first=only_first,
        )

    def keep_times(self) -> None:
        """Keep the times of iterations and kernels that were asked for, for the user's next
        process."""
        for phase, model in self.models.items():
            model.kernels.costs.keep_times()
            write_points(model, self.points[phase])


def _basis(pool: PoolSpec) -> str:
    if pool.affine is not None:
        return "coefficients of the scenario"
    steps = [step for step in (pool.prefill_step, pool.decode_step) if step is not None]
    named = " and ".join(
        f"{step.scenario} ({', '.join(step.changes)})" if step.changes else step.scenario
        for step in steps
    )
    return f"one-step model of {named}, interpolated between grid points"


def prepare_fleet(
    scenario: Scenario,
    watch: Watch = unwatched,
    known: Mapping[str, KnownTimes] | None = None,
) -> FleetSimulation:
    """Resolve the step times of every pool.

    Args:
        watch: told of every iteration whose time is worked out, while the fleet runs.
        known: {phase: times of its deployment that were worked out before}, by default those that
            were kept; what the fleet asks for besides is added while it runs.

    Raises:
        ValueError: an unknown name, a deployment that is not the pool's, or Infeasible.
    """
    job = scenario.job_as(FleetJob)
    models: dict[str, ServingModel] = {}
    points: dict[str, KnownTimes] = {}
    times: dict[str, StepTimes] = {}
    pauses: dict[str, PoolSpec] = {}
    """Pools with the pause of their rebalancing filled in."""
    for name, pool in job.pools.items():
        if pool.affine is not None:
            times[name] = AffineStepTimes(pool.affine)
            continue
        steps = {"prefill": pool.prefill_step, "decode": pool.decode_step}
        of_pool = {
            phase: _model(scenario, job, pool, step, where=f"fleet.{name}.{phase}_step")
            for phase, step in steps.items()
            if step is not None
        }
        points |= {
            phase: read_points(model) if known is None else known.get(phase, {})
            for phase, model in of_pool.items()
        }
        times[name] = _interpolated(of_pool, watch, points)
        models |= of_pool
        pauses[name] = _with_pause(pool, of_pool, where=f"fleet.{name}.rebalance")
    filled = pauses | {"kv_bytes_per_token": _kv_bytes_per_token(scenario, job, models)}
    return FleetSimulation(scenario, job.model_copy(update=filled), times, models, points)


def _kv_bytes_per_token(
    scenario: Scenario, job: FleetJob, models: Mapping[str, ServingModel]
) -> float:
    """Of the KV caches that pools pass on, which is one number."""
    held = {
        phase: kv_bytes_per_token(model.config, model.job.memory.kv_cache)
        for phase, model in models.items()
    }
    if job.kv_bytes_per_token is not None:
        held["fleet.kv_bytes_per_token"] = job.kv_bytes_per_token
    if not held:
        return kv_bytes_per_token(scenario.model, "bfloat16")
    if len(set(held.values())) != 1:
        found = ", ".join(f"{name} {size:g} B" for name, size in held.items())
        raise ValueError(
            f"fleet: KV caches of different bytes per token: {found}; allowed: the same "
            "memory.kv_cache in every step, and no fleet.kv_bytes_per_token but theirs"
        )
    return next(iter(held.values()))


def _with_pause(pool: PoolSpec, models: Mapping[str, ServingModel], *, where: str) -> PoolSpec:
    """The pool with the pause of its rebalancing, where it is that of moving experts."""
    rebalance = pool.rebalance
    if rebalance is None or rebalance.pause is not None:
        return pool
    costs = [rebalancing(model, rebalance.interval) for model in models.values()]
    moved = [cost.seconds for cost in costs if cost is not None]
    if not moved:
        raise ValueError(
            f"{where}: pause is missing; allowed: a time, or skew.rows of form popularity in the "
            "step scenario, whose placement then says what moves"
        )
    return pool.model_copy(update={"rebalance": rebalance.model_copy(update={"pause": max(moved)})})


def _interpolated(
    models: Mapping[str, ServingModel], watch: Watch, points: Mapping[str, KnownTimes]
) -> StepTimes:
    steps = _simulated(models.get("decode"), decode_at, _BATCHES, watch, "decode", "steps")
    passes = _simulated(models.get("prefill"), prefill_at, _SIZES, watch, "prefill", "passes")
    return InterpolatedStepTimes(
        _expected(steps, points.get("decode", {}), skewed=_skewed(models.get("decode"))),
        _expected(passes, points.get("prefill", {}), skewed=_skewed(models.get("prefill"))),
        kv_capacity_tokens=min(kv_tokens(model) for model in models.values()),
        page_tokens=max(model.job.memory.page_tokens for model in models.values()),
        batches=_BATCHES,
        tokens=_SIZES,
        contexts=_CONTEXTS,
    )


def _simulated(
    model: ServingModel | None,
    load_at: Callable[[ServingModel, int, int], IterationLoad],
    lines: Sequence[int],
    watch: Watch,
    phase: str,
    unit: str,
) -> Callable[[int, int], ServingStep]:
    """Iterations at grid points; who watches is told of each before it is simulated.

    Most kernels are the same at any context. Those of all sizes that the deployment can have, up to
    the grid line above its largest, are priced together before the first iteration.
    """
    number = count(1)

    def simulated(size: int, context: int) -> ServingStep:
        assert model is not None, "a pool is asked for its own phases"
        place = next(number)
        watch(HowFar(None, place, unit, what=f"working out times of {phase} {unit}"))
        if place == 1:
            above = bisect_right(lines, _largest(model.job))
            price_together(load_at(model, line, context) for line in lines[: above + 1])
        return iteration(load_at(model, size, context))

    return simulated


def _skewed(model: ServingModel | None) -> bool:
    return model is not None and not model.job.skew.is_none


def _largest(job: ServingStepJob) -> int:
    """Requests, or tokens of a pass, of a rank in the largest iteration, which the job is."""
    if job.phase == "decode":
        return job.group_requests
    assert job.requests.tokens_per_gpu is not None, "what a prefill job has"
    return job.requests.tokens_per_gpu * job.attention_tp


def _expected(
    step_at: Callable[[int, int], ServingStep], known: KnownTimes, *, skewed: bool
) -> Callable[[int, int], float]:
    """Expected seconds of iterations at grid points.

    What ranks that differ make of the time of ideal ones changes slowly, so that it is drawn at
    powers of two, of contexts at every other, and interpolated in between. Those points are grid
    points of the times too, and are simulated once.

    Args:
        known: times that were worked out before; others are added.
        skewed: whether ranks differ.
    """
    step_at = cache(step_at)

    def more(size: int, context: int) -> float:
        key = ("more", size, context)
        if key not in known:
            step = step_at(size, context)
            known[key] = expected_s(step) / step.step_s
        return known[key]

    drawn = Grid(more, _SIZES, _CONTEXTS[::2])

    def seconds(size: int, context: int) -> float:
        key = ("seconds", size, context)
        if key not in known:
            of_ranks = drawn.at(size, context) if skewed else 1.0
            known[key] = step_at(size, context).step_s * of_ranks
        return known[key]

    return seconds


def _model(
    fleet: Scenario, job: FleetJob, pool: PoolSpec, named: StepScenario, *, where: str
) -> ServingModel:
    """Make the deployment of a step scenario ready, after checking that it is the pool's.

    Its model and nodes are the fleet's, whatever its own file names, and so is the recipe where the
    fleet states one.
    """
    scenario = load_scenario(named.scenario, named.changes)
    of_fleet = {
        "model": (scenario.resolved["model"], fleet.resolved["model"]),
        "cluster.node": (scenario.resolved["cluster"]["node"], fleet.resolved["cluster"]["node"]),
    }
    other = [f"{path}={_as_yaml(value)}" for path, (own, value) in of_fleet.items() if own != value]
    other += [] if job.recipe is None else [f"recipe={job.recipe}"]
    if other:
        scenario = load_scenario(named.scenario, [*named.changes, *other])
    step = scenario.job
    if not isinstance(step, ServingStepJob):
        raise ValueError(
            f"{where}: {named.scenario} holds a {scenario.job_name} job; allowed: serving_step"
        )
    phase = where.removesuffix("_step").rpartition(".")[2]
    checks = {
        "phase": (step.phase, phase),
        "gpus": (step.gpus, pool.gpus_per_instance),
        "gpus / attention_tp": (step.gpus // step.attention_tp, pool.ranks),
        # Ranks of the fleet have their own requests and contexts.
        "requests.attention_imbalance": (step.requests.attention_imbalance, 1.0),
    }
    if phase == "decode":
        drafted = (
            1.0 if step.speculative_decoding is None else step.speculative_decoding.tokens_per_step
        )
        checks["speculative_decoding.tokens_per_step"] = (drafted, job.tokens_per_step)
    for field, (has, wanted) in checks.items():
        if has != wanted:
            plain = isinstance(has, str | int | float)
            shown = f"is {has!r}" if plain else "is another"
            needed = repr(wanted) if plain else "the fleet's"
            raise ValueError(
                f"{where}: {field} of {named.scenario} {shown}; allowed here: {needed}"
            )
    step = _at_largest_load(step, pool)
    room = step.memory.buffer_tokens
    if phase == "decode" and room is not None and micro_batch_tokens(step) > room:
        raise ValueError(
            f"{where.removesuffix('decode_step')}max_batch {pool.max_batch}: a micro-batch of a "
            f"GPU has {micro_batch_tokens(step)} tokens; allowed: at most the {room} of "
            f"memory.buffer_tokens of {named.scenario}"
        )
    return prepare_serving(scenario, step, traces_in(fleet.file.traces))


def _as_yaml(value: object) -> str:
    """On one line, as an override has it."""
    return yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize).strip()


def _at_largest_load(step: ServingStepJob, pool: PoolSpec) -> ServingStepJob:
    """The deployment with the requests of the largest iteration that the pool runs on it, the same
    on all ranks."""
    if step.phase == "decode":
        largest = StepRequests(
            requests_per_group=pool.max_batch, context_tokens=step.requests.context_tokens
        )
    else:
        assert pool.tokens_per_pass is not None, "the fleet's validator wants it where prompts run"
        largest = StepRequests(
            tokens_per_gpu=-(-pool.tokens_per_pass // step.attention_tp),
            prompt_tokens=pool.tokens_per_pass,
        )
    # What requests and contexts of ranks differ by, the fleet simulates.
    skew = step.skew.model_copy(update={"work_sd": NONE})
    return step.model_copy(update={"requests": largest, "skew": skew})


def kv_tokens(model: ServingModel) -> int:
    """KV cache of one rank beside its largest iteration, which the job of the model is: GPUs that
    share the heads of a request each hold all of its cache."""
    sections, _ = job_load(model).operators()
    operators = [operator for layer in sections.values() for operator in layer.operators]
    capacity = kv_capacity(
        model.job,
        config=model.config,
        cluster=model.cluster,
        low_latency=model.low_latency,
        operators=operators,
    )
    return capacity.tokens


def decode_at(model: ServingModel, batch: int, context: int) -> IterationLoad:
    """The load of one decode step of ``batch`` requests per rank with ``context`` KV tokens
    each."""
    # The requests of one rank are spread over the GPUs that share their heads.
    per_gpu = -(-batch // model.job.attention_tp)
    speculation = model.job.speculative_decoding
    new = 1 if speculation is None else 1 + speculation.draft_tokens
    return decode_load(model, per_gpu, context + new, group_batch=batch)


def prefill_at(model: ServingModel, tokens: int, attended: int) -> IterationLoad:
    """The load of one pass of ``tokens`` new tokens per rank that attend to ``attended`` tokens on
    average.

    Fewer tokens than micro-batches cost as much as one each.
    """
    micro_batches = model.job.micro_batches
    tokens = max(tokens, micro_batches)
    prompt = 2 * attended
    whole = prompt <= tokens // micro_batches
    return prefill_load(
        model,
        # The tokens of one rank are spread over the GPUs that share their heads.
        -(-tokens // model.job.attention_tp),
        prompt if whole else tokens,
        cached=0 if whole else max(attended - tokens // 2, 0),
        group_tokens=tokens,
    )
