"""Read the kernels and host calls of a Kineto profile (Chrome trace format, plain or gzipped).

PyTorch's profiler writes one event for each GPU kernel, CUDA call and host operator, with times in
microseconds and a correlation id that joins a kernel to the call that launched it. Times leave
here in seconds, host times counted from the first event of the file.

Nothing is dropped in silence: what cannot be used is a Problem that names the events, and a file
that is no trace at all is one ValueError.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hardware_profiles.units import Seconds, unit_factor
from reference_model.formats import BITS
from reference_model.trace import KINDS, Operator
from simulator.workload.profile.json_stream import read_pieces
from simulator.workload.profile.recording import (
    CALL_CATEGORIES,
    KERNEL_CATEGORIES,
    SPAN_CATEGORIES,
    HostCall,
    HostInput,
    HostSpan,
    Kernel,
    Problem,
    SmLimits,
    StreamWait,
    Trace,
)

_CATEGORIES = frozenset({*KERNEL_CATEGORIES, *CALL_CATEGORIES, *SPAN_CATEGORIES, "cuda_sync"})


def read_kineto(path: str | Path) -> Trace:
    """Read a trace.

    Raises ValueError, one line, where the file cannot be read, is cut short, is not JSON, holds no
    GPU kernel or kernels of several GPUs. Events that cannot be used are counted in `problems`.
    """
    where = str(path)
    found = _Events()
    devices: object = None
    first: dict[bool, float] = {}
    count = 0
    for name, piece in read_pieces(Path(path), where, of=_EVENTS):
        if name != _EVENTS:
            if name == _DEVICES:
                devices = piece
            continue
        flaw = _flaw(piece)
        if flaw:
            lost = isinstance(piece, dict) and piece["cat"] in KERNEL_CATEGORIES
            found.problem(flaw, count, loses_kernel=lost)
        elif flaw is not None:
            on_gpu = piece["cat"] in KERNEL_CATEGORIES
            first[on_gpu] = min(piece["ts"], first.get(on_gpu, math.inf))
        count += 1
    # Times count from the first event of the host, which may stand anywhere: hence a second time.
    origin = first.get(False, first.get(True, 0))
    events = (
        piece for name, piece in read_pieces(Path(path), where, of=_EVENTS) if name == _EVENTS
    )
    for index, event in enumerate(events):
        if _flaw(event) == "":
            found.add(index, event, origin)
    return _collect(devices, found, count, origin, where)


_EVENTS, _DEVICES = "traceEvents", "deviceProperties"
"""Fields of a profile: its events, and the GPUs that it was recorded on."""


def _flaw(event: object) -> str | None:
    """What keeps an event from being used, empty for nothing; None for one of no interest."""
    if not isinstance(event, dict):
        return "event that is not an object"
    category = event.get("cat")
    if event.get("ph") != "X" or not isinstance(category, str) or category not in _CATEGORIES:
        return None
    broken = _broken_time(event)
    return f"{category} {broken}" if broken else ""


class _Events:
    """What a file's events turn into, while they are read."""

    def __init__(self) -> None:
        self.kernels: list[tuple[float, int, Kernel]] = []
        """(start as recorded, position in the file, kernel)"""
        self.calls: list[HostCall] = []
        self.spans: list[HostSpan] = []
        self.waits: list[StreamWait] = []
        self.inputs: dict[tuple[HostInput, ...], tuple[HostInput, ...]] = {}
        """{inputs of a host operator: the same}, so that equal ones are kept once."""
        self.devices: dict[int, int] = {}
        """{GPU: kernels}"""
        self.found: dict[tuple[str, bool], list[int]] = {}

    def problem(self, what: str, event: int, *, loses_kernel: bool = False) -> None:
        self.found.setdefault((what, loses_kernel), []).append(event)

    @property
    def problems(self) -> tuple[Problem, ...]:
        return tuple(Problem(what, tuple(at), lost) for (what, lost), at in self.found.items())

    def add(self, index: int, event: dict[str, Any], origin: float) -> None:
        raw = event.get("args")
        args: Mapping[str, Any] = raw if isinstance(raw, dict) else {}
        category, second = event["cat"], unit_factor("us", "time")
        start, seconds = (event["ts"] - origin) * second, event["dur"] * second
        # A few names stand in millions of events: each is kept once.
        name = sys.intern(str(event.get("name", "")))
        thread = sys.intern(str(event.get("tid", "")))
        if category in KERNEL_CATEGORIES:
            kernel = _kernel(name, sys.intern(category), seconds, args, index)
            if kernel is None:
                self.problem(f"{category} without a stream", index, loses_kernel=True)
                return
            self.kernels.append((event["ts"], index, kernel))
            device = _integer(args.get("device")) or 0
            self.devices[device] = self.devices.get(device, 0) + 1
        elif category in CALL_CATEGORIES:
            correlation = _integer(args.get("correlation"))
            self.calls.append(HostCall(name, thread, start, seconds, correlation, index))
        elif category in SPAN_CATEGORIES:
            inputs = _inputs(args)
            self.spans.append(
                HostSpan(
                    name,
                    sys.intern(category),
                    thread,
                    start,
                    start + seconds,
                    self.inputs.setdefault(inputs, inputs),
                    _operator(args),
                    _integer(args.get("External id")),
                )
            )
        else:
            wait = _stream_wait(args)
            if wait is not None:
                self.waits.append(wait)

    def check_correlations(self) -> None:
        """A kernel belongs to the one call with its correlation id, and to no other."""
        launches: dict[int, HostCall] = {}
        for call in self.calls:
            if call.correlation in launches:
                what = "call with the correlation id of an earlier call"
                self.problem(what, call.event, loses_kernel=True)
            elif call.correlation is not None:
                launches[call.correlation] = call
        taken: set[int] = set()
        for *_, kernel in self.kernels:
            if kernel.correlation is None or kernel.correlation not in launches:
                self.problem("kernel without the call that launched it", kernel.event)
                continue
            # One graph launch starts many kernels; any other call starts one.
            if kernel.correlation in taken and "Graph" not in launches[kernel.correlation].name:
                what = "kernel with the correlation id of an earlier kernel"
                self.problem(what, kernel.event, loses_kernel=True)
            taken.add(kernel.correlation)


def _collect(devices: object, found: _Events, count: int, origin: float, where: str) -> Trace:
    if not found.kernels:
        why = "; ".join(str(problem) for problem in found.problems)
        raise ValueError(f"{where}: no GPU kernel in {count} events{why and ': ' + why}")
    if len(found.devices) > 1:
        counts = ", ".join(f"device {key}: {found.devices[key]}" for key in sorted(found.devices))
        raise ValueError(f"{where}: kernels of several GPUs ({counts}); give a trace of one GPU")
    found.kernels.sort(key=lambda item: item[:2])
    found.calls.sort(key=lambda call: (call.start_s, call.event))
    found.spans.sort(key=lambda span: (span.start_s, -span.end_s))
    found.check_correlations()
    first, second = found.kernels[0][0], unit_factor("us", "time")
    names, sms, limits = _devices(devices)
    return Trace(
        path=where,
        devices=names,
        sms=sms,
        sm_limits=limits,
        kernels=tuple(kernel for *_, kernel in found.kernels),
        kernel_start_s=np.array([(start - first) * second for start, *_ in found.kernels]),
        first_kernel_s=(first - origin) * second,
        calls=tuple(found.calls),
        spans=tuple(found.spans),
        stream_waits=tuple(found.waits),
        problems=found.problems,
    )


def _kernel(
    name: str, category: str, seconds: Seconds, args: Mapping[str, Any], index: int
) -> Kernel | None:
    stream = _integer(args.get("stream"))
    if stream is None:
        return None
    return Kernel(
        name=name,
        category=category,
        stream=stream,
        seconds=seconds,
        correlation=_integer(args.get("correlation")),
        grid=_grid(args.get("grid")),
        threads=math.prod(_grid(args.get("block"))),
        registers=max(0, _integer(args.get("registers per thread")) or 0),
        shared_memory=max(0, _integer(args.get("shared memory")) or 0),
        moved=float(max(0, _integer(args.get("bytes")) or 0)),
        event=index,
        operator=str(args.get("operator", "")),
        external=_integer(args.get("External id")),
    )


def _operator(args: Mapping[str, Any]) -> Operator | None:
    """The operator that an event describes in full; None for any other event."""
    kind, sizes = args.get("kind"), args.get("sizes")
    if not isinstance(kind, str) or not isinstance(sizes, dict):
        return None
    if kind not in KINDS or set(sizes) != set(KINDS[kind].sizes):
        return None
    counts = {str(name): _integer(size) for name, size in sizes.items()}
    texts = [args.get(key) for key in ("operator", "dtype", "out_dtype")]
    if not all(isinstance(text, str) for text in texts) or not set(texts[1:]) <= set(BITS):
        return None
    known = {name: count for name, count in counts.items() if count is not None and count >= 0}
    if len(known) < len(counts):
        return None
    name, dtype, out_dtype = map(str, texts)
    phase = str(args.get("phase", "forward"))
    # A weight gradient is added to those of earlier micro-batches, in FP32.
    adds = phase == "weight_grad" and out_dtype == "float32"
    return Operator(
        name=name,
        kind=kind,
        phase=phase,
        segment=str(args.get("segment", "")),
        dtype=dtype,
        out_dtype=out_dtype,
        sizes=tuple(sorted(known.items())),
        recompute=bool(args.get("recompute", False)),
        accumulate=bool(args.get("accumulate", adds)),
    )


def _broken_time(event: Mapping[str, Any]) -> str:
    """What is wrong with the event's start and duration; empty where nothing is."""
    for field in ("ts", "dur"):
        value = event.get(field)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"whose {field!r} is not a number"
        if not abs(value) < _LARGEST_TIME:
            return f"whose {field!r} is not a time"
    return "with a negative duration" if event["dur"] < 0 else ""


_LARGEST_TIME = 2.0**63
"""Beyond this, in any unit that profilers write, is no time; NaN fails the comparison too."""


_LARGEST_COUNT = 2**63
"""Profilers count in 64 bits; beyond this a number is no count."""


def _devices(properties: object) -> tuple[tuple[str, ...], int | None, SmLimits | None]:
    """Names of the described GPUs; SM count and room of an SM where all of them agree."""
    described = (
        [d for d in properties if isinstance(d, dict)] if isinstance(properties, list) else []
    )
    names = tuple(dict.fromkeys(str(d["name"]) for d in described if "name" in d))

    def agreed(key: str) -> int | None:
        values = {_integer(d.get(key)) for d in described}
        value = values.pop() if len(values) == 1 else None
        return value if value and value > 0 else None

    threads, registers, shared = (
        agreed(key)
        for key in (
            "maxThreadsPerMultiprocessor",
            "regsPerMultiprocessor",
            "sharedMemPerMultiprocessor",
        )
    )
    known = threads is not None and registers is not None and shared is not None
    limits = SmLimits(threads or 0, registers or 0, shared or 0) if known else None
    return names, agreed("numSms"), limits


def _stream_wait(args: Mapping[str, Any]) -> StreamWait | None:
    keys = ("correlation", "stream", "wait_on_stream", "wait_on_cuda_event_record_corr_id")
    found = [_integer(args.get(key)) for key in keys]
    if any(value is None or value < 0 for value in found):
        return None
    correlation, stream, waits_on, record = (int(value or 0) for value in found)
    return StreamWait(correlation, stream, waits_on, record)


def _integer(value: object) -> int | None:
    """A count, or None for anything that cannot be one; NaN fails the comparison too."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if abs(value) < _LARGEST_COUNT else None


def _grid(value: object) -> tuple[int, int, int]:
    if isinstance(value, list) and len(value) == 3:
        x, y, z = (_integer(part) for part in value)
        if x is not None and y is not None and z is not None:
            return x, y, z
    return 0, 0, 0


def _inputs(args: Mapping[str, Any]) -> tuple[HostInput, ...]:
    """The recorded inputs of a host operator."""
    shapes = args.get("Input Dims", args.get("Input dims"))
    if not isinstance(shapes, list):
        return ()
    types = args.get("Input type")
    names = [str(name) for name in types] if isinstance(types, list) else []
    names += [""] * (len(shapes) - len(names))
    return tuple(
        HostInput(name, tuple(map(_shape, shape)) if _is_list(shape) else (_shape(shape),))
        for name, shape in zip(names, shapes, strict=False)
    )


def _is_list(shape: object) -> bool:
    """Whether a recorded shape is that of a list of tensors: a list of shapes."""
    return isinstance(shape, list) and any(isinstance(part, list) for part in shape)


def _shape(shape: object) -> tuple[int, ...]:
    parts = shape if isinstance(shape, list) else []
    return tuple(extent for part in parts if (extent := _integer(part)) is not None)
