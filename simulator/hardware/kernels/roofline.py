"""The time a kernel would take at the GPU's peak rates.

Tensor-core kernels are tiled: persistent blocks, one an SM, work through output tiles, so that
their time goes by waves, ceil(tiles / SMs), not by the share of SMs. Which tiles a kernel takes is
part of its calibration (TilesProfile): 128 rows, in some libraries 64 where there are few, and the
width that leaves the least work to the busiest SM. Each tile costs some columns on top of its own,
so that fewer and wider tiles win between equals, as in DeepGEMM's search for a configuration
(o_proj at 4,096 rows: 16 waves on 112 SMs, 14 on 132; q_a_proj: 4 waves of 112 columns, 3 of 128).
No kernel is faster than its bytes at the full HBM bandwidth.

The result is a yardstick for measured times, not a bound; `least_seconds` is the bound. Arrays are
float64, one entry an operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.calibration_parts import TilesProfile
from hardware_profiles.schema import GpuProfile
from reference_model.attention_kinds import selected_pairs
from reference_model.formats import multiplied_as
from reference_model.trace import Operator

Array = NDArray[np.float64]
Sizes = Mapping[str, Array]
"""{size name: values}"""

TILE_ROWS = 128
SMALL_TILE_ROWS = 64
WIDEST_TILE, WIDTH_STEP = 128, 8
DEEPGEMM_TILES = TilesProfile(narrowest=16, overhead=32, half_height_rows=256)
"""For comparisons that no calibration goes with."""
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


@dataclass(frozen=True, slots=True)
class Ideal:
    """Time at peak of a batch, part by part; [operators], seconds."""

    waves: Array
    """Of the busiest SM's tiles; 0 of kernels without tensor cores."""
    bytes: Array
    """Of bytes over HBM, or over NVLink for dispatch and combine."""
    floor: float
    """Of launching the operator's kernels, on top of the longer part."""

    @property
    def log_seconds(self) -> Array:
        """Natural logarithm of the whole."""
        total: Array = np.log(np.maximum(self.waves, self.bytes) + self.floor)
        return total

    def take(self, chosen: Sequence[int] | NDArray[np.intp]) -> Ideal:
        """The operators at some positions."""
        return Ideal(self.waves[chosen], self.bytes[chosen], self.floor)


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


def ideal_seconds(
    kind: str, operators: Sequence[Operator], sms: Array, gpu: GpuProfile, tiles: TilesProfile
) -> Array:
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
        seconds[numbers] = ideal_batch_seconds(batch, sms[numbers], gpu, tiles)
    return seconds


def clocked_shares(
    operators: Sequence[Operator],
    seconds: Array,
    sms: Array,
    gpu: GpuProfile,
    tiles: TilesProfile,
    *,
    memory_share: float,
) -> Array:
    """Share of each kernel's time that goes with the SM clock; [operators].

    All of a product whose tiles take longer than its bytes. Of any other kernel what it takes
    beyond its bytes, which is latency and instructions.

    Args:
        seconds: [operators] predicted times.
        sms: [operators] SMs that they run on.
        memory_share: of the HBM bandwidth, what the fastest kernels reach.
    """
    types: dict[tuple[str, str, str, bool], list[int]] = {}
    for number, op in enumerate(operators):
        types.setdefault((op.kind, op.dtype, op.out_dtype, op.accumulate), []).append(number)
    shares = np.empty(len(operators))
    for numbers in types.values():
        batch = batch_of([operators[number] for number in numbers])
        waves, memory = waves_and_bytes(batch, sms[numbers], gpu, tiles)
        memory = memory / memory_share
        least = np.finfo(np.float64).tiny
        of_bytes = np.minimum(1.0, memory / np.maximum(seconds[numbers], least))
        shares[numbers] = np.where(waves >= memory, 1.0, 1.0 - of_bytes)
    return shares


def ideal_batch_seconds(batch: Batch, sms: Array, gpu: GpuProfile, tiles: TilesProfile) -> Array:
    """`ideal_seconds` of a batch."""
    slower: Array = np.maximum(*waves_and_bytes(batch, sms, gpu, tiles))
    return slower


def waves_and_bytes(
    batch: Batch, sms: Array, gpu: GpuProfile, tiles: TilesProfile
) -> tuple[Array, Array]:
    """Seconds of the busiest SM's tiles at peak, 0 without tensor cores, and of bytes over HBM."""
    memory: Array = needed_bytes(batch) / gpu.hbm_bandwidth
    if batch.kind in ("dispatch", "combine"):
        # Within a node every copy of a token crosses NVLink once.
        sizes = dict(zip(batch.names, batch.sizes.T.astype(np.float64), strict=True))
        copied = batch.moved_bytes * sizes["rows"] / np.maximum(sizes["rows"] + sizes["tokens"], 1)
        return np.zeros(len(batch)), np.maximum(memory, copied / gpu.nvlink_bandwidth)
    if batch.kind not in _BUSIEST_SM_FLOPS:
        return np.zeros(len(batch)), memory
    sizes = dict(zip(batch.names, batch.sizes.T.astype(np.float64), strict=True))
    per_sm = gpu.peak(multiplied_as(batch.like.dtype)) / gpu.sms
    return _BUSIEST_SM_FLOPS[batch.kind](sizes, sms, tiles) / per_sm, memory


def needed_bytes(batch: Batch) -> Array:
    """Bytes that a kernel must move: weights of experts without a row are not read."""
    if batch.kind != "masked_grouped_gemm":
        return batch.moved_bytes
    sizes = dict(zip(batch.names, batch.sizes.T, strict=True))
    filled: Array = np.minimum(1.0, sizes["rows"] / np.maximum(sizes["groups"], 1))
    return batch.moved_bytes * filled


def least_seconds(
    batch: Batch, sms: Array, gpu: GpuProfile, *, memory_share: float | Array
) -> Array:
    """The roofline that no kernel undercuts; [operators].

    Useful FLOPs at the peak of its SMs, and bytes over HBM unless so few that the L2 cache may
    still hold them.

    Args:
        memory_share: of the HBM bandwidth, that a kernel may reach; 1 for what the datasheet says.
    """
    needed = needed_bytes(batch)
    memory = np.where(needed <= gpu.l2_capacity, 0.0, needed / (gpu.hbm_bandwidth * memory_share))
    if not is_tensor(batch.kind):
        return memory
    peak = gpu.peak(multiplied_as(batch.like.dtype)) * sms / gpu.sms
    return np.maximum(batch.flops / peak, memory)


def is_tensor(kind: str) -> bool:
    """Whether a kernel family runs on the tensor cores; the others only move bytes."""
    return kind in _BUSIEST_SM_FLOPS


def _tiled(
    rows: Array, groups: Array, n: Array, k: Array, sms: Array, tiles: TilesProfile
) -> Array:
    """FLOPs of the busiest SM for `groups` products of [rows, k] x [k, n]."""
    height = np.where(rows <= tiles.half_height_rows, SMALL_TILE_ROWS, TILE_ROWS)
    row_tiles = groups * np.ceil(rows / height)
    depth = np.ceil(k / TILED_DEPTH) * TILED_DEPTH
    columns: Array = np.full_like(rows, np.inf)
    for width in range(tiles.narrowest, WIDEST_TILE + 1, WIDTH_STEP):
        # In place: a million operators are as fast as memory.
        waves = np.ceil(n / width)
        waves *= row_tiles
        waves /= sms
        np.ceil(waves, out=waves)
        waves *= width + tiles.overhead
        np.minimum(columns, waves, out=columns)
    flops: Array = 2 * height * columns * depth
    return flops


def _gemm(s: Sizes, sms: Array, tiles: TilesProfile) -> Array:
    return _tiled(s["m"], np.ones_like(s["m"]), s["n"], s["k"], sms, tiles)


def _contiguous(s: Sizes, sms: Array, tiles: TilesProfile) -> Array:
    return _tiled(s["rows"], np.ones_like(s["rows"]), s["n"], s["k"], sms, tiles)


def _masked(s: Sizes, sms: Array, tiles: TilesProfile) -> Array:
    # Fewer rows than experts: the experts without a row are skipped.
    filled = np.maximum(np.minimum(s["groups"], s["rows"]), 1)
    return _tiled(s["rows"] / filled, filled, s["n"], s["k"], sms, tiles)


def _grouped_weight_grad(s: Sizes, sms: Array, tiles: TilesProfile) -> Array:
    return _tiled(s["m"], s["groups"], s["n"], s["rows"] / s["groups"], sms, tiles)


def _batched(s: Sizes, sms: Array, tiles: TilesProfile) -> Array:
    return _tiled(s["m"], s["batch"], s["n"], s["k"], sms, tiles)


def _attention(length: str, dimensions: Callable[[Sizes], Array]) -> Callable[..., Array]:
    """Blocks of 128 rows along `length`, each a head's share of the visible square."""

    def flops(s: Sizes, sms: Array, tiles: TilesProfile) -> Array:
        pairs = s["query_length"] * (2 * s["kv_length"] - s["query_length"])
        heads = s["sequences"] * s["heads"]
        blocks = heads * np.ceil(s[length] / TILE_ROWS)
        busiest: Array = heads * pairs * dimensions(s) / blocks * np.ceil(blocks / sms)
        return busiest

    return flops


def _index_scores(s: Sizes, sms: Array, tiles: TilesProfile) -> Array:
    # Blocks of 128 keys of a sequence, each against every query that may see one of them.
    pairs_twice = s["query_length"] * (2 * s["kv_length"] - s["query_length"] + 1)
    blocks = s["sequences"] * np.ceil(s["kv_length"] / TILE_ROWS)
    flops = s["sequences"] * pairs_twice * s["heads"] * s["dim"]
    busiest: Array = flops / blocks * np.ceil(blocks / sms)
    return np.where(s["query_length"] > TILE_ROWS, flops / sms, busiest)


def _sparse_mla(s: Sizes, sms: Array, tiles: TilesProfile) -> Array:
    # As in decode: what a query selected is split over SMs.
    dimensions = 2 * s["latent_dim"] + s["rope_dim"]
    pairs: Array = s["sequences"] * s["heads"] * selected_pairs(s)
    return 2 * pairs * dimensions / sms


def _mla_decode(s: Sizes, sms: Array, tiles: TilesProfile) -> Array:
    # The keys of a sequence are split over SMs, so that no wave is left half empty.
    heads = s["sequences"] * s["query_length"] * s["heads"]
    return 2 * heads * s["kv_length"] * (2 * s["latent_dim"] + s["rope_dim"]) / sms


_BUSIEST_SM_FLOPS: Mapping[str, Callable[[Sizes, Array, TilesProfile], Array]] = {
    "gemm": _gemm,
    "grouped_gemm": _contiguous,
    "masked_grouped_gemm": _masked,
    "grouped_gemm_weight_grad": _grouped_weight_grad,
    "batched_gemm": _batched,
    "attention_forward": _attention("query_length", lambda s: s["qk_dim"] + s["v_dim"]),
    "attention_backward": _attention("kv_length", lambda s: 3 * s["qk_dim"] + 2 * s["v_dim"]),
    "attention_masked_forward": _attention("query_length", lambda s: s["qk_dim"] + s["v_dim"]),
    "attention_masked_backward": _attention(
        "kv_length", lambda s: 3 * s["qk_dim"] + 2 * s["v_dim"]
    ),
    "index_scores": _index_scores,
    "mla_decode": _mla_decode,
    "sparse_mla": _sparse_mla,
    "mla_prefill": _attention("query_length", lambda s: 2 * s["latent_dim"] + s["rope_dim"]),
}
