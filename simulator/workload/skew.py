"""Draw ranks that are not alike: their rows, their clocks, their machines and their pauses.

Every array ends in the axis of the draws, float32, and is relative: 1 is a rank like the others.
What is drawn is a realisation; how wide it is, itself a prior, comes as one number per draw. Random
numbers come from a passed generator.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.workload.experts import ExpertPlacement, RowCounts

Single = NDArray[np.float32]
Priors = NDArray[np.float64]
"""[draws], one value of a prior in each."""


def clock_times(sd: Priors, *, gpus: int, rng: np.random.Generator) -> Single:
    """[gpus, draws], time of work that is bound by compute over that of the median GPU.

    Args:
        sd: of its logarithm.
    """
    normal = rng.standard_normal((gpus, len(sd)), dtype=np.float32)
    return np.exp(normal * sd.astype(np.float32))


def slow_machines(
    share: Priors, slowdown: Priors, *, gpus: int, per_machine: int, rng: np.random.Generator
) -> Single:
    """[gpus, draws], time of any kernel over that on other machines: 1, or more on a slow one.

    Args:
        share: of machines that are slow.
        slowdown: what their kernels take longer, relative.
        per_machine: GPUs of one machine, which are slow together.
    """
    machines = rng.random((-(-gpus // per_machine), len(share)), dtype=np.float32) < share
    times = 1 + machines * slowdown
    return np.repeat(times.astype(np.float32), per_machine, axis=0)[:gpus]


def random_gate_sd(*, choices: float, top_k: int, experts: int, local: int) -> float:
    """Relative sd of the rows of a rank whose tokens choose experts at random.

    Each token chooses top_k different experts, so the number that lies on a rank is hypergeometric:
    variance k p (1 - p) (E - k) / (E - 1) about k p, with p = local / E.

    Args:
        choices: rows of a rank, mean.
        local: experts of a rank.
    """
    if local == experts or choices == 0:
        return 0.0
    left = (1 - local / experts) * (experts - top_k) / (experts - 1)
    return math.sqrt(left / choices)


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """How the rows of ranks are drawn."""

    sd: Priors
    """Relative, of a rank in a layer."""
    most: Priors | None = None
    """Rows over the mean of one rank, another in each layer; None where all have one mean."""
    popularity: RowCounts | None = None
    """[layers, experts] of which each layer drawn takes one; None for none that is known."""
    zipf_exponent: Priors | None = None
    """Of the popularity of experts, in an order drawn for each layer."""
    placement: ExpertPlacement | None = None
    """Where experts of unequal popularity lie; its first layer stands for all."""

    @property
    def mark(self) -> bytes:
        """A digest of all of it: equal ones draw equal rows from equal random numbers."""
        placed = self.placement
        digest = hashlib.sha256(
            repr(None if placed is None else (placed.gpus, placed.experts)).encode()
        )
        arrays: tuple[NDArray[Any] | None, ...] = (
            self.sd,
            self.most,
            self.popularity,
            self.zipf_exponent,
            None if placed is None else placed.slots,
        )
        for array in arrays:
            digest.update(repr(None if array is None else (array.shape, array.dtype.str)).encode())
            digest.update(b"" if array is None else array.tobytes())
        return digest.digest()

    def shares(self, *, ranks: int, cases: tuple[int, ...], rng: np.random.Generator) -> Single:
        """[ranks, *cases, draws], rows over their mean, of one layer in each case.

        The mean over ranks is 1: what one rank gets, others do not.
        """
        draws = len(self.sd)
        shares = np.ones((ranks, *cases, draws), dtype=np.float32)
        if ranks > 1 and self.sd.any():
            rng.standard_normal(dtype=np.float32, out=shares)
            shares -= shares.mean(axis=0)
            shares *= (self.sd * math.sqrt(ranks / (ranks - 1))).astype(np.float32)
            shares += 1
            np.maximum(shares, 0, out=shares)
        if self.most is not None and ranks > 1:
            busy = rng.integers(ranks, size=(*cases, draws))
            chosen = np.arange(ranks).reshape(ranks, *([1] * busy.ndim)) == busy
            others = (ranks - self.most) / (ranks - 1)
            shares *= np.where(chosen, self.most, others).astype(np.float32)
        if self.placement is not None:
            shares *= self._of_popularity(self.placement, cases, rng)
        return shares

    def _of_popularity(
        self, placement: ExpertPlacement, cases: tuple[int, ...], rng: np.random.Generator
    ) -> Single:
        """Means [ranks, *cases, draws] of experts of unequal popularity where they lie."""
        experts, draws = placement.experts, len(self.sd)
        size = math.prod(cases) * draws
        if self.zipf_exponent is not None:
            ranked = np.arange(1, experts + 1)[:, None] ** -self.zipf_exponent
            ranked = np.tile(ranked, math.prod(cases)).reshape(experts, size)
            popularity = rng.permuted(ranked, axis=0)
        else:
            assert self.popularity is not None
            popularity = self.popularity[rng.integers(len(self.popularity), size=size)].T
        slots = placement.slots[0]
        loads = popularity[slots] / placement.copies[0][slots][:, None]
        of_ranks = loads.reshape(placement.gpus, placement.slots_per_gpu, size).sum(axis=1)
        of_ranks /= of_ranks.mean(axis=0)
        return np.asarray(of_ranks.reshape(placement.gpus, *cases, draws), dtype=np.float32)
