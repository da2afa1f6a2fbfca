"""Simulate one serving iteration of a deployment, operator by operator.

Every operator of the recorded layers is a task with a predicted time; tasks run in the published
orders (workload.iteration), with a gap between kernels. Ranks are ideal here, and folded into one:
all experts are equally popular, and the rank that stands for all is the slowest that the placement
leaves. What ranks that differ make of it, serving_draws says. What the model does not know is an
input: gap, host overhead, slow-down of transfers beside compute, each with an interval. Wires take
the share of the NIC or NVLink rate that DeepEP's tables achieve, or longer where links between
switches or failures allow less (fabric_load); traffic of other jobs has no effect on an iteration.

Times carry the ends of each kernel's interval; analysis.intervals makes the iteration's of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Seconds
from simulator.execution.serving_model import (
    EXPERT_LAYERS,
    LAST_TOKEN_KINDS,
    ServingModel,
    in_one_micro_batch,
    section_operators,
)
from simulator.execution.serving_times import asked_kernels, kernel_times, predicted
from simulator.execution.timeline import (
    Log,
    Waiting,
    critical_path,
    run,
    waiting,
)
from simulator.hardware.prediction import MODELLED, PROVENANCES, Prediction
from simulator.workload.iteration import (
    WHOLE_BATCH,
    WIRES,
    LayerOperators,
    Sections,
    joined_operators,
)
from simulator.workload.load import Load

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ServingStep:
    """One iteration."""

    model: ServingModel
    operators: Mapping[tuple[str, int], LayerOperators]
    times: Prediction
    """Of the operators of all sections, concatenated."""
    mean_rows: float
    """Rows that a rank computes in each layer, of one micro-batch, mean over ranks."""
    log: Log
    host_s: Seconds
    """Launching all kernels; the host runs ahead of the GPU and waits for nothing."""
    step_s: Seconds
    """Host overhead included."""

    @property
    def rows(self) -> float:
        """The same of the slowest rank; all experts are equally popular."""
        return self.mean_rows * self.model.even_skew

    @property
    def active_experts(self) -> float:
        """Experts of that rank that have rows, expected number."""
        return distinct_slots(self.model.slot_shares, self.rows)

    @property
    def waiting(self) -> Waiting:
        """What the compute stream waits for."""
        return waiting(self.log)

    @property
    def seconds(self) -> Array:
        """[tasks]"""
        return self.log.end_s - self.log.start_s

    @property
    def expert_s(self) -> Seconds:
        """Time in kernels of routed experts, drafts included."""
        chosen = [task.part == "experts" for task in self.log.graph.tasks]
        return float(self.seconds[chosen].sum())

    @property
    def exposed_communication_s(self) -> Seconds:
        """Time in which the compute stream waits for transfers."""
        return float(self.waiting.exposed_communication_s)

    def error_share(self) -> dict[str, float]:
        """Shares of the iteration's time by what the prediction of it rests on, along the critical
        path; gaps and host overhead count as modelled."""
        totals = dict.fromkeys(PROVENANCES, 0.0)
        path, gaps_s = critical_path(self.log)
        for task in path:
            place = self.model.places[task]
            totals[PROVENANCES[self.times.provenance[place]]] += float(self.seconds[task])
        totals[PROVENANCES[MODELLED]] += gaps_s + self.model.job.host_overhead.value
        whole = sum(totals.values())
        return {name: value / whole for name, value in totals.items()}


def serving_step(model: ServingModel) -> ServingStep:
    """Simulate the iteration of the model's own job."""
    return iteration(job_load(model))


def job_load(model: ServingModel) -> IterationLoad:
    """The load of the iteration of the model's own job."""
    requests = model.job.requests
    if model.job.phase == "decode":
        assert requests.context_tokens is not None
        together = model.job.group_requests
        return decode_load(
            model,
            -(-together // model.job.attention_tp),
            requests.context_tokens,
            idle_gpus=requests.idle_gpus,
            group_batch=together,
        )
    assert requests.tokens_per_gpu is not None
    assert requests.prompt_tokens is not None
    return prefill_load(
        model,
        requests.tokens_per_gpu,
        requests.prompt_tokens,
        cached=requests.cached_tokens,
    )


def decode_step(
    model: ServingModel,
    batch: int,
    context: int,
    *,
    idle_gpus: int = 0,
    group_batch: int | None = None,
) -> ServingStep:
    """One decode step (see `decode_load`)."""
    load = decode_load(model, batch, context, idle_gpus=idle_gpus, group_batch=group_batch)
    return iteration(load)


def decode_load(
    model: ServingModel,
    batch: int,
    context: int,
    *,
    idle_gpus: int = 0,
    group_batch: int | None = None,
) -> IterationLoad:
    """The load of one decode step of `batch` requests per GPU with `context` tokens each;
    `idle_gpus` GPUs have none.

    GPUs that share heads have `group_batch` requests together, spread over them as evenly as they
    go; without it each has `batch`. Fewer requests than micro-batches run in one micro-batch.
    """
    together = batch * model.job.attention_tp if group_batch is None else group_batch
    if together < model.job.micro_batches:
        model = in_one_micro_batch(model)
    job = model.job
    queries = 1 if job.speculative_decoding is None else 1 + job.speculative_decoding.draft_tokens
    context = round(context * job.requests.attention_imbalance)

    def share(of_group: int) -> Load:
        each = -(-of_group // job.attention_tp)
        return Load(
            tokens=each * queries,
            sequences=each,
            context=context,
            group_tokens=of_group * queries,
            group_sequences=of_group,
        )

    shares = _shares(together, job.micro_batches)
    batches = {number: share(size) for number, size in enumerate(shares)}
    batches[WHOLE_BATCH] = share(together)
    return IterationLoad(model, batches, busy=job.gpus - idle_gpus)


def prefill_load(
    model: ServingModel,
    tokens: int,
    prompt: int,
    *,
    cached: int = 0,
    group_tokens: int | None = None,
) -> IterationLoad:
    """The load of one prefill pass of `tokens` tokens per GPU, from prompts of which it computes
    `prompt` tokens each, after `cached` ones.

    GPUs that share heads have `group_tokens` tokens together, spread over them as evenly as they
    go, of prompts that all of them work on; without it each has `tokens`. A prompt in one piece
    with the pass is cut between micro-batches, the second part attending to the first. Where
    prompts do not fill a micro-batch evenly, it holds equal pieces of prompts, one more than whole
    ones fit, whose tokens attend to as many tokens on average as those of a prompt.

    Raises ValueError where a prompt has more tokens than the pass.
    """
    job = model.job
    together = tokens * job.attention_tp if group_tokens is None else group_tokens
    if prompt > together:
        raise ValueError(
            f"prompt_tokens {prompt}: allowed: at most tokens_per_gpu x attention_tp = {together}; "
            "a longer prompt is computed in several passes, with requests.cached_tokens"
        )
    each = -(-together // job.micro_batches)
    batches = {
        number: _pieces(model, each, prompt, cached + number * each, whole=False)
        if prompt == together and job.micro_batches > 1
        else _pieces(model, each, prompt, cached, whole=True)
        for number in range(job.micro_batches)
    }
    batches[WHOLE_BATCH] = _pieces(model, together, prompt, cached, whole=True)
    return IterationLoad(model, batches, busy=job.gpus - job.requests.idle_gpus)


def _pieces(model: ServingModel, tokens: int, prompt: int, cached: int, *, whole: bool) -> Load:
    """A micro-batch of `tokens` tokens of the GPUs that share heads, together: of prompts, or of
    one part of one prompt that follows `cached` tokens where `whole` is false."""
    count = -(-tokens // prompt) if whole else 1
    length = max(1, tokens // count)
    # A token of a prompt attends to cached + prompt / 2 others on average; so does one of a piece
    # with this context. The work goes with twice that mean.
    attended = 2 * cached + (prompt if whole else length)
    context = (length + attended * model.job.requests.attention_imbalance) / 2
    ranks = model.job.attention_tp
    return Load(
        tokens=-(-tokens // ranks),
        sequences=-(-count // ranks),
        context=max(length, round(context)),
        group_tokens=tokens,
        group_sequences=count,
    )


# -- one iteration ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IterationLoad:
    """What the GPUs of a deployment compute in one iteration."""

    model: ServingModel
    batches: Mapping[int, Load]
    """{micro-batch: what one of the busy GPUs has of it, the one with most where GPUs share heads,
    before its tokens choose experts}"""
    busy: int
    """GPUs that have requests."""

    def of(self, section: tuple[str, int]) -> Load:
        """What a GPU has of a section."""
        kind, number = section
        batch = self.batches[number]
        return batch.last_tokens() if kind in LAST_TOKEN_KINDS else batch

    def operators(self) -> tuple[Sections, Sections]:
        """Operators of the sections where the expected number of active experts is rounded up, and
        where it is rounded down."""
        model = self.model
        evaluated: dict[tuple[str, Load], LayerOperators] = {}

        def of_sections(
            count: Callable[[float], float],
        ) -> dict[tuple[str, int], LayerOperators]:
            operators = {}
            for section in model.sections:
                kind, _ = section
                counted = count if kind in EXPERT_LAYERS else math.ceil
                load = _batch_load(model, self.of(section), self.busy, counted)
                if (kind, load) not in evaluated:
                    evaluated[kind, load] = section_operators(model.job, model.trace, kind, load)
                operators[section] = evaluated[kind, load]
            return operators

        return of_sections(math.ceil), of_sections(math.floor)


def price_together(loads: Iterable[IterationLoad]) -> None:
    """Predict the kernels of many iterations of one deployment in one question, which is a fraction
    of the work of one after the other."""
    asked = [
        (load.model, kernel)
        for load in loads
        for operators in load.operators()
        for kernel in asked_kernels(load.model, operators)
    ]
    if asked:
        predicted(asked[0][0], [kernel for _, kernel in asked])


def iteration(load: IterationLoad) -> ServingStep:
    """Simulate one iteration."""
    model = load.model
    tokens = load.batches[0].mean_tokens(model.job.attention_tp) * load.busy
    operators, fewer = load.operators()
    times = kernel_times(model, operators)
    if fewer != operators:
        # A kernel has whole experts; the expected number lies between two of them.
        parts = [
            np.full(
                len(operators[section].operators),
                _active_experts(model, load.of(section), load.busy) % 1.0,
            )
            for section in model.sections
        ]
        times = times.between(kernel_times(model, fewer), np.concatenate(parts))
    gap = model.job.gap.value

    # The order is that of every iteration of the deployment; what runs in it, this one's alone.
    ran = run(model.graph, times.seconds[model.places], gap)
    graph = model.graph.with_operators(joined_operators(operators))
    log = replace(ran, graph=graph)
    # A low-latency wire is no kernel.
    launched = sum(task.part not in WIRES or model.job.normal_transfers for task in graph.tasks)
    host_s = launched * model.job.host_launch
    return ServingStep(
        model=model,
        operators=operators,
        times=times,
        mean_rows=max(1, round(tokens)) * model.choices / model.expert_ranks,
        log=log,
        host_s=host_s,
        step_s=max(log.span_s, host_s) + model.job.host_overhead.value,
    )


def _batch_load(
    model: ServingModel,
    batch: Load,
    busy: int,
    count: Callable[[float], float],
) -> Load:
    job = model.job
    share = busy / job.gpus * model.even_skew
    delivered = model.kernels.received_per_token * job.expert_tp
    received = batch.mean_tokens(job.attention_tp) * delivered * share
    return replace(
        batch,
        expert_rows=max(1, round(_expert_rows(model, batch, busy))),
        received_rows=max(1, round(received)),
        local_experts=int(count(_active_experts(model, batch, busy))),
    )


def _expert_rows(model: ServingModel, batch: Load, busy: int) -> float:
    """Rows of the experts of the slowest rank."""
    job = model.job
    share = busy / job.gpus * model.even_skew
    return batch.mean_tokens(job.attention_tp) * model.choices * job.expert_tp * share


def _active_experts(model: ServingModel, batch: Load, busy: int) -> float:
    """Local experts of one rank that have rows, expected number."""
    return distinct_slots(model.slot_shares, _expert_rows(model, batch, busy))


def distinct_slots(shares: Array, rows: float) -> float:
    """Expected number of slots, of these shares, that have any of `rows` rows, at least one: a
    transfer waits for a rank that has rows."""
    return max(1.0, float((1.0 - (1.0 - shares) ** rows).sum()))


def _shares(count: int, parts: int) -> list[int]:
    """`count` in `parts` as even as possible, larger first."""
    return [(count + parts - 1 - number) // parts for number in range(parts)]
