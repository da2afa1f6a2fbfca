"""Smooth functions fitted to scattered points.

A surface is a sum of terms. Each term is a lattice of values over a few coordinates, linear between
its knots and constant beyond them, times a feature that switches it on. Knots lie where the rows
lie, no nearer than `KNOT_SPACING`. All lattices of a surface are fitted at once: least squares with
a penalty on the curvature along every axis, so that a knot without rows follows its neighbours, and
with Student-t weights, so that a stray row does not pull the surface to itself.

Each row's leave-one-out error follows from the same solution (the diagonal of the hat matrix), so
that held-out errors cost one fit however many rows there are. A fit takes time linear in the rows
and cubic in the knots, or cubic in the rows where those are fewer; a prediction touches 2^axes
knots a term.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.intp]

KNOT_SPACING = 0.4
"""Least distance of two knots, in octaves where the axis is a logarithm."""
MOST_KNOTS = 1600
"""Of one term: above it knots are spaced wider, so that a fit stays near a second."""
DEGREES_OF_FREEDOM = 2.0
"""Of the Student-t noise. Benchmarks stray by a factor of two in one row of a hundred."""
INVERTED_WHOLE = 200
"""Rows of a matrix from which on an inverse goes by halves."""
ROUNDS = 3
"""Of reweighting."""
SLOPE_PENALTY = 1e-4
"""Keeps knots that no row and no curvature decides near their neighbours."""
LEAST_SCALE = 1e-3
"""Floor of the noise scale, in logarithms."""
FREE_LEVEL = 1e-7
"""Penalty on the level of a surface, which nothing else bounds: as good as none."""
MOST_LEVERAGE = 0.999
"""Of a row on its own prediction: beyond it the prediction without the row is not defined."""
CHUNK = 4096
"""Rows handled at once while normal equations are summed up."""


@dataclass(frozen=True, slots=True)
class Term:
    """One lattice of a surface, over the coordinates of some rows."""

    coordinates: Array
    """[rows, axes]"""
    feature: Array
    """[rows] factor of the lattice's value; 0 where it does not apply."""
    stiffness: tuple[float, ...]
    """Penalty on curvature along each axis."""
    shrinkage: float = 0.0
    """Penalty on the values themselves: for terms that correct another one."""


class Lattice:
    """Knots of each axis over some rows, and what lies linear between values at them."""

    def __init__(self, coordinates: Array) -> None:
        """Lay knots where rows [rows, axes] are."""
        self.knots = _knots(coordinates)
        self.shape = tuple(len(knots) for knots in self.knots)
        self.size = int(np.prod(self.shape))

    def places(self) -> Array:
        """[knots, axes] coordinates of all knots."""
        return np.stack([axis.ravel() for axis in np.meshgrid(*self.knots, indexing="ij")], axis=1)

    def clipped(self, coordinates: Array) -> Array:
        """The nearest places within the knots."""
        return np.clip(
            coordinates,
            np.array([axis[0] for axis in self.knots]),
            np.array([axis[-1] for axis in self.knots]),
        )

    def between(self, values: Array, coordinates: Array) -> Array:
        """[rows] values at coordinates out of values at the knots; constant beyond them."""
        total = np.zeros(len(coordinates))
        for place, weight in self.corners(coordinates):
            total += values[place] * weight
        return total

    def corners(self, coordinates: Array) -> list[tuple[Index, Array]]:
        """Knots around each row and the linear weights of them: 2^axes pairs of [rows] arrays."""
        return _corners(self.knots, coordinates)


class Surface:
    """A fitted sum of lattices; predict takes the same terms at other coordinates."""

    def __init__(self, terms: Sequence[Term], values: Array) -> None:
        """Fit.

        Args:
            terms: at least one; all with the same rows.
            values: [rows] what to learn.

        """
        self._lattices = tuple(Lattice(term.coordinates) for term in terms)
        penalties = [
            _Penalty(lattice.knots, term)
            for term, lattice in zip(terms, self._lattices, strict=True)
        ]
        places, weights = self._design(terms)
        knots = sum(lattice.size for lattice in self._lattices)
        solve = _by_rows if len(values) < knots else _by_knots
        self._solve, self._left_out = solve(places, weights, values, penalties)

    @cached_property
    def knot_values_(self) -> Array:
        """[knots of all terms]"""
        return self._solve()

    @cached_property
    def leave_one_out_(self) -> Array:
        """[rows] value minus prediction without the row."""
        return self._left_out()

    def predict(self, terms: Sequence[Term]) -> Array:
        """[rows] values at the coordinates of `terms`, in the order they were fitted in."""
        total = np.zeros(len(terms[0].feature))
        first = 0
        for term, lattice in zip(terms, self._lattices, strict=True):
            values = self.knot_values_[first : first + lattice.size]
            for place, weight in lattice.corners(term.coordinates):
                total += values[place] * weight * term.feature
            first += lattice.size
        return total

    def _design(self, terms: Sequence[Term]) -> tuple[Index, Array]:
        """Knots that each row touches and how much: [rows, corners of all terms] both."""
        places: list[Index] = []
        weights: list[Array] = []
        first = 0
        for term, lattice in zip(terms, self._lattices, strict=True):
            for place, weight in lattice.corners(term.coordinates):
                places.append(place + first)
                weights.append(weight * term.feature)
            first += lattice.size
        return np.stack(places, axis=1), np.stack(weights, axis=1)


Solution = tuple[Callable[[], Array], Callable[[], Array]]
"""How to get the values at the knots, and the leave-one-out errors of the rows."""


def _trust(residuals: Array) -> Array:
    """Student-t weights of rows about a surface."""
    scale = max(1.4826 * float(np.median(np.abs(residuals))), LEAST_SCALE)
    return (DEGREES_OF_FREEDOM + 1) / (DEGREES_OF_FREEDOM + (residuals / scale) ** 2)


def _by_knots(
    places: Index, weights: Array, values: Array, penalties: Sequence[_Penalty]
) -> Solution:
    """Normal equations of the knots: for tables with more rows than knots."""
    knots = sum(part.size for part in penalties)
    penalty = np.zeros((knots, knots))
    first = 0
    for part in penalties:
        penalty[first : first + part.size, first : first + part.size] = part.matrix()
        first += part.size

    def equations(trust: Array) -> tuple[Array, Array]:
        normal, right = _normal_equations(places, weights, values, trust, knots)
        return normal + penalty, right

    def residuals(found: Array) -> Array:
        apart: Array = values - (weights * found[places]).sum(axis=1)
        return apart

    def solve() -> Array:
        return np.linalg.solve(normal, right).astype(np.float64, copy=False)

    trust = np.ones(len(values))
    normal, right = equations(trust)
    for _ in range(ROUNDS - 1):
        trust = _trust(residuals(solve()))
        normal, right = equations(trust)

    def left_out() -> Array:
        inverse = _inverse(normal)
        leverage = np.empty(len(values))
        for start in range(0, len(values), CHUNK):
            part = slice(start, start + CHUNK)
            block = inverse[places[part, :, None], places[part, None, :]]
            corners = weights[part]
            leverage[part] = trust[part] * np.einsum("ri,rij,rj->r", corners, block, corners)
        apart = residuals(inverse @ right)
        errors: Array = apart / (1.0 - np.minimum(leverage, MOST_LEVERAGE))
        return errors

    return solve, left_out


def _inverse(matrix: Array) -> Array:
    """Of a symmetric positive definite matrix, by halves: mostly products, a third of the time of a
    general inverse."""
    size = len(matrix)
    if size <= INVERTED_WHOLE:
        return np.linalg.inv(matrix).astype(np.float64, copy=False)
    half = size // 2
    corner, side = matrix[:half, :half], matrix[:half, half:]
    first = _inverse(corner)
    across = first @ side
    last = _inverse(matrix[half:, half:] - side.T @ across)
    coupling = -across @ last
    return np.block([[first - coupling @ across.T, coupling], [coupling.T, last]])


def _by_rows(
    places: Index, weights: Array, values: Array, penalties: Sequence[_Penalty]
) -> Solution:
    """The same solution from the covariance of the rows: for tables with fewer rows than knots."""
    rows = len(values)
    spread: list[Array] = []
    first = 0
    covariance = np.zeros((rows, rows))
    for part in penalties:
        design = np.zeros((rows, part.size))
        inside = (places >= first) & (places < first + part.size)
        number, corner = np.nonzero(inside)
        np.add.at(design, (number, places[number, corner] - first), weights[number, corner])
        # Only the knots that a row touches add to its sum: far fewer than all.
        reach = part.inverse_times(design)
        local = np.where(inside, places - first, 0)
        factors = np.where(inside, weights, 0.0)
        for corner_places, corner_weights in zip(local.T, factors.T, strict=True):
            covariance += corner_weights[:, None] * reach[:, corner_places].T
        spread.append(reach)
        first += part.size
    trust = np.ones(rows)
    for round_ in range(ROUNDS):
        noisy = covariance + np.diag(1.0 / trust)
        share = np.linalg.solve(noisy, values)
        if round_ < ROUNDS - 1:
            trust = _trust(share / trust)
    # A level costs next to nothing, so that this matrix is too ill-conditioned to go by halves.
    return (
        lambda: np.concatenate([share @ part for part in spread]),
        lambda: share / np.diag(np.linalg.inv(noisy)),
    )


def _knots(coordinates: Array) -> tuple[Array, ...]:
    """Knots of each axis, at least two; wider apart where the lattice would be too large."""
    distinct = [np.unique(axis.round(9)) for axis in coordinates.T]
    spacing = KNOT_SPACING
    while True:
        knots = tuple(_thinned(values, spacing) for values in distinct)
        if np.prod([len(axis) for axis in knots]) <= MOST_KNOTS:
            return knots
        spacing *= 1.25


def _thinned(values: Array, spacing: float) -> Array:
    kept = [float(values[0])]
    for value in values[1:].tolist():
        if value - kept[-1] >= spacing:
            kept.append(value)
    if len(kept) == 1:
        kept.append(kept[0] + spacing)
    return np.array(kept)


def _corners(knots: Sequence[Array], coordinates: Array) -> list[tuple[Index, Array]]:
    """Knots around each row and the linear weights of them: 2^axes pairs of [rows] arrays."""
    rows = len(coordinates)
    found: list[tuple[Index, Array]] = [(np.zeros(rows, dtype=np.intp), np.ones(rows))]
    for axis, places in enumerate(knots):
        values = coordinates[:, axis]
        below = np.clip(np.searchsorted(places, values, side="right") - 1, 0, len(places) - 2)
        share = np.clip((values - places[below]) / (places[below + 1] - places[below]), 0.0, 1.0)
        found = [
            (number * len(places) + below + step, weight * factor)
            for number, weight in found
            for step, factor in ((0, 1.0 - share), (1, share))
        ]
    return found


def _normal_equations(
    places: Index, weights: Array, values: Array, trust: Array, knots: int
) -> tuple[Array, Array]:
    """Sums of w d d^T and of w d y over the rows of a sparse design matrix d."""
    normal = np.zeros(knots * knots)
    right = np.zeros(knots)
    for start in range(0, len(values), CHUNK):
        part = slice(start, start + CHUNK)
        place, weight = places[part], weights[part]
        scaled = weight * trust[part, None]
        pairs = place[:, :, None] * knots + place[:, None, :]
        products = scaled[:, :, None] * weight[:, None, :]
        normal += np.bincount(pairs.ravel(), weights=products.ravel(), minlength=len(normal))
        right += np.bincount(
            place.ravel(), weights=(scaled * values[part, None]).ravel(), minlength=knots
        )
    return normal.reshape(knots, knots), right


class _Penalty:
    """Curvature along each axis, summed over the lattice: a Kronecker sum of small matrices."""

    def __init__(self, knots: Sequence[Array], term: Term) -> None:
        self._along = [
            SLOPE_PENALTY * _slopes(places) + stiffness * _curvature(places)
            for places, stiffness in zip(knots, term.stiffness, strict=True)
        ]
        self._shrinkage = term.shrinkage
        self._shape = tuple(len(places) for places in knots)
        self.size = int(np.prod(self._shape))

    def matrix(self) -> Array:
        """[knots, knots]"""
        total = self._shrinkage * np.eye(self.size)
        for axis, along in enumerate(self._along):
            before = int(np.prod(self._shape[:axis]))
            after = int(np.prod(self._shape[axis + 1 :]))
            total += np.kron(np.kron(np.eye(before), along), np.eye(after))
        return total

    def inverse_times(self, design: Array) -> Array:
        """Rows of `design` times the inverse, [rows, knots].

        A Kronecker sum has the products of its parts' eigenvectors and the sums of their
        eigenvalues, so that no matrix of all knots is ever formed.
        """
        values = np.full(self._shape, self._shrinkage + FREE_LEVEL)
        vectors: list[Array] = []
        for axis, along in enumerate(self._along):
            part, turned = np.linalg.eigh(along)
            across = [1] * len(self._shape)
            across[axis] = len(part)
            # The least eigenvalue is that of a level, zero but for rounding.
            values = values + np.maximum(part, 0.0).reshape(across)
            vectors.append(turned)
        lattice = design.reshape(len(design), *self._shape)
        for axis, turned in enumerate(vectors):
            lattice = np.moveaxis(np.moveaxis(lattice, axis + 1, -1) @ turned, -1, axis + 1)
        lattice = lattice / values
        for axis, turned in enumerate(vectors):
            lattice = np.moveaxis(np.moveaxis(lattice, axis + 1, -1) @ turned.T, -1, axis + 1)
        found: Array = lattice.reshape(len(design), self.size)
        return found


def _slopes(places: Array) -> Array:
    differences = np.diff(np.eye(len(places)), axis=0) / np.sqrt(np.diff(places))[:, None]
    product: Array = differences.T @ differences
    return product


def _curvature(places: Array) -> Array:
    """Sum of squared second differences over the spacing: the integral of curvature squared."""
    if len(places) < 3:
        return np.zeros((len(places), len(places)))
    gaps = np.diff(places)
    slopes = np.diff(np.eye(len(places)), axis=0) / gaps[:, None]
    bends = np.diff(slopes, axis=0) / np.sqrt((gaps[:-1] + gaps[1:]) / 2)[:, None]
    product: Array = bends.T @ bends
    return product
