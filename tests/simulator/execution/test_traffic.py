"""The traffic of MoE operations."""

import pytest

from simulator.execution.collective import run_collective
from simulator.scenario.files import load_scenario


def run(name, *changes):
    scenario = load_scenario(name, changes)
    return run_collective(scenario)


def test_node_limited_routing_saves_what_the_gate_says():
    result = run(
        "deepep_normal",
        "vary.operation.gpus=[64]",
        "collective.operation.moe.gate=deepseek_v3",
        "collective.operation.moe.tokens=1024",
    )
    dispatch = result.last.operations[0]
    assert dispatch.nodes_per_token == pytest.approx(3.97, abs=0.02)
    assert dispatch.gpus_per_token == pytest.approx(7.49, abs=0.03)
    # A copy a node instead of one an expert: bytes over NICs against eight copies, 7/8 of them
    # to other nodes.
    sent = sum(
        b
        for n, b in zip(result.last.link_names, result.last.link_bytes, strict=True)
        if "/nic" in n and n.endswith("/up")
    )
    per_token = sent / (64 * 1024 * (7392 + 14336))
    assert per_token == pytest.approx(dispatch.nodes_per_token * 7 / 8, rel=0.01)
    assert dispatch.nic_copies_saved == pytest.approx(1 - per_token / 7, rel=0.02)
    assert dispatch.nic_copies_saved > 0.48


def test_tokens_that_draw_more_scores_than_anybody_waits_for_are_refused():
    # 2^30 scores are 65,536 tokens of 64 GPUs with 256 experts.
    changes = ("vary.operation.gpus=[64]", "collective.operation.moe.tokens=65537")
    with pytest.raises(ValueError, match=r"tokens: 65537 on each of 64 .*allowed: at most 65536,"):
        run("deepep_normal", *changes)
    balanced = run("deepep_normal", *changes, "collective.operation.moe.gate=balanced")
    assert balanced.last.operations[0].gpus_per_token == 8
