"""Run a CollectiveJob on a cluster: completion times, and bytes per link.

Each variant of a scenario (number of GPUs, size, topology, routing) is its own simulation on a
fresh fabric. An
operation begins after the transport's start latency and runs its phases one after the other;
operations beside it share the links. Failures strike at their time.
"""

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from hardware_profiles.same_gpu import shipped_name
from hardware_profiles.schema import TransportProfile, load_transport
from simulator.execution.traffic import Work, lower_bound_seconds, prepare
from simulator.hardware.network.clusters import cluster_fabric
from simulator.hardware.network.collective_times import CollectiveTimes
from simulator.hardware.network.collectives import EXCHANGES
from simulator.hardware.network.fairness import Floats, Integers
from simulator.hardware.network.flows import Network
from simulator.hardware.network.routing import Failure, parse_failure, struck_resources
from simulator.hardware.network.topology import Fabric
from simulator.hardware.prediction import Prediction
from simulator.scenario.collective import CollectiveJob
from simulator.scenario.files import Scenario, variants

MOST_SOLVED_AGAIN = 30_000_000
"""Flows whose rates are worked out again in one variant: about 45 s of CPU; 64 GPUs that each send
to every other, where no two transfers end together, take 13 million."""


@dataclass(slots=True)
class OperationResult:
    """What became of one operation of one variant; times from the start of the operation."""

    name: str
    algorithm: str
    gpus: int
    groups: int
    """Groups that do the same at once."""
    size_bytes: float
    """Bytes that one GPU has to send to others and itself, as bandwidths are counted."""
    start_s: float
    completion_s: float | None
    """When everything has arrived everywhere; None when a failure cut it off."""
    mean_gpu_s: float | None
    """Mean over GPUs of when the last flow that concerns the GPU was done."""
    bytes_total: float
    """Payload of all flows."""
    own_share: float
    """Part of ``size_bytes`` that stays on the GPU or, in normal form, in its node."""
    nodes_per_token: float | None = None
    gpus_per_token: float | None = None
    nic_copies_saved: float | None = None
    """Share of copies over NICs that one copy per node saves against one per expert."""
    sms: int | None = None
    measured: Prediction | None = None
    """Time alone that rows of the operation say, with its interval; None where links make it."""
    phases: tuple[tuple[float, float, float], ...] = ()
    """(start, end, payload) of each batch of flows that has arrived, in order."""

    @property
    def group_gpus(self) -> int:
        """GPUs of one group."""
        return self.gpus // self.groups

    @property
    def algorithm_bandwidth(self) -> float | None:
        """Bytes/s of one GPU with its own share counted, by the mean GPU's time.

        Benchmarks print what one GPU saw; the mean over GPUs is its expectation.
        """
        return self.size_bytes / self.mean_gpu_s if self.mean_gpu_s else None

    @property
    def bus_bandwidth(self) -> float | None:
        """Bytes/s of one GPU that really leave it (or, in normal form, its node), over the whole.

        NCCL's definition: comparable with a link's rate whatever the operation.
        """
        if not self.completion_s:
            return None
        factor = 2.0 if self.name == "all_reduce" else 1.0
        return factor * (1 - self.own_share) * self.size_bytes / self.completion_s


@dataclass(slots=True)
class VariantResult:
    """One simulation; arrays over the links that carried any traffic."""

    operations: list[OperationResult]
    links: Integers
    """Their numbers among the resources of the fabric."""
    link_names: list[str]
    link_bytes: Floats
    link_utilisation: Floats
    """Bytes over capacity times the run's length."""
    fabric: Fabric
    end_s: float
    solves: int
    stalled: list[str]


@dataclass(slots=True)
class CollectiveResult:
    """All variants of a job."""

    variants: list[VariantResult]
    wall_clock_s: float
    transport: TransportProfile
    merge_share: float = 0.0

    @property
    def last(self) -> VariantResult:
        """The last variant: the one whose links are shown."""
        return self.variants[-1]


def run_collective(scenario: Scenario) -> CollectiveResult:
    """Run every variant of a scenario.

    Raises ValueError, one line, for traffic or failures that the cluster cannot have.
    """
    started = time.perf_counter()
    found = [(at, _transport(at)) for at in variants(scenario)]
    _, transport = found[-1]
    return CollectiveResult(
        variants=[_run_variant(at, transport) for at, transport in found],
        wall_clock_s=time.perf_counter() - started,
        transport=transport,
        merge_share=scenario.job_as(CollectiveJob).merge_share,
    )


def _transport(scenario: Scenario) -> TransportProfile:
    name = scenario.job_as(CollectiveJob).transport
    return load_transport(name, gpu=shipped_name(scenario.cluster.node.gpu))


def run_variants(scenario: Scenario, transport: TransportProfile) -> list[list[OperationResult]]:
    """Run every variant with a given transport and return what became of its operations."""
    return [_run_variant(at, transport).operations for at in variants(scenario)]


def _run_variant(scenario: Scenario, transport: TransportProfile) -> VariantResult:
    job, cluster = scenario.job_as(CollectiveJob), scenario.cluster
    operation = job.operation
    failures = [parse_failure(text) for text in cluster.failures]
    group = operation.group or operation.gpus or 1
    whole = cluster.gpus % group == 0
    fabric = cluster_fabric(cluster, transport, sms=operation.sms, group=group if whole else 1)
    rng = np.random.default_rng(scenario.file.seed)
    measured, nvlink = transport.measured, cluster.node.gpu.nvlink_bandwidth
    times = CollectiveTimes.of(measured, nvlink_bandwidth=nvlink) if measured else None
    chains = [
        prepare(one, fabric, transport, times=times, rng=rng) for one in (operation, *job.beside)
    ]
    works = [work for chain in chains for work in chain]
    env = simpy.Environment()
    network = Network(env, fabric, window=job.merge_share * lower_bound_seconds(works[0], fabric))
    for failure in sorted(failures, key=lambda f: f.at):
        struck_resources(fabric, failure)  # names that do not exist are found before the run
        if failure.at <= 0:
            network.strike(failure)
        else:
            env.process(_strike_later(env, network, failure))
    processes = [env.process(run_operations(env, network, chain)) for chain in chains]
    finished = env.all_of(processes)
    while not finished.triggered and env.peek() < np.inf:
        if network.solved_again > MOST_SOLVED_AGAIN:
            raise ValueError(
                f"collective.merge_share: {job.merge_share:g}: transfers end one by one, and each "
                f"time the others share links anew, {network.solves:,} times so far; allowed: "
                "more, such as 0.01, or fewer gpus"
            )
        env.step()
    end = max((t.finish.max() for w in works for t in w.transfers if len(t.finish)), default=0.0)
    end_s = float(end) if not network.stalled else float(env.now)
    carried = network.link_bytes()
    used = np.flatnonzero(carried)
    capacity = fabric.capacity[used] * max(end_s, np.finfo(float).tiny)
    return VariantResult(
        operations=[_outcome(work, fabric) for work in works],
        links=used,
        link_names=fabric.resource_names(used),
        link_bytes=carried[used],
        link_utilisation=carried[used] / capacity,
        fabric=fabric,
        end_s=end_s,
        solves=network.solves,
        stalled=list(network.stalled),
    )


def _strike_later(
    env: simpy.Environment, network: Network, failure: Failure
) -> Generator[simpy.Event, Any, None]:
    yield env.timeout(failure.at)
    network.strike(failure)


def run_operations(
    env: simpy.Environment, network: Network, chain: list[Work]
) -> Generator[simpy.Event, Any, None]:
    """Run operations that follow each other, each as often as it says, phase by phase."""
    yield env.timeout(chain[0].operation.start)
    for _ in range(chain[0].operation.repeat):
        for work in chain:
            if not work.transfers:
                work.start = env.now
            yield env.timeout(work.kernel_start)
            for phase in work.phases:
                yield env.timeout(phase.delay)
                event = network.transfer(phase.flows, priority=work.operation.priority)
                work.transfers.append((yield event))


def _outcome(work: Work, fabric: Fabric) -> OperationResult:
    complete = len(work.transfers) == len(work.phases) * work.operation.repeat
    first = work.transfers[: len(work.phases)]
    completion = mean = None
    if complete:
        by_gpu = np.full(fabric.gpus, -np.inf)
        for transfer in first:
            for gpu in (transfer.flows.source, transfer.flows.destination):
                np.maximum.at(by_gpu, gpu, transfer.finish)
        concerned = by_gpu[np.isfinite(by_gpu)]
        completion = float(concerned.max() - work.start) if len(concerned) else 0.0
        mean = float(concerned.mean() - work.start) if len(concerned) else 0.0
    forwards = work.copies is not None and EXCHANGES[work.form].forwards
    return OperationResult(
        name=work.name,
        algorithm=work.form,
        gpus=work.gpus,
        groups=work.groups,
        size_bytes=float(work.size),
        start_s=work.start,
        completion_s=completion,
        mean_gpu_s=mean,
        bytes_total=sum(phase.flows.payload for phase in work.phases) * work.operation.repeat,
        own_share=work.own_share,
        nodes_per_token=work.copies.nodes_per_token if work.copies else None,
        gpus_per_token=work.copies.ranks_per_token if work.copies else None,
        nic_copies_saved=(
            work.copies.nic_copies_saved(fabric.inputs.gpus_per_node)
            if work.copies and forwards
            else None
        ),
        sms=work.operation.sms if forwards else None,
        measured=work.measured,
        phases=tuple(
            (batch.start, float(batch.finish.max(initial=batch.start)), batch.flows.payload)
            for batch in work.transfers
        ),
    )
