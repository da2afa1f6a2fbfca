"""Turn the operations that a scenario names into phases of flows, and count their bytes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hardware_profiles.low_latency_kernels import MoeOperation, load_low_latency
from hardware_profiles.schema import TransportProfile
from hardware_profiles.units import Seconds
from simulator.hardware.network import collectives
from simulator.hardware.network.collective_times import CollectiveTimes
from simulator.hardware.network.collectives import Copies, Phase, TokenExchange
from simulator.hardware.network.fairness import Floats, Integers
from simulator.hardware.network.flows import FlowBatch, Flows, make_flows
from simulator.hardware.network.topology import Fabric
from simulator.hardware.prediction import Prediction
from simulator.scenario.collective import EXCHANGES_OF_EXPERTS, MoeTraffic, Operation
from simulator.workload.gating import random_scores, select_experts


@dataclass(slots=True)
class Work:
    """An operation made ready: its phases and how its bytes are counted."""

    operation: Operation
    name: str
    form: str
    phases: list[Phase]
    gpus: int
    groups: int
    size: float
    own_share: float
    kernel_start: Seconds
    """From the call of its kernels to the first byte, and from the last to their end."""
    measured: Prediction | None = None
    """Time alone that rows of the operation say; None where links at their rates make it."""
    copies: Copies | None = None
    transfers: list[FlowBatch] = field(default_factory=list)
    start: float = 0.0


def prepare(
    operation: Operation,
    fabric: Fabric,
    transport: TransportProfile,
    *,
    times: CollectiveTimes | None,
    rng: np.random.Generator,
) -> list[Work]:
    """An operation's phases of flows; two works, one after the other, of a dispatch and combine.

    Args:
        times: measured ones of the transport for these GPUs, where it has any.
    """
    gpus = operation.gpus or fabric.gpus - operation.first_gpu
    if operation.first_gpu + gpus > fabric.gpus:
        raise ValueError(
            f"{operation.name} on GPUs {operation.first_gpu} to {operation.first_gpu + gpus - 1}: "
            f"the cluster has {fabric.gpus}"
        )
    size = operation.group or gpus
    if gpus % size:
        raise ValueError(f"{operation.name}: groups of {size} do not divide {gpus} GPUs")
    members = operation.first_gpu + np.arange(gpus)
    groups = (
        members.reshape(-1, size)
        if operation.members == "consecutive"
        else members.reshape(size, -1).T.copy()
    )
    form = form_of(operation)
    if operation.moe is not None:
        return _prepare_moe(operation, operation.moe, groups, fabric, transport, rng=rng)
    inputs = fabric.inputs
    spans = inputs.gpus_per_node < size or operation.members == "strided"
    step = inputs.cross_leaf_latency if spans else inputs.nvlink_latency
    own = 1 / size
    match operation.name:
        case "all_to_all":
            pair = operation.bytes_per_pair or (operation.bytes_per_gpu or 0.0) / size
            total = pair * size
            # Some experts are hot: what goes to one GPU differs by GPU, and again by pair.
            sizes = pair if operation.sizes == "equal" else pair * _heat(groups, fabric, rng=rng)
            phases = collectives.ALL_TO_ALLS[form](groups, sizes, fabric=fabric)
        case "send" | "kv_transfer":
            half = size // 2
            total, own = operation.bytes_per_gpu or 0.0, 0.0
            if size % 2:
                raise ValueError(f"{operation.name} joins two halves of a group; {size} is odd")
            phases = collectives.send(groups[:, :half].ravel(), groups[:, half:].ravel(), total)
        case _:
            total = operation.bytes_per_gpu or 0.0
            if operation.name == "broadcast":
                own = 0.0
            phases = collectives.COLLECTIVES[operation.name][form](
                groups, total, fabric=fabric, step=step
            )
    timed = None if spans or times is None else _as_measured(operation, groups, total, times)
    if timed is not None:
        found, start = timed
        phases = [_lasting(phases, found.seconds.item() - start, fabric)]
        start -= min(start, inputs.nvlink_latency)
        work = Work(operation, operation.name, form, phases, gpus, len(groups), total, own, start)
        return [replace(work, measured=found)]
    floor = transport.message_overhead * fabric.inputs.nic_bandwidth
    for phase in phases:
        phase.flows = _over_queue_pairs(phase.flows, operation.queue_pairs)
        # A message takes a NIC at least its overhead; here a flow is a message or many large ones.
        if floor > 0:
            phase.flows.wire = np.maximum(phase.flows.wire, floor)
    start = transport.start
    return [Work(operation, operation.name, form, phases, gpus, len(groups), total, own, start)]


def _as_measured(
    operation: Operation, groups: Integers, size: float, times: CollectiveTimes
) -> tuple[Prediction, Seconds] | None:
    """Time of an operation within an NVLink domain, and of that what any size takes; None without
    rows.

    An algorithm that the job names is not the library's choice, and unequal sizes were not timed.
    """
    name = "send" if operation.name == "kv_transfer" else operation.name
    ranks = 2 if name == "send" else groups.shape[1]
    named = operation.algorithm is not None or operation.sizes != "equal"
    if named or ranks < 2 or not times.knows(name):
        return None
    found = times.predict(name, size, ranks=ranks)
    return found, min(times.shortest(name, ranks), found.seconds.item())


def _lasting(phases: Sequence[Phase], seconds: Seconds, fabric: Fabric) -> Phase:
    """All flows of an operation within an NVLink domain at once, so that on idle links they take so
    long: an operation beside it shares the links that it keeps busy."""
    flows = [phase.flows for phase in phases]
    source = np.concatenate([part.source for part in flows])
    size = np.concatenate([part.size for part in flows])
    sent = np.bincount(source, size)[source]
    busy = np.maximum(seconds, 0.0) * (fabric.inputs.nvlink_bandwidth or 0.0)
    joined = make_flows(
        source,
        np.concatenate([part.destination for part in flows]),
        size,
        wire=np.maximum(busy * size / sent, 1.0),
    )
    return Phase(phases[0].name, joined)


FORMS: Mapping[str, Collection[str]] = {
    "all_to_all": collectives.ALL_TO_ALLS,
    "send": ("direct",),
    "kv_transfer": ("direct",),
    **collectives.COLLECTIVES,
    **dict.fromkeys(EXCHANGES_OF_EXPERTS, collectives.EXCHANGES),
}
"""{operation: its forms, the default first}"""


def form_of(operation: Operation) -> str:
    """The form in which an operation runs.

    Raises ValueError for a form that the operation does not have.
    """
    forms = FORMS[operation.name]
    if operation.algorithm is None:
        return next(iter(forms))
    if operation.algorithm not in forms:
        raise ValueError(
            f"collective: algorithm {operation.algorithm!r} of {operation.name}; allowed: "
            f"{', '.join(forms)}"
        )
    return operation.algorithm


def _over_queue_pairs(flows: Flows, number: int) -> Flows:
    """Divide every flow evenly over several connections."""
    if number == 1:
        return flows
    return make_flows(
        np.repeat(flows.source, number),
        np.repeat(flows.destination, number),
        np.repeat(flows.size / number, number),
        choice=np.tile(np.arange(number), len(flows)),
        rdma=flows.rdma,
    )


def _heat(groups: Integers, fabric: Fabric, *, rng: np.random.Generator) -> Floats:
    """[pairs], by what factor a pair's bytes differ from the mean where some experts are hot."""
    _, destination = collectives.pairs(groups)
    heat = rng.lognormal(0.0, 1.0, size=fabric.gpus)
    found: Floats = heat[destination] * rng.random(len(destination))
    return found


def _prepare_moe(
    operation: Operation,
    moe: MoeTraffic,
    groups: Integers,
    fabric: Fabric,
    transport: TransportProfile,
    *,
    rng: np.random.Generator,
) -> list[Work]:
    per_node = fabric.inputs.gpus_per_node
    size = groups.shape[1]
    name = form_of(operation)
    form = collectives.EXCHANGES[name]
    if form.forwards and operation.sms is None:
        raise ValueError(f"collective: {operation.name} in {name} form needs sms")
    if form.forwards and ((size % per_node and size > per_node) or operation.members == "strided"):
        raise ValueError(
            f"{name} {operation.name} needs whole nodes of {per_node} GPUs, got {size}"
        )
    traffic = [token_copies(moe, size, ranks_per_node=per_node, rng=rng) for _ in groups]
    works: list[Work] = []
    directions = {
        "dispatch": (("dispatch", moe.dispatch_bytes),),
        "combine": (("combine", moe.combine_bytes),),
        "dispatch_and_combine": (
            ("dispatch", moe.dispatch_bytes),
            ("combine", moe.combine_bytes),
        ),
    }[operation.name]
    for direction, token_bytes in directions:
        channels = max((operation.sms or 0) // transport.sms_per_channel, 1)
        exchange = TokenExchange(
            fabric=fabric,
            token_bytes=token_bytes,
            message_overhead=transport.message_overhead,
            chunks=moe.tokens / (channels * transport.chunk_tokens),
            back=direction == "combine",
        )
        parts = [
            form.flows(copies, gpus, exchange)[0]
            for copies, gpus in zip(traffic, groups, strict=True)
        ]
        one_node = size <= per_node
        over_nics = bool(fabric.planes) and (form.nics_inside or not one_node)
        counted = _counted(traffic, forwarded=form.forwards, one_node=one_node)
        works.append(
            Work(
                operation=operation,
                name=direction,
                form=name,
                phases=[_side_by_side(parts)],
                gpus=groups.size,
                groups=len(groups),
                size=counted.sum() / groups.size * token_bytes,
                own_share=_own_part(
                    traffic, forwarded=form.forwards, per_node=per_node, one_node=one_node
                ),
                kernel_start=transport.start
                if form.forwards
                else low_latency_start(transport, direction, ranks=size, over_nics=over_nics),
                copies=traffic[0],
            )
        )
    return works


MOST_SCORES = 2**30
"""That the tokens of one group may draw, some ten seconds of them."""


def token_copies(
    moe: MoeTraffic, ranks: int, *, ranks_per_node: int, rng: np.random.Generator
) -> Copies:
    """Let every token of a group choose its experts, and count the copies.

    Experts lie in order, the same number on each rank. Raises ValueError where they do not divide.
    """
    if moe.gate == "balanced":
        return collectives.balanced_copies(
            ranks, tokens=moe.tokens, copies=moe.top_k, ranks_per_node=ranks_per_node
        )
    if moe.tokens > MOST_SCORES // (ranks * moe.experts):
        raise ValueError(
            f"collective.operation.moe.tokens: {moe.tokens} on each of {ranks} GPUs choose among "
            f"{moe.experts} experts; allowed: at most {MOST_SCORES // (ranks * moe.experts)}, or "
            "gate: balanced, which draws no scores"
        )
    if moe.experts % ranks:
        raise ValueError(f"{moe.experts} experts cannot be divided evenly over {ranks} GPUs")
    nodes = max(ranks // ranks_per_node, 1)
    groups = nodes if moe.groups == "nodes" else moe.groups
    chosen = []
    for _ in range(ranks):
        scores = random_scores(
            moe.tokens,
            moe.experts,
            kind="sigmoid" if moe.gate == "deepseek_v3" else "absolute",
            rng=rng,
        )
        chosen.append(
            select_experts(
                scores,
                top_k=moe.top_k,
                groups=1 if moe.gate == "ungrouped" else groups,
                kept_groups=moe.kept_groups,
                group_score="two_best" if moe.gate == "deepseek_v3" else "maximum",
            )
        )
    rank_of = np.arange(moe.experts) // (moe.experts // ranks)
    return collectives.count_copies(chosen, expert_rank=rank_of, ranks_per_node=ranks_per_node)


def low_latency_start(
    transport: TransportProfile, operation: str, *, ranks: int, over_nics: bool
) -> Seconds:
    """What the low-latency kernels of a group of `ranks` cost beside moving bytes over the links.

    Raises ValueError for a profile that does not know both links.
    """
    if transport.low_latency is None:
        return transport.start
    profile = load_low_latency(transport.low_latency)
    if profile.within is None:
        raise ValueError(
            f"transport {transport.name}: low_latency {profile.name}: link {profile.link}; "
            "allowed: a profile of link mixed, such as deepep_h800_mixed"
        )
    profile = profile if over_nics else profile.within
    way: MoeOperation = "combine" if operation == "combine" else "dispatch"
    return profile.intercept(way, ranks) - profile.latency


def _counted(traffic: list[Copies], *, forwarded: bool, one_node: bool) -> Floats:
    """Copies that a bandwidth counts: per GPU in one node, per node beyond, else per expert."""
    if not forwarded:
        return np.array([copies.to_expert.sum() for copies in traffic])
    return np.array([(c.to_rank if one_node else c.to_node).sum() for c in traffic])


def _own_part(traffic: list[Copies], *, forwarded: bool, per_node: int, one_node: bool) -> float:
    own = 0.0
    for copies in traffic:
        rank = np.arange(len(copies.to_rank))
        if not forwarded:
            own += copies.to_expert[rank, rank].sum()
        elif one_node:
            own += copies.to_rank[rank, rank].sum()
        else:
            own += copies.to_node[rank, rank // per_node].sum()
    return float(own / _counted(traffic, forwarded=forwarded, one_node=one_node).sum())


def _side_by_side(parts: list[Phase]) -> Phase:
    if len(parts) == 1:
        return parts[0]
    flows = [part.flows for part in parts]
    joined = make_flows(
        np.concatenate([f.source for f in flows]),
        np.concatenate([f.destination for f in flows]),
        np.concatenate([f.size for f in flows]),
        wire=np.concatenate([f.wire for f in flows]),
        rdma=flows[0].rdma,
    )
    return Phase(parts[0].name, joined, max(part.delay for part in parts))


def lower_bound_seconds(work: Work, fabric: Fabric) -> float:
    """Least time of the longest phase: the busiest GPU's bytes at its link's rate."""
    inputs = fabric.inputs
    longest = 0.0
    for phase in work.phases:
        flows = phase.flows
        bytes_ = flows.wire * flows.multiplicity
        busiest = max(
            np.bincount(flows.source, bytes_, minlength=1).max(),
            np.bincount(flows.destination, bytes_, minlength=1).max(),
        )
        rate = inputs.nic_bandwidth if inputs.nics_per_node else inputs.nvlink_bandwidth or np.inf
        longest = max(longest, float(busiest) / rate)
    return longest
