"""The time per token of a server that keeps its routed experts in CPU memory.

    time of a token = fixed time + experts a token x time of one expert in all layers / sockets

The GPU computes attention, shared experts, dense layers and head while the CPUs wait, and the other
way round: that is the fixed time. Each socket holds a copy of the routed experts and computes its
share of them. Fixed time and expert time come from two published rows of one socket; the rows of
two sockets are held out. Both are shown beside what the memory of CPU and GPU could do at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isclose

from hardware_profiles.offload_servers import OffloadServerProfile
from hardware_profiles.units import Bytes, BytesPerSecond, Seconds, format_bytes
from reference_model.config import ModelConfig
from reference_model.parameter_counts import parameter_counts
from simulator.scenario.serving import OffloadJob
from simulator.workload.memory import Infeasible

_SAME_MODEL = 0.01
"""Relative difference in routed parameters that rounded sizes in a server's file may make."""


@dataclass(frozen=True, slots=True)
class OffloadStep:
    """One decoded token."""

    fixed_s: Seconds
    """Part of a token's time that does not depend on the routed experts."""
    experts_s: Seconds
    """Time in routed experts, all sockets at work."""
    token_s: Seconds
    expert_rate: BytesPerSecond
    """Expert weights that one socket reads a second."""
    expert_rate_share: float
    """The same over the peak of the socket's memory."""
    gpu_bound_s: Seconds
    """Least time to read the weights that lie on the GPU: at most this much of the fixed time."""
    resident_bytes: Bytes
    """Weights on the GPU."""


def fit_offload(server: OffloadServerProfile) -> tuple[Seconds, Seconds]:
    """Solve the two fitted rows of a server for the part of a token's time that does not depend on
    its routed experts, and for the time of one expert in all layers on one socket.

    Raises ValueError where the rows do not determine both.
    """
    first, second = server.fitted_rows
    if first.sockets != 1 or second.sockets != 1:
        raise ValueError(f"{server.name}: fitted_rows must be of one socket each")
    if first.experts_per_token == second.experts_per_token:
        raise ValueError(f"{server.name}: fitted_rows must differ in experts_per_token")
    slow, fast = 1 / first.tokens_per_second, 1 / second.tokens_per_second
    expert = (slow - fast) / (first.experts_per_token - second.experts_per_token)
    fixed = slow - expert * first.experts_per_token
    if expert <= 0 or fixed <= 0:
        raise ValueError(f"{server.name}: fitted_rows give a negative expert or fixed time")
    return fixed, expert


def offload_step(
    job: OffloadJob, *, server: OffloadServerProfile, config: ModelConfig
) -> OffloadStep:
    """Time of one decoded token.

    Raises:
        ValueError: more sockets than the server has, more experts than the model has, or a model
            other than the one that the server was measured with.
        Infeasible: the experts' copies exceed the CPU memory, or the rest that of the GPU.
    """
    if job.sockets > server.sockets:
        raise ValueError(f"sockets {job.sockets}: {server.name} has {server.sockets}")
    if job.experts_per_token > config.n_routed_experts:
        raise ValueError(
            f"experts_per_token {job.experts_per_token}: the model has {config.n_routed_experts}"
        )
    copies = job.sockets * server.routed_expert_bytes
    if copies > server.memory:
        raise Infeasible(
            f"{job.sockets} copies of the routed experts need {format_bytes(copies)}, "
            f"{format_bytes(copies - server.memory)} more than the {format_bytes(server.memory)} "
            f"of {server.name}"
        )
    counts = parameter_counts(config)
    routed = config.num_moe_layers * config.n_routed_experts * counts.expert
    measured = server.routed_expert_bytes / server.resident_bytes_per_parameter
    if not isclose(routed, measured, rel_tol=_SAME_MODEL):
        raise ValueError(
            f"{server.name}: its rows were measured with a model of {measured:.4g} routed "
            f"parameters, this one has {routed:.4g}; allowed: a model of as many, or a server file "
            "with rows of this model"
        )
    # The embedding stays in CPU memory: a step reads one row of it.
    on_gpu = counts.total - routed - counts.embedding
    resident = on_gpu * server.resident_bytes_per_parameter
    if resident > server.gpu.memory_capacity:
        raise Infeasible(
            f"weights outside the routed experts need {format_bytes(resident)}, more than the "
            f"{format_bytes(server.gpu.memory_capacity)} of {server.gpu.name}"
        )
    fixed, expert = fit_offload(server)
    experts = job.experts_per_token * expert / job.sockets
    rate = server.routed_expert_bytes / config.n_routed_experts / expert
    return OffloadStep(
        fixed_s=fixed,
        experts_s=experts,
        token_s=fixed + experts,
        expert_rate=rate,
        expert_rate_share=rate / server.cpu.memory_bandwidth,
        gpu_bound_s=resident / server.gpu.memory_bandwidth,
        resident_bytes=resident,
    )
