"""Every legal layout, and none twice or lost."""

from collections import Counter
from math import prod

import pytest
from small_plans import CHANGES, FIXED, IDEAL, SCENARIO

from simulator.analysis.plan.training_candidates import DEFERRED, LayerFacts, candidates
from simulator.analysis.plan.training_layouts import axis_values
from simulator.scenario.files import load_scenario
from simulator.workload.context_parallel import operators_of_part
from simulator.workload.memory import layer_memory
from simulator.workload.recorded import traces_in


@pytest.fixture(scope="module")
def small():
    return load_scenario(SCENARIO, [*CHANGES, *IDEAL])


def test_legal_layouts_and_the_others_are_all_combinations(small):
    axes, lost = axis_values(small, FIXED), Counter()
    found = candidates(LayerFacts(small, traces_in(None)), axes, lost)
    assert len(found) + sum(lost.values()) == prod(len(values) for values in axes.values()) == 224
    assert len({each.layout for each in found}) == len(found) == 134
    assert lost[DEFERRED] == 38


@pytest.mark.parametrize("fixed", [{}, {"cp": [2]}])
def test_activations_in_columns_are_those_of_each_layer(small, fixed):
    layers = LayerFacts(small, traces_in(None))
    shapes = {
        each.shape: each.parallel
        for each in candidates(layers, axis_values(small, FIXED | fixed), Counter())
    }
    columns = layers.activations(shapes)
    kind = layers.usual[0]
    assert len(columns) == len(shapes) > 1
    for shape, parallel in shapes.items():
        trace, load = layers.trace(shape), layers.load(shape, parallel)
        operators = operators_of_part(trace, load, shape.cp)
        memory = layer_memory(small.model, trace, operators, load, [kind])[kind]
        assert columns[shape] == (memory.saved, memory.workspace)
