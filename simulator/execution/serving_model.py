"""Everything the iterations of one deployment have in common.

That is fitted kernel times, the order of one iteration, where experts lie and how often they are
chosen. Iterations of the deployment at any batch and context start from here (serving_step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.by_content import Keyed, object_key
from hardware_profiles.estimates import Estimate
from hardware_profiles.low_latency_kernels import (
    LowLatencyProfile,
    MoeOperation,
    message_bytes,
)
from hardware_profiles.schema import CalibrationProfile, ClusterProfile
from hardware_profiles.tables import Measurement
from hardware_profiles.units import Bytes, Seconds
from reference_model.config import ModelConfig
from reference_model.formats import ACTIVATIONS
from reference_model.trace import Operator, OperatorTrace
from simulator.execution.expert_reach import expert_reach
from simulator.execution.serving_checks import (
    check_cache_type,
    check_serving_failures,
    check_serving_job,
    joined_gpus,
)
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.network.clusters import gpus_per_domain
from simulator.hardware.network.fabric_load import FabricLoad, Pattern, all_to_all_load
from simulator.hardware.network.groups import Reach
from simulator.hardware.network.transfers import Transfers
from simulator.hardware.prediction import Prediction
from simulator.scenario.inputs import RecipeName, RowsOfRanks
from simulator.scenario.serving import ServingStepJob
from simulator.workload.experts import (
    ExpertPlacement,
    place_experts,
    uniform_popularity,
)
from simulator.workload.iteration import (
    WHOLE_BATCH,
    LayerOperators,
    lower_step,
    split_layer,
    with_shared_added,
)
from simulator.workload.iteration_operators import layer_operators
from simulator.workload.layout import domain_parts
from simulator.workload.load import Load
from simulator.workload.recipes import RECIPES, recipe_name
from simulator.workload.task_graph import TaskGraph

Array = NDArray[np.float64]

EXPERT_LAYERS = ("moe", "mtp", "mtp_next")
"""Layer kinds that dispatch and combine."""
LAST_TOKEN_KINDS = {"mtp_next": "mtp", "mtp_head": "head"}
"""Layer kinds that take one token of each request -> the recorded kind that they are."""

# Kernels of training that inference does not run: the gate of the published training trace is 37
# launches with sums for an auxiliary loss; in inference it is one fused kernel.
_FUSED_IN_INFERENCE = frozenset({"gate"})


@dataclass(frozen=True, slots=True)
class KernelSource:
    """Fitted kernel times of one machine and calibration; deployments that differ in anything else
    may share it."""

    calibration: CalibrationProfile
    costs: KernelCostModel
    received_per_token: float
    """GPUs that normal dispatch delivers a token to, on random router scores; 1 without it."""
    load: FabricLoad
    """What the fabric makes of an all-to-all among the deployment's GPUs."""
    restated: frozenset[tuple[str, str, str]]
    """(kind, operand type, result type) of kernels whose times come from another GPU."""
    disagreements: Mapping[tuple[object, ...], tuple[Seconds, Seconds]]
    """(kind, operand type, result type, sizes, SMs) -> least and most seconds, where several
    sources timed the same kernel alone."""
    predicted: dict[tuple[Operator, int, bool], tuple[float, float, float, int, float, float]]
    """Kernel times already asked for: (operator, SMs, all-to-all beside it) -> seconds, low, high,
    provenance, below and above of what errs in all kernels at once. Over a grid of batches and
    contexts most operators come back."""


@dataclass(frozen=True, slots=True)
class ServingModel:
    """A deployment made ready: fitted kernel times, the order, and what every iteration shares."""

    job: ServingStepJob
    config: ModelConfig
    cluster: ClusterProfile
    kernels: KernelSource
    trace: OperatorTrace
    low_latency: LowLatencyProfile | None
    graph: TaskGraph
    """Order of an iteration; its operators are those of a small one."""
    places: NDArray[np.intp]
    """[tasks], place of each task's operator in those of the graph."""
    sections: tuple[tuple[str, int], ...]
    """(layer kind, micro-batch), in the order of the graph's operators."""
    even_skew: float
    """Rows of the slowest rank over the mean: what the placement makes of equally popular
    experts."""
    slot_shares: Array
    """[slots of a rank], share of the rows of that rank that each slot has."""
    tp_loads: Mapping[int, FabricLoad]
    """GPUs of a tensor-parallel group that spans NVLink domains -> what the fabric makes of its
    collectives."""
    seed: int
    special_times: dict[tuple[Operator, str, float], Prediction | None] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    """Of operators that were asked for, as kernels' `predicted` (serving_times): (operator, part,
    copies on its wire) -> its time; None of a kernel. Of another job, another one."""

    @property
    def transfers(self) -> Transfers:
        """Times of transfers between the deployment's GPUs."""
        transfers = self.kernels.costs.transfers_
        if self.low_latency is None:
            return transfers
        return transfers.with_low_latency(
            self.low_latency,
            ranks=self.job.gpus,
            domain=self.nvlink_domain,
            messages=self.messages,
            load=self.kernels.load,
            kernel_floor=self.kernels.calibration.kernel_floor.value,
        )

    @property
    def expert_ranks(self) -> int:
        """GPUs over which the routed experts are spread."""
        return self.job.gpus // self.job.expert_tp

    @property
    def over_nvlink(self) -> bool:
        """Whether dispatch and combine go over NVLink, not over NICs."""
        if self.job.expert_tp > 1:
            return self.job.expert_tp not in self.tp_loads
        return _over_nvlink(self.job, self.cluster, self.low_latency)

    @property
    def nvlink_domain(self) -> int:
        """GPUs of the deployment in the NVLink domain that has the fewest of them, which sends the
        most copies beyond it."""
        each = gpus_per_domain(self.cluster, group=self.job.gpus)
        return min(domain_parts(self.job.gpus, each))

    @property
    def domain_share(self) -> float:
        """Share of evenly spread copies that stay within the NVLink domain of their GPU."""
        return self.nvlink_domain / self.job.gpus

    @property
    def cache_ratio(self) -> Estimate | None:
        """Time of the decode attention core over the job's KV cache, over its time over a BF16 one;
        None where nothing differs. In prefill keys and values are decompressed in BF16."""
        if self.job.phase == "prefill" or self.job.memory.kv_cache == "bfloat16":
            return None
        return self.kernels.calibration.fp8_cache[self.cluster.node.gpu.architecture]

    @property
    def recipe(self) -> RecipeName:
        """The recipe in which it holds and multiplies its weights."""
        return recipe_name(self.job.recipe, self.config)

    @property
    def messages(self) -> Mapping[MoeOperation, Bytes]:
        """Bytes of one copy of one token."""
        hidden = self.config.hidden_size
        row = ACTIVATIONS[RECIPES[self.recipe].dispatched].stored_bytes(1, hidden)
        return message_bytes(hidden, dispatched=row)

    @property
    def choices(self) -> int:
        """Copies of each token that travel."""
        return _choices(self.job, self.config)


def _choices(job: ServingStepJob, config: ModelConfig) -> int:
    shared = config.n_shared_experts if job.experts.shared_expert == "dispatched" else 0
    return config.num_experts_per_tok + shared


def kernel_source(
    job: ServingStepJob,
    *,
    config: ModelConfig,
    cluster: ClusterProfile,
    calibration: CalibrationProfile,
    cost_model: Callable[..., KernelCostModel],
    measurements: Iterable[Measurement],
    low_latency: LowLatencyProfile | None,
    seed: int,
) -> KernelSource:
    """Fit kernel times for the GPUs of a job.

    Raises ValueError for sizes that do not fit together.
    """
    check_serving_job(job, config=config, cluster=cluster)
    ranks = job.gpus // job.expert_tp
    rows = [row for row in measurements if row.kind not in _FUSED_IN_INFERENCE or row.kernels == 1]
    # What training borrows from another GPU are the reference model's kernels, the gate of many
    # launches among them; with rows of its own, a calibration answers for inference alone.
    own = {"restated_from": ()} if calibration.measurements else {}
    # DeepEP's published times were taken with its test's gate; this job runs the model's, on
    # experts where its policy places them.
    normal = job.normal_transfers
    reach = _reach(job, config=config, cluster=cluster, seed=seed) if normal else None
    costs = cost_model(
        cluster=cluster,
        calibration=calibration.model_copy(update=own),
        expert_parallel_ranks=ranks,
        reach=reach,
        sustained_job=job.phase == "prefill",
    ).fit(rows)
    mixed = low_latency is not None and low_latency.link == "mixed"
    pattern: Pattern = "rail" if normal else "other_domains" if mixed else "every_gpu"
    load = all_to_all_load(cluster, gpus=ranks, pattern=pattern)
    return KernelSource(
        calibration=calibration,
        costs=costs,
        received_per_token=reach.gpus if reach else 1.0,
        load=load,
        restated=frozenset(
            (row.kind, row.dtype, row.out_dtype) for row in rows if row.condition("measured_on")
        ),
        disagreements=_disagreements(rows, calibration),
        predicted={},
    )


def _reach(
    job: ServingStepJob, *, config: ModelConfig, cluster: ClusterProfile, seed: int
) -> Reach:
    """Where a token goes on random router scores, with experts placed as the job's policy places
    them where all are equally popular."""
    placement, _ = _placed(
        job, uniform_popularity(1, config.n_routed_experts), config=config, cluster=cluster
    )
    return expert_reach(
        placement.slots[0],
        config=config,
        parts=domain_parts(job.gpus, gpus_per_domain(cluster, group=job.gpus)),
        seed=seed,
    )


def _disagreements(
    rows: Iterable[Measurement], calibration: CalibrationProfile
) -> dict[tuple[object, ...], tuple[Seconds, Seconds]]:
    """Least and most seconds of each kernel that more than one kernel set timed by itself."""
    times: dict[tuple[object, ...], dict[str, Seconds]] = {}
    for row in rows:
        alone = row.all_to_all_share == 0.0 and not row.pair
        if alone and row.kernel_set in calibration.kernel_sets:
            key = (row.kind, row.dtype, row.out_dtype, row.sizes, row.sms)
            times.setdefault(key, {})[row.kernel_set] = row.seconds
    return {
        key: (min(of_set.values()), max(of_set.values()))
        for key, of_set in times.items()
        if len(of_set) > 1
    }


def serving_model(
    job: ServingStepJob,
    *,
    config: ModelConfig,
    cluster: ClusterProfile,
    kernels: KernelSource,
    trace: OperatorTrace,
    low_latency: LowLatencyProfile | None,
    seed: int,
) -> ServingModel:
    """Make a deployment ready: plan the order, place the experts.

    Raises ValueError for sizes that do not fit together.
    """
    check_serving_job(job, config=config, cluster=cluster)
    if not config.num_moe_layers:
        # No rank has rows of experts, so none has more than another.
        equal = job.skew.model_copy(update={"rows": RowsOfRanks()})
        job = job.model_copy(update={"skew": equal})
    domain = joined_gpus(cluster)
    if low_latency is not None and job.gpus <= domain:
        low_latency = low_latency.within or low_latency
    over_nvlink = _over_nvlink(job, cluster, low_latency)
    spanning = [size for size in job.tensor_parallel.groups if size > domain]
    check_serving_failures(cluster, over_nvlink=(over_nvlink or job.expert_tp > 1) and not spanning)
    if low_latency is not None and over_nvlink and job.gpus > domain:
        raise ValueError(
            f"all_to_all.low_latency {low_latency.name}: its copies go over NVLink, which joins "
            f"{domain} GPUs of {cluster.name}, not {job.gpus}; allowed: a profile of link nic or "
            "mixed, such as deepep_h100_mixed"
        )
    check_cache_type(job, cluster, kernels.calibration)
    placement, carried = _placed(
        job, uniform_popularity(1, config.n_routed_experts), config=config, cluster=cluster
    )
    choices = _choices(job, config)
    most = placement.most_over_mean(choices)
    if job.skew.max_over_mean > most:
        raise ValueError(
            f"skew.rows.max_over_mean {job.skew.max_over_mean:g}: allowed: at most {most:g}, "
            f"as the {choices} choices of a token are distinct"
        )
    slowest = int(placement.gpu_load(carried)[0].argmax())
    slots = placement.slot_load(carried)[0].reshape(placement.gpus, -1)[slowest]
    graph, sections, places = _ordered(job, config, trace)
    return ServingModel(
        job=job,
        config=config,
        cluster=cluster,
        kernels=kernels,
        trace=trace,
        low_latency=low_latency,
        graph=graph,
        places=places,
        sections=sections,
        even_skew=placement.max_over_mean(carried),
        slot_shares=slots / slots.sum(),
        tp_loads={size: all_to_all_load(cluster, gpus=size, pattern="rail") for size in spanning},
        seed=seed,
    )


def placed_experts(model: ServingModel, popularity: Array | None) -> tuple[ExpertPlacement, Array]:
    """Experts of a deployment where its policy puts them for a popularity [layers, experts], equal
    in one layer without, and the rows of each for one token."""
    experts = model.config.n_routed_experts
    return _placed(
        model.job,
        uniform_popularity(1, experts) if popularity is None else popularity,
        config=model.config,
        cluster=model.cluster,
    )


def _placed(
    job: ServingStepJob, popularity: Array, *, config: ModelConfig, cluster: ClusterProfile
) -> tuple[ExpertPlacement, Array]:
    """Experts where the job's policy puts them for a popularity [layers, experts], and the rows of
    each for one token, [layers, experts]; a shared expert that travels is the last of them."""
    ranks = job.gpus // job.expert_tp
    carried = with_shared(job, popularity * config.num_experts_per_tok, tokens=1)
    ungrouped = job.experts.placement == "hierarchical" and config.n_group == 1
    placement = place_experts(
        carried,
        gpus=ranks,
        nodes=_nodes(ranks, cluster),
        groups=config.n_group,
        redundant=config.n_routed_experts + job.experts.redundant - carried.shape[1],
        # Without expert groups there is none to keep within a node.
        policy="global" if ungrouped else job.experts.placement,
    )
    return placement, carried


def in_one_micro_batch(model: ServingModel) -> ServingModel:
    """The same deployment with all tokens of a GPU in one micro-batch; its shared expert, where it
    stays on its GPU, hides what it can of the all-to-all."""
    return _in_one_micro_batch(object_key(model))


@lru_cache(maxsize=4)
def _in_one_micro_batch(keyed: Keyed[ServingModel]) -> ServingModel:
    model = keyed.value
    job = model.job.model_copy(update={"micro_batches": 1, "overlap": "shared_expert"})
    graph, sections, places = _ordered(job, model.config, model.trace)
    return replace(model, job=job, graph=graph, places=places, sections=sections)


def _ordered(
    job: ServingStepJob, config: ModelConfig, trace: OperatorTrace
) -> tuple[TaskGraph, tuple[tuple[str, int], ...], NDArray[np.intp]]:
    """Graph of one iteration, and its sections and places (see ServingModel)."""
    nominal = Load(
        tokens=128, sequences=128 if job.phase == "decode" else 1, context=128,
        expert_rows=128, received_rows=128, local_experts=1,
        group_tokens=128, group_sequences=128 if job.phase == "decode" else 1,
    )  # fmt: skip
    parts = {kind: section_operators(job, trace, kind, nominal) for kind in _kinds(job, config)}
    sections = {
        (kind, micro_batch): layer
        for kind, layer in parts.items()
        for micro_batch in (range(job.micro_batches) if kind in EXPERT_LAYERS else (WHOLE_BATCH,))
    }
    graph = lower_step(
        job.phase,
        sections,
        dense_layers=config.first_k_dense_replace,
        moe_layers=config.num_moe_layers,
        draft_layers=0
        if job.speculative_decoding is None
        else job.speculative_decoding.draft_tokens,
        head=job.head,
        decode=job.phase == "decode",
        overlap=job.overlap,
    )
    places = np.array([task.operator for task in graph.tasks], dtype=np.intp)
    return graph, tuple(sections), places


def with_shared(job: ServingStepJob, rows: Array, *, tokens: float) -> Array:
    """Append the rows of a shared expert that travels like the routed ones, as a last column of
    [layers, experts]: every one of `tokens` tokens goes to it."""
    if job.experts.shared_expert == "local":
        return rows
    return np.hstack((rows, np.full((len(rows), 1), float(tokens))))


def section_operators(
    job: ServingStepJob, trace: OperatorTrace, kind: str, load: Load
) -> LayerOperators:
    """The operators of one layer at a load, by part."""
    recorded = LAST_TOKEN_KINDS.get(kind, kind)
    split = job.tensor_parallel
    operators = layer_operators(trace, recorded, load, split)
    if job.experts.shared_expert == "dispatched" and kind in EXPERT_LAYERS:
        operators = [_one_more_summed(op) for op in operators if "shared" not in op.name]
    layer = split_layer(
        recorded,
        operators,
        low_latency=job.all_to_all.kernels == "low_latency" and job.expert_tp == 1,
        expert_parallel=job.expert_tp == 1,
        shared_gathered=split.shared_expert > 1,
    )
    return with_shared_added(layer) if job.overlap == "two_micro_batches" else layer


def _one_more_summed(operator: Operator) -> Operator:
    """The kernel that sums what came back, with the result of a shared expert that travels too."""
    if operator.name != "moe.combine_receive":
        return operator
    sizes = dict(operator.sizes)
    copies = sizes["top_k"] + 1
    sizes |= {"top_k": copies, "rows": sizes["tokens"] * copies}
    return replace(operator, sizes=tuple(sizes.items()))


def _kinds(job: ServingStepJob, config: ModelConfig) -> tuple[str, ...]:
    kinds = ["embedding", "head"] if job.head else []
    if config.first_k_dense_replace:
        kinds.append("dense")
    kinds.append("moe")
    if job.speculative_decoding is not None:
        kinds.append("mtp")
        kinds += ["mtp_next"] if job.speculative_decoding.draft_tokens > 1 else []
        kinds += ["mtp_head"] if job.head else []
    return tuple(kinds)


def _nodes(ranks: int, cluster: ClusterProfile) -> int:
    """Nodes that hold the ranks; GPUs that NVLink joins are as good as one."""
    return max(1, -(-ranks // gpus_per_domain(cluster, group=ranks)))


def _over_nvlink(
    job: ServingStepJob, cluster: ClusterProfile, low_latency: LowLatencyProfile | None
) -> bool:
    if low_latency is None:
        return job.gpus <= joined_gpus(cluster)
    return low_latency.link == "nvlink"
