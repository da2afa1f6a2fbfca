"""Dispatch and combine over memory that the GPUs of one host share, by a stated number of SMs.

Every rank holds memory that the others write to (torch's symmetric memory, over NVLink or PCIe).
What a rank sends goes straight to where the receiver reads it; a barrier of all ranks ends each
transfer. Beside what is sent, the kernels that turn scales around and add up what returns to a
token run on the same SMs: one program on each, on whatever stream is current.

Each transfer has windows of its own, handed out in order, and what it delivers lies in them. A
window may be written anew once its rank has read it and a later transfer has passed a barrier: so a
captured step can be replayed, and `rewind` runs the same step again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, distributed

from reference_model import peer_operators
from reference_model.kernels.triton_peer import by_column, send_rows, sum_returned

_ALIGNMENT = 256
"""Bytes; windows begin at multiples of it."""


@dataclass(slots=True)
class PeerMemory:
    """Memory of this rank that others write to, and theirs."""

    view: Callable[[Sequence[int], torch.dtype, int], Tensor]
    """(shape, type, bytes from the begin) -> a tensor over this rank's memory."""
    size: int
    """Bytes."""
    addresses: Tensor
    """int64 [ranks], where the memory of each rank begins, as this rank addresses it."""
    rank: int
    barrier: Callable[[], None]
    """Holds the current stream until all ranks' have come as far."""
    programs: int
    """Of each kernel: the SMs it may keep."""
    moving: bool = True
    """Whether transfers run; otherwise they deliver what their windows hold from the last time."""
    transfers: list[tuple[str, Callable[[], None]]] = field(default_factory=list)
    """Site of each since the last `rewind`, and the same transfer of the same tensors once more."""
    used: int = 0

    @property
    def ranks(self) -> int:
        return self.addresses.shape[0]

    def rewind(self, used: int) -> None:
        """Hand out windows again from where `used` stood."""
        self.used = used
        self.transfers = []

    def take(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, int]:
        """The next window: its values on this rank, [rows, columns], and where it begins in the
        memory of each; ranks take the same ones in the same order."""
        size = rows * columns * dtype.itemsize
        if self.used + size > self.size:
            raise ValueError(
                f"peer memory of {self.size} bytes is too small: {self.used} are taken, {size} more"
                " are needed"
            )
        offset = self.used
        self.used += -(-size // _ALIGNMENT) * _ALIGNMENT
        return self.view((rows, columns), dtype, offset), offset

    def transfer(self, site: str, run: Callable[[], None]) -> None:
        """Run a transfer, and remember it."""
        self.transfers.append((site, run))
        if self.moving:
            run()

    def send(
        self,
        x: Tensor,
        index: Tensor | None,
        offset: int,
        *,
        sent: list[int],
        first: list[int],
        shift: int = 0,
    ) -> None:
        """Write rows of x to the window of each rank that begins at `offset`."""
        send_rows(
            x, index,
            starts=_whole_numbers((0, *accumulate(sent)), x.device),
            firsts=_whole_numbers(tuple(first), x.device),
            longest=max(sent), addresses=self.addresses, offset=offset, rank=self.rank,
            programs=self.programs, shift=shift,
        )  # fmt: skip


def share_memory(size: int, *, programs: int) -> PeerMemory:
    """Allocate `size` bytes on the GPU of every rank of the process group, for the others to reach.

    A collective call, once for a process; kernels of `programs` programs each fill it."""
    from torch.distributed import _symmetric_memory as symmetric

    device = torch.device("cuda", torch.cuda.current_device())
    mine = symmetric.empty(size, dtype=torch.uint8, device=device)
    handle: Any = symmetric.rendezvous(mine, group=distributed.group.WORLD)  # type: ignore[arg-type]
    rank = distributed.get_rank()

    def view(shape: Sequence[int], dtype: torch.dtype, offset: int) -> Tensor:
        # Results of an operator may not be views of one tensor: each is one of its own.
        count = torch.Size(shape).numel() * dtype.itemsize
        if not count:
            return torch.empty(tuple(shape), dtype=dtype, device=device)
        values: Tensor = handle.get_buffer(rank, (count,), torch.uint8, storage_offset=offset)
        return values.view(dtype).view(*shape)

    return PeerMemory(
        view=view, size=size, rank=rank, programs=programs,
        addresses=torch.tensor(list(handle.buffer_ptrs), dtype=torch.int64, device=device),
        barrier=lambda: handle.barrier(channel=0),
    )  # fmt: skip


@cache
def _whole_numbers(values: tuple[int, ...], device: torch.device) -> Tensor:
    """int64 on the device; kept, because a captured step copies nothing from the host."""
    return torch.tensor(values, dtype=torch.int64, device=device)


def use_peer_memory(memory: PeerMemory, *, device: str = "cuda") -> None:
    """Put these kernels behind the operators of peer_operators.py on a type of device."""

    def deliver(
        parts: Sequence[tuple[Tensor, int]], source: Tensor, sent: list[int], received: list[int],
        first: list[int], site: str,
    ) -> list[Tensor]:  # fmt: skip
        """Send rows `source` of parts [T, columns], the second of them scales, which arrive by
        column; of each part what is subtracted for each rank."""
        room = parts[0][0].shape[0] * memory.ranks
        windows = [memory.take(room, part.shape[1], part.dtype) for part, _ in parts]
        rows = sum(received)
        scales = parts[1][0]
        turned, _ = memory.take(scales.shape[1], room, scales.dtype)
        by_columns = turned.view(-1)[: scales.shape[1] * rows].view(-1, rows)

        def run() -> None:
            for (part, shift), (_, offset) in zip(parts, windows, strict=True):
                if part.shape[1]:
                    memory.send(part, source, offset, sent=sent, first=first, shift=shift)
            memory.barrier()
            if scales.shape[1]:
                by_column(windows[1][0][:rows], by_columns, programs=memory.programs)

        memory.transfer(site, run)
        arrived = [values[:rows] for values, _ in windows]
        return [arrived[0], by_columns.t(), *arrived[2:]]

    def dispatch_to_peers(
        x: Tensor, scales: Tensor | None, indices: Tensor, weights: Tensor, source: Tensor, *,
        sent: list[int], received: list[int], first: list[int], local_experts: int, site: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        tiles = peer_operators.scales_or_none(scales, x)
        parts = [(x, 0), (tiles, 0), (indices, local_experts), (weights, 0)]
        values, tiles, choices, factors = deliver(parts, source, sent, received, first, site)
        return values, tiles, choices, factors

    def dispatch_cached_to_peers(
        x: Tensor, scales: Tensor | None, source: Tensor, *,
        sent: list[int], received: list[int], first: list[int], site: str,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        parts = [(x, 0), (peer_operators.scales_or_none(scales, x), 0)]
        values, tiles = deliver(parts, source, sent, received, first, site)
        return values, tiles

    def bring_back(
        parts: Sequence[tuple[Tensor, Tensor | None]], token_rows: Tensor, sent: list[int],
        first: list[int], site: str,
    ) -> list[Tensor]:  # fmt: skip
        """Send all rows of parts [D, columns] back, and add to each token what returns to it and,
        where there is one, what it is added to [T, columns]."""
        tokens = token_rows.shape[0]
        windows = [
            memory.take(tokens * memory.ranks, part.shape[1], part.dtype) for part, _ in parts
        ]
        totals = [memory.take(tokens, part.shape[1], part.dtype) for part, _ in parts]

        def run() -> None:
            for (part, _), (_, offset) in zip(parts, windows, strict=True):
                memory.send(part, None, offset, sent=sent, first=first)
            memory.barrier()
            for (_, shared), (values, _), (total, _) in zip(parts, windows, totals, strict=True):
                sum_returned(values, shared, token_rows, total, programs=memory.programs)

        memory.transfer(site, run)
        return [total for total, _ in totals]

    def combine_from_peers(
        x: Tensor, shared: Tensor, token_rows: Tensor, *,
        sent: list[int], received: list[int], first: list[int], site: str,
    ) -> Tensor:  # fmt: skip
        return bring_back([(x, shared)], token_rows, sent, first, site)[0]

    def combine_backward_from_peers(
        x: Tensor, shared: Tensor, weights_grad: Tensor, token_rows: Tensor, *,
        sent: list[int], received: list[int], first: list[int], site: str,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        total, factors = bring_back([(x, shared), (weights_grad, None)], token_rows, sent, first,
                                    site)  # fmt: skip
        return total, factors

    for function in (
        dispatch_to_peers,
        dispatch_cached_to_peers,
        combine_from_peers,
        combine_backward_from_peers,
    ):
        operator: Any = getattr(peer_operators, function.__name__)
        operator.register_kernel(device, function)
