"""Kernels that compute the same product: rows of one say how fast the other is.

A table of an engine's kernels times forward products. Its weight gradients and products into
another result type run on the same tiles, so that where one calibration has rows of both and
another of the first alone, the second's time of the other follows in the first's ratio.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from simulator.hardware.kernels.families import Family
from simulator.hardware.kernels.roofline import Batch, batch_of_sizes

_SIZES: Mapping[tuple[str, str], Mapping[str, str]] = {
    ("gemm", "gemm"): {"m": "m", "n": "n", "k": "k"},
    # [m, rows] x [rows, n] of each expert has the FLOPs of its rows times an [m, n] weight.
    ("grouped_gemm_weight_grad", "grouped_gemm"): {
        "rows": "rows", "groups": "groups", "n": "m", "k": "n",
    },
    ("attention_backward", "attention_forward"): {
        name: name
        for name in ("sequences", "query_length", "kv_length", "heads", "qk_dim", "v_dim")
    },
}  # fmt: skip
"""{(kind, the kind it is related to): {size of that: size of this}}"""


def related_family(
    family: Family, known: Collection[Family], also: Collection[Family]
) -> Family | None:
    """The family of `known` and `also` that computes the same product from the same operand type;
    of several the one with the same result type, then one that does not add into it."""
    kind, dtype, out_dtype, _ = family
    found = [
        other
        for other in known
        if (kind, other[0]) in _SIZES and other[1] == dtype and other in also and other != family
    ]
    return min(found, key=lambda other: (other[2] != out_dtype, other[3], other), default=None)


def related_batch(batch: Batch, family: Family) -> Batch:
    """The operators of a related family that compute the same products."""
    sizes = dict(zip(batch.names, batch.sizes.T, strict=True))
    renamed = _SIZES[batch.kind, family[0]]
    columns = {name: sizes[size] for name, size in sorted(renamed.items())}
    like = replace(
        batch.like,
        kind=family[0],
        dtype=family[1],
        out_dtype=family[2],
        accumulate=family[3],
        sizes=tuple((name, 1) for name in columns),
    )
    return batch_of_sizes(like, np.stack(list(columns.values()), axis=1))
