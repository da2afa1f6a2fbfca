"""What the layers of many layouts take at least, all predicted together.

An operator takes no less than the kernel model predicts for it, the least of the conditions in
which a chunk may launch it (all SMs; those that communication leaves, beside an all-to-all or not).
Dispatch and combine take no less than with links and NICs that nothing else uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference_model.trace import ALL_TO_ALL_KINDS, COLLECTIVE_KINDS, Operator
from simulator.analysis.plan.layer_seconds import (
    Times,
    WorkSeconds,
    backward_seconds,
    forward_seconds,
    segments,
)
from simulator.analysis.plan.pair_seconds import (
    PairSeconds,
    other_pair_seconds,
    pair_seconds,
)
from simulator.analysis.plan.training_candidates import (
    LayerFacts,
    LayerShape,
    LikeShapes,
)
from simulator.execution.training_chunks import with_collectives
from simulator.execution.training_fabric import collective_groups
from simulator.hardware.costs import COST_MODELS, KernelCostModel
from simulator.hardware.kernels.families import Family, family_of
from simulator.hardware.network.fabric_load import NO_LIMIT
from simulator.hardware.network.groups import Domains
from simulator.hardware.network.transfers import exchange_sms
from simulator.hardware.power_state import rows_for
from simulator.scenario.files import by_name
from simulator.workload.chunk import (
    FORWARD,
    INPUT_GRAD,
    RECOMPUTE,
    WEIGHT_GRAD,
)
from simulator.workload.layout import ParallelLayout

PHASES = (FORWARD, RECOMPUTE, INPUT_GRAD, WEIGHT_GRAD)
EXCHANGES = ALL_TO_ALL_KINDS | COLLECTIVE_KINDS

ALONE, PAIRED, BOTH = range(3)
"""Conditions of an operator: the least that any chunk takes for it, any pair, and a slot of a pair
whose two layers exchange tokens."""


@dataclass(frozen=True, slots=True)
class LayerSeconds:
    """Forward, backward and pairs of one kind of layers; arrays of shapes."""

    forward: WorkSeconds
    backward: WorkSeconds
    pair: PairSeconds


@dataclass(frozen=True)
class LayerPrices:
    """Times of layers of one scenario, which share kernels and transfers."""

    facts: LayerFacts
    _made: dict[object, KernelCostModel] = field(default_factory=dict, repr=False)
    _groups: dict[ParallelLayout, Mapping[str, Domains]] = field(default_factory=dict, repr=False)

    @cached_property
    def costs(self) -> KernelCostModel:
        """Kernel times; transfers are those of one GPU."""
        scenario = self.facts.scenario
        model = by_name(COST_MODELS, scenario.file.cost_model, "cost_model")
        return model(
            cluster=scenario.cluster,
            calibration=scenario.calibration,
            expert_parallel_ranks=1,
            sustained_job=True,
        ).fit(rows_for(scenario.calibration, "train_microbatch"))

    def of(
        self, shapes: Mapping[LayerShape, ParallelLayout], kinds: Sequence[str]
    ) -> dict[str, LayerSeconds]:
        """{layer kind: seconds of all shapes in their order}"""
        groups = self.facts.stacked(shapes)
        sections = {
            (place, kind, phase): list(group.operators(kind, phase))
            for place, group in enumerate(groups)
            for kind in kinds
            for phase in PHASES
        }
        seconds = self._kernels(groups, sections)
        for place, group in enumerate(groups):
            self._exchanges(place, group, shapes, sections, seconds)
        gap = self.facts.job.gap.value
        order = {shape: place for place, shape in enumerate(shapes)}
        places = [order[shape] for group in groups for shape in group.shapes]
        in_order = np.argsort(places)
        found = {}
        for kind in kinds:
            bounds = []
            for place in range(len(groups)):
                alone, paired, both = (
                    {
                        phase: segments(
                            sections[place, kind, phase],
                            seconds[place, kind, phase][condition],
                            gap,
                        )
                        for phase in PHASES
                    }
                    for condition in (ALONE, PAIRED, BOTH)
                )
                bounds.append(
                    LayerSeconds(
                        forward_seconds(alone),
                        backward_seconds(alone),
                        pair_seconds(paired, both)
                        if kind == self.facts.usual[0]
                        else other_pair_seconds(paired),
                    )
                )
            found[kind] = _joined(bounds, in_order)
        return found

    def _kernels(
        self,
        groups: Sequence[LikeShapes],
        sections: Mapping[tuple[int, str, str], Sequence[Operator]],
    ) -> dict[tuple[int, str, str], Times]:
        """{(group, layer kind, phase): [conditions, operators, shapes]}, zero of exchanges; the
        kernels of one family are predicted together."""
        found = {
            key: np.zeros((3, len(own), len(groups[key[0]].shapes)))
            for key, own in sections.items()
        }
        families: dict[Family, list[tuple[tuple[int, str, str], int]]] = {}
        for key, own in sections.items():
            for number, operator in enumerate(own):
                if operator.kind not in EXCHANGES:
                    families.setdefault(family_of(operator), []).append((key, number))
        gpu, kept = self.facts.scenario.cluster.node.gpu, self.facts.job.communication_sms
        for (kind, dtype, out_dtype, accumulate), places in families.items():
            widths = [len(groups[key[0]].shapes) for key, _ in places]
            names = [name for name, _ in sections[places[0][0]][places[0][1]].sizes]
            sizes = {
                name: np.concatenate(
                    [
                        np.broadcast_to(np.asarray(sections[key][number][name]), (width,))
                        for (key, number), width in zip(places, widths, strict=True)
                    ]
                ).astype(np.int64)
                for name in names
            }
            free, left, beside = (
                self.costs.predict_sizes(
                    kind,
                    sizes,
                    dtype=dtype,
                    out_dtype=out_dtype,
                    accumulate=accumulate,
                    sms=sms,
                    overlapped=overlapped,
                ).seconds
                for sms, overlapped in (
                    (gpu.sms, False),
                    (gpu.sms - kept, False),
                    (gpu.sms - kept, True),
                )
            )
            paired = np.minimum(left, beside)
            times = np.stack([np.minimum(free, paired), paired, beside])
            ends = np.cumsum(widths)
            for (key, number), width, end in zip(places, widths, ends, strict=True):
                part = slice(end - width, end)
                found[key][:, number] = times[:, part]
                if key[2] == RECOMPUTE:
                    # Nothing of the other chunk is beside what is computed again.
                    found[key][BOTH, number] = left[part]
        # A GPU that holds every expert exchanges no tokens.
        for (place, _, _), seconds in found.items():
            lone = np.array([shape.ep == 1 for shape in groups[place].shapes])
            seconds[BOTH] = np.where(lone, seconds[PAIRED], seconds[BOTH])
        return found

    def _exchanges(
        self,
        place: int,
        group: LikeShapes,
        shapes: Mapping[LayerShape, ParallelLayout],
        sections: Mapping[tuple[int, str, str], Sequence[Operator]],
        seconds: Mapping[tuple[int, str, str], Times],
    ) -> None:
        """Fill in the times of transfers and collectives."""
        own = [
            (key, number, operator)
            for key, operators in sections.items()
            if key[0] == place
            for number, operator in enumerate(operators)
            if operator.kind in EXCHANGES
        ]
        kept = self.facts.job.communication_sms
        for at, shape in enumerate(group.shapes):
            costs = self.costs_of(shape, shapes[shape])
            operators = [_one_of(operator, at) for _, _, operator in own]
            sms = [
                exchange_sms(o.kind, kept=kept, free=costs.cluster.node.gpu.sms) for o in operators
            ]
            apart, beside = (
                with_collectives(
                    costs.predict(operators, sms=sms, overlapped=overlapped, load=NO_LIMIT),
                    operators,
                    costs,
                ).seconds
                for overlapped in (False, True)
            )
            least = np.minimum(apart, beside)
            for found, (key, number, _) in enumerate(own):
                both = apart if key[2] == RECOMPUTE else beside
                seconds[key][:, number, at] = least[found], least[found], both[found]

    def costs_of(self, shape: LayerShape, parallel: ParallelLayout) -> KernelCostModel:
        """Kernel times with the transfers of a layout."""
        if parallel not in self._groups:
            self._groups[parallel] = collective_groups(parallel)
        sharing = self._groups[parallel]
        key = (shape.ep, shape.parts, tuple(sorted(sharing.items())))
        if key not in self._made:
            self._made[key] = self.costs.of_group(
                shape.ep, sharing=sharing, reach=self.facts.reach(shape.parts)
            )
        return self._made[key]


def _joined(parts: Sequence[LayerSeconds], order: NDArray[np.int64]) -> LayerSeconds:
    """Bounds of groups of shapes one after the other, put in order."""

    def join(name: str, kind: type[Any]) -> Any:
        every = [getattr(part, name) for part in parts]
        return kind(
            *(
                np.concatenate([getattr(each, column.name) for each in every], axis=-1)[..., order]
                for column in fields(kind)
            )
        )

    return LayerSeconds(
        join("forward", WorkSeconds), join("backward", WorkSeconds), join("pair", PairSeconds)
    )


def _one_of(operator: Operator, place: int) -> Operator:
    """One of many operators in columns."""
    sizes = ((name, np.asarray(column)) for name, column in operator.sizes)
    return replace(
        operator,
        sizes=tuple((name, int(each if each.ndim == 0 else each[place])) for name, each in sizes),
    )
