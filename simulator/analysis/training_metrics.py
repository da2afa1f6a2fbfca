"""The metrics of a training run.

Times are seconds, memory bytes, rates per second; tflops_* are 1e12 FLOP/s and mfu_* fractions of
the BF16 dense peak, as DeepSeek counts them (Insights, Table 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isclose
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Bytes, Seconds, format_bytes, format_seconds, unit_factor
from reference_model.parameter_counts import training_flops_per_token
from reference_model.pipeline_actions import (
    FORWARD_WORK,
    FULL_BACKWARD,
    INPUT_BACKWARD,
    OVERLAPPED,
    WEIGHT_GRADIENT,
)
from reference_model.trace import ALL_TO_ALL_KINDS, KINDS
from simulator.analysis.kernels_used import kernels_used, time_by_calibration
from simulator.analysis.published import beside_published, metric_at
from simulator.analysis.run import WITHOUT_SLOWDOWN
from simulator.analysis.training_attribution import attribute_step
from simulator.analysis.training_expected import (
    central_mean,
    interval_metrics,
    prior_shares,
    ridge,
    waiting_metrics,
)
from simulator.execution.draws import ends
from simulator.execution.host_state import averaging_seconds
from simulator.execution.timeline import ROUNDING, hidden_communication, waiting
from simulator.execution.training import TrainingRun, TrainingStep
from simulator.execution.training_chunks import ChunkKey
from simulator.execution.training_draws import TrainingDraws, draw_step
from simulator.hardware.network.clusters import idle_nodes_text
from simulator.hardware.network.fabric_load import NO_LIMIT, FabricLoad
from simulator.hardware.prediction import PROVENANCES
from simulator.scenario.training import TrainingJob
from simulator.workload.layout import stage_texts
from simulator.workload.tensor_parallel import straddling

_DAY = unit_factor("d", "time")
_HOUR = unit_factor("h", "time")
_TERA = unit_factor("TFLOP/s", "compute")
_TRILLION_TOKENS = 10**12

_RATES = (
    "tokens_per_day",
    "tokens_per_second_per_gpu",
    "tflops_per_gpu_causal",
    "tflops_per_gpu_non_causal",
    "mfu_causal",
    "mfu_non_causal",
)
"""Figures that go as one over the step time."""

_COSTS = ("gpu_hours_per_trillion_tokens", "cost_usd_per_trillion_tokens")
"""Figures that go as the step time."""

_DRAWN_OF_RANKS = (
    "forward_s",
    "backward_s",
    "weight_s",
    "overlapped_s",
    "bubble_s",
    "optimizer_s",
)
"""Parts of the first rank's step that have an interval, as published tables give them."""

PROFILED_KERNELS = "deepseek_training"
"""Kernel set taken from the published pair itself. A pair whose every kernel is measured by it or
lies between its rows is reproduced where it stands beside the published one; any other, that of
changed inputs among them, is predicted."""


UNEVEN = 0.10
"""What the busiest rank may work over the mean before the run says so. The others wait for it, so
that the step is longer by as much; whole layers of DeepSeek-V3 leave up to half of it over 8 to 32
ranks."""


@dataclass(frozen=True, slots=True)
class RankTimes:
    """Where one pipeline rank's step goes; the first six sum to the step time."""

    forward_s: Seconds
    """Forward-only chunks."""
    backward_s: Seconds
    """Input-only and full backward chunks not overlapped, with the weight gradients of the full."""
    weight_s: Seconds
    """Weight-gradient chunks of their own."""
    overlapped_s: Seconds
    """Overlapped forward and backward pairs."""
    bubble_s: Seconds
    """The rest: waiting for other ranks, for sends and for the host."""
    optimizer_s: Seconds
    waiting_for_ranks_s: Seconds
    """Of the bubble, for what other ranks had not yet produced, and for the slowest optimizer."""
    waiting_for_sends_s: Seconds
    """Of the bubble, for what had been produced and was being sent, the rank's own sends that block
    it included."""
    waiting_for_host_s: Seconds
    """Of the bubble, for the host, where launching all kernels outlasts the pipeline."""
    exposed_communication_s: Seconds
    """Inside the chunks, as EXPOSED_COMMUNICATION has it: for an all-to-all, or a collective of
    parameters or gradients."""
    hidden_communication_s: Seconds
    """Time of the same inside the chunks with a compute kernel running."""


_FIELD_OF_WORK = {
    FORWARD_WORK: "forward_s",
    FULL_BACKWARD: "backward_s",
    INPUT_BACKWARD: "backward_s",
    WEIGHT_GRADIENT: "weight_s",
    OVERLAPPED: "overlapped_s",
}


def rank_times(step: TrainingStep) -> list[RankTimes]:
    """Time budget of every pipeline rank."""
    spans = {key: chunk.in_pipeline_s for key, chunk in step.chunks.items()}
    logs = {key: chunk.log for key, chunk in step.chunks.items()}
    hidden_of = {key: float(hidden_communication(log)) for key, log in logs.items()}
    exposed_of = {key: float(waiting(log).exposed_communication_s) for key, log in logs.items()}
    waits = zip(
        step.pipeline.waiting_for_ranks_s.tolist(),
        step.pipeline.waiting_for_sends_s.tolist(),
        strict=True,
    )
    host = step.pipeline_time_s - step.pipeline.makespan_s
    slowest = max(optimizer.total_s for optimizer in step.optimizer)
    fields = list(dict.fromkeys(_FIELD_OF_WORK.values()))
    of_rank = step.pipeline.rank * len(fields) + step.of_actions(
        {key: fields.index(_FIELD_OF_WORK[key.work]) for key in step.chunks}
    )
    busy = np.bincount(
        of_rank, step.of_actions(spans), minlength=len(step.keys) * len(fields)
    ).reshape(-1, len(fields))
    exposed_s, hidden_s = (
        np.bincount(step.pipeline.rank, step.of_actions(of_chunk)).tolist()
        for of_chunk in (exposed_of, hidden_of)
    )
    budgets = []
    for row, optimizer, (ranks, sends), exposed, hidden in zip(
        busy.tolist(), step.optimizer, waits, exposed_s, hidden_s, strict=True
    ):
        sums = dict(zip(fields, row, strict=True))
        others = ranks + slowest - optimizer.total_s
        budgets.append(
            RankTimes(
                **sums,
                bubble_s=others + sends + host,
                optimizer_s=optimizer.total_s,
                waiting_for_ranks_s=others,
                waiting_for_sends_s=sends,
                waiting_for_host_s=host,
                exposed_communication_s=exposed,
                hidden_communication_s=hidden,
            )
        )
    return budgets


def expected_ranks(step: TrainingStep, drawn: TrainingDraws) -> list[RankTimes]:
    """Time budget of every pipeline rank in the expected step; what an all-to-all hides inside the
    chunks is that of ideal ranks."""
    found = {name: central_mean(drawn, values) for name, values in _drawn_ranks(drawn).items()}
    return [
        replace(ideal, **{name: float(values[rank]) for name, values in found.items()})
        for rank, ideal in enumerate(rank_times(step))
    ]


def _drawn_ranks(drawn: TrainingDraws) -> dict[str, NDArray[np.float64]]:
    """{field of RankTimes: [pipeline ranks, draws]}"""
    found = {name: np.zeros_like(drawn.sends_s) for name in _FIELD_OF_WORK.values()}
    for number, work in enumerate(drawn.works):
        found[_FIELD_OF_WORK[work]] += drawn.actions_s[:, number]
    bubble = drawn.step_s - sum(found.values()) - drawn.optimizer_s
    bubble = np.where(np.abs(bubble) > ROUNDING * drawn.step_s, bubble, 0.0)
    host = np.broadcast_to(drawn.host_s, bubble.shape)
    return found | {
        "bubble_s": bubble,
        "optimizer_s": drawn.optimizer_s,
        "waiting_for_sends_s": drawn.sends_s,
        "waiting_for_host_s": host,
        "waiting_for_ranks_s": bubble - drawn.sends_s - host,
    }


def uneven_ranks(ranks: Sequence[RankTimes], *, chosen: bool) -> list[str]:
    """A warning where the split of layers into stages keeps ranks waiting for the busiest one.

    Args:
        chosen: whether the run chose the stages itself.
    """
    busy = [rank.forward_s + rank.backward_s + rank.weight_s + rank.overlapped_s for rank in ranks]
    over = max(busy) * len(busy) / sum(busy) - 1
    if over <= UNEVEN:
        return []
    most, least = busy.index(max(busy)), busy.index(min(busy))
    way_out = (
        "whole layers and memory allow no faster split of those tried; fewer training.pp might"
        if chosen
        else "training.stages=default looks for a faster split"
    )
    return [
        f"stages: pipeline rank {most} works {over:.0%} longer than the mean of the ranks, and "
        f"rank {least} {1 - busy[least] / busy[most]:.0%} less than it; {way_out}"
    ]


def _without_slowdown(run: TrainingRun) -> dict[str, Any]:
    step = run.without_slowdown
    return {
        WITHOUT_SLOWDOWN: {"pair_time_s": step.pair.log.span_s, "step_time_s": step.step_time_s}
    }


def _cpu_memory(run: TrainingRun) -> dict[str, float]:
    """What the GPU with most of it keeps in CPU memory, and sends over PCIe in a step."""
    state = max(run.host, key=lambda state: state.total)
    return {
        "optimizer_bytes": state.optimizer,
        "averages_bytes": state.averages,
        "node_bytes": state.total * run.scenario.cluster.node.gpus,
        "to_cpu_bytes": state.gradients + state.copied,
        "to_gpu_bytes": state.parameters,
        "averages_s": averaging_seconds(state, run.scenario.cluster),
    }


def what_ifs(job: TrainingJob) -> list[str]:
    """What of a job nobody has measured: dispatch and combine that keep no SM."""
    if job.communication_sms:
        return []
    return [
        "training.communication_sms: 0: a what-if: no dispatch or combine that keeps no SM was "
        "measured; links alone limit these, and compute has every SM"
    ]


def _slow_averages(run: TrainingRun) -> list[str]:
    """A warning where moving averages take longer than the step beside which they are updated."""
    took = max(averaging_seconds(state, run.scenario.cluster) for state in run.host)
    if took <= run.step.step_time_s:
        return []
    return [
        f"ema: copying and averaging take {format_seconds(took)}, longer than the step of "
        f"{format_seconds(run.step.step_time_s)} beside which they run; training.ema=bfloat16 "
        "halves them"
    ]


def _too_full(drawn: TrainingDraws, capacity: Bytes) -> list[str]:
    """A warning where rows that some GPU gets need more than its memory in some draws."""
    beyond = drawn.memory.max(axis=0) > capacity
    if not beyond.any():
        return []
    return [
        f"memory: in {beyond.mean():.0%} of the draws the rows of the fullest GPU need more than "
        f"its {format_bytes(capacity)}; training.skew says how uneven they are"
    ]


def provenance_shares(
    provenance: NDArray[np.intp], seconds: NDArray[np.float64]
) -> dict[str, float]:
    """Share of kernel time by where the times come from.

    Args:
        provenance: [kernels], places in PROVENANCES.
        seconds: [kernels]
    """
    sums = np.bincount(provenance, seconds, minlength=len(PROVENANCES)).tolist()
    total = sum(sums)
    return {
        name: value / total if total else 0.0 for name, value in zip(PROVENANCES, sums, strict=True)
    }


def _kernel_times(
    run: TrainingRun, counts: Mapping[ChunkKey, int]
) -> Iterator[tuple[str, Seconds]]:
    """Who answers for each kernel of every chunk, and the seconds that all its runs take: not for
    collectives, nor for transfers that keep no SM."""
    kinds = KINDS.keys() - (() if run.job.communication_sms else ALL_TO_ALL_KINDS)
    for key, times in counts.items():
        chunk = run.step.chunks[key]
        for operator, seconds in zip(
            chunk.log.graph.task_operators(), chunk.cost.seconds.tolist(), strict=True
        ):
            if operator.kind in kinds:
                yield run.costs.answered_by(operator), times * seconds


def training_metrics(
    run: TrainingRun, *, with_intervals: bool = True, with_further_steps: bool = True
) -> dict[str, Any]:
    """The figures of a training run by their JSON names, plain numbers, lists and mappings.

    wall_clock_s is added by whoever measures it.

    Args:
        with_intervals: whether to work out 80% intervals (`analysis.intervals`).
        with_further_steps: whether to add what takes steps of its own: the step whose dispatch and
            combine nothing slows, and the step split into causes.
    """
    step, job, cluster = run.step, run.job, run.scenario.cluster
    ideal_ranks = rank_times(step)
    skewed = not job.skew.is_none
    drawn = draw_step(run) if skewed or with_intervals else None
    memory = max(rank.total for rank in run.memory)
    ideal = _figures(run, step.step_time_s, step.pair.log.span_s, ideal_ranks, memory)
    figures = ideal
    if drawn is not None and skewed:
        pair_s = float(np.median(drawn.pair_s))
        memory = float(np.median(drawn.memory.max(axis=0)))
        figures = _figures(run, drawn.expected_s, pair_s, expected_ranks(step, drawn), memory)
    of_pair = provenance_shares(step.pair.cost.provenance, step.pair.cost.seconds)
    reproduced = (
        PROFILED_KERNELS in run.scenario.calibration.kernel_sets
        and any(figure.metric == "pair_time_s" for figure in run.scenario.file.published)
        and of_pair["extrapolated"] + of_pair["modelled"] == 0.0
    )
    counts = step.counts
    of_chunks = [step.chunks[key].cost for key in counts]
    metrics: dict[str, Any] = figures | {
        "pair_time_kind": "reproduced" if reproduced else "predicted",
        "immediate_weights": list(run.immediate),
        "stages": list(stage_texts(run.stages)),
        "warnings": [
            *uneven_ranks(ideal_ranks, chosen=job.stages == "default"),
            *straddling({axis: run.layout.parts_of(axis) for axis in run.costs.sharing}),
            *([] if drawn is None else _too_full(drawn, cluster.node.gpu.hbm_capacity)),
            *_slow_averages(run),
            *what_ifs(job),
        ],
        **(_without_slowdown(run) if with_further_steps else {}),
        "kernels": kernels_used(run.scenario.calibration, cluster.node.gpu, "training")
        | time_by_calibration(run.scenario.calibration, _kernel_times(run, counts)),
        "kernel_time_share": {
            "pair": of_pair,
            "step": provenance_shares(
                np.concatenate([cost.provenance for cost in of_chunks]),
                np.concatenate(
                    [n * cost.seconds for n, cost in zip(counts.values(), of_chunks, strict=True)]
                ),
            ),
        },
        "idle_nodes": idle_nodes_text(cluster, group=job.ep),
        "nvlink_domains": run.layout.in_domains if run.costs.sharing else None,
        "transfers": transfer_limits(run),
        **(
            {"attribution": [asdict(cause) for cause in attribute_step(run, drawn)]}
            if with_further_steps
            else {}
        ),
        "memory": [rank.parts | {"total": rank.total} for rank in run.memory],
    }
    if any(state.total for state in run.host):
        metrics["cpu_memory"] = _cpu_memory(run)
    shares = metrics["kernel_time_share"]
    metrics["error_share"] = {"step_time_s": shares["step"], "pair_time_s": shares["pair"]}
    if drawn is not None and skewed:
        metrics["ideal"] = _dotted(ideal)
        metrics["waiting"] = waiting_metrics(drawn, ideal_s=step.step_time_s)
        metrics["priors"] = prior_shares(drawn)
        metrics["ridge"] = ridge(drawn)
    if drawn is not None and with_intervals:
        metrics["interval_80"] = _intervals(drawn, metrics)
    metrics["published"] = beside_published(run.scenario.file.published, metrics)
    return metrics


def _figures(
    run: TrainingRun,
    step_s: Seconds,
    pair_s: Seconds,
    ranks: Sequence[RankTimes],
    memory: Bytes,
) -> dict[str, Any]:
    """Times of a step and what follows from them, and the memory of the fullest GPU."""
    job, cluster, model = run.job, run.scenario.cluster, run.scenario.model
    tokens_per_second = job.step_tokens / step_s
    per_gpu = tokens_per_second / run.layout.gpus
    peak = cluster.node.gpu.peak("bfloat16")
    share = 1.0 if run.documents is None else run.documents.share
    attended = round(job.sequence_length * share)
    causal, full = (
        per_gpu * training_flops_per_token(model, context=attended, causal=causal)
        for causal in (True, False)
    )
    gpu_hours = _TRILLION_TOKENS / per_gpu / _HOUR
    return {
        "step_time_s": step_s,
        "tokens_per_day": tokens_per_second * _DAY,
        "tokens_per_second_per_gpu": per_gpu,
        "tflops_per_gpu_causal": causal / _TERA,
        "tflops_per_gpu_non_causal": full / _TERA,
        "mfu_causal": causal / peak,
        "mfu_non_causal": full / peak,
        "gpu_hours_per_trillion_tokens": gpu_hours,
        "cost_usd_per_trillion_tokens": gpu_hours * _HOUR * cluster.gpu_price,
        "pair_time_s": pair_s,
        "bubble_s": max(rank.bubble_s for rank in ranks),
        "peak_memory_bytes": memory,
        "ranks": [asdict(rank) for rank in ranks],
    }


def _dotted(figures: Mapping[str, Any]) -> dict[str, float]:
    """{path: value} of figures and of those of the first rank that are drawn."""
    flat = {name: value for name, value in figures.items() if name != "ranks"}
    flat |= {f"ranks.0.{name}": figures["ranks"][0][name] for name in _DRAWN_OF_RANKS}
    return flat


def transfer_limits(run: TrainingRun) -> dict[str, Any]:
    """What the fabric leaves of the NICs' rate, of each kind of transfer at its slowest.

    nic_stretch: time of the busiest NIC over the same without failures. fabric_bytes_per_s: what a
    GPU sends if only links beyond the NICs limited it, None where they do not.
    """
    loads, nic = run.step.loads, run.scenario.cluster.node.nic_bandwidth_per_gpu

    def slowest(of_kind: Iterable[FabricLoad]) -> dict[str, float | None]:
        every = [NO_LIMIT, *of_kind]
        links = min(load.bandwidth for load in every)
        return {
            "nic_stretch": max(load.nic_stretch for load in every),
            "fabric_bytes_per_s": links if links < nic and not isclose(links, nic) else None,
        }

    return {
        "nic_bytes_per_s": nic,
        "all_to_all": slowest(loads.all_to_all),
        "pipeline_send": slowest(filter(None, loads.sends.values())),
        "dense_parameters": slowest(loads.dense),
        "experts": slowest(loads.experts),
    }


def _intervals(drawn: TrainingDraws, metrics: Mapping[str, Any]) -> dict[str, list[float]]:
    """80% intervals [low, high] of what the draws move, which hold the value itself."""
    step_s = metrics["step_time_s"]
    found = interval_metrics(
        drawn,
        rates={name: metrics[name] * step_s for name in _RATES},
        costs={name: metrics[name] / step_s for name in _COSTS},
    )
    of_ranks = _drawn_ranks(drawn)
    found["bubble_s"] = ends(of_ranks["bubble_s"].max(axis=0))
    found["peak_memory_bytes"] = ends(drawn.memory.max(axis=0))
    found |= {f"ranks.0.{name}": ends(of_ranks[name][0]) for name in _DRAWN_OF_RANKS}
    for path, (low, high) in found.items():
        value = metric_at(metrics, path)
        assert value is not None, path
        found[path] = [min(low, value), max(high, value)]
    return found
