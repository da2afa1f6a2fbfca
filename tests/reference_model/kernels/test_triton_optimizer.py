"""AdamW in one kernel."""

import torch
from torch import nn

from reference_model.kernels.triton_optimizer import launch_adamw
from reference_model.operators import update_tables
from reference_model.optimizer import AdamW


def test_the_fused_kernel_moves_weights_as_one_by_one_and_clears_gradients():
    """A matrix of more elements than one program takes, and a norm that does not decay."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(130, 140, generator=generator), torch.randn(7, generator=generator)]
    plain = [nn.Parameter(x.clone()) for x in start]
    fused = [nn.Parameter(x.clone().to(device)) for x in start]
    one_by_one, together = AdamW(plain), AdamW(fused)
    for moments in ("first", "second"):  # as an earlier step left them
        for mine, wanted in zip(
            getattr(together, moments), getattr(one_by_one, moments), strict=True
        ):
            mine.copy_(wanted.copy_(torch.rand(wanted.shape, generator=generator) / 100))
    gradients = [0.01 * torch.randn(x.shape, generator=generator) for x in start]
    for parameter, gradient in zip(plain, gradients, strict=True):
        parameter.grad = gradient.clone()
    norm = one_by_one.step(1e-2)
    assert norm > 1  # so that gradients are clipped
    given = [gradient.to(device) for gradient in gradients]
    state = (fused, given, together.first, together.second)
    launch_adamw(
        *state, torch.tensor(norm).to(device), *update_tables(*state), rate=1e-2, steps=1,
        beta=0.9, beta2=0.95, epsilon=1e-8, decay=0.1, clip_norm=1.0, site="",
    )  # fmt: skip
    assert not any(gradient.any() for gradient in given)
    for mine, wanted in zip(fused, plain, strict=True):
        torch.testing.assert_close(mine.cpu(), wanted, rtol=1e-5, atol=1e-6)
    for mine, wanted in zip(
        together.first + together.second, one_by_one.first + one_by_one.second, strict=True
    ):
        torch.testing.assert_close(mine.cpu(), wanted, rtol=1e-2, atol=1e-6)
