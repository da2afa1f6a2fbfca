import pytest

from simulator.execution.occupancy import SmPool, block_demand
from simulator.workload.profile.kineto import Kernel, SmLimits

LIMITS = SmLimits(threads=2048, registers=65536, shared_memory=233472)


def kernel(threads: int, registers: int, shared_memory: int) -> Kernel:
    return Kernel("k", "kernel", 7, 1.0, 1, (1, 1, 1), threads, registers, shared_memory, 0.0, 0)


GEMM = kernel(384, 168, 203_776)
SMALL = kernel(320, 56, 0)
EXCHANGE = kernel(800, 72, 1320)


def test_a_block_takes_whole_warps_and_rounded_registers() -> None:
    assert block_demand(kernel(33, 9, 0)).tolist() == [64, 2 * 512, 1024]
    assert block_demand(GEMM).tolist() == [384, 12 * 5376, 204_800]


def test_a_full_gpu_makes_the_next_kernel_wait_until_a_kernel_ends() -> None:
    pool = SmPool(132, LIMITS)
    assert pool.start(0, EXCHANGE, 20)
    assert pool.start(1, GEMM, 112)
    assert not pool.start(2, GEMM, 112)
    assert pool.end(1)
    assert pool.start(2, GEMM, 112)


def test_a_kernel_starts_with_what_fits_and_takes_what_is_freed_before_others() -> None:
    pool = SmPool(132, LIMITS)
    assert pool.start(0, GEMM, 112)
    assert pool.start(1, GEMM, 112)  # 20 blocks now, 92 wait
    pool.end(0)
    assert pool.start(2, GEMM, 112)  # 132 - 112 left
    assert not pool.start(3, GEMM, 1)


def test_small_blocks_share_an_sm_until_its_registers_are_gone() -> None:
    pool = SmPool(1, LIMITS)
    assert [pool.start(index, SMALL, 1) for index in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("blocks", [5000, 10**9])
def test_a_kernel_of_several_waves_holds_nothing(blocks: int) -> None:
    pool = SmPool(132, LIMITS)
    assert pool.start(0, SMALL, blocks)
    assert pool.start(1, GEMM, 132)
    assert not pool.end(0)
