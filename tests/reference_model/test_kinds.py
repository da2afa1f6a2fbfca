"""Operators count what published kernels count."""

import dataclasses

import pytest

from reference_model.kinds import KINDS, Operator


def operator(kind, dtype="fp8_e4m3", out_dtype="bfloat16", accumulate=False, **sizes):
    return Operator(
        name="op", kind=kind, phase="forward", segment="mlp", dtype=dtype, out_dtype=out_dtype,
        sizes=tuple(sorted(sizes.items())), recompute=False, accumulate=accumulate,
    )  # fmt: skip


def test_gemm_bytes_hold_operands_scales_and_result():
    gemm = operator("gemm", m=4096, n=1536, k=7168)
    assert gemm.flops == 2 * 4096 * 1536 * 7168
    assert gemm.bytes_read == 4096 * 7168 + 4096 * 56 * 4 + 1536 * 7168 + 12 * 56 * 4
    assert gemm.bytes_written == 4096 * 1536 * 2


def test_a_weight_gradient_also_reads_its_accumulator():
    gemm = operator("gemm", out_dtype="float32", accumulate=True, m=1536, n=7168, k=4096)
    tiles = (1536 + 7168) * (4096 + 32 * 4)
    assert gemm.bytes_read == tiles + 1536 * 7168 * 4
    assert gemm.bytes_written == 1536 * 7168 * 4


def test_twelve_bit_floats_take_a_byte_and_a_half():
    cast = operator("quantize", "bfloat16", "e5m6", rows=10, columns=256)
    assert cast.bytes_written == 10 * 256 * 3 // 2 + 10 * 2 * 4


def test_recomputed_operators_have_no_model_flops():
    gemm = operator("gemm", m=1, n=1, k=128)
    again = dataclasses.replace(gemm, recompute=True)
    assert (gemm.model_flops, again.model_flops, again.flops) == (256, 0, 256)


def test_operators_are_hashable_and_name_their_sizes():
    gemm = operator("gemm", m=1, n=2, k=3)
    assert len({gemm, operator("gemm", m=1, n=2, k=3)}) == 1
    assert gemm["k"] == 3
    with pytest.raises(KeyError):
        gemm["rows"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_counts_flops_and_bytes_of_its_sizes(kind):
    sizes = dict.fromkeys(KINDS[kind].sizes, 128)
    one = operator(kind, "bfloat16", "bfloat16", **sizes)
    assert one.flops >= 0
    assert one.bytes_read > 0
    assert one.bytes_written > 0
