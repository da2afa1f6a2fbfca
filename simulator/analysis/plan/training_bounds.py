"""Lower bounds of the ideal step of a training layout, without running it.

A bound never exceeds what the simulator gives for ideal ranks: it leaves out waiting, never work.

1. An operator takes no less than the kernel model predicts for it, the least of the conditions in
   which a chunk may launch it (all SMs; those that communication leaves, beside an all-to-all or
   not). Dispatch and combine take no less than with links and NICs that nothing else uses.
2. A stream runs one task at a time: a chunk takes no less than its compute, nor than its transfers.
   Outside pairs a layer is a chain as well: attention, dispatch (or the shared expert, if that is
   longer), routed experts, combine forward; backward the experts' input gradients, dispatch (or the
   experts' weight gradients), attention's input and weight gradients; and likewise with combine in
   the place of the last. All are sums over layers, so that a bound of a layer, each kind by the
   same chain, counts for every chunk that it may lie in.
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
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from hardware_profiles.units import Seconds
from reference_model.trace import ALL_TO_ALL_KINDS, COLLECTIVE_KINDS, Operator
from simulator.analysis.plan.layer_seconds import (
    LayerSeconds,
    Own,
    Times,
    backward_seconds,
    forward_seconds,
    uncovered_seconds,
)
from simulator.analysis.plan.training_layouts import Candidate, LayerFacts, LayerShape
from simulator.execution.optimizer import Rings
from simulator.execution.training import with_collectives
from simulator.execution.training_fabric import collective_groups, copies_of
from simulator.hardware.costs import COST_MODELS, KernelCostModel
from simulator.hardware.network.fabric_load import NO_LIMIT
from simulator.hardware.network.transfers import Collective, exchange_sms, fitted_transfers
from simulator.hardware.power_state import rows_for
from simulator.scenario.files import by_name
from simulator.workload.chunk import (
    FORWARD,
    INPUT_GRAD,
    RECOMPUTE,
    WEIGHT_GRAD,
)
from simulator.workload.layout import ParallelLayout
from simulator.workload.memory import layer_parameters
from simulator.workload.schedules.order import OVERLAPPED
from simulator.workload.sharding import BF16_BYTES, HeldParameters, Sharding, type_bytes
from simulator.workload.state_tasks import (
    GRADIENTS,
    PARAMETERS,
    collective_of,
    is_state_collective,
    state_operators,
)

PHASES = (FORWARD, RECOMPUTE, INPUT_GRAD, WEIGHT_GRAD)


@dataclass(frozen=True, slots=True)
class TrainingBound:
    """What a layout's ideal step takes at least, and of what."""

    pipeline_s: Seconds
    optimizer_s: Seconds
    compute_s: Seconds
    """Of the pipeline: kernels of a rank on average."""
    exchange_s: Seconds
    """Of the pipeline: dispatch and combine of a rank on average, hidden or not."""

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
    def costs(self) -> KernelCostModel:
        """Kernel times; transfers are those of one GPU."""
        scenario = self.layers.scenario
        model = by_name(COST_MODELS, scenario.file.cost_model, "cost_model")
        return model(
            cluster=scenario.cluster,
            calibration=scenario.calibration,
            expert_parallel_ranks=1,
            sustained_job=True,
        ).fit(rows_for(scenario.calibration, "train_microbatch"))

    def of(self, candidates: Sequence[Candidate]) -> list[TrainingBound]:
        """The bound of each layout."""
        shapes = {each.shape: each.parallel for each in candidates}
        known = self._layers(shapes)
        return [self._of(each, known[each.shape]) for each in candidates]

    # -- layers --------------------------------------------------------------------------------

    def _layers(
        self, shapes: Mapping[LayerShape, ParallelLayout]
    ) -> dict[LayerShape, dict[str, LayerSeconds]]:
        """{shape: {layer kind: seconds}}, the kernels of all shapes predicted together."""
        kinds = tuple(dict.fromkeys(self.layers.layers))
        operators = {
            (shape, kind, phase): list(self.layers.operators(shape, parallel)(kind, phase))
            for shape, parallel in shapes.items()
            for kind in kinds
            for phase in PHASES
        }
        flat = [(shape, operator) for (shape, _, _), own in operators.items() for operator in own]
        kernels = [
            place
            for place, (_, operator) in enumerate(flat)
            if operator.kind not in ALL_TO_ALL_KINDS | COLLECTIVE_KINDS
        ]
        gpu, kept = self.layers.scenario.cluster.node.gpu, self.layers.job.communication_sms
        alone, paired = np.zeros(len(flat)), np.zeros(len(flat))
        launched = [flat[place][1] for place in kernels]
        free, left, beside = (
            self.costs.predict(launched, sms=sms, overlapped=overlapped).seconds
            for sms, overlapped in (
                (gpu.sms, False),
                (gpu.sms - kept, False),
                (gpu.sms - kept, True),
            )
        )
        paired[kernels] = np.minimum(left, beside)
        alone[kernels] = np.minimum(free, paired[kernels])
        self._exchanges(flat, shapes, alone, paired)
        found: dict[LayerShape, dict[str, LayerSeconds]] = {}
        start = 0
        parts: dict[tuple[LayerShape, str, str], slice] = {}
        for key, own in operators.items():
            parts[key] = slice(start, start + len(own))
            start += len(own)
        gap = self.layers.job.gap.value
        for shape in shapes:
            found[shape] = {}
            for kind in kinds:
                of_kind: Own = {
                    phase: (
                        operators[shape, kind, phase],
                        alone[parts[shape, kind, phase]],
                        paired[parts[shape, kind, phase]],
                    )
                    for phase in PHASES
                }
                found[shape][kind] = LayerSeconds(
                    forward_seconds(of_kind, gap),
                    backward_seconds(of_kind, gap),
                    uncovered_seconds(of_kind, gap),
                )
        return found

    def _exchanges(
        self,
        flat: Sequence[tuple[LayerShape, Operator]],
        shapes: Mapping[LayerShape, ParallelLayout],
        alone: Times,
        paired: Times,
    ) -> None:
        """Fill in the times of transfers and collectives."""
        places: dict[LayerShape, list[int]] = {}
        for place, (shape, operator) in enumerate(flat):
            if operator.kind in ALL_TO_ALL_KINDS | COLLECTIVE_KINDS:
                places.setdefault(shape, []).append(place)
        kept = self.layers.job.communication_sms
        for shape, own in places.items():
            costs = self._costs_of(shape, shapes[shape])
            operators = [flat[place][1] for place in own]
            sms = [
                exchange_sms(o.kind, kept=kept, free=costs.cluster.node.gpu.sms) for o in operators
            ]
            found = [
                with_collectives(
                    costs.predict(operators, sms=sms, overlapped=overlapped, load=NO_LIMIT),
                    operators,
                    costs,
                ).seconds
                for overlapped in (False, True)
            ]
            alone[own] = paired[own] = np.minimum(*found)

    def _costs_of(self, shape: LayerShape, parallel: ParallelLayout) -> KernelCostModel:
        """Kernel times with the transfers of a layout."""
        sharing = collective_groups(parallel)
        key = (shape.ep, shape.parts, tuple(sorted(sharing.items())))
        if key not in self._made:
            costs = copy(self.costs)
            costs.expert_parallel_ranks = shape.ep
            costs.sharing = sharing
            costs.reach = self.layers.reach(shape.parts)
            costs.transfers_ = fitted_transfers(
                costs.kernels_.own.rows,
                cluster=costs.cluster,
                calibration=costs.calibration,
                ranks=shape.ep,
                reach=costs.reach,
            )
            self._made[key] = costs
        found = self._made[key]
        assert isinstance(found, KernelCostModel)
        return found

    # -- layouts -------------------------------------------------------------------------------

    def _of(self, candidate: Candidate, layers: Mapping[str, LayerSeconds]) -> TrainingBound:
        counts = Counter(self.layers.layers)
        usual = self.layers.usual[0]
        state = self._state(candidate)
        exposed = {
            kind: tuple(0.0 if beside else seconds for seconds, beside in zip(
                state.get(kind, (0.0, 0.0)), self._beside(candidate), strict=True))
            for kind in counts
        }  # fmt: skip
        least, most = candidate.facts.pairs

        def lone(work: str, way: str) -> dict[str, Seconds]:
            found = {}
            for kind in counts:
                seconds = getattr(getattr(layers[kind], work), way)
                at = 0 if work == "forward" else 1
                total = state.get(kind, (0.0, 0.0))[at]
                found[kind] = seconds + (total if way == "transfers" else exposed[kind][at])
            return found

        def longest(work: str, ways: Sequence[str]) -> dict[str, Seconds]:
            return max((lone(work, way) for way in ways), key=lambda each: each[usual])

        forward = longest("forward", ("compute", "transfers", "chain"))
        backward = longest("backward", ("compute", "transfers", "chain", "with_combine"))
        ways = ("paired", "transfers") if OVERLAPPED in candidate.facts.works else ("paired",)
        best = 0.0
        for way in ways:
            spent = {}
            for kind in counts:
                own = layers[kind]
                beside = [
                    getattr(own.forward, way) + (way == "transfers") * state.get(kind, (0, 0))[0],
                    getattr(own.backward, way) + (way == "transfers") * state.get(kind, (0, 0))[1],
                ]
                spent[kind] = sum(
                    min(share * in_pair + (1 - share) * outside for share in (least, most))
                    for in_pair, outside in zip(
                        beside, (forward[kind], backward[kind]), strict=True
                    )
                )
            best = max(
                best,
                self._pipeline(
                    candidate,
                    counts,
                    spent,
                    forward,
                    backward,
                    usual,
                    layers[usual].uncovered if way == "paired" else 0.0,
                ),
            )
        ranks = candidate.layout.pp
        share = candidate.facts.microbatches / ranks
        compute = sum(
            n * (layers[kind].forward.compute + layers[kind].backward.compute)
            for kind, n in counts.items()
        )
        exchange = sum(
            n * (layers[kind].forward.transfers + layers[kind].backward.transfers)
            for kind, n in counts.items()
        )
        return TrainingBound(
            pipeline_s=best,
            optimizer_s=self._optimizer(candidate),
            compute_s=share * compute,
            exchange_s=share * exchange,
        )

    def _pipeline(
        self,
        candidate: Candidate,
        counts: Mapping[str, int],
        spent: Mapping[str, Seconds],
        forward: Mapping[str, Seconds],
        backward: Mapping[str, Seconds],
        usual: str,
        uncovered: Seconds,
    ) -> Seconds:
        """All micro-batches, from the time that each takes in each kind of layer."""
        gap = self.layers.job.gap.value
        facts, p = candidate.facts, candidate.layout.pp
        m = facts.microbatches
        stages = facts.schedule.stages
        # A chunk's last kernel has no gap after it.
        total = sum(counts[kind] * spent[kind] for kind in counts) - 6 * gap * stages
        # Other layers than the usual ones stand on few stages, whose chunks may begin otherwise.
        others = sum(counts.values()) - counts[usual]
        ends = max(0.0, facts.pairs[0] * stages - 2 * others) * uncovered
        groups = p // facts.schedule.directions
        alike = sum(n for kind, n in counts.items() if spent[kind] >= spent[usual])
        busiest = max(candidate.fullest, -(-alike // groups)) * spent[usual]
        busiest = max(busiest, *spent.values())  # No layer lies on two ranks.
        busiest -= 6 * gap * stages / p
        send, sends = self._blocking(candidate)
        mean = m / p * (total + ends) + max(0.0, m * sends - 2 * p) / p * send
        # A rank at an end of the pipeline sends one way only, and its last send holds up none.
        of_a_rank = max(0, m // facts.schedule.directions - p) * send
        most = m / facts.schedule.directions * busiest + of_a_rank
        if self.layers.job.optimizer.post_validation or stages != p or p == 1:
            return max(mean, most)
        # Kinds whose forward is an unusual share of their time are left out of paths.
        shares = {kind: forward[kind] / (forward[kind] + backward[kind]) for kind in counts}
        name = candidate.layout.schedule
        if name == "gpipe":
            return max(mean, most, of_a_rank + (m + p - 1) / p * total)
        if name == "1f1b":
            path = there_and_back(max(shares.values()), m, p)
            return max(mean, most, of_a_rank + total * max(ends_of_ranks(1.0, m, p), path))
        if name == "1f1b_overlapped":
            passing = min(1.0, *((forward[kind] + backward[kind]) / spent[kind] for kind in counts))
            return max(mean, most, of_a_rank + total * ends_of_ranks(passing, m, p))
        if name in ("zb_h1", "zb_h2"):
            return max(mean, most, of_a_rank + total * ends_of_ranks(min(shares.values()), m, p))
        return max(mean, most)

    def _blocking(self, candidate: Candidate) -> tuple[Seconds, int]:
        """A send that a rank waits for before its next action, and how many of a micro-batch there
        are in all ranks; as if over NVLink, or over NICs that nothing else uses where ranks share
        no NVLink domain."""
        job, parallel, facts = self.layers.job, candidate.parallel, candidate.facts
        if not job.blocking_sends or parallel.pp == 1:
            return 0.0, 0
        shape = candidate.shape
        transfers = self._costs_of(shape, parallel).transfers_
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

    def _beside(self, candidate: Candidate) -> tuple[bool, bool]:
        """Whether state is gathered, and reduced, while other layers compute."""
        return candidate.sharding.gathers_ahead, candidate.sharding.reduces_beside

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

    def _held(self, candidate: Candidate) -> dict[str, HeldParameters]:
        """{layer kind: parameters on a GPU}"""
        shape, parallel = candidate.shape, candidate.parallel
        key = ("held", shape.tp, shape.etp, parallel.local_experts)
        if key not in self._made:
            operators = self.layers.operators(shape, parallel)
            self._made[key] = {
                kind: layer_parameters(
                    self.layers.scenario.model,
                    kind,
                    operators(kind, FORWARD),
                    local_experts=parallel.local_experts,
                    split=self.layers.trace(shape).split,
                )
                for kind in dict.fromkeys(self.layers.layers)
            }
        found = self._made[key]
        assert isinstance(found, dict)
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
            transfers = self._costs_of(candidate.shape, candidate.parallel).transfers_
            held = self._held(candidate)
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
            held = self._held(candidate)
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
        types = sharding.types
        gradient = type_bytes(types.gradients)
        updated = sharding.updated(whole).count
        offloaded = types.offload == "cpu"
        traffic = updated * (gradient + (0 if offloaded else gradient + BF16_BYTES))
        traffic += 2 * sharding.optimizer_bytes(whole)
        traffic += gradient * (whole.every.count if sharding.zero < 2 else updated)
        return traffic / self.layers.scenario.cluster.node.gpu.hbm_bandwidth

    def _collectives(
        self, candidate: Candidate, rings: Rings, sharding: Sharding, whole: HeldParameters
    ) -> Seconds:
        """Reduction and gather beside nothing, without what their latencies are."""
        transfers = self._costs_of(candidate.shape, candidate.parallel).transfers_
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


def ends_of_ranks(passing: float, m: int, p: int) -> float:
    """What a pipeline takes over one micro-batch of all layers, if `passing` of a layer's time is
    on the way to a rank and from it."""
    if passing <= 0:
        return m / p
    return passing / (1 - (1 - passing / m) ** p)


def there_and_back(forward: float, m: int, p: int) -> float:
    """What a 1F1B pipeline takes over one micro-batch of all layers, by the paths down to the last
    rank and back, `forward` being the forward's share of a layer's time; 0 where m is too few."""
    if m < p or m - 1 <= (p - 1) * forward:
        return 0.0
    return 1 + 1 / sum(1 / (m - 1 - s * forward) for s in range(p))
