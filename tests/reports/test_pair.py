"""A pair's tables: the sums of its streams, and when its parts run."""

import numpy as np

from reports.pair import pair_tables
from simulator.execution.timeline import run
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
