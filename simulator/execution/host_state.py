"""State of parameters in CPU memory: what lies there, crosses PCIe and keeps the CPU busy.

An offloaded optimizer has master weights and moments there. After the reduction a GPU's gradients
go down, the CPU updates its shard, and the parameters come back in BF16, one after the other: an
upper bound, since ZeRO-Offload (arXiv 2101.06840, section 4) sends gradients down during backward.
Moving averages take a copy of what was updated and are updated while the next step runs; they cost
a step no time until that takes longer than the step does. PCIe runs at its rate, and each GPU has
its share of its node's CPUs, whose memory is what binds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hardware_profiles.schema import ClusterProfile, HostProfile
from hardware_profiles.units import Bytes, Seconds, format_bytes
from simulator.hardware.network.transfers import host_link
from simulator.workload.memory import Infeasible
from simulator.workload.sharding import BF16_BYTES, HeldParameters, Sharding, type_bytes


@dataclass(frozen=True, slots=True)
class HostState:
    """What one GPU keeps in its node's CPU memory, and sends there in a step."""

    optimizer: Bytes
    """Master weights and moments, and room for gradients and parameters on their way."""
    averages: Bytes
    gradients: Bytes
    """To the CPU for its update."""
    parameters: Bytes
    """Back, in BF16."""
    copied: Bytes
    """To the CPU for the averages; none where it has updated the parameters itself."""
    updating: Bytes
    """That an update reads and writes in CPU memory."""

    @property
    def total(self) -> Bytes:
        """All that lies there."""
        return self.optimizer + self.averages


def host_state(held: HeldParameters, sharding: Sharding, *, ema: str) -> HostState:
    """What a GPU has in CPU memory.

    Args:
        ema: type of its moving averages, "none" without.
    """
    offloaded = sharding.types.offload == "cpu"
    updated = sharding.updated(held).count if offloaded else 0.0
    gradients = updated * type_bytes(sharding.types.gradients)
    parameters = updated * BF16_BYTES
    state = sharding.state_bytes(held) if offloaded else 0.0
    averages = 0.0 if ema == "none" else sharding.shard(held).count * type_bytes(ema)
    return HostState(
        optimizer=state + gradients + parameters,
        averages=averages,
        gradients=gradients,
        parameters=parameters,
        copied=0.0 if offloaded else averages,
        updating=2 * state + gradients + parameters,
    )


def host_states(
    held: Sequence[HeldParameters], sharding: Sharding, *, ema: str, cluster: ClusterProfile
) -> tuple[HostState, ...]:
    """[rank], what a GPU has in CPU memory; raises as `check_host_memory`."""
    states = tuple(host_state(each, sharding, ema=ema) for each in held)
    check_host_memory(states, cluster)
    return states


def offloaded_update(state: HostState, cluster: ClusterProfile) -> tuple[Seconds, Seconds]:
    """Times of an update on the CPU: of copies over PCIe, gradients to it and parameters back, and
    of the update at the peak of its memory.

    Raises:
        ValueError: a cluster that says nothing of its CPUs.
    """
    link = host_link(cluster, gpus=1)
    copies_s = link.send(link.send(0.0, state.gradients), state.parameters)
    return copies_s, _memory_seconds(state.updating, _host(cluster), cluster)


def averaging_seconds(state: HostState, cluster: ClusterProfile) -> Seconds:
    """How long moving averages take beside the next step: the copy over PCIe, then reading it and
    the averages and writing those, at the peak of the memory of CPUs that the cluster states."""
    copied = host_link(cluster, gpus=1).send(0.0, state.copied)
    host = cluster.node.host
    return copied + (0.0 if host is None else _memory_seconds(3 * state.averages, host, cluster))


def check_host_memory(states: Sequence[HostState], cluster: ClusterProfile) -> None:
    """Raise Infeasible where a node's GPUs keep more in its CPU memory than it has, and ValueError
    where an update needs CPUs that the cluster does not state."""
    fullest = max(states, key=lambda state: state.total)
    if fullest.updating:
        _host(cluster)
    host, needed = cluster.node.host, fullest.total * cluster.node.gpus
    if host is not None and needed > host.memory:
        raise Infeasible(
            f"cluster.node.host.memory: {cluster.node.gpus} GPUs keep {format_bytes(needed)} of "
            "optimizer state and moving averages in CPU memory, "
            f"{format_bytes(needed - host.memory)} more than the {format_bytes(host.memory)} of a "
            "node; allowed: training.optimizer.offload=none, training.ema=none, or training.zero "
            "of 1 and more, which shares the state out"
        )


def _memory_seconds(size: Bytes, host: HostProfile, cluster: ClusterProfile) -> Seconds:
    """To read and write the bytes of one GPU at its share of its node's memory bandwidth."""
    return size * cluster.node.gpus / host.memory_bandwidth


def _host(cluster: ClusterProfile) -> HostProfile:
    if cluster.node.host is None:
        raise ValueError(
            f"cluster.node.host: {cluster.name} states no CPUs, at the rate of whose memory "
            "training.optimizer.offload=cpu updates; allowed: cluster.node.host={cpu: {name: NAME, "
            "cores: N, memory_bandwidth: N GB/s}, sockets: N, memory: N TB}, or "
            "training.optimizer.offload=none"
        )
    return cluster.node.host
