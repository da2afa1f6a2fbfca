"""Register a function and its output shapes as a custom operator."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from reference_model.formats import TILE

NAMESPACE = "dsv3"
"""Of all custom operators of the model."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Site:
    """Where operators are called from: `site("q_a_proj")` names one call."""

    phase: str
    """The pass that issues the operator, one of kinds.PHASES."""
    segment: str
    """The schedulable part of the layer."""
    recompute: bool = False
    """True in a backward that repeats a forward operator."""

    @classmethod
    def of(cls, phase: str, segment: str) -> "Site":
        """The site in a forward, the first time or again before the backward of a layer."""
        return cls(phase, segment, recompute=phase == "recompute")

    def __call__(self, name: str) -> str:
        return f"{self.phase}:{self.segment}:{name}{':recompute' if self.recompute else ''}"


def operator(
    *, fake: Callable[..., Any] | None, mutates: Sequence[str] = ()
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Register a function as a custom operator, with its shapes on meta (None: no result)."""

    def register(function: Callable[_P, _R]) -> Callable[_P, _R]:
        registered = torch.library.custom_op(
            f"{NAMESPACE}::{function.__name__}", function, mutates_args=mutates
        )
        registered.register_fake(fake or (lambda *_, **__: None))
        return cast(Callable[_P, _R], registered)

    return register


def like_first(x: Tensor, *_: object, **__: object) -> Tensor:
    """Fake of an operator whose result has the shape and type of its first argument."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def scale_tiles(columns: int) -> int:
    """Scales of a row of `columns` quantised values."""
    return -(-columns // TILE)
