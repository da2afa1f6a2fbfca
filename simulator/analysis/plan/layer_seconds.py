"""What one layer of a chunk takes at least, from the times of its operators.

A chunk takes no less than its kernels, nor than its transfers. Outside pairs a layer is a chain as
well: attention, dispatch (or the shared expert, if that is longer), routed experts, combine
forward; backward the experts' input gradients, dispatch (or the experts' weight gradients),
attention's input and weight gradients; and likewise with combine in the place of the last. All of
these are sums over layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Seconds
from reference_model.trace import Operator
from simulator.workload.chunk import (
    ATTENTION,
    COMBINE,
    DISPATCH,
    FORWARD,
    INPUT_GRAD,
    MLP,
    RECOMPUTE,
    WEIGHT_GRAD,
    routed_start,
    segments_of,
)

Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Segments:
    """One phase of one layer by its segments, each from the begin of its first kernel to the end of
    its last; [layouts]."""

    attention: Times
    dispatch: Times
    shared: Times
    """Of mlp, what needs the rank's own tokens alone."""
    routed: Times
    mlp: Times
    combine: Times
    compute: Times
    """All kernels, with a gap after each."""

    @property
    def transfers(self) -> Times:
        return self.dispatch + self.combine


def segments(operators: Sequence[Operator], seconds: Times, gap: Seconds) -> Segments:
    """The segments of a phase.

    Args:
        seconds: [operators, layouts].
        gap: between two kernels.
    """
    place = {id(operator): number for number, operator in enumerate(operators)}
    parts = segments_of(operators)
    own = routed_start(parts[MLP]) if parts[DISPATCH] else 0

    def of(chosen: Sequence[Operator], each: Seconds) -> Times:
        found: Times = seconds[[place[id(operator)] for operator in chosen]].sum(axis=0)
        return found + each * max(0, len(chosen) - 1)

    kernels = [*parts[ATTENTION], *parts[MLP]]
    return Segments(
        attention=of(parts[ATTENTION], gap),
        dispatch=of(parts[DISPATCH], 0.0),
        shared=of(parts[MLP][:own], gap),
        routed=of(parts[MLP][own:], gap),
        mlp=of(parts[MLP], gap),
        combine=of(parts[COMBINE], 0.0),
        compute=of(kernels, 0.0) + gap * len(kernels),
    )


Phases = Mapping[str, Segments]
"""{phase: its segments}, of one layer."""


@dataclass(frozen=True, slots=True)
class WorkSeconds:
    """One work of one layer on one micro-batch, at least, by each of the ways to bound it where it
    runs alone; [layouts]."""

    compute: Times
    """Its kernels and the gaps after them."""
    transfers: Times
    """Dispatch and combine."""
    chain: Times
    """One after the other."""
    with_combine: Times
    """The same, backward with combine(B) in the place of attention's weight gradients."""


def forward_seconds(alone: Phases) -> WorkSeconds:
    own = alone[FORWARD]
    chain = own.attention + np.maximum(own.dispatch, own.shared) + own.routed + own.combine
    return WorkSeconds(own.compute, own.transfers, chain, chain)


def backward_seconds(alone: Phases) -> WorkSeconds:
    again, back, late = alone[RECOMPUTE], alone[INPUT_GRAD], alone[WEIGHT_GRAD]
    repeated = again.attention + again.dispatch + again.mlp
    chain = repeated + back.mlp + np.maximum(back.dispatch, late.mlp) + back.attention
    return WorkSeconds(
        again.compute + back.compute + late.compute,
        again.transfers + back.transfers,
        chain + late.attention,
        chain + back.combine,
    )
