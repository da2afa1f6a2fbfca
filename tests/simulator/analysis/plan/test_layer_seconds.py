"""What one layer takes at least, worked out by hand."""

import numpy as np

from reference_model.trace import Operator
from simulator.analysis.plan.layer_seconds import backward_seconds, forward_seconds, segments


def operators(*names):
    return [
        Operator(
            name=name, kind="add", phase="forward", segment=name.partition(".")[0],
            dtype="bfloat16", out_dtype="bfloat16", sizes=(("columns", 1), ("rows", 1)),
            recompute=False, accumulate=False,
        )
        for name in names
    ]  # fmt: skip


def part(times, gap):
    return segments(operators(*times), np.array(list(times.values()))[:, None], gap)


def layer(gap):
    return {
        "forward": part(
            {
                "attention.a": 4.0, "dispatch.d": 3.0, "mlp.shared": 1.0, "mlp.up": 5.0,
                "combine.c": 6.0,
            },
            gap,
        ),
        "recompute": part({}, gap),
        "input_grad": part(
            {"combine.c": 7.0, "mlp.up": 5.0, "dispatch.d": 2.0, "attention.a": 4.0}, gap
        ),
        "weight_grad": part({"mlp.up": 3.0, "attention.a": 2.0}, gap),
    }  # fmt: skip


def test_segments_hold_the_gaps_between_their_kernels():
    found = layer(0.5)["forward"]
    assert (found.attention, found.dispatch, found.combine) == (4, 3, 6)
    assert (found.shared, found.routed, found.mlp) == (1, 5, 6.5)
    # Three kernels with a gap after each.
    assert found.compute == 4 + 1 + 5 + 3 * 0.5
    assert found.transfers == 3 + 6


def test_a_forward_passes_attention_dispatch_experts_and_combine():
    found = forward_seconds(layer(0.5))
    # Dispatch takes longer than the shared expert beside it.
    assert found.chain == 4 + 3 + 5 + 6
    assert found.compute == 4 + 1 + 5 + 3 * 0.5
    assert found.transfers == 3 + 6


def test_a_backward_hides_dispatch_behind_weight_gradients_or_the_reverse():
    found = backward_seconds(layer(0.0))
    assert found.chain == 5 + 3 + 4 + 2
    assert found.with_combine == 5 + 3 + 4 + 7
    assert found.compute == 5 + 4 + 3 + 2
    assert found.transfers == 7 + 2


def test_a_backward_repeats_attention_dispatch_and_experts_first():
    again = part({"attention.a": 8.0, "dispatch.d": 16.0, "mlp.up": 32.0}, 0.0)
    found = backward_seconds(layer(0.0) | {"recompute": again})
    assert found.chain == 8 + 16 + 32 + 5 + 3 + 4 + 2
    assert found.with_combine == 8 + 16 + 32 + 5 + 3 + 4 + 7
    assert found.compute == 8 + 32 + 5 + 4 + 3 + 2
    assert found.transfers == 16 + 7 + 2
