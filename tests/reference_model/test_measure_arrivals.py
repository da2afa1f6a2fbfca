"""Who waits, from the times of the same all-reduce on every rank; and routing known before."""

import dataclasses

import pytest
import torch

from reference_model.config import load_model_config
from reference_model.measure_arrivals import (
    Arrivals,
    Job,
    LayerTransfer,
    Parts,
    arrival_rows,
    planned_choices,
    planned_rows,
)

DEBUG = load_model_config("debug")  # 8 experts, 2 a token
TRAIN = Job("train", sequences=2, context=16, skew=0.0)


def conditions(row):
    return dict(pair.split("=") for pair in row.conditions.split(";"))


def sizes(row):
    return {name: int(value) for name, value in (p.split("=") for p in row.sizes.split(";"))}


def test_a_planned_token_chooses_different_experts_and_the_same_again():
    choices = planned_choices(DEBUG, tokens=500, skew=1.0, seed=3)
    assert choices.shape == (500, 2)
    assert bool((choices[:, 0] != choices[:, 1]).all())
    assert torch.equal(choices, planned_choices(DEBUG, tokens=500, skew=1.0, seed=3))


@pytest.mark.parametrize("skew", [0.0, 2.0])
def test_first_choices_fall_by_exp_of_the_skew_from_the_first_expert_to_the_last(skew):
    """Of 200,000 tokens; the count of an expert scatters by less than 1%."""
    config = dataclasses.replace(DEBUG, num_experts_per_tok=1)
    counts = planned_choices(config, tokens=200_000, skew=skew, seed=0).flatten().bincount()
    shares = torch.exp(-skew * torch.arange(8) / 7)
    expected = 200_000 * shares / shares.sum()
    assert counts.double() == pytest.approx(expected.double(), rel=0.03)


def test_planned_rows_are_those_of_the_choices():
    rows = planned_rows(DEBUG, TRAIN, ranks=2, layer=1)
    for rank in range(2):
        homes = planned_choices(DEBUG, tokens=32, skew=0.0, seed=1000 + rank) // 4
        assert rows.sent[rank].tolist() == [
            sum(peer in row for row in homes.tolist()) for peer in range(2)
        ]
    assert int(rows.expanded.sum()) == 2 * 32 * 2


def test_backward_goes_through_the_layers_from_the_last():
    arrivals = Arrivals(torch.device("cpu"))
    sites = [
        "forward:dispatch:a", "forward:combine:b", "forward:dispatch:a", "forward:combine:b",
        "input_grad:combine:c", "input_grad:dispatch:d", "input_grad:combine:c",
        "input_grad:dispatch:d",
    ]  # fmt: skip
    arrivals.marks = [(site, (0.0, 1.0, 3.0, 3.5, 7.5)) for site in sites]
    assert arrivals.parts() == [Parts(1.0, 2.0, 0.5, 4.0)] * 8
    assert arrivals.transfers() == [
        ("forward", "dispatch", 0), ("forward", "combine", 0),
        ("forward", "dispatch", 1), ("forward", "combine", 1),
        ("input_grad", "combine", 1), ("input_grad", "dispatch", 1),
        ("input_grad", "combine", 0), ("input_grad", "dispatch", 0),
    ]  # fmt: skip


def test_a_rank_waits_for_what_its_all_reduce_takes_beyond_the_shortest():
    """Rank 1 comes last twice and rank 0 once: the shortest are 1, 4 and 2; rank 0 waits 2, 1 and
    0, rank 1 waits 0, 0 and 6."""
    parts = [
        [[Parts(10.0, 3.0, 0.5, 7.0)], [Parts(11.0, 5.0, 0.5, 8.0)], [Parts(12.0, 2.0, 0.5, 9.0)]],
        [[Parts(13.0, 1.0, 0.5, 4.0)], [Parts(14.0, 4.0, 0.5, 4.0)], [Parts(15.0, 8.0, 0.5, 4.0)]],
    ]
    first, second = arrival_rows(
        DEBUG, TRAIN, model="debug", parts=parts,
        transfers=[LayerTransfer("input_grad", "combine", 1)],
        kernels="reference", sms=1, sources=["one", "other"],
    )  # fmt: skip
    assert [conditions(row)["waiting_s"] for row in (first, second)] == ["1", "0"]
    assert conditions(first)["barrier_s"] == conditions(second)["barrier_s"] == "2"
    assert [conditions(row)["compute_s"] for row in (first, second)] == ["11", "14"]
    assert (first.seconds, first.source, second.source) == (8.0, "one", "other")
    # The backward of combine sends gradients from tokens to experts, as dispatch sends tokens.
    plan = planned_rows(DEBUG, TRAIN, ranks=2, layer=1)
    assert sizes(first)["rows_sent"] == sizes(second)["rows_received"] == int(plan.sent[0, 1])
    assert sizes(second)["rows_sent"] == int(plan.sent[1, 0])
    assert sizes(second)["expert_rows"] == int(plan.expanded[1])
