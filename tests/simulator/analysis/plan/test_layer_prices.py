"""Times of layers in columns are those of their operators one by one."""

from collections import Counter

import numpy as np
import pytest
from small_plans import CHANGES, FIXED, IDEAL, SCENARIO

from simulator.analysis.plan.layer_prices import EXCHANGES, LayerPrices
from simulator.analysis.plan.training_candidates import LayerFacts, candidates
from simulator.analysis.plan.training_layouts import axis_values
from simulator.hardware.network.fabric_load import NO_LIMIT
from simulator.scenario.files import load_scenario
from simulator.workload.chunk import COMBINE, DISPATCH, FORWARD
from simulator.workload.context_parallel import operators_of_part
from simulator.workload.recorded import traces_in


def least(costs, operators, conditions, **given):
    """Of all operators, each in the condition that is fastest."""
    times = [
        costs.predict(operators, sms=count, overlapped=beside, **given).seconds
        for count, beside in conditions
    ]
    return float(np.min(times, axis=0).sum())


def test_a_layer_takes_the_least_of_each_kernel_and_of_each_transfer():
    scenario = load_scenario(SCENARIO, [*CHANGES, *IDEAL])
    layers = LayerFacts(scenario, traces_in(None))
    found = candidates(layers, axis_values(scenario, FIXED), Counter())
    shapes = {each.shape: each.parallel for each in found}
    prices = LayerPrices(layers)
    bounds = prices.of(shapes, ("dense", "moe"))
    sms, kept, gap = scenario.cluster.node.gpu.sms, layers.job.communication_sms, layers.job.gap
    assert len(shapes) > 1
    for place, (shape, parallel) in enumerate(shapes.items()):
        every = operators_of_part(layers.trace(shape), layers.load(shape, parallel), shape.cp)
        costs = prices.costs_of(shape, parallel)
        own = [o for o in every("moe", FORWARD) if o.segment not in (DISPATCH, COMBINE)]
        moving = [o for o in every("moe", FORWARD) if o.segment in (DISPATCH, COMBINE)]
        launched = ((sms, False), (sms - kept, False), (sms - kept, True))
        compute = least(costs, own, launched) + gap.value * len(own)
        assert bounds["moe"].forward.compute[place] == pytest.approx(compute, rel=1e-9)
        sent = least(
            costs,
            [o for o in moving if o.kind in EXCHANGES],
            ((kept, False), (kept, True)),
            load=NO_LIMIT,
        ) + least(costs, [o for o in moving if o.kind not in EXCHANGES], launched)
        assert bounds["moe"].forward.transfers[place] == pytest.approx(sent, rel=1e-9)
        assert bounds["dense"].forward.transfers[place] == 0.0
