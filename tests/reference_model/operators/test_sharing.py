"""Gathering and scattering of tokens among ranks."""

import pytest
import torch
from operator_cases import SITE

from reference_model import operators as ops
from reference_model.ranks import run_ranks


def exchanged(rank, ranks):
    x = torch.arange(4.0).view(2, 2) + 10 * rank
    scales = torch.tensor([[1.0], [2.0]]) + rank
    gathered = ops.gather_tokens(x, scales, ranks=ranks, site=SITE)
    scattered = ops.scatter_sums(x.bfloat16(), ranks=ranks, site=SITE)
    try:
        ops.gather_tokens(x, None, ranks=3, site=SITE)
    except ValueError as error:
        refused = str(error)
    return {"gathered": gathered, "scattered": scattered, "refused": refused}


@pytest.fixture(scope="module")
def results():
    return run_ranks(exchanged, (), ranks=2, backend="gloo", timeout_s=60.0)


def test_every_rank_gathers_the_rows_of_all(results):
    for result in results:
        values, scales = result["gathered"]
        assert values.tolist() == [[0, 1], [2, 3], [10, 11], [12, 13]]
        assert scales.tolist() == [[1], [2], [2], [3]]


def test_each_rank_keeps_its_rows_of_the_sum(results):
    assert [result["scattered"].tolist() for result in results] == [[[10, 12]], [[14, 16]]]
    assert results[0]["scattered"].dtype is torch.bfloat16


def test_more_gpus_than_the_process_group_has_are_refused(results):
    assert results[0]["refused"] == "3 GPUs share a layer, and the process group has 2 ranks"
