"""The pages of serving jobs."""

import pytest

from reports.serving import expert_loads
from reports.serving_page import _middle


@pytest.mark.parametrize(
    ("active", "even", "said"),
    [
        (
            15.93,
            27.8,
            "popularity, busiest GPU 1.886 of the mean; a GPU reads the weights of 15.9 experts "
            "per layer and micro-batch, 27.8 with balanced loads: what skew saves by leaving "
            "experts without tokens",
        ),
        (32.0, 32.0, "popularity, busiest GPU 1.886 of the mean"),
        (32.0, None, "popularity, busiest GPU 1.886 of the mean"),
    ],
)
def test_a_step_whose_skew_leaves_weights_unread_says_so(active, even, said):
    experts = {
        "load": "popularity",
        "placement": {},
        "compute_max_over_mean": 1.886,
        "link_bytes": None,
        "rebalance": None,
        "active_experts_per_gpu_mean": active,
        "active_experts_per_gpu_balanced": even,
    }
    assert expert_loads(experts) == said


@pytest.mark.parametrize("kind", ["moe", "dense"])
def test_the_layers_in_the_middle_are_those_that_the_model_has(kind):
    layers = ["embedding 0", *(f"{kind} {number}" for number in range(1, 6)), "head 6"]
    # A transfer of the layer before goes on while compute does the second one.
    tasks = {
        "stream": [*["compute"] * 7, "communication"],
        "layer": [*layers, f"{kind} 1"],
        "start_s": [*map(float, range(7)), 1.5],
        "end_s": [*map(float, range(1, 8)), 2.25],
    }
    assert _middle(tasks) == {
        "stream": ["compute", "compute", "communication"],
        "layer": [f"{kind} 2", f"{kind} 3", f"{kind} 1"],
        "start_s": [2.0, 3.0, 2.0],
        "end_s": [3.0, 4.0, 2.25],
    }
