"""Shapes that dispatch gives, as the recorder sees them on the meta device."""

import torch

from reference_model.peer_operators import dispatch_to_peers


def test_as_many_rows_arrive_as_the_ranks_send():
    meta = torch.device("meta")
    x = torch.empty(6, 256, device=meta, dtype=torch.bfloat16)
    indices = torch.empty(6, 2, device=meta, dtype=torch.int64)
    weights = torch.empty(6, 2, device=meta)
    source = torch.empty(9, device=meta, dtype=torch.int64)
    values, scales, choices, factors = dispatch_to_peers(
        x, torch.empty(6, 2, device=meta), indices, weights, source,
        sent=[5, 4], received=[3, 4], first=[0, 3], local_experts=8, site="",
    )  # fmt: skip
    assert values.shape == (7, 256)
    assert scales.shape == (7, 2)
    assert scales.stride() == (1, 7)
    assert choices.shape == factors.shape == (7, 2)
