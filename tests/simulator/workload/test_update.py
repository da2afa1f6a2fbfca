"""What ends a step of the reference model is what the simulator prices."""

from collections import Counter

import pytest
import torch

from reference_model import operators as ops
from reference_model.config import load_model_config
from reference_model.model import Transformer
from reference_model.optimizer import AdamW
from reference_model.precision import Recipe
from reference_model.recorder import OperatorRecorder, prepare_weights
from simulator.analysis.run import simulate
from simulator.execution.training import TrainingRun
from simulator.scenario.files import SCENARIOS, load_scenario
from simulator.scenario.training import OptimizerTypes
from simulator.workload.chunk import FORWARD
from simulator.workload.memory import layer_parameters
from simulator.workload.sharding import HeldParameters, HeldWeight, Parameters, Sharding
from simulator.workload.update import update_operators, working_copies

ONE_GPU = str(SCENARIOS.parent / "whole" / "train.yaml")
PARTS = ("kind", "dtype", "out_dtype", "sizes")


def counted(operators):
    return Counter(tuple(getattr(o, part) for part in PARTS) for o in operators)


@pytest.mark.parametrize("model", ["whole/four_layers", "whole/off_the_grid"])
def test_a_step_on_one_gpu_ends_in_the_operators_that_the_reference_model_issues(model):
    meta = Transformer(
        load_model_config(model), recipe=Recipe("fp8", "reference"), device=torch.device("meta")
    )
    optimizer = AdamW(meta.parameters())
    gradients = [torch.zeros_like(p) for p in meta.parameters()]
    with OperatorRecorder() as recorder:
        norm = ops.gradient_norm(gradients, site="weight_grad:optimizer:norm")
        optimizer.update(gradients, norm, learning_rate=1.0)
        prepare_weights(meta)
    issued = recorder.recorded

    run = simulate(load_scenario(ONE_GPU, [f"model={model}"])).result
    assert isinstance(run, TrainingRun)
    operators = run.operators_at(1.0)
    held = sum(
        (
            layer_parameters(
                run.scenario.model, kind, operators(kind, FORWARD),
                local_experts=run.layout.local_experts,
            )
            for stage in run.stages
            for kind in stage
        ),
        HeldParameters(),
    )  # fmt: skip
    alone = Sharding(
        zero=1, types=OptimizerTypes(), copies=1, expert_copies=1, gathers_ahead=False,
        reduces_beside=False, pairs=False,
    )  # fmt: skip
    simulated = [
        *update_operators(held, alone),
        *working_copies(held.every.weights, source="float32"),
    ]
    assert counted(simulated[2:]) == counted(issued[2:])
    # Published counts hold the balancing biases, which are moved by hand: one of each expert.
    config = meta.config
    biases = config.num_moe_layers * config.n_routed_experts
    for mine, theirs in zip(simulated[:2], issued[:2], strict=True):
        sizes = dict(mine.sizes) | {"values": mine["values"] - biases}
        assert (mine.kind, mine.dtype, mine.out_dtype, sizes) == (
            theirs.kind, theirs.dtype, theirs.out_dtype, dict(theirs.sizes),
        )  # fmt: skip
    assert len(run.step.optimizer[0].update.seconds) == len(simulated)


def test_copies_are_made_of_gathered_parameters_and_of_masters():
    fp8, gate = HeldWeight("fp8_e4m3", 2, 256, 128), HeldWeight("bfloat16", 1, 8, 256)
    made = working_copies([(fp8, 2), (gate, 1)], source="float32")
    assert [(o.kind, o.dtype, o.bytes_read) for o in made] == [
        ("quantize_weight", "float32", 4 * 65_536),
        ("quantize_weight", "float32", 4 * 65_536),
        ("cast", "float32", 4 * 2_048),
    ]
    gathered = working_copies([(fp8, 1), (gate, 1)], source="bfloat16")
    assert [(o.kind, o.dtype, o.bytes_read) for o in gathered] == [
        ("quantize_weight", "bfloat16", 2 * 65_536)
    ]
    both = HeldWeight("mxfp8_e4m3", 1, 256, 128, copies=2)
    assert len(working_copies([(both, 1)], source="bfloat16")) == 2


def test_an_update_writes_in_bfloat16_what_others_need():
    """8,000 parameters on two copies, 6,000 without: 4,000 and 6,000 are updated."""
    held = HeldParameters(Parameters(8_000), Parameters(6_000))
    shared = Sharding(
        zero=1, types=OptimizerTypes(), copies=2, expert_copies=1, gathers_ahead=False,
        reduces_beside=False, pairs=False,
    )  # fmt: skip
    assert [(o.kind, dict(o.sizes)) for o in update_operators(held, shared)] == [
        ("gradient_norm", {"values": 10_000}),
        ("optimizer_update", {"values": 4_000, "read": 12, "written": 14}),
        ("optimizer_update", {"values": 6_000, "read": 12, "written": 12}),
        ("memory_bound", {"read": 0, "written": 4 * 4_000}),
    ]
