"""Two marks and what lies between them."""

import time

import pytest
import torch

from reference_model.moments import moment, seconds_between

CPU = torch.device("cpu")


def test_time_on_a_cpu_is_that_of_the_clock(monkeypatch):
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    start, end = moment(CPU), moment(CPU)
    assert seconds_between(start, end) == 2.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_time_on_a_gpu_is_waited_for():
    device = torch.device("cuda", 0)
    start = moment(device)
    torch.cuda._sleep(10_000_000)
    assert seconds_between(start, moment(device)) > 1e-3
