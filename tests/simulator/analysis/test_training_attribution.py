"""The causes of a step's time sum to it, and each answers to what it is named after."""

import pytest

from reference_model.trace import COLLECTIVE_KINDS
from simulator.analysis.run import simulate
from simulator.analysis.training_attribution import (
    CHUNK_CAUSES,
    ON_CPU,
    ORTHOGONALIZE,
    STATE_CAUSE,
    attribute_step,
)
from simulator.hardware.kernels.roofline import is_tensor
from simulator.scenario.files import load_scenario


def attributed(*changes):
    run = simulate(load_scenario("dualpipe_h800_2048", ["skew=none", *changes])).result
    return run, {cause.name: cause.seconds for cause in attribute_step(run, None)}


@pytest.fixture(scope="module")
def shipped():
    return attributed()


def test_the_causes_sum_to_the_step_without_a_remainder(shipped):
    run, causes = shipped
    assert sum(causes.values()) == pytest.approx(run.step.step_time_s, rel=1e-12)
    assert causes["remainder"] == pytest.approx(0.0, abs=1e-9)


def test_every_cause_costs_time(shipped):
    _, causes = shipped
    assert all(seconds >= 0 for name, seconds in causes.items() if name != "remainder")


def test_arithmetic_and_recomputation_are_the_flops_over_the_peaks(shipped):
    run, causes = shipped
    gpu = run.scenario.cluster.node.gpu

    def at_peak(key):
        operators = run.step.chunks[key].log.graph.operators
        return sum(op.flops / gpu.peak(op.dtype) for op in operators if is_tensor(op.kind))

    ranks = [sum(at_peak(key) for key in row) for row in run.step.keys]
    total = causes["arithmetic"] + causes["recomputation"]
    assert total == pytest.approx(sum(ranks) / len(ranks))


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved_overlapped", "dualpipev"])
def test_another_schedule_changes_no_arithmetic(shipped, schedule):
    run, causes = attributed(f"training.schedule={schedule}")
    assert sum(causes.values()) == pytest.approx(run.step.step_time_s, rel=1e-12)
    assert causes["arithmetic"] == pytest.approx(shipped[1]["arithmetic"])
    assert causes["other kernels"] == pytest.approx(shipped[1]["other kernels"], rel=0.01)
    if schedule == "1f1b":
        # Nothing overlaps in it: it exposes what DualPipe hides.
        assert causes["exposed all-to-all"] > 2 * shipped[1]["exposed all-to-all"]
        assert causes["SMs and memory shared"] < shipped[1]["SMs and memory shared"]


def test_faster_nics_leave_everything_but_communication(shipped):
    _, causes = attributed("cluster.node.nic.bandwidth=800 Gbit/s")
    for name, _ in CHUNK_CAUSES[:6]:
        assert causes[name] == pytest.approx(shipped[1][name])
    assert causes["exposed all-to-all"] < shipped[1]["exposed all-to-all"]
    assert causes["pipeline transfers"] < shipped[1]["pipeline transfers"]


def test_sharing_layers_and_experts_are_causes_of_their_own(shipped):
    run, causes = attributed("training.tensor_parallel=2")
    assert sum(causes.values()) == pytest.approx(run.step.step_time_s, rel=1e-12)
    shared = causes["tensor-parallel communication"]
    ranks = [
        sum(
            seconds
            for key in row
            for operator, seconds in zip(
                run.step.chunks[key].log.graph.task_operators(),
                run.step.chunks[key].cost.seconds.tolist(),
                strict=True,
            )
            if operator.kind in COLLECTIVE_KINDS
        )
        for row in run.step.keys
    ]
    # Beside nothing, so that all of it is exposed, but where a wait for an all-to-all gets shorter.
    assert 0.5 * sum(ranks) / len(ranks) < shared <= sum(ranks) / len(ranks)
    assert "tensor-parallel communication" not in shipped[1]
    assert causes["arithmetic"] == pytest.approx(shipped[1]["arithmetic"])


EIGHT = ("fsdp_b200_256", "cluster.nodes=1", "model.num_hidden_layers=4", "ep=8", "skew=none")
"""Eight GPUs and four layers, in a second."""
AFTER = ("zero=1", "gradient_reduction=exposed", "parameter_gather=exposed")


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ((), {"state in chunks"}),
        (AFTER, set()),
        (("optimizer.offload=cpu",), {"state in chunks", "PCIe", "update on the CPU"}),
        ((*AFTER, "optimizer.name=muon"), {"orthogonalization"}),
    ],
)
def test_causes_of_every_way_to_keep_state_sum_to_the_step(changes, rows):
    run = simulate(load_scenario(EIGHT[0], [*EIGHT[1:], *changes])).result
    causes = {cause.name: cause.seconds for cause in attribute_step(run, None)}
    assert sum(causes.values()) == pytest.approx(run.step.step_time_s, rel=1e-12)
    assert causes["remainder"] == pytest.approx(0.0, abs=1e-9)
    assert rows == causes.keys() & {
        STATE_CAUSE[0], ORTHOGONALIZE[0], *(name for name, _ in ON_CPU)
    }  # fmt: skip
    assert all(causes[name] > 0 for name in rows)
