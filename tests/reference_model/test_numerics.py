import pytest
import torch

from reference_model.numerics import kernel_errors, recipe_errors

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Without a GPU the Triton kernels are interpreted, on CPU tensors."""

ON_GPU = pytest.param(
    "library",
    marks=[pytest.mark.gpu, pytest.mark.skipif(DEVICE.type == "cpu", reason="no CUDA device")],
)


@pytest.mark.parametrize("backend", ["reference", "triton", ON_GPU])
def test_every_kernel_is_as_accurate_as_e4m3_allows(backend):
    errors = kernel_errors(backend, device=DEVICE, rows=320, features=32, k=256, seed=0)
    # Half a step of 3 mantissa bits is 2^-4; a rounding error is uniform below it.
    assert all(0.001 < e.of_inputs < 2**-4 for e in errors)
    assert len({e.name for e in errors}) == len(errors)
    # Tensor cores keep about 14 bits of each sum of 128 products; plain torch keeps float32.
    exact = DEVICE.type == "cpu" or backend == "reference"
    products = [e for e in errors if e.of_operands is not None]
    assert len(products) == 5
    assert all(e.of_operands < (1e-6 if exact else 1e-3) for e in products)


def test_fine_scales_and_promotion_each_lower_the_error():
    cancelling, adding = recipe_errors(lengths=(4096,), means=(0.0, 1.0), size=32, seed=1)
    assert cancelling.per_tensor > 1.1 * cancelling.per_tile
    assert adding.per_tile > 1.1 * adding.promoted
