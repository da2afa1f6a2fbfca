"""Replay a recorded profile and set the simulated timeline beside the measured one.

    run = replay_profile("profile.json.gz", gpu="h200_sxm", overrides={"host_speed": 2})
    json.dumps(run.to_json())

On the machine it was recorded on, kernels keep their recorded times and only order, waits, launches
and room on the SMs decide when they run: the span is *reproduced*, which tests those. Anything else
is a what-if (simulator.analysis.what_if).

Rank skew. A kernel that exchanges counts before a dispatch or combine holds a barrier across ranks,
so its recorded time is mostly waiting for slower ranks. It keeps that time in every replay, also
where a faster GPU or NIC would change when the other ranks arrive: one rank's profile cannot say.
`rank_wait_s` is that time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import PositiveFloat

from hardware_profiles.fields import Count, Profile, TimeValue, apply_overrides, to_profile
from hardware_profiles.renames import path_of_today
from hardware_profiles.schema import (
    ClusterProfile,
    GpuProfile,
    override_gpu,
    read_profile,
    resolve_cluster,
)
from hardware_profiles.units import Seconds, format_seconds
from simulator.analysis.what_if import (
    Durations,
    Machine,
    blocks_on,
    is_unmapped,
    what_if_durations,
)
from simulator.execution.replay import (
    KernelSpans,
    ReplayLog,
    ReplayMachine,
    compute_kernels,
    execute_replay,
    idle_time,
    measured_times,
    union_s,
)
from simulator.workload.profile.kernel_mapping import KernelMapping, load_mapping
from simulator.workload.profile.kineto import Trace, read_kineto
from simulator.workload.profile.mapped_kernels import (
    MappedKernel,
    best_mapping,
    gpu_of_recording,
    map_kernels,
)
from simulator.workload.profile.replay_graph import ReplayGraph, Role, build_replay

WARNED_SHARE = 0.1
"""Share of the kernel time from which on a replay warns of kernels that nothing is known of."""
NAMED_KERNELS = 3
"""Kernels that such a warning names."""


class ReplayInputs(Profile):
    """What can be set for a replay; by dotted path, as ``cluster.node.nic.bandwidth``."""

    gpu: GpuProfile
    cluster: ClusterProfile | None
    """Machine around the GPU; its node's GPU is `gpu`."""
    host_speed: PositiveFloat = 1.0
    """CPU speed relative to the recorded host."""
    communication_sms: Count | None = None
    """SMs of dispatch and combine; None: as recorded."""
    launch_latency: TimeValue
    """From the end of a launch call to the earliest start of its kernel."""
    gap: TimeValue
    """Between a kernel and the next that waits for it on the GPU."""


@dataclass(frozen=True, slots=True)
class ReplayRun:
    """One replay, and the recording that it replays."""

    trace: Trace
    mapping: KernelMapping
    mapped: tuple[MappedKernel, ...]
    graph: ReplayGraph
    inputs: ReplayInputs
    resolved: Mapping[str, Any]
    """The same as files write it: text with units."""
    recorded_gpu: str
    source: Machine
    target: Machine
    durations: Durations
    log: ReplayLog
    measured: KernelSpans = field(repr=False)

    @property
    def simulated(self) -> KernelSpans:
        return self.log.kernels

    @property
    def span_s(self) -> Seconds:
        """From the start of the first kernel to the end of the last."""
        return self.simulated.span_s

    @property
    def measured_span_s(self) -> Seconds:
        return self.measured.span_s

    @property
    def unmapped_share(self) -> float:
        """Share of the recorded kernel time that is computing of which nothing is known."""
        total = sum(kernel.seconds for kernel in self.trace.kernels)
        lost = sum(float(str(entry["seconds"])) for entry in self.unmapped())
        return lost / total if total else 0.0

    @property
    def order_inversions(self) -> int:
        """Pairs of a kernel on a communication and one on a compute stream that ran one after the
        other in the recording and run the other way round in the replay."""
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
            entries = self.unmapped()
            named = ", ".join(str(entry["name"]) for entry in entries[:NAMED_KERNELS])
            more = f" and {len(entries) - NAMED_KERNELS} more" if entries[NAMED_KERNELS:] else ""
            found.append(
                f"nothing is known of {self.unmapped_share:.1%} of the kernel time ({named}{more}):"
                " on another GPU it is at most what the recorded one can have done in it; record "
                "with record_shapes=True, or name the kernels in a mapping of your own "
                "(--mapping FILE)"
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Results under their published names; seconds."""
        inputs = self.inputs
        cluster = inputs.cluster
        return {
            "trace": self.trace.path,
            "mapping": self.mapping.name,
            "recorded_gpu": self.recorded_gpu,
            "gpu": inputs.gpu.name,
            "what_if": self.source != self.target or inputs.host_speed != 1.0,
            "host_speed": inputs.host_speed,
            "communication_sms": self.target.communication_sms,
            "nic_bandwidth_bytes_per_s": None
            if cluster is None
            else cluster.node.nic_bandwidth_per_gpu,
            **self._timeline(self.simulated),
            "measured_span_s": self.measured_span_s,
            "measured": self._timeline(self.measured),
            "order_inversions": self.order_inversions,
            "unmapped_share": self.unmapped_share,
            "unmapped": self.unmapped(),
            "rank_wait_s": sum(
                kernel.seconds
                for kernel, place in zip(self.trace.kernels, self.mapped, strict=True)
                if place.role is Role.RANK_WAIT
            ),
            "rank_wait_kind": "recorded; kept on every machine",
            "duration_basis": self._basis(),
            "stream_wait_calls": self.graph.wait_calls,
            "stream_waits_kind": "recorded" if self.trace.stream_waits else "inferred",
            "warnings": list(self.warnings),
        }

    def unmapped(self) -> list[dict[str, Any]]:
        """Computing kernels without an operator, one entry per name and reason, longest first."""
        found: dict[tuple[str, str], list[float]] = {}
        for kernel, place in zip(self.trace.kernels, self.mapped, strict=True):
            if is_unmapped(kernel, place):
                found.setdefault((place.label, place.reason), []).append(kernel.seconds)
        entries = [
            {"name": name, "reason": reason, "kernels": len(times), "seconds": sum(times)}
            for (name, reason), times in found.items()
        ]
        return sorted(entries, key=lambda entry: -float(str(entry["seconds"])))

    def _timeline(self, times: KernelSpans) -> dict[str, Any]:
        compute = compute_kernels(self.graph)
        chosen = set(compute)
        others = [index for index in range(len(self.graph.kernels)) if index not in chosen]
        idle = idle_time(self.graph, times)
        return {
            "span_s": times.span_s,
            "compute_busy_s": union_s(times.start_s[compute], times.end_s[compute]),
            "communication_busy_s": union_s(times.start_s[others], times.end_s[others]),
            "exposed_communication_s": idle.exposed_communication_s,
            "waiting_for_ranks_s": idle.waiting_for_ranks_s,
            "launch_bound_s": idle.launch_s,
            "other_idle_s": idle.other_s,
        }

    def _basis(self) -> dict[str, float]:
        """{basis: share of the simulated kernel time}"""
        total = float(self.durations.seconds.sum()) or 1.0
        shares: dict[str, float] = {}
        for basis, seconds in zip(self.durations.basis, self.durations.seconds, strict=True):
            shares[basis] = shares.get(basis, 0.0) + float(seconds) / total
        return shares


def replay_profile(
    trace_path: str | Path,
    *,
    gpu: str | None = None,
    mapping: str | None = None,
    source_gpu: str | None = None,
    host_speed: float | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ReplayRun:
    """Replay a trace.

    Args:
        gpu: GPU to replay on, shipped name or path; None: the recorded one.
        mapping: what the kernels are, shipped name or path; the shipped one that names most of
            the kernel time where not given.
        source_gpu: GPU of the recording, where the trace does not say it; must agree where it does.
        host_speed: CPU speed relative to the recorded host.
        overrides: {dotted path: value} into ReplayInputs, as --set gives them.

    Raises ValueError, one line, for a bad trace, mapping, name, path or value.
    """
    trace = read_kineto(trace_path)
    if mapping is None:
        rules, mapped = best_mapping(trace)
    else:
        rules = load_mapping(mapping)
        mapped = map_kernels(trace, rules)
    recorded_gpu = gpu_of_recording(trace, rules, source_gpu)
    graph = build_replay(
        trace,
        roles=[place.role for place in mapped],
        polled=[place.polled for place in mapped],
    )
    changes = dict(overrides or {})
    if host_speed is not None:
        changes.setdefault("host_speed", host_speed)
    resolved = _resolve(rules, gpu or recorded_gpu, changes)
    inputs = to_profile(ReplayInputs, resolved, where="replay")
    recorded = to_profile(ReplayInputs, _resolve(rules, recorded_gpu, {}), where="replay")
    recorded_sms = max(
        (
            kernel.blocks
            for kernel, place in zip(trace.kernels, mapped, strict=True)
            # On a stream of computing kernels none runs beside them.
            if place.role is Role.COMMUNICATION
            and kernel.stream in graph.communication_streams
            and kernel.blocks < recorded.gpu.sms
        ),
        default=0,
    )
    source = _machine(recorded, recorded_sms)
    taken = recorded_sms if inputs.communication_sms is None else inputs.communication_sms
    target = _machine(inputs, taken)
    durations = what_if_durations(
        trace.kernels,
        mapped,
        source=source,
        target=target,
        expert_parallel_ranks=rules.expert_parallel_ranks,
    )
    machine = ReplayMachine(
        host_speed=inputs.host_speed,
        launch_latency_s=inputs.launch_latency,
        kernel_gap_s=inputs.gap,
        sms=target.gpu.sms,
        sm_limits=trace.sm_limits,
    )
    blocks = blocks_on(trace.kernels, mapped, source=source, target=target)
    log = execute_replay(graph, durations.seconds, blocks, machine)
    return ReplayRun(
        trace=trace,
        mapping=rules,
        mapped=mapped,
        graph=graph,
        inputs=inputs,
        resolved=resolved,
        recorded_gpu=recorded_gpu,
        source=source,
        target=target,
        durations=durations,
        log=log,
        measured=measured_times(graph, trace, machine),
    )


def _resolve(mapping: KernelMapping, gpu: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve names and overrides. A change of ``gpu.hbm_bandwidth`` is one of the GPU inside the
    cluster, so that both stay the same thing."""
    where = "replay"
    changes = {path_of_today(path, "replay", where="--set"): v for path, v in changes.items()}
    named = changes.get("gpu")
    chosen = read_profile("gpus", str(named) if named is not None else gpu)[0]
    chosen = override_gpu(
        chosen,
        {path[4:]: value for path, value in changes.items() if path.startswith("gpu.")},
        where=where,
    )
    cluster: dict[str, Any] | None = None
    name = changes.get("cluster", mapping.cluster)
    if name is not None:
        raw, where_cluster = read_profile("clusters", str(name))
        inside = {p[8:]: v for p, v in changes.items() if p.startswith("cluster.")}
        if any(path.split(".")[:2] == ["node", "gpu"] for path in inside):
            raise ValueError("replay: cluster.node.gpu: set gpu, the cluster takes it over")
        cluster = resolve_cluster(raw, inside, where=where_cluster)
        cluster["node"] = {**cluster["node"], "gpu": copy.deepcopy(chosen)}
    raw_inputs: dict[str, Any] = {
        "gpu": chosen,
        "cluster": cluster,
        "host_speed": 1.0,
        "communication_sms": None,
        "launch_latency": format_seconds(mapping.launch_latency.value, digits=6),
        "gap": format_seconds(mapping.gap.value, digits=6),
    }
    rest = {
        path: value
        for path, value in changes.items()
        if path not in ("gpu", "cluster") and not path.startswith(("gpu.", "cluster."))
    }
    return apply_overrides(raw_inputs, rest, where=where)


def _machine(inputs: ReplayInputs, communication_sms: int) -> Machine:
    if communication_sms >= inputs.gpu.sms:
        raise ValueError(
            f"replay: communication_sms: {communication_sms} is not allowed: "
            f"{inputs.gpu.name} has {inputs.gpu.sms} SMs and computing needs at least one"
        )
    return Machine(inputs.gpu, inputs.cluster, communication_sms)
