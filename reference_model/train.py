"""Train the model, with one record per step; interrupted runs resume.

A step draws a batch, runs forward, loss and backward, moves the weights, and steps the balancing
biases by the load of the whole batch. Everything random comes from the settings' seeds: one for the
weights, one for the data.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reference_model.alignment import check_recipe
from reference_model.balance import (
    add_balance_loss,
    balance_value,
    expert_load,
    maximum_violation,
    saved_choices,
    step_biases,
)
from reference_model.captured import CapturedMicroBatch, can_capture
from reference_model.config import load_model_config
from reference_model.data import TokenSource, open_source
from reference_model.gpu import choose_kernels
from reference_model.model import Losses, SavedStep, Transformer
from reference_model.optimizer import (
    AdamW,
    batch_sequences,
    bias_step,
    learning_rate,
    prediction_weight,
)
from reference_model.precision import Recipe

CHECKPOINT = "checkpoint.pt"
LOSSES = "losses.csv"

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp8": "fp8"}
"""Name of a precision on the command line -> recipe."""


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Everything that a run depends on."""

    config: str
    """A shipped config, or the path of a config.json."""
    precision: str
    """One of `PRECISIONS`."""
    kernels: str | None
    """Backend of the kernels; None: the default of the device (`gpu.default_kernels`)."""
    device: str
    steps: int
    sequences: int
    """Sequences of a batch, once the batch has grown."""
    first_sequences: int
    """Sequences of the first batch."""
    context: int
    """Tokens of a sequence that predict."""
    peak_learning_rate: float
    warmup_steps: int
    schedule: str
    """Of the learning rate: report or constant."""
    gamma: float
    """Step of the balancing biases."""
    balance_alpha: float
    """Weight of the auxiliary balance loss; 0: none."""
    seed: int
    """Of the weights."""
    initial_deviation: float
    """Of the first weights; 0: variance 1 / fan-in."""
    data: str
    """markov or stdlib."""
    symbols: int
    """Of the Markov chain."""
    concentration: float
    """Of the Markov chain's rows."""
    data_seed: int
    eager: bool = False
    """Whether every kernel is launched by itself where a step could be captured in a CUDA graph."""
    deterministic: bool = False
    """Whether a run on CUDA has the same bits each time (`gpu.use_kernels`)."""

    def __post_init__(self) -> None:
        for name in ("steps", "sequences", "first_sequences", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.first_sequences > self.sequences:
            raise ValueError(
                f"first_sequences = {self.first_sequences} must be at most sequences ="
                f" {self.sequences}"
            )
        for name in ("gamma", "balance_alpha", "warmup_steps", "initial_deviation"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)} must not be negative")
        if not self.peak_learning_rate > 0:
            raise ValueError(f"peak_learning_rate = {self.peak_learning_rate} must be above 0")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is not one of {list(PRECISIONS)}")


class StepRecord(NamedTuple):
    """What a step did. Losses are means over its batch before the step, in nats a token."""

    step: int
    sequences: int
    learning_rate: float
    main: float
    mtp: float
    """Of the token after the next; not a number where the model does not predict it."""
    gradient_norm: float
    """Before clipping."""
    max_violation: float
    """Mean over layers of (largest - mean) / mean expert load."""
    balance: float
    """The balance loss, without its weight; 1 where every sequence is balanced."""


class Training:
    """A run: its model, its optimizer and what it did so far."""

    def __init__(self, settings: TrainingSettings) -> None:
        self.settings = settings
        self.config = load_model_config(settings.config)
        self.source: TokenSource = open_source(
            settings.data,
            symbols=settings.symbols,
            concentration=settings.concentration,
            seed=settings.data_seed,
        )
        if self.source.vocabulary > self.config.vocab_size:
            raise ValueError(
                f"{settings.data} data has {self.source.vocabulary} symbols, the vocabulary of"
                f" {settings.config} only {self.config.vocab_size}"
            )
        device = torch_device(settings.device)
        if device.index is not None and device.type == "cuda":
            torch.cuda.set_device(device)  # Triton launches on the current device
        kernels = choose_kernels(settings.kernels, device, deterministic=settings.deterministic)
        recipe = Recipe(PRECISIONS[settings.precision], kernels)
        check_recipe(self.config, recipe)
        self.model = Transformer(self.config, recipe=recipe, device=device)
        # Drawn on the CPU, so that every device starts from the same weights.
        initial = Transformer(self.config, recipe=recipe, device=torch.device("cpu"))
        generator = torch.Generator().manual_seed(settings.seed)
        initialize(initial, generator, deviation=settings.initial_deviation)
        self.model.load_state_dict(initial.state_dict())
        if settings.balance_alpha:
            add_balance_loss(self.model, alpha=settings.balance_alpha, length=settings.context)
        self.optimizer = AdamW(self.model.parameters())
        self.captures = can_capture(recipe, device) and not settings.eager
        self._captured: tuple[tuple[object, ...], CapturedMicroBatch] | None = None
        self.history: list[StepRecord] = []

    def run(
        self, *, until: int | None = None, on_step: Callable[[StepRecord], None] | None = None
    ) -> None:
        """Train on to step `until` (the last one by default), calling `on_step` after each."""
        last = self.settings.steps if until is None else min(until, self.settings.steps)
        for step in range(len(self.history), last):
            record = self._step(step)
            self.history.append(record)
            if on_step is not None:
                on_step(record)

    def evaluate(self, *, batches: int) -> tuple[float, float, Tensor]:
        """Losses of the next token and of the one after on held-out data, and the load of experts
        there, int64 [layers, experts]."""
        main, mtp, loads = [], [], []
        for batch in range(batches):
            tokens = self.source.held_out(
                batch, sequences=self.settings.sequences, length=self._length
            )
            losses, saved = self.model.loss(tokens.to(self.model.device), prediction_weight=0.0)
            main.append(float(losses.main))
            mtp.append(float("nan") if losses.mtp is None else float(losses.mtp))
            if self.config.num_moe_layers:
                loads.append(expert_load(saved, experts=self.config.n_routed_experts).cpu())
        load = torch.stack(loads).sum(dim=0) if loads else torch.zeros((0, 0), dtype=torch.int64)
        return sum(main) / batches, sum(mtp) / batches, load

    def batch(self, step: int) -> Tensor:
        """Sequences of a step, int64 [sequences, length], on the model's device."""
        tokens = self.source.batch(step, sequences=self._sequences(step), length=self._length)
        return tokens.to(self.model.device)

    def _sequences(self, step: int) -> int:
        s = self.settings
        return batch_sequences(step, steps=s.steps, first=s.first_sequences, final=s.sequences)

    @property
    def _length(self) -> int:
        """Tokens of a sequence: those that predict, and those that are only predicted."""
        return self.settings.context + 1 + self.config.num_nextn_predict_layers

    def _step(self, step: int) -> StepRecord:
        s = self.settings
        rate = learning_rate(
            step, steps=s.steps, peak=s.peak_learning_rate, warmup_steps=s.warmup_steps,
            schedule=s.schedule,
        )  # fmt: skip
        losses, saved = self._micro_batch(
            self.batch(step), prediction_weight=prediction_weight(step, steps=s.steps)
        )
        violation = balance = torch.tensor(float("nan"))
        if self.config.num_moe_layers:
            load = expert_load(saved, experts=self.config.n_routed_experts)
            violation, balance = maximum_violation(load).mean(), self._balance(saved)
        # Numbers are read once all work of the step is in the GPU's queue.
        norm = self.optimizer.step(rate)
        gamma = bias_step(step, steps=s.steps, gamma=s.gamma)
        if gamma and self.config.num_moe_layers:
            step_biases(self.model, load, gamma=gamma)
        return StepRecord(
            step=step,
            sequences=self._sequences(step),
            learning_rate=rate,
            main=float(losses.main),
            mtp=float("nan") if losses.mtp is None else float(losses.mtp),
            gradient_norm=norm,
            max_violation=float(violation),
            balance=float(balance),
        )

    def _micro_batch(self, tokens: Tensor, *, prediction_weight: float) -> tuple[Losses, SavedStep]:
        """Forward and backward of a batch, captured or kernel by kernel."""
        if not self.captures:
            losses, saved = self.model.loss(tokens, prediction_weight=prediction_weight)
            self.model.backward(saved)
            return losses, saved
        key = (tokens.shape, prediction_weight)
        if self._captured is None or self._captured[0] != key:
            self._captured = None  # its memory is that of the next
            self._captured = (
                key,
                CapturedMicroBatch(self.model, tokens, prediction_weight=prediction_weight),
            )
        return self._captured[1](tokens)

    def _balance(self, saved: SavedStep) -> Tensor:
        # All layers at once: kernels of a small model take longer to start than to run on a GPU.
        choices = saved_choices(saved)
        return balance_value(
            torch.cat([moe.logits for moe in choices]),
            torch.cat([moe.indices for moe in choices]),
            length=self.settings.context,
            scoring=self.config.scoring_func,
        )

    # -- on disk -----------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write checkpoint and losses into `folder`; a checkpoint is there whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "settings": asdict(self.settings),
            "config_digest": self.config.digest,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state(),
            "history": [tuple(record) for record in self.history],
        }
        partial = folder / (CHECKPOINT + ".partial")
        torch.save(content, partial)
        os.replace(partial, folder / CHECKPOINT)
        with (folder / LOSSES).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(StepRecord._fields)
            writer.writerows(self.history)


def resume(folder: Path, *, precision: str | None = None, device: str | None = None) -> Training:
    """The run whose checkpoint is in `folder`, where it stood, in its own precision and on its own
    device unless another is given. ValueError where there is none, or its config has changed."""
    path = folder / CHECKPOINT
    if not path.is_file():
        raise ValueError(f"{path}: there is no checkpoint to resume from")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        changes = {"precision": precision, "device": device}
        changed = {name: value for name, value in changes.items() if value is not None}
        settings = TrainingSettings(**(content["settings"] | changed))
        history = [StepRecord(*record) for record in content["history"]]
    except (UnpicklingError, RuntimeError, KeyError, TypeError, EOFError) as error:
        raise ValueError(f"{path}: is not a checkpoint of a training run") from error
    training = Training(settings)
    if training.config.digest != content["config_digest"]:
        raise ValueError(f"{path}: config {settings.config} has changed since the checkpoint")
    training.model.load_state_dict(content["model"])
    training.optimizer.load(content["optimizer"])
    training.history = history
    return training


@torch.no_grad()
def initialize(model: Transformer, generator: torch.Generator, *, deviation: float) -> None:
    """Random weights: norms 1, matrices normal with this standard deviation, or of variance
    1 / fan-in where it is 0.

    DeepSeek-V3 starts from 0.006 (Report, section 4.2). FP8 is sensitive to it: with variance
    1 / fan-in layers outweigh the residual stream that they add to, and rounding errors grow from
    layer to layer (`python -m reference_model gradient-error`); narrow models learn more slowly
    from 0.006."""
    model.initialize(generator)
    if deviation:
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(deviation * parameter.shape[-1] ** 0.5)


def torch_device(name: str) -> torch.device:
    """The device of that name; ValueError where torch knows none, or has none here."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is not a torch device") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r}: there is no CUDA device here")
    return device


class Progress:
    """Prints a line every `every` steps: losses, and the time that is left."""

    def __init__(self, training: Training, *, every: int, show: Callable[[str], None]) -> None:
        self.settings = training.settings
        self.every = every
        self.show = show
        self.started_at = len(training.history)
        self.start = time.perf_counter()

    def __call__(self, record: StepRecord) -> None:
        done, steps = record.step + 1, self.settings.steps
        if done % self.every and done != steps:
            return
        seconds = time.perf_counter() - self.start
        left = seconds / (done - self.started_at) * (steps - done)
        self.show(
            f"step {done:5d}/{steps}  loss {record.main:.4f}  mtp {record.mtp:.4f}  max violation"
            f" {record.max_violation:.2f}  lr {record.learning_rate:.2e}  {left:5.0f} s left"
        )
