"""Attention over packed documents: each token attends to those before it in its own document.

Documents lie one after the other and are cut where a sequence ends. The attention of a sequence is
that of its parts, the sum of their squares where whole sequences have one square, so that it
differs from sequence to sequence; all else is as many tokens as before. An attention kernel runs as
many equal documents, a whole number rounded up, as have the same sum of squares.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.whole_files import read_text
from reference_model.trace import Operator
from simulator.scenario.documents import Documents
from simulator.workload.chunk import OperatorsOf
from simulator.workload.skew import Single

MICRO_BATCHES = 4096
"""Of which the attention is drawn, fewer where their documents are many."""

MOST_DOCUMENTS = 2**22

Lengths = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PackedWork:
    """The attention of micro-batches of packed documents."""

    share: float
    """Mean, over that of whole sequences."""
    relative: Single
    """[micro-batches], over the mean."""

    @property
    def spread(self) -> float:
        """Relative sd between micro-batches."""
        return float(self.relative.std())


def packed_work(
    documents: Documents, *, sequence_length: int, sequences: int, rng: np.random.Generator
) -> PackedWork:
    """Pack documents into micro-batches and count their attention.

    Args:
        sequences: of one micro-batch.

    Raises:
        ValueError: a file of lengths that cannot be read.
    """
    draw, mean = _lengths(documents)
    tokens = sequence_length * sequences
    batches = int(min(MICRO_BATCHES, max(16, MOST_DOCUMENTS * mean / tokens)))
    total = batches * tokens
    ends = np.zeros(0, dtype=np.int64)
    while not len(ends) or ends[-1] < total:
        more = draw(math.ceil(1.1 * total / mean) + 1, rng)
        ends = np.append(ends, more.cumsum() + (ends[-1] if len(ends) else 0))
    cuts = np.arange(0, total + 1, sequence_length)
    edges = np.union1d(ends[ends < total], cuts)
    squares = np.diff(edges).astype(np.float64) ** 2
    work = np.bincount(edges[:-1] // tokens, weights=squares, minlength=batches)
    whole = float(sequences) * sequence_length**2
    return PackedWork(
        share=float(work.mean()) / whole,
        relative=(work / work.mean()).astype(np.float32),
    )


def _lengths(
    documents: Documents,
) -> tuple[Callable[[int, np.random.Generator], Lengths], float]:
    """A function that draws so many lengths, and their mean."""
    if documents.median is not None and documents.sigma is not None:
        centre, sigma = math.log(documents.median), documents.sigma

        def lognormal(count: int, rng: np.random.Generator) -> Lengths:
            drawn = np.exp(centre + sigma * rng.standard_normal(count))
            return np.maximum(np.rint(drawn), 1).astype(np.int64)

        return lognormal, documents.median * math.exp(sigma**2 / 2)
    if documents.file is not None:
        tokens, counts = read_lengths(Path(documents.file))
    else:
        tokens = np.array([part.tokens for part in documents.lengths])
        counts = np.array([part.share for part in documents.lengths])
    shares = counts / counts.sum()

    def listed(count: int, rng: np.random.Generator) -> Lengths:
        return np.asarray(rng.choice(tokens, size=count, p=shares))

    return listed, float((tokens * shares).sum())


def read_lengths(path: Path) -> tuple[Lengths, NDArray[np.float64]]:
    """(tokens, documents) of a CSV file with these columns.

    Raises ValueError naming file, line and value.
    """
    reader = csv.DictReader(read_text(path, where=str(path)).splitlines())
    wanted = ["documents", "tokens"]
    if sorted(reader.fieldnames or []) != wanted:
        raise ValueError(f"{path}: columns {reader.fieldnames}; allowed: tokens, documents")
    rows = []
    for number, line in enumerate(reader, start=2):
        try:
            tokens, documents = int(line["tokens"]), float(line["documents"])
        except (TypeError, ValueError):
            raise ValueError(f"{path}: line {number}: {line} are not two numbers") from None
        if not (tokens >= 1 and 0 < documents < math.inf):
            raise ValueError(
                f"{path}: line {number}: tokens {tokens}, documents {documents:g}; allowed: at "
                "least 1 token, and a number of documents above 0"
            )
        rows.append((tokens, documents))
    if not rows:
        raise ValueError(f"{path}: has no documents; allowed: at least one length")
    return np.array([t for t, _ in rows]), np.array([d for _, d in rows])


def with_documents(operators: OperatorsOf, share: float) -> OperatorsOf:
    """The operators with attention inside documents.

    Args:
        share: attention over that of whole sequences; 1 leaves every operator as it is.

    Raises:
        ValueError: sparse attention, whose selection knows no documents.
    """
    known: dict[tuple[str, str], Sequence[Operator]] = {}

    def lookup(layer_kind: str, phase: str) -> Sequence[Operator]:
        key = (layer_kind, phase)
        if key not in known:
            known[key] = [_inside(op, share) for op in operators(layer_kind, phase)]
        return known[key]

    return lookup


def _inside(operator: Operator, share: float) -> Operator:
    """An attention core with `share` of its work; any other operator as it is."""
    if operator.name.startswith("attention.indexer."):
        raise ValueError(
            "training.documents: sparse attention selects among the keys of whole sequences; "
            "allowed: without documents for this model"
        )
    sizes = dict(operator.sizes)
    if not operator.name.startswith("attention.core") or "kv_length" not in sizes:
        return operator
    parts = math.ceil(sizes["sequences"] / share - 1e-9)
    shorter = math.sqrt(sizes["sequences"] * share / parts)
    changed = {name: max(1, round(sizes[name] * shorter)) for name in ("query_length", "kv_length")}
    changed["sequences"] = parts
    return replace(operator, sizes=tuple(sorted((sizes | changed).items())))
