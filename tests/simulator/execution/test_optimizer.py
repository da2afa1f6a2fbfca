"""The optimizer step: what is reduced, updated and gathered on one rank, and what chunks hold."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from simulator.analysis.run import simulate
from simulator.execution.optimizer import (
    ChunkState,
    OptimizerStep,
    Rings,
    exchanges_in_chunks,
    optimizer_step,
    state_of_actions,
    with_exposed,
    with_state_collectives,
)
from simulator.hardware.network.fabric_load import NO_LIMIT
from simulator.hardware.network.groups import Domains
from simulator.hardware.prediction import Prediction, one_time
from simulator.scenario.files import SCENARIOS, load_scenario
from simulator.scenario.training import OptimizerTypes
from simulator.workload.schedules.known import build_schedule
from simulator.workload.sharding import HeldParameters, HeldWeight, Parameters, Sharding
from simulator.workload.state_tasks import GRADIENTS, PARAMETERS, StateTasks, state_operators
from simulator.workload.update import update_operators

HELD = HeldParameters(
    Parameters(4 * 6144),
    Parameters(6 * 6144, 6 * 6144, 6 * 6144, 0.0, ((HeldWeight("fp8_e4m3", 2, 64, 288), 1),)),
)
SHARDED = Sharding(
    zero=1, types=OptimizerTypes(), copies=2, expert_copies=3, gathers_ahead=False,
    reduces_beside=False, pairs=False,
)  # fmt: skip
RINGS = Rings("dense", "experts", 1.0, 2.0)
"""Rings of 1 byte per second for dense parameters and 2 for experts."""


class BytesOverLoad:
    """Transfers that take a second for each byte, over what the fabric makes of them."""

    cluster = SimpleNamespace(node=SimpleNamespace(gpu=SimpleNamespace(sms=132)))

    def collective(self, operation, transferred, *, form, group, load):
        seconds = transferred / load
        return one_time(seconds, seconds / 2, seconds * 2, provenance=0, family=operation)


class BytesOfKernels:
    """Kernels that take a second for each byte that they read and write."""

    def predict(self, operators, *, sms, overlapped):
        moved = [operator.bytes_read + operator.bytes_written for operator in operators]
        return SimpleNamespace(seconds=np.array(moved, dtype=float))


def step_of(sharding, *, overlapped=(False, False)):
    return optimizer_step(
        HELD, sharding, overlapped=overlapped, rings=RINGS, transfers=BytesOverLoad(),
        costs=BytesOfKernels(),
    )  # fmt: skip


RING = 6144 * (4 / 1 + 6 / 2)
"""Seconds to exchange a byte of every parameter."""
WHOLE, SHARD = 6144 * 10, 6144 * (4 / 2 + 6 / 3)
CAST = 6144 * 6 * (2 + 1) + 2 * 2 * 3 * 4
"""From BF16, with the scales of 2 x 3 blocks, of the weight and of its transpose."""


@pytest.mark.parametrize(("gradients", "each"), [("float32", 4), ("bfloat16", 2)])
def test_gradients_are_reduced_in_their_type_and_parameters_gathered_in_bfloat16(gradients, each):
    step = step_of(replace(SHARDED, types=OptimizerTypes(gradients=gradients)))
    assert step.reduce_s == each * RING
    assert step.gather_s == 2 * RING
    assert step.exchange_ends_s == ((each + 2) * RING / 2, (each + 2) * RING * 2)
    # Of its shard a GPU reads the gradient twice, reads and writes 8 bytes of master weight and
    # moments, and writes two; it clears all gradients, and casts all experts. A norm has 4 bytes.
    assert step.update_s == SHARD * (2 * each + 2 * 8 + 2) + WHOLE * each + 4 + CAST


def test_every_stage_communicates_and_updates_what_it_shares():
    of = {zero: step_of(replace(SHARDED, zero=zero)) for zero in range(4)}
    assert [(s.reduce_s, s.gather_s) for s in of.values()] == [
        (8 * RING, 0.0),  # an all-reduce of FP32 gradients
        (4 * RING, 2 * RING),
        (0.0, 2 * RING),
        (0.0, 0.0),
    ]
    assert [s.update_s for s in of.values()] == [
        WHOLE * 26 + WHOLE * 4 + 4 + CAST,
        SHARD * 26 + WHOLE * 4 + 4 + CAST,
        SHARD * 26 + SHARD * 4 + 4 + CAST,
        SHARD * 26 + SHARD * 4 + 4,  # chunks cast what they gather
    ]


def test_what_has_no_copy_is_cast_from_its_master_and_never_stands_in_bfloat16():
    """Experts of one GPU alone: no two bytes written, four read in the place of two."""
    step = step_of(replace(SHARDED, zero=1, expert_copies=1))
    dense, experts = 2 * 6144, 6 * 6144
    assert step.update_s == (
        (dense + experts) * (2 * 4 + 2 * 8) + dense * 2 + WHOLE * 4 + 4 + CAST + 6144 * 6 * 2
    )


def test_an_update_on_the_cpu_leaves_the_gpu_norm_clearing_and_casts():
    assert [
        (o.kind, o.bytes_read, o.bytes_written)
        for o in update_operators(HELD, replace(SHARDED, types=OptimizerTypes(offload="cpu")))
    ] == [("gradient_norm", 4 * SHARD, 4), ("memory_bound", 0, 4 * WHOLE)]


def test_an_all_reduce_moves_what_reducing_gradients_and_gathering_parameters_of_one_type_does():
    types = OptimizerTypes(gradients="bfloat16")
    whole, shared = (step_of(replace(SHARDED, zero=zero, types=types)) for zero in (0, 1))
    assert whole.reduce_s == shared.reduce_s + shared.gather_s == 4 * RING


def test_what_chunks_hold_is_not_in_the_optimizer_step():
    step = step_of(SHARDED, overlapped=(True, True))
    assert (step.reduce_s, step.gather_s, step.exchange_ends_s) == (0.0, 0.0, (0.0, 0.0))
    assert step.update_s == SHARD * 26 + WHOLE * 4 + 4


def test_what_sticks_out_of_the_pipeline_has_the_interval_of_its_collectives():
    update = one_time(7.0, 7.0, 7.0, provenance=0, family="update")
    step = OptimizerStep(reduce_s=0.0, update=update, gather_s=1.0, exchange_ends_s=(0.5, 2.0))
    times = one_time(4.0, 2.0, 12.0, provenance=0, family="transfers")
    found = with_exposed(step, [(0.0, 0.0, times), (3.0, 0.5, times)])
    assert (found.reduce_s, found.update_s, found.gather_s) == (3.0, 7.0, 1.5)
    assert found.exchange_ends_s == (0.5 + 3.5 / 2, 2.0 + 3.5 * 3)
    assert with_exposed(step, []) is step


def test_muon_adds_the_products_of_the_busiest_owner():
    """Of two 64 x 64 matrices on two copies one: two products of 64 x 64 x 64, and one more, each
    5 times, read 2 x 8,192 bytes and write 8,192."""
    weights = ((HeldWeight("bfloat16", 1, 64, 64), 2),)
    held = HeldParameters(Parameters(2 * 64 * 64 + 4096, weights=weights))
    of_muon = replace(SHARDED, types=OptimizerTypes(name="muon"))
    step = optimizer_step(
        held, of_muon, overlapped=(False, False), rings=RINGS, transfers=BytesOverLoad(),
        costs=BytesOfKernels(),
    )  # fmt: skip
    assert step.orthogonalize_s == 5 * 3 * 3 * 8192
    assert step.total_s == step.reduce_s + step.orthogonalize_s + step.update_s + step.gather_s
    # 2,048 parameters with two moments and 4,096 with one; 12,288 gradients are cleared.
    assert step.update_s == 6144 * (4 + 4 + 2) + 2 * (2048 * 8 + 4096 * 6) + 12288 * 4 + 4


def tasks_of(schedule, sharding, overlapped):
    """[rank][action], what each chunk holds: g(ather), r(eduction), and G, R those of the step."""
    found = state_of_actions(
        schedule, sharding, overlapped=overlapped, with_mtp=[()] * schedule.ranks,
        rings=[RINGS] * schedule.ranks,
    )  # fmt: skip

    def word(state):
        if state is None:
            return "."
        gathers = state.tasks.gather_forward or state.tasks.gather_backward
        return ("G" if state.once[0] else "g" if gathers else "") + (
            "R" if state.once[1] else "r" if state.tasks.reduce else ""
        )

    return [" ".join(map(word, row)) for row in found]


@pytest.mark.parametrize(
    ("zero", "overlapped", "words"),
    [
        (1, (False, False), [". . . . . .", ". . . . . ."]),
        (0, (True, False), [". . . . . R", ". . . . . R"]),
        (0, (True, True), [". . . . . R", ". . . . . R"]),
        (1, (True, False), [". . . . . R", ". . . . . R"]),
        (1, (False, True), ["G . . . . .", "G . . . . ."]),
        (1, (True, True), ["G . . . . R", "G . . . . R"]),
        (2, (False, False), [". . r . r r", ". r . r . r"]),
        (2, (True, False), [". . r . r r", ". r . r . r"]),
        (2, (False, True), ["G . r . r r", "G r . r . r"]),
        (3, (False, False), ["g g gr g gr gr", "g gr g gr g gr"]),
    ],
)
def test_chunks_hold_what_each_stage_exchanges_inside_them(zero, overlapped, words):
    """1F1B of 3 micro-batches on 2 ranks: F F B F B B, and F B F B F B."""
    schedule = build_schedule("1f1b", 2, 3, virtual_stages=None)
    assert tasks_of(schedule, replace(SHARDED, zero=zero), overlapped) == words


def test_gradients_put_off_are_reduced_after_the_last_of_a_stage():
    schedule = build_schedule("zb_h1", 2, 4, virtual_stages=None)
    of_rank = [[str(action) for action in row] for row in schedule.actions]
    for row, words in zip(of_rank, tasks_of(schedule, SHARDED, (True, False)), strict=True):
        reduced = [name for name, word in zip(row, words.split(), strict=True) if word == "R"]
        assert reduced == [name for name in row if "W" in name][-1:]


def test_without_copies_no_chunk_exchanges_anything():
    alone = replace(SHARDED, zero=3, copies=1, expert_copies=1)
    assert (
        tasks_of(build_schedule("1f1b", 2, 2, virtual_stages=None), alone, (True, True))
        == [". . . ."] * 2
    )


@pytest.mark.parametrize(
    ("zero", "overlapped", "copies", "found"),
    [
        (0, (False, False), (4, 2), False),
        (0, (False, True), (4, 2), False),  # nothing is gathered
        (0, (True, False), (4, 2), True),
        (1, (False, False), (4, 2), False),
        (1, (False, True), (4, 2), True),
        (1, (True, False), (4, 2), True),
        (2, (False, False), (4, 2), True),
        (2, (False, False), (1, 2), True),  # copies of experts alone
        (2, (True, True), (1, 1), False),
    ],
)
def test_chunks_exchange_where_copies_share_out_what_a_backward_ends_with(
    zero, overlapped, copies, found
):
    sharding = replace(SHARDED, zero=zero, copies=copies[0], expert_copies=copies[1])
    assert exchanges_in_chunks(sharding, overlapped) == found


ONE_GPU = str(SCENARIOS.parent / "whole" / "train.yaml")


def test_on_one_gpu_every_stage_takes_the_same_time_and_memory():
    runs = [simulate(load_scenario(ONE_GPU, [f"zero={zero}"])).result for zero in range(4)]
    assert len({run.step.step_time_s for run in runs}) == 1
    assert len({run.memory for run in runs}) == 1


def test_a_chunk_says_what_it_exchanges():
    assert str(StateTasks(gather_backward=True, reduce=True)) == ", gather, reduction"
    assert str(ChunkState(StateTasks(reduce=True), RINGS).tasks) == ", reduction"


def test_gradients_of_what_all_gpus_hold_that_share_layers_are_summed_among_them():
    """1,000 parameters, FP32 gradients, a reduce-scatter and an all-gather of 4,000 bytes over the
    fabric of two nodes; of stage 2 what each of two copies has."""
    rings = replace(RINGS, tensor=Domains(domains=2, fewest=1, most=1))
    held = replace(HELD, duplicated=1000)
    transfers = BytesOverNothing()
    found = [
        optimizer_step(
            held, replace(SHARDED, zero=zero), overlapped=(True, True), rings=rings,
            transfers=transfers, costs=BytesOfKernels(),
        ).reduce_s
        for zero in (1, 2)
    ]  # fmt: skip
    assert found == [2 * 4000.0, 2 * 2000.0]


class BytesOverNothing(BytesOverLoad):
    """Transfers that take a second for each byte, through NICs that nothing limits."""

    def collective(self, operation, transferred, *, form, group, load):
        assert (form, group.domains, load) == ("ring", 2, NO_LIMIT)
        return one_time(transferred, transferred, transferred, provenance=0, family=operation)


def test_what_follows_the_last_micro_batch_is_all_of_its_parts():
    def taking(*seconds):
        return SimpleNamespace(seconds=np.array(seconds))

    step = OptimizerStep(
        reduce_s=1.0, update=taking(2.0, 4.0), gather_s=8.0, exchange_ends_s=(0.0, 0.0),
        products=taking(16.0, 32.0), on_cpu_s=(64.0, 128.0),
    )  # fmt: skip
    assert (step.update_s, step.orthogonalize_s, step.total_s) == (6.0, 48.0, 255.0)
    without = replace(step, products=None, on_cpu_s=None)
    assert (without.orthogonalize_s, without.total_s) == (0.0, 15.0)


def test_what_is_left_exposed_has_the_interval_of_the_chunk_that_exposes_most():
    def collectives(low, high):
        return SimpleNamespace(seconds=np.array([10.0]), low=np.array([low]), high=np.array([high]))

    step = OptimizerStep(reduce_s=1.0, update=None, gather_s=2.0, exchange_ends_s=(2.5, 4.0))
    found = with_exposed(
        step, [(2.0, 2.0, collectives(8.0, 15.0)), (3.0, 0.0, collectives(5.0, 10.0))]
    )
    # 3 s of reduction and 2 s of gather, 0.8 to 1.5 times of which.
    assert (found.reduce_s, found.gather_s) == (4.0, 4.0)
    assert found.exchange_ends_s == pytest.approx((2.5 + 5 * 0.8, 4 + 5 * 1.5), rel=1e-12)
    assert with_exposed(step, []) is step


def test_collectives_in_chunks_take_what_their_rings_do_and_kernels_what_they_took():
    class Links:
        def seconds(self, transfers, operation, size, *, experts):
            each = {"all_gather": 1.0, "reduce_scatter": 10.0}[operation] * (2 if experts else 1)
            return one_time(size * each, 0.0, 0.0, provenance=0, family="transfers")

    parameters = HeldParameters(Parameters(10), Parameters(6))
    found = state_operators({"moe": parameters}, SHARDED, accumulates=False)
    operators = [*found["moe", PARAMETERS], *found["moe", GRADIENTS], *found["moe", PARAMETERS]]
    states = [SimpleNamespace(rings=Links())] * 4 + [None] * 2
    took = Prediction.none(["kernel"] * 6)
    again = with_state_collectives(took, operators, states, None)
    # BF16 parameters gathered at 1 byte/s and FP32 gradients reduced at a tenth, experts' at half.
    assert again.seconds.tolist() == [20, 2 * 12, 10 * 40, 10 * 2 * 24, 0, 0]
