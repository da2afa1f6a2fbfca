"""What a scenario file says of serving."""

import pytest
from pydantic import ValidationError

from simulator.scenario.serving import AllToAllInputs, ExpertInputs, TensorParallel


def test_only_groups_of_several_gpus_gather_and_scatter():
    split = TensorParallel(attention=8, experts=1, shared_expert=1, dense=4, vocabulary=8)
    assert split.groups == {4, 8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"load": "zipf"}, "zipf_exponent is needed with load zipf, and only then"),
        ({"zipf_exponent": 1.0}, "zipf_exponent is needed with load zipf, and only then"),
        ({"load": "file"}, "file is needed with load file, and only then"),
    ],
)
def test_a_load_says_all_that_it_needs_and_nothing_else(changes, message):
    with pytest.raises(ValidationError, match=message):
        ExpertInputs.model_validate({"redundant": 0, "placement": "global"} | changes)


def test_buffers_of_low_latency_kernels_follow_from_their_profile():
    with pytest.raises(ValidationError, match="low_latency and beside_compute are needed"):
        AllToAllInputs.model_validate({"kernels": "low_latency"})
