"""The raw records of a fleet."""

import numpy as np

from simulator.execution.fleet.log import CollectedLog, LogWriter


def test_rows_leave_in_blocks_and_stay_in_order(monkeypatch):
    monkeypatch.setattr(LogWriter, "ROWS", 2)
    log = CollectedLog()
    writer = LogWriter([log])
    for end_s in (1.0, 2.0, 3.0):
        writer.gap(end_s, end_s / 10)
    assert log.all_gaps()["end_s"].tolist() == [1.0, 2.0]
    writer.flush()
    gaps = log.all_gaps()
    assert gaps["end_s"].tolist() == [1.0, 2.0, 3.0]
    assert len(gaps) == 3
    late = gaps.where(np.array([False, True, True]))
    assert late["gap_s"].tolist() == [0.2, 0.3]


def test_a_log_without_rows_has_empty_columns():
    assert CollectedLog().all_requests()["arrival_s"].tolist() == []
