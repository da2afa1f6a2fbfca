"""What only a decode step issues, as Triton kernels, against the operators' bodies."""

import pytest
import torch

from reference_model import decode_operators as operators
from reference_model.kernels import triton_decode as kernels
from reference_model.kernels.triton_backend import KERNELS
from reference_model.kernels.triton_quantize import masked_swiglu_quantize

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

SITE = "forward:test:call"


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("expanded", [False, True])
def test_append_cache_writes_latent_and_key_side_by_side(expanded):
    latent, key, cache = (
        normal(6, 48, seed=1)[:, :20],
        normal(6, 12, seed=2),
        normal(2, 9, 32, seed=3),
    )
    positions = torch.tensor([[0, 4, 8], [3, 2, 1]], device=DEVICE)
    if expanded:
        positions = positions[:1].expand(2, -1)
    expected = cache.clone()
    kernels.launch_append_cache(latent, key, positions, cache, site=SITE)
    operators.append_cache._init_fn(latent, key, positions, expected, site=SITE)
    assert torch.equal(cache, expected)


CHOICES = torch.tensor([[0, 3], [3, 1], [1, 3]])
"""Of 3 tokens among 4 experts: expert 2 has none, expert 3 all."""


@pytest.mark.parametrize(("columns", "tiles"), [(24, 2), (23, 0)])
def test_dispatch_receive_packs_rows_by_expert(columns, tiles):
    values = normal(3, columns, seed=4).to(torch.float8_e4m3fn)
    scales = normal(tiles, 3, seed=5).t()
    options = {"rows": 6, "room": 3, "local_experts": 4, "site": SITE}
    choices = CHOICES.to(DEVICE)
    packed, packed_scales, counts, source = kernels.launch_dispatch_receive(
        values, scales, choices, **options
    )
    assert counts.tolist() == [1, 2, 0, 3]
    filled = torch.arange(3, device=DEVICE)[None, :] < counts[:, None]
    assert source[filled].tolist() == [0, 3, 4, 1, 2, 5]
    token = source[filled].long() // 2
    assert torch.equal(packed.view(torch.uint8)[filled], values.view(torch.uint8)[token])
    assert torch.equal(packed_scales[filled], scales[token])


def test_combine_sends_filled_rows_and_sums_them_by_weight():
    x, weights = normal(4, 3, 24, seed=6), normal(3, 2, seed=7)
    choices = CHOICES.to(DEVICE)
    *_, counts, source = kernels.launch_dispatch_receive(
        normal(3, 24, seed=8), normal(0, 3, seed=9).t(), choices,
        rows=6, room=3, local_experts=4, site=SITE,
    )  # fmt: skip
    sent = kernels.launch_combine_send(x, counts, rows=6, site=SITE)
    filled = torch.arange(3, device=DEVICE)[None, :] < counts[:, None]
    assert torch.equal(sent[filled], x[filled])
    got = kernels.launch_combine_receive(sent, source, weights, counts, site=SITE)
    expected = operators.combine_receive._init_fn(x, source, weights, counts, site=SITE)
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-6)


def test_masked_swiglu_quantises_the_filled_rows():
    gate_up = normal(2, 3, 2 * 200, seed=10)
    counts = torch.tensor([3, 1], dtype=torch.int32, device=DEVICE)
    values, scales = masked_swiglu_quantize(gate_up, group_rows=counts, power_of_two_scales=False)
    gate, up = gate_up.chunk(2, dim=2)
    activated = (gate * torch.sigmoid(gate) * up).flatten(0, 1)
    wanted, wanted_scales = KERNELS.quantize_tiles(activated, power_of_two_scales=False)
    for group, row in ((0, 0), (0, 1), (0, 2), (1, 0)):
        at = 3 * group + row
        torch.testing.assert_close(scales[group, row], wanted_scales[at], rtol=2e-5, atol=0.0)
        difference = values[group, row].float() - wanted[at].float()
        assert difference.abs().max() <= 32  # one step of E4M3 near 448
