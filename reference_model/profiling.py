"""Run one layer on a GPU under the profiler and time its operators.

The layer has its full size and the rows of one rank of an expert-parallel group (`Workload`); what
the other ranks would send is stood in for by its own tokens (gpu.local_view). The profile is
cut down to what a reader and a replay (dsv3sim replay) need: the device, and each operator, launch
and kernel with its start and duration, in the Chrome-trace format that Kineto writes.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity

from reference_model.alignment import check_sizes
from reference_model.config import ModelConfig
from reference_model.gpu import local_view, use_kernels
from reference_model.measure import require_hopper
from reference_model.operators import NAMESPACE
from reference_model.precision import Recipe
from reference_model.recorder import LAYERS, Layer, OperatorRecorder, prepare_weights
from reference_model.trace import Operator, Workload

_DEVICE_EVENTS = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_MICRO = 1e-6
"""Chrome traces count microseconds."""
_STATES = 4
"""Random hidden states that a layer's passes take in turn."""
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_KEPT_ARGUMENTS = (
    "device",
    "stream",
    "correlation",
    "grid",
    "block",
    "registers per thread",
    "shared memory",
    "bytes",
)


TimedOperators = list[tuple[Operator, float, int]]
"""Operators, each with the summed time of its kernels and their number."""


def profile_layer(
    config: ModelConfig, layer_kind: str, workload: Workload, *, recipe: Recipe, seed: int
) -> tuple[TimedOperators, float, dict[str, Any]]:
    """Run forward, input gradient and weight gradients once to warm up and once under the profiler;
    returns what `match_operators` does.

    layer_kind is one of recorder.LAYERS. Weights and hidden states are random. Raises ValueError
    without a Hopper GPU or for sizes that it cannot address, and torch.cuda.OutOfMemoryError, with
    the workload's sizes in its message, where it does not fit."""
    device = require_hopper()
    check_sizes(config)
    use_kernels(recipe.kernels)
    view = local_view(local_experts=workload.local_experts, expert_rows=workload.expert_rows)
    try:
        layer = LAYERS[layer_kind](config, workload, recipe, device)
        _fill(layer, seed=seed)
        with view, torch.no_grad():
            # Compiled kernels are compiled anew inside the recorder: warm up in it as well.
            with OperatorRecorder():
                layer.run()
            torch.cuda.synchronize()
            activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
            with OperatorRecorder() as recorder, torch.profiler.profile(activities=activities) as p:
                layer.run()
                torch.cuda.synchronize()
    except torch.cuda.OutOfMemoryError as error:
        raise torch.cuda.OutOfMemoryError(
            f"{layer_kind} layer of hidden size {config.hidden_size} with {workload}: {error}"
        ) from error
    operators = recorder.recorded
    return match_operators(operators, profile_document(p))


def _fill(layer: Layer, *, seed: int) -> None:
    """Give a layer values: matrices of deviation 1/sqrt(fan-in), norms of ones, hidden states and
    tokens that stay the same from call to call."""
    generator = torch.Generator(layer.device).manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1)
            else:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    prepare_weights(layer)
    shape = (layer.tokens.shape[0], layer.config.hidden_size)
    layer.tokens.random_(layer.config.vocab_size, generator=generator)
    drawn = [
        torch.randn(shape, generator=generator, device=layer.device).to(layer.recipe.dtype)
        for _ in range(_STATES)
    ]
    states = cycle(drawn)
    layer.hidden = lambda: next(states)  # type: ignore[method-assign]


def profile_document(profile: Any) -> dict[str, Any]:
    """A profile as Kineto exports it: its events, and the devices."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def profile_events(profile: Any) -> list[dict[str, Any]]:
    """The events of a profile, as Kineto exports them."""
    events: list[dict[str, Any]] = profile_document(profile)["traceEvents"]
    return events


class KernelSplit(NamedTuple):
    """Kernel times of a profile, seconds."""

    inside: dict[str, float]
    """By operator that launched them."""
    outside: dict[str, float]
    """By name of the kernel, of those that no operator launched."""
    kernels: int

    @property
    def total(self) -> float:
        return sum(self.inside.values()) + sum(self.outside.values())


def split_kernels(events: Sequence[Mapping[str, Any]], *, repetitions: int = 1) -> KernelSplit:
    """Split the kernels of a profile (Kineto's events) by whether an operator of the model was open
    when they were launched. Kernels of a replayed graph have no launch of their own: outside.

    Of equal repetitions the last one counts."""
    operators = sorted(
        (float(e["ts"]), float(e["ts"]) + float(e["dur"]), str(e["name"]))
        for e in events
        if e.get("cat") == "cpu_op" and str(e["name"]).startswith(NAMESPACE + "::")
    )
    launches = sorted(
        (float(e["ts"]), e["args"]["correlation"])
        for e in events
        if e.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in e.get("args", {})
    )
    owner: dict[int, str] = {}
    position = 0
    for at, correlation in launches:
        while position < len(operators) and operators[position][1] < at:
            position += 1
        if position < len(operators) and operators[position][0] <= at:
            owner[correlation] = operators[position][2].split("::")[1]
    inside: dict[str, float] = {}
    outside: dict[str, float] = {}
    ran = sorted(
        (e for e in events if e.get("cat") in _DEVICE_EVENTS),
        key=lambda e: float(e["ts"]),
    )
    kernels = len(ran) // repetitions
    for e in ran[len(ran) - kernels :]:
        name = owner.get(e["args"]["correlation"])
        table, key = (outside, str(e["name"])[:80]) if name is None else (inside, name)
        table[key] = table.get(key, 0.0) + float(e["dur"]) * _MICRO
    return KernelSplit(inside, outside, kernels)


def match_operators(
    operators: list[Operator], document: Mapping[str, Any]
) -> tuple[TimedOperators, float, dict[str, Any]]:
    """Give each operator the kernels that were launched while its event was open.

    Returns the operators in issue order, the time of the kernels that no operator launched, and the
    document with the operators' events, cut down. A launch carries the correlation of its kernel;
    kernels of launches outside every operator are kept without one."""
    events: list[dict[str, Any]] = document["traceEvents"]
    opened = sorted(
        (e for e in events if e.get("cat") == "cpu_op" and e["name"].startswith(NAMESPACE + "::")),
        key=lambda e: float(e["ts"]),
    )
    opened = [e for i, e in enumerate(opened) if not i or not _within(e, opened[i - 1])]
    if len(opened) != len(operators):
        raise ValueError(f"the profile has {len(opened)} operators, the recorder {len(operators)}")
    launched = [
        e for e in events if e.get("cat") in _LAUNCHES and "correlation" in e.get("args", {})
    ]
    launches = sorted((float(e["ts"]), e["args"]["correlation"]) for e in launched)
    device: dict[int, list[dict[str, Any]]] = {}
    for e in events:
        if e.get("cat") in _DEVICE_EVENTS:
            device.setdefault(e["args"]["correlation"], []).append(e)

    timed, kept, position = [], [], 0
    for operator, e in zip(operators, opened, strict=True):
        start, end = float(e["ts"]), float(e["ts"]) + float(e["dur"])
        while position < len(launches) and launches[position][0] < start:
            position += 1
        kernels: list[dict[str, Any]] = []
        while position < len(launches) and launches[position][0] <= end:
            kernels += device.pop(launches[position][1], [])
            position += 1
        seconds = sum(float(k["dur"]) for k in kernels) * _MICRO
        timed.append((operator, seconds, len(kernels)))
        kept.append(_operator_event(e, operator))
        kept += [_device_event(kernel, operator) for kernel in kernels]
    kept += [_device_event(kernel, None) for found in device.values() for kernel in found]
    kept += [_launch_event(launch) for launch in launched]
    trace = {
        "schemaVersion": 1,
        "deviceProperties": document.get("deviceProperties", []),
        "traceEvents": sorted(kept, key=lambda e: float(e["ts"])),
    }
    return timed, sum(split_kernels(events).outside.values()), trace


def _within(inner: dict[str, Any], outer: dict[str, Any]) -> bool:
    return float(inner["ts"]) + float(inner["dur"]) <= float(outer["ts"]) + float(outer["dur"])


def _operator_event(event: dict[str, Any], operator: Operator) -> dict[str, Any]:
    """The operator's event, with what the recorder knows about it."""
    return {name: event[name] for name in ("ph", "cat", "name", "pid", "tid", "ts", "dur")} | {
        "args": {
            "operator": operator.name,
            "kind": operator.kind,
            "phase": operator.phase,
            "segment": operator.segment,
            "recompute": operator.recompute,
            "dtype": operator.dtype,
            "out_dtype": operator.out_dtype,
            "sizes": dict(operator.sizes),
        }
    }


def _device_event(event: dict[str, Any], operator: Operator | None) -> dict[str, Any]:
    """A kernel's event with the operator that launched it, its template arguments cut off."""
    arguments = {name: event["args"][name] for name in _KEPT_ARGUMENTS if name in event["args"]}
    if operator is not None:
        arguments["operator"] = operator.name
    kept = {name: event[name] for name in ("ph", "cat", "pid", "tid", "ts", "dur")}
    return kept | {"name": event["name"][:80], "args": arguments}


def _launch_event(event: dict[str, Any]) -> dict[str, Any]:
    kept = {name: event[name] for name in ("ph", "cat", "name", "pid", "tid", "ts", "dur")}
    return kept | {"args": {"correlation": event["args"]["correlation"]}}


def save_profile(trace: Mapping[str, Any], path: Path) -> None:
    """Write a Chrome trace, one event a line."""
    lines = ",\n".join(json.dumps(event, separators=(",", ":")) for event in trace["traceEvents"])
    devices = json.dumps(trace.get("deviceProperties", []), separators=(",", ":"))
    text = f'{{"schemaVersion":1,"deviceProperties":{devices},"traceEvents":[\n{lines}\n]}}\n'
    path.write_text(text, encoding="utf-8")
