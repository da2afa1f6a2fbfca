"""The stages that a run chooses: nearly the fastest of all, within memory, for any schedule."""

from itertools import combinations, pairwise
from typing import ClassVar

import pytest

from simulator.analysis.run import simulate
from simulator.analysis.training_metrics import rank_times, uneven_ranks
from simulator.execution import stages as stages_module
from simulator.execution import training_run
from simulator.execution.stages import choose_stages
from simulator.scenario.files import load_scenario
from simulator.workload.layout import stage_texts
from simulator.workload.schedules.known import SCHEDULES
from simulator.workload.schedules.one_f_one_b import one_f_one_b

MAIN = "dualpipe_h800_2048"


def every_split(layers, stages):
    """All ways to cut a sequence of layers into so many contiguous stages."""
    for cuts in combinations(range(1, len(layers)), stages - 1):
        yield tuple(layers[start:end] for start, end in pairwise((0, *cuts, len(layers))))


@pytest.fixture
def asked(monkeypatch):
    """What a run asks of choose_stages, and what it gets: [(layers, times, chosen)]."""
    calls = []

    def choose(layers, times, **memory):
        calls.append((layers, times, choose_stages(layers, times, **memory)))
        return calls[-1][-1]

    monkeypatch.setattr(training_run, "choose_stages", choose)
    return calls


TWO_ON_EACH = ("interleaved", "interleaved_overlapped", "zbv", "dualpipev")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_contiguous_split_of_a_small_model_is_much_faster(schedule, asked, monkeypatch):
    # Four stages: one on each of four ranks, or two on each of two.
    ranks = 2 if schedule in TWO_ON_EACH else 4
    run = simulate(
        load_scenario(
            MAIN,
            [
                f"training.schedule={schedule}",
                f"training.pp={ranks}",
                "training.ep=16",
                f"cluster.nodes={2 * ranks}",
                "cluster.node.gpu.hbm_capacity=900 GiB",
                "training.global_batch_sequences=192",
                "model.num_hidden_layers=9",
            ],
        )
    ).result
    ((layers, times, chosen),) = asked
    assert run.stages == chosen
    splits = list(every_split(layers, 4))
    ends = dict(zip(splits, times.of_own_chunks(splits), strict=True))
    assert ends[chosen] == pytest.approx(run.step.pipeline.makespan_s, rel=1e-9)
    assert ends[chosen] <= 1.03 * min(ends.values())
    few = splits[:3]
    with monkeypatch.context() as patched:
        # A pass each.
        patched.setattr(stages_module, "AT_ONCE", 1)
        assert times.of_own_chunks(few) == [ends[split] for split in few]


def chosen(*changes):
    run = simulate(load_scenario(MAIN, changes)).result
    return run, stage_texts(run.stages)


def test_the_shipped_job_would_choose_the_stages_that_it_spells_out():
    _, stages = chosen("training.stages=default")
    assert stages == ("embedding + 3 dense + moe", "14 x (4 moe)", "moe + head + mtp")


def test_eight_stages_hold_about_eight_layers_each():
    run, stages = chosen("training.schedule=1f1b", "training.pp=8", "cluster.nodes=128")
    assert stages == ("embedding + 3 dense + 6 moe", "6 x (8 moe)", "4 moe + head + mtp")
    assert uneven_ranks(rank_times(run.step), chosen=True) == []


def test_the_published_model_on_a_quarter_of_the_gpus_fits_when_it_is_split_evenly():
    run, stages = chosen(
        "training.schedule=1f1b", "training.pp=8", "training.ep=32", "cluster.nodes=64"
    )
    assert stages == ("embedding + 3 dense + 5 moe", "6 x (8 moe)", "5 moe + head + mtp")
    assert max(rank.total for rank in run.memory) <= run.scenario.cluster.node.gpu.hbm_capacity


def test_one_dense_layer_in_the_place_of_three_leaves_no_rank_idle():
    run, stages = chosen("model.first_k_dense_replace=1")
    assert stages == ("embedding + dense + 3 moe", "14 x (4 moe)", "moe + head + mtp")
    assert uneven_ranks(rank_times(run.step), chosen=True) == []


def test_what_fits_under_no_split_names_the_one_that_needs_least_and_what_would_help():
    with pytest.raises(ValueError, match=r"splits of layers tried, embedding .* needs least; more"):
        chosen("training.pp=4")
    with pytest.raises(ValueError, match="stages=default looks for a split that fits"):
        chosen(
            "training.schedule=1f1b",
            "training.pp=2",
            "training.stages=[embedding + 3 dense + 58 moe, head + mtp]",
        )


class MadeUpTimes:
    """Three ranks of 1F1B; the slowest stage is all that counts."""

    schedule = one_f_one_b(3, 6)
    seconds: ClassVar = {"embedding": 0.5, "moe": 1.0, "head": 3.0}

    def layer_costs(self, kinds):
        return {(work, kind): self.seconds[kind] for work in "FB" for kind in kinds}

    def of_layers(self, splits, costs):
        return [max(sum(map(self.seconds.get, stage)) for stage in split) for split in splits]

    def of_own_chunks(self, splits):
        return self.of_layers(splits, {})


@pytest.mark.parametrize(
    ("capacity", "stages"),
    [
        # 3.5, 4 and 4 seconds.
        (100, ("embedding + 3 moe", "4 moe", "moe + head")),
        # Three micro-batches on rank 0 and two on rank 1: at most 2 and 4 layers there.
        (8, ("embedding + 2 moe", "4 moe", "2 moe + head")),
    ],
)
def test_layers_go_where_time_is_least_and_memory_is_left(capacity, stages):
    found = choose_stages(
        ("embedding", *("moe",) * 8, "head"),
        MadeUpTimes(),
        rank_bytes=lambda rank, split: (3 - rank) * split[rank].count("moe"),
        capacity=capacity,
    )
    assert stage_texts(found) == stages


@pytest.mark.parametrize(
    ("seconds", "stages"),
    [
        # Half a per cent decides nothing: stages of four seconds in the place of six.
        (99.5, ("embedding + 3 moe", "4 moe", "moe + head")),
        (98.5, ("embedding", "6 moe", "2 moe + head")),
    ],
)
def test_of_splits_that_end_nearly_together_the_most_even_is_taken(seconds, stages):
    class EndsOfAnEmptyFirstStage(MadeUpTimes):
        def of_own_chunks(self, splits):
            return [seconds if split[0] == ("embedding",) else 100.0 for split in splits]

    found = choose_stages(
        ("embedding", *("moe",) * 8, "head"),
        EndsOfAnEmptyFirstStage(),
        rank_bytes=lambda rank, split: 0.0,
        capacity=1.0,
    )
    assert stage_texts(found) == stages
