"""A pair composed of measured operators: a cast and a transfer beside one product."""

import pytest

from hardware_profiles.tables import Measurement, load_measurements, table_path
from reference_model.trace import Operator
from simulator.analysis.measured_pair import measured_pairs
from simulator.analysis.run import simulate
from simulator.execution.timeline import waiting
from simulator.scenario.files import load_scenario
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
    allowed = "allowed: communication_sms=2, tokens=64"
    lacks = f"no pair with communication_sms=4, tokens=64 was measured; {allowed}"
    with pytest.raises(ValueError, match=f"^{lacks}$"):
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


@pytest.mark.parametrize(
    ("lease", "expected"),
    [
        # Of 14.2 and 14.0, none, and 0.37 and none; operators are medians.
        ("", {2: (-0.113, -0.234), 8: (0.175, -0.002), 20: (-0.136, -0.001)}),
        # Of 15.0 and 14.8, 0.15, 0.38 and 0.71 on GPU 0 alone; operators are means.
        ("_3", {2: (-0.201, -0.616), 4: (0.345, -0.001), 8: (0.071, -0.003), 20: (-0.364, 0.0)}),
        # Of 15.6 and 15.2, 1.06, 0.61 and 1.60 on GPU 0 alone; compute rests beside transfers.
        ("_4", {2: (0.338, -0.067), 4: (-0.328, 0.030), 8: (0.177, -0.003), 20: (0.285, 0.001)}),
        # Of 15.4 and 15.3, 0.80, 0.97 and 1.53 on GPU 0 and 0.04 at most on the other; in turn.
        (
            "_5",
            {2: (-0.071, -0.284), 4: (-0.410, -0.045), 8: (-0.542, -0.004), 20: (-0.995, 0.002)},
        ),
        # Of 14.9 and 14.8, 1.41, 0.92 and 1.46 on GPU 0 alone.
        (
            "_6",
            {2: (-0.057, -0.431), 4: (-0.793, -0.006), 8: (-0.420, -0.004), 20: (-1.004, -0.004)},
        ),
    ],
)
def test_two_gpus_expose_what_both_their_operators_say(lease, expected):
    """Measured pairs of two H200: error of the exposed communication in ms, GPU 0 and 1, by SMs of
    communication. GPU 0 computes faster and waits."""
    graph = simulate(load_scenario("pair_two_h200")).result.step.pair.log.graph
    table = load_measurements(table_path(f"host/h200_sxm_pair_both{lease}"))
    errors = {
        sms: [
            1e3 * (float(waiting(pair.side_by_side).exposed_communication_s) - pair.exposed_s)
            for pair in measured_pairs(graph, table, tokens=4096, communication_sms=sms)
        ]
        for sms in expected
    }
    assert errors == {sms: pytest.approx(ms, abs=2e-3) for sms, ms in expected.items()}


def test_four_gpus_that_are_replayed_together_take_as_long_as_each_other():
    """Of four H200 at 20 SMs: the composed pairs in ms; and exposed communication, measured 0.440,
    0.699, 0.002 and 0.239."""
    graph = simulate(load_scenario("pair_two_h200")).result.step.pair.log.graph
    table = load_measurements(table_path("host/h200_sxm_pair_four"))
    pairs = measured_pairs(graph, table, tokens=4096, communication_sms=20)
    assert [1e3 * pair.side_by_side.span_s for pair in pairs] == pytest.approx(
        [41.36] * 4, abs=0.02
    )
    assert [
        1e3 * float(waiting(pair.side_by_side).exposed_communication_s) for pair in pairs
    ] == pytest.approx([0.202, 0.619, 0.0, 0.318], abs=1e-3)
