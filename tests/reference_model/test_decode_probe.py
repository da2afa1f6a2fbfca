"""The gate that is timed as one kernel chooses as the model's gate does."""

import pytest
import torch

from reference_model.operators import gate


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_fused_gate_chooses_as_the_models_gate():
    from reference_model.decode_probe import fused_gate

    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn((64, 256), device="cuda", generator=generator)
    bias = torch.randn(256, device="cuda", generator=generator) / 10
    indices, weights = fused_gate(logits, bias)
    expected, expected_weights = gate(
        logits, bias, n_group=8, topk_group=4, top_k=8, normalise=True, scaling=2.5,
        site="forward:attention:gate",
    )  # fmt: skip
    assert torch.equal(indices, expected)
    torch.testing.assert_close(weights, expected_weights)
