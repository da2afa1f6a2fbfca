"""AdamW keeps to torch's within the precision of its moments; schedules are the published ones."""

import pytest
import torch
from torch import nn

from reference_model.optimizer import (
    AdamW,
    batch_sequences,
    bias_step,
    learning_rate,
    prediction_weight,
)

STEPS = 14_800  # one a billion of the published run's tokens
PEAK = 2.2e-4


def rate(step, warmup_steps=0):
    return learning_rate(step, steps=STEPS, peak=PEAK, warmup_steps=warmup_steps, schedule="report")


def test_learning_rate_passes_the_published_values():
    assert rate(0, warmup_steps=2000) == pytest.approx(PEAK / 2000)
    assert rate(1999, warmup_steps=2000) == pytest.approx(PEAK)
    assert rate(9_999) == PEAK
    assert rate(10_000 + 2_150) == pytest.approx((2.2e-4 + 2.2e-5) / 2)  # half of the cosine
    assert rate(14_300) == pytest.approx(2.2e-5)
    assert rate(14_632) == pytest.approx(2.2e-5)
    assert rate(14_633) == pytest.approx(7.3e-6)


def test_the_other_settings_change_where_the_report_changes_them():
    assert prediction_weight(9_999, steps=STEPS) == 0.3
    assert prediction_weight(10_000, steps=STEPS) == 0.1
    assert bias_step(14_299, steps=STEPS, gamma=0.001) == 0.001
    assert bias_step(14_300, steps=STEPS, gamma=0.001) == 0.0
    sizes = [batch_sequences(s, steps=STEPS, first=3072, final=15360) for s in range(600)]
    assert sizes[0] == 3072
    assert sizes[469:] == [15360] * 131
    assert sizes == sorted(sizes)


def test_a_constant_schedule_is_constant_after_warm_up():
    rates = [
        learning_rate(step, steps=10, peak=1.0, warmup_steps=2, schedule="constant")
        for step in range(10)
    ]
    assert rates == [0.5] + [1.0] * 9
    with pytest.raises(ValueError, match="schedule 'linear' is not one of"):
        learning_rate(0, steps=1, peak=1.0, warmup_steps=0, schedule="linear")


def test_weights_follow_torchs_adamw_within_the_precision_of_bf16_moments():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(16, 16, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = AdamW([ours])
    torchs = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(20):
        gradient = 0.01 * torch.randn(16, 16, generator=generator)  # norm below the clip
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step(1e-2)
        torchs.step()
    assert mine.first[0].dtype == mine.second[0].dtype == torch.bfloat16
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.005 * moved


def test_gradients_are_clipped_to_norm_1_and_norm_weights_do_not_decay():
    matrix, norm = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = AdamW([matrix, norm])
    matrix.grad = torch.full((2, 2), 50.0)
    assert optimizer.step(0.0) == pytest.approx(100.0)
    assert optimizer.first[0].float() == pytest.approx(torch.full((2, 2), 0.05), rel=0.01)
    assert not matrix.grad.any()  # it stays where it is, for the next step
    optimizer = AdamW([matrix, norm])
    optimizer.step(0.5)  # no gradients: decay alone
    assert torch.allclose(matrix, torch.full((2, 2), 0.95))
    assert torch.equal(norm, torch.ones(2))
