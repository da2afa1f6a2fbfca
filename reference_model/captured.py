"""Steps captured in CUDA graphs: run once for real, then replayed.

A replay launches every kernel of a step at once, so that the host is not in the way. What is
captured has to have shapes that do not depend on values, and nothing in it may wait for the GPU:
FP8 steps on a backend of gpu.CAPTURABLE are such; BF16 and FP32 read the sizes of their grouped
products on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, distributed

from reference_model.gpu import CAPTURABLE
from reference_model.layers import Weight
from reference_model.model import Losses, SavedStep, Transformer
from reference_model.moments import wait_for_device
from reference_model.precision import Recipe
from reference_model.recorder import prepare_weights

_T = TypeVar("_T")


def can_capture(recipe: Recipe, device: torch.device) -> bool:
    """Whether a step of this recipe can be captured on this device."""
    return device.type == "cuda" and recipe.fp8 and recipe.kernels in CAPTURABLE


class Captured(Generic[_T]):
    """A function of tensors as a CUDA graph. Its results are the same tensors at every call."""

    def __init__(self, function: Callable[..., _T], *inputs: Tensor) -> None:
        """Runs the function once, which compiles its kernels, and captures it."""
        self.inputs = [x.clone() for x in inputs]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = function(*self.inputs)

    def __call__(self, *inputs: Tensor) -> _T:
        """Replay with the values of other inputs of the same shapes."""
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.result


class RankStep:
    """A step that all ranks run together: captured where that is possible, and replayed."""

    def __init__(self, run: Callable[[], object], device: torch.device) -> None:
        """Runs it once, which compiles its kernels, and captures it."""
        self.device = device
        kept = run()
        wait_for_device(device)
        del kept
        self.graph: torch.cuda.CUDAGraph | None = None
        self.run = run
        if device.type == "cuda":
            distributed.barrier()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                run()

    def __call__(self) -> None:
        """Run or replay it."""
        if self.graph is None:
            self.run()
        else:
            self.graph.replay()


class CapturedMicroBatch:
    """Forward, loss and backward of micro-batches of one shape, gradients added up as in eager."""

    def __init__(self, model: Transformer, tokens: Tensor, *, prediction_weight: float) -> None:
        """Captures on `tokens`; leaves all gradients zero."""
        self.weights = [child for child in model.modules() if isinstance(child, Weight)]
        prepare_weights(model)

        def run(batch: Tensor) -> tuple[Losses, SavedStep]:
            losses, saved = model.loss(batch, prediction_weight=prediction_weight)
            model.backward(saved)
            return losses, saved

        self.run = Captured(run, tokens)
        torch._foreach_zero_([p.grad for p in model.parameters() if p.grad is not None])

    def __call__(self, tokens: Tensor) -> tuple[Losses, SavedStep]:
        """-> losses, and what the layers kept, valid until the next call."""
        for weight in self.weights:
            weight.working_copy()
        return self.run(tokens)
