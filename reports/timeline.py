"""The trace of a training step, and what graphs of tasks have in common in a trace.

One process per pipeline rank, its actions as slices, with arrows for what ranks send each other and
a counter of memory; one process per distinct chunk or pair, with a compute and a communication
track on which each block (such as attn(F)) holds its operators, arrows where one stream waits for
the other, and counters of SMs, HBM and NVLink or NIC use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np

from hardware_profiles.units import Seconds
from reference_model.pipeline_actions import FORWARD_WORK
from reports.perfetto import (
    Event,
    arrow,
    counter,
    name_process,
    name_thread,
    slice_of,
    within,
)
from reports.tables import RunTables, blocks
from simulator.execution.timeline import Log
from simulator.execution.training import TrainingRun
from simulator.workload.task_graph import Stream

STREAMS = tuple(stream.value for stream in Stream)


def trace_events(tables: RunTables) -> Iterator[dict[str, Any]]:
    """Names first, then slices in order of start on every track."""
    ranks = len(tables.stages)
    for rank, stages in enumerate(tables.stages):
        yield from name_process(rank + 1, f"pipeline rank {rank} (stages {stages})")
        yield from name_thread((rank + 1, 0), "actions")
    columns = ["rank", "label", "work", "chunk", "start_s", "end_s"]
    for rank, label, work, chunk, start, end in _rows(tables.actions, columns):
        arguments = {"work": work, "chunk": chunk} if chunk else {"work": work}
        yield slice_of((rank + 1, 0), label, (start, end), arguments)
    chunks = list(dict.fromkeys(tables.operators["chunk"]))
    for process, chunk in enumerate(chunks, start=ranks + 1):
        mark = " (as in the published profile)" if chunk == tables.pair else ""
        yield from name_process(process, f"chunk {chunk}{mark}")
        for thread, stream in enumerate(STREAMS):
            yield from name_thread((process, thread), stream)
    process_of = {chunk: ranks + 1 + number for number, chunk in enumerate(chunks)}
    # A block comes before its operators, so that slices with one start nest as they should.
    for chunk, stream, layer, block, start, end in _rows(
        blocks(tables.operators), ["chunk", "stream", "layer", "block", "start_s", "end_s"]
    ):
        track = (process_of[chunk], STREAMS.index(stream))
        yield slice_of(track, block, (start, end), {"layer": layer})
    columns = ["chunk", "stream", "name", "start_s", "end_s"]
    details = ["kind", "dtype", "sizes", "provenance", "low_s", "high_s", "flops", "bytes"]
    for row in _rows(tables.operators, columns + details):
        chunk, stream, name, start, end = row[:5]
        track = (process_of[chunk], STREAMS.index(stream))
        yield slice_of(track, name, (start, end), dict(zip(details, row[5:], strict=True)))


def training_links(run: TrainingRun) -> Iterator[Event]:
    """What ranks and streams wait for, as arrows, and what a GPU holds and uses, as counters."""
    numbers = count(1)
    yield from _sends(run, numbers)
    yield from _memory(run)
    chunks = {str(key): chunk for key, chunk in run.step.chunks.items()}
    chunks.setdefault(str(run.step.pair.key), run.step.pair)
    for process, chunk in enumerate(chunks.values(), start=run.schedule.ranks + 1):
        yield from waits_of(chunk.log, process, numbers)
        yield from uses_of(chunk.log, process, sms=run.job.communication_sms)


def _sends(run: TrainingRun, numbers: Iterator[int]) -> Iterator[Event]:
    """An arrow for every chunk of activations or gradients that another rank waits for."""
    pipeline = run.step.pipeline
    first = np.concatenate([[0], np.cumsum([len(row) for row in run.schedule.actions])])
    starts, ends = pipeline.start_s.tolist(), pipeline.end_s.tolist()
    for rank, actions in enumerate(run.schedule.needs):
        for index, needs in enumerate(actions):
            at = starts[first[rank] + index]
            for need in needs:
                if need.rank == rank:
                    continue
                made = first[need.rank] + need.position
                name = "activations" if need.work == FORWARD_WORK else "gradients"
                source = within((starts[made], ends[made]), (need.rank + 1, 0))
                yield from arrow(next(numbers), f"send {name}", source, ((rank + 1, 0), at))


def _memory(run: TrainingRun) -> Iterator[Event]:
    """What a GPU of each rank holds while each of its actions runs."""
    pipeline, place = run.step.pipeline, 0
    starts = pipeline.start_s.tolist()
    for rank, (memory, kept) in enumerate(zip(run.memory, run.activations, strict=True)):
        rest = memory.total - (memory.activations or 0.0)
        for held in kept.tolist():
            yield counter(rank + 1, "memory (bytes)", starts[place],
                          {"activations": held, "all else": rest})  # fmt: skip
            place += 1


def waits_of(log: Log, process: int, numbers: Iterator[int]) -> Iterator[Event]:
    """An arrow wherever a task waits for one of the other stream."""
    tasks = log.graph.tasks
    starts, ends = log.start_s.tolist(), log.end_s.tolist()
    for place, task in enumerate(tasks):
        for other in task.depends_on:
            if tasks[other].stream is not task.stream:
                source = (process, STREAMS.index(tasks[other].stream.value))
                target = (process, STREAMS.index(task.stream.value))
                yield from arrow(next(numbers), "waits for", within((starts[other], ends[other]),
                                 source), (target, starts[place]))  # fmt: skip


def uses_of(log: Log, process: int, *, sms: int) -> Iterator[Event]:
    """What the two streams use: bytes per second of HBM by the compute stream, of links by the
    other, and the SMs that communication keeps.

    Args:
        sms: SMs of the kernels of dispatch and combine.
    """
    operators = log.graph.task_operators()
    names: Mapping[Stream, str] = {
        Stream.COMPUTE: "HBM of compute kernels (bytes/s)",
        Stream.COMMUNICATION: "payload of transfers (bytes/s)",
    }
    free: dict[Stream, Seconds] = {}
    for task, operator, start, end in zip(
        log.graph.tasks, operators, log.start_s.tolist(), log.end_s.tolist(), strict=True
    ):
        if end <= start:
            continue
        name, moved = names[task.stream], operator.bytes_read + operator.bytes_written
        if task.stream is Stream.COMMUNICATION:
            moved = operator.bytes_read
        if free.get(task.stream, start) < start:
            yield counter(process, name, free[task.stream], {"bytes/s": 0.0})
        yield counter(process, name, start, {"bytes/s": moved / (end - start)})
        free[task.stream] = end
        if task.stream is Stream.COMMUNICATION and sms:
            yield counter(process, "SMs of communication (SMs)", start, {"SMs": sms})
            yield counter(process, "SMs of communication (SMs)", end, {"SMs": 0.0})
    for stream, end in free.items():
        yield counter(process, names[stream], end, {"bytes/s": 0.0})


def _rows(frame: Any, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Rows of a frame as plain Python values."""
    return zip(*(frame[column].tolist() for column in columns), strict=True)
