"""What each kernel asks of its GPU: the SMs it is launched for, its CTAs and its bytes.

Products of matrices are persistent, one CTA for each SM that the job leaves them. Norms are
launched for every SM of the GPU at once. Everything else, attention cores included, is many short
CTAs, which take what is free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.schema import GpuProfile
from hardware_profiles.units import Bytes, BytesPerSecond, Seconds
from reference_model.trace import Operator
from simulator.execution.machine.gpu import KernelLaunch
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernels.roofline import batch_of, is_tensor, needed_bytes

Array = NDArray[np.float64]

ONE_WAVE = frozenset(
    {"rmsnorm", "rmsnorm_residual", "rmsnorm_backward", "rmsnorm_residual_backward"}
)
"""Kinds launched for all SMs at once, with CTAs that stay: grids of 132 and of 3 x 132 CTAs on an
H800 of 132 SMs, in the public trace of a training pair (deepseek-ai/profile-data, train.json)."""

SHORT_WAVES = 8
"""Waves of CTAs of a kernel that only moves bytes, assumed: grids of 4,096 CTAs are common in the
same trace, and an SM of an H800 holds four of 512 threads. Decides when a transfer gets its SMs."""


HBM_BOUND = 0.95
"""Share of what the fastest kernel draws, from which on HBM and not SMs bind a kernel; assumed."""


def is_product(kind: str) -> bool:
    """Whether a kernel is a product of matrices, whose CTAs stay."""
    return is_tensor(kind) and "gemm" in kind


def launch_sms(operator: Operator, *, sms: int, kept: int) -> int:
    """SMs that a kernel is launched for. Counting what to dispatch takes those of transfers.

    Args:
        kept: SMs that products leave to transfers.
    """
    if operator.kind == "dispatch_layout":
        return kept or sms
    return sms - kept if is_product(operator.kind) else sms


def kernel_launches(
    operators: Sequence[Operator],
    seconds: Array,
    *,
    sms: Sequence[int],
    work: Array,
    hbm: BytesPerSecond,
    sm_bandwidth: BytesPerSecond,
    beside_transfer: Sequence[float],
) -> list[list[KernelLaunch]]:
    """[operators][ranks] what each asks of its GPU.

    Args:
        seconds: [operators, ranks] alone, on `sms` [operators] SMs.
        work: [operators, ranks], what a rank has to do over the mean, to which bytes go.
        hbm: `hbm_rate`, which binds kernels of short CTAs that nearly reach it.
        sm_bandwidth: of it, that one SM moves by itself.
        beside_transfer: [operators], as of KernelLaunch.
    """
    needed: dict[tuple[object, ...], float] = {}
    found = []
    for place, operator in enumerate(operators):
        key = operator.kind, operator.dtype, operator.out_dtype, operator.sizes
        if key not in needed:
            needed[key] = float(needed_bytes(batch_of([operator]))[0])
        kind = operator.kind
        stays = is_product(kind) or kind in ONE_WAVE or kind == "dispatch_layout"
        found.append(
            [
                KernelLaunch(
                    seconds=took,
                    sms=sms[place],
                    persistent=stays,
                    hbm_bytes=needed[key] * share,
                    enough_sms=None
                    if stays
                    else enough_sms(needed[key] * share, took, hbm=hbm, per_sm=sm_bandwidth),
                    cta_seconds=0.0 if stays else took / short_waves(operator, sms[place]),
                    beside_transfer=beside_transfer[place],
                )
                for took, share in zip(seconds[place].tolist(), work[place].tolist(), strict=True)
            ]
        )
    return found


def short_waves(operator: Operator, sms: int) -> int:
    """Waves of short CTAs of a kernel on so many SMs."""
    if not operator.kind.startswith("attention") or not is_tensor(operator.kind):
        return SHORT_WAVES
    length = operator["kv_length" if operator.kind == "attention_backward" else "query_length"]
    blocks = operator["sequences"] * operator["heads"] * -(-length // 128)
    return max(1, -(-blocks // sms))


def enough_sms(
    moved: Bytes, seconds: Seconds, *, hbm: BytesPerSecond, per_sm: BytesPerSecond
) -> int | None:
    """SMs that fill HBM as a kernel does which it binds; None of one that it does not bind."""
    rate = moved / seconds if seconds > 0 else 0.0
    return math.ceil(rate / per_sm) if rate >= HBM_BOUND * hbm else None


def hbm_rate(gpu: GpuProfile, costs: KernelCostModel) -> BytesPerSecond:
    """What all kernels of a GPU get together: the share that the fastest reaches."""
    return gpu.hbm_bandwidth * costs.kernels_.own.memory_share
