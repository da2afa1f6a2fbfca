"""Refuse serving steps that a model, cluster or calibration cannot run, in one line each."""

from __future__ import annotations

from hardware_profiles.schema import CalibrationProfile, ClusterProfile
from reference_model.config import ModelConfig
from simulator.hardware.network.clusters import gpus_per_domain
from simulator.hardware.network.routing import parse_failure
from simulator.scenario.serving import ServingStepJob
from simulator.workload.experts import check_slots
from simulator.workload.recipes import RECIPES, check_multiplied, recipe_name
from simulator.workload.serving_memory import micro_batch_tokens


def joined_gpus(cluster: ClusterProfile) -> int:
    """GPUs that NVLink joins at most."""
    return min(cluster.gpus, cluster.fabric.nvlink_domain_nodes * cluster.node.gpus)


def check_serving_job(job: ServingStepJob, *, config: ModelConfig, cluster: ClusterProfile) -> None:
    """Refuse sizes and kernels that the model or the cluster cannot have."""
    _check_sizes(job, config=config, cluster=cluster)
    _check_kernels(job, config=config, cluster=cluster)


def _check_sizes(job: ServingStepJob, *, config: ModelConfig, cluster: ClusterProfile) -> None:
    if job.gpus > cluster.gpus:
        raise ValueError(
            f"gpus {job.gpus}: allowed: at most the {cluster.gpus} of cluster {cluster.name}"
        )
    domain = joined_gpus(cluster)
    for name in ("attention_tp", "expert_tp"):
        size = getattr(job, name)
        if size > domain and size % gpus_per_domain(cluster, group=size):
            raise ValueError(
                f"{name} {size}: allowed: at most the {domain} GPUs that NVLink "
                "joins, or a multiple of them"
            )
    if job.expert_tp not in (1, job.gpus):
        raise ValueError(
            f"expert_tp {job.expert_tp}: allowed: 1, or all {job.gpus} GPUs of the deployment"
        )
    check_slots(config.n_routed_experts, job.experts.redundant, job.gpus // job.expert_tp)
    if job.experts.shared_expert == "dispatched" and not job.experts.redundant:
        raise ValueError(
            "experts.shared_expert dispatched: allowed with experts.redundant of at least 1, the "
            "slot in which it lies"
        )


def check_serving_failures(cluster: ClusterProfile, *, over_nvlink: bool) -> None:
    """Refuse failures that an iteration would ignore."""
    for text in cluster.failures:
        if over_nvlink:
            raise ValueError(
                f"cluster.failures: {text}: this serving step's transfers go over NVLink, whose "
                "failures are not simulated; allowed: none"
            )
        if parse_failure(text).at > 0:
            raise ValueError(
                f"cluster.failures: {text}: a serving step knows what is broken from the start "
                "only; allowed: without a time"
            )


def check_cache_type(
    job: ServingStepJob, cluster: ClusterProfile, calibration: CalibrationProfile
) -> None:
    """Refuse to decode over an FP8 cache in the time of a BF16 one."""
    architecture = cluster.node.gpu.architecture
    if job.phase == "prefill" or job.memory.kv_cache == "bfloat16":
        return
    if architecture not in calibration.fp8_cache:
        stated = ", ".join(sorted(calibration.fp8_cache)) or "none"
        raise ValueError(
            f"memory.kv_cache fp8_e4m3: calibration {calibration.name} does not say what the "
            f"attention core takes over an FP8 cache on {architecture} (fp8_cache: {stated}); "
            "allowed: memory.kv_cache=bfloat16, or calibration.fp8_cache."
            f"{architecture}={{value: ..., low: ..., high: ..., source: ...}}"
        )


def _check_kernels(job: ServingStepJob, *, config: ModelConfig, cluster: ClusterProfile) -> None:
    sms = cluster.node.gpu.sms
    field = "model: quantization_config is" if job.recipe is None else "recipe"
    name = recipe_name(job.recipe, config)
    check_multiplied(name, cluster.node.gpu, field=field, allowed=tuple(RECIPES))
    if job.communication_sms >= sms:
        raise ValueError(
            f"communication_sms {job.communication_sms}: allowed: fewer than the {sms} SMs of "
            f"{cluster.node.gpu.name}"
        )
    if job.all_to_all.kernels == "low_latency" and job.phase != "decode":
        raise ValueError("all_to_all.kernels low_latency: allowed in phase decode only")
    if job.speculative_decoding is not None and not config.num_nextn_predict_layers:
        raise ValueError(
            "speculative_decoding: allowed: null, as the model has no multi-token prediction module"
        )
    if job.phase == "decode":
        largest = micro_batch_tokens(job)
        room = job.memory.buffer_tokens
        if room is not None and largest > room:
            raise ValueError(
                f"memory.buffer_tokens {room}: a micro-batch has {largest} tokens per GPU; "
                "allowed: at least as many, or null for the micro-batch's own"
            )
