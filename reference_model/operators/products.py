"""Matrix products, dense and grouped, and the weight gradients that add into float32."""

import torch
from torch import Tensor

from reference_model.kernels import load_backend
from reference_model.operators.registration import operator


def _product(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    """a b^T with float32 accumulation."""
    if a.dtype == out_dtype:
        return a @ b.mT
    if a.is_cuda:
        return torch.mm(a, b.mT, out_dtype=out_dtype)
    return (a.float() @ b.float().mT).to(out_dtype)


@operator(
    fake=lambda a, b, _a, _b, *, out_dtype, **__: a.new_empty(
        (a.shape[0], b.shape[0]), dtype=out_dtype
    )
)
def gemm(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor | None,
    b_scales: Tensor | None,
    *,
    out_dtype: torch.dtype,
    kernels: str,
    site: str,
) -> Tensor:
    """Multiply a [m, k] (1x128 tiles) by b [n, k] (128x128 blocks) transposed; returns [m, n]."""
    if a_scales is None or b_scales is None:
        return _product(a, b, out_dtype)
    return load_backend(kernels).gemm_fp8(a, a_scales, b, b_scales, out_dtype=out_dtype)


@operator(fake=None, mutates=("accumulator",))
def gemm_weight_grad(
    accumulator: Tensor,
    a: Tensor,
    b: Tensor,
    a_scales: Tensor | None,
    b_scales: Tensor | None,
    *,
    kernels: str,
    site: str,
) -> None:
    """Add a [m, T] b [n, T]^T into accumulator [m, n] float32; both operands tiled along tokens."""
    if a_scales is None or b_scales is None:
        accumulator += _product(a, b, torch.float32)
    else:
        load_backend(kernels).gemm_fp8_weight_grad(a, a_scales, b, b_scales, gradient=accumulator)


@operator(
    fake=lambda a, b, _a, _b, _g, *, out_dtype, **__: a.new_empty(
        (a.shape[0], b.shape[1]), dtype=out_dtype
    )
)
def grouped_gemm(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor | None,
    b_scales: Tensor | None,
    group_sizes: Tensor,
    *,
    out_dtype: torch.dtype,
    kernels: str,
    site: str,
) -> Tensor:
    """Multiply a [R, k], sorted by expert, by b [E, n, k] of each row's expert transposed; returns
    [R, n]."""
    if a_scales is not None and b_scales is not None:
        return load_backend(kernels).grouped_gemm_fp8(
            a, a_scales, b, b_scales, group_sizes=group_sizes, out_dtype=out_dtype
        )
    groups = torch.split(a, group_sizes.tolist())
    return torch.cat([_product(rows, b[e], out_dtype) for e, rows in enumerate(groups)])


@operator(fake=None, mutates=("accumulator",))
def grouped_gemm_weight_grad(
    accumulator: Tensor,
    a: Tensor,
    b: Tensor,
    a_scales: Tensor | None,
    b_scales: Tensor | None,
    group_sizes: Tensor,
    *,
    kernels: str,
    site: str,
) -> None:
    """Add a [m, R] b [n, R]^T over the rows of each expert into accumulator [E, m, n] float32.

    The published recipe launches one GEMM an expert, alternating between two streams; they are one
    operator here, as they share their operands and only their sum of rows is known beforehand."""
    if a_scales is not None and b_scales is not None:
        load_backend(kernels).grouped_gemm_fp8_weight_grad(
            a, a_scales, b, b_scales, group_sizes=group_sizes, gradient=accumulator
        )
        return
    sizes = group_sizes.tolist()
    for e, (left, right) in enumerate(
        zip(torch.split(a, sizes, dim=1), torch.split(b, sizes, dim=1), strict=True)
    ):
        accumulator[e] += _product(left, right, torch.float32)
