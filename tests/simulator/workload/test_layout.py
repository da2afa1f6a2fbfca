"""Stages hold the whole model once, in order; groups divide or say why not."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_model.config import load_model_config
from simulator.workload.layout import (
    ParallelLayout,
    even_splits,
    explicit_stages,
    megatron_stages,
    model_layers,
    parse_stage,
    stage_texts,
)

V3 = load_model_config("deepseek_v3")


def any_room(stage, split):
    return True


def split_evenly(layers, stages, cost, fits=any_room):
    """The split whose dearest stage is cheapest, one stage on each rank."""
    splits = even_splits(parse_stage(layers)[0], [(stage,) for stage in range(stages)], cost, fits)
    found = min(splits, key=lambda split: max(sum(map(cost.get, stage)) for stage in split))
    return stage_texts(found)


def test_a_head_that_is_half_a_stage_takes_the_place_of_as_many_layers():
    # 14 layers and a head of two: four stages of four.
    cost = {"embedding": 0.0, "moe": 1.0, "head": 2.0}
    found = split_evenly("embedding + 14 moe + head", 4, cost)
    assert found == ("embedding + 4 moe", "2 x (4 moe)", "2 moe + head")


def test_the_head_of_a_vocabulary_of_1024_takes_no_place():
    # 1,024 rows of a head in the place of 129,280: a hundredth of a layer.
    cost = {"embedding": 0.0, "moe": 1.0, "head": 0.01}
    found = split_evenly("embedding + 16 moe + head", 4, cost)
    assert found == ("embedding + 4 moe", "2 x (4 moe)", "4 moe + head")


def test_a_head_beyond_a_stage_has_one_of_its_own():
    cost = {"embedding": 0.0, "dense": 0.6, "moe": 1.0, "head": 3.0, "mtp": 1.0}
    found = split_evenly("embedding + 3 dense + 6 moe + head + mtp", 4, cost)
    # 3.8, 4, 3 and 1, or the head with the prediction: 4 is the least that whole layers allow.
    assert (
        max(sum(cost[kind] for kind in stage) for text in found for stage in parse_stage(text))
        == 4.0
    )


@settings(max_examples=30, deadline=None)
@given(
    counts=st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(0, 2)),
    costs=st.lists(st.integers(0, 9), min_size=5, max_size=5),
    stages=st.integers(1, 4),
)
def test_with_a_stage_on_each_rank_no_contiguous_split_has_a_lower_maximum(counts, costs, stages):
    dense, moe, mtp = counts
    layers = ("embedding", *("dense",) * dense, *("moe",) * moe, "head", *("mtp",) * mtp)
    stages = min(stages, len(layers))
    cost = dict(zip(("embedding", "dense", "moe", "head", "mtp"), costs, strict=True))

    def dearest(split):
        return max(sum(map(cost.get, stage)) for stage in split)

    held = [(stage,) for stage in range(stages)]
    found = min(map(dearest, even_splits(layers, held, cost, any_room)))
    cuts = combinations(range(1, len(layers)), stages - 1)
    every = (pairwise((0, *places, len(layers))) for places in cuts)
    assert found == min(dearest(layers[start:end] for start, end in split) for split in every)


def test_ranks_with_two_stages_are_as_even_as_stages_of_their_own():
    # Rank 0 holds the ends, rank 1 the middle: 1 + 3 and 2 + 2.
    cost = {"embedding": 0.0, "moe": 1.0, "head": 2.0}
    layers = parse_stage("embedding + 6 moe + head")[0]
    sums = [
        (sum(map(cost.get, split[0] + split[3])), sum(map(cost.get, split[1] + split[2])))
        for split in even_splits(layers, [(0, 3), (1, 2)], cost, any_room)
    ]
    assert (4.0, 4.0) in sums


def test_layers_without_room_go_elsewhere_or_nowhere():
    cost = {"embedding": 0.0, "moe": 1.0, "head": 0.0}

    def at_most_two_on_the_first(stage, split):
        return stage > 0 or split[0].count("moe") <= 2

    found = split_evenly("embedding + 8 moe + head", 2, cost, at_most_two_on_the_first)
    assert found == ("embedding + 2 moe", "6 moe + head")
    layers = parse_stage("embedding + 8 moe + head")[0]
    assert even_splits(layers, [(0,), (1,)], cost, lambda *_: False) == []


def test_more_stages_than_layers_are_refused():
    with pytest.raises(ValueError, match=r"has 65 stages and the model 64 layers .* training.pp"):
        even_splits(model_layers(V3), [(stage,) for stage in range(65)], {}, any_room)


@pytest.mark.parametrize("stages", [1, 2, 16, 64])
def test_every_split_holds_the_whole_model_once_and_is_read_back_from_its_text(stages):
    cost = {"embedding": 0.0, "dense": 1.0, "moe": 1.0, "head": 1.0, "mtp": 2.0}
    held = [(stage,) for stage in range(stages)]
    splits = even_splits(model_layers(V3), held, cost, any_room)
    assert splits
    for split in splits:
        texts = stage_texts(split)
        assert tuple(explicit_stages(texts, config=V3, stages=stages)) == split


def test_a_stage_is_read_with_counts_and_repetition():
    assert parse_stage("embedding + 3 dense + moe") == [("embedding", *("dense",) * 3, "moe")]
    assert parse_stage("14 x (4 moe)") == [("moe",) * 4] * 14


@pytest.mark.parametrize(
    "text", ["4 mou", "moe, moe", "2 x 4 moe", "", "99999999999999999999 moe", "10001 x (moe)"]
)
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
        ({"ep": 48}, "ep=48: does not divide the 128 GPUs of a pipeline rank"),
        ({"redundant_experts": 8}, "256 routed . 8 redundant experts = 264"),
        ({"ep": 0}, "ep=0"),
    ],
)
def test_groups_that_do_not_divide_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        layout(**changes)


def test_a_layout_of_megatron_is_read_stage_by_stage():
    """V3 on 16 ranks of two stages: embedding with the dense layers, 29 pairs, and the module and
    the head each by itself."""
    found = explicit_stages(["Et*3|(tt|)*29,m|L"], config=V3, stages=32)
    assert stage_texts(found) == ("embedding + 3 dense", "29 x (2 moe)", "mtp", "head")
    assert megatron_stages("E|(t|t)*2,|mL", V3) == [
        ("embedding",),
        ("dense",),
        ("dense", "dense"),
        ("moe",),
        ("mtp", "head"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Et*3|(tt|)*29,m|X", "cannot read 'X'; allowed: the letters E, t, m and L of Megatron-LM"),
        ("Et*3||(tt|)*29,m|L", "stage 1 is empty; allowed: a layer in every stage"),
        ("Et*4|(tt|)*29,m|L", "stages: 59 moe layers listed; allowed: all 58 of the model"),
        ("Et*3|(tt|)*29,L|m*2", "stages: 2 mtp layers listed; allowed: all 1 of the model"),
        ("E(t|)*999999999L", "stands for more than 10000 letters; allowed: fewer"),
        ("EL|(tt|)*29,mt*3", "stages: layers out of order"),
    ],
)
def test_a_layout_of_megatron_that_cannot_be_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        explicit_stages([text], config=V3, stages=32 if "Et" in text else 31)
    assert "\n" not in str(error.value)


SHARED = {"gpus": 1024, "pp": 8, "ep": 64, "tp": 2}


def test_gpus_that_share_layers_are_fewer_pipelines_and_no_fewer_experts():
    """1,024 GPUs as TP2 PP8 EP64: 128 GPUs per pipeline rank."""
    run = layout(**SHARED)
    assert (run.stage_gpus, run.dp, run.dense_copies, run.expert_replicas) == (128, 64, 64, 2)
    assert (run.group, run.groups) == (64, 2)
    assert run.name == "PP8, TP2, DP64, EP64"
    assert run.in_domains == (
        "of 8 GPUs each, filled by tensor, context, expert, data, pipeline: tensor 2 of 2, "
        "expert 8 of 64, data 4 of 64, pipeline 1 of 8"
    )


def test_experts_split_in_width_leave_fewer_copies():
    run = layout(**SHARED, etp=2)
    assert (run.expert_replicas, run.group, run.local_experts) == (1, 128, 4)
    # Of 64 places of experts, each two GPUs wide, four lie in a node of eight.
    assert run.parts_of("expert") == (4,) * 16
    assert run.parts_of("expert_tensor") == (2,)
    assert run.name == "PP8, TP2, DP64, EP64, ETP2"


def test_gpus_lie_by_the_order_of_axes():
    run = layout(gpus=16, pp=2, ep=4, tp=2, cp=2, etp=1)
    assert run.dense_grid[1, 0].tolist() == [[8, 9], [10, 11]]
    assert run.expert_grid[0, :, :, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert run.groups_of("context").tolist() == [
        [0, 2], [1, 3], [4, 6], [5, 7], [8, 10], [9, 11], [12, 14], [13, 15],
    ]  # fmt: skip
    inside_out = layout(
        gpus=16, pp=2, ep=4, tp=2, axes=("pipeline", "data", "expert", "context", "tensor")
    )
    # Pipeline ranks alternate, and the GPUs that share a layer are farthest apart.
    assert inside_out.groups_of("tensor").tolist()[:2] == [[0, 8], [2, 10]]
    assert inside_out.groups_of("pipeline").tolist()[:2] == [[0, 1], [8, 9]]
    assert inside_out.groups_of("expert").tolist()[0] == [0, 4, 8, 12]


def test_a_wide_group_straddles_the_domains_that_it_does_not_fill():
    assert layout(gpus=64, pp=2, ep=16, tp=16).parts_of("tensor") == (8, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tp": 3}, r"training.tensor_parallel: 3 does not divide the 128 GPUs of a pipeline rank"),
        (
            {"tp": 2, "cp": 128},
            "context_parallel: 128 does not divide the 64 data-parallel ranks",
        ),
        (
            {"etp": 4},
            "ep=64 x expert_tensor_parallel=4: does not divide the 128 GPUs of a",
        ),
        ({"axes": ("tensor",) * 5}, "training.axes: .*: allowed: each of tensor, context, expert"),
        (
            {"tp": 2, "axes": ("tensor", "pipeline", "context", "expert", "data")},
            "puts the experts of a pipeline rank on other GPUs than the rest .* pipeline first or",
        ),
    ],
)
def test_axes_that_do_not_fit_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        layout(**changes)
