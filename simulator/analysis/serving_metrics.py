"""The metrics of a serving step.

Times are seconds, memory bytes, rates per second. A node is the cluster's node: 8 GPUs, of an NVL72
rack a tray of 4. Tokens of a decode step are those a request gains, with speculation the expected
number. Input tokens are those computed; prefix hits come on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from hardware_profiles.low_latency_kernels import load_low_latency
from hardware_profiles.offload_servers import OffloadServerProfile
from hardware_profiles.units import Seconds
from reference_model.config import ModelConfig
from reference_model.trace import ALL_TO_ALL_KINDS
from simulator.analysis.intervals import serving_interval
from simulator.analysis.kernels_used import kernels_used, time_by_calibration
from simulator.analysis.published import beside_published
from simulator.execution.bounds import TpotLimit
from simulator.execution.draws import interval, variance_shares
from simulator.execution.offload import OffloadStep, offload_step
from simulator.execution.serving_draws import StepDraws
from simulator.execution.serving_model import ServingModel
from simulator.execution.serving_rows import placement_balance
from simulator.execution.serving_run import ServingRun, SpeculationPoint
from simulator.execution.serving_step import ServingStep
from simulator.execution.serving_times import LOW_LATENCY_KERNELS
from simulator.hardware.kernels.families import family_of
from simulator.hardware.prediction import PROVENANCES
from simulator.scenario.published import PublishedFigure
from simulator.scenario.serving import OffloadJob, ServingStepJob
from simulator.workload.task_graph import Stream

CASES = ("ideal_ranks", "without_transfer_slowdown", "without_speculation")
"""Comparisons that a run may hold; each is of ideal ranks."""


def serving_metrics(run: ServingRun, *, with_intervals: bool = True) -> dict[str, Any]:
    """The figures of a serving step, expected ones where its ranks differ; None where one does not
    apply to the phase.

    Args:
        with_intervals: whether to work out 80% intervals (`analysis.intervals`).
    """
    job, step, draws = run.job, run.step, run.draws
    kv, node = run.kv, run.step.model.cluster.node.gpus
    step_s = step.step_s if draws is None else draws.expected_s
    figures, ideal = (headline(job, seconds, node) for seconds in (step_s, step.step_s))
    metrics: dict[str, Any] = {
        "phase": job.phase,
        "tensor_parallel": asdict(job.tensor_parallel),
        **figures,
        **({"interval_80": _intervals(step_s, _ends(run), figures)} if with_intervals else {}),
        **({} if draws is None else beside_ideal(draws, ideal)),
        "kernels": serving_kernels(step.model)
        | time_by_calibration(step.model.kernels.calibration, _kernel_times(step)),
        "error_share": step.error_share(),
        "time_budget_s": time_budget(step, {} if draws is None else draws.causes_s),
        "exposed_communication_s": step.exposed_communication_s,
        "waiting_for_ranks_s": 0.0 if draws is None else float(draws.waited_s.mean()),
        "host_overhead_s": job.host_overhead.value,
        "kv_cache_bytes_per_token": kv.bytes_per_token,
        "kv_cache_tokens_per_gpu": kv.tokens,
        "kv_cache_tokens_needed_per_gpu": kv.needed_tokens,
        "largest_batch_per_gpu": kv.largest_batch,
        "limited_by": kv.limit,
        "memory_bytes": kv.memory.parts | {"capacity": kv.capacity},
        "transfers": transfer_metrics(step),
        "experts": expert_metrics(run),
        "comparisons": {
            name: headline(other.model.job, other.step_s, node)
            for name, other in zip(
                CASES,
                (
                    None if draws is None else step,
                    run.without_slowdown,
                    run.without_speculation,
                ),
                strict=True,
            )
            if other is not None
        },
        "speculative_decoding": speculation_metrics(run),
        "operators": operator_table(step),
    }
    metrics["published"] = beside_published(run.scenario.file.published, metrics)
    return metrics


def limit_metrics(limit: TpotLimit, figures: Sequence[PublishedFigure]) -> dict[str, Any]:
    """The bound under the JSON names of a serving step, published figures beside it."""
    metrics: dict[str, Any] = {
        "step_time_s": limit.tpot_s,
        "tpot_s": {"mean": limit.tpot_s},
        "tokens_per_second_per_user": limit.tokens_per_second,
        "transfer_s": limit.transfer_s,
        "transfers": limit.transfers,
        "transfer_bytes": limit.transfer_bytes,
        "link_bandwidth_bytes_per_s": limit.bandwidth,
        "idealisations": [
            {
                "name": item.name,
                "assumed": item.assumed,
                "instead": item.real,
                "tpot_s": item.tpot_s,
            }
            for item in limit.idealisations
        ],
    }
    metrics["published"] = beside_published(figures, metrics)
    return metrics


def offload_metrics(
    step: OffloadStep, *, server: OffloadServerProfile, config: ModelConfig
) -> dict[str, Any]:
    """The step under the JSON names of a serving step, with the held-out rows beside it."""
    rows = []
    for row, role, kind in (
        *((row, "fitted", "calibrated") for row in server.fitted_rows),
        *((row, "held out", "predicted") for row in server.held_out_rows),
    ):
        job = OffloadJob(
            server=server.name, sockets=row.sockets, experts_per_token=row.experts_per_token
        )
        simulated = 1 / offload_step(job, server=server, config=config).token_s
        rows.append(
            {
                "name": f"{row.sockets} sockets, {row.experts_per_token} experts ({role})",
                "metric": "tokens_per_second_per_user",
                "published": row.tokens_per_second,
                "simulated": simulated,
                "error": simulated / row.tokens_per_second - 1,
                "source": row.source,
                "kind": kind,
            }
        )
    return {
        "step_time_s": step.token_s,
        "tpot_s": {"mean": step.token_s},
        "tokens_per_second_per_user": 1 / step.token_s,
        "fixed_s": step.fixed_s,
        "experts_s": step.experts_s,
        "cpu_expert_bytes_per_s": step.expert_rate,
        "cpu_expert_share_of_peak": step.expert_rate_share,
        "gpu_weights_read_s": step.gpu_bound_s,
        "gpu_resident_bytes": step.resident_bytes,
        "published": rows,
    }


def beside_ideal(draws: StepDraws, ideal: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside the expected figures of a step: those of ideal ranks, what is waited for,
    and which priors the spread comes from."""
    flat = {
        f"{name}.mean" if isinstance(value, Mapping) else name: value["mean"]
        if isinstance(value, Mapping)
        else value
        for name, value in ideal.items()
        if value is not None
    }
    return {
        "ideal": flat,
        "waiting": {"by_cause_s": dict(draws.causes_s), "by_rank_s": draws.waited_s.tolist()},
        "priors": variance_shares(draws.inputs, draws.step_s),
    }


def _ends(run: ServingRun) -> list[Seconds]:
    """80% interval of the iteration's time."""
    if run.draws is None:
        return serving_interval(run.step, seed=run.scenario.file.seed)
    return interval(run.draws.step_s, value=run.draws.expected_s)


def _intervals(
    step_s: Seconds, ends: Sequence[Seconds], figures: Mapping[str, Any]
) -> dict[str, Any]:
    """{name: [low, high]} of the iteration's time and of what follows from it, 80%."""
    low, high = ends
    found: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            found[name] = [value["mean"] / step_s * end for end in (low, high)]
        elif value is not None and name.endswith("_time_s"):
            found[name] = [low, high]
        elif value is not None:
            found[name] = [value * step_s / end for end in (high, low)]
    return found


def headline(job: ServingStepJob, seconds: Seconds, gpus_per_node: int) -> dict[str, Any]:
    """Times and rates of one iteration that takes so many seconds."""
    # Idle GPUs count: rates are means over the deployment.
    busy = 1 - job.requests.idle_gpus / job.gpus
    rates = dict.fromkeys(
        (
            "input_tokens_per_second_per_gpu",
            "input_tokens_per_second_per_node",
            "output_tokens_per_second_per_gpu",
            "output_tokens_per_second_per_node",
            "tokens_per_second_per_user",
        )
    )
    result: dict[str, Any] = {"step_time_s": None, "pass_time_s": None, "tpot_s": None, **rates}
    if job.phase == "prefill":
        tokens = job.requests.tokens_per_gpu
        assert tokens is not None
        mean = tokens * busy
        return result | {
            "pass_time_s": seconds,
            "input_tokens_per_second_per_gpu": mean / seconds,
            "input_tokens_per_second_per_node": gpus_per_node * mean / seconds,
        }
    batch = job.group_requests / job.attention_tp
    speculating = job.speculative_decoding
    gained = 1.0 if speculating is None else speculating.tokens_per_step
    return result | {
        "step_time_s": seconds,
        "tpot_s": {"mean": seconds / gained},
        "output_tokens_per_second_per_gpu": busy * batch * gained / seconds,
        "output_tokens_per_second_per_node": gpus_per_node * busy * batch * gained / seconds,
        "tokens_per_second_per_user": gained / seconds,
    }


def serving_kernels(model: ServingModel) -> dict[str, Any]:
    """Whose kernels the times are, and what the KV cache makes of the attention core's."""
    job = model.job
    used = kernels_used(model.kernels.calibration, model.cluster.node.gpu, job.phase)
    ratio = model.cache_ratio
    slower = {} if ratio is None else {"fp8_cache": ratio.model_dump(exclude={"sources"})}
    return used | {"recipe": model.recipe, "kv_cache": job.memory.kv_cache} | slower


BUDGET = {
    "gather": "collectives of tensor parallelism",
    "scatter": "collectives of tensor parallelism",
    "dense_gather": "collectives of tensor parallelism",
    "dense_scatter": "collectives of tensor parallelism",
    "attention_0": "attention projections",
    "attention_1": "attention core, output, gate",
    "shared": "shared expert",
    "shared_gathered": "shared expert",
    "experts": "routed experts",
    "dense": "dense feed-forward",
    "dispatch_send": "send, receive and add kernels",
    "dispatch_receive": "send, receive and add kernels",
    "combine_send": "send, receive and add kernels",
    "combine_receive": "send, receive and add kernels",
}
"""Part of a layer -> what it counts as in a step's time budget."""
_BUDGET_OF_LAYER = {
    "embedding": "embedding, head, sampling",
    "head": "embedding, head, sampling",
    "mtp": "drafts",
    "mtp_next": "drafts",
    "mtp_head": "drafts",
}


def time_budget(step: ServingStep, causes_s: Mapping[str, Seconds]) -> dict[str, Seconds]:
    """What the compute stream spends the iteration on; sums to its time.

    Waiting is for transfers that nothing hides; gaps lie between kernels.

    Args:
        step: of ideal ranks.
        causes_s: what ranks that differ add, by cause.
    """
    graph = step.log.graph
    budget = dict.fromkeys((*BUDGET.values(), *_BUDGET_OF_LAYER.values()), 0.0)
    for task, seconds in zip(graph.tasks, step.seconds.tolist(), strict=True):
        if task.stream is not Stream.COMPUTE:
            continue
        budget[_BUDGET_OF_LAYER.get(graph.layers[task.layer], BUDGET[task.part])] += seconds
    transfers = float(step.waiting.transfers_s)
    budget |= {
        "waiting for transfers": transfers,
        "gaps between kernels": max(0.0, step.log.span_s - sum(budget.values()) - transfers),
        "host": step.step_s - step.log.span_s,
    }
    for name, seconds in causes_s.items():
        budget[name] = budget.get(name, 0.0) + seconds
    return {name: seconds for name, seconds in budget.items() if seconds != 0.0}


def transfer_metrics(step: ServingStep) -> dict[str, Any]:
    """What dispatch and combine travel over, and what bounds them beside the link's own rate."""
    model = step.model
    node, job, load = model.cluster.node, model.job, model.kernels.load
    profile = model.low_latency
    form = {} if profile is None else {"low_latency": profile.name}
    if model.over_nvlink:
        return {"link": "nvlink", "link_bytes_per_s": node.gpu.nvlink_bandwidth} | form
    mixed = profile is not None and profile.link == "mixed"
    normal = job.normal_transfers
    return {
        "link": "mixed" if mixed else "nic",
        **({"nvlink_share": model.domain_share} if mixed else {}),
        **form,
        # Normal kernels cross the network once a node; low-latency ones once a copy.
        "nodes_per_token": model.transfers.reach.nodes if normal else None,
        "gpus_per_token": model.kernels.received_per_token if normal else None,
        "link_bytes_per_s": node.nic_bandwidth_per_gpu,
        "nic_stretch": load.nic_stretch,
        "fabric_bytes_per_s": load.bandwidth if np.isfinite(load.bandwidth) else None,
    }


def expert_metrics(run: ServingRun) -> dict[str, Any]:
    """How uneven expert loads are over GPUs and links, and what rebalancing costs."""
    step = run.step
    drawn = None if run.draws is None else run.draws.ranks
    uneven = step.rows / step.mean_rows if drawn is None else drawn.max_over_mean
    return {
        "load": step.model.job.skew.rows.form,
        "compute_max_over_mean": uneven,
        "placement": {
            policy: {"placed": placed, "served": served}
            for policy, (placed, served) in placement_balance(run.step.model).items()
        },
        "link_bytes": _link_bytes(step, step.mean_rows, uneven),
        "rows_per_gpu_mean": step.mean_rows,
        "active_experts_per_gpu_mean": step.active_experts
        if run.draws is None
        else run.draws.active_experts,
        "active_experts_per_gpu_balanced": None if run.draws is None else step.active_experts,
        "rebalance": None if run.rebalance is None else asdict(run.rebalance),
    }


def _link_bytes(step: ServingStep, rows: float, uneven: float) -> dict[str, Any] | None:
    """Bytes that dispatch and combine bring over one GPU's link in a layer and micro-batch: mean of
    the GPUs, and the busiest one's as a mean over layers. None where tokens are gathered instead.

    Args:
        rows: of one GPU's experts, mean.
        uneven: rows of the busiest GPU over the mean. Bytes go with rows: low-latency kernels send
            each row, normal ones a token once to each node (over NVLink: GPU) of its rows.
    """
    model = step.model
    if model.job.expert_tp > 1:
        return None
    mean: dict[str, float] = {}
    profile = model.low_latency
    if profile is not None:
        # Of a mixed form, those that leave the NVLink domain.
        rows *= profile.crossing(model.job.gpus, model.nvlink_domain)
        mean = {name: rows * size for name, size in model.messages.items()}
    else:
        reach = model.transfers.reach
        # A token's own node, over NVLink its own GPU, is one destination like any other.
        crossing = reach.gpus * (1.0 - 1.0 / model.job.gpus)
        if not model.over_nvlink:
            crossing = reach.over_nics
        for operator in step.operators["moe", 0].operators:
            if operator.kind in ALL_TO_ALL_KINDS:
                busy = 1 - model.job.requests.idle_gpus / model.job.gpus
                sent = operator["tokens"] * crossing * busy
                mean[operator.kind] = sent * model.transfers.token_bytes(operator)
    return {name: {"mean": value, "busiest": value * uneven} for name, value in mean.items()}


def speculation_metrics(run: ServingRun) -> dict[str, Any] | None:
    """What speculative decoding gains: tokens per step, and the speed-up over the same requests."""
    speculation = run.job.speculative_decoding
    if speculation is None:
        return None
    assert run.without_speculation is not None, "what drafts is run without drafts too"
    plain = run.without_speculation.step_s
    gained = speculation.tokens_per_step
    return {
        "tokens_per_step": gained,
        "step_time_without_s": plain,
        "speed_up": gained * plain / run.step.step_s,
        "by_batch": [asdict(point) for point in run.speculation_curve],
        **best_batches(run.speculation_curve, within=run.kv.limit),
    }


def best_batches(curve: Sequence[SpeculationPoint], *, within: str) -> dict[str, int | str | None]:
    """The batches at which drafting gains most and least, and the smallest from which on it never
    pays.

    Args:
        within: what limits the batch, said where drafting pays at every batch of the curve.
    """
    best = max(curve, key=lambda point: point.speed_up, default=None)
    worst = min(curve, key=lambda point: point.speed_up, default=None)
    losing: int | None = None
    for point in reversed(curve):
        if point.speed_up >= 1.0:
            break
        losing = point.batch
    return {
        "batch_of_best_gain": None if best is None else best.batch,
        "batch_of_least_gain": None if worst is None else worst.batch,
        "stops_paying_from_batch": f"at no batch that fits ({within})"
        if losing is None
        else losing,
    }


def _kernel_times(step: ServingStep) -> Iterator[tuple[str, Seconds]]:
    """Who answers for each kernel, and the seconds that all its calls take: not for collectives,
    nor for wires and other transfers that keep no SM."""
    model = step.model
    calls = np.bincount(model.places, minlength=len(step.times.seconds))
    operators = [op for section in model.sections for op in step.operators[section].operators]
    totals = (step.times.seconds * calls).tolist()
    low_latency = _low_latency_by(model)
    for operator, family, seconds in zip(operators, step.times.family, totals, strict=True):
        if low_latency is not None and family in LOW_LATENCY_KERNELS:
            yield low_latency, seconds
        elif family == family_of(operator) and (
            operator.kind not in ALL_TO_ALL_KINDS or model.job.communication_sms
        ):
            yield model.kernels.costs.answered_by(operator), seconds


def _low_latency_by(model: ServingModel) -> str | None:
    """Name of the calibration or the shipped profile that times low-latency kernels; None without
    them. Of a mixed profile that is the profile, whatever its copies over NVLink rest on."""
    profile, calibration = model.low_latency, model.kernels.calibration
    own = calibration.low_latency_kernels
    if profile is None or own is None or load_low_latency(own) != profile:
        return None if profile is None else profile.name
    return calibration.name


def operator_table(step: ServingStep) -> list[dict[str, Any]]:
    """One row for each kernel of one layer of each kind and micro-batch, in issue order."""
    model = step.model
    calls = np.bincount(model.places, minlength=len(step.times.seconds))
    low, high = step.times.ends()
    rows: list[dict[str, Any]] = []
    place = 0
    for section in model.sections:
        kind, micro_batch = section
        layer = step.operators[section]
        part_of = layer.part_of()
        for position, operator in enumerate(layer.operators):
            times = step.times
            seconds: Seconds = float(times.seconds[place])
            rows.append(
                {
                    "layer": kind,
                    "micro_batch": max(micro_batch, 0),
                    "part": part_of[position],
                    "name": operator.name,
                    "kind": operator.kind,
                    "dtype": operator.dtype,
                    "sizes": dict(operator.sizes),
                    "seconds": seconds,
                    "low_s": float(low[place]),
                    "high_s": float(high[place]),
                    "provenance": PROVENANCES[times.provenance[place]],
                    "calls": int(calls[place]),
                    "total_s": seconds * int(calls[place]),
                }
            )
            place += 1
    return rows
