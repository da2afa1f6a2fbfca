"""The optimizer step: what is reduced, updated and gathered on one rank."""

from types import SimpleNamespace

import numpy as np
import pytest

from simulator.execution.optimizer import optimizer_step
from simulator.hardware.prediction import one_time
from simulator.scenario.training import OptimizerTypes
from simulator.workload.layout import ParallelLayout
from simulator.workload.memory import HeldParameters


@pytest.mark.parametrize(("gradients", "each"), [("float32", 4), ("bfloat16", 2)])
def test_gradients_are_reduced_in_their_type_and_parameters_gathered_in_bfloat16(gradients, each):
    """With rings of 1 byte per second for dense parameters and 2 for experts."""

    class Rings:
        cluster = SimpleNamespace(node=SimpleNamespace(gpu=SimpleNamespace(sms=132)))

        def collective(self, operation, transferred, *, form, group, load):
            seconds = transferred / load
            return one_time(seconds, seconds, seconds, provenance=0, family=operation)

    layout = ParallelLayout(
        gpus=512, gpus_per_domain=8, pp=4, ep=64, routed_experts=256, redundant_experts=0
    )
    costs = SimpleNamespace(predict=lambda ops, **_: SimpleNamespace(seconds=np.array([0.5])))
    held = HeldParameters(replicated=100, experts=600, quantized=0, cast=0, cast_bytes=0)
    step = optimizer_step(
        held, OptimizerTypes(gradients=gradients),
        layout=layout, holders=(1,), dense=1.0, experts=2.0, transfers=Rings(), costs=costs,
    )  # fmt: skip
    assert step.reduce_s == each * (100 / 1 + 600 / 2)
    assert step.gather_s == 2 * (100 / 1 + 600 / 2)
    assert step.update_s == 0.5
