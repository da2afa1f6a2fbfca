"""AdamW as DeepSeek-V3 trains with it, with its learning-rate schedule.

Technical Report (arXiv:2412.19437), sections 3.3.3 and 4.2: moments in BF16, master weights and
gradients in FP32, betas 0.9 and 0.95, weight decay 0.1, gradients clipped to norm 1. The published
schedules count tokens out of 14.8 T; here a step stands at the same share of the steps of a run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reference_model import operators as ops
from reference_model.layers import UPDATE, gradient

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
CLIP_NORM = 1.0
_EPSILON = 1e-8  # not published; the usual value

# Trillions of tokens of the published run, and the shares of it at which its settings change.
_TOTAL = 14.8
_CONSTANT_UNTIL = 10.0 / _TOTAL
_COSINE_UNTIL = (10.0 + 4.3) / _TOTAL
_LOW_UNTIL = (10.0 + 4.3 + 0.333) / _TOTAL
_BATCH_RAMP_UNTIL = 0.469 / _TOTAL
_LOW = 2.2e-5 / 2.2e-4
_LOWEST = 7.3e-6 / 2.2e-4

LEARNING_RATE_SCHEDULES = ("report", "constant")


def learning_rate(step: int, *, steps: int, peak: float, warmup_steps: int, schedule: str) -> float:
    """Learning rate of a step: linear warm-up, then constant; in the Report's schedule constant for
    10 of 14.8 T tokens, a cosine down to a tenth over 4.3 T, that tenth for 0.333 T, and 7.3 / 220
    of the peak for the rest."""
    if schedule not in LEARNING_RATE_SCHEDULES:
        raise ValueError(f"schedule {schedule!r} is not one of {list(LEARNING_RATE_SCHEDULES)}")
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    share = step / steps
    if schedule == "constant" or share < _CONSTANT_UNTIL:
        return peak
    if share < _COSINE_UNTIL:
        done = (share - _CONSTANT_UNTIL) / (_COSINE_UNTIL - _CONSTANT_UNTIL)
        return peak * (_LOW + (1 - _LOW) * 0.5 * (1 + math.cos(math.pi * done)))
    return peak * (_LOW if share < _LOW_UNTIL else _LOWEST)


def batch_sequences(step: int, *, steps: int, first: int, final: int) -> int:
    """Sequences of a step's batch: from `first` in equal strides to `final` over the first 469 B of
    14.8 T tokens (published: 3,072 to 15,360)."""
    share = min(step / steps / _BATCH_RAMP_UNTIL, 1.0)
    return first + int((final - first) * share)


def prediction_weight(step: int, *, steps: int) -> float:
    """Weight of the multi-token prediction loss: 0.3 for 10 of 14.8 T tokens, then 0.1."""
    return 0.3 if step / steps < _CONSTANT_UNTIL else 0.1


def bias_step(step: int, *, steps: int, gamma: float) -> float:
    """Step of the balancing bias: gamma for 14.3 of 14.8 T tokens, then 0 (published: 0.001)."""
    return gamma if step / steps < _COSINE_UNTIL else 0.0


class AdamW:
    """Decoupled weight decay (arXiv:1711.05101) with moments kept in BF16. Norm weights do not
    decay. A second beta of 0.95 is what lets the moments be BF16: one of 0.999 would change the
    second moment by less than half a unit in the last of its 8 bits and leave it where it is."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.steps = 0
        self.first = [torch.zeros_like(p, dtype=torch.bfloat16) for p in self.parameters]
        self.second = [torch.zeros_like(p, dtype=torch.bfloat16) for p in self.parameters]
        self._found_at: list[int] = []
        self._tables = (torch.empty(0), torch.empty(0))

    @torch.no_grad()
    def step(self, learning_rate: float) -> float:
        """Clip the gradients, change the weights, fill the gradients with zeros; returns the norm
        before clipping."""
        gradients = [gradient(parameter) for parameter in self.parameters]
        norm = ops.gradient_norm(gradients, site=UPDATE("optimizer.norm"))
        self.update(gradients, norm, learning_rate=learning_rate)
        return float(norm)

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor], norm: Tensor, *, learning_rate: float) -> None:
        """The step with gradients of this norm, float32 []; the host waits for nothing."""
        self.steps += 1
        state = (self.parameters, gradients, self.first, self.second)
        found_at = [x.data_ptr() for tensors in state for x in tensors]
        if found_at != self._found_at:
            self._found_at, self._tables = found_at, ops.update_tables(*state)
        ops.adamw(
            *state, norm, *self._tables,
            rate=learning_rate, steps=self.steps, beta=BETAS[0], beta2=BETAS[1],
            epsilon=_EPSILON, decay=WEIGHT_DECAY, clip_norm=CLIP_NORM,
            site=UPDATE("optimizer.update"),
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"steps": self.steps, "first": self.first, "second": self.second}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.steps = state["steps"]
        for mine, saved in ((self.first, state["first"]), (self.second, state["second"])):
            for target, source in zip(mine, saved, strict=True):
                target.copy_(source)
