"""Max-min fair rates of flows that share resources.

A rate vector is max-min fair when no flow can go faster without slowing one that is no faster than
itself: every flow crosses a saturated resource on which nobody is faster. Progressive filling finds
it: raise all rates together, freeze the flows of the resource that saturates first, go on with the
rest (Bertsekas and Gallager, Data Networks, section 6.5). Nothing here knows of networks or time.

What makes it fast in numpy:

- all resources that saturate at one level are frozen in one round, so symmetric traffic takes as
  many rounds as it has distinct rates, however many flows there are;
- resources that share no flow, not even through others, form components, and each component freezes
  its own lowest level in the same round;
- flows are looked up by resource, so a solve touches each flow once.
"""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.integer[Any]]
Indices: TypeAlias = npt.NDArray[np.int32]

TIE = 1e-9
"""Relative distance under which two levels of filling are one."""

_ROUNDS_BEFORE_COMPONENTS = 3
"""Symmetric traffic is done by then and never pays for finding components."""


@dataclass(slots=True)
class Incidence:
    """Which flow crosses which resource, with look-ups that are built when first needed."""

    paths: Indices
    """[flows, hops], resource numbers; ``resources`` itself stands for "none"."""
    resources: int
    _by_resource: tuple[Integers, Indices] | None = field(default=None, repr=False)
    _components: tuple[Integers, Integers, Integers] | None = field(default=None, repr=False)

    def by_resource(self) -> tuple[Integers, Indices]:
        """Return (start [resources + 2], flows); r has flows[start[r]:start[r + 1]]."""
        if self._by_resource is None:
            flat = self.paths.ravel()
            order = np.argsort(flat, kind="stable")
            start = np.zeros(self.resources + 2, dtype=np.int64)
            np.cumsum(np.bincount(flat, minlength=self.resources + 1), out=start[1:])
            self._by_resource = start, (order // self.paths.shape[1]).astype(np.int32)
        return self._by_resource

    def components(self) -> tuple[Integers, Integers, Integers]:
        """Return (component of each resource, resources in component order, first of each)."""
        if self._components is None:
            label = _connected(self.paths, self.resources)
            _, component = np.unique(label, return_inverse=True)
            order = np.argsort(component, kind="stable")
            starts = np.flatnonzero(np.diff(component[order], prepend=-1))
            self._components = component, order, starts
        return self._components

    def load(self, multiplicity: Floats, flows: Integers | None = None) -> Floats:
        """Return how many flows cross each resource, [resources + 1], of ``flows`` or of all."""
        paths, weights = self.paths, multiplicity
        if flows is not None:
            paths, weights = paths[flows], weights[flows]
        total = np.zeros(self.resources + 1)
        for hop in paths.T:
            total += np.bincount(hop, weights=weights, minlength=self.resources + 1)
        total[self.resources] = 0.0
        return total


def max_min_rates(
    paths: npt.NDArray[np.integer], capacity: Floats, *, multiplicity: Floats | None = None
) -> Floats:
    """Return the max-min fair rate of each flow.

    Parameters
    ----------
    paths: [flows, hops], resources that each flow crosses, -1 where it has fewer. Each at most
        once a flow.
    capacity: [resources], in any unit per second.
    multiplicity: [flows], identical flows that a row stands for; one each by default.

    Returns rates [flows] of one of the identical flows, in the unit of ``capacity``; infinite for a
    flow that crosses nothing.
    """
    resources = len(capacity)
    padded = np.where(paths < 0, resources, paths).astype(np.int32)
    count = np.ones(len(paths)) if multiplicity is None else multiplicity
    incidence = Incidence(padded, resources)
    return fill(incidence, capacity, count, load=incidence.load(count))


def fill(
    incidence: Incidence,
    capacity: Floats,
    multiplicity: Floats,
    *,
    load: Floats,
    active: npt.NDArray[np.bool_] | None = None,
    joint: Integers | None = None,
) -> Floats:
    """Progressive filling over the ``active`` flows, which put ``load`` on the resources.

    ``load`` is [resources + 1] as ``Incidence.load`` counts it. Rates of other flows are zero.
    Flows of one number in ``joint`` [flows] have one rate, that of the slowest; they must share a
    resource, which may be without a limit.
    """
    paths, resources = incidence.paths, incidence.resources
    todo = np.ones(len(paths), dtype=bool) if active is None else active.copy()
    left = int(np.count_nonzero(todo))
    rates = np.zeros(len(paths))
    spare = np.append(capacity, np.inf)
    load = load.copy()
    seen = np.empty(len(paths), dtype=np.int64)
    level = np.full(resources + 1, np.inf)
    # Less than this on a resource is what rounding leaves of flows that have their rates.
    least = 0.5 if joint is None else load * TIE
    rounds = 0
    while left:
        level.fill(np.inf)
        np.divide(spare, load, out=level, where=load > least)
        if rounds < _ROUNDS_BEFORE_COMPONENTS:
            limit: Floats | np.float64 = level.min()
        else:
            component, order, starts = incidence.components()
            limit = (
                np.append(np.minimum.reduceat(level[order], starts)[component], np.inf)
                if resources
                else np.float64(np.inf)
            )
        full = np.flatnonzero((level <= limit * (1 + TIE)) & (level < np.inf))
        if not len(full):
            rates[todo] = np.inf
            return rates
        level_of_full = np.full(resources + 1, np.inf)
        level_of_full[full] = level[full]
        flows = _flows_crossing(incidence, full, todo, seen, crowd=load[full].sum(), left=left)
        crossed = paths if len(flows) == len(paths) else paths[flows]
        rate = level_of_full[crossed[:, 0]]
        for hop in crossed.T[1:]:
            np.minimum(rate, level_of_full[hop], out=rate)
        if joint is not None:
            flows, rate = _with_joint(joint, flows, rate, todo)
            crossed = paths[flows]
        left -= len(flows)
        if len(flows) == len(paths):
            return rate
        rates[flows] = rate
        if not left:
            break
        todo[flows] = False
        count = multiplicity[flows]
        if len(flows) > resources:
            for hop in crossed.T:
                spare -= np.bincount(hop, rate * count, minlength=resources + 1)
                load -= np.bincount(hop, count, minlength=resources + 1)
        else:
            hops = crossed.shape[1]
            np.subtract.at(spare, crossed.ravel(), np.repeat(rate * count, hops))
            np.subtract.at(load, crossed.ravel(), np.repeat(count, hops))
        spare[resources], load[resources] = np.inf, 0.0
        np.maximum(spare, 0.0, out=spare)
        rounds += 1
    return rates


def _with_joint(
    joint: Integers, flows: Integers, rate: Floats, todo: npt.NDArray[np.bool_]
) -> tuple[Integers, Floats]:
    """The flows and all of ``todo`` that have one rate with any of them, and their rates."""
    lowest = np.full(int(joint.max()) + 1, np.inf)
    np.minimum.at(lowest, joint[flows], rate)
    together = np.flatnonzero(todo & (lowest[joint] < np.inf))
    return together, lowest[joint[together]]


def _flows_crossing(
    incidence: Incidence,
    full: Integers,
    todo: npt.NDArray[np.bool_],
    seen: Integers,
    *,
    crowd: float,
    left: int,
) -> Integers:
    """Flows of ``todo`` that cross any resource of ``full``, each once."""
    if crowd * 4 > left:
        is_full = np.zeros(incidence.resources + 1, dtype=bool)
        is_full[full] = True
        hit = np.zeros(len(todo), dtype=bool)
        for hop in incidence.paths.T:
            hit |= is_full[hop]
        hit &= todo
        return np.flatnonzero(hit)
    start, flows_of = incidence.by_resource()
    first, lengths = start[full], start[full + 1] - start[full]
    ends = np.cumsum(lengths)
    found = flows_of[np.arange(ends[-1]) + np.repeat(first - ends + lengths, lengths)]
    found = found[todo[found]]
    # A flow on two full resources is found twice: keep the place that was written last.
    places = np.arange(len(found))
    seen[found] = places
    return np.asarray(found[seen[found] == places], dtype=np.int64)


def _connected(paths: Indices, resources: int) -> Integers:
    """Label resources: the same where flows join them, directly or through others."""
    label = np.arange(resources + 1)
    while True:
        label[resources] = resources  # "none" joins nothing
        lowest = label[paths].min(axis=1)
        following = label.copy()
        for hop in range(paths.shape[1]):
            np.minimum.at(following, paths[:, hop], lowest)
        following[resources] = resources
        following = following[following]  # jump: labels are resources of the same component
        if np.array_equal(following, label):
            return label[:resources]
        label = following
