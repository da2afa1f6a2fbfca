"""Bounds that no simulated step falls below."""

import json
from collections import Counter
from fractions import Fraction

import pytest
from small_plans import CHANGES, FIXED, IDEAL, SCENARIO

from simulator.analysis.plan.training_bounds import TrainingBounds, ends_of_ranks, there_and_back
from simulator.analysis.plan.training_layouts import LayerFacts, axis_values, candidates
from simulator.analysis.run import metrics_of
from simulator.scenario.files import load_scenario
from simulator.workload.recorded import traces_in

LARGER = (
    "cluster.nodes=8", "training.global_batch_sequences=256", "training.sequence_length=1024",
    "cluster.node.gpu.hbm_capacity=900 GiB",
)  # fmt: skip


def test_ends_of_a_pipeline_by_hand():
    # Two ranks, two micro-batches, a share x of the layers on the last: it ends no earlier than
    # 2 x + (1 - x), the first than 2 (1 - x). The two meet at x = 1/3, at 4/3.
    assert ends_of_ranks(1.0, 2, 2) == pytest.approx(float(Fraction(4, 3)))
    assert ends_of_ranks(1.0, 1, 5) == 1.0
    assert ends_of_ranks(0.0, 8, 4) == 2.0


def test_the_path_to_the_last_rank_and_back_by_hand():
    # Two ranks, eight micro-batches, forward a third: 1 / (1 / 7 + 3 / 20) beside one passage.
    assert there_and_back(1 / 3, 8, 2) == pytest.approx(float(1 + Fraction(140, 41)))
    assert there_and_back(1 / 3, 1, 2) == 0.0


@pytest.mark.parametrize(
    ("changes", "fixed", "every"),
    [
        (CHANGES, FIXED, 9),
        ((*CHANGES, "training.blocking_sends=false", "training.gradient_reduction=overlapped"),
         FIXED, 19),
        (LARGER, {"pp": [1, 2, 4], "ep": [8, 32], "tp": [1, 2], "micro_batch": [1, 2]}, 350),
    ],
)  # fmt: skip
def test_no_bound_exceeds_what_is_simulated(changes, fixed, every, tmp_path, monkeypatch):
    # Layouts are those that shipped recordings are of, whatever a user has recorded beside.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    scenario = load_scenario(SCENARIO, [*changes, *IDEAL])
    layers = LayerFacts(scenario, traces_in(None))
    found = list(candidates(layers, axis_values(scenario, fixed), Counter()))[::every]
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
