"""CollectiveJob: the traffic that a run puts on the fabric, as a scenario file states it."""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from hardware_profiles.fields import DataValue, Profile, TimeValue

OperationName = Literal[
    "all_to_all",
    "all_gather",
    "reduce_scatter",
    "all_reduce",
    "broadcast",
    "send",
    "kv_transfer",
    "dispatch",
    "combine",
    "dispatch_and_combine",
]

EXCHANGES_OF_EXPERTS = frozenset({"dispatch", "combine", "dispatch_and_combine"})
"""Operations that take tokens to experts and back."""


class MoeTraffic(Profile):
    """Which experts tokens go to, and what a copy of a token weighs."""

    tokens: PositiveInt
    """Tokens of each GPU."""
    experts: PositiveInt = 256
    """Routed experts, the same number on every GPU of the group."""
    top_k: PositiveInt = 8
    """Routed experts that a token goes to."""
    gate: Literal["deepseek_v3", "group_maximum", "ungrouped", "balanced"]
    """deepseek_v3: groups by the sum of their two best scores; group_maximum: by their best
    (DeepEP's test); ungrouped: the best experts of all; balanced: copies divided evenly over the
    other GPUs, no gate."""
    groups: PositiveInt | Literal["nodes"] = 8
    """Groups of experts for node-limited routing; "nodes": one group a node."""
    kept_groups: PositiveInt = 4
    """Groups that a token may go to, where there are more."""
    dispatch_bytes: DataValue
    """One token on its way to an expert."""
    combine_bytes: DataValue
    """One token on its way back."""


class Operation(Profile):
    """One collective operation of one or more groups of GPUs at once."""

    name: OperationName
    """What is moved: a collective of NCCL's, a send, a transfer of KV cache, or the dispatch or
    combine of an all-to-all of experts."""
    algorithm: str | None = None
    """Form of the operation, by name, by default the first that it has; an unknown one is answered
    with all."""
    gpus: PositiveInt | None = None
    """GPUs that take part, from ``first_gpu`` on; all of the cluster where not given."""
    first_gpu: NonNegativeInt = 0
    """The first GPU that takes part, counted from 0 over the nodes in order."""
    group: PositiveInt | None = None
    """GPUs of one group; all that take part where not given."""
    members: Literal["consecutive", "strided"] = "consecutive"
    """strided: GPU i belongs to group i modulo the number of groups."""
    bytes_per_pair: DataValue | None = None
    """All-to-all: from each GPU to each other one of its group."""
    bytes_per_gpu: DataValue | None = None
    """Size of a GPU's buffer, as NCCL's tests count it: for all-gather and reduce-scatter the whole
    vector, for all-to-all all shares, the own one included."""
    sizes: Literal["equal", "hot_experts"] = "equal"
    """hot_experts: all-to-all sizes drawn at random around the given one (log-normal by
    destination, uniform by pair)."""
    moe: MoeTraffic | None = None
    """Which experts tokens go to, and what a copy of a token weighs; of dispatch and combine."""
    queue_pairs: PositiveInt = 1
    """Connections between two GPUs; ECMP hashes each by itself."""
    sms: PositiveInt | None = None
    """SMs that normal dispatch and combine kernels take."""
    start: TimeValue = 0.0
    """When the operation begins."""
    repeat: PositiveInt = 1
    """How often, one after the other."""
    priority: int = 0
    """Traffic class: a higher one is served first, lower ones share what is left."""

    @model_validator(mode="after")
    def _complete(self) -> "Operation":
        is_moe = self.name in EXCHANGES_OF_EXPERTS
        if is_moe != (self.moe is not None):
            raise ValueError(f"{self.name} {'needs' if is_moe else 'has no'} moe")
        if self.name == "all_to_all" and (self.bytes_per_pair is None) == (
            self.bytes_per_gpu is None
        ):
            raise ValueError("all_to_all needs one of bytes_per_pair and bytes_per_gpu")
        if not is_moe and self.name != "all_to_all" and self.bytes_per_gpu is None:
            raise ValueError(f"{self.name} needs bytes_per_gpu")
        if self.sizes != "equal" and self.name != "all_to_all":
            raise ValueError(f"sizes {self.sizes!r} is only for all_to_all")
        return self


class CollectiveJob(Profile):
    """Traffic on a fabric: one operation and what runs beside it."""

    operation: Operation
    """The operation that is timed."""
    beside: tuple[Operation, ...] = ()
    """Operations that share the links with the first one."""
    transport: str
    """What kernels make of the links: ideal, deepep_h800, nccl_h100_sxm, nccl_h200_sxm,
    nccl_b200_sxm, nccl_gb200, or the path of a profile."""
    merge_share: NonNegativeFloat = 0.0
    """Completions closer than this share of the ideal time may be taken as one instant."""
