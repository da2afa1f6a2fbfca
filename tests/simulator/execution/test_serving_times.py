"""Times of the operators of one iteration."""

from dataclasses import replace

import numpy as np
import pytest

from simulator.execution.serving_blocks import row_ratios
from simulator.execution.serving_run import prepare_serving
from simulator.execution.serving_step import decode_step, serving_step
from simulator.scenario.files import load_scenario
from simulator.workload.recorded import recorded_trace


def model_of(name, *changes):
    scenario = load_scenario(name, list(changes))
    return prepare_serving(scenario, scenario.job, recorded_trace)


def step_of(name, *changes):
    return serving_step(model_of(name, *changes))


"""Of 8 tokens per GPU and micro-batch, 64 copies, half stay within the node."""


def test_a_wire_is_what_its_intercept_and_copies_leave_beside_the_kernels():
    # 1,024 copies of 128 tokens; placement allows 1.125 of the mean.
    step, rows = step_of("decode_ep72_h100"), 1152
    profile, floor = step.model.low_latency, step.model.kernels.calibration.kernel_floor.value
    crossing = rows * 71 / 72
    for operation, intercept, copy_bytes in (
        ("dispatch", 25.7e-6, 7408),
        ("combine", 25.9e-6, 14336),
    ):
        moved = crossing * copy_bytes / (profile.fraction(operation, 72) * 50e9)
        full = (getattr(profile, f"{operation}_{part}").value for part in ("send", "receive"))
        kernels = sum(floor + (seconds - floor) * rows / 1024 for seconds in full)
        assert longest(step, f"{operation}_wire") == pytest.approx(intercept + moved - kernels)


@pytest.mark.parametrize("name", ["decode_ep72_h100", "prefill_ep32_h100"])
def test_a_rank_that_receives_more_takes_longer_to_receive_it(name):
    step = step_of(name)
    rows = np.array([0.5, 1.0, 1.25, 1.5])
    part_of = step.operators["moe", 0].part_of()
    for place, ratios in row_ratios(step, "moe", rows).items():
        if part_of[place] in ("dispatch_wire", "combine_wire"):
            assert np.all(np.diff(ratios[:-1]) >= 0)
    wires = {
        part_of[place]: ratios
        for place, ratios in row_ratios(step, "moe", rows).items()
        if part_of[place] == "combine_wire"
    }
    # Of the time of few tokens, which decode has, nothing grows.
    least = 1.15 if name == "decode_ep72_h100" else 1.4
    assert least < wires["combine_wire"][3] / wires["combine_wire"][1] < 1.52


def longest(step, part):
    """Seconds of the longest task of a part."""
    graph = step.log.graph
    return max(
        step.seconds[number]
        for number, task in enumerate(graph.tasks)
        if task.part == part and graph.layers[task.layer] == "moe"
    )


def test_times_already_asked_for_are_kept_and_stay_the_same():
    model = model_of("decode_ep144_day6")
    first = decode_step(model, 88, 4989).step_s
    known = len(model.kernels.predicted), len(model.special_times)
    assert min(known) > 0
    assert decode_step(model, 88, 4989).step_s == first
    assert (len(model.kernels.predicted), len(model.special_times)) == known
    # Kernels alone are those of any job on these GPUs.
    other = replace(model, job=model.job)
    assert other.kernels is model.kernels
    assert other.special_times == {}


def place_of(step, name):
    """Where the times of a step hold an operator of its first MoE layer."""
    sections = list(step.model.sections)
    before = sections[: sections.index(("moe", 0))]
    layer = [operator.name for operator in step.operators["moe", 0].operators]
    return sum(len(step.operators[section].operators) for section in before) + layer.index(name)


def test_where_two_sources_timed_one_kernel_the_interval_holds_both():
    step = step_of("decode_ep128_profile")
    place = place_of(step, "attention.o_proj")
    # DeepGEMM's README, 336 TFLOP/s, and InferSim's table, 51.677 us.
    assert step.times.seconds[place] == pytest.approx(44.7e-6, rel=0.01)
    assert step.times.high[place] >= 51.67e-6


def test_another_gpu_than_the_calibrations_has_an_error_of_its_own():
    h800, h20 = step_of("decode_ep128_profile"), step_of("decode_ep32_h20")
    assert {step.model.kernels.calibration.gpu for step in (h800, h20)} == {"h800_sxm"}
    norm = place_of(h800, "attention.q_a_norm")
    assert norm == place_of(h20, "attention.q_a_norm")
    # On an H800 the tables' own GPU is one of many: 1% (sd) of what memory binds. On an H20 -17% to
    # +17% of another type come on top.
    of_many = 0.01 * 1.2816
    assert h800.times.common[:, norm] == pytest.approx([of_many, of_many], rel=1e-12)
    both = [np.hypot(of_many, np.log(1 / 0.83)), np.hypot(of_many, np.log(1.17))]
    assert h20.times.common[:, norm] == pytest.approx(both, rel=1e-12)
    # It moves the same times on both, and adds to each kernel's own interval.
    assert np.array_equal(h800.times.common[0] > 0, h20.times.common[0] > 0)
    seconds, (low, high) = h20.times.seconds[norm], h20.times.ends()
    own_low, own_high = h20.times.low[norm], h20.times.high[norm]
    assert np.log(seconds / low[norm]) == pytest.approx(
        np.hypot(np.log(seconds / own_low), both[0]), rel=1e-9
    )
    assert np.log(high[norm] / seconds) == pytest.approx(
        np.hypot(np.log(own_high / seconds), both[1]), rel=1e-9
    )
