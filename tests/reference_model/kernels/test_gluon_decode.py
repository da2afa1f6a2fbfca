"""The decode attention of Hopper: it is compiled here, and computes where there is such a GPU."""

import os
import subprocess
import sys

import pytest
import torch

from reference_model.kernels.mla_decode import mla_decode_reference, mla_decode_triton

KIB = 1024
COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from reference_model.kernels.gluon_decode import WARPS, block_layout, constants, decode_kernel

names = [parameter.name for parameter in decode_kernel.params]
types = dict.fromkeys(names, "i32") | {
    "q": "*bf16",
    "latents": f"tensordesc<bf16[64, 512],{block_layout(512)!r}>",
    "rotaries": f"tensordesc<bf16[64, 64],{block_layout(64)!r}>",
    "lengths": "*i32",
    "partial_out": "*fp32",
    "partial_sum": "*fp32",
    "scale": "fp32",
}
fixed = constants(512, 64)
types |= dict.fromkeys(fixed, "constexpr")
source = GluonASTSource(
    decode_kernel,
    types,
    {(names.index(name),): value for name, value in fixed.items()},
    {(names.index(name),): [["tt.divisibility", 16]] for name in ("q", "rows", "capacity")},
)
compiled = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": WARPS})
print(compiled.metadata.shared, compiled.asm["ptx"].count("m64n256k16.f32.bf16.bf16"))
"""


def test_the_kernel_compiles_for_hopper_and_fits_an_sm():
    """Of 227 KiB: queries of 64 x 576 BF16 values, 72 KiB, two blocks of cached tokens as large,
    64 x 64 weights, 8 KiB, and a few hundred bytes that warps tell each other. A block's 64 tokens
    are four steps of 16 of the second product.

    In a process of its own: here Triton's own functions are interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, check=True, env=environment
    )
    shared, products = map(int, ran.stdout.split())
    assert 224 * KIB <= shared <= 227 * KIB
    assert products == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a Hopper GPU")
@pytest.mark.parametrize(("heads", "query_length"), [(128, 1), (96, 1), (16, 2)])
@pytest.mark.parametrize("sequences", [5, 80])
def test_it_computes_what_plain_torch_does(heads, query_length, sequences):
    """Lengths end within blocks, and one is no longer than its queries; five sequences are split,
    80 are not."""
    torch.manual_seed(0)
    capacity = 900
    q = torch.randn(sequences, query_length, heads, 576, device="cuda", dtype=torch.bfloat16)
    cache = torch.randn(sequences, capacity, 576, device="cuda", dtype=torch.bfloat16)
    lengths = torch.tensor([query_length, 63, 64, 517, 900], dtype=torch.int32, device="cuda")
    lengths = lengths.repeat(sequences // 5)
    out, sums = mla_decode_triton(q, cache, lengths, latent_dim=512, scale=0.07)
    exact, exact_sums = mla_decode_reference(q, cache, lengths, latent_dim=512, scale=0.07)
    assert (out.float() - exact.float()).norm() / exact.float().norm() < 5e-3
    assert torch.allclose(sums, exact_sums, atol=2e-3)
