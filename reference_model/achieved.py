"""Rates that measured kernels achieve, beside the GPU's ceilings.

The ceilings are the table's own: the fastest GEMM of each type, one or grouped, and the fastest
copy.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from reference_model.measure import COLUMNS
from reference_model.trace import KINDS, Operator


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of the table."""

    operator: Operator
    seconds: float
    kernel_set: str
    sms: int

    @property
    def flops_per_s(self) -> float:
        """Executed operations of matrix products a second; 0 where there are none."""
        return self.operator.flops / self.seconds

    @property
    def bytes_per_s(self) -> float:
        """Bytes read and written a second."""
        return (self.operator.bytes_read + self.operator.bytes_written) / self.seconds


@dataclass(frozen=True, slots=True)
class BestRates:
    """The rows of one kind, operand type and kernel set, on all multiprocessors."""

    kind: str
    dtype: str
    kernel_set: str
    rows: int
    flops_per_s: float
    """Of the fastest row."""
    flops_share: float | None
    """Share of the ceiling of its type; None without matrix products."""
    bytes_per_s: float
    """Of the row that moves most a second."""
    bytes_share: float


def load_timed(path: Path) -> list[TableRow]:
    """Read a table that `measure` wrote. Raises ValueError naming the file and what is wrong."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is None or tuple(reader.fieldnames) != COLUMNS:
            raise ValueError(f"{path}: columns are {reader.fieldnames}, allowed: {list(COLUMNS)}")
        return [_timed(line) for line in reader if line["kind"] in KINDS]


def _timed(line: dict[str, str]) -> TableRow:
    conditions = _pairs(line["conditions"])
    operator = Operator(
        name=line["kind"],
        kind=line["kind"],
        phase="forward",
        segment="mlp",
        dtype=line["dtype"],
        out_dtype=conditions["out_dtype"],
        sizes=tuple(sorted((name, int(value)) for name, value in _pairs(line["sizes"]).items())),
        recompute=False,
        accumulate="accumulate" in conditions,
    )
    return TableRow(operator, float(line["seconds"]), conditions["set"], int(line["sms"]))


def _pairs(text: str) -> dict[str, str]:
    pairs = (part.split("=", 1) for part in text.split(";"))
    return {name: value for name, value in pairs}  # noqa: C416 - lists are not pairs to mypy


def ceilings(rows: Iterable[TableRow]) -> tuple[dict[str, float], float]:
    """{operand type: operations a second of the fastest GEMM, one or grouped}, and bytes a second
    that the fastest copy reads and writes."""
    flops: dict[str, float] = {}
    moved = 0.0
    for row in rows:
        dtype = row.operator.dtype
        if row.operator.kind.removeprefix("grouped_").startswith("gemm"):
            flops[dtype] = max(flops.get(dtype, 0.0), row.flops_per_s)
        elif row.operator.kind == "copy":
            moved = max(moved, row.bytes_per_s)
    return flops, moved


def achieved(rows: list[TableRow]) -> list[BestRates]:
    """Best rates of each kind, type and kernel set on the most multiprocessors of the table."""
    every = max(row.sms for row in rows)
    flops_ceilings, bytes_ceiling = ceilings(rows)
    groups: dict[tuple[str, str, str], list[TableRow]] = {}
    for row in rows:
        if row.sms == every:
            key = (row.operator.kind, row.operator.dtype, row.kernel_set)
            groups.setdefault(key, []).append(row)
    results = []
    for (kind, dtype, kernel_set), members in sorted(groups.items()):
        flops = max(member.flops_per_s for member in members)
        moved = max(member.bytes_per_s for member in members)
        results.append(
            BestRates(
                kind=kind,
                dtype=dtype,
                kernel_set=kernel_set,
                rows=len(members),
                flops_per_s=flops,
                flops_share=flops / flops_ceilings[dtype] if flops else None,
                bytes_per_s=moved,
                bytes_share=moved / bytes_ceiling,
            )
        )
    return results
