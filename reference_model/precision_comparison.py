"""Compare training losses in FP8 and BF16.

The published bound is a relative error of the loss below 0.25% (Technical Report, section 3.3; on
models of 16 and 230 billion parameters). Here the same is asked of models that a CPU trains in
minutes: the same data and weights in both precisions, beside the difference that other initial
weights make in BF16, and beside FP8 without parts of the recipe. A small model on an easy source
cannot show what a large one needs: its products are short and its activations have few outliers.
So the error of a single matrix product is measured as well, at lengths that models have.
"""

from __future__ import annotations

import csv
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from reference_model.balance import saved_choices
from reference_model.kernels import load_backend
from reference_model.train import Training, TrainingSettings

PUBLISHED_BOUND = 0.0025
"""Relative error of the FP8 loss (Technical Report, section 3.3)."""

PRODUCT_VARIANTS = {
    "fp8": "reference",
    "fp8 per tensor": "per_tensor",
    "fp8 no promotion": "no_promotion",
}
"""Variant of the FP8 recipe -> its kernels. The first is the whole recipe."""


def smoothed(losses: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Means of the last `window` steps, of fewer at the beginning; [steps]."""
    if window < 1:
        raise ValueError(f"window = {window} must be at least 1")
    sums = np.concatenate(([0.0], losses.cumsum()))
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(ends - window, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def relative_errors(
    losses: NDArray[np.float64], baseline: NDArray[np.float64], *, window: int
) -> NDArray[np.float64]:
    """Smoothed loss / smoothed baseline - 1 of each step in the last half."""
    half = len(losses) // 2
    return np.asarray(smoothed(losses, window) / smoothed(baseline, window) - 1)[half:]


def compared_settings(
    settings: TrainingSettings, *, seeds: int, kernels: Sequence[str]
) -> dict[str, TrainingSettings]:
    """Settings of the runs by name: BF16 with `seeds` initial weights, and with the first of
    them FP32 and FP8 in each of `kernels`. With several GPUs at hand, runs on "cuda" take them
    in turn."""
    first = settings.seed
    runs = {
        f"bf16 seed {seed}": replace(settings, precision="bf16", seed=seed)
        for seed in range(first, first + seeds)
    }
    runs["fp32"] = replace(settings, precision="fp32")
    names = {backend: name for name, backend in PRODUCT_VARIANTS.items()}
    for backend in kernels:
        name = names.get(backend, f"fp8 {backend}")
        runs[name] = replace(settings, precision="fp8", kernels=backend)
    gpus = torch.cuda.device_count() if settings.device == "cuda" else 0
    if gpus > 1:
        for place, (name, run) in enumerate(runs.items()):
            runs[name] = replace(run, device=f"cuda:{place % gpus}")
    return runs


class TrainedRun(NamedTuple):
    """What is kept of a run."""

    losses: NDArray[np.float64]
    """[steps], of the next token."""
    held_out: float
    """Of the next token, on held-out data."""


def compare_precisions(
    settings: TrainingSettings,
    *,
    seeds: int,
    kernels: Sequence[str],
    held_out_batches: int,
    processes: int,
    on_trained: Callable[[str, TrainedRun], None],
) -> dict[str, TrainedRun]:
    """Train all of `compared_settings`, `processes` at a time, by their names."""
    if seeds < 2:
        raise ValueError(f"seeds = {seeds} must be at least 2: one spread needs two runs")
    if processes < 1:
        raise ValueError(f"processes = {processes} must be at least 1")
    results: dict[str, TrainedRun] = {}
    runs = compared_settings(settings, seeds=seeds, kernels=kernels)
    trained = _trained(list(runs.values()), held_out_batches, processes)
    for name, run in zip(runs, trained, strict=True):
        on_trained(name, run)
        results[name] = run
    return results


def _trained(
    runs: list[TrainingSettings], held_out_batches: int, processes: int
) -> Iterator[TrainedRun]:
    """The runs trained, in order; in processes of their own where there are to be several."""
    batches = [held_out_batches] * len(runs)
    if processes == 1:
        yield from map(_train, runs, batches)
        return
    # Spawned: CUDA does not survive a fork.
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // processes)
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        yield from pool.map(_train, runs, batches)


def _train(settings: TrainingSettings, held_out_batches: int) -> TrainedRun:
    training = Training(settings)
    training.run()
    losses = np.array([record.main for record in training.history])
    held_out, _, _ = training.evaluate(batches=held_out_batches)
    return TrainedRun(losses, held_out)


@dataclass(frozen=True, slots=True)
class ProductError:
    """Error of one matrix product of random operands."""

    name: str
    k: int
    outliers: float
    """How much larger one row of the left operand is than the others; 1: it is not."""
    error: float
    """Norm of the error of the other rows over that of their exact product."""


def product_errors(
    *, lengths: Sequence[int], outliers: Sequence[float], seed: int, size: int = 64
) -> list[ProductError]:
    """Relative error of [size, k] x [size, k]^T in FP8, for each of `lengths` without an outlier,
    and at the first of them for each of `outliers`.

    Promotion matters where products add up instead of cancelling: the operands of the first kind
    have mean 1. Fine scales matter where a few elements are far larger than the rest: in the second
    kind one row is larger by the given factor, and the error is that of the other rows."""
    generator = torch.Generator().manual_seed(seed)
    cases = [(k, 1.0) for k in lengths] + [(lengths[0], factor) for factor in outliers]
    results = []
    for k, factor in cases:
        mean = 1.0 if factor == 1.0 else 0.0
        a, b = (mean + torch.randn(size, k, generator=generator) for _ in range(2))
        a[0] *= factor
        exact = (a.double() @ b.double().t())[1:]
        for name, backend in PRODUCT_VARIANTS.items():
            kernels = load_backend(backend)
            left = kernels.quantize_tiles(a, power_of_two_scales=False)
            right = kernels.quantize_blocks(b, power_of_two_scales=False)
            product = kernels.gemm_fp8(*left, *right, out_dtype=torch.float32)[1:]
            error = float((product - exact).norm() / exact.norm())
            results.append(ProductError(name, k, factor, error))
    return results


@dataclass(frozen=True, slots=True)
class GradientError:
    """The first gradient of a run beside that of the same weights and batch in FP32."""

    name: str
    error: float
    """Norm of the difference of all gradients over the norm of the FP32 ones."""
    median: float
    """The same tensor by tensor: the one in the middle."""
    worst: float
    """The largest of these."""
    changed: float
    """Share of tokens, over all layers, of which another set of experts was chosen; not a number
    for another batch, whose tokens are others."""


def gradient_errors(settings: TrainingSettings) -> list[GradientError]:
    """Errors of the gradients of BF16, of FP8, and of FP32 on another batch: how much one batch
    says about the next."""
    exact, choices = _first_gradient(replace(settings, precision="fp32"), batch=0)
    results = []
    for name, precision, batch in (
        ("bf16", "bf16", 0), ("fp8", "fp8", 0), ("fp32, another batch", "fp32", 1)
    ):  # fmt: skip
        gradient, chosen = _first_gradient(replace(settings, precision=precision), batch=batch)
        differences = torch.stack([(gradient[n] - exact[n]).norm() for n in exact])
        norms = torch.stack([exact[n].norm() for n in exact])
        errors = differences / norms
        results.append(
            GradientError(
                name=name,
                error=float(differences.norm() / norms.norm()),
                median=float(errors.median()),
                worst=float(errors.max()),
                changed=float("nan")
                if batch
                else float((chosen != choices).any(dim=1).double().mean()),
            )
        )
    return results


def _first_gradient(
    settings: TrainingSettings, *, batch: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Gradients by name, and the experts chosen, in order [layers x tokens, K]."""
    training = Training(settings)
    tokens = training.batch(batch)
    _, saved = training.model.loss(tokens, prediction_weight=0.3)
    training.model.backward(saved)
    gradients = {n: p.grad for n, p in training.model.named_parameters() if p.grad is not None}
    chosen = [moe.indices.sort(dim=1).values for moe in saved_choices(saved)]
    return gradients, torch.cat(chosen)


def write_comparison(runs: Mapping[str, TrainedRun], path: Path) -> None:
    """Write the losses of all runs as CSV, one column a run."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *runs])
        columns = [run.losses.tolist() for run in runs.values()]
        writer.writerows((step, *row) for step, row in enumerate(zip(*columns, strict=True)))


def plot_comparison(
    runs: Mapping[str, TrainedRun], path: Path, *, window: int, floor: float | None
) -> None:
    """Draw the smoothed losses, and below them their relative difference to the first run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    first = next(iter(runs))
    baseline = smoothed(runs[first].losses, window)
    for name, run in runs.items():
        loss = smoothed(run.losses, window)
        style = "-" if name.startswith("fp8") else "--"
        above.plot(loss, style, label=name, linewidth=1)
        below.plot(100 * (loss / baseline - 1), style, linewidth=1)
    if floor is not None:
        above.axhline(floor, color="black", linewidth=0.8, label="entropy of the source")
    above.set_ylabel(f"loss, mean of {window} steps (nats a token)")
    above.legend(fontsize=8)
    below.axhspan(-100 * PUBLISHED_BOUND, 100 * PUBLISHED_BOUND, color="grey", alpha=0.3)
    below.set_ylim(-2, 2)
    below.set_ylabel(f"difference to {first} (%)")
    below.set_xlabel("step (grey: the published bound, 0.25%)")
    figure.savefig(path, dpi=150)
