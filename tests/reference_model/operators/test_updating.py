"""What ends a step is as many operators as it has kernels, with the bytes that they move."""

import pytest
import torch
from torch import nn

from reference_model import operators as ops
from reference_model.kernels.reference import KERNELS as reference
from reference_model.layers import (
    GroupedLinear,
    HighPrecisionLinear,
    Linear,
    RMSNorm,
    Weight,
)
from reference_model.optimizer import AdamW
from reference_model.precision import Recipe
from reference_model.recorder import OperatorRecorder, prepare_weights

CPU = torch.device("cpu")


def weights_of(recipe: str) -> nn.ModuleList:
    """One weight of every kind: 32,768 + 2 x 32,768 + 2,048 values, and a norm of 256."""
    made = Recipe(recipe, "reference")
    module = nn.ModuleList([
        Linear("attention.proj", 256, 128, recipe=made, device=CPU),
        GroupedLinear("experts.proj", 2, 128, 256, recipe=made, device=CPU),
        HighPrecisionLinear(
            "gate.proj", 8, 256, out_dtype=torch.float32, recipe=made, device=CPU
        ),
        RMSNorm("norm", 256, eps=1e-6, device=CPU),
    ])  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(generator=generator)
    prepare_weights(module)
    return module


def end_step(module: nn.Module, optimizer: AdamW) -> OperatorRecorder:
    for parameter in module.parameters():
        parameter.grad.normal_()
    with OperatorRecorder() as recorder:
        optimizer.step(1e-3)
        for child in module.children():
            if isinstance(child, Weight):
                child.working_copy()
    return recorder


def test_a_step_ends_in_a_norm_an_update_and_a_copy_of_every_weight():
    module = weights_of("fp8")
    optimizer = AdamW(module.parameters())
    end_step(module, optimizer)  # tables are made once
    recorder = end_step(module, optimizer)
    # What is left outside reads the norm on the host, and turns a view.
    assert recorder.others == ["aten._local_scalar_dense.default", "aten.transpose.int"]
    values = 3 * 32_768 + 2_048 + 256
    found = [
        (o.name, o.kind, o.dtype, o.out_dtype, dict(o.sizes), o.bytes_read, o.bytes_written)
        for o in recorder.recorded
    ]
    assert found == [
        ("optimizer.norm", "gradient_norm", "float32", "float32", {"values": values},
         4 * values, 4),
        # weight and gradient of 4 bytes, two moments of 2
        ("optimizer.update", "optimizer_update", "float32", "float32",
         {"values": values, "read": 12, "written": 12}, 12 * values, 12 * values),
        # a byte each, and two scales twice: of the weight and of its transpose
        ("attention.proj.working_copy", "quantize_weight", "float32", "fp8_e4m3",
         {"groups": 1, "rows": 256, "columns": 128}, 4 * 32_768, 32_768 + 2 * 2 * 4),
        ("experts.proj.working_copy", "quantize_weight", "float32", "fp8_e4m3",
         {"groups": 2, "rows": 256, "columns": 128}, 8 * 32_768, 2 * (32_768 + 2 * 2 * 4)),
        ("gate.proj.working_copy", "cast", "float32", "bfloat16",
         {"rows": 8, "columns": 256}, 4 * 2_048, 2 * 2_048),
    ]  # fmt: skip
    assert {o.segment for o in recorder.recorded} == {"optimizer"}
    # the norm; addresses of four tensors, of 2 + 4 + 1 + 1 chunks of 16,384 values
    tables = 4 + 8 * (6 * 4 + 2 * 8)
    extra = [0, tables, 0, 0, 0]
    assert recorder.tensor_bytes == [
        (read + more, written) for (*_, read, written), more in zip(found, extra, strict=True)
    ]


def test_working_copies_stay_where_they_are_and_hold_what_a_fresh_one_would():
    module = weights_of("fp8")
    before = [child.working_copy() for child in list(module)[:3]]
    addresses = [copy.values.data_ptr() for copy in before]
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.mul_(2)
    after = [child.working_copy() for child in list(module)[:3]]
    assert [copy.values.data_ptr() for copy in after] == addresses
    linear, experts, gate = after
    values, scales = reference.quantize_blocks(module[0].weight, power_of_two_scales=False)
    assert torch.equal(linear.values.view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(linear.scales, scales)
    assert torch.equal(linear.turned_scales, scales.mT)
    values, scales = reference.quantize_blocks(module[1].weight.mT, power_of_two_scales=False)
    assert torch.equal(experts.values.view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(experts.turned_scales, scales.mT)
    assert torch.equal(gate.values, module[2].weight.bfloat16())


@pytest.mark.parametrize(("recipe", "kinds"), [("bfloat16", ["cast"] * 3), ("float32", [])])
def test_other_recipes_cast_their_weights_or_compute_with_the_masters(recipe, kinds):
    module = weights_of(recipe)
    recorder = end_step(module, AdamW(module.parameters()))
    assert [operator.kind for operator in recorder.recorded[2:]] == kinds
    if not kinds:
        assert module[0].working_copy().values.data_ptr() == module[0].weight.data_ptr()


def test_the_update_marks_the_weights_as_changed():
    weights = [torch.ones(2, 2), torch.ones(2)]
    state = (weights, *([torch.zeros_like(w) for w in weights] for _ in range(3)))
    versions = [w._version for w in weights]
    ops.adamw(
        *state, torch.tensor(0.0), *ops.update_tables(*state), rate=0.5, steps=1, beta=0.9,
        beta2=0.95, epsilon=1e-8, decay=0.1, clip_norm=1.0, site="weight_grad:optimizer:update",
    )  # fmt: skip
    assert all(w._version > version for w, version in zip(weights, versions, strict=True))
    assert torch.equal(weights[0], torch.full((2, 2), 0.95))  # no gradients: decay alone
    assert torch.equal(weights[1], torch.ones(2))


def test_tables_hold_every_chunk_and_say_which_tensors_decay():
    matrix, vector = torch.zeros(2, 16_384), torch.zeros(5)
    state = [[matrix, vector], *([torch.zeros(2, 16_384), torch.zeros(5)] for _ in range(3))]
    tensors, chunks = ops.update_tables(*state)
    assert tensors[:, 4:].tolist() == [[32_768, 1], [5, 0]]
    assert tensors[:, :4].T.tolist() == [[x.data_ptr() for x in each] for each in state]
    assert chunks.tolist() == [[0, 0], [0, 16_384], [1, 0]]
