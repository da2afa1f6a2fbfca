"""Which schedules fit is a matter of their micro-batches and of what they keep."""

from dataclasses import replace

from simulator.execution.other_schedules import fitting_schedules
from simulator.scenario.training import OptimizerTypes
from simulator.workload.memory import HeldParameters, LayerMemory, MemoryModel
from simulator.workload.schedules.held import held_activations
from simulator.workload.sharding import Sharding

SHARDING = Sharding(
    zero=1,
    types=OptimizerTypes(),
    copies=1,
    expert_copies=1,
    gathers_ahead=False,
    reduces_beside=False,
    pairs=False,
)
LAYER = LayerMemory(
    parameters=HeldParameters(),
    saved=10.0,
    deferred=0.0,
    kept={},
    weight_flops={},
    workspace=0.0,
)


def fitting(capacity, microbatches=4, layers=("moe",) * 4):
    return fitting_schedules(
        layers,
        ranks=2,
        microbatches=microbatches,
        model_of=lambda schedule: MemoryModel(
            layers={"moe": LAYER, "head": replace(LAYER, workspace=100.0)},
            schedule=schedule,
            in_flight=tuple(held_activations(schedule, rank) for rank in range(schedule.ranks)),
            sharding=SHARDING,
            reserved=0.0,
        ),
        capacity=capacity,
    )


def test_the_most_that_a_rank_keeps_decides():
    """Ten bytes per layer. 1F1B keeps two micro-batches on its first rank and one on its last, so
    one layer and three need 20 and 30; GPipe keeps four on both, of two layers each."""
    assert "1f1b" in fitting(30.0)
    assert "1f1b" not in fitting(29.0)
    assert "gpipe" in fitting(80.0)
    assert "gpipe" not in fitting(79.0)
    assert fitting(0.0) == []


def test_a_stage_of_the_head_alone_needs_room_as_well():
    """1F1B keeps one micro-batch of the head on the last rank, 10 bytes, and its logits of 100."""
    layers = ("moe", "moe", "head")
    assert "1f1b" in fitting(110.0, layers=layers)
    assert fitting(109.0, layers=layers) == []


def test_a_schedule_that_does_not_take_the_micro_batches_is_left_out():
    """DualPipe takes an even number, of at least twice the ranks."""
    assert "dualpipe" in fitting(1e9, microbatches=4)
    assert "dualpipe" not in fitting(1e9, microbatches=5)
    assert {"zb_h2", "zbv"} <= set(fitting(1e9, microbatches=3))
    assert not {"zb_h2", "zbv"} & set(fitting(1e9, microbatches=2))


def test_memory_of_the_same_layers_on_a_rank_is_worked_out_once(monkeypatch):
    asked = []
    rank_of = MemoryModel.rank

    def counting(self, rank, stages, immediate):
        own = tuple(stages[stage] for stage in self.in_flight[rank].stages)
        asked.append((self.schedule.name, rank, own))
        return rank_of(self, rank, stages, immediate)

    monkeypatch.setattr(MemoryModel, "rank", counting)
    assert "gpipe" in fitting(80.0)
    assert len(asked) == len(set(asked))
    # Each of two ranks with one layer and with two; none has room for a third.
    assert [each[1:] for each in asked if each[0] == "gpipe"] == [
        (0, (("moe",),)),
        (1, (("moe",),)),
        (0, (("moe", "moe"),)),
        (1, (("moe", "moe"),)),
    ]
