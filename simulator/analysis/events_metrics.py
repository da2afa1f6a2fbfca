"""What a step on contending devices says, beside what the timeline assumes and what was measured.

No figure here is an input of the run: ratios measured in the public trace of one rank of a training
pair on H800 (deepseek-ai/profile-data, train.json) stand beside those that come out, and what is
left between the two is printed as unexplained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hardware_profiles.schema import CalibrationProfile, GpuProfile
from hardware_profiles.units import BytesPerSecond
from hardware_profiles.whole_files import read_text
from reference_model.trace import ALL_TO_ALL_KINDS
from simulator.execution import timeline
from simulator.execution.machine.group import Effect, GroupRun
from simulator.execution.timeline import waiting

_TRACE = "public trace of a training pair on H800"
MEASURED_BESIDE: Mapping[Effect, tuple[float, str]] = {
    Effect.GEMM: (1.045, f"{_TRACE}: FP8 on 112 CTAs, +3 to +7%, median"),
    Effect.MEMORY_BOUND: (1.15, f"{_TRACE}: many CTAs, +6 to +20%, median"),
    Effect.NORM: (1.65, f"{_TRACE}: grids of 3 x 132 CTAs, +63 to +69%"),
    Effect.CAST: (6.5, f"{_TRACE}: 52 us, and 334 to 349 us under a GEMM"),
    Effect.DISPATCH_FORWARD: (1.84, f"{_TRACE}, over DeepEP alone; skew inside"),
    Effect.DISPATCH_GRADIENT: (1.44, f"{_TRACE}, over DeepEP alone; skew inside"),
    Effect.COMBINE_FORWARD: (1.29, f"{_TRACE}, over DeepEP alone; skew inside"),
    Effect.COMBINE_GRADIENT: (1.37, f"{_TRACE}, over DeepEP alone; skew inside"),
}
"""{effect: time beside a transfer over that alone, or of a transfer beside compute over that alone,
and its source}"""

_OVERLAP_FIELDS = {
    "gemm": (Effect.GEMM,),
    "attention": (Effect.ATTENTION,),
    "memory_bound": (Effect.MEMORY_BOUND, Effect.NORM),
}
"""{field of a calibration's overlap: effects whose mean ratio it takes}"""
_EXCHANGE_FIELDS = {
    "dispatch": (Effect.DISPATCH_FORWARD, Effect.DISPATCH_GRADIENT),
    "combine": (Effect.COMBINE_FORWARD, Effect.COMBINE_GRADIENT),
}


def events_metrics(
    group: GroupRun, gpu: GpuProfile, hbm: BytesPerSecond, calibration: CalibrationProfile
) -> dict[str, Any]:
    """Everything that a run prints of its ranks; SI units.

    Args:
        hbm: rate of one GPU's HBM.
    """
    log, network = group.machine.log, group.machine.network
    return {
        "of": group.name,
        "ranks": log.end_s.shape[1],
        "contention": list(group.channels),
        "span_s": group.span_s,
        "timeline_span_s": group.timeline.span_s,
        "events": group.machine.events,
        "solves": 0 if network is None else network.solves,
        "window_s": 0.0 if network is None else network.window,
        "beside": _classes(group),
        "waiting": _waiting(log),
        "timeline_waiting": _waiting(group.timeline),
        "devices": _devices(group, sms=gpu.sms, hbm=hbm),
        "without": dict(group.without),
        "timeline_inputs": timeline_inputs(group, calibration),
    }


def _classes(group: GroupRun) -> list[dict[str, Any]]:
    """Ratios that come out, by effect, the measured ones, and what is left between them."""
    rows = []
    for effect, ratios in group.ratios().items():
        measured, source = MEASURED_BESIDE.get(effect, (None, None))
        median = float(np.median(ratios))
        rows.append(
            {
                "effect": effect.value,
                "ratio": median,
                "low": float(ratios.min()),
                "high": float(ratios.max()),
                "kernels": len(ratios),
                "measured": measured,
                "unexplained": None if measured is None else measured / median,
                "source": source,
            }
        )
    return rows


def _waiting(log: timeline.Log) -> dict[str, Any]:
    """Seconds, mean over ranks, and before each collective."""
    found = waiting(log)
    meets = [place for place, task in enumerate(log.graph.tasks) if task.collective]
    before = (log.start_s - log.ready_s)[meets]
    ranks = log.end_s.shape[1:]
    return {
        "exposed_communication_s": float(np.mean(found.exposed_communication_s)),
        "for_ranks_s": float(np.mean(found.ranks_s)),
        "before_a_collective_s": float(before.mean()) if before.size else 0.0,
        "by_rank_s": np.sort(before.sum(axis=0).ravel()).tolist() if ranks else [],
    }


def _devices(group: GroupRun, *, sms: int, hbm: BytesPerSecond) -> dict[str, Any]:
    """Use of SMs, HBM and links over the run."""
    gpus, span = group.machine.gpus, group.span_s
    sm_seconds, hbm_bytes = span * sms, span * hbm
    found: dict[str, Any] = {
        "sm_share": float(np.mean([gpu.sm_seconds for gpu in gpus]) / sm_seconds) if span else 0.0,
        "sm_starved_s": float(np.mean([gpu.starved_s for gpu in gpus])),
        "hbm_share": float(np.mean([gpu.hbm_bytes for gpu in gpus]) / hbm_bytes) if span else 0.0,
        "hbm_oversubscribed_s": float(np.mean([gpu.oversubscribed_s for gpu in gpus])),
    }
    network = group.machine.network
    if network is not None and span:
        use = network.link_bytes() / np.maximum(network.fabric.capacity * span, 1e-300)
        busiest = int(use.argmax())
        found |= {
            "busiest_link": network.fabric.resource_name(busiest),
            "busiest_link_share": float(use[busiest]),
        }
    return found


def timeline_inputs(group: GroupRun, calibration: CalibrationProfile) -> dict[str, Any]:
    """{path: value} of the ratios that the timeline takes as inputs, as they come out here."""
    ratios = group.ratios()

    def mean(effects: tuple[Effect, ...]) -> float | None:
        values = [ratios[effect] for effect in effects if effect in ratios]
        return float(np.concatenate(values).mean()) if values else None

    found: dict[str, Any] = {}
    for kind, effects in _OVERLAP_FIELDS.items():
        value = mean(effects)
        if value is not None:
            path = f"calibration.overlap.{kind}"
            found |= {f"{path}.{name}": part for name, part in _estimate(value).items()}
    exchanges = {name: mean(effects) for name, effects in _EXCHANGE_FIELDS.items()}
    if None in exchanges.values():
        return found
    beside = {name: _estimate(value) for name, value in exchanges.items() if value is not None}
    operators = group.machine.log.graph.task_operators()
    if not any(operator.kind in ALL_TO_ALL_KINDS for operator in operators):
        return found | {"serving_step.all_to_all.beside_compute": beside}
    found["calibration.all_to_all.beside_compute"] = beside
    if calibration.all_to_all.without_waiting is not None:
        path = "calibration.all_to_all.without_waiting"
        found |= {f"{path}.{name}": estimate for name, estimate in beside.items()}
    return found


def _estimate(value: float) -> dict[str, Any]:
    return {"value": value, "low": value, "high": value, "source": "came out of a run of events"}


def changes_from(run: Path) -> list[str]:
    """Texts "path=value" that let a step on the timeline take what a run of events came to.

    Args:
        run: its directory, or a file with its JSON.

    Raises ValueError, one line, for anything else.
    """
    path = run / "metrics.json" if run.is_dir() else run
    where = f"--from-events {run}"
    text = read_text(path, where=where)
    try:
        metrics = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: no JSON: {error}") from None
    events = metrics.get("events") if isinstance(metrics, dict) else None
    inputs = events.get("timeline_inputs") if isinstance(events, dict) else None
    if not isinstance(inputs, dict):
        raise ValueError(
            f"{where}: not a run with fidelity: events; allowed: the directory or the JSON of "
            "`dsv3sim run SCENARIO --set fidelity=events`"
        )
    return [f"{name}={json.dumps(value)}" for name, value in inputs.items()]
