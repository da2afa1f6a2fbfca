"""The time a kernel would take at the GPU's peaks: operators and SM counts in, seconds out.

Tensor-core kernels are tiled: persistent blocks, one an SM, work through output tiles, so that
their time goes by waves, ceil(tiles / SMs), not by the share of SMs. Tiles have 128 rows, 64 where
there are few, and the width, a multiple of 8 up to 128, that leaves the least work to the busiest
SM. Each tile costs some columns on top of its own, so that fewer and wider tiles win between
equals, as in DeepGEMM's search for a configuration (o_proj at 4,096 rows: 16 waves on 112 SMs, 14
on 132; q_a_proj: 4 waves of 112 columns, 3 of 128). No kernel is faster than its bytes at the full
HBM bandwidth.

The result is a yardstick for measured times, not a bound; `least_seconds` is the bound. Arrays are
float64, one entry an operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.schema import GpuProfile
from reference_model.trace import Operator

Array = NDArray[np.float64]
Sizes = Mapping[str, Array]
"""{size name: values}"""

TILE_ROWS = 128
SMALL_TILE_ROWS = 64
SMALL_TILE_LIMIT = 256
"""Most rows for which tiles of 64 rows are taken: between 256 and 512 rows all of InferSim's H800
shapes jump, by 1.2 (one wave throughout) to 2.0 (k = 7,168, n = 36,864)."""
TILE_WIDTHS = tuple(range(16, 129, 8))
TILE_OVERHEAD = 32
"""Columns' worth of work that a tile costs beyond its own: filling the pipeline, narrow operands,
storing. Chosen among 8, 16 and 32 by held-out error over the shapes of the H800 tables."""
TILED_DEPTH = 128
"""Operands are read in steps of 128 along k, the granularity of the FP8 scales."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Operators of one kind and of the same types, by their sizes."""

    like: Operator
    """Any of them: kind and types of all."""
    names: tuple[str, ...]
    """Of the sizes, sorted."""
    sizes: NDArray[np.int64]
    """[operators, names]"""
    moved_bytes: Array
    """[operators] read and written."""
    flops: Array
    """[operators] useful ones, of matrix products."""

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def kind(self) -> str:
        return self.like.kind

    def take(self, chosen: Sequence[int] | NDArray[np.intp]) -> Batch:
        """The operators at some positions."""
        return Batch(
            self.like,
            self.names,
            self.sizes[chosen],
            self.moved_bytes[chosen],
            self.flops[chosen],
        )


def batch_of(operators: Sequence[Operator]) -> Batch:
    """Stack operators of one kind and of the same types; there must be at least one."""
    like = operators[0]
    sizes = np.array([[value for _, value in op.sizes] for op in operators], dtype=np.int64)
    return batch_of_sizes(like, sizes)


def batch_of_sizes(like: Operator, sizes: NDArray[np.int64]) -> Batch:
    """Operators like one, by their sizes [operators, names], names in the order of `like.sizes`."""
    names = tuple(name for name, _ in like.sizes)
    # The trace's formulas are arithmetic on sizes: an operator with arrays in their place answers
    # for all operators at once.
    columns = tuple((name, cast(int, column)) for name, column in zip(names, sizes.T, strict=True))
    stacked = replace(like, sizes=columns)
    moved = np.zeros(len(sizes)) + stacked.bytes_read + stacked.bytes_written
    return Batch(like, names, sizes, moved, np.zeros(len(sizes)) + stacked.flops)


def ideal_seconds(kind: str, operators: Sequence[Operator], sms: Array, gpu: GpuProfile) -> Array:
    """Time at peak of operators of one kind: the larger of waves of tiles and bytes over HBM.

    Args:
        sms: [operators] SMs the kernels may use.
    """
    types: dict[tuple[str, str, bool], list[int]] = {}
    for number, op in enumerate(operators):
        types.setdefault((op.dtype, op.out_dtype, op.accumulate), []).append(number)
    seconds = np.empty(len(operators))
    for numbers in types.values():
        batch = batch_of([operators[number] for number in numbers])
        seconds[numbers] = ideal_batch_seconds(batch, sms[numbers], gpu)
    return seconds


def ideal_batch_seconds(batch: Batch, sms: Array, gpu: GpuProfile) -> Array:
    """`ideal_seconds` of a batch."""
    memory: Array = batch.moved_bytes / gpu.hbm_bandwidth
    if batch.kind in ("dispatch", "combine"):
        # Within a node every copy of a token crosses NVLink once.
        sizes = dict(zip(batch.names, batch.sizes.T.astype(np.float64), strict=True))
        copied = batch.moved_bytes * sizes["rows"] / np.maximum(sizes["rows"] + sizes["tokens"], 1)
        slower: Array = np.maximum(memory, copied / gpu.nvlink_bandwidth)
        return slower
    if batch.kind not in _BUSIEST_SM_FLOPS:
        return memory
    sizes = dict(zip(batch.names, batch.sizes.T.astype(np.float64), strict=True))
    per_sm = peak_compute(batch.like.dtype, gpu) / gpu.sms
    return np.maximum(_BUSIEST_SM_FLOPS[batch.kind](sizes, sms) / per_sm, memory)


def least_seconds(batch: Batch, sms: Array, gpu: GpuProfile) -> Array:
    """The roofline that no kernel undercuts; [operators].

    Useful FLOPs at the peak of its SMs, and bytes at the full HBM bandwidth unless so few that the
    L2 cache may still hold them.
    """
    needed = batch.moved_bytes
    if batch.kind == "masked_grouped_gemm":
        # Weights of experts without a row are not read.
        sizes = dict(zip(batch.names, batch.sizes.T, strict=True))
        needed = needed * np.minimum(1.0, sizes["rows"] / np.maximum(sizes["groups"], 1))
    memory = np.where(needed <= gpu.l2_capacity, 0.0, needed / gpu.hbm_bandwidth)
    if not is_tensor(batch.kind):
        return memory
    peak = peak_compute(batch.like.dtype, gpu) * sms / gpu.sms
    return np.maximum(batch.flops / peak, memory)


def peak_compute(dtype: str, gpu: GpuProfile) -> float:
    """Dense tensor-core peak for an operand type, FLOP/s. Raises ValueError where unknown."""
    peaks: dict[str, float] = dict(gpu.peak_compute.items())
    if dtype not in peaks:
        raise ValueError(
            f"GPU {gpu.name}: peak_compute: no peak for {dtype!r}; known: {', '.join(peaks)}"
        )
    return peaks[dtype]


def is_tensor(kind: str) -> bool:
    """Whether a kernel family runs on the tensor cores; the others only move bytes."""
    return kind in _BUSIEST_SM_FLOPS


def _tiled(rows: Array, groups: Array, n: Array, k: Array, sms: Array) -> Array:
    """FLOPs of the busiest SM for `groups` products of [rows, k] x [k, n]."""
    height = np.where(rows <= SMALL_TILE_LIMIT, SMALL_TILE_ROWS, TILE_ROWS)
    row_tiles = groups * np.ceil(rows / height)
    depth = np.ceil(k / TILED_DEPTH) * TILED_DEPTH
    columns: Array = np.full_like(rows, np.inf)
    for width in TILE_WIDTHS:
        # In place: a million operators are as fast as memory.
        waves = np.ceil(n / width)
        waves *= row_tiles
        waves /= sms
        np.ceil(waves, out=waves)
        waves *= width + TILE_OVERHEAD
        np.minimum(columns, waves, out=columns)
    flops: Array = 2 * height * columns * depth
    return flops


def _gemm(s: Sizes, sms: Array) -> Array:
    return _tiled(s["m"], np.ones_like(s["m"]), s["n"], s["k"], sms)


def _contiguous(s: Sizes, sms: Array) -> Array:
    return _tiled(s["rows"], np.ones_like(s["rows"]), s["n"], s["k"], sms)


def _masked(s: Sizes, sms: Array) -> Array:
    # Fewer rows than experts: the experts without a row are skipped.
    filled = np.maximum(np.minimum(s["groups"], s["rows"]), 1)
    return _tiled(s["rows"] / filled, filled, s["n"], s["k"], sms)


def _grouped_weight_grad(s: Sizes, sms: Array) -> Array:
    return _tiled(s["m"], s["groups"], s["n"], s["rows"] / s["groups"], sms)


def _batched(s: Sizes, sms: Array) -> Array:
    return _tiled(s["m"], s["batch"], s["n"], s["k"], sms)


def _attention(length: str, dimensions: Callable[[Sizes], Array]) -> Callable[..., Array]:
    """Blocks of 128 rows along `length`, each a head's share of the visible square."""

    def flops(s: Sizes, sms: Array) -> Array:
        pairs = s["query_length"] * (2 * s["kv_length"] - s["query_length"])
        heads = s["sequences"] * s["heads"]
        blocks = heads * np.ceil(s[length] / TILE_ROWS)
        busiest: Array = heads * pairs * dimensions(s) / blocks * np.ceil(blocks / sms)
        return busiest

    return flops


def _mla_decode(s: Sizes, sms: Array) -> Array:
    # The keys of a sequence are split over SMs, so that no wave is left half empty.
    heads = s["sequences"] * s["query_length"] * s["heads"]
    return 2 * heads * s["kv_length"] * (2 * s["latent_dim"] + s["rope_dim"]) / sms


_BUSIEST_SM_FLOPS: Mapping[str, Callable[[Sizes, Array], Array]] = {
    "gemm": _gemm,
    "grouped_gemm": _contiguous,
    "masked_grouped_gemm": _masked,
    "grouped_gemm_weight_grad": _grouped_weight_grad,
    "batched_gemm": _batched,
    "attention_forward": _attention("query_length", lambda s: s["qk_dim"] + s["v_dim"]),
    "attention_backward": _attention("kv_length", lambda s: 3 * s["qk_dim"] + 2 * s["v_dim"]),
    "mla_decode": _mla_decode,
    "mla_prefill": _attention("query_length", lambda s: 2 * s["latent_dim"] + s["rope_dim"]),
}
