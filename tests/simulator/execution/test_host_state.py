"""State of parameters in CPU memory: bytes, PCIe and the CPU's memory, by hand."""

from dataclasses import replace

import pytest

from hardware_profiles.schema import load_cluster
from simulator.execution.host_state import (
    HostState,
    averaging_seconds,
    check_host_memory,
    host_state,
    offloaded_update,
)
from simulator.scenario.training import OptimizerTypes
from simulator.workload.memory import Infeasible
from simulator.workload.sharding import HeldParameters, Parameters, Sharding

B200 = load_cluster("b200_256")
"""8 GPUs of 64 GB/s of PCIe each, and two sockets of 358.4 GB/s, 2 TB."""
HELD = HeldParameters(Parameters(8_000_000), Parameters(6_000_000))
SHARD = 8_000_000 / 8 + 6_000_000 / 2


def state(ema="none", **changes):
    types = OptimizerTypes(**changes)
    sharding = Sharding(
        zero=1, types=types, copies=8, expert_copies=2, gathers_ahead=False, reduces_beside=False,
        pairs=False,
    )  # fmt: skip
    return sharding, host_state(HELD, sharding, ema=ema)


def test_an_offloaded_optimizer_keeps_its_state_and_room_for_what_travels():
    sharding, of = state(offload="cpu")
    assert sharding.optimizer_bytes(HELD) == 0.0
    assert of.optimizer == SHARD * (8 + 4 + 2)
    assert (of.gradients, of.parameters) == (SHARD * 4, SHARD * 2)
    # Master weight and moments are read and written, the gradient read, the parameter written.
    assert of.updating == SHARD * (2 * 8 + 4 + 2)
    assert (of.averages, of.copied) == (0.0, 0.0)


def test_an_update_on_the_cpu_takes_pcie_both_ways_and_a_share_of_its_memory():
    copies_s, cpu_s = offloaded_update(state(offload="cpu")[1], B200)
    assert copies_s == pytest.approx(SHARD * 6 / 64e9, rel=1e-12)
    assert cpu_s == pytest.approx(SHARD * 22 * 8 / 716.8e9, rel=1e-12)


def test_moving_averages_take_a_copy_of_the_shard_and_three_passes_of_memory():
    _, of = state("float32")
    assert (of.averages, of.copied, of.optimizer) == (SHARD * 4, SHARD * 4, 0.0)
    seconds = SHARD * 4 / 64e9 + 3 * SHARD * 4 * 8 / 716.8e9
    assert averaging_seconds(of, B200) == pytest.approx(seconds, rel=1e-12)
    without = B200.model_copy(update={"node": B200.node.model_copy(update={"host": None})})
    assert averaging_seconds(of, without) == SHARD * 4 / 64e9


def test_averages_beside_an_offloaded_optimizer_cross_no_pcie():
    _, of = state("bfloat16", offload="cpu")
    assert (of.averages, of.copied) == (SHARD * 2, 0.0)


def test_a_node_without_cpus_or_with_too_little_memory_is_refused():
    _, of = state(offload="cpu")
    without = B200.model_copy(update={"node": B200.node.model_copy(update={"host": None})})
    with pytest.raises(
        ValueError, match=r"cluster.node.host: b200_256 states no CPUs.*offload=none"
    ):
        check_host_memory([of], without)
    check_host_memory([of], B200)
    full = replace(of, averages=250e9 - of.optimizer)
    check_host_memory([full], B200)
    with pytest.raises(Infeasible, match=r"keep 1.819 TiB.*8 B more than the 1.819 TiB.*ema=none"):
        check_host_memory([of, replace(full, averages=full.averages + 1)], B200)


def test_nothing_in_cpu_memory_asks_for_no_cpus():
    _, of = state()
    assert of == HostState(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    without = B200.model_copy(update={"node": B200.node.model_copy(update={"host": None})})
    check_host_memory([of], without)
