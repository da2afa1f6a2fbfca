"""The tables of a training run's directory."""

from types import SimpleNamespace

import numpy as np

from reports.training import unfolded_table


def test_operators_of_an_action_start_where_the_action_does():
    graph = SimpleNamespace(name="F", tasks=("gemm", "norm"))
    log = SimpleNamespace(graph=graph, start_s=np.array([0.0, 1.0]), end_s=np.array([1.0, 1.5]))
    step = SimpleNamespace(
        pipeline=SimpleNamespace(start_s=np.array([0.0, 2.0, 4.0])),
        keys=(("f", "f"), ("f",)),
        chunks={"f": SimpleNamespace(log=log)},
    )
    table = unfolded_table(SimpleNamespace(step=step))
    assert table["rank"].tolist() == [0, 0, 0, 0, 1, 1]
    assert table["index"].tolist() == [0, 0, 1, 1, 0, 0]
    assert table["start_s"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert table["end_s"].tolist() == [1.0, 1.5, 3.0, 3.5, 5.0, 5.5]
    assert set(table["chunk"]) == {"F"}
