"""Who waits, from the times of the same barrier on every rank."""

import numpy as np
import torch

from reference_model.config import load_model_config
from reference_model.measure_arrivals import (
    Arrivals,
    Job,
    LayerTransfer,
    arrival_rows,
)
from reference_model.planned_routing import plan_layer

DEBUG = load_model_config("debug")  # 8 experts, 2 a token
TRAIN = Job("train", sequences=2, context=16, skew=0.0)


def conditions(row):
    return dict(pair.split("=") for pair in row.conditions.split(";"))


def sizes(row):
    return {name: int(value) for name, value in (p.split("=") for p in row.sizes.split(";"))}


def test_backward_goes_through_the_layers_from_the_last():
    arrivals = Arrivals(torch.device("cpu"), meet=lambda: None)
    arrivals.sites = [
        "forward:dispatch:a", "forward:combine:b", "forward:dispatch:a", "forward:combine:b",
        "input_grad:combine:c", "input_grad:dispatch:d", "input_grad:combine:c",
        "input_grad:dispatch:d",
    ]  # fmt: skip
    assert arrivals.transfers() == [
        ("forward", "dispatch", 0), ("forward", "combine", 0),
        ("forward", "dispatch", 1), ("forward", "combine", 1),
        ("input_grad", "combine", 1), ("input_grad", "dispatch", 1),
        ("input_grad", "combine", 0), ("input_grad", "dispatch", 0),
    ]  # fmt: skip


def test_a_transfer_is_ready_then_all_are_then_it_is_over():
    """In ns: begun at 1,000; the first ready at 3,000, all at 3,500, over at 7,500; and again."""
    arrivals = Arrivals(torch.device("cpu"), meet=lambda: None)
    arrivals.sites = ["forward:dispatch:a", "forward:combine:b"]
    arrivals.times[:7] = torch.tensor([1000, 3000, 3500, 7500, 8500, 8600, 9600])
    assert arrivals.parts().tolist() == [[2e-6, 5e-7, 4e-6], [1e-6, 1e-7, 1e-6]]


def test_a_rank_waits_for_what_its_barrier_takes_beyond_the_shortest():
    """Rank 1 comes last twice and rank 0 once: the shortest are 1, 4 and 2; rank 0 waits 2, 1 and
    0, rank 1 waits 0, 0 and 6."""
    parts = np.array(
        [
            [[[10.0, 3.0, 7.0]], [[11.0, 5.0, 8.0]], [[12.0, 2.0, 9.0]]],
            [[[13.0, 1.0, 4.0]], [[14.0, 4.0, 4.0]], [[15.0, 8.0, 4.0]]],
        ]
    )
    first, second = arrival_rows(
        DEBUG, TRAIN, model="debug", parts=parts,
        transfers=[LayerTransfer("input_grad", "combine", 1)],
        kernels="reference", sms=1, programs=2, launch="eager", sources=["one", "other"],
    )  # fmt: skip
    assert [conditions(row)["waiting_s"] for row in (first, second)] == ["1", "0"]
    assert conditions(first)["barrier_s"] == conditions(second)["barrier_s"] == "2"
    assert [conditions(row)["compute_s"] for row in (first, second)] == ["11", "14"]
    assert (first.seconds, first.source, second.source) == (8.0, "one", "other")
    # The backward of combine sends gradients from tokens to experts, as dispatch sends tokens.
    plan = plan_layer(DEBUG, tokens=32, skew=0.0, ranks=2, layer=1)
    assert sizes(first)["rows_sent"] == sizes(second)["rows_received"] == int(plan.sent[0, 1])
    assert sizes(second)["rows_sent"] == int(plan.sent[1, 0])
    assert sizes(second)["expert_rows"] == int(plan.expanded[:, 1].sum())
