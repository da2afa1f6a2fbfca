"""What kernels ask of a GPU of 132 SMs of which 20 are left to transfers."""

import numpy as np
import pytest

from reference_model.trace import Operator
from simulator.execution.machine.launches import (
    enough_sms,
    is_product,
    kernel_launches,
    launch_sms,
    short_waves,
)


def operator(kind, **sizes):
    return Operator(
        name=kind, kind=kind, phase="forward", segment="attention", dtype="bfloat16",
        out_dtype="bfloat16", sizes=tuple(sorted(sizes.items())), recompute=False,
        accumulate=False,
    )  # fmt: skip


HBM = 3e12
GEMM = operator("gemm", m=4096, n=7168, k=2048)
NORM = operator("rmsnorm", rows=4096, columns=7168)
COPY = operator("copy", rows=4096, columns=7168)
CORE = operator(
    "attention_forward", sequences=1, heads=128, query_length=4096, kv_length=4096, qk_dim=192,
    v_dim=128,
)  # fmt: skip


def test_products_leave_sms_to_transfers_and_nothing_else_does():
    assert [launch_sms(one, sms=132, kept=20) for one in (GEMM, NORM, COPY, CORE)] == [
        112, 132, 132, 132,
    ]  # fmt: skip
    assert launch_sms(operator("dispatch_layout"), sms=132, kept=20) == 20


def test_attention_is_no_product_of_matrices():
    assert [is_product(one.kind) for one in (GEMM, NORM, COPY, CORE)] == [
        True, False, False, False,
    ]  # fmt: skip


def test_an_attention_core_has_a_cta_for_every_head_and_128_rows():
    """128 heads x 32 blocks = 4,096 CTAs on 132 SMs: 32 waves."""
    assert short_waves(CORE, 132) == 32


def test_a_launch_says_time_ctas_and_bytes_of_each_rank():
    """A copy reads and writes 4,096 x 7,168 x 2 bytes: 117.4 MB; a rank with half more rows moves
    half more."""
    seconds, work = np.array([[8e-5, 1.2e-4]]), np.array([[1.0, 1.5]])
    (found,) = kernel_launches(
        [COPY], seconds, sms=[132], work=work, hbm=HBM, sm_bandwidth=90e9, beside_transfer=[1.0]
    )
    assert [one.hbm_bytes for one in found] == [117_440_512, 176_160_768]
    assert [one.cta_seconds for one in found] == pytest.approx([1e-5, 1.5e-5])
    assert [(one.sms, one.persistent) for one in found] == [(132, False)] * 2
    assert [one.enough_sms for one in found] == [None, None]


def test_a_kernel_at_the_rate_of_hbm_fills_it_with_fewer_sms():
    """117.4 MB in 40 us is 2.94 TB/s, 98% of what HBM gives: 33 SMs of 90 GB/s do it. In 50 us it
    is 78%."""
    assert enough_sms(117_440_512, 4e-5, hbm=HBM, per_sm=90e9) == 33
    assert enough_sms(117_440_512, 5e-5, hbm=HBM, per_sm=90e9) is None
