"""Shares of weights, gradients and optimizer state by stage of ZeRO, byte by byte."""

import pytest

from simulator.scenario.files import load_scenario
from simulator.scenario.training import OptimizerTypes, TrainingJob
from simulator.workload.sharding import (
    OPTIMIZERS,
    HeldParameters,
    HeldWeight,
    Optimizer,
    Parameters,
    Sharding,
    _most_at_once,
    check_optimizer,
)

# Two layers in FP8: 800 and 1,600 replicated parameters, 600 and 6,000 of experts, all quantised
# but 100 of each layer; a working copy takes a byte each, scales left out.
SMALL = HeldParameters(Parameters(800, 700, 700, 700.0), Parameters(600, 600, 600, 600.0))
LARGE = HeldParameters(Parameters(1600, 1500, 1500, 1500.0), Parameters(6000, 6000, 6000, 6000.0))
HELD = SMALL + LARGE
STAGES = [[SMALL, LARGE]]


def sharding(zero, **changes):
    given = {
        "types": OptimizerTypes(), "copies": 8, "expert_copies": 2,
        "gathers_ahead": False, "reduces_beside": False, "pairs": False,
    }  # fmt: skip
    return Sharding(zero=zero, **(given | changes))


def of_stage(zero, **changes):
    """Bytes of weights, gradients and optimizer state."""
    of = sharding(zero, **changes)
    return (
        of.weight_bytes(HELD, STAGES),
        of.gradient_bytes(HELD, STAGES),
        of.optimizer_bytes(HELD),
    )


WEIGHTS = 700 + 600 + 1500 + 6000 + 2 * 200
"""A byte for each quantised parameter, two for the rest."""
SHARD = 2400 / 8 + 6600 / 2


@pytest.mark.parametrize(
    ("zero", "weights", "gradients", "optimizer"),
    [
        (0, WEIGHTS, 4 * 9000, 8 * 9000),
        (1, WEIGHTS, 4 * 9000, 8 * SHARD),
        # Beside its shard a GPU has the gradients of the layer that it reduces, 7,600 at most.
        (2, WEIGHTS, 4 * SHARD + 4 * 7600, 8 * SHARD),
        # And the layer that computes in BF16 with its working copies, beside a shard in BF16.
        (3, 2 * SHARD + 2 * 7600 + 7500, 4 * SHARD + 4 * 7600, 8 * SHARD),
    ],
)
def test_every_stage_shares_what_it_is_named_for(zero, weights, gradients, optimizer):
    assert of_stage(zero) == (weights, gradients, optimizer)


def test_what_is_exchanged_beside_compute_is_there_of_two_layers():
    weights, gradients, optimizer = of_stage(3, gathers_ahead=True, reduces_beside=True)
    # The large layer computes while the small one is gathered, and both reduce.
    assert weights == 2 * SHARD + (2 * 7600 + 7500) + 2 * 1400
    assert gradients == 4 * SHARD + 4 * (7600 + 1400)
    assert optimizer == 8 * SHARD


@pytest.mark.parametrize(
    ("own", "neighbours", "most"),
    [
        # The first layer with what its neighbour takes; the reverse; and the one alone.
        ([5, 1], [1, 4], 5 + 4),
        ([1, 5], [4, 1], 5 + 4),
        ([9], [9], 9),
        ([], [], 0),
    ],
)
def test_a_layer_is_there_with_the_one_on_either_side(own, neighbours, most):
    assert _most_at_once([own, [2]], [neighbours, [20]], both=True) == max(most, 2)
    assert _most_at_once([own, [2]], [neighbours, [20]], both=False) == max([*own, 2])


def test_two_chunks_side_by_side_gather_a_layer_each():
    weights, *_ = of_stage(3, pairs=True)
    assert weights == 2 * SHARD + 2 * (2 * 7600 + 7500)


def test_experts_without_a_copy_are_held_as_without_sharing():
    weights, gradients, optimizer = of_stage(3, expert_copies=1)
    shard = 2400 / 8
    # Working copies of all experts; of the replicated a shard, and the larger layer gathered.
    assert weights == 6600 + 2 * shard + 2 * 1600 + 1500
    assert gradients == 4 * (shard + 6600) + 4 * 1600
    assert optimizer == 8 * (shard + 6600)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_without_copies_every_stage_holds_the_same(zero):
    alone = of_stage(zero, copies=1, expert_copies=1)
    assert alone == (WEIGHTS, 4 * 9000, 8 * 9000)


def test_bfloat16_gradients_and_float32_moments_count_by_their_types():
    types = OptimizerTypes(gradients="bfloat16", moments="float32")
    assert of_stage(0, types=types) == (WEIGHTS, 2 * 9000, (4 + 2 * 4) * 9000)
    assert of_stage(2, types=types)[1:] == (2 * SHARD + 2 * 7600, 12 * SHARD)


MUON = OptimizerTypes(name="muon")
OF_MATRICES = HeldParameters(
    Parameters(2 * 64 * 64 + 100, weights=((HeldWeight("bfloat16", 1, 64, 64), 2),)),
    Parameters(3 * 16 * 16, weights=((HeldWeight("bfloat16", 3, 16, 16), 1),)),
)


def test_muon_keeps_one_moment_of_whole_matrices_on_the_owner_of_most():
    """Four copies of the 64 x 64 matrices, two of the 16 x 16 ones: one, and two of three."""
    of = sharding(1, types=MUON, copies=4)
    updated = of.updated(OF_MATRICES)
    assert (updated.each, updated.matrices) == (100 / 4, 64 * 64 + 2 * 16 * 16)
    # The rest takes AdamW: 4 bytes of master weight, and 2 for each moment.
    assert of.optimizer_bytes(OF_MATRICES) == 25 * (4 + 2 * 2) + 4608 * (4 + 2)
    assert of.orthogonalized(OF_MATRICES) == [(64, 64), (16, 16), (16, 16)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["optimizer.offload=cpu"], "training.optimizer.offload: cpu: products of optimizer.name "),
        (["tensor_parallel=2"], "training.optimizer.name: of_matrices: updates whole matrices"),
        (["zero=3"], "training.zero: 3: cuts every matrix .* optimizer.name of_matrices updates"),
    ],
)
def test_any_optimizer_of_matrices_keeps_them_whole_and_on_gpus(changes, message, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "of_matrices", Optimizer("New", moments=2, of_matrices=1))

    def check(name):
        scenario = load_scenario("dualpipe_h800_2048", [f"optimizer.name={name}", *changes])
        check_optimizer(scenario.job_as(TrainingJob))

    check("adamw")
    with pytest.raises(ValueError, match=message):
        check("of_matrices")


def test_without_sharing_every_gpu_orthogonalises_all_matrices():
    of = sharding(0, types=MUON, copies=4)
    assert of.orthogonalized(OF_MATRICES) == [(64, 64)] * 2 + [(16, 16)] * 3
    assert of.optimizer_bytes(OF_MATRICES) == 100 * 8 + (8192 + 768) * 6


def test_a_gpu_has_the_gradients_of_what_it_updates_one_by_one_and_of_its_matrices():
    """Stage 2 in FP32: of 25 parameters and of 4,608 in matrices, beside those of the one layer."""
    of = sharding(2, types=MUON, copies=4)
    layer = 2 * 64 * 64 + 100 + 3 * 16 * 16
    assert of.shard(OF_MATRICES).count == 25 + 4608
    assert of.gradient_bytes(OF_MATRICES, [[OF_MATRICES]]) == 4 * (25 + 4608) + 4 * layer


def test_parameters_add_up_by_kind_and_equal_weights_by_number():
    product, table = HeldWeight("fp8_e4m3", 2, 8, 16), HeldWeight("bfloat16", 1, 9, 4, matrix=False)
    first = Parameters(1000, 100, 10, 1.5, ((product, 3),))
    second = Parameters(2000, 300, 50, 2.25, ((table, 1), (product, 4)))
    both = first + second
    assert both == Parameters(3000, 400, 60, 3.75, ((table, 1), (product, 7)))
    # Two experts have one each; Muon leaves the table alone.
    assert both.matrices == ((8, 16),) * 7 * 2
    # 3.75 bytes of working copies, and two of each parameter that is not quantised.
    assert both.working_bytes == 3.75 + 2600 * 2
    held = HeldParameters(first, second, 7) + HeldParameters(second, first, 5)
    assert held == HeldParameters(both, second + first, 12)
    assert held.every.count == 6000


def test_other_optimizers_orthogonalise_nothing():
    assert sharding(1).orthogonalized(OF_MATRICES) == []
