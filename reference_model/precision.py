"""Precision recipes: which operators a step of the model becomes in float32, bfloat16 or FP8.

A recipe turns tensors into GEMM operands and operands into products, so that model.py reads the
same for all of them. In "float32" and "bfloat16" operands are the tensors themselves, transposes
are views, and no cast is issued. "fp8" is DeepSeek-V3's training recipe (Technical Report, section
3.3): E4M3 operands with online scales, activations and gradients in 1x128 tiles, weights in 128x128
blocks, transposed tiles for weight gradients, the attention output kept in E5M6, everything that
is not a GEMM in bfloat16 or float32, weight gradients accumulated in float32.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from reference_model import operators as ops
from reference_model.formats import TILE
from reference_model.kernels import BACKENDS
from reference_model.kernels.reference import empty_scale_rows

RECIPES = ("float32", "bfloat16", "fp8")


class Operand(NamedTuple):
    """A matrix as a GEMM reads it."""

    values: Tensor
    scales: Tensor | None
    """float32 scales of E4M3 (or E5M6) values, None where the values are not quantised."""
    turned_scales: Tensor | None = None
    """Of a weight's working copy: the scales of its transpose, in the layout products read."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Precision of a step. Every method that issues operators takes the site it issues them at."""

    name: str
    """One of `RECIPES`."""
    kernels: str
    """Backend of the FP8 kernels, one of `reference_model.kernels.BACKENDS`."""

    def __post_init__(self) -> None:
        if self.name not in RECIPES:
            raise ValueError(f"recipe {self.name!r} is not one of {list(RECIPES)}")
        if self.kernels not in BACKENDS:
            raise ValueError(f"kernels {self.kernels!r} is not one of {list(BACKENDS)}")

    @property
    def fp8(self) -> bool:
        """Whether GEMMs are FP8."""
        return self.name == "fp8"

    @property
    def dtype(self) -> torch.dtype:
        """Type of activations between GEMMs."""
        return torch.float32 if self.name == "float32" else torch.bfloat16

    # -- weights, once a step ----------------------------------------------------------------------

    def weight(self, master: Tensor, site: str, copied: Operand | None = None) -> Operand:
        """Working copy of a float32 master weight [..., out, in].

        Args:
            copied: of the same weight, whose memory it takes.
        """
        if not self.fp8:
            return self.plain_weight(master, site, copied)
        if copied is None:
            *leading, rows, columns = master.shape
            blocks = (-(-rows // TILE), -(-columns // TILE))
            copied = Operand(
                master.new_empty(master.shape, dtype=torch.float8_e4m3fn),
                empty_scale_rows(master, *leading, *blocks),
                empty_scale_rows(master, *leading, *reversed(blocks)),
            )
        values, scales, turned_scales = copied
        assert scales is not None
        assert turned_scales is not None
        ops.quantize_weight(master, values, scales, turned_scales, kernels=self.kernels, site=site)
        return copied

    def plain_weight(self, master: Tensor, site: str, copied: Operand | None = None) -> Operand:
        """The same in the recipe's dtype, whatever its products are; float32 is no copy."""
        if self.dtype == master.dtype:
            return Operand(master, None)
        if copied is None:
            copied = Operand(torch.empty_like(master, dtype=self.dtype), None)
        ops.cast_weight(master, copied.values, site=site)
        return copied

    # -- operands ----------------------------------------------------------------------------------

    def quantize(self, x: Tensor, site: str, *, power_of_two_scales: bool = False) -> Operand:
        """Quantise x [rows, columns] as the left operand of a forward or input-gradient GEMM."""
        if not self.fp8:
            return Operand(x, None)
        values, scales = ops.quantize(
            x, power_of_two_scales=power_of_two_scales, kernels=self.kernels, site=site
        )
        return Operand(values, scales)

    def dequantize(self, x: Operand, site: str) -> Tensor:
        """Undo `quantize`."""
        if x.scales is None:
            return x.values
        return ops.dequantize(x.values, x.scales, dtype=self.dtype, kernels=self.kernels, site=site)

    def transpose(self, weight: Operand, site: str) -> Operand:
        """A weight [..., rows, columns] with its last two dimensions exchanged."""
        if weight.scales is None:
            return Operand(weight.values.mT, None)
        turned = weight.scales.mT if weight.turned_scales is None else weight.turned_scales
        return Operand(ops.transpose(weight.values, site=site), turned)

    def quantize_transposed(self, x: Operand, site: str) -> Operand:
        """Bring x [rows, columns], quantised or not, into a weight-gradient operand
        [columns, rows]."""
        if not self.fp8:
            return Operand(x.values.t(), None)
        return Operand(*ops.quantize_transpose(x.values, x.scales, kernels=self.kernels, site=site))

    def quantize_rows_transposed(self, rows: Tensor, group_sizes: Tensor, site: str) -> Operand:
        """The same of rows sorted by expert."""
        if not self.fp8:
            return Operand(rows.t(), None)
        return Operand(
            *ops.grouped_quantize_transpose(rows, group_sizes, kernels=self.kernels, site=site)
        )

    def gather_transposed(
        self, x: Operand, row_source: Tensor, group_sizes: Tensor, site: str
    ) -> Operand:
        """The same of received tokens x [D, columns], expanded to rows on the way."""
        if x.scales is None:
            rows, _ = ops.permute(x.values, None, row_source, site=site)
            return Operand(rows.t(), None)
        return Operand(
            *ops.quantize_transpose_gather(
                x.values, x.scales, row_source, group_sizes, kernels=self.kernels, site=site
            )
        )

    # -- matrix products ---------------------------------------------------------------------------

    def gemm(self, x: Operand, weight: Operand, site: str) -> Tensor:
        """Multiply x [T, in] by weight [out, in] transposed; returns [T, out]."""
        return ops.gemm(
            x.values,
            weight.values,
            x.scales,
            weight.scales,
            out_dtype=self.dtype,
            kernels=self.kernels,
            site=site,
        )

    def gemm_weight_grad(self, total: Tensor, grad: Operand, x: Operand, site: str) -> None:
        """Add grad [out, T] times x [in, T] transposed into total [out, in]."""
        ops.gemm_weight_grad(
            total,
            grad.values,
            x.values,
            grad.scales,
            x.scales,
            kernels=self.kernels,
            site=site,
        )

    def grouped_gemm(
        self, rows: Operand, weight: Operand, group_sizes: Tensor, site: str
    ) -> Tensor:
        """Multiply rows [R, in] by weight [E, out, in] of their expert transposed; returns
        [R, out]."""
        return ops.grouped_gemm(
            rows.values,
            weight.values,
            rows.scales,
            weight.scales,
            group_sizes,
            out_dtype=self.dtype,
            kernels=self.kernels,
            site=site,
        )

    def grouped_gemm_weight_grad(
        self, total: Tensor, grad: Operand, x: Operand, group_sizes: Tensor, site: str
    ) -> None:
        """Add grad [out, R] times x [in, R] transposed into total [E, out, in], expert by
        expert."""
        ops.grouped_gemm_weight_grad(
            total,
            grad.values,
            x.values,
            grad.scales,
            x.scales,
            group_sizes=group_sizes,
            kernels=self.kernels,
            site=site,
        )

    # -- activation --------------------------------------------------------------------------------

    def swiglu(self, gate_up: Tensor, site: str) -> Operand:
        """SwiGLU of gate_up [rows, 2 columns] as the left operand of the down projection."""
        if not self.fp8:
            return Operand(ops.swiglu(gate_up, site=site), None)
        return Operand(*ops.swiglu_quantize(gate_up, kernels=self.kernels, site=site))

    def weighted_swiglu(self, gate_up: Tensor, row_weights: Tensor, site: str) -> Operand:
        """The same times the routing weight of each row."""
        if not self.fp8:
            return Operand(ops.weighted_swiglu(gate_up, row_weights, site=site), None)
        return Operand(
            *ops.weighted_swiglu_quantize(gate_up, row_weights, kernels=self.kernels, site=site)
        )

    def swiglu_transposed(self, gate_up: Tensor, site: str) -> Operand:
        """SwiGLU as a weight-gradient operand [columns, rows]."""
        if not self.fp8:
            return Operand(ops.swiglu(gate_up, site=site).t(), None)
        return Operand(*ops.swiglu_quantize_transpose(gate_up, kernels=self.kernels, site=site))

    # -- what attention keeps for backward ---------------------------------------------------------

    def keep_attention_output(self, out: Tensor, site: str) -> Operand:
        """The attention output [T, heads x v_dim] in the format in which backward finds it."""
        if not self.fp8:
            return Operand(out, None)
        return Operand(*ops.quantize_e5m6(out, site=site))

    def kept_attention_output(self, kept: Operand, site: str) -> Tensor:
        """Undo `keep_attention_output`."""
        if kept.scales is None:
            return kept.values
        return ops.dequantize_e5m6(kept.values, kept.scales, dtype=self.dtype, site=site)

    def scale_attention_output(self, x: Tensor, site: str) -> Tensor:
        """The published FP8 trace multiplies the output of o_proj, and its gradient, by a scalar in
        a kernel of its own. The value is not published; 1 leaves the checkpoint's mathematics as
        they are."""
        return ops.scale(x, factor=1.0, site=site) if self.fp8 else x
