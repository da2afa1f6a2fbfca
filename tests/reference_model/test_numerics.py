import torch

from reference_model.numerics import kernel_errors, recipe_errors


def test_every_kernel_is_as_accurate_as_e4m3_allows():
    errors = kernel_errors(
        "reference", device=torch.device("cpu"), rows=512, features=32, k=256, seed=0
    )
    # Half a step of 3 mantissa bits is 2^-4; a rounding error is uniform below it.
    assert all(0.001 < e.of_inputs < 2**-4 for e in errors)
    assert all(e.of_operands < 1e-6 for e in errors if e.of_operands is not None)
    assert len({e.name for e in errors}) == len(errors)


def test_fine_scales_and_promotion_each_lower_the_error():
    cancelling, adding = recipe_errors(lengths=(4096,), means=(0.0, 1.0), size=32, seed=1)
    assert cancelling.per_tensor > 1.1 * cancelling.per_tile
    assert adding.per_tile > 1.1 * adding.promoted
