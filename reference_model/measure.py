"""Time operators on this machine's GPU, as rows of a kernel-time table.

Each operator is warmed up and captured in a CUDA graph of several launches, which rotate among
input sets that together exceed the L2 cache; the graph is replayed and timed by CUDA events. A row
holds the median of the replays and their relative standard deviation.

The table has the columns of hardware_profiles/measurements: kind, sizes, dtype, sms, seconds,
spread, source, conditions. Rows are appended as they are measured, so a run that is stopped goes
on where it stopped.
"""

import csv
import ctypes
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import torch

from reference_model.gpu import use_kernels
from reference_model.kernels.device import count_multiprocessors
from reference_model.measured_calls import Call, build
from reference_model.trace import Operator

COLUMNS = ("kind", "sizes", "dtype", "sms", "seconds", "spread", "source", "conditions")

_L2_MULTIPLE = 3
"""Input sets rotate over at least this many times the L2 cache."""
_MOST_SETS = 6
_REPLAYS = 7
_REPLAY_SECONDS = 4e-3
"""Time one replay should take: events resolve half a microsecond, so many launches make one."""
_MOST_LAUNCHES = 50
_MILLI = 1e-3
"""torch reports elapsed time in milliseconds."""


@dataclass(frozen=True, slots=True)
class TimingRequest:
    """One operator to time, on a backend and a number of SMs."""

    operator: Operator
    kernels: str
    """Backend of the FP8 kernels, a key of reference_model.kernels.BACKENDS."""
    sms: int
    """Multiprocessors it may use."""
    partition: bool
    """Whether fewer than all are enforced on every kernel, or only asked of persistent ones."""


@dataclass(frozen=True, slots=True)
class KernelTiming:
    """One line of the table."""

    kind: str
    sizes: str
    dtype: str
    sms: int
    seconds: float
    spread: float
    source: str
    conditions: str

    def key(self) -> tuple[str, ...]:
        """What makes a measurement the same as one taken before."""
        return (self.kind, self.sizes, self.dtype, str(self.sms), self.conditions)

    def cells(self) -> tuple[str, ...]:
        """The line as text."""
        return (
            self.kind,
            self.sizes,
            self.dtype,
            str(self.sms),
            f"{self.seconds:.6g}",
            f"{self.spread:.3g}",
            self.source,
            self.conditions,
        )


def pairs_text(values: Iterable[tuple[str, object]]) -> str:
    """(name, value) pairs as text, sorted: ``k=7168;m=4096``."""
    return ";".join(f"{name}={value}" for name, value in sorted(values))


def device_source(device: torch.device) -> str:
    """Where the numbers come from: GPU, its limits, driver, versions and the date; of a CPU, which
    is no hardware that a profile describes, torch and the date."""
    if device.type == "cpu":
        return f"dsv3sim measure: CPU, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    import triton

    driver, clock, power = smi("driver_version", "clocks.max.sm", "power.limit")
    return (
        f"dsv3sim measure: {torch.cuda.get_device_name(device)}, SM clock up to {clock} MHz, "
        f"power limit {power} W, driver {driver}, torch {torch.__version__}, "
        f"triton {triton.__version__}, {time.strftime('%Y-%m-%d')}"
    )


def smi(*fields: str) -> list[str]:
    """What nvidia-smi says of the first GPU, as text."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    first = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [field.strip() for field in first[0].split(",")]


def measure(requests: Sequence[TimingRequest], *, out: Path, deadline_s: float) -> None:
    """Time every request not yet in the table at `out` and append its row; prints progress.

    Stops after deadline_s seconds; run it again to go on. The `set` condition of a row is
    "dsv3sim_" and the backend. An operator that does not fit into
    memory, or that a backend refuses, is reported with its sizes and left out."""
    device = require_hopper()
    use_kernels("mixed")
    source = device_source(device)
    known = known_keys(out)
    begun = time.monotonic()
    with append_to(out) as file:
        writer = csv.writer(file, lineterminator="\n")
        for number, request in enumerate(requests, start=1):
            if time.monotonic() - begun > deadline_s:
                print(f"stopped after {deadline_s:.0f} s; run again to go on")
                break
            label = f"[{number}/{len(requests)}] {request_label(request)}"
            try:
                row = _row(request, source=source, known=known)
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                print(f"{label}: out of memory at these sizes, left out", file=sys.stderr)
                continue
            except (ValueError, RuntimeError) as error:
                print(f"{label}: left out, {_first_line(error)}", file=sys.stderr)
                continue
            if row is None:
                continue
            writer.writerow(row.cells())
            file.flush()
            if torch.cuda.memory_reserved() > torch.cuda.mem_get_info()[1] // 2:
                torch.cuda.empty_cache()
            print(f"{label}: {_rates_text(request.operator, row.seconds)}", flush=True)


def require_hopper() -> torch.device:
    """The CUDA device, or a ValueError that says what is missing."""
    from reference_model.kernels.device import check_device

    if not torch.cuda.is_available():
        raise ValueError("measure: no CUDA device found; compute capability 9.0 or newer is needed")
    device = torch.device("cuda", torch.cuda.current_device())
    check_device(torch.empty(0, device=device))
    return device


def request_label(request: TimingRequest) -> str:
    """One line that names the measurement."""
    o = request.operator
    return f"{o.kind} {pairs_text(o.sizes)} {o.dtype} {request.kernels} {request.sms} SMs"


def _rates_text(operator: Operator, seconds: float) -> str:
    """Duration with the rates it means: operations where there are any, and bytes."""
    moved = operator.bytes_read + operator.bytes_written
    parts = [f"{seconds:.4e} s"]
    if operator.flops:
        parts.append(f"{operator.flops / seconds:.3e} FLOP/s")
    parts.append(f"{moved / seconds:.3e} B/s")
    return ", ".join(parts)


def conditions(request: TimingRequest, *, timing: str) -> str:
    """The conditions of a row."""
    o = request.operator
    values: list[tuple[str, object]] = [
        ("set", f"dsv3sim_{request.kernels}"),
        ("out_dtype", o.out_dtype),
        ("timing", timing),
        ("statistic", "median"),
        ("repeats", _REPLAYS),
    ]
    if o.accumulate:
        values.append(("accumulate", 1))
    if request.partition:
        values.append(("limit", "green_context"))
    elif request.sms < multiprocessors():
        values.append(("limit", "sm_carveout"))
    return pairs_text(values)


def multiprocessors() -> int:
    """SMs of the current GPU."""
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


def _keys(request: TimingRequest) -> set[tuple[str, ...]]:
    """Keys that the row of a request may have: rows of older tables were timed between events."""
    return {_as_row(request, 0, 0, timing, source="").key() for timing in ("graph", "events")}


def _as_row(
    request: TimingRequest, seconds: float, spread: float, timing: str, *, source: str
) -> KernelTiming:
    o = request.operator
    return KernelTiming(
        kind=o.kind,
        sizes=pairs_text(o.sizes),
        dtype=o.dtype,
        sms=request.sms,
        seconds=seconds,
        spread=spread,
        source=source,
        conditions=conditions(request, timing=timing),
    )


def _row(
    request: TimingRequest, *, source: str, known: set[tuple[str, ...]]
) -> KernelTiming | None:
    """Measure a request, or None if the table has it."""
    if _keys(request) & known:
        return None
    result = _as_row(request, *time_request(request), source=source)
    known.add(result.key())
    return result


def time_request(request: TimingRequest) -> tuple[float, float, str]:
    """(median seconds, relative standard deviation, "graph") of one request."""
    device = torch.device("cuda", torch.cuda.current_device())
    o = request.operator
    sets = input_sets(o, device)
    with limited_sms(request.sms, device=device, partition=request.partition):
        calls = [build(o, kernels=request.kernels, device=device) for _ in range(sets)]
        return time_calls(calls)


def input_sets(operator: Operator, device: torch.device) -> int:
    """Inputs of an operator that exceed the L2 cache together, so that no launch finds its own."""
    moved = operator.bytes_read + operator.bytes_written
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    return min(_MOST_SETS, max(1, math.ceil(_L2_MULTIPLE * l2 / moved)))


def time_calls(calls: Sequence[Call]) -> tuple[float, float, str]:
    """Time one launch of calls that do the same on different inputs, on the current stream."""
    for _ in range(2):
        for call in calls:
            call()
    torch.cuda.synchronize()
    rough = seconds_between_events(lambda: [call() for call in calls]) / len(calls)
    launches = max(len(calls), min(_MOST_LAUNCHES, math.ceil(_REPLAY_SECONDS / rough)))
    # Whole rounds over the input sets, so that each counts the same.
    launches = math.ceil(launches / len(calls)) * len(calls)
    graph = torch.cuda.CUDAGraph()
    with capture(graph):
        for launch in range(launches):
            calls[launch % len(calls)]()
    graph.replay()
    torch.cuda.synchronize()
    samples = [seconds_between_events(graph.replay) / launches for _ in range(_REPLAYS)]
    graph.reset()
    return statistics.median(samples), _spread(samples), "graph"


def seconds_between_events(call: Callable[[], object]) -> float:
    """Seconds between two events around the work that call enqueues."""
    start = record_event()
    call()
    end = record_event()
    end.synchronize()
    return float(start.elapsed_time(end)) * _MILLI


def record_event() -> torch.cuda.Event:
    """An event that tells the time, recorded on the current stream."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _spread(samples: Sequence[float]) -> float:
    """Standard deviation over mean."""
    return statistics.pstdev(samples) / statistics.mean(samples)


@contextmanager
def capture(
    graph: torch.cuda.CUDAGraph, like: torch.cuda.CUDAGraph | None = None
) -> Iterator[None]:
    """Capture what is launched inside, on the current stream or, as the default stream cannot be
    captured, on another one.

    like: a graph whose memory it shares, by default none's; only one of them may run at a time, and
    what one leaves there the other overwrites."""
    stream = torch.cuda.current_stream()
    if stream == torch.cuda.default_stream():
        stream = _capture_stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        pool = None if like is None else like.pool()
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            yield
        finally:
            graph.capture_end()


@cache
def _capture_stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


@contextmanager
def limited_sms(sms: int, *, device: torch.device, partition: bool) -> Iterator[None]:
    """Run what is launched inside on `sms` multiprocessors.

    torch's SM carveout makes persistent kernels (cuBLAS, the Triton GEMMs) launch as many programs
    as they have multiprocessors. With partition, all kernels go to a stream of a CUDA green context
    and run on these multiprocessors only; the driver grants some numbers and refuses others."""
    every = torch.cuda.get_device_properties(device).multi_processor_count
    if not 1 <= sms <= every:
        raise ValueError(f"sms = {sms}: allowed 1 to {every}")
    if sms == every:
        yield
        return
    torch._C._set_sm_carveout_experimental(every - sms)
    try:
        if partition:
            with torch.cuda.stream(_partition(sms, device.index)):
                yield
        else:
            yield
    finally:
        torch._C._set_sm_carveout_experimental(None)


@cache
def _partition(sms: int, device_index: int) -> torch.cuda.Stream:
    """A stream whose kernels run on `sms` multiprocessors: of a green context, one a process."""
    from torch.cuda.green_contexts import GreenContext

    context: Any = GreenContext.create(num_sms=sms, device_id=device_index)
    _contexts.append(context)
    context.set_context()
    try:
        # torch takes its streams from a pool of the first context; the driver makes one here.
        handle = ctypes.c_void_p()
        status = ctypes.CDLL("libcuda.so.1").cuStreamCreate(ctypes.byref(handle), 1)
    finally:
        context.pop_context()
    if status or handle.value is None:
        raise ValueError(f"sms = {sms}: the driver refuses a stream there, error {status}")
    stream = torch.cuda.ExternalStream(handle.value)  # type: ignore[no-untyped-call]
    granted = count_multiprocessors(stream)
    if granted != sms:
        raise ValueError(f"sms = {sms}: the driver grants {granted}")
    return stream


_contexts: list[Any] = []
"""Green contexts live as long as the process: their streams must not outlive them."""


# -- the table -------------------------------------------------------------------------------------


def seconds_by_request(path: Path, requests: Iterable[TimingRequest]) -> dict[TimingRequest, float]:
    """Times that the table at path has for each request; not a number for one that was left out."""
    with path.open(encoding="utf-8", newline="") as file:
        seconds = {_key_of(line): float(line["seconds"]) for line in _read(file, path)}
    missing = float("nan")
    return {
        request: next((seconds[key] for key in _keys(request) if key in seconds), missing)
        for request in requests
    }


def known_keys(path: Path) -> set[tuple[str, ...]]:
    """Keys of the rows that the table at path holds."""
    if not path.exists():
        return set()
    with path.open(encoding="utf-8", newline="") as file:
        return {_key_of(line) for line in _read(file, path)}


def known_conditions(path: Path) -> list[dict[str, str]]:
    """The conditions of each row that the table at path holds."""
    return [
        dict(pair.split("=", 1) for pair in key[-1].split(";")) for key in sorted(known_keys(path))
    ]


def append_rows(rows: Iterable[KernelTiming], path: Path) -> None:
    """Add rows to the table at path, with its header where it is new."""
    with append_to(path) as file:
        csv.writer(file, lineterminator="\n").writerows(row.cells() for row in rows)


def _read(file: TextIO, path: Path) -> Iterator[dict[str, str]]:
    """Lines of the open table, which must have its columns."""
    reader = csv.DictReader(file)
    if reader.fieldnames is None or tuple(reader.fieldnames) != COLUMNS:
        raise ValueError(f"{path}: columns are {reader.fieldnames}, allowed: {list(COLUMNS)}")
    yield from reader


def _key_of(line: dict[str, str]) -> tuple[str, ...]:
    """Row.key of a line."""
    return tuple(line[name] for name in ("kind", "sizes", "dtype", "sms", "conditions"))


def write_rows(rows: Sequence[KernelTiming], path: Path) -> None:
    """Write a new table."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(row.cells() for row in rows)


def forget(requests: Iterable[TimingRequest], *, out: Path) -> int:
    """Drop the rows of requests from the table at `out`, if there is one; returns how many.

    For kernels that changed: `measure` then times them anew, and no table mixes two versions."""
    if not out.exists():
        return 0
    unwanted = set[tuple[str, ...]]().union(*(_keys(request) for request in requests))
    with out.open(encoding="utf-8", newline="") as file:
        lines = list(_read(file, out))
    kept = [line for line in lines if _key_of(line) not in unwanted]
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
    return len(lines) - len(kept)


def append_to(path: Path) -> TextIO:
    """The table open for appending, with its header."""
    new = not path.exists()
    file = path.open("a", encoding="utf-8", newline="")
    if new:
        csv.writer(file, lineterminator="\n").writerow(COLUMNS)
    return file


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
