"""How long decode steps and prefill passes take: the boundary between a fleet and its instances.

A fleet asks only what stands in StepTimes. AffineStepTimes answers from coefficients;
InterpolatedStepTimes from any slower model, which it asks once for each grid point.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

from simulator.scenario.fleet import AffineCoefficients


class StepTimes(Protocol):
    """Times of one instance, whose data-parallel ranks all have the given load."""

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens of KV cache that one rank holds."""
        ...

    @property
    def page_tokens(self) -> int:
        """Tokens of one page, in which KV cache is given out."""
        ...

    def decode_step_s(self, batch: float, mean_context: float) -> float:
        """One decode step of ``batch`` requests per rank with ``mean_context`` KV tokens each."""
        ...

    def prefill_pass_s(self, tokens: float, context: float) -> float:
        """One prefill pass of ``tokens`` new tokens per rank, each attending to ``context`` tokens.

        ``context`` is a mean that counts the token itself: (n + 1) / 2 for a prompt of n tokens
        computed in one piece.
        """
        ...


class AffineStepTimes:
    """StepTimes as sums of costs, from the coefficients of a scenario."""

    def __init__(self, coefficients: AffineCoefficients) -> None:
        self.kv_capacity_tokens = coefficients.kv_capacity_tokens
        self.page_tokens = 1
        self._decode_fixed_s = coefficients.decode_fixed
        self._decode_request_s = coefficients.decode_per_request
        self._decode_context_s = coefficients.decode_per_context_token
        self._prefill_fixed_s = coefficients.prefill_fixed
        self._prefill_token_s = coefficients.prefill_per_token
        self._prefill_attended_s = coefficients.prefill_per_attended_token

    def decode_step_s(self, batch: float, mean_context: float) -> float:
        return self._decode_fixed_s + batch * (
            self._decode_request_s + mean_context * self._decode_context_s
        )

    def prefill_pass_s(self, tokens: float, context: float) -> float:
        return self._prefill_fixed_s + tokens * (
            self._prefill_token_s + context * self._prefill_attended_s
        )


class InterpolatedStepTimes:
    """StepTimes from a model that is too slow to ask at every step, memoised on a grid.

    A point between grid lines is interpolated bilinearly in (batch, context) or (tokens, context);
    the model is asked only for grid points that are needed. Outside the grid the last cell is
    extended linearly, never below the smallest grid value's time.
    """

    def __init__(
        self,
        decode: Callable[[int, int], float],
        prefill: Callable[[int, int], float],
        *,
        kv_capacity_tokens: int,
        page_tokens: int,
        batches: Sequence[int],
        tokens: Sequence[int],
        contexts: Sequence[int],
    ) -> None:
        """Grid lines rise; ``decode(batch, context)``, ``prefill(tokens, context)`` in seconds."""
        self.kv_capacity_tokens = kv_capacity_tokens
        self.page_tokens = page_tokens
        self._decode = Grid(decode, batches, contexts)
        self._prefill = Grid(prefill, tokens, contexts)

    def decode_step_s(self, batch: float, mean_context: float) -> float:
        return self._decode.at(batch, mean_context)

    def prefill_pass_s(self, tokens: float, context: float) -> float:
        return self._prefill.at(tokens, context)


class Grid:
    """A function of two variables, asked at grid points once and bilinear in between."""

    def __init__(
        self, function: Callable[[int, int], float], xs: Sequence[int], ys: Sequence[int]
    ) -> None:
        for name, lines in (("first", xs), ("second", ys)):
            if len(lines) < 2 or any(after <= before for before, after in pairwise(lines)):
                raise ValueError(
                    f"grid lines of the {name} variable {list(lines)} must rise and be at least 2"
                )
        self._function = function
        self._xs = tuple(xs)
        self._ys = tuple(ys)
        # A point before all of these lies in the first cell, one behind all of them in the last.
        self._between_xs, self._between_ys = self._xs[1:-1], self._ys[1:-1]
        self._known: dict[tuple[int, int], float] = {}
        self._cells: dict[tuple[int, int], tuple[float, ...]] = {}

    def at(self, x: float, y: float) -> float:
        """The function between its grid points, and beyond the last of them."""
        i, j = bisect_right(self._between_xs, x), bisect_right(self._between_ys, y)
        cell = self._cells.get((i, j))
        if cell is None:
            # Below the grid the times of its edge hold: launch and latency floors do not shrink.
            x, y = max(x, self._xs[i]), max(y, self._ys[j])
            if x == self._xs[i] or y == self._ys[j]:
                return self._on_line(i, j, x, y)
            cell = self._cell(i, j)
        x0, per_x, y0, per_y, corner, along_x, along_y, twist = cell
        u = (x - x0) * per_x if x > x0 else 0.0
        v = (y - y0) * per_y if y > y0 else 0.0
        return corner + u * along_x + v * (along_y + u * twist)

    def _on_line(self, i: int, j: int, x: float, y: float) -> float:
        """On a first edge of a cell, of which no other point is asked."""
        x0, y0 = self._xs[i], self._ys[j]
        corner = self._point(i, j)
        if x > x0:
            u = (x - x0) * (1 / (self._xs[i + 1] - x0))
            return corner + u * (self._point(i + 1, j) - corner)
        if y > y0:
            v = (y - y0) * (1 / (self._ys[j + 1] - y0))
            return corner + v * (self._point(i, j + 1) - corner)
        return corner

    def _cell(self, i: int, j: int) -> tuple[float, ...]:
        """Origin and inverse width of a cell, and its bilinear coefficients."""
        x0, x1 = self._xs[i], self._xs[i + 1]
        y0, y1 = self._ys[j], self._ys[j + 1]
        corner, right = self._point(i, j), self._point(i + 1, j)
        above, opposite = self._point(i, j + 1), self._point(i + 1, j + 1)
        cell = (
            x0, 1 / (x1 - x0), y0, 1 / (y1 - y0),
            corner, right - corner, above - corner, opposite - right - above + corner,
        )  # fmt: skip
        self._cells[i, j] = cell
        return cell

    def _point(self, i: int, j: int) -> float:
        key = (i, j)
        value = self._known.get(key)
        if value is None:
            value = self._function(self._xs[i], self._ys[j])
            if not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"the step time at ({self._xs[i]}, {self._ys[j]}) is {value!r} s; "
                    "allowed: greater than 0"
                )
            self._known[key] = value
        return value
