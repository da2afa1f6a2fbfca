"""A pair's tables: the sums of its streams, and when its parts run."""

import numpy as np

from reports.pair import measured_pair_table, pair_tables
from simulator.analysis.measured_pair import measured_pairs
from simulator.execution.timeline import run
from tests.simulator.analysis.test_measured_pair import GRAPH, ROWS
from tests.simulator.workload.test_pair_order import graph


def cells(table):
    return [list(column.cells) for column in table.columns]


def test_a_pair_whose_operators_take_a_millisecond_each():
    """The first part is a cast and a transfer, the second attention, of 26 operators; both begin
    at once."""
    of_one_layer = graph(1)
    count = len(of_one_layer.tasks)
    log = run(of_one_layer, np.full(count, 1e-3), 0.0)
    summary, parts = pair_tables("two GPUs", log)
    what, times = cells(summary)
    found = dict(zip(what, times, strict=True))
    transfers = sum(task.stream == "communication" for task in of_one_layer.tasks)
    assert found["kernels of the compute stream"] == f"{count - transfers} ms"
    assert found["transfers and what is beside them"] == f"{transfers} ms"
    assert cells(parts)[0] == [str(number) for number in range(11)]
    starts, ends = cells(parts)[-2:]
    assert (starts[0], ends[0]) == ("0 ms", "2 ms")
    assert (starts[1], ends[1]) == ("0 ms", "26 ms")


def test_a_pair_stands_beside_the_measured_one_with_its_errors():
    """Measured: 5 s, 1.5 of them exposed. By a calibration 2 s a task; alone 3 + 1, of which 2 wait
    for the transfer; side by side 3.5 + 1, of which 1.5 wait; as in the pair 5 + 1, 4 of them."""
    log = run(GRAPH, np.full(3, 2.0), 0.0)
    table = measured_pair_table(
        "two GPUs", log, measured_pairs(GRAPH, ROWS, tokens=64, communication_sms=2)
    )
    _, source, pair, error, exposed, exposed_error = cells(table)
    assert source == [
        "measured", "the calibration", "operators alone", "operators side by side",
        "operators as in the pair",
    ]  # fmt: skip
    assert pair == ["5e+03 ms", "4e+03 ms", "4e+03 ms", "4.5e+03 ms", "6e+03 ms"]
    assert error == ["", "-20.0%", "-20.0%", "-10.0%", "+20.0%"]
    assert exposed == ["1.5e+03 ms", "0 ms", "2e+03 ms", "1.5e+03 ms", "4e+03 ms"]
    assert exposed_error == ["", "-1.5e+03 ms", "+500 ms", "+0 ms", "+2.5e+03 ms"]
