"""The steps of a training phase whose batch grows: sequences and time of every one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Seconds

Array = NDArray[np.float64]


def batch_sizes(
    tokens: float,
    sequences: int,
    *,
    sequence_length: int,
    first_sequences: int | None = None,
    growing_tokens: float = 0.0,
) -> NDArray[np.int64]:
    """[steps], sequences of every step until all tokens are trained on, the last step whole.

    Args:
        sequences: of a step of full size.
        first_sequences: of the first step; from there the batch grows linearly in the tokens seen,
            in whole sequences, to its full size.
        growing_tokens: after which it has its full size.
    """
    sizes: list[int] = []
    seen = 0.0
    if first_sequences is not None:
        per_token = (sequences - first_sequences) / growing_tokens
        while seen < growing_tokens:
            sizes.append(int(first_sequences + per_token * seen))
            seen += sizes[-1] * sequence_length
    left = math.ceil((tokens - seen) / (sequences * sequence_length))
    return np.array([*sizes, *[sequences] * max(0, left)], dtype=np.int64)


def step_seconds(sequences: NDArray[np.int64], simulated: Mapping[int, Seconds]) -> Array:
    """[steps], time of every step, on the line between the simulated sizes around its own.

    Args:
        simulated: {sequences: time of a step}; its smallest and largest hold all steps.
    """
    sizes = sorted(simulated)
    found: Array = np.interp(sequences, sizes, [simulated[size] for size in sizes])
    return found
