"""What ends a training step on a GPU, as operators: norm, update, and working copies of weights.

Kinds are those that the reference model issues (reference_model.operators.updating), so that they
have the times of its kernels. One pass reads the gradients, master weights and moments of what this
GPU updates, writes them, with zeros in the place of gradients, and writes parameters that others
need in BF16. Gradients that it adds up for others are cleared by themselves. Weights are then
copied to what products read: from the masters, or, where they were gathered, from BF16.
"""

from __future__ import annotations

from collections.abc import Iterable

from reference_model.trace import Operator
from simulator.workload.sharding import (
    BF16_BYTES,
    HeldParameters,
    HeldWeight,
    Sharding,
    master_and_moments_bytes,
    type_bytes,
)

OPTIMIZER = "optimizer"
"""Segment of these operators."""


def update_operators(held: HeldParameters, sharding: Sharding) -> list[Operator]:
    """Norm, update and clearing on one GPU. One that is offloaded updates elsewhere."""
    types = sharding.types
    gradient = type_bytes(types.gradients)
    updated = sharding.updated(held).count
    found = [_operator("norm", "gradient_norm", types.gradients, "float32", values=round(updated))]
    cleared = 0.0
    if types.offload == "none":
        cleared = updated
        for shared in (True, False):
            part = sharding.updated(sharding.part(held, shared=shared))
            for count, of_matrices in ((part.each, False), (part.matrices, True)):
                state = master_and_moments_bytes(types, orthogonalized=of_matrices)
                if round(count):
                    found.append(
                        _operator(
                            "update", "optimizer_update", types.gradients, types.master,
                            values=round(count),
                            read=gradient + state,
                            written=gradient + state + (BF16_BYTES if shared else 0),
                        )
                    )  # fmt: skip
    added_up = held.every.count if sharding.zero < 2 else sharding.shard(held).count
    left = round((added_up - cleared) * gradient)
    if left:
        found.append(_operator("clear", "memory_bound", "float32", "float32", read=0, written=left))
    return found


def working_copies(weights: Iterable[tuple[HeldWeight, int]], *, source: str) -> list[Operator]:
    """Make what products read of each weight.

    Args:
        weights: with how many there are of each.
        source: type of what it is made from; of that type nothing is made.
    """
    found: list[Operator] = []
    for weight, count in weights:
        if weight.dtype == "bfloat16" and weight.dtype != source:
            rows = weight.groups * weight.rows
            one = _operator("cast", "cast", source, weight.dtype, rows=rows, columns=weight.columns)
            found += [one] * count
        elif weight.dtype != source:
            sizes = {"groups": weight.groups, "rows": weight.rows, "columns": weight.columns}
            one = _operator("cast", "quantize_weight", source, weight.dtype, **sizes)
            found += [one] * count * weight.copies
    return found


def _operator(name: str, kind: str, dtype: str, out_dtype: str, **sizes: int) -> Operator:
    return Operator(
        name=f"{OPTIMIZER}.{name}",
        kind=kind,
        phase="weight_grad",
        segment=OPTIMIZER,
        dtype=dtype,
        out_dtype=out_dtype,
        sizes=tuple(sorted(sizes.items())),
        recompute=False,
        accumulate=False,
    )
