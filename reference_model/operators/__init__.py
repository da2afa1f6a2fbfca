"""Every kernel-level operator of the model as a torch.library custom operator: tensors in and out.

The same call runs on CPU and CUDA and yields shapes on meta, and a TorchDispatchMode sees it as one
event, so what is recorded is what runs. Fusion is explicit: what is one operator here is one kernel
in the recipe. An operator never differentiates itself; the backward of a layer calls the backward
operators by name (see model.py), because which kernels it launches, in which order, and what it
recomputes is what a performance model has to know.

Arguments
    site        where the call stands, "phase:segment:name", made by `Site`; no effect on the result
    kernels     backend of the FP8 kernels (`reference_model.kernels.BACKENDS`)
    *_scales    float32 scales of an FP8 operand, None where the operand is not quantised
    out, out_*  written only; every other mutated argument is added to or changed in place

Shapes are in the docstrings: T tokens, R rows of the local experts, D tokens received by dispatch
(one for each token and rank), E local experts, K choices of a token. Matrix products are
[m, k] x [n, k]^T; operands of bfloat16 and float32 products may be strided views.
"""

from reference_model.operators.attention_core import (
    attention_backward,
    attention_backward_preprocess,
    attention_forward,
)
from reference_model.operators.casts import (
    add,
    broadcast_heads,
    cast,
    concat,
    copy,
    dequantize,
    dequantize_e5m6,
    grouped_quantize_transpose,
    quantize,
    quantize_e5m6,
    quantize_transpose,
    quantize_transpose_gather,
    scale,
    sum_heads,
    transpose,
)
from reference_model.operators.elementwise import (
    rmsnorm,
    rmsnorm_backward,
    rmsnorm_residual,
    rmsnorm_residual_backward,
    rope,
    swiglu,
    swiglu_backward,
    swiglu_quantize,
    swiglu_quantize_transpose,
    weighted_swiglu,
    weighted_swiglu_forward_backward,
    weighted_swiglu_quantize,
)
from reference_model.operators.products import (
    gemm,
    gemm_weight_grad,
    grouped_gemm,
    grouped_gemm_weight_grad,
)
from reference_model.operators.registration import NAMESPACE, Site
from reference_model.operators.routing import (
    combine,
    combine_backward,
    dispatch,
    dispatch_cached,
    dispatch_layout,
    expert_mapping,
    gate,
    gate_backward,
    permute,
    topk_weight_grad,
    unpermute,
)
from reference_model.operators.sharing import gather_tokens, scatter_sums
from reference_model.operators.sparse import (
    append_index,
    attention_masked_backward,
    attention_masked_forward,
    index_scores,
    index_topk,
    layernorm,
    rope_index,
    sparse_mla,
)
from reference_model.operators.updating import (
    adamw,
    cast_weight,
    gradient_norm,
    quantize_weight,
    update_tables,
)
from reference_model.operators.vocabulary import (
    cross_entropy,
    cross_entropy_backward,
    cross_entropy_backward_part,
    cross_entropy_merged,
    cross_entropy_part,
    embedding,
    embedding_backward,
    embedding_backward_part,
    embedding_part,
)

__all__ = [
    "NAMESPACE",
    "Site",
    "adamw",
    "add",
    "append_index",
    "attention_backward",
    "attention_backward_preprocess",
    "attention_forward",
    "attention_masked_backward",
    "attention_masked_forward",
    "broadcast_heads",
    "cast",
    "cast_weight",
    "combine",
    "combine_backward",
    "concat",
    "copy",
    "cross_entropy",
    "cross_entropy_backward",
    "cross_entropy_backward_part",
    "cross_entropy_merged",
    "cross_entropy_part",
    "dequantize",
    "dequantize_e5m6",
    "dispatch",
    "dispatch_cached",
    "dispatch_layout",
    "embedding",
    "embedding_backward",
    "embedding_backward_part",
    "embedding_part",
    "expert_mapping",
    "gate",
    "gate_backward",
    "gather_tokens",
    "gemm",
    "gemm_weight_grad",
    "gradient_norm",
    "grouped_gemm",
    "grouped_gemm_weight_grad",
    "grouped_quantize_transpose",
    "index_scores",
    "index_topk",
    "layernorm",
    "permute",
    "quantize",
    "quantize_e5m6",
    "quantize_transpose",
    "quantize_transpose_gather",
    "quantize_weight",
    "rmsnorm",
    "rmsnorm_backward",
    "rmsnorm_residual",
    "rmsnorm_residual_backward",
    "rope",
    "rope_index",
    "scale",
    "scatter_sums",
    "sparse_mla",
    "sum_heads",
    "swiglu",
    "swiglu_backward",
    "swiglu_quantize",
    "swiglu_quantize_transpose",
    "topk_weight_grad",
    "transpose",
    "unpermute",
    "update_tables",
    "weighted_swiglu",
    "weighted_swiglu_forward_backward",
    "weighted_swiglu_quantize",
]
