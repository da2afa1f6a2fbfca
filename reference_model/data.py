"""Token sequences to train on, generated or read from local files.

A batch depends on the source's seed and the step alone, so that a run resumes with the batches it
would have had, and two runs of the same seed see the same tokens in the same order.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BYTES = 256
"""Vocabulary of text read as bytes."""

_HELD_OUT = 1 << 32
"""Batches from this step on are for evaluation; training never gets there."""


class TokenSource(Protocol):
    """Where sequences come from."""

    @property
    def vocabulary(self) -> int:
        """Tokens are below this number."""
        ...

    @property
    def entropy(self) -> float | None:
        """Nats a token that no model can go below, where it is known."""
        ...

    @property
    def description(self) -> str:
        """What it is, in one line."""
        ...

    def batch(self, step: int, *, sequences: int, length: int) -> Tensor:
        """Training sequences of a step, int64 [sequences, length]."""
        ...

    def held_out(self, batch: int, *, sequences: int, length: int) -> Tensor:
        """Sequences that training does not see, int64 [sequences, length]."""
        ...


def _rng(seed: int, step: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence((seed, step)))


@dataclass(frozen=True, slots=True)
class MarkovSource:
    """A first-order Markov chain: the next token depends on the last one only.

    Its entropy rate is the floor of the loss of the next token, and of the token after the next as
    well, because multi-token prediction is given the token between."""

    transitions: NDArray[np.float64]
    """[symbols, symbols]: probability of the next symbol (column) after one (row)."""
    seed: int

    @property
    def vocabulary(self) -> int:
        return int(self.transitions.shape[0])

    @property
    def entropy(self) -> float:
        """Nats a token: the entropy of each row, weighted by how often its symbol occurs."""
        p = self.transitions
        logs = np.log(p, out=np.zeros_like(p), where=p > 0)
        return float(self.stationary @ -(p * logs).sum(axis=1))

    @property
    def stationary(self) -> NDArray[np.float64]:
        """[symbols]: how often each symbol occurs, the solution of pi P = pi with sum 1."""
        symbols = self.vocabulary
        equations = np.vstack((self.transitions.T - np.eye(symbols), np.ones(symbols)))
        right = np.append(np.zeros(symbols), 1.0)
        pi: NDArray[np.float64] = np.linalg.lstsq(equations, right, rcond=None)[0]
        return pi

    @property
    def description(self) -> str:
        return (
            f"Markov chain of {self.vocabulary} symbols, seed {self.seed}, entropy"
            f" {self.entropy:.4f} nats a token"
        )

    def batch(self, step: int, *, sequences: int, length: int) -> Tensor:
        rng = _rng(self.seed, step)
        # Inverse transform: the symbol is where a uniform number falls in the cumulated row.
        cumulative = self.transitions.cumsum(axis=1)
        cumulative[:, -1] = 1.0
        tokens = np.empty((sequences, length), dtype=np.int64)
        tokens[:, 0] = rng.choice(self.vocabulary, size=sequences, p=self.stationary)
        for position in range(1, length):
            rows = cumulative[tokens[:, position - 1]]  # [sequences, symbols]
            tokens[:, position] = (rng.random((sequences, 1)) >= rows).sum(axis=1)
        return torch.from_numpy(tokens)

    def held_out(self, batch: int, *, sequences: int, length: int) -> Tensor:
        return self.batch(_HELD_OUT + batch, sequences=sequences, length=length)


def markov_source(*, symbols: int, concentration: float, seed: int) -> MarkovSource:
    """A chain whose rows are drawn from a Dirichlet distribution of the given concentration: small
    values make the next symbol nearly certain, large ones nearly arbitrary.

    Raises ValueError where a value leaves no such chain."""
    if symbols < 2:
        raise ValueError(f"symbols = {symbols} must be at least 2")
    if not 0 < concentration < np.inf:
        raise ValueError(f"concentration = {concentration} must be above 0 and finite")
    rng = np.random.default_rng(seed)
    transitions = rng.dirichlet(np.full(symbols, concentration), size=symbols)
    # A little of every symbol everywhere: one stationary distribution, whatever was drawn.
    transitions = 0.99 * transitions + 0.01 / symbols
    return MarkovSource(transitions / transitions.sum(axis=1, keepdims=True), seed)


@dataclass(frozen=True, slots=True)
class TextSource:
    """Windows of a text, read as bytes; the last tenth is held out."""

    text: NDArray[np.uint8]
    name: str
    seed: int

    @property
    def vocabulary(self) -> int:
        return BYTES

    @property
    def entropy(self) -> None:
        return None

    @property
    def description(self) -> str:
        digest = hashlib.sha256(self.text.tobytes()).hexdigest()[:12]
        return f"{self.name}: {self.text.size:,} bytes (SHA-256 {digest}), seed {self.seed}"

    def batch(self, step: int, *, sequences: int, length: int) -> Tensor:
        split = self.text.size * 9 // 10
        return self._windows(self.text[:split], step, sequences, length)

    def held_out(self, batch: int, *, sequences: int, length: int) -> Tensor:
        split = self.text.size * 9 // 10
        return self._windows(self.text[split:], _HELD_OUT + batch, sequences, length)

    def _windows(self, text: NDArray[np.uint8], step: int, sequences: int, length: int) -> Tensor:
        if length > text.size:
            raise ValueError(f"{self.name}: no window of {length} in {text.size} bytes")
        starts = _rng(self.seed, step).integers(text.size - length + 1, size=sequences)
        windows = text[starts[:, None] + np.arange(length)]
        return torch.from_numpy(windows.astype(np.int64))


def standard_library(*, seed: int, folder: Path | None = None) -> TextSource:
    """The modules at the top level of Python's standard library, joined in the order of their
    names. Another version of Python has another text; its digest is in the description."""
    folder = folder or Path(sysconfig.get_path("stdlib"))
    files = sorted(folder.glob("*.py"))
    if not files:
        raise ValueError(f"{folder}: holds no .py file")
    text = b"\n".join(path.read_bytes() for path in files)
    return TextSource(np.frombuffer(text, dtype=np.uint8), f"{len(files)} Python modules", seed)


SOURCES = ("markov", "stdlib")


def open_source(name: str, *, symbols: int, concentration: float, seed: int) -> TokenSource:
    """One of `SOURCES`; symbols and concentration are those of the Markov chain."""
    if name == "markov":
        return markov_source(symbols=symbols, concentration=concentration, seed=seed)
    if name == "stdlib":
        return standard_library(seed=seed)
    raise ValueError(f"data {name!r} is not one of {list(SOURCES)}")
