"""Bounds that no simulated step falls below."""

import json
from collections import Counter

import pytest
from small_plans import CHANGES, FIXED, IDEAL, SCENARIO

from simulator.analysis.plan.training_bounds import TrainingBounds
from simulator.analysis.plan.training_candidates import LayerFacts, candidates
from simulator.analysis.plan.training_layouts import axis_values
from simulator.analysis.run import metrics_of
from simulator.scenario.files import load_scenario
from simulator.workload.recorded import traces_in

LARGER = (
    "cluster.nodes=8", "training.global_batch_sequences=256", "training.sequence_length=1024",
    "cluster.node.gpu.hbm_capacity=900 GiB",
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "fixed", "every"),
    [
        (CHANGES, FIXED, 9),
        ((*CHANGES, "training.blocking_sends=false", "training.gradient_reduction=overlapped"),
         FIXED, 19),
        (LARGER, {"pp": [1, 2, 4], "ep": [8, 32], "tp": [1, 2], "micro_batch": [1, 2]}, 300),
    ],
)  # fmt: skip
def test_no_bound_exceeds_what_is_simulated(changes, fixed, every, tmp_path, monkeypatch):
    # Layouts are those that shipped recordings are of, whatever a user has recorded beside.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    scenario = load_scenario(SCENARIO, [*changes, *IDEAL])
    layers = LayerFacts(scenario, traces_in(None))
    found = candidates(layers, axis_values(scenario, fixed), Counter())[::every]
    bounds = TrainingBounds(layers).of(found)
    shares = {}
    for candidate, bound in zip(found, bounds, strict=True):
        texts = [f"{path}={json.dumps(value)}" for path, value in candidate.layout.settings.items()]
        try:
            step_s = metrics_of(SCENARIO, [*changes, *IDEAL, *texts])["step_time_s"]
        except ValueError:  # Memory that the bound does not see.
            continue
        shares[str(candidate.layout)] = bound.seconds / step_s
    assert len(shares) >= 5
    assert {layout: share for layout, share in shares.items() if share > 1} == {}
