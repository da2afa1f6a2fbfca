"""Replay a recorded profile and set the simulated timeline beside the measured one.

    run = simulate(replay_scenario("profile.json.gz", ["gpu=h200_sxm", "host_speed=2"]))
    print(run.metrics["span_s"], run.result.warnings)

On the machine it was recorded on, kernels keep their recorded times and only order, waits, launches
and room on the SMs decide when they run: the span is *reproduced*, which tests those. Anything else
is a what-if (simulator.analysis.what_if).

Rank skew. A kernel that exchanges counts before a dispatch or combine holds a barrier across ranks,
so its recorded time is mostly waiting for slower ranks. It keeps that time in every replay, also
where a faster GPU or NIC would change when the other ranks arrive: one rank's profile cannot say.
`rank_wait_s` is that time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.schema import ClusterProfile, GpuProfile, load_cluster, load_gpu
from hardware_profiles.units import Seconds
from simulator.analysis.what_if import (
    Machine,
    blocks_on,
    is_unmapped,
    what_if_durations,
)
from simulator.execution.replay import (
    ReplayLog,
    ReplayMachine,
    compute_kernels,
    execute_replay,
    idle_time,
    measured_times,
    union_s,
)
from simulator.scenario.files import Scenario, scenario_from
from simulator.scenario.replay import ReplayJob
from simulator.workload.profile.kernel_mapping import KernelMapping, load_mapping
from simulator.workload.profile.kineto import read_kineto
from simulator.workload.profile.mapped_kernels import (
    MappedKernel,
    UnmappedKernel,
    best_mapping,
    gpu_of_recording,
    map_kernels,
    unmapped_kernels,
)
from simulator.workload.profile.recording import Trace
from simulator.workload.profile.replay_graph import ReplayGraph, Role, build_replay

WARNED_SHARE = 0.1
"""Share of the kernel time from which on a replay warns of kernels that nothing is known of."""
NAMED_KERNELS = 3
"""Kernels that such a warning names."""


@dataclass(frozen=True, slots=True)
class Replay:
    """One replay, and the recording that it replays."""

    job: ReplayJob
    trace: Trace
    mapping: KernelMapping
    mapped: tuple[MappedKernel, ...]
    recorded_gpu: str
    source: Machine
    target: Machine
    seconds: NDArray[np.float64]
    """[kernels] on the target."""
    basis: Sequence[str]
    """[kernels], what these rest on."""
    simulated: ReplayLog = field(repr=False)
    measured: ReplayLog = field(repr=False)

    @property
    def graph(self) -> ReplayGraph:
        """What ran, and what each of it waits for."""
        return self.simulated.graph

    @property
    def span_s(self) -> Seconds:
        """Time from the start of the first kernel to the end of the last."""
        return self.simulated.span_s

    @property
    def measured_span_s(self) -> Seconds:
        return self.measured.span_s

    @property
    def unmapped_share(self) -> float:
        """Share of the recorded kernel time that is computing of which nothing is known."""
        total = sum(kernel.seconds for kernel in self.trace.kernels)
        lost = sum(entry.seconds for entry in self.unmapped)
        return lost / total if total else 0.0

    @property
    def order_inversions(self) -> int:
        """Pairs of a kernel that computes and another that ran one after the other in the recording
        and run the other way round in the replay."""
        compute = np.array(compute_kernels(self.graph), dtype=np.intp)
        chosen = set(compute.tolist())
        others = [index for index in range(len(self.graph.kernels)) if index not in chosen]
        inversions = 0
        for index in others:
            for first, second in ((self.measured, self.simulated), (self.simulated, self.measured)):
                before = first.end_s[index] <= first.start_s[compute]
                after = second.end_s[compute] <= second.start_s[index]
                inversions += int((before & after).sum())
        return inversions

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the replay could not use or had to assume, counted."""
        found = [str(problem) for problem in self.trace.problems]
        if self.graph.idle_waits:
            found.append(
                f"{self.graph.idle_waits} of {self.graph.wait_calls} stream waits bind nothing: no "
                "work that they could be for was launched in the trace"
            )
        if self.trace.sm_limits is None:
            found.append("the trace does not describe an SM: kernels never wait for room on SMs")
        if self.unmapped_share >= WARNED_SHARE:
            entries = self.unmapped
            named = ", ".join(entry.name for entry in entries[:NAMED_KERNELS])
            more = f" and {len(entries) - NAMED_KERNELS} more" if entries[NAMED_KERNELS:] else ""
            found.append(
                f"nothing is known of {self.unmapped_share:.1%} of the kernel time ({named}{more}):"
                " on another GPU it is at most what the recorded one can have done in it; record "
                "with record_shapes=True, or name the kernels in a mapping of your own "
                "(--mapping FILE)"
            )
        return tuple(found)

    @property
    def unmapped(self) -> tuple[UnmappedKernel, ...]:
        """Computing kernels without an operator."""
        return unmapped_kernels(
            self.trace,
            self.mapped,
            lambda kernel, place: place.reason if is_unmapped(kernel, place) else None,
        )


def replay_scenario(profile: str | Path, overrides: Sequence[str] = ()) -> Scenario:
    """The scenario of a profile's replay.

    Args:
        overrides: texts "path=value" as --set takes them: "gpu=h200_sxm", "mapping=my.yaml",
            "gpu.hbm_bandwidth=6.7 TB/s", "cluster.node.nic.bandwidth=200 Gbit/s".

    Raises:
        ValueError: one line naming the profile or the path and what is allowed.
    """
    path = Path(profile)
    job: dict[str, Any] = {"profile": str(profile)}
    raw: dict[str, Any] = {"description": f"Replay of {path.name}", "replay": job}
    parts = (text.removeprefix("replay.").partition("=") for text in overrides)
    given = {field: value for field, _, value in parts}
    inside = {name for name in ("gpu", "cluster") if any(p.startswith(f"{name}.") for p in given)}
    if inside - set(given):
        # What a change is made inside of is the machine of the recording, which the profile names.
        trace = read_kineto(path)
        rules = _mapping_of(trace, given.get("mapping"))[0]
        gpu = gpu_of_recording(trace, rules, given.get("recorded_gpu"))
        recorded = {"gpu": gpu, "cluster": rules.cluster}
        raw |= {name: recorded[name] for name in inside if recorded[name] is not None}
    name = f"replay_{path.name.split('.')[0]}"
    return scenario_from(name, raw, overrides, where=f"replay of {profile}")


def run_replay(scenario: Scenario) -> Replay:
    """Replay the profile of a scenario.

    Raises:
        ValueError: one line, for a bad profile, mapping, name or value.
    """
    job = scenario.job_as(ReplayJob)
    if any(change.startswith("cluster.node.gpu") for change in scenario.changes):
        raise ValueError(f"{scenario.where}: cluster.node.gpu: set gpu, the cluster takes it over")
    trace = read_kineto(job.profile)
    rules, mapped = _mapping_of(trace, job.mapping)
    recorded_gpu = gpu_of_recording(trace, rules, job.recorded_gpu)
    graph = build_replay(
        trace,
        roles=[place.role for place in mapped],
        polled=[place.polled for place in mapped],
    )
    recorded = load_gpu(recorded_gpu)
    around = None if rules.cluster is None else load_cluster(rules.cluster)
    recorded_sms = max(
        (
            kernel.blocks
            for kernel, place in zip(trace.kernels, mapped, strict=True)
            # On a stream of computing kernels none runs beside them.
            if place.role is Role.COMMUNICATION
            and kernel.stream in graph.communication_streams
            and kernel.blocks < recorded.sms
        ),
        default=0,
    )
    source = _machine(recorded, around, recorded_sms)
    target = _machine(
        scenario.named_gpu or recorded,
        scenario.named_cluster or around,
        recorded_sms if job.communication_sms is None else job.communication_sms,
    )
    seconds, basis = what_if_durations(
        trace.kernels,
        mapped,
        source=source,
        target=target,
        expert_parallel_ranks=rules.expert_parallel_ranks,
    )
    machine = ReplayMachine(
        host_speed=job.host_speed,
        launch_latency_s=_stated(job.launch_latency, rules.launch_latency.value),
        kernel_gap_s=_stated(job.gap, rules.gap.value),
        sms=target.gpu.sms,
        sm_limits=trace.sm_limits,
    )
    blocks = blocks_on(trace.kernels, mapped, source=source, target=target)
    return Replay(
        job=job,
        trace=trace,
        mapping=rules,
        mapped=mapped,
        recorded_gpu=recorded_gpu,
        source=source,
        target=target,
        seconds=seconds,
        basis=basis,
        simulated=execute_replay(graph, seconds, blocks, machine),
        measured=measured_times(graph, trace, machine),
    )


def replay_metrics(run: Replay) -> dict[str, Any]:
    """{JSON name: value} of a replay, SI units."""
    cluster = run.target.cluster
    return {
        "trace": run.trace.path,
        "mapping": run.mapping.name,
        "recorded_gpu": run.recorded_gpu,
        "gpu": run.target.gpu.name,
        "what_if": run.source != run.target or run.job.host_speed != 1.0,
        "host_speed": run.job.host_speed,
        "communication_sms": run.target.communication_sms,
        "nic_bandwidth_bytes_per_s": cluster and cluster.node.nic_bandwidth_per_gpu,
        **_timeline(run.simulated),
        "measured_span_s": run.measured_span_s,
        "measured": _timeline(run.measured),
        "order_inversions": run.order_inversions,
        "unmapped_share": run.unmapped_share,
        "unmapped": [asdict(entry) for entry in run.unmapped],
        "rank_wait_s": sum(
            kernel.seconds
            for kernel, place in zip(run.trace.kernels, run.mapped, strict=True)
            if place.role is Role.RANK_WAIT
        ),
        "rank_wait_kind": "recorded; kept on every machine",
        "duration_basis": _basis(run),
        "stream_wait_calls": run.graph.wait_calls,
        "stream_waits_kind": "recorded" if run.trace.stream_waits else "inferred",
        "warnings": list(run.warnings),
    }


def _timeline(times: ReplayLog) -> dict[str, float]:
    compute = compute_kernels(times.graph)
    chosen = set(compute)
    others = [index for index in range(len(times.graph.kernels)) if index not in chosen]
    return {
        "span_s": times.span_s,
        "compute_busy_s": union_s(times.start_s[compute], times.end_s[compute]),
        "communication_busy_s": union_s(times.start_s[others], times.end_s[others]),
        **idle_time(times),
    }


def _basis(run: Replay) -> dict[str, float]:
    """{basis: share of the simulated kernel time}"""
    total = float(run.seconds.sum()) or 1.0
    shares: dict[str, float] = {}
    for basis, seconds in zip(run.basis, run.seconds, strict=True):
        shares[basis] = shares.get(basis, 0.0) + float(seconds) / total
    return shares


def _mapping_of(
    trace: Trace, mapping: str | None
) -> tuple[KernelMapping, tuple[MappedKernel, ...]]:
    """A mapping and what it says; the shipped one that names most where none is asked for."""
    if mapping is None:
        return best_mapping(trace)
    rules = load_mapping(mapping)
    return rules, map_kernels(trace, rules)


def _machine(gpu: GpuProfile, cluster: ClusterProfile | None, communication_sms: int) -> Machine:
    """The GPU in the place of the cluster's own."""
    if communication_sms >= gpu.sms:
        raise ValueError(
            f"replay: communication_sms: {communication_sms} is not allowed: "
            f"{gpu.name} has {gpu.sms} SMs and computing needs at least one"
        )
    if cluster is not None:
        node = cluster.node.model_copy(update={"gpu": gpu})
        cluster = cluster.model_copy(update={"node": node})
    return Machine(gpu, cluster, communication_sms)


def _stated(value: Seconds | None, otherwise: Seconds) -> Seconds:
    return otherwise if value is None else value
