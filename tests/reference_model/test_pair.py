"""A pair computes what its micro-batches do one by one, in the order that it is given."""

import dataclasses
import json

import pytest
import torch

from reference_model.blocks import MoEBlock, ResidualStream
from reference_model.config import load_model_config
from reference_model.layers import rotary_angles
from reference_model.moe import ExpertRows
from reference_model.pair import (
    Streams,
    check_pair,
    random_rows,
    run_forward,
    run_pair,
)
from reference_model.pair_order import Part, parse_pair_order
from reference_model.precision import Recipe
from reference_model.recorder import OperatorRecorder, prepare_weights

DEBUG = load_model_config("debug")
OF_ONE_LAYER = (
    ("communication", "input_grad", "combine", ()),
    ("compute", "forward", "attention", ()),
    ("communication", "forward", "dispatch", (1,)),
    ("compute", "input_grad", "mlp", (0,)),
    ("communication", "input_grad", "dispatch", (3,)),
    ("compute", "weight_grad", "mlp", ()),
    ("compute", "forward", "mlp", (1,)),
    ("compute", "forward", "mlp", (1, 2)),
    ("communication", "forward", "combine", (7,)),
    ("compute", "input_grad", "attention", (3, 4)),
    ("compute", "weight_grad", "attention", ()),
)


def text(layers):
    """The published order of so many layers, as a file; a second layer waits for the first."""
    lines = []
    for layer in range(layers):
        base = len(lines)
        for stream, phase, segment, waits in OF_ONE_LAYER:
            first = {("forward", "attention"): 8, ("input_grad", "combine"): 9}
            enters = layer and (phase, segment) in first
            after = (first[phase, segment] - len(OF_ONE_LAYER),) if enters else waits
            lines.append(
                json.dumps(
                    {
                        "stream": stream, "phase": phase, "layer": layer, "segment": segment,
                        "after": [base + number for number in after], "operators": 1,
                    }
                )
            )  # fmt: skip
    return "\n".join(lines)


def order(layers):
    return parse_pair_order(text(layers), source="an order")


@pytest.mark.parametrize("recipe", ["float32", "fp8"])
def test_a_pair_on_two_ranks_has_the_gradients_of_its_micro_batches_one_by_one(recipe):
    """The same operators run on the same tensors: nothing differs but the sum of two gradients,
    which is added in the same order too."""
    found = check_pair(
        order(2), DEBUG, recipe=Recipe(recipe, "reference"), ranks=2, sequences=1, context=128,
        seed=0, backend="gloo", programs=None, timeout_s=120.0,
    )  # fmt: skip
    assert found == (0.0, 0.0, 0.0)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("programs", [None, 2, 20])
def test_a_pair_on_two_gpus_has_the_gradients_of_its_micro_batches_one_by_one(programs):
    one_rank_a_token = dataclasses.replace(DEBUG, n_group=2, topk_group=1)
    gradients, output, input_grad = check_pair(
        order(2), one_rank_a_token, recipe=Recipe("fp8", "mixed"), ranks=2,
        sequences=2, context=256, seed=0, backend="nccl", programs=programs,
        timeout_s=120.0,
    )  # fmt: skip
    assert gradients < 1e-3
    assert output < 1e-5
    assert input_grad < 1e-3


class Noted(Streams):
    """Streams that note which part every operator belongs to."""

    def __init__(self, recorder):
        self.recorder = recorder
        self.found = []

    def note(self, number, part):
        self.found.append((number, part, len(self.recorder.recorded)))


def one_layer():
    block = MoEBlock(DEBUG, DEBUG.n_routed_experts, recipe=Recipe("float32", "reference"),
                     device=torch.device("cpu"))  # fmt: skip
    for parameter in block.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    prepare_weights(block)
    return block


def test_every_part_issues_the_operators_of_its_phase_and_segment():
    """On one device a layer knows beforehand how many rows it receives."""
    block = one_layer()
    tokens = 16
    rows = ExpertRows(received=tokens, expanded=tokens * DEBUG.num_experts_per_tok)
    angles = rotary_angles(DEBUG, tokens, device=torch.device("cpu"))
    hidden, grad = (
        random_rows(DEBUG, tokens, recipe=block.mlp.recipe, device=torch.device("cpu"), seed=seed)
        for seed in (1, 2)
    )
    with torch.no_grad():
        _, saved = run_forward([block], ResidualStream(hidden, None), angles, rows=rows)
        with OperatorRecorder() as recorder:
            noted = Noted(recorder)
            run_pair(
                order(1), [block], stream=ResidualStream(hidden, None), grad=grad, saved=saved,
                angles=angles, streams=noted, each=noted.note, rows=rows,
            )  # fmt: skip
    ends = [begin for _, _, begin in noted.found[1:]] + [len(recorder.recorded)]
    for (_, part, begin), end in zip(noted.found, ends, strict=True):
        issued = recorder.recorded[begin:end]
        assert issued
        assert {(o.phase, o.segment) for o in issued} == {(part.phase, part.segment)}


def test_an_order_of_another_number_of_layers_is_refused():
    part = Part("compute", "forward", 1, "mlp", (), 1)
    with pytest.raises(ValueError, match="the order is of 2 layers, not of 1"):
        run_pair([part], [one_layer()], stream=None, grad=None, saved=[], angles=None,
                 streams=Streams())  # fmt: skip
