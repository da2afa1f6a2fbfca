"""Whole steps of the model: which there are, and how to run and time them on a GPU.

A run is a training micro-batch (forward, loss, backward), a whole training step (the optimizer
included), a decode step or a prefill, of a shipped config, replayed from a CUDA graph or launched
kernel by kernel.

Weights are normal, tokens random, so that experts get uneven rows. Prompts and caches are whole:
every sequence of a decode step holds `context` tokens. bench.py times all of them.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch

from reference_model.captured import Captured, CapturedMicroBatch, can_capture
from reference_model.config import CONFIG_FOLDER, ModelConfig, load_model_config
from reference_model.decode import InferenceModel
from reference_model.layers import RMSNorm, gradient
from reference_model.measure import record_event
from reference_model.measure_device import watch
from reference_model.model import Transformer
from reference_model.optimizer import AdamW
from reference_model.precision import Recipe
from reference_model.profiling import KernelSplit, profile_events, split_kernels

TRAINING, STEP, DECODE, PREFILL = "train_microbatch", "train_step", "decode_step", "prefill"
GRAPH, EAGER = "graph", "eager"

FOUR_LAYERS, MANY_EXPERTS, OFF_THE_GRID = (
    "whole/four_layers", "whole/many_experts", "whole/off_the_grid",
)  # fmt: skip
"""Configs of DeepSeek-V3 cut down to one GPU: four layers whose tokens choose all 8 experts; three
with 32 experts, whose rows are uneven; and three with sizes that no measured table holds."""
OVERLAPPED_PAIR = "whole/overlapped_pair"
"""Of pairs on several GPUs: little compute for the bytes that travel."""

_MILLI = 1e-3
_FEWEST = 5
"""Repetitions that are timed whatever they take."""
_HOST_SAMPLES = 16
"""Fewest of the host's launches, in turns with the repetitions: a host keeps no pace, and the
median of the three that count of six was off by half once."""
_SLEEP_CYCLES_PER_S = 2.0e9
"""Of the GPU's clock, about."""


@dataclass(frozen=True, slots=True)
class WholeRun:
    """One step to time."""

    job: str
    """train_microbatch, train_step, decode_step or prefill."""
    model: str
    """Name of a shipped config."""
    sequences: int
    context: int
    """Tokens of each sequence; of a decode step, tokens each has cached, the new one included."""
    launch: str
    """graph or eager."""


def whole_runs() -> list[WholeRun]:
    """All runs of configs/whole/runs.csv, in the order to time them.

    Sizes of the last five are their own, so that predictions of them are of steps nobody has
    timed."""
    with (CONFIG_FOLDER / "whole" / "runs.csv").open(encoding="utf-8", newline="") as file:
        return [
            WholeRun(
                line["job"],
                line["model"],
                int(line["sequences"]),
                int(line["context"]),
                line["launch"],
            )
            for line in csv.DictReader(file)
        ]


def profiled(step: Callable[[], object], *, repetitions: int) -> KernelSplit:
    """The kernels of the last of some calls, when the clock has settled."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(repetitions):
            step()
        torch.cuda.synchronize()
    return split_kernels(profile_events(profile), repetitions=repetitions)


# -- steps -----------------------------------------------------------------------------------------


def _model(config: ModelConfig, kernels: str, device: torch.device) -> Transformer:
    model = Transformer(config, recipe=Recipe("fp8", kernels), device=device)
    model.initialize(torch.Generator(device).manual_seed(0))
    return model


def _tokens(run: WholeRun, config: ModelConfig, device: torch.device, ahead: int) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(1)
    shape = (run.sequences, run.context + ahead)
    return torch.randint(config.vocab_size, shape, generator=generator, device=device)


def build_step(
    run: WholeRun, *, kernels: str, device: torch.device
) -> tuple[Callable[[], object], Callable[[], object]]:
    """The step to time, and the same launched kernel by kernel, whose operators can be told."""
    config = load_model_config(run.model)
    model = _model(config, kernels, device)
    if run.launch == GRAPH and not can_capture(model.recipe, device):
        raise ValueError(f"kernels {kernels!r} on {device}: this step cannot be captured")
    build = _training if run.job in (TRAINING, STEP) else _serving
    return build(run, model, _tokens(run, config, device, ahead=int(run.job in (TRAINING, STEP))))


def _training(
    run: WholeRun, model: Transformer, tokens: torch.Tensor
) -> tuple[Callable[[], object], Callable[[], object]]:
    def eager() -> object:
        losses, saved = model.loss(tokens, prediction_weight=0.3)
        model.backward(saved)
        return losses

    if run.launch == GRAPH:
        captured = CapturedMicroBatch(model, tokens, prediction_weight=0.3)
        micro_batch: Callable[[], object] = lambda: captured(tokens)  # noqa: E731
    else:
        micro_batch = eager
    if run.job == TRAINING:
        return micro_batch, eager
    for module in model.modules():
        if isinstance(module, RMSNorm):
            gradient(module.weight)
    optimizer = AdamW(model.parameters())

    def step(run_micro_batch: Callable[[], object]) -> None:
        run_micro_batch()
        optimizer.step(1e-4)

    return (lambda: step(micro_batch)), (lambda: step(eager))


def _serving(
    run: WholeRun, model: Transformer, tokens: torch.Tensor
) -> tuple[Callable[[], object], Callable[[], object]]:
    serving = InferenceModel(model)
    caches = serving.new_caches(sequences=run.sequences, capacity=run.context)
    for cache in caches:
        cache.values.normal_()
    inputs: tuple[torch.Tensor, ...] = (tokens,)
    if run.job == DECODE:
        inputs = (tokens[:, :1], tokens.new_full((run.sequences,), run.context - 1))

    def function(given: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        if lengths is None:
            return serving.prefill(given, caches)
        return serving.decode(given, lengths, caches)

    if run.launch == EAGER:
        return (lambda: function(*inputs)), (lambda: function(*inputs))
    captured = Captured(function, *inputs)
    return (lambda: captured(*inputs)), (lambda: function(*inputs))


# -- timing ----------------------------------------------------------------------------------------


class Timed(NamedTuple):
    """A step repeated for some seconds."""

    seconds: float
    """Median from the start of a repetition to its end."""
    spread: float
    """Standard deviation over mean of the second half of the repetitions."""
    repetitions: int
    clock_hz: float
    power_w: float
    host_seconds: float | None
    """Median time that the host takes to launch the step; None where it was not asked for."""


def time_step(step: Callable[[], object], *, duration_s: float, host: bool = False) -> Timed:
    """Repeat a step for duration_s; the second half counts, when clock and power have settled.

    With `host`, the time that the host takes to launch the step is sampled in turns with the
    repetitions, since hosts change their pace from second to second."""
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    spans: list[float] = []
    launches: list[float] = []
    begun = time.monotonic()
    with watch() as samples:
        while (
            len(spans) < 2 * _FEWEST
            or len(launches) < _HOST_SAMPLES * host
            or time.monotonic() - begun < duration_s
        ):
            spans += _spans(step, duration_s / _HOST_SAMPLES if host else duration_s)
            if host:
                launches.append(_host_seconds(step, busy_s=2 * spans[-1]))
    settled, seen = spans[len(spans) // 2 :], samples[len(samples) // 2 :]
    return Timed(
        statistics.median(settled),
        statistics.pstdev(settled) / statistics.mean(settled),
        len(settled),
        statistics.median([clock for clock, _ in seen] or [0.0]) * 10.0**6,
        statistics.median([power for _, power in seen] or [0.0]),
        statistics.median(launches[len(launches) // 2 :]) if host else None,
    )


def _spans(step: Callable[[], object], duration_s: float) -> list[float]:
    """Seconds from the start of each repetition to its end, one step ahead of the GPU, as a
    training loop is."""
    marks = [record_event()]
    begun = time.monotonic()
    while len(marks) <= _FEWEST or time.monotonic() - begun < duration_s:
        step()
        marks.append(record_event())
        if len(marks) > 2:
            marks[-2].synchronize()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) * _MILLI for a, b in pairwise(marks)]


def _host_seconds(step: Callable[[], object], *, busy_s: float) -> float:
    """Time the host takes to launch a step while the GPU is busy with something else, for about
    busy_s: longer than launching takes, which is at most what a step takes."""
    torch.cuda.synchronize()
    torch.cuda._sleep(round(busy_s * _SLEEP_CYCLES_PER_S))  # type: ignore[no-untyped-call]
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun
