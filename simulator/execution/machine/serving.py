"""Run layers of a serving step on every rank of its deployment, contending.

The ranks are those that the job's skew states, at the values of its priors, as in serving_draws.
Kernels beside normal transfers start from their time alone on the SMs that they are launched for;
transfers from theirs alone, between ranks that are alike. Wires of low-latency kernels take no SM:
they contend for links, and wait for ranks.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.low_latency_kernels import MoeOperation
from hardware_profiles.units import BytesPerSecond
from reference_model.trace import ALL_TO_ALL_KINDS, Operator
from simulator.execution import timeline
from simulator.execution.machine.exchange import (
    copy_rates,
    low_latency_transfer,
    normal_transfer,
)
from simulator.execution.machine.gpu import Gpu
from simulator.execution.machine.group import (
    GroupRun,
    RankFactors,
    alike,
    meeting_in_transfers,
    not_contending,
)
from simulator.execution.machine.launches import hbm_rate, kernel_launches, launch_sms
from simulator.execution.machine.ranks import (
    GroupTransfer,
    RankWork,
    run_on_ranks,
)
from simulator.execution.machine.surroundings import shared_fabric, surroundings
from simulator.execution.serving_blocks import BY_EXPERT_ROWS, CORES, meets, row_ratios
from simulator.execution.serving_draws import (
    ServingRanks,
    draw_ranks,
    priors_of,
    times_without_waiting,
)
from simulator.execution.serving_model import EXPERT_LAYERS
from simulator.execution.serving_step import ServingStep
from simulator.hardware.kernels.roofline import is_tensor
from simulator.hardware.network.flows import Network
from simulator.hardware.network.topology import Fabric
from simulator.scenario.events import CHANNELS, Channel, EventsInputs
from simulator.workload.iteration import WIRES, section_starts
from simulator.workload.skew import Single
from simulator.workload.task_graph import COLLECTIVE_SEGMENTS, Task, TaskGraph

Array = NDArray[np.float64]


def part_of_graph(graph: TaskGraph, layers: Collection[int]) -> tuple[TaskGraph, list[int]]:
    """The tasks of some layers by themselves, and their places in the whole graph."""
    places = [place for place, task in enumerate(graph.tasks) if task.layer in layers]
    here = {place: number for number, place in enumerate(places)}
    tasks = tuple(
        replace(
            graph.tasks[place],
            depends_on=tuple(
                here[earlier] for earlier in graph.tasks[place].depends_on if earlier in here
            ),
        )
        for place in places
    )
    names = ", ".join(dict.fromkeys(graph.layers[layer] for layer in layers))
    return replace(graph, name=f"{len(layers)} layers ({names})", tasks=tasks), places


def middle_layers(graph: TaskGraph, count: int) -> list[int]:
    """Layers with experts in the middle of an iteration, at most so many."""
    experts = [number for number, kind in enumerate(graph.layers) if kind in EXPERT_LAYERS]
    first = max(0, (len(experts) - count) // 2)
    return experts[first : first + count]


def run_layers(step: ServingStep, inputs: EventsInputs, channels: Collection[Channel]) -> GroupRun:
    """Run a serving step's middle layers with experts on all ranks of the deployment.

    Args:
        channels: what contends or differs; none for the timeline's own prices and ideal ranks, and
            then the whole iteration.
    """
    kept = tuple(channel for channel in CHANNELS if channel in channels)
    if kept:
        return _Layers(step, inputs, kept).run()
    graph, seconds = step.log.graph, step.times.seconds[step.model.places]
    return not_contending(graph.name, graph, seconds, step.model.job.gap.value)


class _Layers:
    """What the layers of one run share."""

    def __init__(
        self, step: ServingStep, inputs: EventsInputs, channels: tuple[Channel, ...]
    ) -> None:
        self.step, self.inputs, self.channels = step, inputs, channels
        self.model, self.job = step.model, step.model.job
        whole = step.log.graph
        self.layers = middle_layers(whole, inputs.layers)
        self.graph, self.places = part_of_graph(whole, self.layers)
        self.operators = self.graph.task_operators()
        self.of_step = self.model.places[self.places]
        """[tasks], place of each operator in those of the step."""
        self.experts = [n for n, kind in enumerate(whole.layers) if kind in EXPERT_LAYERS]
        skewed = "skew" in channels and not self.job.skew.is_none and self.job.gpus > 1
        self.ranks = self._draw() if skewed else None
        self.kernel = [self._is_kernel(place) for place in range(len(self.operators))]

    def run(self) -> GroupRun:
        """All ranks, and the same on the timeline."""
        model, job, gap = self.model, self.job, self.job.gap.value
        gpu, costs, cluster = model.cluster.node.gpu, model.kernels.costs, model.cluster
        calibration, count = model.kernels.calibration, job.gpus
        priced = self.step.times.seconds[self.of_step]
        alone, sms = self._alone(priced)
        factors = self._factors(alone, sms)
        seconds = alone[:, None] * factors.work * factors.speed
        hbm = hbm_rate(gpu, costs)
        asked = kernel_launches(
            self.operators,
            seconds,
            sms=sms,
            work=factors.work,
            hbm=hbm,
            sm_bandwidth=self.inputs.sm_bandwidth,
            beside_transfer=[
                costs.calibration.overlap.gemm.of_rows
                if self.inputs.l2_and_power == "measured" and is_tensor(one.kind)
                else 1.0
                for one in self.operators
            ],
        )
        fabric = shared_fabric(
            cluster, calibration, self.channels, group=count, copy_rates=self._copy_rates
        )
        transfers = self._transfers(alone, fabric)
        before = np.zeros(len(self.graph.tasks))
        for place, transfer in transfers.items():
            seconds[place], before[place] = transfer.alone_s, transfer.delay_s
        shortest = min((one.alone_s for one in transfers.values()), default=0.0)
        window = self.inputs.window_of(count) * shortest
        beside, failures = surroundings(
            self.inputs, fabric, cluster=cluster, calibration=calibration, seed=model.seed
        )
        machine = run_on_ranks(
            meeting_in_transfers(self.graph, self.kernel),
            RankWork(
                seconds,
                [
                    one if is_one else [None] * count
                    for one, is_one in zip(asked, self.kernel, strict=True)
                ],
                transfers=transfers,
                transfer_sms=[
                    job.communication_sms if place in transfers else 0
                    for place in range(len(self.kernel))
                ],
                joins=[
                    job.attention_tp
                    if meets(model.graph, job.tensor_parallel, task) == (0,)
                    else count
                    for task in self.graph.tasks
                ],
                start_window_s=window,
            ),
            gap,
            gpu_of=partial(
                Gpu,
                sms=gpu.sms if "sms" in self.channels else None,
                hbm=hbm if "hbm" in self.channels else None,
                context_sms=job.communication_sms
                if job.normal_transfers and self.inputs.partition == "green_contexts"
                else 0,
            ),
            after_wait_s=gap,
            network_of=lambda env: Network(env, fabric, window=window),
            beside=beside,
            failures=failures,
        )
        # What ranks wait for is a result on both.
        times = self.step.times if self.ranks is None else times_without_waiting(self.step)
        of_timeline = times.seconds[self.of_step][:, None] * factors.work * factors.speed
        return GroupRun(
            name=self.graph.name,
            machine=machine,
            alone_s=seconds,
            before_s=before,
            timeline=timeline.run(self.graph, of_timeline, gap, rank_axis=0),
            channels=self.channels,
        )

    def _is_kernel(self, place: int) -> bool:
        task, operator = self.graph.tasks[place], self.operators[place]
        wire = task.part in WIRES and operator.kind != "dispatch_layout"
        return not wire and operator.segment not in COLLECTIVE_SEGMENTS

    # --- ranks

    def _draw(self) -> ServingRanks:
        priors = {name: np.array([prior.value]) for name, prior in priors_of(self.job.skew).items()}
        return draw_ranks(self.step, priors, np.random.default_rng((self.model.seed, 7)))

    def _of_ranks(self, one: Single) -> Array:
        """[ranks], what the only draw says of each."""
        assert self.ranks is not None
        drawn = np.broadcast_to(one[..., 0], self.ranks.clock.shape[:2])
        return drawn.T.ravel().astype(np.float64)

    def _rows(self, task: Task) -> Array:
        """[ranks], rows over their mean in the layer and micro-batch of a task."""
        if self.ranks is None or not self.ranks.rows or task.layer not in self.experts:
            return np.ones(self.job.gpus)
        rows = self.ranks.rows[self.experts.index(task.layer)][max(task.micro_batch, 0)]
        return self._of_ranks(rows)

    def _factors(self, alone: Array, sms: list[int]) -> RankFactors:
        found = alike(self.graph, ranks=self.job.gpus)
        if self.ranks is None:
            return found
        work, speed = found.work.copy(), found.work.copy()
        clock, slow = self._of_ranks(self.ranks.clock), self._of_ranks(self.ranks.slow)
        clocked = self.model.kernels.costs.clocked_shares(self.operators, alone, sms=sms)
        nodes, ratios = self._ratios_of_rows()
        for place, (task, operator) in enumerate(
            zip(self.graph.tasks, self.operators, strict=True)
        ):
            of_rows = ratios.get(int(self.of_step[place]))
            if of_rows is not None and task.part in BY_EXPERT_ROWS:
                work[place] = np.interp(self._rows(task), nodes, of_rows)
            if self.kernel[place]:
                speed[place] = (1 + clocked[place] * (clock - 1)) * slow
                if operator.kind in CORES:
                    work[place] *= self._of_ranks(self.ranks.work[task.micro_batch])
        return RankFactors(work, speed, found.rows)

    def _ratios_of_rows(self) -> tuple[Array, dict[int, Array]]:
        """Rows over the mean, and {operator of the step: times at them over those of the step}."""
        assert self.ranks is not None
        if not self.ranks.rows:
            return np.ones(1), {}
        every = np.concatenate([self._of_ranks(part) for one in self.ranks.rows for part in one])
        nodes = np.linspace(every.min(), max(every.max(), every.min() * (1 + 1e-6)), 9)
        starts = section_starts(self.step.operators)
        found: dict[int, Array] = {}
        for kind in EXPERT_LAYERS:
            if (kind, 0) in self.step.operators:
                ratios = row_ratios(self.step, kind, nodes)
                for batch in range(self.job.micro_batches):
                    start = starts[kind, batch]
                    found |= {start + place: one[:-1] for place, one in ratios.items()}
        return nodes, found

    # --- prices

    def _alone(self, priced: Array) -> tuple[Array, list[int]]:
        """[tasks] seconds with nothing beside, and the SMs that each is launched for."""
        job, gpu = self.job, self.model.cluster.node.gpu
        kept = job.communication_sms if job.normal_transfers else 0
        sms = [launch_sms(operator, sms=gpu.sms, kept=kept) for operator in self.operators]
        alone = priced.copy()
        ratios = job.all_to_all.beside_compute
        for place, task in enumerate(self.graph.tasks):
            if not job.normal_transfers and task.part in WIRES and ratios is not None:
                alone[place] /= ratios.of(_operation(task)).value
        places = [place for place, is_one in enumerate(self.kernel) if is_one]
        if kept and job.overlap == "two_micro_batches":
            costs, kernels = self.model.kernels.costs, [self.operators[place] for place in places]
            load = self.model.kernels.load
            beside = costs.predict(kernels, sms=gpu.sms - kept, overlapped=True, load=load).seconds
            by_itself = costs.predict(
                kernels, sms=[sms[place] for place in places], overlapped=False, load=load
            ).seconds
            alone[places] *= by_itself / beside
        return alone, sms

    def _copy_rates(self, fabric: Fabric) -> list[BytesPerSecond]:
        operators = self.operators if self.job.normal_transfers else []
        return copy_rates(
            self.model.transfers, operators, sms=self.job.communication_sms, fabric=fabric
        )

    def _transfers(self, alone: Array, fabric: Fabric) -> dict[int, GroupTransfer]:
        model, job = self.model, self.job
        found: dict[int, GroupTransfer] = {}
        if job.gpus == 1 or model.expert_ranks != job.gpus:
            return found
        for place, (task, operator) in enumerate(
            zip(self.graph.tasks, self.operators, strict=True)
        ):
            if task.part not in WIRES:
                continue
            if operator.kind in ALL_TO_ALL_KINDS:
                found[place] = normal_transfer(
                    model.transfers,
                    operator,
                    sms=job.communication_sms,
                    shares=self._rows(task),
                    fabric=fabric,
                    first_gpu=0,
                    channel=self.inputs.channel,
                )
            elif not job.normal_transfers:
                found[place] = self._low_latency(place, task, operator, alone, fabric)
        return found

    def _low_latency(
        self, place: int, task: Task, operator: Operator, alone: Array, fabric: Fabric
    ) -> GroupTransfer:
        model = self.model
        operation = _operation(task)
        tokens = float(operator["rows"]) * (model.choices if operation == "dispatch" else 1)
        return low_latency_transfer(
            model.transfers,
            operation,
            float(alone[place]),
            tokens=tokens,
            shares=self._rows(task),
            fabric=fabric,
            token_bytes=model.messages[operation],
            hbm_bytes=2 * tokens * model.messages[operation],
        )


def _operation(task: Task) -> MoeOperation:
    return "dispatch" if task.part.startswith("dispatch") else "combine"
