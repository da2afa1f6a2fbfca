"""Serving steps as events: as the timeline where nothing contends, whole iterations of all shipped
ones, and two layers on all ranks where they do."""

from types import SimpleNamespace

import numpy as np
import pytest
from shipped_scenarios import with_job

from simulator.execution.machine.group import Effect
from simulator.execution.machine.serving import (
    _Layers,
    middle_layers,
    part_of_graph,
    run_layers,
)
from simulator.execution.serving_run import prepare_serving
from simulator.execution.serving_step import serving_step
from simulator.scenario.events import CHANNELS, EventsInputs
from simulator.scenario.files import load_scenario
from simulator.scenario.serving import ServingStepJob
from simulator.workload.recorded import traces_in
from simulator.workload.task_graph import Stream, Task, TaskGraph

SERVING = with_job("serving_step")


def step_of(name):
    scenario = load_scenario(name)
    job = scenario.job_as(ServingStepJob)
    return serving_step(prepare_serving(scenario, job, traces_in(scenario.file.traces)))


@pytest.mark.parametrize("name", SERVING)
def test_without_contention_an_iteration_is_as_on_the_timeline(name):
    step = step_of(name)
    log = run_layers(step, EventsInputs(), ()).machine.log
    np.testing.assert_allclose(log.start_s[:, 0], step.log.start_s, rtol=1e-9, atol=0)
    np.testing.assert_allclose(log.end_s[:, 0], step.log.end_s, rtol=1e-9, atol=0)


def test_two_layers_are_cut_from_the_middle_of_an_iteration():
    kinds = ("dense", "moe", "moe", "moe", "moe", "head")
    tasks = tuple(
        Task(0, Stream.COMPUTE, layer, 0, "part", False, False, (layer - 1,) if layer else ())
        for layer in range(6)
    )
    graph = TaskGraph("whole", kinds, (), tasks)
    assert middle_layers(graph, 2) == [2, 3]
    part, places = part_of_graph(graph, [2, 3])
    assert places == [2, 3]
    assert [task.depends_on for task in part.tasks] == [(), (0,)]


def test_ranks_are_numbered_group_by_group_of_those_that_share_heads():
    """Two GPUs in each of three groups, drawn as [GPUs of a group, groups, draws]; and what the
    GPUs of a group have in common."""
    layers = SimpleNamespace(ranks=SimpleNamespace(clock=np.ones((2, 3, 1))))
    own = np.array([[0, 2, 4], [1, 3, 5]])[..., None]
    assert _Layers._of_ranks(layers, own).tolist() == [0, 1, 2, 3, 4, 5]
    assert _Layers._of_ranks(layers, own[:1]).tolist() == [0, 0, 2, 2, 4, 4]


def test_prefill_kernels_lose_the_sms_that_transfers_hold():
    """132 / 108 SMs beside 24 of transfers."""
    found = run_layers(step_of("prefill_ep32_profile"), EventsInputs(), CHANNELS)
    medians = {effect: float(np.median(one)) for effect, one in found.ratios().items()}
    assert medians[Effect.GEMM] == pytest.approx(1.0, abs=1e-9)
    assert medians[Effect.MEMORY_BOUND] == pytest.approx(132 / 108, rel=1e-6)
    assert found.machine.log.end_s.shape == (136, 32)


def test_wires_of_a_decode_step_wait_for_the_last_sender():
    """Every wire ends with the last copies to its rank, and none before its rank began."""
    inputs = EventsInputs(window=0.01, layers=1)
    found = run_layers(step_of("decode_ep32_h20"), inputs, CHANNELS)
    log = found.machine.log
    wires = [place for place, task in enumerate(log.graph.tasks) if task.collective]
    assert len(wires) == 4
    for place in wires:
        assert (log.end_s[place] >= log.start_s[place].max()).all()
