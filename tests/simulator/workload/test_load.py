"""The work of a GPU in a micro-batch."""

from reference_model.trace import Workload
from simulator.workload.load import Load


def test_a_trace_has_the_variables_of_one_gpu_and_queries_are_those_of_its_group():
    """Two GPUs share the heads of 3 prompts of 512 tokens; this one has 2 of them."""
    load = Load(
        tokens=1024, sequences=2, context=640, expert_rows=8192, received_rows=4000,
        local_experts=4, group_tokens=1536, group_sequences=3,
    )  # fmt: skip
    assert load.query_length == 512
    assert load.workload == Workload(
        tokens=1024, context=640, sequences=2, expert_rows=8192, received_rows=4000,
        local_experts=4,
    )  # fmt: skip
