"""Multi-head latent attention by itself."""

import torch

from reference_model.attention import MultiHeadLatentAttention
from reference_model.config import load_model_config
from reference_model.layers import rotary_angles
from reference_model.operators import Site
from reference_model.precision import Recipe

CONFIG = load_model_config("debug")
CPU = torch.device("cpu")


def test_a_token_sees_itself_and_those_before_it_only():
    attention = MultiHeadLatentAttention(CONFIG, recipe=Recipe("float32", "reference"), device=CPU)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    x = torch.randn(6, CONFIG.hidden_size, generator=generator)
    angles = rotary_angles(CONFIG, 6, device=CPU)
    out, _ = attention(x, angles, Site("forward", "attn"))
    changed = x.clone()
    changed[4:] = 7.0
    other, _ = attention(changed, angles, Site("forward", "attn"))
    torch.testing.assert_close(other[:4], out[:4], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(other[4:], out[4:])
