"""The serving jobs of a scenario file: decode, prefill, TPOT bounds and an offload server.

A ServingStepJob is one prefill pass or one decode step of a deployment. A TpotLimitJob is the
paper's bound on the time per output token, each idealisation an input. An OffloadJob decodes one
request on a server that keeps the routed experts in CPU memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self, get_args

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from hardware_profiles.calibration_parts import BesideCompute
from hardware_profiles.estimates import TimeEstimate
from hardware_profiles.fields import DataValue, Profile, TimeValue
from simulator.scenario.inputs import (
    Experts,
    Memory,
    ServingRecipe,
    ServingSkew,
    Skew,
    SpeculativeDecoding,
)


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """GPUs over which each part of the model is split; 1 where every GPU holds it whole."""

    attention: int = 1
    """Heads; latents and their projections are on every GPU."""
    experts: int = 1
    """Intermediate size of every routed expert."""
    shared_expert: int = 1
    """Intermediate size of the shared expert."""
    dense: int = 1
    """Intermediate size of a dense layer's feed-forward."""
    vocabulary: int = 1
    """Rows of embedding and output head."""

    @property
    def groups(self) -> frozenset[int]:
        """Sizes of the groups that gather and scatter tokens."""
        return frozenset(
            size
            for size in (
                self.attention, self.experts, self.shared_expert, self.dense, self.vocabulary
            )
            if size > 1
        )  # fmt: skip


class StepRequests(Profile):
    """What the GPUs work on in one iteration."""

    requests_per_gpu: PositiveInt | None = None
    """Decode: requests of one GPU, over all its micro-batches."""
    requests_per_group: PositiveInt | None = None
    """Decode: requests of the attention_tp GPUs that share heads, together, in place of
    requests_per_gpu; they may be fewer than the GPUs."""
    context_tokens: PositiveInt | None = None
    """Decode: tokens of a request in the KV cache, those of this step included."""
    tokens_per_gpu: PositiveInt | None = None
    """Prefill: prompt tokens of one GPU that a pass computes, over all its micro-batches."""
    prompt_tokens: PositiveInt | None = None
    """Prefill: tokens of one prompt that a pass computes; all of the prompt, or one chunk of it. At
    most the tokens of the attention_tp GPUs that share heads, together."""
    cached_tokens: NonNegativeInt = 0
    """Prefill: tokens of the same prompt before these, whose KV cache is there already (a prefix
    hit or earlier chunks)."""
    idle_gpus: NonNegativeInt = 0
    """GPUs of the deployment that have no request of their own; their experts work all the same."""
    attention_imbalance: float = Field(default=1.0, ge=1.0)
    """Attention work of the slowest rank over the mean (context lengths differ by rank)."""


class ExpertInputs(Experts):
    """Where routed experts lie and how the tokens choose among them."""

    placement: Literal["hierarchical", "global", "eplb", "in_order"]
    """Where experts and their copies lie. hierarchical: those of an expert group within a node,
    GPUs as even as exchanges make them. global: the same, over all GPUs. eplb: as DeepSeek's EPLB
    does it, without exchanges. in_order: by number, then the first ones again as copies. A model
    without expert groups (n_group 1) has nothing to keep within a node: hierarchical is then
    global."""
    shared_expert: Literal["local", "dispatched"] = "local"
    """dispatched: a ninth choice that travels like the routed ones and lies in one of the redundant
    slots (Report, section 3.4.2)."""
    rebalance_interval: TimeValue | None = None
    """Time between two rebalancings; its cost is reported, not part of the step."""


class AllToAllInputs(Profile):
    """How dispatch and combine travel."""

    kernels: Literal["normal", "low_latency"]
    """normal: one copy a node, forwarded within it, on communication SMs. low_latency: every copy
    straight to its GPU; send and receive kernels on the compute stream, the wire on no SM."""
    low_latency: str | None = None
    """Timed kernels, and with them what the copies travel over: NICs alone (deepep_h800_rdma),
    NVLink (deepep_h800_nvlink, deepep_h200_nvlink), or both, DeepEP's default form since June 2025
    (deepep_h800_mixed, deepep_h100_mixed); or the path of a profile."""
    beside_compute: BesideCompute | None = None
    """low_latency: wire time beside compute over the wire time alone. (Normal kernels have theirs
    in the calibration.)"""
    buffers: DataValue | None = None
    """normal: memory of the kernels' queues. (Low-latency buffers follow from their profile.)"""

    @model_validator(mode="after")
    def _kernels_are_complete(self) -> Self:
        low = self.kernels == "low_latency"
        if low != (self.low_latency is not None) or low != (self.beside_compute is not None):
            raise ValueError(
                "low_latency and beside_compute are needed with kernels low_latency, and only then"
            )
        if low and self.buffers is not None:
            raise ValueError("buffers: allowed with kernels normal only")
        return self


CacheType = Literal["bfloat16", "fp8_e4m3"]
KV_CACHES: tuple[str, ...] = get_args(CacheType)
"""Types that a KV cache is kept in."""


class ServingMemory(Memory):
    """What fills the memory of a GPU beside weights."""

    kv_cache: CacheType = "bfloat16"
    """FP8 changes what fits, and the decode attention core's time by the calibration's `fp8_cache`;
    prefill works on keys and values that are decompressed in BF16 either way."""
    page_tokens: PositiveInt
    """Tokens of one page of the KV cache; a request's last page is half empty on average."""
    buffer_tokens: PositiveInt | None = None
    """Tokens a rank that all-to-all buffers have room for; the micro-batch's own without it."""


class ServingStepJob(Profile):
    """One prefill pass or decode step of one expert-parallel deployment."""

    phase: Literal["prefill", "decode"]
    """Whether the iteration computes prompts (prefill) or one token of every request (decode)."""
    gpus: PositiveInt
    """GPUs of the deployment."""
    attention_tp: PositiveInt = 1
    """GPUs that share the heads of one request."""
    expert_tp: PositiveInt = 1
    """GPUs that share one routed expert; the others hold other experts."""
    shared_expert_tp: PositiveInt | None = None
    """GPUs that share the shared expert: 1, or expert_tp (default). Engines split it with the
    routed experts and hold it whole beside expert-parallel ones (SGLang with DeepEP)."""
    dense_tp: PositiveInt | None = None
    """GPUs that share the feed-forward of a dense layer: 1, attention_tp, or expert_tp (default, so
    1 beside expert-parallel layers: Report, section 3.4.1, and SGLang's moe_dense_tp_size 1; vLLM
    takes attention_tp)."""
    vocabulary_tp: PositiveInt | None = None
    """GPUs that share embedding and output head: 1, or attention_tp (default: the tensor-parallel
    group in vLLM, the attention's in SGLang with dp_lm_head)."""
    micro_batches: Literal[1, 2]
    """Parts that the tokens of a GPU are divided into."""
    overlap: Literal["two_micro_batches", "shared_expert", "none"]
    """What hides the all-to-all: the other micro-batch in the published orders, the rank's own
    shared expert, or nothing."""
    communication_sms: NonNegativeInt
    """SMs that normal all-to-all kernels keep. 0: copy engines and NICs move the tokens, limited by
    links alone, and compute has every SM; extrapolated, no kernel of that kind was measured."""
    requests: StepRequests
    """What the GPUs work on in the iteration."""
    experts: ExpertInputs
    """Where routed experts lie and how the tokens choose among them."""
    skew: ServingSkew = Skew.model_validate("eplb_with_drift")
    """What makes ranks differ: rows of their experts, clocks, requests and hosts."""
    all_to_all: AllToAllInputs
    """How dispatch and combine travel."""
    speculative_decoding: SpeculativeDecoding | None = None
    """Multi-token prediction used to draft tokens that the next step verifies; none: no drafts."""
    memory: ServingMemory
    """What fills the memory of a GPU beside weights."""
    gap: TimeEstimate
    """Idle time between two kernels, eager or under a CUDA graph; the calibration's where a file
    has none."""
    host_launch: TimeValue = 0.0
    """Time that the host takes to launch one kernel; 0 where a CUDA graph launches all at once."""
    host_overhead: TimeEstimate
    """Time of an iteration in which no kernel runs because the host is not ready."""
    recipe: ServingRecipe = None
    """Types of weights and products; by default that of the model's quantization_config, FP8 in
    blocks where it has none. "bf16" is read as bfloat16."""
    head: bool = True
    """Whether embedding, output head and sampling are part of the iteration."""

    @property
    def tensor_parallel(self) -> TensorParallel:
        """What is split over how many GPUs, defaults filled in."""
        return TensorParallel(
            attention=self.attention_tp,
            experts=self.expert_tp,
            shared_expert=self.shared_expert_tp or self.expert_tp,
            dense=self.dense_tp or self.expert_tp,
            vocabulary=self.vocabulary_tp or self.attention_tp,
        )

    @property
    def group_requests(self) -> int:
        """Decode: requests of the GPUs that share heads, together."""
        if self.requests.requests_per_group is not None:
            return self.requests.requests_per_group
        assert self.requests.requests_per_gpu is not None, "the validator wants one of the two"
        return self.requests.requests_per_gpu * self.attention_tp

    @property
    def normal_transfers(self) -> bool:
        """Whether dispatch and combine run as normal all-to-all kernels; with experts split over
        all GPUs tokens are gathered and scattered instead."""
        return self.all_to_all.kernels == "normal" and self.expert_tp == 1

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self._check_requests()
        self._check_tensor_parallel()
        if (self.overlap == "two_micro_batches") != (self.micro_batches == 2):
            raise ValueError(
                f"overlap {self.overlap} with micro_batches {self.micro_batches}; allowed: "
                "two_micro_batches with 2, shared_expert or none with 1"
            )
        if self.requests.idle_gpus >= self.gpus:
            raise ValueError(
                f"requests.idle_gpus {self.requests.idle_gpus}: allowed: fewer than the "
                f"{self.gpus} gpus"
            )
        if self.requests.idle_gpus % self.attention_tp:
            raise ValueError(
                f"requests.idle_gpus {self.requests.idle_gpus}: allowed: whole groups of the "
                f"{self.attention_tp} GPUs that share heads"
            )
        if self.phase == "prefill" and self.speculative_decoding is not None:
            raise ValueError("speculative_decoding: allowed in phase decode only")
        if self.speculative_decoding is not None and not self.head:
            raise ValueError(
                "speculative_decoding: allowed with head true only, since drafts end in a head"
            )
        if self.communication_sms and not self.normal_transfers:
            raise ValueError(
                f"communication_sms {self.communication_sms}: allowed: 0, as only normal "
                "all-to-all kernels keep SMs"
            )
        if self.normal_transfers and self.phase == "decode" and self.gpus > 1:
            raise ValueError(
                "all_to_all.kernels normal: allowed in phase prefill only; decode takes "
                "kernels low_latency, with all_to_all.low_latency and all_to_all.beside_compute, "
                f"or expert_tp {self.gpus}"
            )
        if self.normal_transfers and self.all_to_all.buffers is None and self.gpus > 1:
            raise ValueError("all_to_all.buffers is needed with kernels normal")
        return self

    def _check_requests(self) -> None:
        """Raise ValueError unless the requests are those of the phase."""
        given = {
            name
            for name in (
                "tokens_per_gpu", "prompt_tokens", "requests_per_gpu", "requests_per_group",
                "context_tokens",
            )
            if getattr(self.requests, name) is not None
        }  # fmt: skip
        if self.phase == "prefill":
            needed = "tokens_per_gpu and prompt_tokens"
            fit = given == {"tokens_per_gpu", "prompt_tokens"}
        else:
            needed = "context_tokens and either requests_per_gpu or requests_per_group"
            fit = given in (
                {"context_tokens", "requests_per_gpu"}, {"context_tokens", "requests_per_group"}
            )  # fmt: skip
        if not fit:
            raise ValueError(
                f"requests: phase {self.phase} takes {needed}, no others (null takes one away); "
                f"given: {', '.join(sorted(given)) or 'none'}"
            )

    def _check_tensor_parallel(self) -> None:
        """Raise ValueError for groups that do not divide the GPUs, or each other."""
        for name in ("attention_tp", "expert_tp"):
            if self.gpus % getattr(self, name):
                raise ValueError(
                    f"{name} {getattr(self, name)} does not divide {self.gpus} gpus; "
                    "allowed: a divisor of them"
                )
        for name, allowed in (
            ("shared_expert_tp", {1, self.expert_tp}),
            ("dense_tp", {1, self.attention_tp, self.expert_tp}),
            ("vocabulary_tp", {1, self.attention_tp}),
        ):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                shown = ", ".join(map(str, sorted(allowed)))
                raise ValueError(
                    f"{name} {value}: allowed with attention_tp {self.attention_tp} and expert_tp "
                    f"{self.expert_tp}: {shown}"
                )


class TpotLimitJob(Profile):
    """Time per output token if nothing but the all-to-all took time (arXiv 2505.09343, 2.3.2)."""

    hidden: PositiveInt
    """Values of a token that travel."""
    layers: PositiveInt
    """Layers that dispatch and combine."""
    micro_batches: PositiveInt
    """Each layer's transfers of one micro-batch are hidden by nothing but the other's."""
    tokens_per_device: PositiveInt
    """Tokens of one micro-batch."""
    copies_per_token: PositiveInt
    """Routed and shared experts, all of them on other devices."""
    remote_share: float = Field(gt=0.0, le=1.0)
    """Share of the copies that cross the link."""
    dispatch_bytes_per_value: PositiveFloat
    """Bytes of one value of a hidden state that is dispatched: 1 in FP8."""
    combine_bytes_per_value: PositiveFloat
    """The same of a combine: 2 in BF16."""
    fp8_scales: bool
    """Whether a 4-byte scale for each 128 dispatched values travels too."""
    link: Literal["nic", "nvlink"]
    """What the copies travel over, at line rate."""
    compute_per_layer: TimeValue
    """Compute of one micro-batch and layer; what exceeds its transfers is added."""
    transfer_latency: TimeValue
    """Added to each of layers x micro_batches x 2 transfers."""


class OffloadJob(Profile):
    """Decoding one request on a server that keeps routed experts in CPU memory."""

    server: str
    """The server and its measured times: ktransformers_4090d, or the path of a profile."""
    sockets: PositiveInt
    """Sockets that hold a copy of the experts each and share the work."""
    experts_per_token: PositiveInt
    """Routed experts that a token goes to; fewer than the model's skip the others."""
