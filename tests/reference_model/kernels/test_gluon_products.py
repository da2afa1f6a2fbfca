"""The grouped product of Hopper: it is compiled here, and computes where there is such a GPU."""

import os
import subprocess
import sys

import pytest
import torch

from reference_model.kernels import load_backend

KIB = 1024
COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from reference_model.kernels.gluon_products import (
    CONSTANTS, LAUNCH, grouped_gemm_kernel, tile_layout,
)

names = [parameter.name for parameter in grouped_gemm_kernel.params]
types = dict.fromkeys(names, "i32") | {
    name: f"tensordesc<fp8e4nv[{CONSTANTS[rows]}, 128],{tile_layout(CONSTANTS[rows])!r}>"
    for name, rows in (("a", "ROWS"), ("b", "COLUMNS"))
}
types |= {"a_scales": "*fp32", "b_scales": "*fp32", "group_sizes": "*i32", "out": "*bf16"}
fixed = CONSTANTS | {"b_scales_tile_stride": 1}
types |= dict.fromkeys(fixed, "constexpr")
source = GluonASTSource(
    grouped_gemm_kernel,
    types,
    {(names.index(name),): value for name, value in fixed.items()},
    {(names.index(name),): [["tt.divisibility", 16]] for name in ("out", "n")},
)
compiled = compile(source, target=GPUTarget("cuda", 90, 32), options=LAUNCH)
print(compiled.metadata.shared, compiled.asm["ptx"].count("m64n128k32.f32.e4m3.e4m3"))
"""


def test_the_kernel_compiles_for_hopper_and_fits_an_sm():
    """Of 227 KiB: 4 stages of (128 + 256) x 128 bytes, 192 KiB, and 8 KiB of results for each
    warpgroup. Each of the two has 128 of K, four steps of 32, twice: 16 products.

    In a process of its own: here Triton's own functions are interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, check=True, env=environment
    )
    shared, products = map(int, ran.stdout.split())
    assert 208 * KIB <= shared <= 227 * KIB
    assert products == 16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a Hopper GPU")
@pytest.mark.parametrize("sizes", [[700, 0, 1, 128, 195], [1024]])
@pytest.mark.parametrize(("n", "k"), [(512, 384), (384, 640)])
def test_it_computes_what_plain_torch_does(sizes, n, k):
    torch.manual_seed(0)
    rows, groups = sum(sizes), len(sizes)
    reference, triton = load_backend("reference"), load_backend("triton")
    a, a_scales = reference.quantize_tiles(
        torch.randn(rows, k, device="cuda"), power_of_two_scales=False
    )
    pairs = [
        reference.quantize_blocks(torch.randn(n, k, device="cuda"), power_of_two_scales=False)
        for _ in range(groups)
    ]
    b, b_scales = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    given = {"group_sizes": torch.tensor(sizes, device="cuda"), "out_dtype": torch.bfloat16}
    exact = reference.grouped_gemm_fp8(a, a_scales, b, b_scales, **given).float()
    ours = triton.grouped_gemm_fp8(a, a_scales, b, b_scales, **given).float()
    assert (ours - exact).norm() / exact.norm() < 3e-3
