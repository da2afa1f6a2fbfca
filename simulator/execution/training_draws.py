"""Draw a training step many times: its kernel times, its inputs, and its ranks where they differ.

Each draw takes one value of every prior, one error of every kernel family (execution.draws) and one
realisation of the ranks (training_ranks). The step is run in the order in which causes are told
apart: with ranks that are alike, with rows and work that differ, on GPUs that differ too, and with
pauses of hosts. Transfers are those of ranks that never wait, since waiting is a result here.

Without skew only kernel times and gaps are drawn, and everything else is as in the ideal step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Bytes, Seconds
from reference_model.pipeline_actions import OVERLAPPED, WEIGHT_GRADIENT
from simulator.execution import timeline
from simulator.execution.draws import Draws, drawn, estimated, scaled_seconds
from simulator.execution.optimizer import OptimizerStep
from simulator.execution.pipeline import PipelineRun, run_pipeline
from simulator.execution.training import TrainingRun
from simulator.execution.training_chunks import ChunkKey, cost_graphs, lower_key, task_sms
from simulator.execution.training_ranks import (
    Blocks,
    KnownRows,
    PairWaiting,
    Ranks,
    Series,
    action_seconds,
    blocks_of,
    drawn_rows,
    group_spans,
    is_kernel,
    pair_waiting,
    series_of,
)
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.prediction import NORMAL_80, Prediction
from simulator.workload.layout import StageLayers, kind_of
from simulator.workload.schedules.held import held_activations
from simulator.workload.skew import Single, clock_times, slow_machines
from simulator.workload.task_graph import Stream, TaskGraph

Array = NDArray[np.float64]

LEAST_CHANGE = 0.02
"""Rows over their mean, at least, by which the time of a kernel is compared with that at the mean:
less than a tile of rows says nothing."""


WITH_ROWS = ("moe", "mtp")
"""Kinds of layers with routed experts."""

MOST_HELD = 16
"""Layers, and replicas, of which rows are drawn to see how much memory they take."""


@dataclass(frozen=True, slots=True)
class TrainingDraws:
    """A step in every draw; arrays [draws] where nothing else is said."""

    priors: Mapping[str, Array]
    """{path below `training` of a prior: its values}; none without skew."""
    alike_s: Array
    """Step time with ranks that are alike, on the same kernel times and inputs."""
    uneven_s: Array
    """With rows and work that differ between ranks."""
    slower_s: Array
    """On GPUs that differ as well."""
    step_s: Array
    """With everything."""
    pipeline_s: Array
    """Of it, all micro-batches."""
    host_s: Array
    """Of it, waiting for the host where launching all kernels outlasts the pipeline."""
    pair_s: Array
    """The profiled pair on one group."""
    upper_bound_s: Array
    """Step time if every chunk took what it takes on the slowest group of all that run it."""
    equal_documents_s: Array | None
    """Step time with rows that differ, on GPUs that are alike, before documents differ; None
    without documents."""
    actions_s: Array
    """[pipeline ranks, works, draws], seconds of the actions of each kind, mean over replicas."""
    works: tuple[str, ...]
    """Of `actions_s`, in order."""
    sends_s: Array
    """[pipeline ranks, draws], waiting for sends, mean over replicas."""
    optimizer_s: Array
    """[pipeline ranks, draws]"""
    memory: Array
    """[pipeline ranks, draws], bytes on the fullest GPU of each."""
    waiting: PairWaiting | None
    """None without skew."""

    @property
    def expected_s(self) -> Seconds:
        """The median step time."""
        return float(np.median(self.step_s))


def draw_step(run: TrainingRun) -> TrainingDraws:
    """Draw the step of a run; the same run gives the same draws."""
    return _Drawing(run).step()


def expected_seconds(run: TrainingRun, known: KnownRows | None = None) -> Seconds:
    """`TrainingDraws.expected_s` alone, without telling causes apart: half of the work.

    Args:
        known: what runs before have drawn; what this one draws is added, up to MOST_KNOWN.
    """
    return float(np.median(_Drawing(run, known).step_s()))


def expected_memory(run: TrainingRun) -> Bytes:
    """The median of `TrainingDraws.memory` on the fullest GPU of all, without drawing the step."""
    return float(np.median(_Drawing(run).memory().max(axis=0)))


class _Drawing:
    """What the draws of one run share."""

    def __init__(self, run: TrainingRun, known: KnownRows | None = None) -> None:
        self.run, self.known = run, known
        self.job, self.ideal = run.job, run.step
        seed = run.scenario.file.seed
        calibration = run.scenario.calibration
        self.seed = seed
        self.draws = Draws(np.random.default_rng(seed), common_share=calibration.common_share)
        self.gap_s = estimated(self.job.gap, self.draws.gap)
        self.samples = len(self.gap_s)
        self.skewed = not self.job.skew.is_none
        self.priors = self._priors(np.random.default_rng([seed, 1])) if self.skewed else {}
        self.costs: KernelCostModel = run.costs.without_waiting() if self.skewed else run.costs
        self.keys = self.ideal.keys
        self.users = {
            key: [rank for rank, row in enumerate(self.keys) if key in row]
            for key in self.ideal.chunks
        }
        layout = self.run.layout
        self.in_step = self.job.zero >= 2 and layout.stage_gpus > 1
        """Whether replicas exchange gradients in every micro-batch."""
        self.meeting = layout.stage_gpus if self.in_step else layout.group
        """GPUs of a pipeline rank that take the same time, since they wait for each other."""
        achieved = calibration.transfers.nic
        self.normal = self.draws.of("transfers") / NORMAL_80
        ends = np.where(
            self.normal > 0, achieved.value / achieved.low, achieved.high / achieved.value
        )
        self.slower_sends = ends**self.normal

    def _priors(self, rng: np.random.Generator) -> dict[str, Array]:
        skew, optimizer = self.job.skew, self.job.optimizer
        every = {
            "skew.rows_sd": skew.rows_sd,
            "skew.clock_sd": skew.clock_sd,
            "skew.work_sd": skew.work_sd,
            "skew.host_pause.rate": skew.host_pause.rate,
            "skew.host_pause.seconds": skew.host_pause.seconds,
            "skew.slow_gpus.share": skew.slow_gpus.share,
            "skew.slow_gpus.slowdown": skew.slow_gpus.slowdown,
            "skew.rows.max_over_mean": skew.rows.max_over_mean,
            "skew.rows.zipf_exponent": skew.rows.zipf_exponent,
            "optimizer.efficiency": optimizer.efficiency,
        }
        if optimizer.offload == "cpu":
            every["optimizer.cpu_efficiency"] = optimizer.cpu_efficiency
        normals = {name: rng.standard_normal(self.samples) for name in every}
        found = {
            name: drawn(prior, normals[name]) for name, prior in every.items() if prior is not None
        }
        keeps = rng.random(self.samples) < self.job.lone_chunks_keep_sms
        return {**found, "lone_chunks_keep_sms": keeps.astype(np.float64)}

    def step(self) -> TrainingDraws:
        """All of it, cause by cause."""
        blocks = self._blocks()
        pair = blocks[self.ideal.pair.key]
        alike = {
            key: self._in_pipeline(
                key, timeline.run(one.graph, one.seconds, self.gap_s).spans_s[None, None]
            )
            for key, one in blocks.items()
        }
        optimizer = self._optimizer()
        even = self._known(alike)
        if not self.skewed:
            full = self._run(self._seconds(even))
            step_s = self._ends(full) + optimizer.max(axis=0)
            pair_s = alike[self.ideal.pair.key][0, 0]
            return self._drawn([step_s] * 5, full, pair_s, optimizer, waiting=None)
        ranks = self._ranks()
        cases = [ranks.without_slower_gpus(), ranks]
        if ranks.documents is not None:
            cases.insert(0, cases[0].with_equal_documents())
        of_cases, slowest = self._of_groups(blocks, cases)
        worst = self._known(slowest)
        in_order = [self._seconds(of_case) for of_case in of_cases]
        seconds = in_order[-1]
        full = self._run(seconds + self._pauses())
        cases_s = [self._seconds(even), *in_order, self._seconds(worst)]
        shape = seconds.shape
        side_by_side = self._run(
            np.concatenate([np.broadcast_to(each, shape) for each in cases_s], axis=2),
            slower_sends=np.tile(self.slower_sends, len(cases_s)),
        )
        ends = np.split(self._ends(side_by_side), len(cases_s))
        alike_s, (uneven_s, slower_s, worst_s) = ends[0], ends[-3:]
        steps = [alike_s, uneven_s, slower_s, self._ends(full), worst_s]
        if ranks.documents is not None:
            steps.append(ends[1])
        pair_s = group_spans(pair, cases[-1:], [self.run.schedule.ranks // 2])[0][0, 0, 0]
        return self._drawn(
            [end + optimizer.max(axis=0) for end in steps],
            full,
            pair_s.astype(np.float64),
            optimizer,
            waiting=pair_waiting(
                pair,
                ranks,
                (self.run.schedule.ranks // 2, 0),
                group=self.run.layout.group,
                draws=self.samples,
            ),
        )

    def step_s(self) -> Array:
        """[draws], the step with everything."""
        if not self.skewed:
            return self.step().step_s
        # Families draw in the order in which they are asked for, here as in `step`.
        blocks, optimizer = self._blocks(), self._optimizer()
        (series,), _ = self._of_groups(blocks, [self._ranks()])
        full = self._run(self._seconds(series) + self._pauses())
        return np.asarray(self._ends(full) + optimizer.max(axis=0))

    def _known(self, spans: Mapping[ChunkKey, Array]) -> dict[ChunkKey, Series]:
        """Every chunk as long as it is known to be, on all ranks.

        Args:
            spans: {chunk: [1, 1, draws]}
        """
        return {key: Series.known(spans[key], users) for key, users in self.users.items()}

    def _of_groups(
        self, blocks: Mapping[ChunkKey, Blocks], cases: Sequence[Ranks]
    ) -> tuple[list[dict[ChunkKey, Series]], dict[ChunkKey, Array]]:
        """What the chunks of each group take in each case; and {chunk: [1, 1, draws]} what each
        takes on the slowest group of the last case."""
        of_cases: list[dict[ChunkKey, Series]] = [{} for _ in cases]
        slowest = {}
        for key, users in self.users.items():
            spans = [
                self._in_pipeline(key, self._together(spans))
                for spans in group_spans(blocks[key], cases, users)
            ]
            for found, of_case in zip(spans, of_cases, strict=True):
                of_case[key] = series_of(found, users)
            slowest[key] = spans[-1].max(axis=(0, 1, 2)).astype(np.float64)[None, None]
        return of_cases, slowest

    def _in_pipeline(self, key: ChunkKey, spans: NDArray[Any]) -> NDArray[Any]:
        """The spans of a chunk without what lies outside the pipeline, as long as in the ideal
        step."""
        chunk = self.ideal.chunks.get(key)
        outside = 0.0 if chunk is None else sum(chunk.outside_s)
        return spans - spans.dtype.type(outside) if outside else spans

    def _together(self, spans: Single) -> Single:
        """The spans of groups; of the slowest where every micro-batch makes all of them meet."""
        return spans.max(axis=1, keepdims=True) if self.in_step else spans

    def _drawn(
        self,
        steps: Sequence[Array],
        pipeline: PipelineRun,
        pair_s: Array,
        optimizer: Array,
        *,
        waiting: PairWaiting | None,
    ) -> TrainingDraws:
        actions = pipeline.actions()
        works = tuple(dict.fromkeys(action.work for action in actions))
        of_work = np.array([works.index(action.work) for action in actions])
        took = (pipeline.end_s - pipeline.start_s).mean(axis=1)
        sums = np.zeros((self.run.schedule.ranks, len(works), self.samples))
        np.add.at(sums, (pipeline.rank, of_work), took)
        return TrainingDraws(
            priors=self.priors,
            alike_s=steps[0],
            uneven_s=steps[1],
            slower_s=steps[2],
            step_s=steps[3],
            pipeline_s=self._ends(pipeline),
            host_s=self._ends(pipeline) - pipeline.makespans_s.max(axis=0),
            pair_s=pair_s,
            upper_bound_s=steps[4],
            equal_documents_s=steps[5] if len(steps) > 5 else None,
            actions_s=sums,
            works=works,
            sends_s=pipeline.waiting_for_sends_s.mean(axis=1),
            optimizer_s=optimizer,
            memory=self.memory(),
            waiting=waiting,
        )

    # -- chunks ------------------------------------------------------------------------------------

    def _blocks(self) -> dict[ChunkKey, Blocks]:
        """Every distinct chunk and the profiled pair, as blocks with drawn times."""
        chunks = {**self.ideal.chunks, self.ideal.pair.key: self.ideal.pair}
        graphs = {key: chunk.log.graph for key, chunk in chunks.items()}
        if not self.skewed:
            return {key: self._plain(graphs[key], chunk.cost) for key, chunk in chunks.items()}
        found = self._cost(graphs)
        lone = {key: graph for key, graph in graphs.items() if key.work != OVERLAPPED}
        kept = self._cost(lone, lone_keep=True) if self.priors["lone_chunks_keep_sms"].any() else {}
        low, high = self._levels()
        fewer, more = (self._change(graphs, found, rows) for rows in (low, high))
        keeps = self.priors["lone_chunks_keep_sms"] > 0
        blocks = {}
        for key, graph in graphs.items():
            scaled = scaled_seconds(found[key], self.draws)
            if key in kept:
                scaled = np.where(keeps, scaled_seconds(kept[key], self.draws), scaled)
            blocks[key] = blocks_of(
                graph,
                scaled,
                self.gap_s,
                clocked=self._clocked(graph, key, found[key]),
                more=more[key],
                fewer=fewer[key],
                layers=_layers(key, graph),
            )
        return blocks

    def _plain(self, graph: TaskGraph, cost: Prediction) -> Blocks:
        none = np.zeros(len(graph.tasks))
        scaled = scaled_seconds(cost, self.draws)
        layers = [None] * len(graph.layers)
        return blocks_of(
            graph, scaled, self.gap_s, clocked=none, more=none, fewer=none, layers=layers
        )

    def _cost(
        self, graphs: Mapping[ChunkKey, TaskGraph], *, lone_keep: bool = False
    ) -> dict[ChunkKey, Prediction]:
        return cost_graphs(
            graphs,
            costs=self.costs,
            sms=self.run.scenario.cluster.node.gpu.sms,
            communication_sms=self.job.communication_sms,
            lone_keep=lone_keep,
        )

    def _change(
        self,
        graphs: Mapping[ChunkKey, TaskGraph],
        at_mean: Mapping[ChunkKey, Prediction],
        rows: float,
    ) -> dict[ChunkKey, Array]:
        """{chunk: [tasks]}, relative change of each time per relative change of rows."""
        if rows == 1.0:
            return {key: np.zeros(len(graph.tasks)) for key, graph in graphs.items()}
        operators = self.run.operators_at(rows)
        others = self._cost(
            {key: lower_key(key, operators, immediate=self.run.immediate) for key in graphs}
        )
        least = np.finfo(np.float64).tiny
        return {
            key: (others[key].seconds / np.maximum(at_mean[key].seconds, least) - 1) / (rows - 1)
            for key in graphs
        }

    def _clocked(self, graph: TaskGraph, key: ChunkKey, cost: Prediction) -> Array:
        """[tasks], share of each time that goes with the SM clock; none of transfers."""
        sms = self.run.scenario.cluster.node.gpu.sms
        on = task_sms(
            graph,
            pair=key.work == OVERLAPPED,
            sms=sms,
            communication_sms=self.job.communication_sms,
        )
        operators = graph.task_operators()
        shares = self.costs.clocked_shares(operators, cost.seconds, sms=on)
        computes = [
            task.stream is Stream.COMPUTE and is_kernel(operator)
            for task, operator in zip(graph.tasks, operators, strict=True)
        ]
        return np.where(computes, shares, 0.0)

    def _levels(self) -> tuple[float, float]:
        """Rows over the mean of the least and the busiest rank of a group, in the usual draw."""
        rng = np.random.default_rng([self.seed, 2])
        shares = drawn_rows(self.run, self.priors).shares(ranks=self.job.ep, cases=(1,), rng=rng)
        most = float(np.median(shares.max(axis=0)))
        least = float(np.median(shares.min(axis=0)))
        if not most > 1.0:
            return 1.0, 1.0
        return min(least, 1 - LEAST_CHANGE), max(most, 1 + LEAST_CHANGE)

    # -- ranks -------------------------------------------------------------------------------------

    def _ranks(self) -> Ranks:
        layout, priors = self.run.layout, self.priors
        rng = np.random.default_rng([self.seed, 3])
        shape = (layout.pp, layout.groups, layout.group, self.samples)
        clock = clock_times(priors["skew.clock_sd"], gpus=layout.gpus, rng=rng)
        slow = slow_machines(
            priors["skew.slow_gpus.share"],
            priors["skew.slow_gpus.slowdown"],
            gpus=layout.gpus,
            per_machine=self.run.scenario.cluster.node.gpus,
            rng=rng,
        )
        return Ranks(
            clock=clock.reshape(shape),
            slow=slow.reshape(shape),
            rows=drawn_rows(self.run, self.priors),
            lasting=self.job.skew.rows.changes != "micro_batch",
            work_sd=priors["skew.work_sd"],
            seed=self.seed,
            places=layout.ep,
            teams={"tensor": layout.tp, "expert_tensor": layout.etp},
            documents=None if self.run.documents is None else self.run.documents.relative,
            sharing=self.job.context_parallel,
            known=self.known,
        )

    # -- memory ------------------------------------------------------------------------------------

    def memory(self) -> Array:
        """[pipeline ranks, draws], bytes on the fullest GPU of each, linear in the rows that it
        holds on average and, of its workspace, in the most of one layer."""
        ideal = self.run.memory
        found = np.array([np.full(self.samples, rank.total) for rank in ideal])
        high = self._levels()[1] if self.skewed else 1.0
        if high == 1.0:
            return found
        shares = {
            layers: self._held_rows(layers) for layers in map(self._held_layers, range(len(ideal)))
        }
        for rank, (mean, busy) in enumerate(zip(ideal, self.run.memory_at(high), strict=True)):
            held, most = shares[self._held_layers(rank)]
            for before, after, rows in (
                (mean.activations, busy.activations, held),
                (mean.workspace, busy.workspace, most),
            ):
                assert before is not None, "a training step holds activations"
                assert after is not None, "a training step holds activations"
                found[rank] += (after - before) / (high - 1) * (rows - 1)
        return found

    def _held_layers(self, rank: int) -> int:
        """Layers with rows of their own whose activations a pipeline rank holds at once."""
        schedule, stages = self.run.schedule, self.run.stages
        held = held_activations(schedule, rank)
        uneven = np.array(
            [sum(kind_of(layer) in WITH_ROWS for layer in stages[stage]) for stage in held.stages]
        )
        if self.job.skew.rows.changes != "micro_batch":
            return int(uneven.sum())
        return int((held.whole @ uneven).max(initial=0))

    def _held_rows(self, layers: int) -> tuple[Array, Array]:
        """[draws], rows over their mean of the GPU that holds most, on average over its layers; and
        the most that a layer of any GPU has."""
        if layers == 0:
            return np.ones(self.samples), np.ones(self.samples)
        rng = np.random.default_rng([self.seed, 6])
        replicas = min(self.run.layout.expert_replicas, MOST_HELD)
        drawn_layers = min(layers, MOST_HELD)
        shares = drawn_rows(self.run, self.priors).shares(
            ranks=self.job.ep, cases=(replicas, drawn_layers), rng=rng
        )
        # Means of more layers than are drawn vary less, as means of independent ones do.
        beyond = (shares.mean(axis=2) - 1) * np.sqrt(drawn_layers / layers)
        return 1 + beyond.max(axis=(0, 1)), shares.max(axis=(0, 1, 2))

    # -- pipeline ----------------------------------------------------------------------------------

    def _seconds(self, series: Mapping[ChunkKey, Series]) -> Array:
        rng = np.random.default_rng([self.seed, 4])
        return action_seconds(series, self.keys, rng=rng)

    def _run(self, seconds: Array, *, slower_sends: Array | None = None) -> PipelineRun:
        slower = self.slower_sends if slower_sends is None else slower_sends
        return run_pipeline(
            self.run.schedule,
            seconds,
            transfer_s={ranks: took * slower for ranks, took in self.ideal.transfers_s.items()},
            blocking_sends=self.job.blocking_sends,
            staggered=self.job.optimizer.post_validation,
        )

    def _ends(self, pipeline: PipelineRun) -> Array:
        """[draws], when the last replica ends all micro-batches."""
        return np.asarray(np.maximum(pipeline.makespans_s.max(axis=0), self.ideal.host_s))

    def _pauses(self) -> Array:
        """[actions, replicas, draws], pauses of any host of a group while it performs an action."""
        rate, seconds = self.priors["skew.host_pause.rate"], self.priors["skew.host_pause.seconds"]
        rng = np.random.default_rng([self.seed, 5])
        counts = np.array([len(row) for row in self.keys for _ in row])
        shape = (len(counts), self.run.layout.stage_gpus // self.meeting, self.samples)
        mean = self.meeting * rate / counts[:, None, None]
        return np.asarray(rng.poisson(np.broadcast_to(mean, shape)) * seconds)

    def _optimizer(self) -> Array:
        """[pipeline ranks, draws]"""
        slower = 1 / self.priors["optimizer.efficiency"] if self.skewed else 1.0

        def drawn_step(part: OptimizerStep) -> Array:
            update = scaled_seconds(part.update, self.draws).sum(axis=0)
            found = exchanged(part, self.normal) + update * slower
            if part.products is not None:
                found = found + scaled_seconds(part.products, self.draws).sum(axis=0)
            if part.on_cpu_s is not None:
                copies_s, cpu_s = part.on_cpu_s
                on_cpu = 1 / self.priors["optimizer.cpu_efficiency"] if self.skewed else 1.0
                found = found + copies_s + cpu_s * on_cpu
            return np.broadcast_to(found, self.samples)

        return np.array([drawn_step(part) for part in self.ideal.optimizer])


def exchanged(part: OptimizerStep, normal: Array) -> Array:
    """Draws of the time of an optimizer's reduce-scatter and all-gather.

    Args:
        normal: 1 where the draw is the upper end of an 80% interval.
    """
    value, (low, high) = part.reduce_s + part.gather_s, part.exchange_ends_s
    if value == 0.0:
        return np.zeros_like(normal)
    found: Array = value * np.where(normal > 0, high / value, value / low) ** normal
    return found


def _layers(key: ChunkKey, graph: TaskGraph) -> list[tuple[StageLayers, int] | None]:
    """[layers of the graph], the stage and the place in it of each: "moe F0" is the first of the
    forward stage, "moe B0" and "moe W0" the last of the other."""
    found: list[tuple[StageLayers, int] | None] = []
    for name in graph.layers:
        work, number = name.rpartition(" ")[2][0], int(name.rpartition(" ")[2][1:])
        if work == "F":
            found.append((key.forward, number))
        else:
            joined = key.work != WEIGHT_GRADIENT and "embedding" in key.backward
            found.append((key.backward, len(key.backward) - joined - 1 - number))
    return found
