"""Kernels that compute the same product: rows of one say how fast the other is.

A table of an engine's kernels times forward products. Its weight gradients run on the same tiles
and add into their result, so that where one calibration has rows of both and another of the first
alone, the second's time of the other follows in the first's ratio. A product that only writes
another result type takes what own rows of it make of its time at peak, and so does a kernel that
none has rows of by a related one's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from simulator.hardware.kernels.families import Family
from simulator.hardware.kernels.roofline import Batch, batch_of_sizes

Sizes = Mapping[str, NDArray[np.int64]]


def _renamed(**names: str) -> Callable[[Sizes], Sizes]:
    return lambda sizes: {name: sizes[of] for name, of in names.items()}


_SAME_ATTENTION = _renamed(
    **{
        name: name
        for name in ("sequences", "query_length", "kv_length", "heads", "qk_dim", "v_dim")
    }
)


def _dense_decode(sizes: Sizes) -> Sizes:
    """Each query that selects tokens as a sequence of its own that has no more than those."""
    return {
        "sequences": sizes["sequences"] * sizes["query_length"],
        "query_length": np.ones_like(sizes["query_length"]),
        "kv_length": np.minimum(sizes["kv_length"], sizes["top_k"]),
        **{name: sizes[name] for name in ("heads", "latent_dim", "rope_dim")},
    }


_SIZES: Mapping[tuple[str, str], Callable[[Sizes], Sizes]] = {
    ("gemm", "gemm"): _renamed(m="m", n="n", k="k"),
    # [m, rows] x [rows, n] of each expert has the FLOPs of its rows times an [m, n] weight.
    ("grouped_gemm_weight_grad", "grouped_gemm"): _renamed(
        rows="rows", groups="groups", n="m", k="n"
    ),
    ("attention_backward", "attention_forward"): _SAME_ATTENTION,
    ("attention_masked_forward", "attention_forward"): _SAME_ATTENTION,
    ("attention_masked_backward", "attention_backward"): _SAME_ATTENTION,
    ("sparse_mla", "mla_decode"): _dense_decode,
}
"""{(kind, the kind it is related to): the sizes of that from the sizes of this}"""

RELATED_KINDS = frozenset(kind for kind, _ in _SIZES)


def is_another_result(family: Family, other: Family) -> bool:
    """Whether two products of the same operand type differ in their result's type alone."""
    kind, dtype, _, accumulate = family
    return (kind, kind) in _SIZES and (kind, dtype, accumulate) == (*other[:2], other[3])


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
    columns = dict(sorted(_SIZES[batch.kind, family[0]](sizes).items()))
    like = replace(
        batch.like,
        kind=family[0],
        dtype=family[1],
        out_dtype=family[2],
        accumulate=family[3],
        sizes=tuple((name, 1) for name in columns),
    )
    return batch_of_sizes(like, np.stack(list(columns.values()), axis=1))
