"""Ranks return what they computed together, and a rank that hangs or fails ends them all."""

import time

import pytest
import torch
from torch import distributed
from torch.multiprocessing import ProcessRaisedException

from reference_model.ranks import run_ranks


def add_up(rank, ranks, offset):
    total = torch.tensor([rank + offset])
    distributed.all_reduce(total)
    return {"rank": rank, "ranks": ranks, "total": total}


def wait_for_rank_0(rank, ranks):
    if rank:
        time.sleep(60)


def fail(rank, ranks):
    raise ValueError(f"rank {rank} does not like this")


def run(function, *arguments, timeout_s=60.0):
    return run_ranks(function, arguments, ranks=2, backend="gloo", timeout_s=timeout_s)


def test_results_come_back_by_rank():
    results = run(add_up, 10)
    assert [result["rank"] for result in results] == [0, 1]
    assert [int(result["total"]) for result in results] == [21, 21]


def test_a_rank_that_hangs_ends_in_time():
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="2 ranks have not finished in 4"):
        run(wait_for_rank_0, timeout_s=4.0)
    assert time.monotonic() - start < 30


def test_a_rank_that_fails_says_why():
    with pytest.raises(ProcessRaisedException, match="does not like this"):
        run(fail)


def test_impossible_groups_are_refused():
    with pytest.raises(ValueError, match="backend 'mpi' is not one of"):
        run_ranks(fail, (), ranks=2, backend="mpi", timeout_s=1.0)
    with pytest.raises(ValueError, match="ranks = 0 must be at least 1"):
        run_ranks(fail, (), ranks=0, backend="gloo", timeout_s=1.0)
    with pytest.raises(ValueError, match="ranks = 99 need as many GPUs"):
        run_ranks(fail, (), ranks=99, backend="nccl", timeout_s=1.0)
