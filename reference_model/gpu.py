"""Fast CUDA implementations of the model's operators: a name in, library kernels behind it.

The operators are written in plain torch, which on a GPU means many small kernels and an attention
core that keeps every score. `use_library_kernels` puts one library or compiled kernel behind each
of them, on CUDA only; `use_local_view` lets one GPU stand for one rank of many. Both are for a
process that measures or records, last until it ends, and change no numerics beyond rounding.

Stated fusions: none across operators. Attention backward is cuDNN's, which recomputes the row sums
that `attention_backward_preprocess` has already given it; the gate is several kernels (two top-k
selections by torch, the rest compiled); a weight gradient by cuBLAS is a GEMM and an addition.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reference_model import decode_operators
from reference_model import operators as ops
from reference_model.kernels import triton_elementwise
from reference_model.kernels.mla_decode import mla_decode_triton

COMPILED = (
    "attention_backward_preprocess",
    "gate",
    "gate_backward",
    "permute",
    "sum_heads",
    "swiglu",
    "topk_weight_grad",
    "transpose",
    "weighted_swiglu",
)
"""Operators that torch.compile fuses into one kernel or two."""

TRITON = (
    "broadcast_heads",
    "cross_entropy",
    "cross_entropy_backward",
    "dequantize_e5m6",
    "quantize_e5m6",
    "rmsnorm",
    "rmsnorm_backward",
    "rmsnorm_residual",
    "rmsnorm_residual_backward",
    "rope",
    "swiglu_backward",
    "unpermute",
    "weighted_swiglu_forward_backward",
)
"""Operators with a kernel in kernels/triton_elementwise.py."""

_RECOMPILE_LIMIT = 64
"""Types and layouts that one operator may be compiled for; shapes are dynamic."""


def use_library_kernels() -> None:
    """Run attention by cuDNN, its absorbed form and element-wise operators by Triton kernels, what
    is left compiled."""
    torch._dynamo.config.recompile_limit = _RECOMPILE_LIMIT
    torch._dynamo.config.accumulated_recompile_limit = 64 * _RECOMPILE_LIMIT
    bodies = {"permute": permute, "attention_backward_preprocess": attention_backward_preprocess}
    for name in COMPILED:
        operator: Any = getattr(ops, name)
        _register(operator, _compiled(bodies.get(name, operator._init_fn)))
    for name in TRITON:
        _register(getattr(ops, name), getattr(triton_elementwise, name))
    _register(ops.attention_forward, attention_forward)
    _register(ops.attention_backward, attention_backward)
    _register(decode_operators.mla_decode, mla_decode)
    _register(decode_operators.batched_gemm_into, batched_gemm_into)


def _register(operator: Any, function: Callable[..., Any]) -> None:
    operator.register_kernel("cuda", function)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled = torch.compile(function, dynamic=True)

    def run(*args: Any, site: str, **kwargs: Any) -> Any:
        # The site names the call and would make every call a compilation of its own.
        return compiled(*args, site="", **kwargs)

    return run


# -- attention -------------------------------------------------------------------------------------


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, site: str
) -> tuple[Tensor, Tensor]:
    """operators.attention_forward by cuDNN's fused kernel."""
    out, log_sum, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), None, True, 0.0, True, False, scale=scale
    )
    return out.transpose(1, 2).contiguous(), log_sum.reshape(log_sum.shape[:3])


def attention_backward_preprocess(
    out: Tensor, out_grad: Tensor, *, qk_dim: int, site: str
) -> tuple[Tensor, Tensor]:
    """operators.attention_backward_preprocess as one sum in place of a batched product."""
    delta = (out.float() * out_grad.float()).sum(dim=3).transpose(1, 2).contiguous()
    return delta, torch.zeros((*out.shape[:3], qk_dim), dtype=torch.float32, device=out.device)


def attention_backward(
    q_grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out_grad: Tensor,
    log_sum: Tensor,
    delta: Tensor,
    *,
    scale: float,
    site: str,
) -> tuple[Tensor, Tensor]:
    """operators.attention_backward by cuDNN's fused kernel.

    It wants the attention output, of which it uses only the row sums of O x dO: delta. Any O with
    these sums will do, so it gets the shortest one, a multiple of dO."""
    wide = out_grad.float()
    square = wide.square().sum(dim=3, keepdim=True)
    share = delta.transpose(1, 2)[..., None] / square.clamp(min=torch.finfo(torch.float32).tiny)
    out = (wide * share).to(out_grad.dtype)
    q_part, k_grad, v_grad = attention_gradients(q, k, v, out, out_grad, log_sum, scale=scale)
    q_grad += q_part
    return k_grad.contiguous(), v_grad.contiguous()


def attention_gradients(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, out_grad: Tensor, log_sum: Tensor, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK and dV in bfloat16 of causal attention, cuDNN's kernels alone; shapes as above."""
    seed = torch.zeros((), dtype=torch.int64, device=q.device)  # of a dropout that is not used
    q_grad, k_grad, v_grad = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        *(x.transpose(1, 2) for x in (out_grad, q, k, v, out)),
        log_sum[..., None],
        seed,
        seed,
        None,
        None,
        None,
        q.shape[1],
        k.shape[1],
        0.0,
        True,
        scale=scale,
    )
    return q_grad.transpose(1, 2), k_grad.transpose(1, 2), v_grad.transpose(1, 2)


def mla_decode(
    q: Tensor, cache: Tensor, lengths: Tensor, *, latent_dim: int, scale: float, site: str
) -> tuple[Tensor, Tensor]:
    """decode_operators.mla_decode by the Triton kernel."""
    return mla_decode_triton(q, cache, lengths, latent_dim=latent_dim, scale=scale)


def batched_gemm_into(a: Tensor, b: Tensor, out: Tensor, *, site: str) -> None:
    """decode_operators.batched_gemm_into by cuBLAS in the operands' type."""
    if out.is_contiguous():
        torch.bmm(a, b.mT, out=out)
    else:
        out.copy_(torch.bmm(a, b.mT))


# -- copies ----------------------------------------------------------------------------------------


def permute(
    x: Tensor, scales: Tensor | None, row_source: Tensor, *, site: str
) -> tuple[Tensor, Tensor]:
    """operators.permute, moving 4 bytes at a time."""
    index = row_source.long()
    rows = x.view(torch.int32)[index].view(x.dtype)
    if scales is None:
        return rows, x.new_empty((rows.shape[0], 0), dtype=torch.float32)
    return rows, scales.t()[:, index].contiguous().t()


# -- one rank of many ------------------------------------------------------------------------------


def use_local_view(*, local_experts: int, expert_rows: int) -> None:
    """Let one GPU run what one rank of an expert-parallel group runs.

    What the other ranks would send is the rank's own tokens, again and again, until `rows` have
    arrived; their choices are set so that exactly expert_rows of them fall on local experts.
    Nothing is sent: the operators of dispatch and combine move the same bytes within the GPU."""

    def receive(x: Tensor, rows: int) -> Tensor:
        source = torch.arange(rows, device=x.device) % x.shape[0]
        return x.view(torch.uint8)[source].view(x.dtype) if x.element_size() == 1 else x[source]

    def receive_scales(x: Tensor, scales: Tensor | None, rows: int) -> Tensor:
        if scales is None:
            return x.new_empty((rows, 0), dtype=torch.float32)
        return receive(scales, rows).t().contiguous().t()

    def dispatch(
        x: Tensor, scales: Tensor | None, indices: Tensor, weights: Tensor, *, rows: int, site: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (
            receive(x, rows),
            receive_scales(x, scales, rows),
            local_choices(indices, rows=rows, local_experts=local_experts, expert_rows=expert_rows),
            receive(weights, rows),
        )

    def dispatch_cached(
        x: Tensor, scales: Tensor | None, *, rows: int, site: str
    ) -> tuple[Tensor, Tensor]:
        return receive(x, rows), receive_scales(x, scales, rows)

    def combine(x: Tensor, shared: Tensor, *, site: str) -> Tensor:
        return _send_back(x, shared.shape[0]) + shared

    def combine_backward(
        x: Tensor, shared: Tensor, weights_grad: Tensor, *, site: str
    ) -> tuple[Tensor, Tensor]:
        tokens = shared.shape[0]
        return _send_back(x, tokens) + shared, _send_back(weights_grad, tokens)

    for function in (dispatch, dispatch_cached, combine, combine_backward):
        _register(getattr(ops, function.__name__), function)


def local_choices(indices: Tensor, *, rows: int, local_experts: int, expert_rows: int) -> Tensor:
    """Choices int64 [rows, K] of which exactly expert_rows are local experts (0 .. E - 1), spread
    evenly; the rest are -1. Every token has one or, while they last, two and more."""
    top_k = indices.shape[1]
    if not rows <= expert_rows <= rows * min(top_k, local_experts):
        raise ValueError(
            f"expert_rows = {expert_rows}: {rows} received tokens of up to"
            f" {min(top_k, local_experts)} local choices hold {rows} to"
            f" {rows * min(top_k, local_experts)}"
        )
    token = torch.arange(rows, device=indices.device)[:, None]
    choice = torch.arange(top_k, device=indices.device)[None, :]
    expert = (token + choice) % local_experts
    return torch.where(choice * rows + token < expert_rows, expert, -1)


def _send_back(x: Tensor, tokens: int) -> Tensor:
    """Sum what stands for each token: x [rows, ...] -> [tokens, ...], in float32."""
    total = torch.zeros((tokens, *x.shape[1:]), dtype=torch.float32, device=x.device)
    for start in range(0, x.shape[0], tokens):
        part = x[start : start + tokens]
        total[: part.shape[0]] += part
    return total.to(x.dtype)
