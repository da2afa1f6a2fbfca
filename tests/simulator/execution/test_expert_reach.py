"""Where tokens go: counted through the model's gate, on any nodes."""

from dataclasses import replace

import numpy as np
import pytest

from reference_model.config import load_model_config
from simulator.execution import expert_reach as counting
from simulator.execution.expert_reach import expert_reach

V3 = load_model_config("deepseek_v3")


def reach(parts, *, config=V3, slots=256, seed=0):
    experts = config.n_routed_experts
    return expert_reach(np.arange(slots) % experts, config=config, parts=parts, seed=seed)


def test_a_group_of_one_gpu_or_one_node_sends_nothing_away():
    alone = reach((1,))
    assert (alone.nodes, alone.gpus, alone.over_nics) == (1.0, 1.0, 0.0)
    rack = reach((64,))
    assert (rack.nodes, rack.over_nics) == (1.0, 0.0)
    assert rack.gpus == pytest.approx(7.49, abs=0.02)


def test_tokens_that_take_every_expert_reach_every_gpu():
    every = replace(V3, n_routed_experts=24, num_experts_per_tok=24, n_group=1, topk_group=1)
    whole = reach((8, 8, 8), config=every, slots=24)
    assert (whole.reached, whole.gpus, whole.over_nics) == ((1.0, 1.0, 1.0), 24.0, 2.0)
    # 12 GPUs on a node of 8 and half a node: the NICs of the 4 receive the tokens of two GPUs each.
    straddling = reach((8, 4), config=every, slots=24)
    assert (straddling.reached, straddling.gpus) == ((1.0, 1.0), 12.0)
    assert straddling.over_nics == 2.0


def test_a_gate_without_groups_misses_a_node_as_often_as_chance_does():
    # 8 of 384 experts, 64 on each of 6 nodes: 6 (1 - C(320, 8) / C(384, 8)) = 4.625.
    kimi = replace(V3, n_routed_experts=384, n_group=1, topk_group=1)
    assert reach((8,) * 6, config=kimi, slots=384).nodes == pytest.approx(4.625, abs=0.02)


def test_a_gate_that_ranks_groups_by_their_best_expert_reaches_what_chance_says():
    """Four groups of two experts, one group per node; a token chooses two experts in two groups.
    The groups kept hold the largest score of all and the largest outside its group, so that a token
    stays on one node exactly where the two largest of eight scores share a group: one in seven."""
    v2 = replace(
        V3, scoring_func="softmax", topk_method="group_limited_greedy", n_routed_experts=8,
        num_experts_per_tok=2, n_group=4, topk_group=2,
    )  # fmt: skip
    assert reach((2,) * 4, config=v2, slots=8).nodes == pytest.approx(2 - 1 / 7, abs=0.01)


def test_equal_nodes_are_reached_alike():
    found = reach((8,) * 8)
    assert len(set(found.reached)) == 1
    assert found.nodes == pytest.approx(3.963, abs=0.01)
    assert found.over_nics == pytest.approx(found.nodes * 7 / 8, rel=1e-12)


def test_what_is_counted_is_kept_for_the_next_process_to_the_last_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    anew = counting._expert_reach.cache_clear
    anew()
    first = reach((8, 8, 4), slots=320, seed=5)
    monkeypatch.setattr(counting, "_counted", lambda *_: pytest.fail("counted again"))
    anew()
    assert reach((8, 8, 4), slots=320, seed=5) == first
    anew()
    with pytest.raises(pytest.fail.Exception, match="counted again"):
        reach((8, 8, 4), slots=320, seed=6)
    anew()
