"""What a scenario file says of serving."""

import pytest
from pydantic import ValidationError

from simulator.scenario.serving import AllToAllInputs, TensorParallel


def test_only_groups_of_several_gpus_gather_and_scatter():
    split = TensorParallel(attention=8, experts=1, shared_expert=1, dense=4, vocabulary=8)
    assert split.groups == {4, 8}


def test_buffers_of_low_latency_kernels_follow_from_their_profile():
    with pytest.raises(ValidationError, match="low_latency and beside_compute are needed"):
        AllToAllInputs.model_validate({"kernels": "low_latency"})
