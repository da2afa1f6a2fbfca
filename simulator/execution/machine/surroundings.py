"""The fabric that a group's transfers share, what other jobs send over it, and what fails when."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import simpy

from hardware_profiles.schema import (
    CalibrationProfile,
    ClusterProfile,
    TransportProfile,
    load_transport,
)
from hardware_profiles.units import BytesPerSecond
from simulator.execution.collective import run_operations
from simulator.execution.machine.ranks import Processes
from simulator.execution.traffic import prepare
from simulator.hardware.network.clusters import cluster_fabric
from simulator.hardware.network.flows import Network
from simulator.hardware.network.routing import Failure, parse_failure, struck_resources
from simulator.hardware.network.topology import Fabric
from simulator.scenario.events import Channel, EventsInputs

WIDE = 1e6
"""Times the rate of a link that nothing contends for."""


def shared_fabric(
    cluster: ClusterProfile,
    calibration: CalibrationProfile,
    channels: Collection[Channel],
    *,
    group: int,
    copy_rates: Callable[[Fabric], Sequence[BytesPerSecond]],
) -> Fabric:
    """A cluster's fabric at the rates that kernels achieve; links that nothing contends for are
    wide open.

    Args:
        group: GPUs of the expert-parallel group.
        copy_rates: of each kind of copies by a GPU's SMs, as of Fabric.with_copiers.
    """
    fabric = cluster_fabric(cluster, _transport(calibration), group=group)
    capacity = fabric.capacity.copy()
    if "nvlink" not in channels:
        capacity[: 2 * fabric.gpus] *= WIDE
    for plane, network in enumerate(fabric.planes):
        first, last = int(fabric.plane_start[plane]), int(fabric.plane_start[plane + 1])
        switches = first + 2 * network.end_ports
        if "nic" not in channels:
            capacity[first:switches] *= WIDE
        if "links" not in channels:
            capacity[switches:last] *= WIDE
    rates = copy_rates(fabric)
    copiers = rates if "sms" in channels else [np.inf] * len(rates)
    return replace(fabric, capacity=capacity).with_copiers(copiers)


def surroundings(
    inputs: EventsInputs,
    fabric: Fabric,
    *,
    cluster: ClusterProfile,
    calibration: CalibrationProfile,
    seed: int,
) -> tuple[list[Callable[[simpy.Environment, Network], Processes]], list[Failure]]:
    """Traffic of other jobs, and what fails from the start or while the ranks run, in order.

    Raises ValueError, one line, for traffic or failures that the cluster cannot have.
    """
    failures: list[Failure] = []
    for field, texts in (("cluster", cluster.failures), ("events", inputs.failures)):
        for text in texts:
            try:
                failures.append(parse_failure(text))
                struck_resources(fabric, failures[-1])  # names that do not exist are found here
            except ValueError as error:
                raise ValueError(f"{field}.failures: {error}") from None
    rng = np.random.default_rng([seed, 8])
    transport = _transport(calibration)
    try:
        chains = [prepare(one, fabric, transport, times=None, rng=rng) for one in inputs.beside]
    except ValueError as error:
        raise ValueError(f"events.beside: {error}") from None
    failures.sort(key=lambda failure: failure.at)
    return [partial(run_operations, chain=chain) for chain in chains], failures


def _transport(calibration: CalibrationProfile) -> TransportProfile:
    """Links at the rates that transfers achieve."""
    return load_transport("ideal").model_copy(update={"achieved": calibration.transfers})
