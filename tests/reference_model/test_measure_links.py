"""Transfers between the GPUs of one host."""

import pytest
import torch

from reference_model import measure_links
from reference_model.measure_links import EAGER, QUEUED, TimedTransfer


def test_the_two_ways_to_launch_enter_no_fit_together():
    sets = [
        measure_links._row(TimedTransfer("send", 1024, way), 2, 132, "", 1e-5, 0.0).conditions
        for way in (EAGER, QUEUED)
    ]
    assert "set=dsv3sim_links;" in sets[0]
    assert "set=dsv3sim_links_queued;" in sets[1]


def test_one_gpu_has_nobody_to_send_to(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="links: 1 CUDA devices found, at least 2 are needed"):
        measure_links.measure_links(tmp_path / "links.csv")
