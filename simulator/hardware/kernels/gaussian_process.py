"""The model of a kernel: a Gaussian process on the log of its time over its time at peak.

The roofline carries tiles, waves, bytes and the rates of the hardware; the process carries the
rest, which is a matter of shape. Its features are logarithms (octaves): every size, the SMs, the
seconds at peak, waves over bytes, and how much of the waves is padding or an idle SM. How far
apart two kernels count is a length for each feature, which calibrate finds by the error of rows
whose whole shape is left out; how little a row is trusted is a noise, which may fall with the
seconds at peak. A prediction is the mean of the process given the nearest rows; far from all of
them it returns to their typical efficiency, and its deviation grows.

    process = Process(features, log_ratios, lengths, noise)
    mean, deviation = process.predict(others)

Kernel: Matern 3/2 of variance 1, about the rows' median; all logarithms of times are natural.
Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, sections 2.2 and 4.2; the
nearest rows alone: Vecchia 1988.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.hardware.kernels.roofline import Batch, Ideal, is_tensor

Array = NDArray[np.float64]
Index = NDArray[np.intp]

NEAREST = 48
"""Rows that a prediction rests on: twice as many change the error by less than 0.2%."""
DEFAULT_LENGTH, DEFAULT_NOISE = 4.0, 0.03
"""Octaves, and variance of a row's noise over that of the process, of families with too few rows
to find their own."""
LEAST_SECONDS = 1e-12
CHUNK = 512
"""Predictions made at once, unless rows are so many that these would have over MOST_DISTANCES."""
MOST_DISTANCES = 2**21
"""Of predictions to rows, held at once: bounds memory."""
BLOCKS = 16
"""Rows whose least distance is found together, for the search of the nearest."""
FAR = 1e12
"""Squared distance of rows that are left out."""


def feature_names(batch: Batch) -> tuple[str, ...]:
    """Names of `features_of`: sizes by name, then what the roofline says."""
    roofline = ("peak", "waves/bytes", "waste") if is_tensor(batch.kind) else ("peak",)
    return (*batch.names, "sms", *roofline)


def features_of(batch: Batch, sms: Array, ideal: Ideal) -> Array:
    """[operators, features] in octaves.

    Args:
        sms: [operators] that they have.
        ideal: at those.
    """
    moved = np.maximum(ideal.bytes, LEAST_SECONDS)
    columns = [*np.maximum(batch.sizes, 1).astype(np.float64).T, sms]
    columns.append(np.maximum(ideal.waves, moved))
    if is_tensor(batch.kind):
        waves = np.maximum(ideal.waves, LEAST_SECONDS)
        columns += [waves / moved, waves * sms / np.maximum(batch.flops, 1.0)]
    features: Array = np.log2(np.stack(columns, axis=1))
    return features


class Process:
    """Log ratios of rows, as a function of their features."""

    def __init__(
        self,
        features: Array,
        log_ratios: Array,
        lengths: Sequence[float] | Array | None = None,
        noise: float = DEFAULT_NOISE,
        noise_slopes: Array | None = None,
    ) -> None:
        """Store the rows, at least one; nothing is fitted.

        Args:
            features: [rows, features]
            log_ratios: [rows] log seconds minus those expected.
            lengths: [features] octaves; `DEFAULT_LENGTH` each where not given.
            noise: variance of a row's noise over that of the process, at the median row.
            noise_slopes: [features] octaves by which the deviation of the noise grows with each
                octave of a feature, no further than rows reach; 0 where not given.
        """
        default = np.full(features.shape[1], DEFAULT_LENGTH)
        self._lengths = default if lengths is None else np.asarray(lengths, dtype=np.float64)
        self._slopes = noise_slopes
        self._reached = features.min(axis=0), features.max(axis=0), np.median(features, axis=0)
        self._median_noise = noise
        self._noise = self._noise_of(features)
        self._varies = np.ptp(features, axis=0) > 0
        self._first = features[0] / self._lengths
        self._places = features[:, self._varies] / self._lengths[self._varies]
        self._typical = float(np.median(log_ratios))
        self._ratios = log_ratios - self._typical

    def __len__(self) -> int:
        return len(self._places)

    def _noise_of(self, features: Array) -> Array:
        """[operators] variance of their noise over that of the process."""
        if self._slopes is None:
            return np.full(len(features), self._median_noise)
        low, high, middle = self._reached
        octaves = ((np.clip(features, low, high) - middle) * self._slopes).sum(axis=1)
        noise: Array = self._median_noise * np.exp2(2.0 * octaves)
        return noise

    def predict(self, features: Array, *, widths: bool = True) -> tuple[Array, Array]:
        """Mean, and standard deviation over that of the process, noise included; [operators].

        Along a feature in which no two rows differ the roofline alone says what changes: the mean
        stays, and the deviation grows by what that much of another feature would change.

        Args:
            widths: whether deviations are asked for; else they are 0, and operators with the same
                nearest rows share the work of solving for them.
        """
        places = features / self._lengths
        if not widths:
            return self._means(places[:, self._varies]), np.zeros(len(features))
        noise = self._noise_of(features)
        ((mean, deviation),) = self._predict(places[:, self._varies], noise, [None])
        beyond = places[:, ~self._varies] - self._first[~self._varies]
        apart = 2.0 * (1.0 - _matern((beyond**2).sum(axis=1)))
        return mean, np.sqrt(deviation**2 + apart)

    def _means(self, places: Array) -> Array:
        means = np.empty(len(places))
        for some in self._chunks(len(places)):
            means[some] = self._means_of(places[some])
        return means + self._typical

    def _chunks(self, count: int) -> Iterator[slice]:
        """Slices of so many places, each few enough for the memory."""
        size = max(1, min(CHUNK, MOST_DISTANCES // len(self)))
        return (slice(start, start + size) for start in range(0, count, size))

    def _means_of(self, places: Array) -> Array:
        squared = _squared_distances(places, self._places)
        if len(self) <= NEAREST:
            weights = self._solved(np.arange(len(self))[None])[0]
            alone: Array = np.einsum("ij,j->i", _matern(squared), weights)
            return alone
        nearest = np.sort(_nearest(squared, NEAREST), axis=1)
        # Sets of rows are told apart by the sum of a random number of 64 bits for each row.
        marks = np.random.default_rng(0).integers(2**63, size=len(self))[nearest].sum(axis=1)
        _, first, which = np.unique(marks, return_index=True, return_inverse=True)
        towards = _matern(np.take_along_axis(squared, nearest, axis=1))
        weights = self._solved(nearest[first])[which]
        means: Array = np.einsum("ij,ij->i", towards, weights)
        return means

    def _solved(self, nearest: Index) -> NDArray[Any]:
        """[sets, rows] ratios of each set of rows by the inverse of its covariance."""
        covariance = self._covariance(nearest)
        diagonal = np.arange(nearest.shape[1])
        covariance[:, diagonal, diagonal] += self._noise[nearest]
        return np.linalg.solve(covariance, self._ratios[nearest][..., None])[..., 0]

    def held_out(self, *groupings: Index, chosen: Index | None = None) -> list[tuple[Array, Array]]:
        """Log measured minus log predicted of rows without those of their group, and deviations.

        Args:
            groupings: of each question, [rows] number of each row's group.
            chosen: rows to judge; all where not given.

        Returns one pair for each grouping.
        """
        rows = np.arange(len(self)) if chosen is None else chosen
        asked = [(groups, groups[rows]) for groups in groupings]
        return [
            (self._ratios[rows] + self._typical - mean, deviation)
            for mean, deviation in self._predict(self._places[rows], self._noise[rows], asked)
        ]

    def _predict(
        self, places: Array, noise: Array, left_out: Sequence[tuple[Index, Index] | None]
    ) -> list[tuple[Array, Array]]:
        """Mean and deviation at some places of some noise, once for each entry of `left_out`: None,
        or groups of all rows and the group that each place does without."""
        found = np.empty((len(left_out), 2, len(places)))
        for some in self._chunks(len(places)):
            squared = _squared_distances(places[some], self._places)
            for number, groups in enumerate(left_out):
                out = None if groups is None else groups[1][some, None] == groups[0]
                found[number, :, some] = self._from_nearest(squared, out)
        return [(mean + self._typical, np.sqrt(left + noise)) for mean, left in found]

    def _from_nearest(self, squared: Array, out: NDArray[np.bool_] | None) -> tuple[Array, Array]:
        if out is not None:
            squared = np.where(out, FAR, squared)
        if len(self) <= NEAREST and out is None:
            covariance = self._covariance(np.arange(len(self))[None])[0]
            covariance[np.diag_indices(len(self))] += self._noise
            towards = _matern(squared)
            weights: NDArray[Any] = np.zeros_like(towards)
            for row, inverse in zip(towards.T, np.linalg.inv(covariance), strict=True):
                weights += row[:, None] * inverse
            return (weights * self._ratios).sum(axis=1), _left(weights, towards)
        count = min(NEAREST, len(self))
        nearest = _nearest(squared, count)
        towards = _matern(np.take_along_axis(squared, nearest, axis=1))
        covariance = self._covariance(nearest)
        if out is not None:
            banned = np.take_along_axis(out, nearest, axis=1)
            towards[banned] = 0.0
            covariance[banned[:, :, None] | banned[:, None, :]] = 0.0
        diagonal = np.arange(count)
        covariance[:, diagonal, diagonal] += self._noise[nearest]
        weights = np.linalg.solve(covariance, towards[..., None])[..., 0]
        return (weights * self._ratios[nearest]).sum(axis=1), _left(weights, towards)

    def _covariance(self, nearest: Index) -> Array:
        """[places, nearest, nearest]; neighbours that places share are compared once."""
        rows, which = np.unique(nearest, return_inverse=True)
        which = which.reshape(nearest.shape)
        if len(rows) ** 2 <= nearest.size * nearest.shape[1]:
            known = self._places[rows]
            shared = _matern(_squared_distances(known, known))
            covariance: Array = shared[which[:, :, None], which[:, None, :]]
            return covariance
        near = self._places[nearest]
        return _matern(_squared_distances(near, near))


def _nearest(squared: Array, count: int) -> Index:
    """[places, count] numbers of the rows at the least distances, in no order.

    They are among the rows of those `count` blocks that have the least distances, so that few of
    many rows are compared one by one.
    """
    places, rows = squared.shape
    blocks = rows // BLOCKS
    if blocks <= 2 * count:
        return np.argpartition(squared, count - 1, axis=1)[:, :count]
    least = squared[:, : blocks * BLOCKS].reshape(places, BLOCKS, blocks).min(axis=1)
    some = np.argpartition(least, count - 1, axis=1)[:, :count]
    inside = some[:, None, :] + blocks * np.arange(BLOCKS)[:, None]
    rest = np.broadcast_to(np.arange(blocks * BLOCKS, rows), (places, rows - blocks * BLOCKS))
    asked = np.concatenate([inside.reshape(places, -1), rest], axis=1)
    found = np.argpartition(np.take_along_axis(squared, asked, axis=1), count - 1, axis=1)
    nearest: Index = np.take_along_axis(asked, found[:, :count], axis=1)
    return nearest


def _left(weights: NDArray[Any], towards: Array) -> Array:
    """Variance that the rows leave, at least that of rounding."""
    left: Array = np.maximum(1.0 - (weights * towards).sum(axis=1), 0.0)
    return left


def _squared_distances(places: Array, others: Array) -> Array:
    """[*axes, places, others]

    Feature by feature, so that the distance of two places is the same to the last bit whatever
    stands beside them and with any number of threads: a prediction must not depend on what else is
    asked for. A product of matrices would group its sums by both.
    """
    squared = np.zeros((*places.shape[:-1], others.shape[-2]))
    apart = np.empty_like(squared)
    # Of a feature, all places beside each other in memory: twice as fast.
    columns = np.moveaxis(places, -1, 0), np.moveaxis(others, -1, 0).copy()
    for of_places, of_others in zip(*columns, strict=True):
        np.subtract(of_places[..., :, None], of_others[..., None, :], out=apart)
        squared += np.square(apart, out=apart)
    return squared


def _matern(squared: Array) -> Array:
    """Covariance of two rows by their squared distance."""
    distance = np.sqrt(3.0 * squared)
    covariance: Array = (1.0 + distance) * np.exp(-distance)
    return covariance
