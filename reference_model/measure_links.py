"""Time transfers between the GPUs of one host, by size: a table path in, rows of times out.

    peer_copy    one GPU's copy engine writes `bytes` into the next one's memory
    send         the same through NCCL's send and receive kernels
    all_to_all   NCCL: every GPU sends `bytes` / ranks to each, itself included

Each time is the median of repeats between CUDA events around several transfers; for NCCL it is that
of rank 0. The table has the columns of hardware_profiles/measurements; kinds are those above.
"""

import csv
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from reference_model.measure import Row, device_source, pairs, seconds_between_events, write_rows

_SIZES = tuple(2**power for power in range(10, 31))
_REPEATS = 7
_BUSY_BYTES = 2**28
"""Bytes that one repeat moves at least, in at most _MOST_TRANSFERS transfers."""
_MOST_TRANSFERS = 50


def measure_links(out: Path) -> None:
    """Time all transfers between the GPUs at hand and write the table; ValueError if there is one.

    Needs NCCL. Prints every row."""
    ranks = torch.cuda.device_count()
    if ranks < 2:
        raise ValueError(f"links: {ranks} CUDA devices found, at least 2 are needed")
    rows = [_row("peer_copy", size, ranks, *_peer_copy(size)) for size in _SIZES]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        spawn(  # type: ignore[no-untyped-call]
            _rank, args=(ranks, str(path), str(Path(folder) / "store")), nprocs=ranks
        )
        with path.open(encoding="utf-8", newline="") as file:
            for kind, size, seconds, spread in csv.reader(file):
                rows.append(_row(kind, int(size), ranks, float(seconds), float(spread)))
    write_rows(rows, out)
    for row in rows:
        print(f"{row.kind} {row.sizes}: {row.seconds:.4e} s")


def _row(kind: str, size: int, ranks: int, seconds: float, spread: float) -> Row:
    conditions = [
        ("set", "dsv3sim_links"),
        ("statistic", "median"),
        ("repeats", _REPEATS),
        ("timing", "events"),
    ]
    return Row(
        kind=kind,
        sizes=pairs([("bytes", size), ("ranks", 2 if kind == "peer_copy" else ranks)]),
        dtype="bfloat16",
        sms=torch.cuda.get_device_properties(0).multi_processor_count,
        seconds=seconds,
        spread=spread,
        source=device_source(torch.device("cuda", 0)),
        conditions=pairs(conditions),
    )


def _peer_copy(size: int) -> tuple[float, float]:
    """From GPU 0 to GPU 1."""
    source = torch.randn(size // 2, device="cuda:0").to(torch.bfloat16)
    target = torch.empty_like(source, device="cuda:1")
    return _time(lambda: target.copy_(source), size)


def _rank(rank: int, ranks: int, out: str, store: str) -> None:
    """One process a GPU: times NCCL's transfers; rank 0 writes them down."""
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"file://{store}", rank=rank, world_size=ranks)
    lines = []
    for size in _SIZES:
        x = torch.randn(size // 2, device="cuda").to(torch.bfloat16)
        y = torch.empty_like(x)
        for kind, transfer in (("send", _send), ("all_to_all", _all_to_all)):
            lines.append((kind, size, *_time(transfer(x, y, rank, ranks), size)))
    dist.destroy_process_group()
    if rank == 0:
        with Path(out).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(lines)


def _send(x: torch.Tensor, y: torch.Tensor, rank: int, ranks: int) -> Callable[[], object]:
    """Rank 0 sends x to rank 1; the others wait at the next transfer."""

    def transfer() -> None:
        if rank == 0:
            dist.send(x, 1)
        elif rank == 1:
            dist.recv(y, 0)

    return transfer


def _all_to_all(x: torch.Tensor, y: torch.Tensor, rank: int, ranks: int) -> Callable[[], object]:
    return lambda: dist.all_to_all_single(y, x)


def _time(transfer: Callable[[], object], size: int) -> tuple[float, float]:
    """(median seconds, relative standard deviation) of one transfer."""
    transfers = max(4, min(_MOST_TRANSFERS, _BUSY_BYTES // size))

    def burst() -> None:
        for _ in range(transfers):
            transfer()

    burst()
    torch.cuda.synchronize()
    samples = [seconds_between_events(burst) / transfers for _ in range(_REPEATS)]
    return statistics.median(samples), statistics.pstdev(samples) / statistics.mean(samples)
