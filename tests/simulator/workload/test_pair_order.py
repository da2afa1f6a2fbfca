"""A pair of one layer is eleven parts, in the published order and with its waits."""

import json

import pytest

from reference_model.config import load_model_config
from reference_model.pair_order import order_text
from simulator.workload.chunk import lower_chunk, operators_of
from simulator.workload.load import Load
from simulator.workload.pair_order import pair_parts
from simulator.workload.recorded import recorded_trace

LOAD = Load(
    tokens=4096, context=4096, sequences=1, expert_rows=32768, received_rows=30679, local_experts=4,
    group_tokens=4096, group_sequences=1,
)  # fmt: skip


def graph(layers):
    operators = operators_of(recorded_trace(load_model_config("deepseek_v3"), "train"), LOAD)
    stage = ("moe",) * layers
    return lower_chunk("pair", operators, forward=stage, backward=stage)


@pytest.fixture(scope="module")
def parts():
    return pair_parts(graph(1))


def test_the_parts_of_one_layer_are_in_the_published_order(parts):
    assert [(p.stream, p.phase, p.segment, p.after) for p in parts] == [
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
    ]


def test_every_task_is_in_one_part(parts):
    pair = graph(1)
    assert [part[:4] for part in parts for _ in range(part.operators)] == [
        (str(task.stream), operator.phase, 0, task.part)
        for task, operator in zip(pair.tasks, pair.task_operators(), strict=True)
    ]


def test_a_second_layer_waits_for_the_combine_and_the_gradient_of_the_first():
    parts = pair_parts(graph(2))
    assert len(parts) == 22
    second = {(p.phase, p.segment): p.after for p in parts[11:]}
    assert second["forward", "attention"] == (8,)
    assert second["input_grad", "combine"] == (9,)
    assert {p.layer for p in parts[:11]} == {0}
    assert {p.layer for p in parts[11:]} == {1}


def test_the_file_has_a_line_for_each_part(parts):
    lines = order_text(parts).splitlines()
    assert len(lines) == 11
    assert json.loads(lines[2]) == {
        "stream": "communication", "phase": "forward", "layer": 0, "segment": "dispatch",
        "after": [1], "operators": 2,
    }  # fmt: skip
