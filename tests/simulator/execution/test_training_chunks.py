"""What the chunks of a training step take."""

from dataclasses import replace

import numpy as np
import pytest

from simulator.analysis.run import simulate
from simulator.execution.optimizer import ChunkState
from simulator.execution.training_chunks import ChunkKey, beside_state
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.network.fabric_load import NO_LIMIT
from simulator.hardware.prediction import Prediction
from simulator.scenario.files import load_scenario
from simulator.scenario.training import OptimizerTypes
from simulator.workload.sharding import HeldParameters, Parameters, Sharding
from simulator.workload.state_tasks import PARAMETERS, StateTasks, addition, state_operators
from simulator.workload.task_graph import Stream
from tests.simulator.execution.test_training import ONE_GPU, run


def test_on_one_gpu_nothing_runs_beside_a_kernel_and_a_step_is_the_sum_of_its_kernels():
    """It holds every expert: dispatch and combine take no time and slow no weight gradient."""
    step = simulate(load_scenario(ONE_GPU)).result.step
    slower = simulate(load_scenario(ONE_GPU, ["calibration.overlap.gemm.value=1.2"])).result.step
    assert slower.pipeline.makespan_s == step.pipeline.makespan_s
    kernels = [
        took
        for chunk in step.chunks.values()
        for task, took in zip(chunk.log.graph.tasks, chunk.cost.seconds, strict=True)
        if task.stream is Stream.COMPUTE
    ]
    assert step.pipeline.makespan_s == pytest.approx(sum(kernels), rel=2e-3)


def test_kernels_run_beside_collectives_of_state_as_long_as_those_are_in_flight():
    """Kernels of 3 and 1 s, twice as slow beside 2 s of a collective: half of them is beside it."""
    parameters = {"moe": HeldParameters(Parameters(1024))}
    sharding = Sharding(
        zero=3, types=OptimizerTypes(), copies=8, expert_copies=1, gathers_ahead=True,
        reduces_beside=True, pairs=False,
    )  # fmt: skip
    of_state = state_operators(parameters, sharding, accumulates=False)
    (gather,) = of_state["moe", PARAMETERS]
    kernel = addition("kernel", 6144.0)
    seconds = {"parameters.all_gather.replicated": 2.0, "kernel": 3.0, "other": 1.0}

    class TwiceAsSlow:
        def predict(self, operators, *, sms, overlapped):
            assert (sms, overlapped) == (112, True)
            return predictions([2 * seconds[operator.name] for operator in operators])

    def predictions(values):
        ends = np.array(values)
        return Prediction(
            ends, ends / 2, ends * 2, np.zeros(len(values), dtype=np.intp), ("f",) * len(values),
            np.zeros((2, len(values))),
        )  # fmt: skip

    def beside(tasks, operators, alone):
        key = ChunkKey("F", ("moe",), (), NO_LIMIT, tasks and ChunkState(tasks, None))
        times = predictions([seconds[operator.name] for operator in operators])
        of_keys = [(key, operator) for operator in operators]
        return beside_state(times, of_keys, alone, TwiceAsSlow(), sms=112).seconds.tolist()

    every = [gather, kernel, replace(kernel, name="other")]
    ahead = StateTasks(gather_forward=True, ahead=True)
    assert beside(ahead, every, [False, True, True]) == [2.0, 4.5, 1.5]
    # 1 s of kernels has a collective beside it all the time.
    assert beside(ahead, every, [False, False, True]) == [2.0, 3.0, 2.0]
    assert beside(StateTasks(gather_forward=True), every, [False, True, True]) == [2.0, 3.0, 1.0]
    assert beside(None, every, [False, True, True]) == [2.0, 3.0, 1.0]


def test_chunks_of_the_same_graphs_and_kernel_times_are_priced_once(monkeypatch):
    """Another NIC moves what tokens take, and no kernel of a chunk."""
    asked = []
    predict = KernelCostModel.predict

    def counting(self, operators, **conditions):
        asked.append({operator.kind for operator in operators})
        return predict(self, operators, **conditions)

    first = run().step
    monkeypatch.setattr(KernelCostModel, "predict", counting)
    second = run("cluster.node.nic.bandwidth=300 Gbit/s").step
    assert second.step_time_s > first.step_time_s
    of_optimizer = {"gradient_norm", "optimizer_update", "memory_bound", "quantize_weight"}
    assert set().union(*asked) == {"dispatch", "combine", *of_optimizer}
