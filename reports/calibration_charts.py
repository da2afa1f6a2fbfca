"""Left-out rows of a calibration as parity plots and coverage maps show them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.tables import Measurement
from reports.calibration import family_name
from simulator.calibration.family_fit import HeldOutRow
from simulator.hardware.kernels.families import Family, batch_of_rows, family_of
from simulator.hardware.kernels.measured_rows import shapes_of
from simulator.hardware.kernels.roofline import is_tensor

Array = NDArray[np.float64]

COVERAGE_AXES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "gemm": ("m", ("n", "k")),
    "batched_gemm": ("m", ("n", "k")),
    "grouped_gemm": ("rows", ("n", "k")),
    "masked_grouped_gemm": ("rows", ("n", "k")),
    "grouped_gemm_weight_grad": ("rows", ("m", "n")),
    "attention_forward": ("kv_length", ("sequences", "heads")),
    "attention_backward": ("kv_length", ("sequences", "heads")),
    "mla_decode": ("kv_length", ("sequences",)),
    "mla_prefill": ("kv_length", ("sequences", "heads")),
    "index_scores": ("kv_length", ("sequences", "query_length")),
    "sparse_mla": ("kv_length", ("sequences", "query_length")),
    "dispatch": ("rows", ("sms",)),
    "combine": ("rows", ("sms",)),
}
"""{kind: (size upwards, sizes whose product goes to the right)}; of other kinds their rows or
tokens upwards and the product of their other sizes to the right."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Left-out rows of one family in one kernel set, as both charts draw them."""

    name: str
    kernel_set: str
    rows: tuple[HeldOutRow, ...]
    right: Array
    """[rows] product of sizes that goes to the right in the coverage map."""
    up: Array
    """[rows]"""
    right_name: str
    up_name: str
    spans: tuple[tuple[float, float, float], ...]
    """(right, lowest up, highest up) of every shape: the model interpolates between. Empty where it
    goes by bytes moved in the place of shapes."""
    measured: Array
    predicted: Array
    edge: NDArray[np.bool_]
    """[rows], the same as `rows` say, seconds."""


def table_key(row: Measurement) -> tuple[Family, str]:
    """Family and kernel set: rows of one key are one table."""
    return family_of(row), row.kernel_set


def panels_of(rows: Sequence[HeldOutRow]) -> list[Panel]:
    """One panel a family and kernel set, most rows first."""
    groups: dict[tuple[Family, str], list[HeldOutRow]] = defaultdict(list)
    for row in rows:
        groups[table_key(row.measurement)].append(row)
    panels = []
    for (family, kernel_set), members in groups.items():
        names = tuple(name for name, _ in members[0].measurement.sizes)
        columns = np.array([[size for _, size in row.measurement.sizes] for row in members])
        sizes = dict(zip(names, columns.T.astype(np.float64), strict=True))
        sizes["sms"] = np.array([float(row.measurement.sms) for row in members])
        up_name, right_names = _axes(family[0], names)
        up = sizes[up_name]
        right = np.prod([sizes[name] for name in right_names], axis=0)
        spans = []
        if is_tensor(family[0]):
            for places in _places_of_shapes(members):
                spans.append((right[places[0]], up[places].min(), up[places].max()))
        panels.append(
            Panel(
                name=family_name(family),
                kernel_set=kernel_set,
                rows=tuple(members),
                right=right,
                up=up,
                right_name=" x ".join(right_names),
                up_name=up_name,
                spans=tuple((float(x), float(low), float(high)) for x, low, high in spans),
                measured=np.array([row.measurement.seconds for row in members]),
                predicted=np.array([row.predicted_s for row in members]),
                edge=np.array([row.edge for row in members]),
            )
        )
    return sorted(panels, key=lambda panel: (-len(panel.rows), panel.name))


def _places_of_shapes(members: Sequence[HeldOutRow]) -> list[NDArray[np.intp]]:
    """Rows of each shape."""
    measured = [row.measurement for row in members]
    return [places for _, places in shapes_of(batch_of_rows(measured))]


def _axes(kind: str, sizes: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    if kind in COVERAGE_AXES:
        return COVERAGE_AXES[kind]
    up = next((name for name in ("rows", "tokens") if name in sizes), sizes[0])
    return up, tuple(name for name in sizes if name != up) or ("sms",)
