"""Run a chunk or pair of a training step on every rank of an expert-parallel group, contending.

The ranks are those that the job's skew states, at the values of its priors: rows drawn for every
layer, clocks and slow machines for every GPU, attention work for every micro-batch. Kernels start
from their time alone on the SMs that they are launched for, and transfers from theirs between
ranks that are alike on an idle fabric; the ratios that the timeline takes beside compute are not
read. The same ranks also run on the timeline, with its own prices.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Seconds
from reference_model.pipeline_actions import OVERLAPPED
from reference_model.trace import ALL_TO_ALL_KINDS, Operator
from simulator.execution import timeline
from simulator.execution.machine.exchange import copy_rates, normal_transfer
from simulator.execution.machine.gpu import Gpu
from simulator.execution.machine.group import (
    GroupRun,
    RankFactors,
    alike,
    meeting_in_transfers,
    not_contending,
)
from simulator.execution.machine.launches import (
    hbm_rate,
    kernel_launches,
    launch_sms,
)
from simulator.execution.machine.ranks import (
    GroupTransfer,
    RankWork,
    run_on_ranks,
)
from simulator.execution.machine.surroundings import shared_fabric, surroundings
from simulator.execution.pipeline import run_pipeline
from simulator.execution.training import TrainingRun
from simulator.execution.training_chunks import ChunkRun, cost_graphs, lower_key
from simulator.execution.training_ranks import drawn_rows, is_kernel
from simulator.hardware.kernels.roofline import is_tensor
from simulator.hardware.network.fabric_load import NO_LIMIT
from simulator.hardware.network.flows import Network
from simulator.hardware.prediction import Prediction
from simulator.scenario.events import CHANNELS, Channel
from simulator.workload.skew import clock_times, slow_machines
from simulator.workload.tensor_parallel import shared_axis

Array = NDArray[np.float64]


def run_group(
    run: TrainingRun, chunk: ChunkRun, channels: Collection[Channel] = CHANNELS
) -> GroupRun:
    """Run a chunk or pair on the first group of the job.

    Args:
        channels: what contends or differs; none for the timeline's own prices and ideal ranks.
    """
    kept = tuple(channel for channel in CHANNELS if channel in channels)
    if kept:
        return _contending(run, chunk, kept)
    return not_contending(str(chunk.key), chunk.log.graph, chunk.cost.seconds, run.job.gap.value)


def contending_step_s(run: TrainingRun, channels: Collection[Channel]) -> Seconds:
    """Time of the whole step, each distinct chunk as long as on the ranks of its first group.

    The schedule runs with these durations on all pipeline ranks, its sends and the optimizer as on
    the timeline. Groups are alike: each repeats the chunks of one realisation of the ranks.
    """
    step, job = run.step, run.job
    longer = {
        key: run_group(run, chunk, channels).span_s - chunk.log.span_s
        for key, chunk in step.chunks.items()
    }
    pipeline = run_pipeline(
        run.schedule,
        np.array(
            [step.chunks[key].in_pipeline_s + longer[key] for row in step.keys for key in row]
        ),
        transfer_s=step.transfers_s,
        blocking_sends=job.blocking_sends,
        staggered=job.optimizer.post_validation,
    )
    return replace(step, pipeline=pipeline).step_time_s


def _contending(run: TrainingRun, chunk: ChunkRun, channels: tuple[Channel, ...]) -> GroupRun:
    job, inputs = run.job, run.scenario.file.events
    gpu, costs, gap = run.scenario.cluster.node.gpu, run.costs, job.gap.value
    graph, skewed = chunk.log.graph, "skew" in channels and not job.skew.is_none and job.ep > 1
    operators = graph.task_operators()
    kernel = [is_kernel(operator) for operator in operators]
    alone, sms = _alone(run, chunk, operators)
    factors = _factors(run, chunk, alone, sms) if skewed else alike(graph, ranks=job.ep)
    seconds = alone[:, None] * factors.work * factors.speed
    ratio = costs.calibration.overlap.gemm.of_rows if inputs.l2_and_power == "measured" else 1.0
    hbm = hbm_rate(gpu, costs)
    asked = kernel_launches(
        operators,
        seconds,
        sms=sms,
        work=factors.work,
        hbm=hbm,
        sm_bandwidth=inputs.sm_bandwidth,
        beside_transfer=[ratio if is_tensor(one.kind) else 1.0 for one in operators],
    )
    scenario = run.scenario
    cluster, calibration = scenario.cluster, scenario.calibration
    fabric = shared_fabric(
        cluster,
        calibration,
        channels,
        group=job.ep,
        copy_rates=lambda links: copy_rates(
            costs.transfers_, operators, sms=job.communication_sms, fabric=links
        ),
    )
    transfers: dict[int, GroupTransfer] = {}
    for place, (task, operator) in enumerate(zip(graph.tasks, operators, strict=True)):
        if operator.kind in ALL_TO_ALL_KINDS and job.ep > 1:
            transfers[place] = normal_transfer(
                costs.transfers_,
                operator,
                sms=job.communication_sms,
                shares=factors.rows[task.layer],
                fabric=fabric,
                first_gpu=0,
                channel=inputs.channel,
            )
            seconds[place] = transfers[place].alone_s
    shortest = min((one.alone_s for one in transfers.values()), default=0.0)
    beside, failures = surroundings(
        inputs, fabric, cluster=cluster, calibration=calibration, seed=scenario.file.seed
    )
    machine = run_on_ranks(
        meeting_in_transfers(graph, kernel),
        RankWork(
            seconds,
            [one if is_one else [None] * job.ep for one, is_one in zip(asked, kernel, strict=True)],
            transfers=transfers,
            transfer_sms=[
                job.communication_sms if place in transfers else 0 for place in range(len(kernel))
            ],
            joins=[
                run.layout.tp if shared_axis(operator) == "tensor" else job.ep
                for operator in operators
            ],
        ),
        gap,
        gpu_of=partial(
            Gpu,
            sms=gpu.sms if "sms" in channels else None,
            hbm=hbm if "hbm" in channels else None,
            context_sms=job.communication_sms if inputs.partition == "green_contexts" else 0,
        ),
        after_wait_s=gap,
        network_of=lambda env: Network(env, fabric, window=inputs.window_of(job.ep) * shortest),
        beside=beside,
        failures=failures,
    )
    before = np.zeros(len(kernel))
    for place, transfer in transfers.items():
        before[place] = transfer.delay_s
    # What ranks wait for is a result on both.
    prices = cost_graphs(
        {chunk.key: graph},
        costs=costs.without_waiting() if skewed else costs,
        sms=gpu.sms,
        communication_sms=job.communication_sms,
    )[chunk.key]
    of_timeline = prices.seconds[:, None] * factors.work * factors.speed
    return GroupRun(
        name=str(chunk.key),
        machine=machine,
        alone_s=seconds,
        before_s=before,
        timeline=timeline.run(
            graph, of_timeline, gap, rank_axis=0, teams={"tensor": run.layout.tp}
        ),
        channels=channels,
    )


def _alone(run: TrainingRun, chunk: ChunkRun, operators: list[Operator]) -> tuple[Array, list[int]]:
    """[tasks] seconds alone, and the SMs that each kernel is launched for."""
    gpu, kept = run.scenario.cluster.node.gpu, run.job.communication_sms
    apart = chunk.key.work == OVERLAPPED
    apart |= run.scenario.file.events.partition == "green_contexts"
    tasks = chunk.log.graph.tasks
    sms = [
        launch_sms(operator, sms=gpu.sms, kept=kept if apart or task.overlapped else 0)
        for task, operator in zip(tasks, operators, strict=True)
    ]
    seconds = np.zeros(len(operators))
    places = [place for place, operator in enumerate(operators) if is_kernel(operator)]
    seconds[places] = run.costs.predict(
        [operators[place] for place in places],
        sms=[sms[place] for place in places],
        overlapped=False,
        load=NO_LIMIT,
    ).seconds
    for place, operator in enumerate(operators):
        if not is_kernel(operator) and operator.kind not in ALL_TO_ALL_KINDS:
            seconds[place] = chunk.cost.seconds[place]
    return seconds, sms


def _factors(run: TrainingRun, chunk: ChunkRun, alone: Array, sms: list[int]) -> RankFactors:
    """Ranks of one group, as the job's skew states them at the values of its priors."""
    graph, skew, ranks = chunk.log.graph, run.job.skew, run.job.ep
    shape = (len(graph.tasks), ranks)
    work, speed = np.ones(shape), np.ones(shape)
    layers = np.ones((len(graph.layers), ranks))
    rng = np.random.default_rng([run.scenario.file.seed, 7])

    def value(prior: object) -> Array:
        return np.array([getattr(prior, "value", 0.0)])

    clock = clock_times(value(skew.clock_sd), gpus=ranks, rng=rng)[:, 0]
    slow = slow_machines(
        value(skew.slow_gpus.share),
        value(skew.slow_gpus.slowdown),
        gpus=ranks,
        per_machine=run.scenario.cluster.node.gpus,
        rng=rng,
    )[:, 0]
    priors = {"skew.rows_sd": value(skew.rows_sd)}
    if skew.rows.max_over_mean is not None:
        priors["skew.rows.max_over_mean"] = value(skew.rows.max_over_mean)
    if skew.rows.zipf_exponent is not None:
        priors["skew.rows.zipf_exponent"] = value(skew.rows.zipf_exponent)
    rows = drawn_rows(run, priors)
    shares = rows.shares(ranks=ranks, cases=(len(graph.layers),), rng=rng)[:, :, 0].T
    routed = [any(part in name for part in ("moe", "mtp")) for name in graph.layers]
    layers[routed] = shares[routed]
    operators = graph.task_operators()
    kernels = np.array([is_kernel(operator) for operator in operators])
    clocked = run.costs.clocked_shares(operators, alone, sms=sms)
    speed[kernels] = (1 + clocked[kernels, None] * (clock - 1)) * slow
    slope = _per_rows(run, chunk, alone, (float(layers.min()), float(layers.max())), sms)
    of_layer = layers[[task.layer for task in graph.tasks]]
    work *= 1 + slope[:, None] * (of_layer - 1)
    attention = np.array([operator.kind.startswith("attention") for operator in operators])
    for batch in {task.micro_batch for task in graph.tasks}:
        mine = attention & np.array([task.micro_batch == batch for task in graph.tasks])
        # GPUs that share layers work on the same sequences.
        normal = np.repeat(rng.standard_normal(-(-ranks // run.layout.tp)), run.layout.tp)[:ranks]
        normal *= value(skew.work_sd)
        if run.documents is not None:
            sharing = run.job.context_parallel
            own = rng.choice(run.documents.relative, size=-(-ranks // sharing))
            normal += np.repeat(own - 1, sharing)[:ranks]
        work[mine] *= np.maximum(1 + normal, 0.0)
    return RankFactors(work, speed, layers)


def _per_rows(
    run: TrainingRun, chunk: ChunkRun, alone: Array, ends: tuple[float, float], sms: list[int]
) -> Array:
    """[tasks], relative change of a kernel's time per relative change of its rank's rows, between
    the least and the most."""
    low, high = ends
    slope = np.zeros(len(alone))
    if high - low < 1e-3:
        return slope
    prices = []
    for rows in ends:
        graph = lower_key(chunk.key, run.operators_at(rows), immediate=run.immediate)
        operators = graph.task_operators()
        places = [place for place, operator in enumerate(operators) if is_kernel(operator)]
        found: Prediction = run.costs.predict(
            [operators[place] for place in places],
            sms=[sms[place] for place in places],
            overlapped=False,
            load=NO_LIMIT,
        )
        prices.append(found.seconds)
    slope[places] = (prices[1] - prices[0]) / (high - low) / np.maximum(alone[places], 1e-12)
    return slope
