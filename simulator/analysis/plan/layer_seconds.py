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
from typing import TypeAlias

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
class WorkSeconds:
    """One work of one layer on one micro-batch, at least, by each of the ways to bound it."""

    compute: Seconds
    """Its kernels and the gaps after them."""
    transfers: Seconds
    """Dispatch, combine, and what gathers or reduces its state."""
    chain: Seconds
    """Of a chunk that runs alone."""
    with_combine: Seconds
    """The same, backward with combine(B) in the place of attention's weight gradients."""
    paired: Seconds
    """Its kernels beside another chunk."""


@dataclass(frozen=True, slots=True)
class LayerSeconds:
    """Forward and backward of one layer."""

    forward: WorkSeconds
    backward: WorkSeconds
    uncovered: Seconds
    """Of a pair that begins with its combine(B) and ends with its combine(F): what the kernels do
    not cover that run beside the two."""


Own: TypeAlias = Mapping[str, tuple[list[Operator], Times, Times]]
"""{phase: (operators, their seconds alone, and in a pair)}"""


def _sums(
    operators: Sequence[Operator], seconds: Times, gap: Seconds
) -> tuple[dict[str, Seconds], Seconds, Seconds]:
    """{segment: from the begin of its first kernel to the end of its last}, all kernels with a gap
    after each, and all transfers."""
    of = {id(operator): float(time) for operator, time in zip(operators, seconds, strict=True)}
    parts = segments_of(operators)
    found = {
        name: sum(of[id(o)] for o in own) + gap * max(0, len(own) - 1) * (name in (ATTENTION, MLP))
        for name, own in parts.items()
    }
    kernels = [*parts[ATTENTION], *parts[MLP]]
    transfers = [*parts[DISPATCH], *parts[COMBINE]]
    return (
        found,
        sum(of[id(o)] for o in kernels) + gap * len(kernels),
        sum(of[id(o)] for o in transfers),
    )


def forward_seconds(own: Own, gap: Seconds) -> WorkSeconds:
    operators, alone, paired = own[FORWARD]
    parts, compute, transfers = _sums(operators, alone, gap)
    mlp = segments_of(operators)[MLP]
    shared = routed_start(mlp) if parts[DISPATCH] else 0
    of = {id(operator): float(time) for operator, time in zip(operators, alone, strict=True)}
    before = sum(of[id(o)] for o in mlp[:shared]) + gap * max(0, shared - 1)
    after = sum(of[id(o)] for o in mlp[shared:]) + gap * max(0, len(mlp) - shared - 1)
    chain = parts[ATTENTION] + max(parts[DISPATCH], before) + after + parts[COMBINE]
    return WorkSeconds(compute, transfers, chain, chain, _sums(operators, paired, gap)[1])


def uncovered_seconds(own: Own, gap: Seconds) -> Seconds:
    ahead, back, late = (
        _sums(own[phase][0], own[phase][2], gap)[0] for phase in (FORWARD, INPUT_GRAD, WEIGHT_GRAD)
    )
    begins = max(0.0, back[COMBINE] - ahead[ATTENTION])
    return begins + max(0.0, ahead[COMBINE] - back[ATTENTION] - late[ATTENTION])


def backward_seconds(own: Own, gap: Seconds) -> WorkSeconds:
    again, again_compute, again_transfers = _sums(*own[RECOMPUTE][:2], gap)
    back, back_compute, back_transfers = _sums(*own[INPUT_GRAD][:2], gap)
    late, late_compute, _ = _sums(*own[WEIGHT_GRAD][:2], gap)
    compute = again_compute + back_compute + late_compute
    repeated = again[ATTENTION] + again[DISPATCH] + again[MLP]
    chain = repeated + back[MLP] + max(back[DISPATCH], late[MLP]) + back[ATTENTION]
    paired = sum(
        _sums(operators, in_pair, gap)[1]
        for operators, _, in_pair in (own[RECOMPUTE], own[INPUT_GRAD], own[WEIGHT_GRAD])
    )
    transfers = again_transfers + back_transfers
    return WorkSeconds(compute, transfers, chain + late[ATTENTION], chain + back[COMBINE], paired)
