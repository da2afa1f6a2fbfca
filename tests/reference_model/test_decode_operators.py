"""Operators that only inference issues."""

import pytest
import torch

from reference_model.decode_operators import check_received, dispatch_receive, sample


def test_one_device_receives_its_own_tokens_packed_by_expert():
    values = torch.tensor([[10.0], [11.0]])
    scales = torch.tensor([[1.0], [2.0]])
    indices = torch.tensor([[2, 0], [0, 1]], dtype=torch.int32)
    packed, packed_scales, counts, source = dispatch_receive(
        values, scales, indices, rows=4, room=2, local_experts=3, site=""
    )
    assert counts.tolist() == [2, 1, 1]
    assert packed[..., 0].tolist() == [[10.0, 11.0], [11.0, 0.0], [10.0, 0.0]]
    assert packed_scales[..., 0].tolist() == [[1.0, 2.0], [2.0, 0.0], [1.0, 0.0]]
    # The (token, choice) of each row, counted through: token 0 chose expert 0 second, and so on.
    assert source.tolist() == [[1, 2], [3, 0], [0, 0]]


def test_rows_that_one_device_does_not_receive_are_refused():
    with pytest.raises(ValueError, match="receives 2 tokens x 2 choices"):
        check_received(torch.zeros(2, 2), rows=5, room=2)


def test_sampling_is_greedy():
    assert sample(torch.tensor([[0.0, 3.0, 1.0], [2.0, 1.0, 0.0]]), site="").tolist() == [1, 0]
