"""Tell whether two files describe one GPU: by what they say, not by how they are named."""

from __future__ import annotations

import numpy as np

from hardware_profiles.schema import GpuProfile, known_gpus, load_gpu

KERNEL_RATES = ("sm_clock", "hbm_bandwidth", "l2_capacity")
"""Beside its peaks, the fields of a GPU that kernels on several GPUs at once may differ in."""


def same_compute(one: GpuProfile, other: GpuProfile) -> bool:
    """Whether two GPUs share everything that a compute kernel's time depends on; of GPUs side by
    side, whether all of them do."""
    if one.sms != other.sms or set(one.peak_compute) != set(other.peak_compute):
        return False
    rates = ((getattr(one, field), getattr(other, field)) for field in KERNEL_RATES)
    peaks = ((one.peak(dtype), other.peak(dtype)) for dtype in one.peak_compute)
    return all(np.all(mine == theirs) for mine, theirs in (*rates, *peaks))


def same_gpu(one: GpuProfile, other: GpuProfile) -> bool:
    """Whether two profiles mean one GPU, by all that a compute kernel's time depends on: a user's
    file may have a shipped GPU's name and other rates, or its rates and another name. Under one
    name a job may have changed NVLink, whose rate else tells an H800 from an H100."""
    alike = one.name == other.name or one.nvlink_bandwidth == other.nvlink_bandwidth
    return alike and same_compute(one, other)


def shipped_name(gpu: GpuProfile) -> str:
    """What shipped tables call a GPU: its own name, or of a user's file that of the shipped GPU
    that it describes."""
    known = known_gpus()
    if gpu.name in known:
        return gpu.name
    return next((name for name in known if same_gpu(load_gpu(name), gpu)), gpu.name)
