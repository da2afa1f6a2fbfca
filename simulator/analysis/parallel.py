"""Run one function on many inputs in processes, any of which may die.

A worker that is killed, most often for want of memory, takes down neither the others' results nor
the run: what has no result yet runs again with half as many processes at a time, in the end one by
one, and only an input that kills its worker all by itself goes without a result. Where a dask
scheduler or all of its workers are gone, this machine does the rest.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from signal import SIG_DFL, SIG_IGN, SIGINT, signal
from typing import Any, TypeAlias, TypeVar

from hardware_profiles.units import Seconds

ResultT = TypeVar("ResultT")
_Calls: TypeAlias = Iterator[tuple[int, tuple[Any, ...]] | None]
"""(position, arguments) of calls; None where there is none to begin for now."""

NO_WORKERS_S: Seconds = 60.0
"""Without any dask worker for so long, none is waited for."""
_GARBAGE_AT = 300_000
"""Objects that a process makes before it looks for garbage: 700 as usual cost a fifth of its time,
since all that runs share is looked through again and again."""

AHEAD = 2
"""Calls that each process is given, so that none waits for this one between two of them."""
_WAITS_S: Seconds = 300.0
"""That a process without a call waits for one before it ends."""
_ONE_THREAD = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR")
} | {"VECLIB_MAXIMUM_THREADS": "1"}

PARENT_LOOK_S: Seconds = 1.0
"""Between looks of a process at whether the one that began it still runs."""

LOOK_S: Seconds = 0.2
"""Between looks at the workers of a dask scheduler."""


ALONE = ChildProcessError(
    "its process was killed, also alone: not enough memory? allowed: a smaller job"
)
"""In the place of a result whose process died each time it was tried."""


def processes(jobs: int) -> int:
    """Processes that make calls at a time: as many as asked for, at most one per core."""
    return min(jobs, len(os.sched_getaffinity(0)))


def begin_processes(function: Callable[..., object], *arguments: Any, jobs: int) -> None:
    """Start the processes that `run_all` takes next, with a call in each of what they all need, so
    that they have it once this one knows the first of their calls.

    Args:
        function: as of `run_all`; what it gives or raises is nobody's.
        jobs: as of `run_all`; one is no other process.
    """
    together = processes(jobs)
    if together > 1:
        pool = _pool(together)
        with _deaf_to_interrupts():
            for number in range(together):
                pool.submit(_call, function, number, arguments)


def run_all(
    function: Callable[..., ResultT],
    inputs: Iterable[tuple[Any, ...] | None],
    *,
    jobs: int,
    dask: str | None = None,
) -> Iterator[tuple[int, ResultT | ChildProcessError]]:
    """Call a function with each of `inputs`; yields (position, result) as they finish.

    Args:
        function: of a module, so that other processes import it. What it raises is raised here.
        inputs: the arguments of each call, taken when there is a process for it; None where
            nothing can be said of the next call before there is a further result.
        jobs: processes at a time, at most one per core; one is this process itself.
        dask: address of a dask scheduler whose workers make the calls as long as there are any.

    Raises:
        ValueError: no dask scheduler answers at the address.
    """
    if dask is not None:
        waiting = dict(enumerate(each for each in inputs if each is not None))
        for position, result in _on_dask(function, dict(waiting), dask):
            del waiting[position]
            yield position, result
        calls: _Calls = iter(waiting.items())
    else:
        calls = _numbered(inputs)
    together = processes(jobs)
    if together == 1:
        for call in calls:
            assert call is not None, "no result is outstanding"
            yield call[0], function(*call[1])
        return
    begun: dict[int, tuple[Any, ...]] = {}
    while True:
        # Alone, one call after the other: only the one that kills its process is lost.
        part = _begin(calls, begun) if together > 1 else itertools.islice(_begin(calls, begun), 1)
        try:
            found = False
            for position, result in _in_processes(function, part, together):
                found = True
                del begun[position]
                yield position, result
            if together > 1 or not found:
                return
        except BrokenProcessPool:
            if together == 1:
                ((position, _),) = begun.items()
                begun.clear()
                yield position, ALONE
                continue
            together = max(1, together // 2)
            warnings.warn(
                f"a worker process was killed; {len(begun)} runs begin again, {together} at a time",
                stacklevel=2,
            )
            calls = itertools.chain(tuple(begun.items()), calls)
            begun.clear()


def _numbered(inputs: Iterable[tuple[Any, ...] | None]) -> _Calls:
    position = itertools.count()
    return (None if each is None else (next(position), each) for each in inputs)


def _begin(calls: _Calls, begun: dict[int, tuple[Any, ...]]) -> _Calls:
    """The same calls, kept in `begun` from when they are taken."""
    for call in calls:
        if call is not None:
            begun[call[0]] = call[1]
        yield call


def run_in_order(
    function: Callable[..., ResultT], inputs: Sequence[tuple[Any, ...]], *, jobs: int
) -> Iterator[ResultT]:
    """Results of `run_all` in the order of the inputs.

    Raises ValueError, naming its first argument, for an input whose process dies.
    """
    early: dict[int, ResultT] = {}
    due = 0
    for position, result in run_all(function, inputs, jobs=min(jobs, max(1, len(inputs)))):
        if isinstance(result, ChildProcessError):
            raise ValueError(f"{inputs[position][0]}: {result}")
        early[position] = result
        while due in early:
            yield early.pop(due)
            due += 1


def _in_processes(
    function: Callable[..., ResultT], calls: _Calls, together: int
) -> Iterator[tuple[int, ResultT]]:
    pool = _pool(together)
    running: set[Any] = set()
    try:
        while True:
            while len(running) < AHEAD * together:
                call = next(calls, None)
                if call is None:
                    break
                with _deaf_to_interrupts():
                    running.add(pool.submit(_call, function, *call))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                yield each.result()
    finally:
        if running:
            # Broken off: nobody waits for what they do.
            pool.shutdown(wait=False, kill_workers=True)


def _pool(together: int) -> Any:  # joblib has no type hints
    from joblib.externals.loky import get_reusable_executor

    # Each process is one run; threads below it would only compete.
    return get_reusable_executor(
        max_workers=together,
        timeout=_WAITS_S,
        env=_ONE_THREAD,
        initializer=_end_with,
        initargs=(os.getpid(),),
    )


def _end_with(parent: int) -> None:
    """Let this process end once the one that began it is gone: killed, that one says so to nobody,
    and what is still running would run for no one."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
) -> Iterator[tuple[int, ResultT | ChildProcessError]]:
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
