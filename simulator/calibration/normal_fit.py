"""Fit laws of normal dispatch and combine kernels to rows by SMs, and judge them.

One law per direction and number of nodes, of least robust squared log error. A number of nodes has
none where something else than kernel and link slows rows: where some move less than half of the
bytes per second through a NIC that the same direction and SMs reach on fewer nodes. The others of
its rows may be slowed too, and the law of fewer nodes answers.

Errors are those of rows whose tokens and nodes are left out, of all SM counts. SI units; errors are
log measured minus log predicted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import lt

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.fields import Raw
from hardware_profiles.schema import CalibrationProfile, GpuProfile
from hardware_profiles.tables import Measurement
from hardware_profiles.units import BytesPerSecond, parse_quantity
from reference_model.trace import ALL_TO_ALL_KINDS
from simulator.calibration.collective_fit import half_width
from simulator.hardware.network.normal_law import NormalLaw
from simulator.hardware.network.tokens_sent import nic_of, payload_of, reach_of_tests

Array = NDArray[np.float64]
Key = tuple[str, int]
"""Direction and nodes."""

LEAST_ROWS, LEAST_SM_COUNTS, LEAST_SIZES = 12, 4, 4
"""Rows, SM counts and numbers of tokens that a law needs: fewer say nothing of its shape."""
OUTLIER = 0.05
"""Log error from which on a row counts by its size and no longer by its square."""
NIC = parse_quantity("400 Gbit/s", "bandwidth", "")
"""Line rate of each GPU's NIC between nodes, of rows that do not say: assumed, InfiniBand."""
SOURCE = "rows of normal kernels by SMs; NICs that rows do not state assumed 400 Gbit/s"
NODE = 8
"""GPUs of a node of several; hosts of DeepEP's tests."""
SLOWED = 0.5
"""Share of the NIC rate on fewer nodes below which something else slows a row."""
SHORT = 10.0
"""Times the shortest row up to which a start decides, and a rate says nothing."""
ROUNDS, STEP = 60, 1e-5


@dataclass(frozen=True, slots=True)
class NormalRows:
    """Rows of one direction among some nodes; arrays [rows]."""

    tokens: Array
    copied: Array
    """Bytes copied to GPUs."""
    linked: Array
    """Seconds that the link needs at line rate."""
    sms: Array
    seconds: Array

    def take(self, chosen: NDArray[np.bool_]) -> NormalRows:
        """The chosen rows."""
        return NormalRows(
            self.tokens[chosen],
            self.copied[chosen],
            self.linked[chosen],
            self.sms[chosen],
            self.seconds[chosen],
        )


@dataclass(frozen=True, slots=True)
class FittedLaw:
    """A law, what its link reaches of line rate, and errors of left-out rows."""

    law: NormalLaw
    link_share: float
    tokens_left_out: Array
    """[rows] errors, tokens left out of all SM counts."""
    sms_left_out: Array
    """[rows] errors, an SM count left out."""


def fit_normal(tables: Mapping[Key, NormalRows]) -> dict[Key, FittedLaw]:
    """Laws of every direction and number of nodes with enough rows."""
    fitted = {}
    for (kind, nodes), table in sorted(tables.items()):
        fewer = [rows for (k, n), rows in tables.items() if k == kind and 1 < n < nodes]
        counts = (len(table.seconds), len(set(table.sms)), len(set(table.tokens)))
        few = any(map(lt, counts, (LEAST_ROWS, LEAST_SM_COUNTS, LEAST_SIZES)))
        if few or (nodes > 1 and slowed(table, fewer).any()):
            continue
        best = _fitted(table)
        fitted[kind, nodes] = FittedLaw(
            law=_law(best),
            link_share=_share(best),
            tokens_left_out=_left_out(table, table.tokens, best),
            sms_left_out=_left_out(table, table.sms, best),
        )
    return fitted


def normal_kernels(
    name: str, fitted: Mapping[Key, FittedLaw], *, gpus: Sequence[str], source: str
) -> Raw:
    """What a file of fitted laws says.

    Args:
        gpus: whose kernels they stand for, the measured one first.
        source: of the rows, in words.
    """
    laws = [
        {
            "operation": kind,
            "nodes": nodes,
            "start": f"{found.law.start / _MICROSECOND:.4g} us",
            "ramp": f"{found.law.ramp / _MICROSECOND:.4g} us",
            "softness": _short(found.law.softness),
            "copy_bandwidth_per_sm": f"{found.law.copy / _GB:.4g} GB/s",
            "corner": _short(found.law.corner),
            "link_share": _short(found.link_share),
        }
        for (kind, nodes), found in fitted.items()
    ]
    left_out = []
    for kind in sorted({kind for kind, _ in fitted}):
        errors = np.concatenate(
            [np.abs(found.tokens_left_out) for (k, _), found in fitted.items() if k == kind]
        )
        left_out.append(
            {
                "operation": kind,
                "rows": len(errors),
                "median": _short(np.median(np.expm1(errors))),
                "p90": _short(np.quantile(np.expm1(errors), 0.9)),
                "quantile_80": _short(half_width(errors)),
            }
        )
    return {
        "name": name,
        "gpus": list(gpus),
        "laws": laws,
        "left_out": left_out,
        "sources": {"laws": source, "gpus": "the first was measured, the others have its SMs"},
    }


_GB = parse_quantity("1 GB/s", "bandwidth", "")
_MICROSECOND = parse_quantity("1 us", "time", "")


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def normal_key(row: Measurement) -> Key | None:
    """Direction and nodes of a row of normal kernels alone; None of any other."""
    alone = row.layout != "low_latency" and not row.beside_compute
    if row.kind not in ALL_TO_ALL_KINDS or not alone or row.nodes is None:
        return None
    return row.kind, row.nodes


def normal_tables_of(
    rows: Iterable[Measurement],
    calibration: CalibrationProfile,
    gpu: GpuProfile,
    *,
    nic: BytesPerSecond,
) -> dict[Key, NormalRows]:
    """{(direction, nodes): rows of normal kernels}

    Args:
        calibration: says what tokens reach between nodes; on one node a row says it itself.
        gpu: that was measured.
        nic: line rate of each GPU's NIC, of rows that do not state it.
    """
    found: dict[Key, list[tuple[float, ...]]] = {}
    for row in rows:
        key = normal_key(row)
        if key is None:
            continue
        sizes, nodes = dict(row.sizes), key[1]
        moved = payload_of(row)
        copied = moved * sizes["rows"] / sizes["tokens"]
        linked = copied / gpu.nvlink_bandwidth
        if nodes > 1:
            reach = reach_of_tests(calibration, nodes * NODE, gpus_each=NODE)
            copied, linked = moved * reach.gpus, moved * reach.over_nics / (nic_of(row) or nic)
        found.setdefault(key, []).append((sizes["tokens"], copied, linked, row.sms, row.seconds))
    return {key: NormalRows(*np.array(table, dtype=float).T) for key, table in found.items()}


def slowed(rows: NormalRows, fewer: Sequence[NormalRows]) -> NDArray[np.bool_]:
    """[rows] whether a row is not short and reaches less than half of what fewer nodes do through
    a NIC on as many SMs."""
    found = np.full(len(rows.seconds), False)
    if not fewer:
        return found
    short = SHORT * min(float(table.seconds.min()) for table in fewer)
    for sms in np.unique(rows.sms):
        best = [
            float((table.linked / table.seconds)[table.sms == sms].max())
            for table in fewer
            if (table.sms == sms).any()
        ]
        mine = rows.sms == sms
        if best:
            rate = rows.linked[mine] / rows.seconds[mine]
            found[mine] = (rate < SLOWED * max(best)) & (rows.seconds[mine] >= short)
    return found


def _law(parameters: Array) -> NormalLaw:
    start, ramp, softness, copy, corner, _ = np.exp(parameters)
    return NormalLaw(start, ramp, 1.0 + softness, copy, 1.0 + corner)


def _share(parameters: Array) -> float:
    """At most line rate, however far the parameter runs."""
    return float(1.0 / (1.0 + np.exp(-parameters[5])))


def _predicted(parameters: Array, rows: NormalRows) -> Array:
    law = _law(np.clip(parameters, -60.0, 60.0))
    return np.log(law.seconds(rows.copied, rows.sms, rows.linked / _share(parameters)))


def _fitted(rows: NormalRows, start: Array | None = None) -> Array:
    """Parameters of least robust squared log error (Levenberg and Marquardt)."""
    measured = np.log(rows.seconds)
    copy = float((rows.copied / rows.sms / rows.seconds).max())
    first = [rows.seconds.min(), rows.seconds.min() / 2, 0.3, copy, 4.0, 1.0]
    guess = np.log(first) if start is None else start.copy()
    if start is None:
        guess[5] = 2.0

    def cost(error: Array) -> float:
        return float((np.sqrt(1.0 + (error / OUTLIER) ** 2) - 1.0).sum())

    error = measured - _predicted(guess, rows)
    damping = 1e-2
    for _ in range(ROUNDS):
        slopes = np.stack(
            [
                (_predicted(guess + STEP * unit, rows) - _predicted(guess, rows)) / STEP
                for unit in np.eye(len(guess))
            ],
            axis=1,
        )
        weights = 1.0 / np.sqrt(1.0 + (error / OUTLIER) ** 2)
        normal = slopes.T @ (slopes * weights[:, None])
        gradient = slopes.T @ (weights * error)
        while damping < 1e9:
            change = np.linalg.solve(normal + damping * np.eye(len(guess)), gradient)
            tried = np.clip(guess + change, -60.0, 60.0)
            left = measured - _predicted(tried, rows)
            if cost(left) < cost(error):
                break
            damping *= 4.0
        else:
            break
        better = cost(error) - cost(left)
        guess, error, damping = tried, left, max(damping / 10.0, 1e-9)
        if better < 1e-9 * cost(error):
            break
    return guess


def _left_out(rows: NormalRows, by: Array, best: Array) -> Array:
    """[rows] errors of rows that share a value, predicted from all others."""
    errors = np.zeros(len(by))
    for value in np.unique(by):
        out = by == value
        if (~out).any():
            found = _fitted(rows.take(~out), best)
            kept = rows.take(out)
            errors[out] = np.log(kept.seconds) - _predicted(found, kept)
    return errors
