"""The pages of serving jobs."""

import pytest

from reports.serving import expert_loads


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
