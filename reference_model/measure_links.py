"""Time transfers between the GPUs of one host, by message size.

    peer_copy       one GPU's copy engine writes `bytes` into the next one's memory
    send            the same through NCCL's send and receive kernels
    send_receive    NCCL: every GPU sends `bytes` to the next one and receives as many
    all_to_all      NCCL: every GPU sends `bytes` / ranks to each, itself included
    all_gather      NCCL: every GPU ends with `bytes`, of which it had `bytes` / ranks
    reduce_scatter  NCCL: every GPU has `bytes` and ends with the sums of `bytes` / ranks of them
    all_reduce      NCCL: every GPU has `bytes` and ends with the sums of all

`bytes` is the larger of what one GPU sends from and receives into, which is what nccl-tests call
the size. Each time is the median of repeats between CUDA events around several transfers; for NCCL
it is that of rank 0. Transfers are launched one by one, and as they come (`launch=eager`), or while
the GPUs are held back by a kernel that only waits (`launch=queued`), so that the time of small ones
is not that of the host. The table has the columns of hardware_profiles/measurements; kinds are
those above.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from reference_model.measure import (
    KernelTiming,
    append_rows,
    device_source,
    known_keys,
    pairs_text,
    write_rows,
)
from reference_model.moments import moment, seconds_between, wait_for_device
from reference_model.ranks import rank_device, run_ranks

EAGER, QUEUED = "eager", "queued"

_SIZES = tuple(2**power for power in range(10, 31))
_REPEATS = 7
_BUSY_BYTES = 2**28
"""Bytes that one repeat moves at least, in at most _MOST_TRANSFERS transfers."""
_MOST_TRANSFERS = 50
_SLEEP_CYCLES = 16_000_000
"""Of the GPU's clock, about 8 ms: longer than the host takes to launch _MOST_TRANSFERS."""
_TIMEOUT_S = 600.0


class TimedTransfer(NamedTuple):
    """One transfer to time."""

    kind: str
    """Key of `COLLECTIVES`."""
    size: int
    """Bytes."""
    launch: str
    """EAGER or QUEUED."""


def _send(x: Tensor, y: Tensor, rank: int, ranks: int) -> Callable[[], object]:
    """Rank 0 sends x to rank 1; the others wait at the next transfer."""

    def transfer() -> None:
        if rank == 0:
            dist.send(x, 1)
        elif rank == 1:
            dist.recv(y, 0)

    return transfer


def _send_receive(x: Tensor, y: Tensor, rank: int, ranks: int) -> Callable[[], object]:
    def transfer() -> None:
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, x, (rank + 1) % ranks),
                dist.P2POp(dist.irecv, y, (rank - 1) % ranks),
            ]
        )
        for work in works:
            work.wait()

    return transfer


def _all_to_all(x: Tensor, y: Tensor, rank: int, ranks: int) -> Callable[[], object]:
    return lambda: dist.all_to_all_single(y, x)


def _all_gather(x: Tensor, y: Tensor, rank: int, ranks: int) -> Callable[[], object]:
    return lambda: dist.all_gather_into_tensor(y, x[: x.numel() // ranks])


def _reduce_scatter(x: Tensor, y: Tensor, rank: int, ranks: int) -> Callable[[], object]:
    return lambda: dist.reduce_scatter_tensor(y[: y.numel() // ranks], x)


def _all_reduce(x: Tensor, y: Tensor, rank: int, ranks: int) -> Callable[[], object]:
    return lambda: dist.all_reduce(x)


COLLECTIVES: dict[str, Callable[[Tensor, Tensor, int, int], Callable[[], object]]] = {
    "all_to_all": _all_to_all,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "all_reduce": _all_reduce,
    "send_receive": _send_receive,
    "send": _send,
}
"""What makes each kind's call, of a buffer to send from, one to receive into, rank and ranks."""


def measure_links(out: Path) -> None:
    """Time copies, sends and all-to-all between all GPUs at hand and write the table; ValueError if
    there is one.

    Needs NCCL. Prints every row."""
    ranks = torch.cuda.device_count()
    if ranks < 2:
        raise ValueError(f"links: {ranks} CUDA devices found, at least 2 are needed")
    transfers = [
        TimedTransfer(kind, size, EAGER) for size in _SIZES for kind in ("send", "all_to_all")
    ]
    device = torch.device("cuda", 0)
    sms = torch.cuda.get_device_properties(device).multi_processor_count
    source = device_source(device)
    rows = [
        _row(TimedTransfer("peer_copy", size, EAGER), 2, sms, source, *_peer_copy(size))
        for size in _SIZES
    ]
    write_rows(rows, out)
    for row in rows:
        print(f"{row.kind} {row.sizes}: {row.seconds:.4e} s")
    time_between_ranks(transfers, ranks=ranks, backend="nccl", out=out, deadline_s=float("inf"))


def time_between_ranks(
    transfers: Sequence[TimedTransfer], *, ranks: int, backend: str, out: Path, deadline_s: float
) -> bool:
    """Time the transfers between `ranks` ranks that the table at `out` lacks and append their rows;
    prints every row. Stops after deadline_s seconds and returns whether all are in the table."""
    known = known_keys(out)
    sms = 1
    if rank_device(backend).type == "cuda":
        sms = torch.cuda.get_device_properties(0).multi_processor_count
    lacking = [t for t in transfers if _row(t, ranks, sms, "", 0, 0).key() not in known]
    if not lacking:
        return True
    timed = run_ranks(
        _time_transfers,
        (lacking, backend, str(out), time.time() + deadline_s),
        ranks=ranks,
        backend=backend,
        timeout_s=_TIMEOUT_S,
    )
    return timed[0] == len(lacking)


def _row(
    transfer: TimedTransfer, ranks: int, sms: int, source: str, seconds: float, spread: float
) -> KernelTiming:
    conditions = [
        # The two ways take different times for small transfers: they enter no fit together.
        ("set", "dsv3sim_links" if transfer.launch == EAGER else "dsv3sim_links_queued"),
        ("statistic", "median"),
        ("repeats", _REPEATS),
        ("timing", "events"),
    ]
    if transfer.launch != EAGER:
        conditions.append(("launch", transfer.launch))
    return KernelTiming(
        kind=transfer.kind,
        sizes=pairs_text([("bytes", transfer.size), ("ranks", ranks)]),
        dtype="bfloat16",
        sms=sms,
        seconds=seconds,
        spread=spread,
        source=source,
        conditions=pairs_text(conditions),
    )


def _peer_copy(size: int) -> tuple[float, float]:
    """From GPU 0 to GPU 1."""
    source = torch.randn(size // 2, device="cuda:0").to(torch.bfloat16)
    target = torch.empty_like(source, device="cuda:1")
    return _time(lambda: target.copy_(source), size, torch.device("cuda", 0), hold=lambda: None)


def _time_transfers(
    rank: int, ranks: int, transfers: Sequence[TimedTransfer], backend: str, out: str, until: float
) -> int:
    """One process per GPU: times transfers; rank 0 writes them down. Returns how many it timed."""
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    device = rank_device(backend)
    source = device_source(device)
    sms = 1
    if device.type == "cuda":
        sms = torch.cuda.get_device_properties(device).multi_processor_count
    one = torch.zeros(1, device=device)

    def hold() -> None:
        if device.type == "cuda":
            torch.cuda._sleep(_SLEEP_CYCLES)  # type: ignore[no-untyped-call]
        dist.all_reduce(one)

    for number, transfer in enumerate(transfers, start=1):
        late = torch.tensor(float(time.time() > until), device=device)
        dist.all_reduce(late)
        if late.item():
            return number - 1
        x = torch.randn(transfer.size // 2, device=device).to(torch.bfloat16)
        call = COLLECTIVES[transfer.kind](x, torch.empty_like(x), rank, ranks)
        queued = transfer.launch == QUEUED
        result = _time(call, transfer.size, device, hold=hold if queued else lambda: None)
        if rank == 0:
            row = _row(transfer, ranks, sms, source, *result)
            append_rows([row], Path(out))
            print(
                f"[{number}/{len(transfers)}] {row.kind} {row.sizes} {transfer.launch}:"
                f" {row.seconds:.4e} s, spread {row.spread:.3f}",
                flush=True,
            )
    return len(transfers)


def _time(
    transfer: Callable[[], object], size: int, device: torch.device, *, hold: Callable[[], object]
) -> tuple[float, float]:
    """(median seconds, relative standard deviation) of one transfer, of bursts before which `hold`
    is launched."""
    transfers = max(4, min(_MOST_TRANSFERS, _BUSY_BYTES // size))

    def burst() -> float:
        hold()
        start = moment(device)
        for _ in range(transfers):
            transfer()
        return seconds_between(start, moment(device)) / transfers

    burst()
    wait_for_device(device)
    samples = [burst() for _ in range(_REPEATS)]
    return statistics.median(samples), statistics.pstdev(samples) / statistics.mean(samples)
