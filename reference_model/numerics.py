"""Errors of the FP8 kernels against float64: a backend in, tables of relative errors out.

Inputs are fresh and random, with outliers: one value in a hundred is 30 times larger. An error is
the norm of the difference over the norm of the exact result. Two errors are given: against the
inputs before quantisation (what FP8 costs), and against the quantised operands (what the kernel's
arithmetic costs).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reference_model.kernels import load_backend, no_promotion, reference

OUTLIER_SHARE = 0.01
OUTLIER_FACTOR = 30.0


@dataclass(frozen=True, slots=True)
class KernelError:
    """One kernel's relative errors."""

    name: str
    shape: str
    of_inputs: float
    """Against float64 on the inputs before quantisation."""
    of_operands: float | None
    """Against float64 on the quantised operands; None where the kernel quantises."""


@dataclass(frozen=True, slots=True)
class RecipeError:
    """Relative errors of one matrix product of length k in three recipes."""

    k: int
    mean: float
    """Mean of the operands, in standard deviations: products of zero mean cancel, others add up."""
    per_tensor: float
    """One scale a tensor, sums left to the tensor cores."""
    per_tile: float
    """1x128 and 128x128 scales, sums left to the tensor cores."""
    promoted: float
    """The same with sums moved to float32 every 128 elements: the recipe."""


def with_outliers(
    *shape: int, generator: torch.Generator, device: torch.device, mean: float = 0.0
) -> Tensor:
    """Normal values of which OUTLIER_SHARE are OUTLIER_FACTOR times larger, float32."""
    x = mean + torch.randn(shape, generator=generator)
    chosen = torch.rand(shape, generator=generator) < OUTLIER_SHARE
    return torch.where(chosen, OUTLIER_FACTOR * x, x).to(device)


def relative_error(x: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of the exact values, in float64."""
    return float((x.double() - exact.double()).norm() / exact.double().norm())


def kernel_errors(
    backend: str, *, device: torch.device, rows: int, features: int, k: int, seed: int
) -> list[KernelError]:
    """Errors of every kernel of a backend, on `device`: quantisation of [rows, k], and products of
    [rows, k] with [features, k], alone and in four groups."""
    kernels = load_backend(backend)
    generator = torch.Generator().manual_seed(seed)
    plain = {"power_of_two_scales": False}
    x = with_outliers(rows, k, generator=generator, device=device)
    w = with_outliers(features, k, generator=generator, device=device)
    shape, product = f"{rows}x{k}", f"{rows}x{features}x{k}"

    errors = []
    for name, two in (("quantize_tiles", False), ("quantize_tiles, powers of two", True)):
        back = kernels.dequantize_tiles(
            *kernels.quantize_tiles(x, power_of_two_scales=two), dtype=torch.float32
        )
        errors.append(KernelError(name, shape, relative_error(back, x), None))
    w_operand = kernels.quantize_blocks(w, **plain)
    back = kernels.dequantize_blocks(*w_operand, dtype=torch.float32)
    errors.append(KernelError("quantize_blocks", shape, relative_error(back, w), None))
    whole = torch.full((1,), rows, dtype=torch.int32, device=device)
    turned = kernels.quantize_tiles_transposed(x, group_sizes=whole, **plain)
    back = reference.dequantize_tiles(*turned, dtype=torch.float32).t()
    errors.append(KernelError("quantize_tiles_transposed", shape, relative_error(back, x), None))
    gate, up = x.double().chunk(2, dim=1)
    back = kernels.dequantize_tiles(*kernels.swiglu_quantize(x, **plain), dtype=torch.float32)
    swiglu = gate * torch.sigmoid(gate) * up
    errors.append(KernelError("swiglu_quantize", shape, relative_error(back, swiglu), None))

    x_operand = kernels.quantize_tiles(x, **plain)
    x_used = reference.dequantize_tiles(*x_operand, dtype=torch.float64)
    w_used = reference.dequantize_blocks(*w_operand, dtype=torch.float64)
    out = kernels.gemm_fp8(*x_operand, *w_operand, out_dtype=torch.float32)
    errors.append(
        KernelError(
            "gemm_fp8",
            product,
            relative_error(out, x.double() @ w.double().t()),
            relative_error(out, x_used @ w_used.t()),
        )
    )

    # Weight gradient: features x k, contracted over rows, as a whole and in four groups.
    grad = with_outliers(rows, features, generator=generator, device=device)
    quarter = torch.full((4,), rows // 4, dtype=torch.int32, device=device)
    for name, sizes in (("gemm_fp8_weight_grad", whole), ("grouped_..._weight_grad", quarter)):
        left = kernels.quantize_tiles_transposed(grad, group_sizes=sizes, **plain)
        right = kernels.quantize_tiles_transposed(x, group_sizes=sizes, **plain)
        groups = len(sizes)
        total = torch.zeros(groups, features, k, device=device)
        used = torch.zeros_like(total)
        if groups == 1:
            kernels.gemm_fp8_weight_grad(*left, *right, gradient=total[0])
        else:
            kernels.grouped_gemm_fp8_weight_grad(*left, *right, group_sizes=sizes, gradient=total)
        reference.grouped_gemm_fp8_weight_grad(*left, *right, group_sizes=sizes, gradient=used)
        exact = torch.stack(
            [
                g.double().t() @ part.double()
                for g, part in zip(grad.chunk(groups), x.chunk(groups), strict=True)
            ]
        )
        errors.append(
            KernelError(
                name,
                f"{features}x{k}x{rows}",
                relative_error(total, exact),
                relative_error(total, used),
            )
        )

    experts = with_outliers(4, features, k, generator=generator, device=device)
    operand = kernels.quantize_blocks(experts, **plain)
    used = reference.dequantize_blocks(*operand, dtype=torch.float64)
    exact = torch.cat(
        [a.double() @ b.double().t() for a, b in zip(x.chunk(4), experts, strict=True)]
    )
    exact_used = torch.cat([a @ b.t() for a, b in zip(x_used.chunk(4), used, strict=True)])
    out = kernels.grouped_gemm_fp8(
        *x_operand, *operand, group_sizes=quarter, out_dtype=torch.float32
    )
    room = (x_operand[0].view(4, rows // 4, k), torch.stack(x_operand[1].chunk(4)))
    masked = kernels.masked_grouped_gemm_fp8(
        *room, *operand, group_rows=quarter, out_dtype=torch.float32
    )
    for name, result in (
        ("grouped_gemm_fp8", out),
        ("masked_grouped_gemm_fp8", masked.view(rows, features)),
    ):
        errors.append(
            KernelError(
                name,
                f"4 groups, {product}",
                relative_error(result, exact),
                relative_error(result, exact_used),
            )
        )
    return errors


def recipe_errors(
    *, lengths: Sequence[int], means: Sequence[float], size: int, seed: int
) -> list[RecipeError]:
    """Products [size, k] x [size, k]^T in three recipes, for each of lengths and means.

    Plain torch: the tensor cores' short sums are those of kernels/no_promotion.py."""
    generator = torch.Generator().manual_seed(seed)
    cpu = torch.device("cpu")
    results = []
    for mean in means:
        for k in lengths:
            a, b = (
                with_outliers(size, k, generator=generator, device=cpu, mean=mean) for _ in range(2)
            )
            exact = a.double() @ b.double().t()
            tiled = _operands(a, b, fine_scales=True)
            results.append(
                RecipeError(
                    k=k,
                    mean=mean,
                    per_tensor=relative_error(
                        no_promotion.gemm_fp8(
                            *_operands(a, b, fine_scales=False), out_dtype=torch.float32
                        ),
                        exact,
                    ),
                    per_tile=relative_error(
                        no_promotion.gemm_fp8(*tiled, out_dtype=torch.float32), exact
                    ),
                    promoted=relative_error(
                        reference.gemm_fp8(*tiled, out_dtype=torch.float32), exact
                    ),
                )
            )
    return results


def _operands(a: Tensor, b: Tensor, *, fine_scales: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    quantization = load_backend("reference" if fine_scales else "per_tensor")
    return (
        *quantization.quantize_tiles(a, power_of_two_scales=False),
        *quantization.quantize_blocks(b, power_of_two_scales=False),
    )
