"""FP8 kernels by backend, looked up by the backend's name.

Every backend is one `Fp8Kernels` with the same numerics; reference.py documents each function. The
choice is explicit and never changes by itself: a backend that cannot run an input refuses it.

    kernels = load_backend("reference")
    quantized, scales = kernels.quantize_tiles(x, power_of_two_scales=True)
"""

from importlib import import_module
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["BACKENDS", "Fp8Kernels", "load_backend"]

BACKENDS = {
    "reference": "reference_model.kernels.reference",
    "triton": "reference_model.kernels.triton_backend",
    "library": "reference_model.kernels.library",
    "mixed": "reference_model.kernels.mixed",
    "per_tensor": "reference_model.kernels.per_tensor",
    "no_promotion": "reference_model.kernels.no_promotion",
}
"""Backend -> module whose `KERNELS` it is: plain torch on any device; Triton on Hopper, or
interpreted on a CPU; cuBLAS through torch on Hopper, with the Triton kernels where no library has
the function; cuBLAS for dense products and Triton for grouped ones, so that nothing is read on the
host. The last two leave out a part of the recipe and compute other numbers: see
precision_comparison.py."""


class Fp8Kernels(Protocol):
    """What a backend offers; ReferenceKernels says what each function computes."""

    def quantize_tiles(self, x: Tensor, *, power_of_two_scales: bool) -> tuple[Tensor, Tensor]: ...

    def quantize_tiles_transposed(
        self, x: Tensor, *, group_sizes: Tensor | None, power_of_two_scales: bool
    ) -> tuple[Tensor, Tensor]: ...

    def requantize_tiles_transposed(
        self,
        q: Tensor,
        scales: Tensor,
        *,
        row_source: Tensor | None,
        group_sizes: Tensor | None,
        power_of_two_scales: bool,
    ) -> tuple[Tensor, Tensor]: ...

    def quantize_blocks(self, w: Tensor, *, power_of_two_scales: bool) -> tuple[Tensor, Tensor]: ...

    def quantize_weight(
        self, w: Tensor, *, values: Tensor, scales: Tensor, turned_scales: Tensor
    ) -> None: ...

    def dequantize_tiles(self, q: Tensor, scales: Tensor, *, dtype: torch.dtype) -> Tensor: ...

    def dequantize_blocks(self, q: Tensor, scales: Tensor, *, dtype: torch.dtype) -> Tensor: ...

    def gemm_fp8(
        self, a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, *, out_dtype: torch.dtype
    ) -> Tensor: ...

    def gemm_fp8_weight_grad(
        self, a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, *, gradient: Tensor
    ) -> None: ...

    def grouped_gemm_fp8(
        self,
        a: Tensor,
        a_scales: Tensor,
        b: Tensor,
        b_scales: Tensor,
        *,
        group_sizes: Tensor,
        out_dtype: torch.dtype,
    ) -> Tensor: ...

    def masked_grouped_gemm_fp8(
        self,
        a: Tensor,
        a_scales: Tensor,
        b: Tensor,
        b_scales: Tensor,
        *,
        group_rows: Tensor,
        out_dtype: torch.dtype,
    ) -> Tensor: ...

    def grouped_gemm_fp8_weight_grad(
        self,
        a: Tensor,
        a_scales: Tensor,
        b: Tensor,
        b_scales: Tensor,
        *,
        group_sizes: Tensor,
        gradient: Tensor,
    ) -> None: ...

    def swiglu_quantize(
        self, gate_up: Tensor, *, power_of_two_scales: bool
    ) -> tuple[Tensor, Tensor]: ...

    def weighted_swiglu_quantize(
        self, gate_up: Tensor, row_weights: Tensor, *, power_of_two_scales: bool
    ) -> tuple[Tensor, Tensor]: ...

    def swiglu_quantize_transposed(
        self, gate_up: Tensor, *, power_of_two_scales: bool
    ) -> tuple[Tensor, Tensor]: ...


def load_backend(name: str) -> Fp8Kernels:
    """Import the backend called name; ValueError names the known ones."""
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r}: allowed {', '.join(BACKENDS)}")
    kernels: Fp8Kernels = import_module(BACKENDS[name]).KERNELS
    return kernels
