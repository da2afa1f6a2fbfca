"""A pair composed of measured operators: a cast and a transfer beside one product."""

import pytest

from hardware_profiles.tables import Measurement
from reference_model.trace import Operator
from simulator.analysis.measured_pair import measured_pairs
from simulator.workload.task_graph import Stream, Task, TaskGraph


def operator(name, kind, phase):
    return Operator(
        name=name, kind=kind, phase=phase, segment="mlp", dtype="fp8_e4m3", out_dtype="bfloat16",
        sizes=(), recompute=False, accumulate=False,
    )  # fmt: skip


SEND, PRODUCT = operator("send", "dispatch", "forward"), operator("up", "gemm", "input_grad")
GRAPH = TaskGraph(
    "a pair",
    ("layer",),
    (SEND, PRODUCT),
    (
        Task(0, Stream.COMMUNICATION, 0, 0, "dispatch", True, True),
        Task(1, Stream.COMPUTE, 0, 1, "mlp", True, False),
        Task(1, Stream.COMPUTE, 0, 1, "mlp", True, False, (0,)),
    ),
)


def row(kind, seconds, sizes=(), **conditions):
    return Measurement(
        kind, tuple(sizes), "fp8_e4m3", 132, seconds, 0.0, "here",
        tuple(sorted({"rank": "0", "set": "dsv3sim_mixed", **conditions}.items())),
    )  # fmt: skip


def of_operator(stream, phase, name, alone, beside, paired=1.0, rank="0"):
    return row(
        "gemm", paired, communication_sms="2", tokens="64", stream=stream, phase=phase,
        operator=name, alone_s=alone, beside_s=beside, rank=rank,
    )  # fmt: skip


WHOLE = row("pair", 5.0, (("communication_sms", 2), ("tokens", 64)), exposed_s="1.5")
ROWS = [
    WHOLE,
    of_operator("communication", "forward", "send", "3", "4", 5.0),
    of_operator("compute", "input_grad", "up", "1", "2"),
]


def test_operators_that_take_what_they_take_alone():
    """The second product waits for the transfer: 3 + 1."""
    (pair,) = measured_pairs(GRAPH, ROWS, tokens=64, communication_sms=2)
    assert (pair.rank, pair.seconds, pair.exposed_s) == (0, 5.0, 1.5)
    assert pair.alone.end_s.tolist() == [3.0, 1.0, 4.0]


def test_operators_that_take_what_they_took_in_the_pair():
    """5 s the transfer and 1 the product, which waits for it."""
    (pair,) = measured_pairs(GRAPH, ROWS, tokens=64, communication_sms=2)
    assert pair.as_paired.end_s.tolist() == [5.0, 1.0, 6.0]


def test_streams_that_slow_each_other_while_both_run():
    """Half of the transfer is done when the first product ends, after 2; the rest takes 1.5, and
    the second product, with nothing beside it, 1."""
    (pair,) = measured_pairs(GRAPH, ROWS, tokens=64, communication_sms=2)
    assert pair.side_by_side.end_s.tolist() == pytest.approx([3.5, 2.0, 4.5])


def test_without_times_beside_the_other_stream_there_is_no_such_pair():
    rows = [WHOLE, *(of_operator(*key, "1", "nan") for key in (
        ("communication", "forward", "send"), ("compute", "input_grad", "up")))]  # fmt: skip
    (pair,) = measured_pairs(GRAPH, rows, tokens=64, communication_sms=2)
    assert pair.side_by_side is None


def test_a_table_without_the_pair_or_an_operator_says_what_it_lacks():
    with pytest.raises(ValueError, match="no row of kind pair with communication_sms=4;tokens=64"):
        measured_pairs(GRAPH, ROWS, tokens=64, communication_sms=4)
    with pytest.raises(ValueError, match=r"no row of operator up \(input_grad, compute stream\)"):
        measured_pairs(GRAPH, ROWS[:2], tokens=64, communication_sms=2)


def test_a_rank_waits_for_the_transfer_of_a_slower_one():
    """The other rank's transfer takes 7 s alone: this rank's product behind it ends at 8."""
    slower = [
        row("pair", 9.0, WHOLE.sizes, exposed_s="0", rank="1"),
        of_operator("communication", "forward", "send", "7", "7", rank="1"),
        of_operator("compute", "input_grad", "up", "1", "2", rank="1"),
    ]
    pair, other = measured_pairs(GRAPH, [*ROWS, *slower], tokens=64, communication_sms=2)
    assert (pair.rank, other.rank) == (0, 1)
    assert pair.alone.end_s.tolist() == [7.0, 1.0, 8.0]
    assert other.alone.end_s.tolist() == [7.0, 1.0, 8.0]
