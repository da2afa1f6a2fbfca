"""Lower bounds of a pipeline, whatever the split of the layers, for many layouts at once.

Every array has the layouts as its last axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Seconds
from simulator.analysis.plan.pair_seconds import PairSeconds
from simulator.analysis.plan.schedule_facts import ScheduleFacts

Times = NDArray[np.float64]


def pipeline_seconds(
    forward: Times,
    backward: Times,
    pair: PairSeconds,
    facts: Sequence[ScheduleFacts],
    *,
    fullest: Times,
    send: Times,
    sends: Times,
    counts: Sequence[int],
    usual: int,
    gap: Seconds,
    staggered: bool,
) -> Times:
    """All micro-batches, at least; [layouts].

    Args:
        forward, backward: [kinds, layouts], what a layer takes of a micro-batch outside pairs.
        pair: forward and backward of every kind, [ways, kinds, layouts]; what is beyond, of the
            usual kind.
        facts: of the schedule of each layout.
        fullest: of the usual layers, as many as the rank with most holds at least; [layouts].
        send: a send that a rank waits for before its next action; [layouts].
        sends: how many of a micro-batch there are in all ranks; [layouts].
        counts: [kinds], layers of each.
        usual: which kind most layers are of.
        gap: between two kernels.
        staggered: whether ranks begin the next step before all have ended this one.
    """
    p, stages, directions = (
        np.array([getattr(each.schedule, name) for each in facts], dtype=np.float64)
        for name in ("ranks", "stages", "directions")
    )
    names = np.array([each.schedule.name for each in facts])
    m = np.array([each.microbatches for each in facts])
    least, most_paired = np.array([each.pairs for each in facts]).T
    counts_ = np.array(counts, dtype=np.float64)[:, None]
    others = float(sum(counts) - counts[usual])
    shares = forward / (forward + backward)
    # A rank at an end of the pipeline sends one way only, and its last send holds up none.
    of_a_rank = np.maximum(0, m // directions - p) * send
    blocking = np.maximum(0.0, m * sends - 2 * p) / p * send
    one_each = (stages == p) & (p > 1) & (not staggered)
    best = np.zeros(len(p))
    for pair_forward, pair_backward, more, ends in zip(
        pair.forward, pair.backward, pair.more, pair.ends, strict=True
    ):
        spent = sum(
            np.minimum(
                least * in_pair + (1 - least) * outside,
                most_paired * in_pair + (1 - most_paired) * outside,
            )
            for in_pair, outside in ((pair_forward, forward), (pair_backward, backward))
        )
        # Other layers may be the partners of as many of the usual ones.
        shared = least * more
        # A chunk's last kernel has no gap after it.
        total = (counts_ * spent).sum(axis=0) - 6 * gap * stages
        total = total + max(0.0, counts[usual] - others) * shared
        # Other layers stand on few stages, whose chunks may begin otherwise.
        of_ends = np.maximum(0.0, least * stages - 2 * others) * ends
        alike = (counts_ * (spent >= spent[usual])).sum(axis=0)
        held = np.maximum(fullest, np.ceil(alike / (p // directions)))
        busiest = held * spent[usual] + np.maximum(0.0, held - others) * shared
        busiest = np.maximum(busiest, spent.max(axis=0))  # No layer lies on two ranks.
        busiest = busiest - 6 * gap * stages / p
        mean = m / p * (total + of_ends) + blocking
        most = m / directions * busiest + of_a_rank
        spent[usual] += shared
        passes = np.minimum(1.0, ((forward + backward) / spent).min(axis=0))
        factor = _bubbles(names, shares, passes, m, p) * one_each
        best = np.maximum.reduce([best, mean, most, (of_a_rank + total * factor) * one_each])
    return best


def _bubbles(names: NDArray[np.str_], shares: Times, passes: Times, m: Times, p: Times) -> Times:
    """What a pipeline with one stage on each rank takes over one micro-batch of all layers; 0 where
    nothing is known of its schedule.

    Args:
        shares: [kinds, layouts], of a layer's time forward.
        passes: of a layer's time, what passes the ranks before outside pairs.
    """
    found = np.zeros(len(p))
    found = np.where(names == "gpipe", (m + p - 1) / p, found)
    found = np.where(names == "1f1b_overlapped", ends_of_ranks(passes, m, p), found)
    deferring = (names == "zb_h1") | (names == "zb_h2")
    found = np.where(deferring, ends_of_ranks(shares.min(axis=0), m, p), found)
    plain = names == "1f1b"
    found = np.where(plain, ends_of_ranks(np.ones(len(p)), m, p), found)
    # Kinds whose forward is an unusual share of their time are left out of paths.
    most_forward = shares.max(axis=0)
    for place in np.flatnonzero(plain):
        there = there_and_back(float(most_forward[place]), int(m[place]), int(p[place]))
        found[place] = max(found[place], there)
    return found


def ends_of_ranks(passing: Times, m: Times, p: Times) -> Times:
    """What a pipeline takes over one micro-batch of all layers, if `passing` of a layer's time is
    on the way to a rank and from it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = passing / (1 - (1 - passing / m) ** p)
    return np.where(passing <= 0, m / p, found)


def there_and_back(forward: float, m: int, p: int) -> float:
    """What a 1F1B pipeline takes over one micro-batch of all layers, by the paths down to the last
    rank and back, `forward` being the forward's share of a layer's time; 0 where m is too few."""
    if m < p or m - 1 <= (p - 1) * forward:
        return 0.0
    return 1 + 1 / sum(1 / (m - 1 - s * forward) for s in range(p))
