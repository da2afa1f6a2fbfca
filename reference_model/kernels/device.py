# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"
"""Check that a tensor's device can run the FP8 kernels."""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import smid

from reference_model.kernels.reference import TRANSFER

REQUIRED_CAPABILITY = (9, 0)
"""Hopper: FP8 tensor cores with float32 accumulation and the bulk tensor copy engine."""


def interpreted() -> bool:
    """True where Triton runs kernels in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def check_device(x: Tensor) -> None:
    """Refuse a tensor on a device without FP8 tensor cores."""
    if x.is_cuda:
        capability = torch.cuda.get_device_capability(x.device)
        if capability < REQUIRED_CAPABILITY:
            raise ValueError(
                f"FP8 kernels on {torch.cuda.get_device_name(x.device)}: compute capability"
                f" {capability[0]}.{capability[1]} has no FP8 as used here, 9.0 or newer is needed"
            )
    elif not interpreted():
        raise ValueError(
            f"FP8 kernels on device {x.device}: a CUDA device of compute capability 9.0 or newer is"
            " needed; backend 'reference' runs anywhere, and TRITON_INTERPRET=1 interprets"
            " backend 'triton' on a CPU"
        )


def check_multiple(**sizes: int) -> None:
    """Refuse sizes that 16-byte memory transfers cannot address: multiples of 16 FP8 elements."""
    for name, size in sizes.items():
        if size % TRANSFER:
            raise ValueError(f"FP8 GEMM with {name} = {size}: allowed multiples of {TRANSFER}")


@triton.jit
def _mark_multiprocessor_kernel(seen):
    tl.store(seen + smid(), 1)


def count_multiprocessors(stream: torch.cuda.Stream) -> int:
    """Multiprocessors that kernels on a stream reach, counted by many small programs."""
    with torch.cuda.stream(stream):
        seen = torch.zeros(1024, dtype=torch.int32, device=stream.device)
        _mark_multiprocessor_kernel[(8192,)](seen)
        return int(seen.sum())
