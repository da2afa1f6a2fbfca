"""The paper's lower bound on the time per output token, for given link rates.

    T = layers x micro_batches x max(compute, transfer),
    transfer = copies x tokens x hidden x (dispatch + combine bytes) / bandwidth + 2 latencies

(arXiv 2505.09343, section 2.3.2; latency and compute are 0 there). Each idealisation is shown, and
beside it what the bound becomes when it gives way to the model's or the network's own value, where
they have one; the others are inputs that a user may set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hardware_profiles.schema import ClusterProfile
from hardware_profiles.units import Bytes, BytesPerSecond, Seconds, format_seconds
from reference_model.config import ModelConfig
from reference_model.trace import TILE
from simulator.hardware.network.fabric_load import NO_LIMIT
from simulator.hardware.network.transfers import LINE_RATE, Transfers
from simulator.scenario.serving import TpotLimitJob

Payload = Callable[[Bytes], Seconds]
"""Time of the bytes that a device sends at line rate."""

SCALE_BYTES = 4
TRANSFERS = 2
"""Dispatch and combine."""
_TIMES = ("compute_per_layer", "transfer_latency")
_IDEALISED = (
    "hidden", "layers", "micro_batches", "tokens_per_device", "copies_per_token", "remote_share",
    "fp8_scales", *_TIMES,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Idealisation:
    """One input of the bound, and the bound with its real value in its place."""

    name: str
    assumed: str
    real: str | None
    """The value that takes its place, with where it comes from; None where model and network have
    none."""
    tpot_s: Seconds | None


@dataclass(frozen=True, slots=True)
class TpotLimit:
    """The bound and what it rests on."""

    transfer_s: Seconds
    """Dispatch and combine of one micro-batch and layer, latency included."""
    tpot_s: Seconds
    transfers: int
    """Dispatches and combines of one step."""
    transfer_bytes: Bytes
    """Bytes that a device sends in one dispatch and combine."""
    bandwidth: BytesPerSecond
    idealisations: tuple[Idealisation, ...]

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of one request."""
        return 1.0 / self.tpot_s


def tpot_limit(job: TpotLimitJob, *, config: ModelConfig, cluster: ClusterProfile) -> TpotLimit:
    """The bound, and the bound without each of its idealisations."""
    over_nic = job.link == "nic"
    load = NO_LIMIT if over_nic else None

    def payload(size: Bytes) -> Seconds:
        return (
            Transfers(cluster=cluster, achieved=LINE_RATE).payload(size, load=load).seconds.item()
        )

    latency = cluster.fabric.cross_leaf_latency if over_nic else cluster.node.nvlink_latency
    real: dict[str, tuple[Any, str]] = {
        "hidden": (config.hidden_size, "hidden size of the model's config"),
        "layers": (config.num_moe_layers, "layers of the model that have experts"),
        "copies_per_token": (config.num_experts_per_tok, "routed experts; shared ones stay"),
        "fp8_scales": (True, "a 4-byte scale for each 128 values travels too"),
        "transfer_latency": (latency, f"64-byte latency of the {job.link}"),
    }
    return TpotLimit(
        transfer_s=_transfer(job, payload),
        tpot_s=_tpot(job, payload),
        transfers=job.layers * job.micro_batches * TRANSFERS,
        transfer_bytes=_bytes(job),
        bandwidth=(
            cluster.node.nic_bandwidth_per_gpu if over_nic else cluster.node.gpu.nvlink_bandwidth
        ),
        idealisations=tuple(
            _idealisation(job, name, real.get(name), payload) for name in _IDEALISED
        ),
    )


def _idealisation(
    job: TpotLimitJob, name: str, instead: tuple[Any, str] | None, payload: Payload
) -> Idealisation:
    assumed = _shown(name, getattr(job, name))
    if instead is None:
        return Idealisation(name, assumed, None, None)
    value, why = instead
    tpot_s = _tpot(job.model_copy(update={name: value}), payload)
    return Idealisation(name, assumed, f"{_shown(name, value)} ({why})", tpot_s)


def _shown(name: str, value: Any) -> str:
    return format_seconds(value) if name in _TIMES else str(value)


def _bytes(job: TpotLimitJob) -> Bytes:
    scales = -(-job.hidden // TILE) * SCALE_BYTES if job.fp8_scales else 0
    per_copy = job.hidden * (job.dispatch_bytes_per_value + job.combine_bytes_per_value) + scales
    return per_copy * job.copies_per_token * job.tokens_per_device * job.remote_share


def _transfer(job: TpotLimitJob, payload: Payload) -> Seconds:
    return payload(_bytes(job)) + TRANSFERS * job.transfer_latency


def _tpot(job: TpotLimitJob, payload: Payload) -> Seconds:
    slower = max(job.compute_per_layer, _transfer(job, payload))
    return job.layers * job.micro_batches * slower
