"""Decide which kernels run on the SMs of a GPU at the same time, and which wait.

A block takes threads, registers and shared memory of one SM. A persistent GEMM with a block that
fills an SM leaves no room beside it, so a kernel of another stream that is ready may still have to
wait; a recorded profile of two streams cannot be replayed without that. Rules (CUDA C++
Programming Guide, compute capabilities): registers are given to warps in units of 256, a block
reserves 1 KiB of shared memory besides its own.

A kernel whose blocks fit at once holds its SMs until it ends; it starts as soon as one block fits,
and its other blocks take what is freed before later kernels do. A kernel of several waves gives up
and takes SMs continuously, so it holds nothing here. Durations are not changed by any of this:
what a kernel waited for its other blocks is inside its recorded duration.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from simulator.workload.profile.recording import Kernel, SmLimits

_WARP = 32
_REGISTER_UNIT = 256
_RESERVED_SHARED_MEMORY = 1 << 10
"""Bytes of shared memory that the system takes for each block, compute capability 8.0 and later."""


def block_demand(kernel: Kernel) -> NDArray[np.int64]:
    """[threads, registers, bytes of shared memory] that one block takes of its SM."""
    warps = -(-kernel.threads // _WARP)
    of_warp = -(-kernel.registers * _WARP // _REGISTER_UNIT) * _REGISTER_UNIT
    shared = kernel.shared_memory + _RESERVED_SHARED_MEMORY
    return np.array([warps * _WARP, warps * of_warp, shared], dtype=np.int64)


@dataclass(slots=True)
class _Resident:
    demand: NDArray[np.int64]
    blocks: NDArray[np.int64]
    """[SMs], blocks running there."""
    remaining: int
    """Blocks that wait for room."""


@dataclass(slots=True)
class SmPool:
    """The SMs of one GPU while kernels come and go."""

    sms: int
    limits: SmLimits
    _free: NDArray[np.int64] = field(init=False)
    """[SMs, 3]"""
    _residents: dict[int, _Resident] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._free = np.tile(self._whole, (self.sms, 1))

    @property
    def _whole(self) -> NDArray[np.int64]:
        limits = self.limits
        return np.array([limits.threads, limits.registers, limits.shared_memory], dtype=np.int64)

    def start(self, index: int, kernel: Kernel, blocks: int) -> bool:
        """Place what fits of the kernel's blocks; False, and nothing placed, where none does."""
        demand = block_demand(kernel)
        at_once = int((self._whole // np.maximum(demand, 1)).min()) * self.sms
        if not kernel.threads or blocks > at_once:
            return True
        resident = _Resident(demand, np.zeros(self.sms, dtype=np.int64), blocks)
        self._place(resident)
        if resident.remaining == blocks:
            return False
        self._residents[index] = resident
        return True

    def end(self, index: int) -> bool:
        """Free the kernel's SMs; True where that made room."""
        resident = self._residents.pop(index, None)
        if resident is None:
            return False
        self._free += resident.blocks[:, None] * resident.demand
        for other in self._residents.values():
            self._place(other)
        return True

    def _place(self, resident: _Resident) -> None:
        """Pack blocks onto the SMs with room, the fullest first."""
        fits = (self._free // np.maximum(resident.demand, 1)).min(axis=1)
        for sm in np.lexsort((np.arange(self.sms), fits)):
            if not resident.remaining:
                return
            blocks = min(int(fits[sm]), resident.remaining)
            self._free[sm] -= blocks * resident.demand
            resident.blocks[sm] += blocks
            resident.remaining -= blocks
