"""How long the operators of one serving iteration take.

Most are kernels of the cost model. Its own are low-latency transfers (send and receive kernels, and
the wire between them) and the collectives of tensor parallelism.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.calibration_parts import BesideCompute
from hardware_profiles.estimates import Estimate
from hardware_profiles.low_latency_kernels import MoeOperation
from hardware_profiles.same_gpu import same_gpu
from hardware_profiles.schema import load_gpu
from reference_model.trace import ALL_TO_ALL_KINDS, Operator
from simulator.execution.serving_model import EXPERT_LAYERS, ServingModel
from simulator.hardware.kernels.families import family_of
from simulator.hardware.network.clusters import gpus_per_domain
from simulator.hardware.network.groups import Domains
from simulator.hardware.network.transfers import exchange_sms
from simulator.hardware.prediction import (
    EXTRAPOLATED,
    MEASURED,
    MODELLED,
    Prediction,
    one_time,
)
from simulator.workload.iteration import WIRES, LayerOperators, Sections
from simulator.workload.iteration_operators import collective_ranks
from simulator.workload.task_graph import COLLECTIVE_SEGMENTS

Array = NDArray[np.float64]

KernelAsked: TypeAlias = tuple[Operator, int, bool]
"""An operator, the SMs that it has, and whether an all-to-all is beside it."""

DECODE_CORES = ("mla_decode", "sparse_mla")
"""Operator kinds of the decode attention core, which reads the KV cache."""


def kernel_times(model: ServingModel, operators: Sections) -> Prediction:
    """Times of all sections' operators, concatenated in the order of the sections."""
    flat: list[Operator] = []
    parts: list[str] = []
    copies: list[float] = []
    for section in model.sections:
        layer = operators[section]
        part_of = layer.part_of()
        flat += layer.operators
        parts += [part_of[place] for place in range(len(layer.operators))]
        copies += [_wire_copies(model, layer)] * len(layer.operators)
    seconds, low, high, provenance, common = predicted(model, asked_kernels(model, operators))
    family: list[Hashable] = [family_of(operator) for operator in flat]
    ratio = model.cache_ratio
    if ratio is not None:
        core = np.array([operator.kind in DECODE_CORES for operator in flat])
        for times, by in (
            (seconds, ratio.value),
            (low, ratio.low),
            (high, ratio.high),
        ):
            times[core] *= by
        provenance[core] = MODELLED
    special = model.special_times
    for place, key in enumerate(zip(flat, parts, copies, strict=True)):
        if key not in special:
            special[key] = _special_time(model, *key)
        known = special[key]
        if known is None:
            continue
        seconds[place], low[place], high[place] = known.seconds[0], known.low[0], known.high[0]
        provenance[place], (family[place],) = known.provenance[0], known.family
        common[:, place] = 0.0
    return Prediction(seconds, low, high, provenance, tuple(family), common)


def asked_kernels(model: ServingModel, operators: Sections) -> list[KernelAsked]:
    """The kernels of all sections, in the order of the sections."""
    job = model.job
    gpu_sms = model.cluster.node.gpu.sms
    normal = job.normal_transfers
    hides = job.overlap == "two_micro_batches"
    asked = []
    for section in model.sections:
        layer = operators[section]
        part_of = layer.part_of()
        overlapped = normal and hides and section[0] in EXPERT_LAYERS
        free = gpu_sms - job.communication_sms if overlapped else gpu_sms
        for place, operator in enumerate(layer.operators):
            sms = free
            if normal and part_of[place] in WIRES:
                sms = exchange_sms(operator.kind, kept=job.communication_sms, free=gpu_sms)
            asked.append((operator, sms, overlapped))
    return asked


def _on_calibrated_gpu(model: ServingModel) -> bool:
    return same_gpu(model.cluster.node.gpu, load_gpu(model.kernels.calibration.gpu))


def _taken_over(model: ServingModel) -> float:
    """Relative error, each way, of a time restated from another GPU of the same SMs."""
    error = model.kernels.calibration.other_gpu
    return (error.high - error.low) / 2 / error.value


def predicted(
    model: ServingModel, asked: Sequence[KernelAsked]
) -> tuple[Array, Array, Array, NDArray[np.intp], Array]:
    """Seconds, both ends of the interval, provenance and what errs in all kernels at once [2, ...]
    of kernels, out of what is known and one question for the rest."""
    missing = list(dict.fromkeys(key for key in asked if key not in model.kernels.predicted))
    if missing:
        new = model.kernels.costs.predict(
            [operator for operator, _, _ in missing],
            sms=[count for _, count, _ in missing],
            overlapped=[beside for _, _, beside in missing],
            load=model.kernels.load,
        )
        # Times of another GPU are no measurement of this one, even where its SMs are the same.
        best = MEASURED if _on_calibrated_gpu(model) else EXTRAPOLATED
        columns = zip(
            new.seconds.tolist(),
            new.low.tolist(),
            new.high.tolist(),
            new.provenance.tolist(),
            *new.common.tolist(),
            strict=True,
        )
        for key, (value, least, most, source, below, above) in zip(missing, columns, strict=True):
            (operator, sms, beside), code = key, max(best, source)
            family = (operator.kind, operator.dtype, operator.out_dtype)
            if family not in model.kernels.restated:
                ends = (least, most)
                if not beside:
                    # Two sources of one kernel: the difference belongs into the interval.
                    ends = model.kernels.disagreements.get((*family, operator.sizes, sms), ends)
                low, high = min(least, *ends), max(most, *ends)
                model.kernels.predicted[key] = (value, low, high, code, below, above)
                continue
            # Measured, but on another GPU.
            model.kernels.predicted[key] = (
                value,
                value - math.hypot(value - least, _taken_over(model) * value),
                value + math.hypot(most - value, _taken_over(model) * value),
                max(code, EXTRAPOLATED),
                below,
                above,
            )
    rows = [model.kernels.predicted[key] for key in asked]
    times = np.array([row[:3] for row in rows]).reshape(-1, 3).T
    provenance = np.array([row[3] for row in rows], dtype=np.intp)
    shared = np.array([row[4:] for row in rows]).reshape(-1, 2).T
    return times[0], times[1], times[2], provenance, shared


LOW_LATENCY_KERNELS = ("dispatch_send", "dispatch_receive", "combine_send", "combine_receive")
"""Parts of a layer that are the kernels at either end of a low-latency wire."""


def _special_time(
    model: ServingModel, operator: Operator, part: str, copies: float
) -> Prediction | None:
    """The time of what is no kernel of the cost model: a low-latency transfer, or a collective of
    tensor parallelism; `copies` are those that cross a wire of the layer."""
    job = model.job
    if operator.segment in COLLECTIVE_SEGMENTS:
        ranks = collective_ranks(operator, job.tensor_parallel)
        gathers = operator.segment == "gather"
        return _collective_time(model, operator, ranks, gathers=gathers)
    if part in WIRES and job.expert_tp > 1:
        gathers = part == "dispatch_wire"
        return _collective_time(model, operator, job.expert_tp, gathers=gathers)
    if job.gpus == 1:
        # It holds every expert and sends nothing, but it casts and copies as the model does.
        nothing = one_time(0.0, 0.0, 0.0, provenance=MEASURED, family=part)
        return nothing if part in WIRES else None
    own_time = part in WIRES or part in LOW_LATENCY_KERNELS
    if model.low_latency is None or job.expert_tp > 1 or operator.kind == "add" or not own_time:
        return None
    if part in LOW_LATENCY_KERNELS:
        # A sent token's row stands for all its copies.
        handled = operator["rows"] * (model.choices if part == "dispatch_send" else 1)
        return model.transfers.low_latency_kernel(part, np.array([float(handled)]))
    operation: MoeOperation = "dispatch" if part.startswith("dispatch") else "combine"
    return model.transfers.low_latency_wire(
        operation, np.array([copies]), beside=_beside_compute(model, operation)
    )


def _wire_copies(model: ServingModel, layer: LayerOperators) -> float:
    """Copies that cross a GPU's link in the busier direction: dispatch sends those of its tokens
    and receives the rows of its experts, combine the other way round. 0 without low-latency
    kernels."""
    sent, received = layer.parts.get("dispatch_send"), layer.parts.get("dispatch_receive")
    if sent is None or received is None:
        return 0.0
    tokens, rows = (layer.operators[places[0]]["rows"] for places in (sent, received))
    return float(max(tokens * model.choices, rows))


def _beside_compute(model: ServingModel, operation: MoeOperation) -> Estimate:
    """Wire time beside compute over the wire time alone."""
    ratios = model.job.all_to_all.beside_compute
    if model.job.overlap == "none" or ratios is None:
        ratios = BesideCompute.none("nothing runs beside it")
    return ratios.of(operation)


def _collective_time(
    model: ServingModel, operator: Operator, ranks: int, *, gathers: bool
) -> Prediction:
    """All-gather or reduce-scatter of tokens, in the type of the operator, or of logits."""
    if operator.kind in ALL_TO_ALL_KINDS:
        exchanged: MoeOperation = "dispatch" if operator.kind == "dispatch" else "combine"
        gathered = float(operator["rows"] * model.messages[exchanged])
    else:
        gathered = float(operator.bytes_written)
    load = model.tp_loads.get(ranks)
    inside = ranks if load is None else gpus_per_domain(model.cluster, group=ranks)
    group = Domains(domains=ranks // inside, fewest=inside, most=inside)
    return model.transfers.collective(
        "all_gather" if gathers else "reduce_scatter",
        gathered,
        form="direct",
        group=group,
        load=load,
    )


def expert_times(
    model: ServingModel, base: LayerOperators, unique: NDArray[np.int64], wanted: Sequence[int]
) -> Array:
    """Times of the wanted operators at each (rows, active experts), [loads, operators]."""
    part_of = base.part_of()
    job = model.job
    transfers = model.transfers
    low_latency = model.low_latency is not None and job.gpus > 1
    gpu_sms = model.cluster.node.gpu.sms
    normal = job.normal_transfers
    overlapped = normal and job.overlap == "two_micro_batches"
    rows = unique[:, 0].astype(float)
    mean_rows = base.operators[base.parts["experts"][0]]["rows"]
    table = np.empty((len(unique), len(wanted)))
    asked: list[KernelAsked] = []
    columns: list[int] = []
    for number, place in enumerate(wanted):
        part, operator = part_of[place], base.operators[place]
        if part in WIRES and job.gpus == 1:
            table[:, number] = 0.0
        elif low_latency and part in WIRES:
            sent = base.operators[base.parts["dispatch_send"][0]]["rows"] * model.choices
            operation: MoeOperation = "dispatch" if part == "dispatch_wire" else "combine"
            table[:, number] = transfers.low_latency_wire(
                operation, np.maximum(rows, sent), beside=_beside_compute(model, operation)
            ).seconds
        elif low_latency and part in ("dispatch_receive", "combine_send"):
            table[:, number] = transfers.low_latency_kernel(part, rows).seconds
        else:
            sms = gpu_sms - job.communication_sms if overlapped else gpu_sms
            if part in WIRES:
                sms = exchange_sms(operator.kind, kept=job.communication_sms, free=gpu_sms)
            columns.append(number)
            asked += [
                (_at_rows(operator, int(count), int(active), mean_rows), sms, overlapped)
                for count, active in unique
            ]
    if columns:
        table[:, columns] = predicted(model, asked)[0].reshape(len(columns), -1).T
    return table


def _at_rows(operator: Operator, rows: int, active: int, mean_rows: int) -> Operator:
    """An operator of the experts, or a normal transfer to them, at other rows than the mean; tokens
    that normal dispatch delivers scale with them."""
    changed = {}
    for name, value in operator.sizes:
        scaled = max(1, round(value * rows / max(1, mean_rows)))
        if operator.kind in ALL_TO_ALL_KINDS:
            changed[name] = scaled if name == "rows" else value
        elif name == "groups":
            changed[name] = max(1, active)
        else:
            changed[name] = scaled if name in ("rows", "tokens") else value
    if "rows" not in changed:
        return operator
    return replace(operator, sizes=tuple(changed.items()))
