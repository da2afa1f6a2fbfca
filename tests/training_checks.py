"""What holds for every training step, whatever the layout."""

from dataclasses import asdict

import pytest

from reference_model.parameter_counts import parameter_counts
from simulator.analysis.training_metrics import rank_times
from simulator.workload.layout import layer_counts
from simulator.workload.memory import layer_parameters


def check_parts(result):
    """Every layer lies on one stage, every rank's time and memory is the sum of its parts, and the
    parameters of all GPUs of a pipeline are the model's."""
    step, model = result.step.step_time_s, result.scenario.model
    for times in rank_times(result.step):
        parts = asdict(times)
        waits = [parts.pop(f"waiting_for_{what}_s") for what in ("ranks", "sends", "host")]
        assert sum(waits) == times.bubble_s
        del parts["exposed_communication_s"], parts["hidden_communication_s"]
        assert sum(parts.values()) == pytest.approx(step, rel=1e-12)
        assert times.bubble_s > -1e-9
    for memory in result.memory:
        assert memory.total == pytest.approx(sum(memory.parts.values()), rel=1e-12)
        assert memory.total <= result.scenario.cluster.node.gpu.hbm_capacity
    layers = [kind for stage in result.stages for kind in stage]
    counts = layer_counts(model)
    assert {kind: layers.count(kind) for kind in counts} == counts
    experts = model.n_routed_experts + result.job.experts.redundant
    held = sum(
        (layer_parameters(model, kind, (), local_experts=experts).every.count for kind in layers),
        0,
    )
    spare = counts["moe"] + counts["mtp"]
    extra = (experts - model.n_routed_experts) * parameter_counts(model).expert * spare
    whole = parameter_counts(model)
    assert held - extra == whole.total + whole.mtp
