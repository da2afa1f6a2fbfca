"""What one layer takes at least, worked out by hand."""

import numpy as np
import pytest

from reference_model.trace import Operator
from simulator.analysis.plan.layer_seconds import (
    backward_seconds,
    forward_seconds,
    uncovered_seconds,
)


def operators(*names):
    return [
        Operator(
            name=name, kind="add", phase="forward", segment=name.partition(".")[0],
            dtype="bfloat16", out_dtype="bfloat16", sizes=(("columns", 1), ("rows", 1)),
            recompute=False, accumulate=False,
        )
        for name in names
    ]  # fmt: skip


def part(times):
    return operators(*times), np.array(list(times.values())), 2 * np.array(list(times.values()))


OWN = {
    "forward": part(
        {"attention.a": 4.0, "dispatch.d": 3.0, "mlp.shared": 1.0, "mlp.up": 5.0, "combine.c": 6.0}
    ),
    "recompute": part({}),
    "input_grad": part({"combine.c": 7.0, "mlp.up": 5.0, "dispatch.d": 2.0, "attention.a": 4.0}),
    "weight_grad": part({"mlp.up": 3.0, "attention.a": 2.0}),
}


def test_a_forward_passes_attention_dispatch_experts_and_combine():
    found = forward_seconds(OWN, 0.5)
    # Dispatch takes longer than the shared expert beside it.
    assert found.chain == 4 + 3 + 5 + 6
    assert found.compute == 4 + 1 + 5 + 3 * 0.5
    assert found.transfers == 3 + 6
    assert found.paired == 2 * (4 + 1 + 5) + 3 * 0.5


def test_a_backward_hides_dispatch_behind_weight_gradients_or_the_reverse():
    found = backward_seconds(OWN, 0.0)
    assert found.chain == 5 + 3 + 4 + 2
    assert found.with_combine == 5 + 3 + 4 + 7
    assert found.compute == 5 + 4 + 3 + 2
    assert found.transfers == 7 + 2
    assert found.paired == 2 * (5 + 4 + 3 + 2)


def test_a_pair_waits_for_what_its_ends_do_not_cover():
    slow = OWN | {"input_grad": part({"combine.c": 9.0, "mlp.up": 5.0, "attention.a": 1.0})}
    # Twice as long in pairs: combine(B) 18 over attention 8, combine(F) 12 over 2 + 4.
    assert uncovered_seconds(slow, 0.0) == pytest.approx(10.0 + 6.0)
    assert uncovered_seconds(OWN, 0.0) == pytest.approx(6.0 + 0.0)
