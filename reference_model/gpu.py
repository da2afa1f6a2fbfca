"""The operators on CUDA: which kernels stand behind their names.

The bodies of the operators are plain torch, which on a GPU means many small kernels and an
attention core that keeps every score. By default one library or Triton kernel stands behind each of
them; `use_kernels("reference")` is the explicit choice of plain torch. That holds for a process and
changes no numerics beyond rounding. In `local_view` one GPU stands for one rank of many.

Operators of more than one kernel: attention is cuDNN's, whose backward recomputes the row sums that
`attention_backward_preprocess` has already given it, from an output that one kernel makes up, and
whose query gradient is added in another; a weight gradient by cuBLAS is a GEMM and an addition, by
Triton two copies and a GEMM; norms' backward adds its partial sums up in a second kernel; counting,
mapping and taking in the rows of experts are two or three. None is fused across operators.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from reference_model import decode_operators
from reference_model import operators as ops

ELEMENTWISE = (
    "cross_entropy",
    "cross_entropy_backward",
    "dequantize_e5m6",
    "embedding_backward",
    "quantize_e5m6",
    "rmsnorm",
    "rmsnorm_backward",
    "rmsnorm_residual",
    "rmsnorm_residual_backward",
    "swiglu",
    "swiglu_backward",
    "transpose",
    "unpermute",
    "weighted_swiglu",
    "weighted_swiglu_forward_backward",
)
"""Operators with a kernel in kernels/triton_elementwise.py."""

HEADS = (
    "attention_backward_preprocess",
    "broadcast_heads",
    "copy",
    "rope",
    "rope_index",
    "sum_heads",
)
"""Operators with a kernel in kernels/triton_heads.py."""

ROUTING = (
    "dispatch_layout",
    "expert_mapping",
    "gate",
    "gate_backward",
    "permute",
    "topk_weight_grad",
)
"""Operators with kernels in kernels/triton_routing.py."""

DECODE = ("append_cache", "combine_receive", "combine_send", "dispatch_receive")
"""Operators of decode_operators.py with kernels in kernels/triton_decode.py."""

SPARSE = ("append_index", "index_scores", "index_topk", "layernorm", "sparse_mla")
"""Operators of sparse attention with kernels in kernels/triton_sparse.py. Masked attention, which
training runs, has none: its own body computes it."""

PLAIN = "reference"
"""The backend that means plain torch throughout."""

CAPTURABLE = ("mixed", "triton")
"""Backends with which the host reads nothing, so that an FP8 step can be captured."""


def default_kernels(device: torch.device) -> str:
    """The backend that commands run on where none is named."""
    return "mixed" if device.type == "cuda" else PLAIN


def choose_kernels(named: str | None, device: torch.device, *, deterministic: bool = False) -> str:
    """The backend of a run, the one named or the default of the device; on CUDA its kernels stand
    behind the operators from here on."""
    kernels = named or default_kernels(device)
    if device.type == "cuda":
        use_kernels(kernels, deterministic=deterministic)
    return kernels


def use_kernels(kernels: str, *, deterministic: bool = False) -> None:
    """Run the operators on CUDA by library and Triton kernels, or, if `kernels` is "reference", by
    their own bodies in plain torch.

    With `deterministic` training steps have the same bits in every run: the query gradient of
    attention, which cuDNN adds up in any order, comes from a kernel of its own."""
    fast_kernels = dict(_fast_kernels())
    if deterministic:
        fast_kernels[ops.attention_backward] = ordered_attention_backward
    for operator, fast in fast_kernels.items():
        operator.register_kernel("cuda", operator._init_fn if kernels == PLAIN else fast)


@cache
def _fast_kernels() -> list[tuple[Any, Callable[..., Any]]]:
    """Operators, each with what runs it fast."""
    from reference_model.kernels import (
        triton_decode,
        triton_elementwise,
        triton_heads,
        triton_optimizer,
        triton_routing,
        triton_sparse,
    )

    found: list[tuple[Any, Callable[..., Any]]] = [
        (getattr(home, name), getattr(module, f"launch_{name}"))
        for home, module, names in (
            (ops, triton_elementwise, ELEMENTWISE),
            (ops, triton_heads, HEADS),
            (ops, triton_routing, ROUTING),
            (decode_operators, triton_decode, DECODE),
            (ops, triton_sparse, SPARSE),
            (ops, triton_optimizer, ("adamw",)),
        )
        for name in names
    ]
    return [
        *found,
        (ops.attention_forward, cudnn_attention_forward),
        (ops.attention_backward, cudnn_attention_backward),
        (decode_operators.batched_gemm_into, _batched_gemm_into),
        (decode_operators.masked_swiglu, _masked_swiglu),
        (decode_operators.mla_decode, _mla_decode),
        (decode_operators.rope_into, triton_heads.launch_rope_into),
    ]


# -- attention -------------------------------------------------------------------------------------


def cudnn_attention_forward(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, site: str
) -> tuple[Tensor, Tensor]:
    """Run operators.attention_forward by cuDNN's fused kernel, which has no float32 form: its own
    body computes that."""
    if q.dtype == torch.float32:
        plain: Any = ops.attention_forward
        wide, sums = plain._init_fn(q, k, v, scale=scale, site=site)
        return wide, sums
    out, log_sum, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), None, True, 0.0, True, False, scale=scale
    )
    return out.transpose(1, 2).contiguous(), log_sum.reshape(log_sum.shape[:3])


def cudnn_attention_backward(
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
    """Run operators.attention_backward by cuDNN's fused kernel, float32 by its own body.

    It wants the attention output, of which it uses only the row sums of O x dO: delta. Any O with
    these sums will do, so it gets the shortest one, a multiple of dO."""
    from reference_model.kernels.triton_heads import output_of_sums

    if q.dtype == torch.float32:
        plain: Any = ops.attention_backward
        k_wide, v_wide = plain._init_fn(
            q_grad, q, k, v, out_grad, log_sum, delta, scale=scale, site=site
        )
        return k_wide, v_wide
    out = output_of_sums(out_grad, delta)
    q_part, k_grad, v_grad = attention_gradients(q, k, v, out, out_grad, log_sum, scale=scale)
    q_grad += q_part
    return k_grad.contiguous(), v_grad.contiguous()


def ordered_attention_backward(
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
    """Run operators.attention_backward with the same bits each time: dK and dV by cuDNN, as ever,
    and dQ by a kernel that adds in one order."""
    from reference_model.kernels.triton_attention import add_query_gradient

    if q.dtype == torch.float32:  # plain torch, which adds in one order
        return cudnn_attention_backward(
            q_grad, q, k, v, out_grad, log_sum, delta, scale=scale, site=site
        )
    thrown_away = torch.empty_like(q_grad)
    gradients = cudnn_attention_backward(
        thrown_away, q, k, v, out_grad, log_sum, delta, scale=scale, site=site
    )
    add_query_gradient(q_grad, q, k, v, out_grad, log_sum, delta, scale=scale)
    return gradients


def attention_gradients(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, out_grad: Tensor, log_sum: Tensor, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of causal attention dQ, dK and dV in bfloat16, by cuDNN's kernels alone; shapes as
    above."""
    seed = _unused_seed(q.device)
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


@cache
def _unused_seed(device: torch.device) -> Tensor:
    """What cuDNN reads as the seed of a dropout that is not used."""
    return torch.zeros((), dtype=torch.int64, device=device)


def _mla_decode(
    q: Tensor, cache: Tensor, lengths: Tensor, *, latent_dim: int, scale: float, site: str
) -> tuple[Tensor, Tensor]:
    """Run decode_operators.mla_decode by the Triton kernel, whose products would round float32 to
    TF32: its own body computes that."""
    from reference_model.kernels.mla_decode import mla_decode_triton

    if q.dtype == torch.float32:
        plain: Any = decode_operators.mla_decode
        out, sums = plain._init_fn(q, cache, lengths, latent_dim=latent_dim, scale=scale, site=site)
        return out, sums
    return mla_decode_triton(q, cache, lengths, latent_dim=latent_dim, scale=scale)


def _batched_gemm_into(a: Tensor, b: Tensor, out: Tensor, *, site: str) -> None:
    """Run decode_operators.batched_gemm_into by cuBLAS in the operands' type; it writes strided
    matrices where they lie."""
    torch.bmm(a, b.mT, out=out)


def _masked_swiglu(
    gate_up: Tensor, group_rows: Tensor, *, rows: int, fp8: bool, kernels: str, site: str
) -> tuple[Tensor, Tensor]:
    """Run decode_operators.masked_swiglu by the Triton kernel where the result is FP8."""
    from reference_model.kernels.triton_quantize import masked_swiglu_quantize

    if fp8:
        return masked_swiglu_quantize(gate_up, group_rows=group_rows, power_of_two_scales=False)
    plain: Any = decode_operators.masked_swiglu
    values, scales = plain._init_fn(
        gate_up, group_rows, rows=rows, fp8=fp8, kernels=kernels, site=site
    )
    return values, scales


# -- one rank of many ------------------------------------------------------------------------------


@contextmanager
def local_view(*, local_experts: int, expert_rows: int) -> Iterator[None]:
    """One GPU runs what one rank of an expert-parallel group runs.

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

    moved: list[tuple[Any, Callable[..., Any]]] = [
        (getattr(ops, function.__name__), function)
        for function in (dispatch, dispatch_cached, combine, combine_backward)
    ]
    for operator, function in moved:
        operator.register_kernel("cuda", function)
    try:
        yield
    finally:
        for operator, _ in moved:
            operator.register_kernel("cuda", operator._init_fn)


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
