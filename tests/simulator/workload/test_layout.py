"""Stages hold the whole model once, in order; groups divide or say why not."""

import pytest

from reference_model.config import load_model_config
from simulator.workload.layout import (
    ParallelLayout,
    cut_stage,
    default_stages,
    explicit_stages,
    layer_counts,
    parse_stage,
)

V3 = load_model_config("deepseek_v3")


def test_the_default_layout_of_v3_over_16_stages_is_the_published_one():
    stages = default_stages(V3, 16)
    assert stages[0] == ("embedding", "dense", "dense", "dense", "moe")
    assert stages[1:15] == [("moe",) * 4] * 14
    assert stages[15] == ("moe", "head", "mtp")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 16, 32, 58])
def test_every_default_layout_holds_the_whole_model_once(count):
    stages = default_stages(V3, count)
    assert len(stages) == count
    assert explicit_stages([" + ".join(stage) for stage in stages], config=V3, stages=count)
    found = [kind for stage in stages for kind in stage]
    assert {kind: found.count(kind) for kind in layer_counts(V3)} == layer_counts(V3)


def test_more_stages_than_moe_layers_are_refused():
    with pytest.raises(ValueError, match=r"pp=59: .* at most 58 stages"):
        default_stages(V3, 59)


def test_a_stage_is_read_with_counts_and_repetition():
    assert parse_stage("embedding + 3 dense + moe") == [("embedding", *("dense",) * 3, "moe")]
    assert parse_stage("14 x (4 moe)") == [("moe",) * 4] * 14


@pytest.mark.parametrize("text", ["4 mou", "moe, moe", "2 x 4 moe", ""])
def test_an_unreadable_stage_names_what_is_allowed(text):
    with pytest.raises(ValueError, match="allowed"):
        parse_stage(text)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["embedding + 3 dense + 58 moe + head + mtp", "moe"], "59 moe layers listed"),
        (["3 dense + embedding + 30 moe", "28 moe + head + mtp"], "out of order"),
        (["embedding + 3 dense + 58 moe + head + mtp"], "1 are listed; the pipeline has 2"),
    ],
)
def test_a_layout_that_is_not_the_model_is_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        explicit_stages(texts, config=V3, stages=2)


def test_a_stage_is_cut_where_the_parts_cost_the_same():
    assert cut_stage(("moe",) * 4, 2, lambda _: 1.0) == [("moe",) * 2] * 2
    assert cut_stage(("moe",) * 7, 3, lambda _: 1.0) == [("moe",) * n for n in (2, 3, 2)]
    cost = {"moe": 1.0, "head": 1.0, "mtp": 2.0}.__getitem__
    assert cut_stage(("moe", "head", "mtp"), 2, cost) == [("moe", "head"), ("mtp",)]
    assert cut_stage(("moe", "head", "mtp"), 3, cost) == [("moe",), ("head",), ("mtp",)]
    assert cut_stage(("moe", "head", "mtp"), 1, cost) == [("moe", "head", "mtp")]


def test_a_stage_cannot_be_cut_into_more_parts_than_layers():
    with pytest.raises(ValueError, match=r"\(moe\): 1 layers cannot be cut into the 2 stages"):
        cut_stage(("moe",), 2, lambda _: 1.0)


def layout(**changes):
    fields = {
        "gpus": 2048, "gpus_per_domain": 8, "pp": 16, "ep": 64, "routed_experts": 256,
        "redundant_experts": 0,
    }  # fmt: skip
    return ParallelLayout(**(fields | changes))


def test_the_published_run_has_128_replicas_of_4_local_experts_on_8_nodes():
    run = layout()
    assert (run.dp, run.local_experts, run.expert_replicas) == (128, 4, 2)
    assert run.expert_parts == (8,) * 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pp": 15}, "pp=15: does not divide the 2048 GPUs"),
        ({"ep": 48}, "ep=48: does not divide the 128 data-parallel ranks"),
        ({"redundant_experts": 8}, "256 routed . 8 redundant experts = 264"),
        ({"ep": 0}, "ep=0"),
    ],
)
def test_groups_that_do_not_divide_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        layout(**changes)
