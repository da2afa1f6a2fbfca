"""A serving fleet of one's own from a few numbers: requests, limits, and the pools that serve them.

An instance is a Deployment: GPUs, and what is split over them how. Its steps are those of shipped
step scenarios, of engine kernels without a context of their own, with every field that makes them
another deployment stated as a change. What a number rests on is written behind it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from hardware_profiles.fields import Raw
from hardware_profiles.low_latency_kernels import known_low_latency, load_low_latency
from hardware_profiles.schema import ClusterProfile, load_cluster, load_gpu
from hardware_profiles.units import Seconds, format_bandwidth, format_quantity, format_seconds
from reference_model.config import ModelConfig
from simulator.scenario.analysis_inputs import VerdictRules
from simulator.scenario.commented import commented_yaml
from simulator.scenario.fleet import HASHED_BLOCK_TOKENS
from simulator.scenario.inputs import RecipeName, SpeculativeDecoding
from simulator.scenario.starting_hardware import gpu_named, nearest_calibration, nearest_cluster

ServingPhase: TypeAlias = Literal["prefill", "decode"]

PREFILL_BASE, DECODE_BASE, DECODE_TP_BASE = (
    "prefill_ep32_h100",
    "decode_ep72_h100",
    "decode_tp8_h200",
)
"""The shipped steps that a deployment changes: their gaps are their calibration's."""

FILL_STAYS, WINDOW_STAYS = 1.2, 1.05 * VerdictRules().window_stays
"""Stays of a request as long as its limits allow: until an empty service counts as filled, and
requests that a run counts after that; a verdict asks for the rule's stays, and a few more for what
the last ones take."""

MOST_REQUESTS = 10**7
"""That the service of a verdict may have; a run of a million takes minutes."""

MOST_TOKENS = 10**9
"""Of a prompt or an answer, a thousand times the longest context."""

BLOCK_TOKENS = 64
"""Of a prefix cache without hashes of blocks (DeepSeek API documentation, context caching)."""

MTP = SpeculativeDecoding(draft_tokens=1, acceptance=0.875)
"""arXiv 2412.19437, section 2.2 (depth 1) and 5.4.3: 85 to 90% of second tokens, the middle."""


@dataclass(frozen=True, slots=True)
class ServingMachine:
    """What a service runs on."""

    cluster: str
    """A shipped name or a path."""
    profile: ClusterProfile
    calibrations: Mapping[ServingPhase, str]
    """Whose kernels compute prompts and decode."""
    low_latency: str
    """Profile of the low-latency all-to-all."""

    @property
    def node_gpus(self) -> int:
        return self.profile.node.gpus

    @property
    def domain_gpus(self) -> int:
        """GPUs that NVLink joins."""
        return self.node_gpus * self.profile.fabric.nvlink_domain_nodes


def serving_machine(
    *, gpu: str | None, cluster: str | None, gpus: int | None = None
) -> ServingMachine:
    """The machine that a GPU or a cluster names, with the kernels nearest to it.

    Args:
        gpu: shipped, short ("h200") or a path; its cluster is the shipped one that is nearest.
        cluster: shipped or a path, in the place of it.
        gpus: that the cluster should have; as many as a shipped one has without it.

    Raises:
        ValueError: neither is given, or one is unknown.
    """
    if (gpu is None) == (cluster is None):
        raise ValueError("needs --gpu or --cluster, one of the two")
    if cluster is None:
        assert gpu is not None
        asked = load_gpu(gpu_named(gpu))
        cluster = nearest_cluster(asked, gpus or 2**30)
        if load_cluster(cluster).node.gpu != asked:
            raise ValueError(
                f"--gpu {gpu}: no shipped cluster has it; allowed: --cluster with a file of "
                f"`dsv3sim init cluster FILE --gpu {gpu} --gpus ...`"
            )
    profile = load_cluster(cluster)
    own = profile.node.gpu
    profiles = (load_low_latency(name) for name in known_low_latency())
    mixed = {each.name: each.within.link_bandwidth for each in profiles if each.within is not None}
    return ServingMachine(
        cluster=cluster,
        profile=profile,
        calibrations={
            "prefill": nearest_calibration(own, "prefill"),
            "decode": nearest_calibration(own, "decode"),
        },
        # Its share of a link's rate goes with how fast the link is.
        low_latency=min(
            mixed, key=lambda name: (abs(math.log(mixed[name] / own.nvlink_bandwidth)), name)
        ),
    )


@dataclass(frozen=True, slots=True, order=True)
class Deployment:
    """The GPUs of one instance, and what is split over them how."""

    phase: ServingPhase
    gpus: int
    attention_tp: int = 1
    """GPUs that share the heads of one request."""
    expert_tp: int = 1
    """GPUs that share each routed expert: 1, or all of them."""
    redundant: int = 0
    """Copies of busy experts beyond one each."""
    micro_batches: int = 1
    """Of an expert-parallel step, 2 hide the all-to-all of each other."""
    draft_tokens: int = 0
    """That multi-token prediction drafts in each decode step."""

    @property
    def ranks(self) -> int:
        """Groups of GPUs with requests of their own."""
        return self.gpus // self.attention_tp

    @property
    def name(self) -> str:
        """The layout as people write it: TP8, EP32, EP32 with TP4 attention."""
        if self.expert_tp > 1:
            return f"TP{self.gpus}"
        parts = [f"EP{self.gpus}"]
        parts += [f"attention TP{self.attention_tp}"] if self.attention_tp > 1 else []
        parts += [f"{self.redundant} redundant"] if self.redundant else []
        parts += ["two micro-batches"] if self.micro_batches == 2 and self.phase == "decode" else []
        parts += ["MTP"] if self.draft_tokens else []
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Pool:
    """Equal instances: of one deployment, or colocated of two on the same GPUs."""

    deployments: tuple[Deployment, ...]
    """One phase, or prefill and decode."""
    instances: int
    max_batch: int
    """Requests that one rank decodes at once."""
    tokens_per_pass: int | None = None
    """Prompt tokens of one rank in a pass; colocated: with the tokens that it decodes."""

    @property
    def role(self) -> str:
        """Its field of a fleet."""
        return "colocated" if len(self.deployments) > 1 else self.deployments[0].phase

    @property
    def gpus(self) -> int:
        return self.instances * self.deployments[0].gpus


@dataclass(frozen=True, slots=True)
class Service:
    """What is asked for: a model, its requests, and the limits that they are to keep."""

    model: str
    config: ModelConfig
    machine: ServingMachine
    requests: Raw
    """The field fleet.requests."""
    ttft_s: Seconds
    tpot_s: Seconds
    stay_s: Seconds
    """Of a mean request whose limits are just kept."""
    cached_share: float = 0.0
    """Of every prompt, in a prefix cache."""
    has_hashes: bool = False
    """Whether requests say which blocks they share."""
    recipe: RecipeName | None = None
    kv_cache: str = "bfloat16"
    drafting: SpeculativeDecoding = MTP
    """Of deployments that draft."""
    traces: str | None = None


def requests_by_flags(
    *, rate: float, prompt: int, output: int, length_cv: float, cached: float, count: int
) -> Raw:
    """The field fleet.requests of Poisson arrivals.

    Args:
        rate: requests per second.
        prompt, output: mean tokens.
        length_cv: standard deviation over mean of both lengths, lognormal; 0 for all alike.
    """

    def lengths(mean: int) -> Raw:
        if not length_cv:
            return {"kind": "constant", "mean": mean}
        return {"kind": "lognormal", "mean": mean, "cv": length_cv}

    synthetic: Raw = {
        "arrivals": "poisson",
        "rate": format_quantity(rate, "frequency", digits=12),
        "count": count,
        "prompt_tokens": lengths(prompt),
        "output_tokens": lengths(output),
    }
    if cached:
        synthetic["cached_fraction"] = cached
    return {"synthetic": synthetic}


def service_by_flags(
    *,
    model: str,
    config: ModelConfig,
    machine: ServingMachine,
    rate: float,
    prompt: int,
    output: int,
    ttft_s: Seconds,
    tpot_s: Seconds,
    length_cv: float = 0.0,
    cached: float = 0.0,
    **other: Any,
) -> Service:
    """A service of Poisson arrivals whose run lasts long enough for a verdict.

    Raises:
        ValueError: longer requests than any, or more of them than a run is to have.
    """
    for option, tokens in (("--prompt", prompt), ("--output", output)):
        if tokens > MOST_TOKENS:
            raise ValueError(f"{option} {tokens}: allowed: at most {MOST_TOKENS:,} tokens")
    stay_s = ttft_s + output * tpot_s
    most = MOST_REQUESTS / ((FILL_STAYS + WINDOW_STAYS) * stay_s)
    if rate > most:
        raise ValueError(
            f"--rate {rate:g}: a verdict takes more than {MOST_REQUESTS:,} requests that stay for "
            f"up to {stay_s:g} s; allowed: at most {most:.3g}, such as a part of the service"
        )
    return Service(
        model=model,
        config=config,
        machine=machine,
        requests=requests_by_flags(
            rate=rate,
            prompt=prompt,
            output=output,
            length_cv=length_cv,
            cached=cached,
            count=math.ceil(rate * (FILL_STAYS + WINDOW_STAYS) * stay_s),
        ),
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        stay_s=stay_s,
        cached_share=cached,
        **other,
    )


def step_of(
    deployment: Deployment, service: Service, *, max_batch: int | None = None
) -> dict[str, Any]:
    """The step of a pool's deployment: a shipped scenario and what makes it another.

    Args:
        max_batch: requests that one rank decodes at once, for which its buffers have room.
    """
    machine, phase = service.machine, deployment.phase
    changes = [
        f"cluster={machine.cluster}",
        f"calibration={machine.calibrations[phase]}",
        f"gpus={deployment.gpus}",
        f"attention_tp={deployment.attention_tp}",
        f"experts.redundant={deployment.redundant}",
    ]
    if service.kv_cache != "bfloat16":
        changes.append(f"memory.kv_cache={service.kv_cache}")
    split = deployment.expert_tp > 1
    if split:
        changes += [f"expert_tp={deployment.expert_tp}", "experts.placement=in_order"]
    if phase == "prefill":
        if split:
            changes += ["micro_batches=1", "overlap=none", "communication_sms=0"]
        else:
            changes.append(f"experts.placement={_placement(deployment, service)}")
        return {"scenario": PREFILL_BASE, "changes": changes}
    drafted = 1 + deployment.draft_tokens
    if deployment.draft_tokens:
        inside = f"{{draft_tokens: {deployment.draft_tokens}, "
        inside += f"acceptance: {service.drafting.acceptance:g}}}"
        changes.append(f"speculative_decoding={inside}")
    if split:
        # No all-to-all, so no buffers of it.
        changes.append("memory.buffer_tokens=null")
        return {"scenario": DECODE_TP_BASE, "changes": changes}
    assert max_batch is not None, "an expert-parallel step has buffers"
    hidden = "two_micro_batches" if deployment.micro_batches == 2 else "shared_expert"
    each = -(-max_batch // deployment.attention_tp) * drafted
    changes += [
        f"micro_batches={deployment.micro_batches}",
        f"overlap={hidden}",
        f"all_to_all.low_latency={machine.low_latency}",
        f"memory.buffer_tokens={-(-each // deployment.micro_batches)}",
    ]
    return {"scenario": DECODE_BASE, "changes": changes}


def _placement(deployment: Deployment, service: Service) -> str:
    """hierarchical where expert groups, GPUs and slots divide over the NVLink domains."""
    domains = -(-deployment.gpus // service.machine.domain_gpus)
    groups = service.config.n_group
    slots = service.config.n_routed_experts + deployment.redundant
    whole = all(count % domains == 0 for count in (groups, deployment.gpus, slots))
    return "hierarchical" if groups > 1 and whole else "global"


def fleet_scenario(service: Service, pools: Sequence[Pool], *, description: str) -> Raw:
    """The scenario of a service on pools."""
    machine, fabric = service.machine, service.machine.profile.fabric
    fleet: Raw = {"requests": service.requests}
    for pool in pools:
        block: Raw = {
            "instances": pool.instances,
            "gpus_per_instance": pool.deployments[0].gpus,
            "ranks": pool.deployments[0].ranks,
            "max_batch": pool.max_batch,
        }
        if pool.tokens_per_pass is not None:
            block["tokens_per_pass"] = pool.tokens_per_pass
        for each in pool.deployments:
            block[f"{each.phase}_step"] = step_of(each, service, max_batch=pool.max_batch)
        fleet[pool.role] = block
    if service.recipe is not None:
        fleet["recipe"] = service.recipe
    if "decode" in fleet:
        fleet["kv_transfer"] = {"latency": format_seconds(fabric.cross_leaf_latency)}
    if any(each.draft_tokens for pool in pools for each in pool.deployments):
        fleet["speculative_decoding"] = service.drafting.model_dump(
            include={"draft_tokens", "acceptance"}
        )
    if service.cached_share or service.has_hashes:
        node = machine.profile.node
        tier = {
            "name": "host",
            "scope": "fleet",
            "capacity_tokens": "unlimited",
            "load_bandwidth": format_bandwidth(node.nic.bandwidth),
        }
        fleet["prefix_cache"] = {
            "block_tokens": HASHED_BLOCK_TOKENS if service.has_hashes else BLOCK_TOKENS,
            "tiers": [tier],
        }
    fleet["service_level"] = {
        "ttft": format_seconds(service.ttft_s),
        "tpot": format_seconds(service.tpot_s),
    }
    fleet["warm_up"] = format_seconds(FILL_STAYS * service.stay_s)
    fleet["sample_interval"] = format_seconds(_nice_interval(service.stay_s))
    raw: Raw = {
        "description": description,
        "model": service.model,
        "cluster": machine.cluster,
        "calibration": machine.calibrations["decode"],
        "fleet": fleet,
    }
    return raw if service.traces is None else raw | {"traces": service.traces}


def _nice_interval(stay_s: Seconds) -> Seconds:
    """About a fiftieth of a stay, 1, 2 or 5 times a power of ten seconds, at most 1 s."""
    power = 10.0 ** math.floor(math.log10(stay_s / 50))
    return min(1.0, max(step * power for step in (1, 2, 5) if step * power <= stay_s / 50))


_COMMENTS = {
    "model": "a shipped model, or a path to a config.json",
    "cluster": "a shipped cluster, or a path to a file of `dsv3sim init cluster`",
    "calibration": "kernel times of its GPU",
    "fleet.requests": "or a trace: {file: PATH, format: azure | mooncake | burstgpt}",
    "fleet.requests.synthetic.rate": "requests per second",
    "fleet.requests.synthetic.count": "as many as a verdict on the service needs",
    "fleet.requests.synthetic.cached_fraction": "of every prompt, in the prefix cache",
    "fleet.prefill": "instances that compute prompts",
    "fleet.decode": "instances that decode",
    "fleet.colocated": "instances that compute prompts and decode",
    "fleet.recipe": "types of weights and products",
    "fleet.kv_transfer": "over NICs at line rate, behind this latency",
    "fleet.speculative_decoding": "acceptance: arXiv 2412.19437, section 5.4.3, 85 to 90%",
    "fleet.prefix_cache": "assumed: host memory of all nodes without limit, read over one NIC",
    "fleet.service_level": "limits: time to the first token, and per token after it",
    "fleet.warm_up": "until an empty service is as full as it gets",
    "fleet.sample_interval": "between two looks at the queues",
} | {
    f"fleet.{role}.{field}": text
    for role in ("prefill", "decode", "colocated")
    for field, text in {
        "gpus_per_instance": "of one copy of the model",
        "ranks": "groups of GPUs of an instance with requests of their own",
        "max_batch": "requests that one rank decodes at once",
        "tokens_per_pass": "prompt tokens of one rank in a pass",
        "prefill_step": "a shipped step, and what makes it this deployment",
        "decode_step": "a shipped step, and what makes it this deployment",
    }.items()
}


def fleet_text(raw: Raw, head: Sequence[str]) -> str:
    """The file of a fleet scenario, with a comment behind its fields.

    Args:
        head: lines of the comment that it begins with.
    """
    return "".join(f"# {line}\n" for line in head) + commented_yaml(raw, _COMMENTS)


TOKENS_PER_PASS, MAX_BATCH = 8192, 128
"""Of a rank, where nobody chose: half of the pass of DeepSeek's published profile, so that a prompt
of as many tokens is computed in one pass; and what DeepEP's low-latency buffers hold by default."""


def starting_pool(service: Service, role: str, *, instances: int, gpus: int, split: bool) -> Pool:
    """A pool of a role: "prefill", "decode" or "colocated".

    Args:
        gpus: of one instance.
        split: whether heads and experts are split over them; else whole experts are spread.
    """
    phases: tuple[ServingPhase, ...] = ("prefill", "decode")
    deployments = tuple(
        starting_deployment(service, phase, gpus=gpus, split=split)
        for phase in phases
        if role in (phase, "colocated")
    )
    return Pool(deployments, instances, MAX_BATCH, None if role == "decode" else TOKENS_PER_PASS)


def starting_deployment(
    service: Service, phase: ServingPhase, *, gpus: int, split: bool, copies: int = 0
) -> Deployment:
    """A deployment with as few redundant experts as the GPUs ask for, and `copies` more on each.

    Two micro-batches hide the all-to-all where it leaves the NVLink domain, and in prefill.
    """
    if split:
        return Deployment(phase, gpus, attention_tp=gpus, expert_tp=gpus)
    experts = service.config.n_routed_experts
    beyond = gpus > service.machine.domain_gpus
    return Deployment(
        phase,
        gpus,
        redundant=-experts % gpus + copies * gpus,
        micro_batches=2 if beyond or phase == "prefill" else 1,
    )
