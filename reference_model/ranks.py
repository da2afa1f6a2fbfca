"""Run a function on several processes, and collect each rank's result.

Every rank is a process with a torch.distributed process group over all of them: gloo on CPUs, NCCL
on GPUs, one GPU a rank.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.multiprocessing.spawn import start_processes

_T = TypeVar("_T")

BACKENDS = {"gloo": "cpu", "nccl": "cuda"}
"""Backend of a process group -> type of the devices whose tensors it moves."""


def rank_device(backend: str) -> torch.device:
    """The type of device that ranks over this backend compute on."""
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of {list(BACKENDS)}")
    return torch.device(BACKENDS[backend])


def run_ranks(
    function: Callable[..., _T],
    arguments: tuple[Any, ...],
    *,
    ranks: int,
    backend: str,
    timeout_s: float,
) -> list[_T]:
    """Call function(rank, ranks, *arguments) in `ranks` processes; returns their results, by rank.

    The function has to be importable, its results are tensors and plain containers of them. Raises
    ValueError where the backend is not there for so many ranks, TimeoutError where a rank has not
    finished in time, torch's ProcessException where one failed; no process is left behind."""
    rank_device(backend)
    if ranks < 1:
        raise ValueError(f"ranks = {ranks} must be at least 1")
    if backend == "nccl" and torch.cuda.device_count() < ranks:
        raise ValueError(f"ranks = {ranks} need as many GPUs; here: {torch.cuda.device_count()}")
    # A server that has torch loaded forks the ranks: quicker than to start each one anew, and safe,
    # as it never runs an operator itself. CUDA does not survive a fork that follows its use.
    multiprocessing.set_forkserver_preload(["torch"])
    with tempfile.TemporaryDirectory() as folder:
        context = start_processes(  # type: ignore[no-untyped-call]
            _rank,
            (ranks, folder, backend, timeout_s, function, arguments),
            nprocs=ranks,
            join=False,
            start_method="forkserver",
        )
        assert context is not None
        end = time.monotonic() + timeout_s
        try:
            while not context.join(timeout=max(end - time.monotonic(), 0.0)):
                if time.monotonic() >= end:
                    raise TimeoutError(f"{ranks} ranks have not finished in {timeout_s} s")
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
                    process.join()
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(ranks)]


def _rank(
    rank: int,
    ranks: int,
    folder: str,
    backend: str,
    timeout_s: float,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if backend == "nccl" else None
    if device is not None:
        torch.cuda.set_device(device)
    distributed.init_process_group(
        backend,
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=timeout_s),
        device_id=device,
    )
    if device is None:
        # Over gloo a rank that is done at once would close connections that others still open.
        distributed.barrier()
    # A rank that fails leaves at once: to destroy the group it would wait for ranks that wait for
    # it, and its error would never be seen.
    torch.save(function(rank, ranks, *arguments), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()
