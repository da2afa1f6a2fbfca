"""Lower bounds of the ideal step of a training layout, without running it.

A bound never exceeds what the simulator gives for ideal ranks: it leaves out waiting, never work.

1. An operator takes no less than the kernel model predicts for it, the least of the conditions in
   which a chunk may launch it (all SMs; those that communication leaves, beside an all-to-all or
   not). Dispatch and combine take no less than with links and NICs that nothing else uses.
2. A stream runs one task at a time: a chunk takes no less than its compute, nor than its transfers.
   Outside pairs a layer is a chain as well (layer_seconds), and in pairs any way through the slots
   of two layers counts (pair_seconds). All are sums over layers, so that a bound of a layer, each
   kind by the same chain, counts for every chunk that it may lie in.
3. A rank runs one action at a time. The ranks of a pipeline run m micro-batches of every layer, so
   that the busiest runs their mean at least, and of N equal layers ceil(N / ranks), or more where
   other ranks have no memory for their share.
4. Bubbles. On a rank that holds one stage nothing starts before the first micro-batch has come
   through the stages before it, and after its last backward the gradients pass them again. Ranks s
   weighted by (1 - g / m)^(p - 1 - s) make of these p bounds one that is the same for every split
   of the layers: g / (1 - (1 - g / m)^p) times the layers' time of one micro-batch, where g is the
   share of a layer's time that passes the stages before (forward and backward 1). In 1F1B a further
   path goes from a rank's first forward down to the last rank and back, past the p - 1 - s
   forwards that fill the wait: 1 + 1 / sum over s of 1 / (m - 1 - (p - 1 - s) f) times that time, f
   being the forward's share. GPipe has both: (m + p - 1) / p. Schedules with several stages on a
   rank have their mean alone.
5. After it the optimizer moves its bytes no faster than HBM can, and gradients and parameters
   cross links and NICs that nothing else uses; ranks on average, so the slowest at least.

Sends between ranks, waiting for them and the host are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Seconds
from simulator.analysis.plan.layer_prices import LayerPrices
from simulator.analysis.plan.layer_seconds import (
    Times,
)
from simulator.analysis.plan.pair_seconds import (
    TRANSFERS,
    PairSeconds,
)
from simulator.analysis.plan.pipeline_bounds import pipeline_seconds
from simulator.analysis.plan.training_candidates import (
    Candidate,
    LayerFacts,
)
from simulator.analysis.plan.training_layouts import TrainingLayout
from simulator.execution.optimizer import Rings
from simulator.execution.training_fabric import copies_of
from simulator.hardware.network.fabric_load import NO_LIMIT
from simulator.hardware.network.transfers import Collective
from simulator.workload.sharding import BF16_BYTES, HeldParameters, Sharding, type_bytes
from simulator.workload.state_tasks import (
    GRADIENTS,
    PARAMETERS,
    collective_of,
    is_state_collective,
    state_operators,
)
from simulator.workload.update import update_operators


@dataclass(frozen=True, slots=True)
class TrainingBound:
    """What a layout's ideal step takes at least."""

    layout: TrainingLayout
    pipeline_s: Seconds
    optimizer_s: Seconds

    @property
    def seconds(self) -> Seconds:
        """The whole."""
        return self.pipeline_s + self.optimizer_s


@dataclass(frozen=True)
class TrainingBounds:
    """Bounds of the layouts of one scenario, which share kernels and transfers."""

    layers: LayerFacts
    _made: dict[object, object] = field(default_factory=dict, repr=False)

    @cached_property
    def prices(self) -> LayerPrices:
        """What layers take."""
        return LayerPrices(self.layers)

    def of(self, candidates: Sequence[Candidate]) -> list[TrainingBound]:
        """The bound of each layout."""
        shapes = {each.shape: each.parallel for each in candidates}
        if not candidates:
            return []
        kinds = tuple(dict.fromkeys(self.layers.layers))
        counts = Counter(self.layers.layers)
        number = {shape: place for place, shape in enumerate(shapes)}
        at = np.array([number[each.shape] for each in candidates])
        known = self.prices.of(shapes, kinds)
        state = self._states(candidates, kinds)
        shown = np.where(self._besides(candidates), 0.0, state)
        usual = kinds.index(self.layers.usual[0])

        def alone(name: str, way: str) -> Times:
            works = [getattr(known[kind], name) for kind in kinds]
            return np.stack([getattr(each, way) for each in works])[:, at]

        def work(name: str, which: int, ways: Sequence[str]) -> Times:
            """[kinds, layouts] by the way that takes the usual layers longest."""
            every = np.stack(
                [
                    alone(name, way) + (state if way == "transfers" else shown)[:, which]
                    for way in ways
                ]
            )
            longest = every[:, usual].argmax(axis=0)
            found: Times = np.take_along_axis(every, longest[None, None], axis=0)[0]
            return found

        def paired(name: str) -> Times:
            return np.stack([getattr(known[kind].pair, name) for kind in kinds], axis=1)[:, :, at]

        pair_forward, pair_backward = paired("forward"), paired("backward")
        pair_forward[TRANSFERS] += state[:, 0]
        pair_backward[TRANSFERS] += state[:, 1]
        blocking = [self._blocking(each) for each in candidates]
        pipeline = pipeline_seconds(
            work("forward", 0, ("compute", "transfers", "chain")),
            work("backward", 1, ("compute", "transfers", "chain", "with_combine")),
            PairSeconds(
                forward=pair_forward,
                backward=pair_backward,
                more=known[kinds[usual]].pair.more[:, at],
                ends=known[kinds[usual]].pair.ends[:, at],
            ),
            [each.facts for each in candidates],
            fullest=np.array([float(each.fullest) for each in candidates]),
            send=np.array([send for send, _ in blocking]),
            sends=np.array([float(sends) for _, sends in blocking]),
            counts=[counts[kind] for kind in kinds],
            usual=usual,
            gap=self.layers.job.gap.value,
            staggered=self.layers.job.optimizer.post_validation,
        )
        return [
            TrainingBound(each.layout, seconds, self._optimizer(each))
            for each, seconds in zip(candidates, pipeline.tolist(), strict=True)
        ]

    # -- layouts -------------------------------------------------------------------------------

    def _states(self, candidates: Sequence[Candidate], kinds: Sequence[str]) -> Times:
        """[kinds, forward and backward, layouts], what gathers and reduces a layer's state."""
        found = np.zeros((len(kinds), 2, len(candidates)))
        for place, candidate in enumerate(candidates):
            state = self._state(candidate)
            if state:
                found[:, :, place] = [state[kind] for kind in kinds]
        return found

    def _besides(self, candidates: Sequence[Candidate]) -> NDArray[np.bool_]:
        """[forward and backward, layouts], whether state is gathered, and reduced, while other
        layers compute."""
        each = [(c.sharding.gathers_ahead, c.sharding.reduces_beside) for c in candidates]
        return np.array(each).T

    def _blocking(self, candidate: Candidate) -> tuple[Seconds, int]:
        """A send that a rank waits for before its next action, and how many of a micro-batch there
        are in all ranks; as if over NVLink, or over NICs that nothing else uses where ranks share
        no NVLink domain."""
        job, parallel, facts = self.layers.job, candidate.parallel, candidate.facts
        if not job.blocking_sends or parallel.pp == 1:
            return 0.0, 0
        shape = candidate.shape
        transfers = self.prices.costs_of(shape, parallel).transfers_
        tokens = shape.micro_batch * job.sequence_length // (shape.cp * shape.tp)
        size = tokens * self.layers.scenario.model.hidden_size * BF16_BYTES
        apart = parallel.stage_gpus % parallel.gpus_per_domain == 0
        apart &= parallel.axes[-1] == "pipeline"
        key = ("send", size, apart)
        if key not in self._made:
            took = transfers.send(size, load=NO_LIMIT).seconds.item()
            near = took if apart else transfers.send(size, load=None).seconds.item()
            self._made[key] = min(took, near)
        found = self._made[key]
        assert isinstance(found, float)
        return found, 2 * facts.crossings

    def _rings(self, candidate: Candidate) -> Rings | None:
        """Rings over the copies of parameters, with links to themselves; None where those of
        several ranks differ."""
        parallel, facts = candidate.parallel, candidate.facts
        if parallel.stage_gpus % parallel.gpus_per_domain or parallel.axes[-1] != "pipeline":
            return None
        key = ("rings", id(parallel), facts.holders)
        if key not in self._made:
            self._made[key] = Rings(
                copies_of(parallel, facts.holders, experts=False),
                copies_of(parallel, facts.holders, experts=True),
                NO_LIMIT,
                NO_LIMIT,
            )
        found = self._made[key]
        assert isinstance(found, Rings)
        return found

    def _state(self, candidate: Candidate) -> dict[str, tuple[Seconds, Seconds]]:
        """{layer kind: what gathers and reduces its state in every forward and every backward}."""
        sharding = candidate.sharding
        if sharding.zero < 2:
            return {}
        rings = self._rings(candidate)
        if rings is None:
            return {}
        key = ("state", id(sharding), rings, candidate.shape.tp, candidate.parallel.local_experts)
        if key not in self._made:
            transfers = self.prices.costs_of(candidate.shape, candidate.parallel).transfers_
            held = self.layers.held(candidate.shape, candidate.parallel)
            operators = state_operators(held, sharding, accumulates=False)

            def took(kind: str, what: str) -> Seconds:
                found = 0.0
                for operator in operators[kind, what]:
                    if is_state_collective(operator):
                        name, experts = collective_of(operator)
                        size = float(operator.bytes_written)
                        operation: Collective = (
                            "all_gather" if name == "all_gather" else "reduce_scatter"
                        )
                        time = rings.seconds(transfers, operation, size, experts=experts)
                        found += float(time.seconds.sum())
                return found

            self._made[key] = {
                kind: (
                    took(kind, PARAMETERS) if sharding.zero == 3 else 0.0,
                    took(kind, GRADIENTS) + (took(kind, PARAMETERS) if sharding.zero == 3 else 0.0),
                )
                for kind in held
            }
        found = self._made[key]
        assert isinstance(found, dict)
        return found

    def _optimizer(self, candidate: Candidate) -> Seconds:
        """What follows the last micro-batch on a rank, on average over the ranks."""
        sharding = candidate.sharding
        rings = self._rings(candidate)
        key = (
            "optimizer", id(sharding), rings, candidate.shape.tp, candidate.shape.etp,
            candidate.parallel.local_experts, candidate.layout.pp,
            candidate.facts.schedule.directions,
        )  # fmt: skip
        if key not in self._made:
            held = self.layers.held(candidate.shape, candidate.parallel)
            whole = sum((held[kind] for kind in self.layers.layers), HeldParameters())
            share = candidate.facts.schedule.directions / candidate.layout.pp
            found = self._update(sharding, whole)
            if rings is not None:
                found += self._collectives(candidate, rings, sharding, whole)
            self._made[key] = share * found
        made = self._made[key]
        assert isinstance(made, float)
        return made

    def _update(self, sharding: Sharding, whole: HeldParameters) -> Seconds:
        """Bytes of the update at the peak of HBM."""
        if sharding.orthogonalizes:
            return 0.0
        moved = sum(o.bytes_read + o.bytes_written for o in update_operators(whole, sharding))
        return moved / self.layers.scenario.cluster.node.gpu.hbm_bandwidth

    def _collectives(
        self, candidate: Candidate, rings: Rings, sharding: Sharding, whole: HeldParameters
    ) -> Seconds:
        """Reduction and gather beside nothing, without what their latencies are."""
        transfers = self.prices.costs_of(candidate.shape, candidate.parallel).transfers_
        reduces, gathers = self.layers.job.state_overlapped
        bytes_each = 0.0
        gradient = type_bytes(sharding.types.gradients)
        if sharding.zero < 2 and not reduces:
            bytes_each += gradient * (2 if sharding.zero == 0 else 1)
        if sharding.zero in (1, 2) and not gathers:
            bytes_each += BF16_BYTES
        found = 0.0
        for part, group, experts in (
            (whole.replicated, rings.dense, False),
            (whole.experts, rings.experts, True),
        ):
            if part.count and bytes_each and group.domains > 1:
                small = rings.seconds(transfers, "all_gather", 0.0, experts=experts)
                large = rings.seconds(
                    transfers, "all_gather", part.count * bytes_each, experts=experts
                )
                found += max(0.0, float(large.seconds.sum()) - float(small.seconds.sum()))
        return found
