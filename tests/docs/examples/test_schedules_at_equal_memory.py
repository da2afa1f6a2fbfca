"""The table of schedules holds the parts of each step, and takes what fits."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "schedules_at_equal_memory.py"
SMALL = (
    "skew=none",
    "cluster.nodes=8",
    "training.pp=2",
    "training.ep=32",
    "training.global_batch_sequences=256",
    "model.num_hidden_layers=6",
)
"""64 GPUs, 8 micro-batches, 3 MoE layers."""


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(EXAMPLE))


def test_a_line_holds_the_parts_of_its_step(example):
    run = example["simulate_fitting"](example["SCENARIO"], "1f1b", SMALL)
    name, microbatches, recompute, _, step, ideal, *parts, _, _ = example["line"](run).split()
    assert (name, microbatches, recompute) == ("1f1b", "8", "published")
    assert float(ideal) == pytest.approx(run.result.step.step_time_s, abs=0.005)
    assert sum(map(float, parts)) == pytest.approx(float(step), abs=0.005 * len(parts))
    assert len(parts) == 1 + len(example["PARTS"])


def test_what_does_not_fit_with_any_recomputation_gets_half_the_micro_batches(example):
    """GPipe keeps every micro-batch: of 8, 4 and 2 none fits beside what layers need, one does."""
    changes = (*SMALL, "cluster.node.gpu.hbm_capacity=34 GiB")
    found = example["simulate_fitting"](example["SCENARIO"], "gpipe", changes).result
    assert (found.schedule.microbatches, found.job.recompute) == (1, "published")
    assert max(rank.total for rank in found.memory) <= found.scenario.cluster.node.gpu.hbm_capacity
