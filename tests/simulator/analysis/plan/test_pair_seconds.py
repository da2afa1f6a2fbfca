"""Pairs take no less than the ways through their slots."""

from itertools import pairwise

import numpy as np
import pytest

from reference_model.trace import PHASES, Operator
from simulator.analysis.plan.layer_seconds import segments
from simulator.analysis.plan.pair_seconds import (
    KERNELS,
    ONWARD,
    ORDER,
    TRANSFERS,
    WAYS,
    other_pair_seconds,
    pair_seconds,
)
from simulator.execution import timeline
from simulator.workload.chunk import lower_chunk

NAMES = {
    "forward": ("attention.a", "dispatch.d", "mlp.shared", "mlp.up", "combine.c"),
    "recompute": ("attention.a",),
    "input_grad": ("combine.c", "mlp.up", "dispatch.d", "attention.a"),
    "weight_grad": ("mlp.up", "attention.a"),
}


def operators(phase, names=NAMES):
    return [
        Operator(
            name=name, kind="add", phase=phase, segment=name.partition(".")[0],
            dtype="bfloat16", out_dtype="bfloat16", sizes=(("columns", 1), ("rows", 1)),
            recompute=False, accumulate=False,
        )
        for name in names[phase]
    ]  # fmt: skip


OF = {phase: operators(phase) for phase in PHASES}


def layer(times):
    """{phase: segments} of {(phase, name): seconds}"""
    return {
        phase: segments(own, np.array([[times[phase, o.name]] for o in own]), 0.0)
        for phase, own in OF.items()
    }


def span(times, beside, ahead, back):
    """Of a pair of stages of so many layers, in slots of two at the times beside."""
    stages = {"forward": ("moe",) * ahead, "backward": ("moe",) * back}
    graph = lower_chunk("pair", lambda _, phase: OF[phase], **stages)
    seconds = [
        (beside if task.overlapped else times)[operator.phase, operator.name]
        for task, operator in zip(graph.tasks, graph.task_operators(), strict=True)
    ]
    return timeline.run(graph, np.array(seconds), 0.0).span_s


def test_every_way_follows_the_order_of_a_slot_and_leads_to_the_next():
    for way in WAYS:
        assert all(then in ORDER[task] for task, then in pairwise(way))
        assert way[0] in ONWARD[way[-1]]
    assert len(set(WAYS)) == len(WAYS) == 16


def test_a_pair_of_short_transfers_takes_its_kernels_and_what_its_ends_do_not_cover():
    times = {(phase, name): 1.0 for phase, own in NAMES.items() for name in own}
    times["input_grad", "combine.c"] = 5.0
    times["forward", "combine.c"] = 4.0
    found = pair_seconds(layer(times), layer(times))
    # Forward attention, shared and routed experts; backward attention again, and experts and
    # attention for inputs and weights.
    assert (found.forward[KERNELS], found.backward[KERNELS]) == (3.0, 5.0)
    assert (found.forward[TRANSFERS], found.backward[TRANSFERS]) == (5.0, 6.0)
    # Its combine(B) outlasts attention by 4, its combine(F) attention for inputs and weights by 2.
    assert found.ends[KERNELS] == 6.0
    assert span(times, times, 1, 1) == 8.0 + 6.0


def test_layers_without_transfers_take_their_kernels():
    times = {(phase, name): 2.0 for phase, own in NAMES.items() for name in own}
    found = other_pair_seconds(layer(times))
    assert found.forward[:, 0].tolist() == [6.0, 4.0] + [0.0] * len(WAYS)
    assert not found.more.any()
    assert not found.ends.any()


@pytest.mark.parametrize("seed", range(40))
def test_no_way_exceeds_a_pair_however_its_layers_are_split(seed):
    generator = np.random.default_rng(seed)
    keys = [(phase, name) for phase, own in NAMES.items() for name in own]
    # Transfers from far shorter than kernels to far longer.
    scale = {True: 4.0 ** generator.uniform(-1, 1), False: 1.0}
    times = {
        key: generator.exponential() * scale["dispatch" in key[1] or "combine" in key[1]]
        for key in keys
    }
    beside = {
        key: time * (1 + generator.uniform(0, 0.6) * (key[0] != "recompute"))
        for key, time in times.items()
    }
    found = pair_seconds(layer(times), layer(beside))
    slot = (found.forward + found.backward + found.more)[:, 0]
    ends = found.ends[:, 0]
    for ahead, back in ((1, 1), (2, 2), (3, 3), (1, 2), (1, 3), (2, 3)):
        both = span(times, beside, ahead, back) + span(times, beside, back, ahead)
        least = (ahead + back) * slot + 2 * ends
        assert (least <= both * (1 + 1e-12)).all(), (ahead, back, np.argmax(least - both))
    # Of many layers the longest way is what a further one takes, where it stays in its slot.
    more = span(times, beside, 8, 8) - span(times, beside, 7, 7)
    assert slot.max() <= more * (1 + 1e-12)
