"""Calls that can be timed."""

import pytest
import torch

from reference_model import measure
from reference_model.config import load_model_config
from reference_model.measure_grid import (
    elementwise_operators,
    gemm_operator,
    requests,
    sized_operator,
    trace_operators,
)
from reference_model.measured_calls import BUILDERS, build
from reference_model.trace import KINDS


def test_every_traced_operator_can_be_built_but_those_that_need_peers():
    config = load_model_config("deepseek_v3")
    kinds = {r.operator.kind for r in requests(config, model="deepseek_v3")}
    assert kinds <= set(BUILDERS)
    assert {o.kind for o in trace_operators("deepseek_v3")} <= kinds
    assert set(BUILDERS) <= set(KINDS)


@pytest.mark.parametrize("kind", ["add", "concat", "copy", "embedding_backward", "sum_heads"])
def test_a_call_runs_the_operator_on_fresh_inputs(kind):
    traced = [o for o in trace_operators("debug") if o.kind == kind]
    # Builders give results of the operator's sizes; on a CPU only the smallest grid is run.
    smallest = min(elementwise_operators(traced), key=lambda o: o.bytes_read)
    build(smallest, kernels="reference", device=torch.device("cpu"))()


@pytest.mark.parametrize("tokens", [7, 10])
def test_a_permutation_reads_every_token(tokens):
    sizes = {"rows": 2 * tokens, "tokens": tokens, "columns": 128}
    operator = sized_operator("permute", "bfloat16", "bfloat16", sizes)
    moved, _ = build(operator, kernels="reference", device=torch.device("cpu"))()
    assert len(torch.unique(moved.float(), dim=0)) == tokens


def test_a_kind_that_needs_peers_is_refused():
    dispatch = measure.TimingRequest(
        gemm_operator(16, 256, 128), "library", 132, partition=False
    ).operator
    with pytest.raises(ValueError, match="kind 'dispatch' is not one of"):
        build(
            type(dispatch)(
                **{
                    **{name: getattr(dispatch, name) for name in type(dispatch).__slots__},
                    "kind": "dispatch",
                }
            ),
            kernels="library",
            device=torch.device("cpu"),
        )
