"""Relative errors of the FP8 kernels against float64.

Inputs are fresh and random, with outliers: one value in a hundred is 30 times larger. An error is
the norm of the difference over the norm of the exact result. Two errors are given: against the
inputs before quantisation (what FP8 costs), and against the quantised operands (what the kernel's
arithmetic costs).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from reference_model.kernels import Fp8Kernels, load_backend
from reference_model.kernels.reference import TILE

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
    [rows, k] with [features, k], alone and in four groups, one of them empty."""
    kernels = load_backend(backend)
    draw = partial(
        with_outliers, generator=torch.Generator().manual_seed(seed), device=device, mean=0.0
    )
    # Groups that neither begin nor end at a tile.
    sizes = [rows // 2 - 3, 0, rows // 4 + 3, rows - rows // 2 - rows // 4]
    return [
        *_quantization_errors(kernels, draw(rows, k), draw(features, k), draw(rows), sizes),
        *_product_errors(kernels, draw(rows, k), draw(features, k), draw(rows, features)),
        *_grouped_errors(
            kernels, draw(rows, k), draw(len(sizes), features, k), draw(rows, features), sizes
        ),
    ]


def _quantization_errors(
    kernels: Fp8Kernels, x: Tensor, w: Tensor, row_weights: Tensor, sizes: list[int]
) -> list[KernelError]:
    """Of x [rows, k] and a weight w, in each layout; row_weights [rows] weigh the experts' rows."""
    errors = []

    def add(name: str, matrix: Tensor, back: Tensor, exact: Tensor) -> None:
        shape = "x".join(str(size) for size in matrix.shape)
        errors.append(KernelError(name, shape, relative_error(back, exact), None))

    plain = {"power_of_two_scales": False}
    tiled = kernels.quantize_tiles(x, **plain)
    add("quantize_tiles", x, _tile_values(*tiled), x)
    powers = kernels.quantize_tiles(x, power_of_two_scales=True)
    add("quantize_tiles, powers of two", x, _tile_values(*powers), x)
    add("quantize_blocks", w, _block_values(*kernels.quantize_blocks(w, **plain)), w)

    group_sizes = torch.tensor(sizes, dtype=torch.int32, device=x.device)
    turned = kernels.quantize_tiles_transposed(x, group_sizes=group_sizes, **plain)
    add("quantize_tiles_transposed", x, _grouped_values(*turned, sizes), x.t())
    source = torch.arange(x.shape[0], dtype=torch.int32, device=x.device).flip(0)
    turned = kernels.requantize_tiles_transposed(
        *tiled, row_source=source, group_sizes=group_sizes, power_of_two_scales=False
    )
    add(
        "requantize_tiles_transposed",
        x,
        _grouped_values(*turned, sizes),
        _tile_values(*tiled).flip(0).t(),
    )

    gate, up = x.double().chunk(2, dim=1)
    swiglu = gate * torch.sigmoid(gate) * up
    add("swiglu_quantize", x, _tile_values(*kernels.swiglu_quantize(x, **plain)), swiglu)
    add(
        "weighted_swiglu_quantize",
        x,
        _tile_values(*kernels.weighted_swiglu_quantize(x, row_weights, **plain)),
        swiglu * row_weights.double()[:, None],
    )
    add(
        "swiglu_quantize_transposed",
        x,
        _tile_values(*kernels.swiglu_quantize_transposed(x, **plain)),
        swiglu.t(),
    )
    return errors


def _product_errors(kernels: Fp8Kernels, x: Tensor, w: Tensor, grad: Tensor) -> list[KernelError]:
    """Of x [rows, k] times w [features, k] transposed, and of grad [rows, features]^T times x."""
    plain = {"power_of_two_scales": False}
    (rows, k), features = x.shape, w.shape[0]
    left, right = kernels.quantize_tiles(x, **plain), kernels.quantize_blocks(w, **plain)
    out = kernels.gemm_fp8(*left, *right, out_dtype=torch.float32)
    whole = torch.full((1,), rows, dtype=torch.int32, device=x.device)
    a = kernels.quantize_tiles_transposed(grad, group_sizes=whole, **plain)
    b = kernels.quantize_tiles_transposed(x, group_sizes=whole, **plain)
    total = torch.zeros(features, k, device=x.device)
    kernels.gemm_fp8_weight_grad(*a, *b, gradient=total)
    return [
        KernelError(
            "gemm_fp8",
            f"{rows}x{features}x{k}",
            relative_error(out, x.double() @ w.double().t()),
            relative_error(out, _tile_values(*left) @ _block_values(*right).t()),
        ),
        KernelError(
            "gemm_fp8_weight_grad",
            f"{features}x{k}x{rows}",
            relative_error(total, grad.double().t() @ x.double()),
            relative_error(total, _tile_values(*a) @ _tile_values(*b).t()),
        ),
    ]


def _grouped_errors(
    kernels: Fp8Kernels, x: Tensor, experts: Tensor, grad: Tensor, sizes: list[int]
) -> list[KernelError]:
    """The same of rows in groups: experts [groups, features, k] and their weight gradients."""
    plain = {"power_of_two_scales": False}
    groups, features, k = experts.shape
    group_sizes = torch.tensor(sizes, dtype=torch.int32, device=x.device)
    left, right = kernels.quantize_tiles(x, **plain), kernels.quantize_blocks(experts, **plain)
    used, used_experts = _tile_values(*left), _block_values(*right)

    def products(a: Tensor, b: Tensor) -> Tensor:
        parts = zip(torch.split(a.double(), sizes), b.double(), strict=True)
        return torch.cat([part @ expert.t() for part, expert in parts])

    contiguous = kernels.grouped_gemm_fp8(
        *left, *right, group_sizes=group_sizes, out_dtype=torch.float32
    )
    capacity = max(sizes) + 3
    room = torch.zeros(groups, capacity, k, device=x.device).to(torch.float8_e4m3fn)
    room_scales = torch.zeros(groups, left[1].shape[1], capacity, device=x.device).mT
    for group, size in enumerate(sizes):
        rows = slice(sum(sizes[:group]), sum(sizes[: group + 1]))
        room[group, :size], room_scales[group, :size] = left[0][rows], left[1][rows]
    masked = kernels.masked_grouped_gemm_fp8(
        room, room_scales, *right, group_rows=group_sizes, out_dtype=torch.float32
    )
    masked = torch.cat([masked[group, :size] for group, size in enumerate(sizes)])

    a = kernels.quantize_tiles_transposed(grad, group_sizes=group_sizes, **plain)
    b = kernels.quantize_tiles_transposed(x, group_sizes=group_sizes, **plain)
    total = torch.zeros(groups, features, k, device=x.device)
    kernels.grouped_gemm_fp8_weight_grad(*a, *b, group_sizes=group_sizes, gradient=total)

    def gradients(left: Tensor, right: Tensor) -> Tensor:
        """Of left [features, rows] and right [k, rows]."""
        parts = zip(torch.split(left, sizes, 1), torch.split(right, sizes, 1), strict=True)
        return torch.stack([part @ other.t() for part, other in parts])

    shape = f"{x.shape[0]}x{features}x{k}"
    return [
        KernelError(
            name,
            f"{groups} groups, {shape}",
            relative_error(out, products(x, experts)),
            relative_error(out, products(used, used_experts)),
        )
        for name, out in (("grouped_gemm_fp8", contiguous), ("masked_grouped_gemm_fp8", masked))
    ] + [
        KernelError(
            "grouped_gemm_fp8_weight_grad",
            f"{groups} groups, {features}x{k}x{x.shape[0]}",
            relative_error(total, gradients(grad.double().t(), x.double().t())),
            relative_error(
                total, gradients(_grouped_values(*a, sizes), _grouped_values(*b, sizes))
            ),
        )
    ]


def _tile_values(q: Tensor, scales: Tensor) -> Tensor:
    """E4M3 [rows, columns] times its tile scales, exact in float64."""
    spread = scales.double().repeat_interleave(TILE, dim=1)
    return q.double() * spread[:, : q.shape[1]]


def _block_values(q: Tensor, scales: Tensor) -> Tensor:
    """The same of block scales, q [..., rows, columns]."""
    spread = scales.double().repeat_interleave(TILE, dim=-1)[..., : q.shape[-1]]
    spread = spread.repeat_interleave(TILE, dim=-2)[..., : q.shape[-2], :]
    return q.double() * spread


def _grouped_values(q: Tensor, scales: Tensor, sizes: list[int]) -> Tensor:
    """The same of q [columns, rows] whose tiles restart at each group of rows."""
    parts, start = [], 0
    for group, size in enumerate(sizes):
        first = start // TILE + group
        parts.append(_tile_values(q[:, start : start + size], scales[:, first:]))
        start += size
    return torch.cat(parts, dim=1)


def recipe_errors(
    *, lengths: Sequence[int], means: Sequence[float], size: int, seed: int
) -> list[RecipeError]:
    """Products [size, k] x [size, k]^T in three recipes, for each of lengths and means.

    Plain torch: the tensor cores' short sums are those of kernels/no_promotion.py."""
    generator = torch.Generator().manual_seed(seed)
    cpu = torch.device("cpu")
    plain_sums = load_backend("no_promotion")
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
                        plain_sums.gemm_fp8(
                            *_operands(a, b, fine_scales=False), out_dtype=torch.float32
                        ),
                        exact,
                    ),
                    per_tile=relative_error(
                        plain_sums.gemm_fp8(*tiled, out_dtype=torch.float32), exact
                    ),
                    promoted=relative_error(
                        load_backend("reference").gemm_fp8(*tiled, out_dtype=torch.float32), exact
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
