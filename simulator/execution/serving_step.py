"""One serving iteration, operator by operator: a ServingStepJob and its deployment in, times out.

Every operator of the recorded layers is a task with a predicted time; tasks run in the published
orders (serving_lowering), with a gap between kernels. Ranks are folded into one where they do the
same; where expert loads differ by rank and layer, every rank is a column and each transfer waits
for its slowest. What the model does not know is an input: gap, host overhead, slow-down of
transfers beside compute, each with an interval.

Interval: every kernel family, and every such input, at its low and high end, all its uses together;
effects of different families added in quadrature, as if their errors were independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.low_latency_kernels import (
    LowLatencyProfile,
    Operation,
    kernel_time,
    message_bytes,
    wire_time,
)
from hardware_profiles.schema import CalibrationProfile, ClusterProfile, Estimate, TimeEstimate
from hardware_profiles.tables import Measurement
from hardware_profiles.units import Seconds
from reference_model.config import ModelConfig
from reference_model.trace import Operator, OperatorTrace
from simulator.execution.step_order import (
    CriticalPath,
    StepLog,
    TaskOrder,
    critical_path,
    exposed_communication,
    run_order,
    task_order,
)
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernel_curves import (
    EXTRAPOLATED,
    INTERPOLATED,
    MEASURED,
    MODELLED,
    PROVENANCES,
)
from simulator.serving_job import ServingStepJob
from simulator.workload.experts import (
    ExpertPlacement,
    destinations_per_token,
    draw_rows,
    place_experts,
    read_popularity,
    uniform_popularity,
    zipf_popularity,
)
from simulator.workload.serving_lowering import (
    WHOLE_BATCH,
    LayerOperators,
    StepPlan,
    plan_step,
    split_layer,
)
from simulator.workload.serving_memory import micro_batch_tokens
from simulator.workload.serving_operators import BatchLoad, layer_operators

Array = NDArray[np.float64]

ROUTED_TOKENS = 4096
"""Tokens over which destinations of a token are counted."""

# Kernels of training that inference does not run: the gate of the published training trace is some
# 35 launches with sums for an auxiliary loss; in inference it is one fused kernel.
_TRAINING_ONLY = frozenset({"gate"})

# Parts of a layer whose times differ by rank where expert loads do.
_BY_EXPERT_ROWS = frozenset({"dispatch_receive", "experts", "combine_send"})

_EXPERT_LAYERS = ("moe", "mtp")


@dataclass(frozen=True, slots=True)
class KernelTimes:
    """Times of a list of operators; arrays [operators], seconds."""

    seconds: Array
    low: Array
    high: Array
    provenance: NDArray[np.intp]
    """Index into PROVENANCES."""
    family: tuple[str, ...]
    """What errs together: the kernel family, or the name of an input."""


@dataclass(frozen=True, slots=True)
class ExpertLoads:
    """Rows that each rank computes in each layer, of one micro-batch."""

    rows: Array
    """[layers, ranks]"""
    active: Array
    """[layers, ranks], local experts that have rows."""
    placement: ExpertPlacement | None

    @property
    def max_over_mean(self) -> float:
        """Slowest rank over the mean, mean over layers."""
        mean = self.rows.mean(axis=1)
        return float((self.rows.max(axis=1) / np.maximum(mean, 1e-9)).mean())

    @property
    def folded(self) -> bool:
        """Whether one rank stands for all."""
        return bool(self.rows.shape[1] == 1)


@dataclass(frozen=True, slots=True)
class ServingModel:
    """A deployment made ready: fitted kernel times, the plan, and what every iteration shares."""

    job: ServingStepJob
    config: ModelConfig
    cluster: ClusterProfile
    calibration: CalibrationProfile
    costs: KernelCostModel
    trace: OperatorTrace
    low_latency: LowLatencyProfile | None
    plan: StepPlan
    order: TaskOrder
    places: NDArray[np.intp]
    """[tasks], place of each task's operator in the concatenated operators of all sections."""
    sections: tuple[tuple[str, int], ...]
    """(layer kind, micro-batch), in the order in which their operators are concatenated."""
    received_per_token: float
    """GPUs that normal dispatch delivers a token to, on random router scores."""
    popularity: Array | None
    """[layers, experts], where loads are drawn."""
    placement: ExpertPlacement | None
    seed: int
    predicted: dict[tuple[Operator, int, bool], tuple[float, float, float, int]]
    """Kernel times already asked for: (operator, SMs, all-to-all beside it) -> seconds, low, high,
    provenance. Over a grid of batches and contexts most operators come back."""


@dataclass(frozen=True, slots=True)
class ServingStep:
    """One iteration."""

    model: ServingModel
    operators: Mapping[tuple[str, int], LayerOperators]
    times: KernelTimes
    """Of the operators of all sections, concatenated."""
    loads: ExpertLoads
    log: StepLog
    step_s: Seconds
    """Host overhead included."""
    low_s: Seconds
    high_s: Seconds
    exposed_communication_s: Seconds

    @property
    def seconds(self) -> Array:
        """[tasks] or [tasks, ranks]."""
        return self.log.end_s - self.log.start_s

    def path(self) -> CriticalPath:
        """The chain of tasks that the end of the iteration waits for."""
        return critical_path(self.model.order, self.log)

    def error_share(self) -> dict[str, float]:
        """Shares of the iteration's time by what the prediction of it rests on, along the critical
        path; gaps and host overhead count as modelled."""
        totals = dict.fromkeys(PROVENANCES, 0.0)
        seconds = self.seconds if self.seconds.ndim == 1 else self.seconds.max(axis=1)
        path = self.path()
        for task in path.tasks:
            place = self.model.places[task]
            totals[PROVENANCES[self.times.provenance[place]]] += float(seconds[task])
        totals[PROVENANCES[MODELLED]] += path.gaps_s + self.model.job.host_overhead.value
        whole = sum(totals.values())
        return {name: value / whole for name, value in totals.items()}


def serving_model(
    job: ServingStepJob,
    *,
    config: ModelConfig,
    cluster: ClusterProfile,
    calibration: CalibrationProfile,
    cost_model: Callable[..., KernelCostModel],
    measurements: Iterable[Measurement],
    trace: OperatorTrace,
    low_latency: LowLatencyProfile | None,
    seed: int,
) -> ServingModel:
    """Make a deployment ready: fit kernel times, plan the order, place the experts.

    Raises ValueError for sizes that do not fit together.
    """
    _check(job, config=config, cluster=cluster, trace=trace)
    rng = np.random.default_rng(seed)
    expert_ranks = job.gpus // job.expert_tp
    costs = cost_model(
        cluster=cluster,
        calibration=calibration,
        expert_parallel_ranks=_whole_nodes(expert_ranks, cluster.node.gpus),
    ).fit([row for row in measurements if row.kind not in _TRAINING_ONLY])
    nodes = max(1, -(-expert_ranks // cluster.node.gpus))

    def reached(destinations: int) -> float:
        if config.n_routed_experts % destinations:
            # Groups that do not divide the experts: the expectation without groups.
            missed = (1 - 1 / destinations) ** config.num_experts_per_tok
            return destinations * (1 - missed)
        return destinations_per_token(
            experts=config.n_routed_experts,
            groups=config.n_group,
            groups_per_token=config.topk_group,
            top_k=config.num_experts_per_tok,
            destinations=destinations,
            tokens=ROUTED_TOKENS,
            rng=rng,
        )

    received = reached(expert_ranks)
    if job.all_to_all.kernels == "normal":
        # DeepEP's published times were taken with its test's gate; this job runs the model's.
        costs.all_to_all_.nodes_per_token = reached(nodes)
        costs.all_to_all_.ranks_per_token = received
    popularity = _popularity(job, config, rng)
    placement = None
    if popularity is not None:
        placement = place_experts(
            popularity,
            gpus=expert_ranks,
            nodes=nodes,
            groups=config.n_group,
            redundant=job.experts.redundant,
            policy=job.experts.placement,
        )
    nominal = BatchLoad(
        tokens=128, sequences=128 if job.phase == "decode" else 1, context=128,
        expert_rows=128, received_rows=128, active_experts=1,
    )  # fmt: skip
    parts = {kind: _section(job, trace, kind, nominal) for kind in _kinds(job, config)}
    plan = plan_step(
        parts,
        dense_layers=config.first_k_dense_replace,
        moe_layers=config.num_moe_layers,
        draft_layers=0 if job.speculation is None else job.speculation.draft_tokens,
        head=job.head,
        decode=job.phase == "decode",
        overlap=job.overlap,
    )
    sections = tuple(
        (kind, micro_batch)
        for kind in parts
        for micro_batch in (range(job.micro_batches) if kind in _EXPERT_LAYERS else (WHOLE_BATCH,))
    )
    sizes = [len(parts[kind].operators) for kind, _ in sections]
    offsets = dict(zip(sections, np.concatenate(([0], np.cumsum(sizes)[:-1])), strict=True))
    places = np.array(
        [offsets[plan.layers[t.layer], t.micro_batch] + t.position for t in plan.tasks],
        dtype=np.intp,
    )
    return ServingModel(
        job=job,
        config=config,
        cluster=cluster,
        calibration=calibration,
        costs=costs,
        trace=trace,
        low_latency=low_latency,
        plan=plan,
        order=task_order(plan),
        places=places,
        sections=sections,
        received_per_token=received,
        popularity=popularity,
        placement=placement,
        seed=seed,
        predicted={},
    )


def serving_step(model: ServingModel, *, interval: bool = True) -> ServingStep:
    """Simulate the iteration of the model's own job."""
    requests = model.job.requests
    if model.job.phase == "decode":
        assert requests.requests_per_gpu is not None
        assert requests.context_tokens is not None
        return decode_step(
            model,
            requests.requests_per_gpu,
            requests.context_tokens,
            idle_gpus=requests.idle_gpus,
            interval=interval,
        )
    assert requests.tokens_per_gpu is not None
    assert requests.prompt_tokens is not None
    return prefill_pass(
        model,
        requests.tokens_per_gpu,
        requests.prompt_tokens,
        cached=requests.cached_tokens,
        interval=interval,
    )


def decode_step(
    model: ServingModel,
    batch: int,
    context: int,
    *,
    idle_gpus: int = 0,
    interval: bool = False,
) -> ServingStep:
    """One decode step of `batch` requests a GPU with `context` tokens each; `idle_gpus` GPUs have
    none."""
    job = model.job
    queries = 1 if job.speculation is None else 1 + job.speculation.draft_tokens
    context = round(context * job.requests.attention_imbalance)
    shares = _shares(batch, job.micro_batches)
    batches = {number: (size * queries, size, context) for number, size in enumerate(shares)} | {
        WHOLE_BATCH: (batch * queries, batch, context)
    }
    return _iterate(model, batches, busy=job.gpus - idle_gpus, interval=interval)


def prefill_pass(
    model: ServingModel, tokens: int, prompt: int, *, cached: int = 0, interval: bool = False
) -> ServingStep:
    """One prefill pass of `tokens` tokens a GPU, in pieces of `prompt` tokens that follow `cached`
    tokens each. A piece larger than a micro-batch is cut between micro-batches.

    Raises ValueError where the pieces do not make whole micro-batches.
    """
    job = model.job
    each = tokens // job.micro_batches
    if tokens % job.micro_batches or (each % prompt and prompt != tokens):
        raise ValueError(
            f"tokens_per_gpu {tokens} in {job.micro_batches} micro-batches of prompts of {prompt}: "
            f"allowed: whole prompts in each micro-batch, or one prompt in all"
        )
    cut = prompt == tokens and job.micro_batches > 1
    count = 1 if cut else each // prompt
    work = job.requests.attention_imbalance
    batches = {}
    for number in range(job.micro_batches):
        before = cached + (number * each if cut else 0)
        length = each // count
        # Attention work goes with query x (2 context - query); this context has `work` times it.
        context = round((length + (2 * (before + length) - length) * work) / 2)
        batches[number] = (each, count, context)
    whole = tokens // prompt
    whole_context = round((prompt + (2 * (cached + prompt) - prompt) * work) / 2)
    batches[WHOLE_BATCH] = (tokens, whole, whole_context)
    return _iterate(model, batches, busy=job.gpus - job.requests.idle_gpus, interval=interval)


# -- one iteration ---------------------------------------------------------------------------------


def _iterate(
    model: ServingModel,
    batches: Mapping[int, tuple[int, int, int]],
    *,
    busy: int,
    interval: bool,
) -> ServingStep:
    """batches: micro-batch -> (tokens, sequences, context) of one of `busy` GPUs."""
    loads = _expert_loads(model, batches[0][0] * busy)
    operators: dict[tuple[str, int], LayerOperators] = {}
    evaluated: dict[tuple[str, BatchLoad], LayerOperators] = {}
    for kind, number in model.sections:
        load = _batch_load(model, batches[number], loads, busy)
        if (kind, load) not in evaluated:
            evaluated[kind, load] = _section(model.job, model.trace, kind, load)
        operators[kind, number] = evaluated[kind, load]
    times = _kernel_times(model, operators)
    gap = model.job.kernel_gap.value

    def run(at: Array, gap_s: float) -> StepLog:
        return run_order(model.order, _by_rank(model, operators, loads, at, times), gap_s=gap_s)

    log = run(times.seconds, gap)
    low, high = log.span_s, log.span_s
    if interval:
        low, high = _interval(model, times, gap, log.span_s)
    host = model.job.host_overhead
    return ServingStep(
        model=model,
        operators=operators,
        times=times,
        loads=loads,
        log=log,
        step_s=log.span_s + host.value,
        low_s=low + host.value,
        high_s=high + host.value,
        exposed_communication_s=exposed_communication(model.order, log, gap_s=gap),
    )


def _interval(
    model: ServingModel, times: KernelTimes, gap: Seconds, span: Seconds
) -> tuple[Seconds, Seconds]:
    """Ends of the 80 % interval of the iteration, without the host's share; one folded rank stands
    for all, its relative width is applied to the span of the slowest."""

    def folded(seconds: Array, gap_s: Seconds) -> Seconds:
        return run_order(model.order, seconds[model.places], gap_s=gap_s).span_s

    middle = folded(times.seconds, gap)
    below, above = 0.0, 0.0
    family = np.array(times.family)
    for name in dict.fromkeys(times.family):
        chosen = family == name
        below += (middle - folded(np.where(chosen, times.low, times.seconds), gap)) ** 2
        above += (folded(np.where(chosen, times.high, times.seconds), gap) - middle) ** 2
    estimate = model.job.kernel_gap
    below += (middle - folded(times.seconds, estimate.low)) ** 2
    above += (folded(times.seconds, estimate.high) - middle) ** 2
    host = model.job.host_overhead
    below += (host.value - host.low) ** 2
    above += (host.high - host.value) ** 2
    return span * (1 - below**0.5 / middle), span * (1 + above**0.5 / middle)


def _kernel_times(
    model: ServingModel, operators: Mapping[tuple[str, int], LayerOperators]
) -> KernelTimes:
    """Times of all sections' operators, concatenated in the order of the sections."""
    job = model.job
    gpu_sms = model.cluster.node.gpu.sms
    normal = job.all_to_all.kernels == "normal" and job.expert_tp == 1
    hides = job.overlap == "two_micro_batches"
    flat: list[Operator] = []
    parts: list[str] = []
    sms: list[int] = []
    beside: list[bool] = []
    for section in model.sections:
        layer = operators[section]
        part_of = layer.part_of()
        overlapped = normal and hides and section[0] in _EXPERT_LAYERS
        for position, operator in enumerate(layer.operators):
            part = part_of[position]
            travels = part in ("dispatch_wire", "combine_wire")
            flat.append(operator)
            parts.append(part)
            beside.append(overlapped)
            if normal and travels:
                sms.append(job.communication_sms)
            else:
                sms.append(gpu_sms - job.communication_sms if overlapped else gpu_sms)
    seconds, low, high, provenance = _predicted(model, list(zip(flat, sms, beside, strict=True)))
    family = [operator.kind for operator in flat]
    for place, (operator, part) in enumerate(zip(flat, parts, strict=True)):
        known = _special_time(model, operator, part)
        if known is None:
            continue
        (seconds[place], low[place], high[place]), provenance[place], family[place] = known
    return KernelTimes(seconds, low, high, provenance, tuple(family))


def _predicted(
    model: ServingModel, asked: Sequence[tuple[Operator, int, bool]]
) -> tuple[Array, Array, Array, NDArray[np.intp]]:
    """Seconds, both ends of the interval and provenance of kernels (operator, SMs, all-to-all
    beside it), out of what is known and one question for the rest."""
    missing = list(dict.fromkeys(key for key in asked if key not in model.predicted))
    if missing:
        new = model.costs.predict(
            [operator for operator, _, _ in missing],
            sms=[count for _, count, _ in missing],
            overlapped=[beside for _, _, beside in missing],
        )
        codes = {name: code for code, name in enumerate(PROVENANCES)}
        columns = zip(
            new.seconds.tolist(), new.low.tolist(), new.high.tolist(), new.provenance, strict=True
        )
        for key, (value, least, most, source) in zip(missing, columns, strict=True):
            model.predicted[key] = (value, least, most, codes[str(source)])
    rows = [model.predicted[key] for key in asked]
    times = np.array([row[:3] for row in rows]).reshape(-1, 3).T
    return times[0], times[1], times[2], np.array([row[3] for row in rows], dtype=np.intp)


def _special_time(
    model: ServingModel, operator: Operator, part: str
) -> tuple[tuple[float, float, float], int, str] | None:
    """Times that are not kernels of the cost model: low-latency transfers, and collectives of
    tensor parallelism. -> (seconds, low, high), provenance, what errs together."""
    job = model.job
    if part in ("gather", "scatter"):
        return _collective_time(model, operator, job.attention_tp), EXTRAPOLATED, "collective"
    if part in ("dispatch_wire", "combine_wire") and job.expert_tp > 1:
        return _collective_time(model, operator, job.expert_tp), EXTRAPOLATED, "collective"
    profile = model.low_latency
    if profile is None or operator.kind == "add":
        return None
    if part in ("dispatch_send", "dispatch_receive", "combine_send", "combine_receive"):
        copies = _copies(model, operator, part)
        return _kernel_ends(model, profile, part, copies), EXTRAPOLATED, part
    operation: Operation = "dispatch" if part.startswith("dispatch") else "combine"
    wires = ("dispatch_wire", "combine_wire")
    return _low_latency_wire(model, profile, operation, operator) if part in wires else None


def _copies(model: ServingModel, operator: Operator, part: str) -> float:
    """Copies of tokens that a send or receive kernel, or a wire, handles."""
    sizes = dict(operator.sizes)
    if part in ("dispatch_send", "dispatch_wire"):
        return sizes["rows"] * _choices(model)
    return float(sizes["rows"])


def _choices(model: ServingModel) -> int:
    """Copies of each token that travel."""
    dispatched = model.job.experts.shared_expert == "dispatched"
    return model.config.num_experts_per_tok + (model.config.n_shared_experts if dispatched else 0)


def _kernel_ends(
    model: ServingModel, profile: LowLatencyProfile, part: str, copies: float
) -> tuple[float, float, float]:
    estimate: TimeEstimate = getattr(profile, part)
    floor = model.calibration.kernel_floor.value
    value, low, high = (
        kernel_time(at, profile, copies=copies, floor=floor)
        for at in (estimate.value, estimate.low, estimate.high)
    )
    return value, low, high


def _low_latency_wire(
    model: ServingModel, profile: LowLatencyProfile, operation: Operation, operator: Operator
) -> tuple[tuple[float, float, float], int, str]:
    """What is left of the published kernel's time when its send and receive parts are taken out, at
    least the network's latency; beside compute, times the job's ratio."""
    job, node = model.job, model.cluster.node
    copies = _copies(model, operator, f"{operation}_wire")
    link = node.nic_bandwidth_per_gpu if profile.link == "nic" else node.gpu.nvlink_bandwidth
    fabric = model.cluster.fabric
    latency = fabric.cross_leaf_latency if profile.link == "nic" else node.nvlink_latency
    moved = wire_time(
        profile, operation,
        copies=copies, hidden=model.config.hidden_size, ranks=job.gpus, link_bandwidth=link,
    )  # fmt: skip
    own = sum(
        _kernel_ends(model, profile, f"{operation}_{end}", copies)[0] for end in ("send", "receive")
    )
    alone = max(latency, moved + profile.intercept(operation).value - own)
    hides = job.overlap != "none" and job.all_to_all.overlapped is not None
    ratio = job.all_to_all.overlapped if hides else None
    value, low, high = (
        (alone * ratio.value, alone * ratio.low, alone * ratio.high)
        if ratio is not None
        else (alone, alone, alone)
    )
    fractions = [profile.fraction(operation, row.ranks) for row in profile.rows]
    here = profile.fraction(operation, job.gpus)
    low *= min(1.0, here / max(fractions))
    high *= max(1.0, here / min(fractions))
    same_size = copies == profile.tokens * profile.top_k and profile.is_measured(job.gpus)
    same_link = link == profile.link_bandwidth
    if not same_link or not profile.covers(job.gpus):
        provenance = EXTRAPOLATED
    else:
        provenance = MEASURED if same_size and ratio is None else INTERPOLATED
    return (value, low, high), provenance, f"{operation} wire"


def _collective_time(
    model: ServingModel, operator: Operator, ranks: int
) -> tuple[float, float, float]:
    """All-gather or reduce-scatter of BF16 tokens over NVLink: each GPU sends its share to the
    others at the rate that bulk transfers achieve."""
    node = model.cluster.node
    sizes = dict(operator.sizes)
    rows = sizes.get("rows", 0) if "columns" in sizes else sizes["tokens"] * ranks
    hidden = model.config.hidden_size
    received = message_bytes("combine", hidden) * rows * (ranks - 1) / ranks
    share: Estimate = model.calibration.transfers.nvlink
    value, low, high = (
        node.nvlink_latency + received / (node.gpu.nvlink_bandwidth * at)
        for at in (share.value, share.high, share.low)
    )
    return value, low, high


def _by_rank(
    model: ServingModel,
    operators: Mapping[tuple[str, int], LayerOperators],
    loads: ExpertLoads,
    at: Array,
    times: KernelTimes,
) -> Array:
    """[tasks] where ranks are folded; else [tasks, ranks] with the expert kernels of each rank."""
    seconds = at[model.places]
    if loads.folded:
        return seconds
    ranks = loads.rows.shape[1]
    by_rank = np.repeat(seconds[:, None], ranks, axis=1)
    first_moe = model.plan.layers.index("moe")
    # Every distinct load is evaluated once.
    keys = np.stack((np.rint(loads.rows), loads.active), axis=-1).reshape(-1, 2).astype(np.int64)
    unique, inverse = np.unique(keys, axis=0, return_inverse=True)
    inverse = inverse.reshape(loads.rows.shape)
    section = ("moe", 0)
    base = operators[section]
    wanted = [place for part in _BY_EXPERT_ROWS for place in base.parts.get(part, ())]
    table = _expert_times(model, base, unique, sorted(wanted))
    column = {place: number for number, place in enumerate(sorted(wanted))}
    for task, planned in enumerate(model.plan.tasks):
        if planned.part in _BY_EXPERT_ROWS and model.plan.layers[planned.layer] == "moe":
            layer = planned.layer - first_moe
            by_rank[task] = table[inverse[layer], column[planned.position]]
    return by_rank


def _expert_times(
    model: ServingModel, base: LayerOperators, unique: NDArray[np.int64], wanted: Sequence[int]
) -> Array:
    """[loads, operators], times of the wanted operators at each (rows, active experts)."""
    part_of = base.part_of()
    job = model.job
    gpu_sms = model.cluster.node.gpu.sms
    normal = job.all_to_all.kernels == "normal"
    overlapped = normal and job.overlap == "two_micro_batches"
    template = [base.operators[place] for place in wanted]
    listed = [
        _at_rows(operator, int(rows), int(active))
        for rows, active in unique
        for operator in template
    ]
    sms = gpu_sms - job.communication_sms if overlapped else gpu_sms
    seconds = _predicted(model, [(operator, sms, overlapped) for operator in listed])[0]
    table = seconds.reshape(len(unique), len(wanted)).copy()
    for number, place in enumerate(wanted):
        if part_of[place] in ("dispatch_receive", "combine_send") and model.low_latency:
            for load, (rows, _) in enumerate(unique):
                table[load, number] = _kernel_ends(
                    model, model.low_latency, part_of[place], float(rows)
                )[0]
    return table


def _at_rows(operator: Operator, rows: int, active: int) -> Operator:
    """An expert's operator at other rows; tokens received by normal dispatch scale with them."""
    sizes = dict(operator.sizes)
    old = max(1, sizes["rows"])
    changed = {"rows": max(1, rows)}
    if "groups" in sizes:
        changed["groups"] = max(1, active)
    if "tokens" in sizes:
        changed["tokens"] = max(1, round(sizes["tokens"] * rows / old))
    return replace(
        operator, sizes=tuple((name, changed.get(name, value)) for name, value in operator.sizes)
    )


# -- loads -----------------------------------------------------------------------------------------


def _expert_loads(model: ServingModel, tokens: int) -> ExpertLoads:
    """Rows of each rank and layer of a micro-batch of `tokens` tokens on all GPUs together."""
    job, config = model.job, model.config
    ranks = job.gpus // job.expert_tp
    choices = _choices(model)
    local = (config.n_routed_experts + job.experts.redundant) // ranks
    total = tokens * choices
    if model.popularity is None or model.placement is None:
        rows = total / ranks * job.experts.max_mean_load
        active = min(local, max(1, int(rows)))
        return ExpertLoads(np.array([[rows]]), np.array([[float(active)]]), None)
    rng = np.random.default_rng(model.seed + 1)
    drawn = draw_rows(model.popularity, tokens=tokens, top_k=config.num_experts_per_tok, rng=rng)
    slots = model.placement.slot_load(drawn).reshape(len(drawn), ranks, -1)
    active_slots = (slots > 0).sum(axis=2).astype(float)
    return ExpertLoads(slots.sum(axis=2), np.maximum(active_slots, 1.0), model.placement)


def _batch_load(
    model: ServingModel, batch: tuple[int, int, int], loads: ExpertLoads, busy: int
) -> BatchLoad:
    tokens, sequences, context = batch
    job, config = model.job, model.config
    share = busy / job.gpus * job.experts.max_mean_load
    rows = tokens * _choices(model) * job.expert_tp * share
    received = tokens * model.received_per_token * share
    ranks = job.gpus // job.expert_tp
    local = (config.n_routed_experts + job.experts.redundant) // ranks
    active = min(local, max(1, round(rows))) if loads.folded else round(float(loads.active.mean()))
    return BatchLoad(
        tokens=tokens,
        sequences=sequences,
        context=context,
        expert_rows=max(1, round(rows)),
        received_rows=max(1, round(received)),
        active_experts=max(1, active),
    )


def _popularity(job: ServingStepJob, config: ModelConfig, rng: np.random.Generator) -> Array | None:
    layers, experts = config.num_moe_layers, config.n_routed_experts
    match job.experts.load:
        case "balanced":
            return None
        case "random":
            return uniform_popularity(layers, experts)
        case "zipf":
            assert job.experts.zipf_exponent is not None
            return zipf_popularity(layers, experts, exponent=job.experts.zipf_exponent, rng=rng)
        case "file":
            assert job.experts.file is not None
            return read_popularity(Path(job.experts.file), layers=layers, experts=experts)


def _section(
    job: ServingStepJob, trace: OperatorTrace, kind: str, load: BatchLoad
) -> LayerOperators:
    operators = layer_operators(
        trace, kind, load, attention_tp=job.attention_tp, expert_tp=job.expert_tp
    )
    if job.experts.shared_expert == "dispatched" and kind in _EXPERT_LAYERS:
        operators = [op for op in operators if "shared" not in op.name]
    return split_layer(
        kind,
        operators,
        low_latency=job.all_to_all.kernels == "low_latency" and job.expert_tp == 1,
        expert_parallel=job.expert_tp == 1,
    )


def _kinds(job: ServingStepJob, config: ModelConfig) -> tuple[str, ...]:
    kinds = ["embedding", "head"] if job.head else []
    if config.first_k_dense_replace:
        kinds.append("dense")
    kinds.append("moe")
    if job.speculation is not None:
        kinds.append("mtp")
    return tuple(kinds)


def _shares(count: int, parts: int) -> list[int]:
    """`count` in `parts` as even as possible, larger first, none empty."""
    return [max(1, (count + parts - 1 - number) // parts) for number in range(parts)]


def _whole_nodes(ranks: int, per_node: int) -> int:
    """Ranks rounded up to whole nodes, as the all-to-all model wants them."""
    return ranks if ranks <= per_node else -(-ranks // per_node) * per_node


def _check(
    job: ServingStepJob, *, config: ModelConfig, cluster: ClusterProfile, trace: OperatorTrace
) -> None:
    if job.gpus > cluster.gpus:
        raise ValueError(f"gpus {job.gpus}: cluster {cluster.name} has {cluster.gpus}")
    if job.expert_tp not in (1, job.gpus):
        raise ValueError(
            f"expert_tp {job.expert_tp}: allowed: 1, or all {job.gpus} GPUs of the deployment"
        )
    experts = config.n_routed_experts + job.experts.redundant
    ranks = job.gpus // job.expert_tp
    if experts % ranks:
        raise ValueError(
            f"{config.n_routed_experts} routed + {job.experts.redundant} redundant experts = "
            f"{experts}; {ranks} GPUs do not divide them"
        )
    sms = cluster.node.gpu.sms
    if job.communication_sms >= sms:
        raise ValueError(
            f"communication_sms {job.communication_sms}: allowed: fewer than the {sms} SMs of "
            f"{cluster.node.gpu.name}"
        )
    if job.all_to_all.kernels == "normal" and job.expert_tp == 1 and not job.communication_sms:
        raise ValueError("communication_sms 0: normal all-to-all kernels need at least one SM")
    if job.all_to_all.kernels == "low_latency" and trace.job != "decode":
        raise ValueError("all_to_all.kernels low_latency: allowed in phase decode only")
    if job.all_to_all.kernels == "normal" and trace.job == "decode" and job.expert_tp == 1:
        raise ValueError("all_to_all.kernels normal: allowed in phase prefill only")
    if job.speculation is not None and not config.num_nextn_predict_layers:
        raise ValueError("speculation: the model has no multi-token prediction module")
    if job.phase == "decode" and job.requests.requests_per_gpu is not None:
        largest = micro_batch_tokens(job)
        room = job.memory.buffer_tokens
        if room is not None and largest > room:
            raise ValueError(
                f"memory.buffer_tokens {room}: a micro-batch has {largest} tokens a GPU"
            )
