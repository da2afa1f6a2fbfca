"""Draws from what calibration and inputs leave unexplained.

Each sample draws one standard normal number a kernel family, since a family's error is one error:
all its kernels move together, in every chunk of a training step and every layer of a serving step.
Where a kernel is extrapolated or modelled, a share of the variance (common_share of the
calibration) is drawn once for all of them, since clocks, power and software versions of another
table are common to its kernels. A kernel's time is scaled by exp(z w), w the logarithm of the end
of its interval over its value, for positive and negative z each. What times have in common
(common_errors.py: device, clocks, power) moves all kernels as one, measured ones too. The parts of
an all-to-all, which one profile or table tells, err together.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.estimates import TimeEstimate
from reference_model.trace import ALL_TO_ALL_KINDS
from simulator.hardware.prediction import EXTRAPOLATED, NORMAL_80, Prediction

Array = NDArray[np.float64]

SAMPLES = 256
TAIL = 0.1
"""Share of the samples beyond either end of an 80% interval."""


class Draws:
    """Standard normal numbers of a run: [samples] for each family, drawn when first asked for."""

    def __init__(
        self, rng: np.random.Generator, *, common_share: float, samples: int = SAMPLES
    ) -> None:
        """Store the generator; the order in which families are asked for is part of the seed.

        Args:
            common_share: of the variance of extrapolated kernels, what is common to all of them.
        """
        self._rng = rng
        self.common_share = common_share
        self._samples = samples
        self.common = rng.standard_normal(samples)
        self.gap = rng.standard_normal(samples)
        self.host = rng.standard_normal(samples)
        self.device = rng.standard_normal(samples)
        self._families: dict[Hashable, Array] = {}

    def of(self, family: Hashable) -> Array:
        """The family's own numbers; the same for all parts of an all-to-all."""
        kind = family[0] if isinstance(family, tuple) else family
        family = "all_to_all" if kind in ALL_TO_ALL_KINDS else family
        if family not in self._families:
            self._families[family] = self._rng.standard_normal(self._samples)
        return self._families[family]


def scaled_seconds(times: Prediction, draws: Draws) -> Array:
    """[times, samples] seconds moved within their intervals, each family together."""
    # Layers that are alike have the same times, which are moved once.
    alike: dict[tuple[object, ...], int] = {}
    columns = (times.seconds, times.low, times.high, times.provenance, *times.common)
    rows = zip(times.family, *(column.tolist() for column in columns), strict=True)
    places = [alike.setdefault(row, len(alike)) for row in rows]
    if len(alike) < len(places):
        firsts = dict(zip(reversed(places), range(len(places) - 1, -1, -1), strict=True))
        return scaled_seconds(times.at([firsts[n] for n in range(len(firsts))]), draws)[places]
    # A stage without layers has no times.
    own = np.array([draws.of(family) for family in times.family])
    own = own.reshape(len(times.family), len(draws.common))
    share = draws.common_share
    shared = np.sqrt(share) * draws.common + np.sqrt(1 - share) * own
    beyond = times.provenance >= EXTRAPOLATED
    normal = np.where(beyond[:, None], shared, own) / NORMAL_80
    least = np.finfo(np.float64).tiny
    value = np.maximum(times.seconds, least)
    up = np.log(np.maximum(times.high, value) / value)[:, None]
    down = np.log(value / np.clip(times.low, least, value))[:, None]
    scaled: Array = times.seconds[:, None] * np.exp(normal * np.where(normal > 0, up, down))
    device = draws.device / NORMAL_80
    scaled *= np.exp(
        device * np.where(device > 0, times.common[1, :, None], times.common[0, :, None])
    )
    return scaled


def estimated(estimate: TimeEstimate, draw: Array) -> Array:
    """[samples] of an input with an interval, not below zero."""
    normal = draw / NORMAL_80
    ends = np.where(normal > 0, estimate.high - estimate.value, estimate.value - estimate.low)
    found: Array = np.maximum(estimate.value + normal * ends, 0.0)
    return found


BINS = 8
"""Groups of equally many draws by the value of one input."""


def variance_shares(inputs: Mapping[str, Array], outcome: Array) -> dict[str, float]:
    """Share of the variance of the logarithm of an outcome that each input explains by itself.

    The squared correlation ratio: the variance between the means of draws with similar values of
    the input over all of it, less what as many groups of draws would show by chance.

    Args:
        inputs: [draws] each.
        outcome: [draws], above zero.
    """
    logs = np.log(outcome)
    draws, total = len(logs), float(logs.var())
    if total == 0.0:
        return dict.fromkeys(inputs, 0.0)
    shares = {}
    for name, values in inputs.items():
        groups = [logs[chosen] for chosen in np.array_split(np.argsort(values), BINS)]
        within = sum(float(group.var()) * len(group) for group in groups) / (draws - BINS)
        shares[name] = max(0.0, 1.0 - within * (draws - 1) / draws / total)
    return shares


class Ends(Protocol):
    """An input with a low and a high end."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def drawn(prior: Ends, normal: Array) -> Array:
    """[samples] of a prior whose value is its median, low and high its 10th and 90th percentile.

    The logarithm is normal on either side where the low end is above zero, else the value itself,
    not below zero (docs/priors.md).

    Args:
        normal: [samples], standard normal.
    """
    ends = normal / NORMAL_80
    if prior.low > 0.0:
        above, below = prior.high / prior.value, prior.value / prior.low
        found: Array = prior.value * np.where(ends > 0, above, below) ** ends
        return found
    distance = np.where(ends > 0, prior.high - prior.value, prior.value)
    return np.asarray(np.maximum(prior.value + ends * distance, 0.0))


def interval(samples: Array, *, value: float) -> list[float]:
    """Low and high end of the central 80% of the samples, widened to hold the value itself."""
    low, high = ends(samples)
    return [min(low, value), max(high, value)]


def ends(samples: Array) -> list[float]:
    """Low and high end of the central 80% of the samples, linear between two of them.

    As `np.quantile` says, which would import numpy's masked arrays for it.
    """
    ordered = np.sort(samples).tolist()
    found = []
    for share in (TAIL, 1 - TAIL):
        below, part = divmod(share * (len(ordered) - 1), 1.0)
        low, high = ordered[int(below)], ordered[min(int(below) + 1, len(ordered) - 1)]
        found.append(low + part * (high - low) if part < 0.5 else high - (1 - part) * (high - low))
    return found
