"""Linear layers and norms, with forward, input gradient and weight gradient.

Weights are float32 masters; gradients add up in `.grad`, float32 too. GEMMs read a working copy in
the recipe's format, made anew whenever the master has changed, so once a step and never within a
micro-batch. Shapes: T tokens, R expert rows, E local experts.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from reference_model import operators as ops
from reference_model.config import ModelConfig, Yarn
from reference_model.operators import Site
from reference_model.precision import Operand, Recipe


def gradient(parameter: nn.Parameter) -> Tensor:
    """The float32 accumulator of a parameter's gradient, created as zeros at first use."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


UPDATE = Site("weight_grad", "optimizer")
"""What ends a step, behind the weight gradients of its last micro-batch."""

WeightGrad: TypeAlias = Callable[[Site], None]
"""A weight gradient put off: a layer's `weight_grad` with the tensors that it needs, which adds it
into the gradients of the weights when it is called."""


class Weight(nn.Module):
    """A matrix and its working copy."""

    def __init__(
        self, name: str, shape: tuple[int, ...], *, recipe: Recipe, device: torch.device
    ) -> None:
        super().__init__()
        self.name = name
        self.recipe = recipe
        self.weight = nn.Parameter(torch.empty(shape, dtype=torch.float32, device=device))
        self._copy: Operand | None = None
        self._copied_version = -1

    def working_copy(self) -> Operand:
        """The weight as GEMMs read it, current with the master; it stays where it is, so that a
        captured step finds it."""
        if self._copy is None or self._copied_version != self.weight._version:
            with torch.no_grad():
                self._copy = self._make_copy(UPDATE(f"{self.name}.working_copy"), self._copy)
            self._copied_version = self.weight._version
        return self._copy

    def _make_copy(self, site: str, copied: Operand | None) -> Operand:
        return self.recipe.plain_weight(self.weight, site, copied)


class Linear(Weight):
    """A linear layer y = x W^T with W [out, in], in the recipe's GEMM format."""

    def __init__(
        self,
        name: str,
        out_features: int,
        in_features: int,
        *,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        super().__init__(name, (out_features, in_features), recipe=recipe, device=device)

    def _make_copy(self, site: str, copied: Operand | None) -> Operand:
        return self.recipe.weight(self.weight, site, copied)

    def quantize_input(
        self, x: Tensor, site: Site, *, power_of_two_scales: bool = False
    ) -> Operand:
        """Quantise x [T, in] as this layer's left operand."""
        return self.recipe.quantize(
            x, site(f"{self.name}.quantize_input"), power_of_two_scales=power_of_two_scales
        )

    def forward(self, x: Operand, site: Site) -> Tensor:
        """Project x [T, in]; returns [T, out]."""
        return self.recipe.gemm(x, self.working_copy(), site(self.name))

    def quantize_grad(
        self, grad: Tensor, site: Site, *, power_of_two_scales: bool = False
    ) -> Operand:
        """The output gradient [T, out] as the left operand of the input gradient."""
        return self.recipe.quantize(
            grad, site(f"{self.name}.quantize_grad"), power_of_two_scales=power_of_two_scales
        )

    def input_grad(self, grad: Operand, site: Site) -> Tensor:
        """Turn the output gradient [T, out] into the input gradient [T, in]."""
        weight = self.recipe.transpose(self.working_copy(), site(f"{self.name}.transpose_weight"))
        return self.recipe.gemm(grad, weight, site(f"{self.name}.input_grad"))

    def put_off_weight_grad(self, grad: Operand, x: Operand, site: Site) -> WeightGrad:
        """Transpose output gradient [T, out] and input [T, in] for the weight gradient."""
        return partial(
            self.weight_grad,
            self.recipe.quantize_transposed(grad, site(f"{self.name}.transpose_grad")),
            self.recipe.quantize_transposed(x, site(f"{self.name}.transpose_input")),
        )

    def weight_grad(self, grad: Operand, x: Operand, site: Site) -> None:
        """Add the product of output gradient [out, T] and input [in, T] into the gradient."""
        self.recipe.gemm_weight_grad(
            gradient(self.weight), grad, x, site(f"{self.name}.weight_grad")
        )

    def backward(self, grad: Tensor, x: Tensor, site: Site) -> tuple[Tensor, WeightGrad]:
        """Turn the output gradient [T, out] and the input [T, in] into the input gradient, and the
        weight gradient still to do."""
        x_grad = self.input_grad(self.quantize_grad(grad, site), site)
        deferred = self.put_off_weight_grad(Operand(grad, None), Operand(x, None), site)
        return x_grad, deferred


class HighPrecisionLinear(Weight):
    """A linear layer that FP8 leaves alone: the gate and the output head (Report, 3.3.1)."""

    def __init__(
        self,
        name: str,
        out_features: int,
        in_features: int,
        *,
        out_dtype: torch.dtype,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        super().__init__(name, (out_features, in_features), recipe=recipe, device=device)
        self.out_dtype = out_dtype

    def forward(self, x: Tensor, site: Site) -> Tensor:
        """Project x [T, in]; returns [T, out] of `out_dtype`."""
        return self._gemm(x, self.working_copy().values, self.out_dtype, site(self.name))

    def input_grad(self, grad: Tensor, site: Site) -> Tensor:
        """Turn the output gradient [T, out] of the recipe's dtype into the input gradient
        [T, in]."""
        weight = self.working_copy().values.t()
        return self._gemm(grad, weight, self.recipe.dtype, site(f"{self.name}.input_grad"))

    def weight_grad(self, grad: Tensor, x: Tensor, site: Site) -> None:
        """Add the product of output gradient [T, out] and input [T, in] into the gradient."""
        self.recipe.gemm_weight_grad(
            gradient(self.weight),
            Operand(grad.t(), None),
            Operand(x.t(), None),
            site(f"{self.name}.weight_grad"),
        )

    def _gemm(self, x: Tensor, weight: Tensor, dtype: torch.dtype, site: str) -> Tensor:
        return ops.gemm(
            x, weight, None, None, out_dtype=dtype, kernels=self.recipe.kernels, site=site
        )


class GroupedLinear(Weight):
    """One [out, in] weight for each local expert; rows come sorted by expert.

    In FP8 the working copy is held transposed, ready for the input gradient, and the forward pass
    transposes it: the published trace does it this way round for routed experts only."""

    def __init__(
        self,
        name: str,
        experts: int,
        out_features: int,
        in_features: int,
        *,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        super().__init__(name, (experts, out_features, in_features), recipe=recipe, device=device)

    def _make_copy(self, site: str, copied: Operand | None) -> Operand:
        return self.recipe.weight(self.weight.mT, site, copied)  # [E, in, out]

    def forward(self, rows: Operand, group_sizes: Tensor, site: Site) -> Tensor:
        """Project rows [R, in]; returns [R, out]."""
        weight = self.recipe.transpose(self.working_copy(), site(f"{self.name}.transpose_weight"))
        return self.recipe.grouped_gemm(rows, weight, group_sizes, site(self.name))

    def input_grad(self, grad: Operand, group_sizes: Tensor, site: Site) -> Tensor:
        """Turn the output gradient [R, out] into the input gradient [R, in]."""
        return self.recipe.grouped_gemm(
            grad, self.working_copy(), group_sizes, site(f"{self.name}.input_grad")
        )

    def weight_grad(self, grad: Operand, x: Operand, group_sizes: Tensor, site: Site) -> None:
        """Add the product of output gradient [out, R] and input [in, R] into the gradient."""
        self.recipe.grouped_gemm_weight_grad(
            gradient(self.weight), grad, x, group_sizes, site(f"{self.name}.weight_grad")
        )


class RMSNorm(nn.Module):
    """A norm: x over the root mean square of its columns, times weight, which stays float32."""

    def __init__(self, name: str, columns: int, *, eps: float, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(columns, dtype=torch.float32, device=device))
        self.name = name
        self.eps = eps

    def forward(self, x: Tensor, site: Site) -> Tensor:
        """Norm x [T, columns]."""
        return ops.rmsnorm(x, self.weight, eps=self.eps, site=site(self.name))

    def add(self, update: Tensor | None, residual: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        """The norm of residual + update, and the sum; without an update, of the residual."""
        if update is None:
            return self.forward(residual, site), residual
        return ops.rmsnorm_residual(
            update, residual, self.weight, eps=self.eps, site=site(self.name)
        )

    def backward(self, grad: Tensor, x: Tensor, site: Site) -> Tensor:
        """Turn the gradient of the norm, and its input, into the gradient of the input."""
        return ops.rmsnorm_backward(
            grad,
            x,
            self.weight,
            gradient(self.weight),
            eps=self.eps,
            site=site(f"{self.name}.input_grad"),
        )

    def add_backward(
        self, grad: Tensor, residual_grad: Tensor, total: Tensor, site: Site
    ) -> Tensor:
        """Turn the gradients of the norm and of the sum, and the sum, into the gradient of both its
        terms."""
        return ops.rmsnorm_residual_backward(
            grad,
            residual_grad,
            total,
            self.weight,
            gradient(self.weight),
            eps=self.eps,
            site=site(f"{self.name}.input_grad"),
        )


class Angles(NamedTuple):
    """Rotary angles of the positions of one sequence, or of each of several."""

    cos: Tensor
    """float32 [length, dim / 2] or [sequences, length, dim / 2]"""
    sin: Tensor

    @property
    def length(self) -> int:
        return self.cos.shape[-2]


@lru_cache(maxsize=16)
def rotary_angles(config: ModelConfig, length: int, *, device: torch.device) -> Angles:
    """Angles of positions 0 .. length - 1 (YaRN: arXiv:2309.00071, sections 3.2 and 3.4).

    They are computed on the host and kept on the device: a step copies none."""
    dim = config.qk_rope_head_dim
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    frequencies = torch.tensor(config.rope_theta) ** -exponents
    magnitude = 1.0
    if config.rope_scaling is not None:
        frequencies = _yarn_frequencies(frequencies, config.rope_scaling, config.rope_theta)
        magnitude = _yarn_magnitude(config.rope_scaling)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return Angles((angles.cos() * magnitude).to(device), (angles.sin() * magnitude).to(device))


def attention_scale(config: ModelConfig) -> float:
    """Factor of the scores: 1 / sqrt(QK dimension), times YaRN's temperature squared."""
    scale = 1 / math.sqrt(config.qk_head_dim)
    yarn = config.rope_scaling
    if yarn is None or not yarn.mscale_all_dim:
        return scale
    return scale * _temperature(yarn.factor, yarn.mscale_all_dim) ** 2


def _temperature(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1


def _yarn_magnitude(yarn: Yarn) -> float:
    if yarn.attention_factor is not None:
        return yarn.attention_factor
    if yarn.mscale and yarn.mscale_all_dim:
        return _temperature(yarn.factor, yarn.mscale) / _temperature(
            yarn.factor, yarn.mscale_all_dim
        )
    return _temperature(yarn.factor, 1.0)


def _yarn_frequencies(frequencies: Tensor, yarn: Yarn, theta: float) -> Tensor:
    """Divide slow frequencies by the factor, keep fast ones, and blend linearly in between."""
    pairs = frequencies.shape[0]

    def pair_with(rotations: float) -> float:
        """Index of the pair that turns this often over the original context."""
        turns = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return pairs * math.log(turns) / math.log(theta)

    low, high = pair_with(yarn.beta_fast), pair_with(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    # A ramp of no width would divide by zero; the published code widens it by a thousandth.
    width = high - low or 0.001
    slow = ((torch.arange(pairs, dtype=torch.float32) - low) / width).clamp(0, 1)
    return frequencies / yarn.factor * slow + frequencies * (1 - slow)
