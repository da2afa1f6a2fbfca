"""From a call to a trace operator."""

import torch

from reference_model import operators as ops
from reference_model.calls import describe_call, tensor_bytes


def test_a_call_becomes_an_operator_with_its_sizes_types_and_bytes():
    meta = torch.device("meta")
    x = torch.empty(4, 96, dtype=torch.bfloat16, device=meta)
    weight = torch.empty(96, device=meta)
    call = ops.rmsnorm._opoverload
    site = "forward:attn:norm:recompute"
    called = (call, (x, weight), {"eps": 1e-6, "site": site}, torch.empty_like(x))
    operator = describe_call(*called)
    assert (operator.kind, operator.dtype, operator.out_dtype) == (
        "rmsnorm",
        "bfloat16",
        "bfloat16",
    )
    assert (operator.phase, operator.segment, operator.name) == ("forward", "attn", "norm")
    assert operator.recompute
    assert dict(operator.sizes) == {"rows": 4, "columns": 96}
    # 4 x 96 values of 2 bytes and 96 weights of 4.
    assert tensor_bytes(*called) == (768 + 384, 768)
