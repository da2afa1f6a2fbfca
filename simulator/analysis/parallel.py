"""Run one function on many inputs in processes, any of which may die.

A worker that is killed, most often for want of memory, takes down neither the others' results nor
the run: what has no result yet runs again with half as many processes at a time, in the end one by
one, and only an input that kills its worker all by itself goes without a result. Where a dask
scheduler or all of its workers are gone, this machine does the rest.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from signal import SIG_DFL, SIG_IGN, SIGINT, signal
from typing import Any, TypeVar

from hardware_profiles.units import Seconds

ResultT = TypeVar("ResultT")

NO_WORKERS_S: Seconds = 60.0
"""Without any dask worker for so long, none is waited for."""
_GARBAGE_AT = 300_000
"""Objects that a process makes before it looks for garbage: 700 as usual cost a fifth of its time,
since all that runs share is looked through again and again."""

LOOK_S: Seconds = 0.2
"""Between looks at the workers of a dask scheduler."""


@dataclass(frozen=True, slots=True)
class Lost:
    """In the place of a result: the process that was to make it died, each time it was tried."""

    reason: str


ALONE = Lost("its process was killed, also alone: not enough memory? allowed: a smaller job")


def run_all(
    function: Callable[..., ResultT],
    inputs: Sequence[tuple[Any, ...]],
    *,
    jobs: int,
    dask: str | None = None,
) -> Iterator[tuple[int, ResultT | Lost]]:
    """Call a function with each of `inputs`; yields (position, result) as they finish.

    Args:
        function: of a module, so that other processes import it. What it raises is raised here.
        inputs: the arguments of each call.
        jobs: processes at a time, at most one per core; one is this process itself.
        dask: address of a dask scheduler whose workers make the calls as long as there are any.

    Raises:
        ValueError: no dask scheduler answers at the address.
    """
    waiting = dict(enumerate(inputs))
    if dask is not None:
        for position, result in _on_dask(function, dict(waiting), dask):
            del waiting[position]
            yield position, result
    together = min(jobs, len(os.sched_getaffinity(0)))
    if together == 1:
        for position, arguments in waiting.items():
            yield position, function(*arguments)
        return
    while waiting:
        part = list(waiting.items())[: None if together > 1 else 1]
        try:
            for position, result in _in_processes(function, part, together):
                del waiting[position]
                yield position, result
        except BrokenProcessPool:
            if together == 1:
                ((position, _),) = part
                del waiting[position]
                yield position, ALONE
            together = max(1, together // 2)
            if waiting:
                warnings.warn(
                    f"a worker process was killed; {len(waiting)} of {len(inputs)} runs go on, "
                    f"{together} at a time",
                    stacklevel=2,
                )


def run_in_order(
    function: Callable[..., ResultT], inputs: Sequence[tuple[Any, ...]], *, jobs: int
) -> Iterator[ResultT]:
    """Results of `run_all` in the order of the inputs.

    Raises ValueError, naming its first argument, for an input whose process dies.
    """
    early: dict[int, ResultT] = {}
    due = 0
    for position, result in run_all(function, inputs, jobs=jobs):
        if isinstance(result, Lost):
            raise ValueError(f"{inputs[position][0]}: {result.reason}")
        early[position] = result
        while due in early:
            yield early.pop(due)
            due += 1


def _in_processes(
    function: Callable[..., ResultT], part: Sequence[tuple[int, tuple[Any, ...]]], together: int
) -> Iterator[tuple[int, ResultT]]:
    import joblib

    # Each process is one run; threads below it would only compete.
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        # A single process would be this one.
        workers = joblib.Parallel(
            n_jobs=max(2, together), return_as="generator_unordered", batch_size=1
        )
        with _deaf_to_interrupts():
            results = workers(joblib.delayed(_call)(function, *each) for each in part)
        yield from results


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes that start in the block do not hear Ctrl-C, which would end their imports with a
    traceback; the first call that they get lets it end them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal(SIGINT, SIG_IGN)
    try:
        yield
    finally:
        signal(SIGINT, former)


def _call(
    function: Callable[..., ResultT], position: int, arguments: tuple[Any, ...]
) -> tuple[int, ResultT]:
    if threading.current_thread() is threading.main_thread():
        # Ctrl-C goes to all processes of a terminal: the first says what is kept, the others end.
        signal(SIGINT, SIG_DFL)
        gc.set_threshold(_GARBAGE_AT)
    return position, function(*arguments)


def _on_dask(
    function: Callable[..., ResultT], inputs: dict[int, tuple[Any, ...]], address: str
) -> Iterator[tuple[int, ResultT | Lost]]:
    """Results of the workers of a scheduler; fewer than `inputs` where it or they are lost."""
    try:
        from dask import distributed
    except ImportError as error:
        raise ValueError("--dask: dask is not installed; install dsv3sim[cluster]") from error
    library: dict[str, Any] = vars(distributed)  # dask has no type hints
    try:
        client = library["Client"](address, timeout="5s")
    except (OSError, ValueError) as error:
        raise ValueError(f"--dask {address}: no scheduler answers: {error}") from error
    # What it says of lost connections is said here in one line.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with client:
        calls = {
            client.submit(_call, function, position, arguments, pure=False): position
            for position, arguments in inputs.items()
        }
        last_seen = time.monotonic()
        while calls:
            done = [call for call in calls if call.done()]
            if any(call.status == "cancelled" for call in done):
                _say_lost("the dask scheduler is gone")
                return
            for call in done:
                position = calls.pop(call)
                try:
                    yield call.result()
                except library["KilledWorker"]:
                    yield position, ALONE
            if done:
                continue
            if client.scheduler_info()["workers"]:
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > NO_WORKERS_S:
                _say_lost("no dask worker is left")
                return
            time.sleep(LOOK_S)


def _say_lost(what: str) -> None:
    warnings.warn(f"{what}; this machine does the rest", stacklevel=2)
