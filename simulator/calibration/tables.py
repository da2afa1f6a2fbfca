"""Read other tools' benchmark tables as measured kernel times, as a mapping file says.

A mapping (hardware_profiles/mappings/*.yaml with ``format: table``, or a user's own file) is chosen
by the columns of the CSV or parquet file where none is named. It says which columns must be there
and, for each kernel that a line times, its kind, types, sizes, time and kernel set. Sizes and times
are arithmetic over the columns (`+ - * / // min max round ceil`), with the GPU's `peak_<type>` and
`gpus_reached(top_k, experts, gpus)` beside them.

What makes the whole table useless is one ValueError. A line that cannot be used (no number, a time
that is not positive, below what the GPU's peaks allow or far off all others of its kernel, as mixed
units give) is set aside and counted, with its line number; nothing is dropped in silence.
"""

from __future__ import annotations

import ast
import csv
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hardware_profiles.fields import ROOT, Profile, read_yaml, to_profile
from hardware_profiles.schema import GpuProfile, load_gpu
from hardware_profiles.tables import COLUMNS, Measurement, load_measurements
from hardware_profiles.units import unit_factor
from reference_model.trace import KINDS
from simulator.hardware.kernels.families import batch_of_rows
from simulator.hardware.kernels.roofline import (
    DEEPGEMM_TILES,
    ideal_batch_seconds,
    least_seconds,
)
from simulator.hardware.network.transfer_times import LINK_KINDS, check_link, wire_of

Array = NDArray[np.float64]
Columns = Mapping[str, NDArray[Any]]

LEAST_OF_PEAK = 0.9
"""Times below this share of the bound by peaks are no times of this kernel on this GPU: clocks
boost beyond the rated one by less."""
FAR_OFF = 200.0
"""Factor from the median of a kernel's ratios to its time at peak that no benchmark strays by, but
a slip between units of time (1,000) does."""
ROUNDING = 1e-6
"""Difference from a whole number that arithmetic leaves."""
LINES_NAMED = 8
"""Line numbers that a warning lists before it only counts."""


class TimedKernel(Profile):
    """One kernel that a line of the table times."""

    kind: str
    dtype: str
    """A type, or the column that names one (`dtypes` translates it)."""
    out_dtype: str
    sizes: dict[str, int | str]
    """{size of the kind: a number or arithmetic over columns}"""
    seconds: str
    """Column of the time, or arithmetic over columns."""
    unit: str
    """Unit of `seconds`."""
    sms: int | str | None = None
    """SMs that the kernel had; the GPU's where not given."""
    kernel_set: str
    """Version of the kernels; `{column}` is filled in."""
    where: dict[str, str | int] = Field(default_factory=dict)
    """{column: value} that a line must have for this kernel."""
    conditions: dict[str, str] = Field(default_factory=dict)


class TableMapping(Profile):
    """How the lines of one tool's table become measurements."""

    name: str
    format: Literal["table"]
    source: str
    """Where the figures come from; goes into every row."""
    columns: tuple[str, ...]
    """Columns that the table must have; a table with all of them is taken for this one."""
    dtypes: dict[str, str] = Field(default_factory=dict)
    """{the table's name of a type: ours}"""
    kernels: tuple[TimedKernel, ...] = ()
    unused: str | None = None
    """Why no line of such a table is a kernel time of the model, where that is so."""


@dataclass(frozen=True, slots=True)
class ImportedTable:
    """What one table gives."""

    mapping: str
    measurements: tuple[Measurement, ...]
    warnings: tuple[str, ...]
    """One for each reason that lines were set aside, with their number."""
    set_aside: int
    """Lines without a row."""


def table_mappings() -> tuple[str, ...]:
    """Names of the shipped mappings for tables, sorted."""
    return tuple(_shipped_tables())


def _shipped_tables() -> dict[str, dict[str, Any]]:
    """{name: the file's values} of the shipped mappings for tables, sorted by name."""
    files = {
        path.stem: read_yaml(path, where=f"mappings/{path.name}")
        for path in sorted((ROOT / "mappings").glob("*.yaml"))
    }
    return {name: raw for name, raw in files.items() if raw.get("format") == "table"}


def load_table_mapping(name_or_path: str) -> TableMapping:
    """Load a mapping by shipped name or by path; ValueError for anything wrong."""
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return _mapping(read_yaml(Path(name_or_path), where=name_or_path), name_or_path)
    path, where = ROOT / "mappings" / f"{name_or_path}.yaml", f"mappings/{name_or_path}.yaml"
    if not path.is_file():
        raise ValueError(
            f"unknown mapping {name_or_path!r}; known: {', '.join(table_mappings())}; "
            "or give a path to a .yaml file"
        )
    return _mapping(read_yaml(path, where=where), where)


def _mapping(raw: dict[str, Any], where: str) -> TableMapping:
    mapping = to_profile(TableMapping, raw, where=where)
    for kernel in mapping.kernels:
        if kernel.kind not in KINDS:
            raise ValueError(f"{where}: kernels: kind {kernel.kind!r} is unknown")
        if set(kernel.sizes) != set(KINDS[kernel.kind].sizes):
            raise ValueError(
                f"{where}: kernels: {kernel.kind} needs the sizes "
                f"{', '.join(sorted(KINDS[kernel.kind].sizes))}; found "
                f"{', '.join(sorted(kernel.sizes))}"
            )
    return mapping


def import_table(path: str | Path, *, gpu: str, mapping: str | None = None) -> ImportedTable:
    """Read a table of kernel times.

    Args:
        gpu: GPU profile that the table was measured on.
        mapping: shipped name or path; chosen by the columns where not given. A table with this
            project's own columns needs none.

    Raises ValueError, one line, for a file that is no table, an unknown layout or missing columns.
    """
    path = Path(path)
    profile = load_gpu(gpu)
    columns = read_columns(path)
    if mapping is None and tuple(columns) == COLUMNS:
        rows, far = _plausible(list(load_measurements(path)), profile, first_line=2)
        return ImportedTable("measurements", tuple(rows), *_warn(path, far))
    rules = load_table_mapping(mapping) if mapping else _by_columns(path, tuple(columns))
    missing = [name for name in rules.columns if name not in columns]
    if missing:
        raise ValueError(
            f"{path.name}: column {missing[0]!r} is missing; mapping {rules.name} needs "
            f"{', '.join(rules.columns)}; the table has {', '.join(columns)}"
        )
    count = len(next(iter(columns.values())))
    if not count:
        raise ValueError(f"{path.name}: the table has columns but no line")
    if rules.unused:
        lines = list(range(2, count + 2))
        return ImportedTable(rules.name, (), *_warn(path, {rules.unused: lines}))
    found: list[Measurement] = []
    aside: dict[str, list[int]] = defaultdict(list)
    taken = np.zeros(count, dtype=np.bool_)
    for kernel in rules.kernels:
        rows, lines, problems, used = _rows(kernel, rules, columns, profile, path.name)
        kept, far = _plausible(rows, profile, lines=lines)
        found.extend(kept)
        taken |= used
        for reason, numbers in (*problems.items(), *far.items()):
            aside[reason].extend(numbers)
    untouched = np.flatnonzero(~taken)
    if len(untouched):
        aside["no kernel of the mapping"] = (untouched + 2).tolist()
    return ImportedTable(rules.name, tuple(found), *_warn(path, aside))


def read_columns(path: Path) -> dict[str, NDArray[Any]]:
    """Columns of a CSV (as text) or parquet file (as they are), in order."""
    if path.suffix == ".parquet":
        return _read_parquet(path)
    import pandas as pd

    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    except (ValueError, OverflowError, RecursionError) as error:
        # pandas' parser errors are ValueErrors, some over several lines.
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a CSV table: {reason}") from None
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError(f"{path}: not a CSV table: lines have more cells than the header")
    with path.open(encoding="utf-8-sig", newline="") as text:
        header = [name.strip() for name in next(csv.reader(text), [])]
    twice = [name for name, times in Counter(header).items() if times > 1]
    if twice:
        raise ValueError(f"{path}: column {twice[0]!r} is there more than once")
    return {str(name).strip(): frame[name].to_numpy(dtype=object) for name in frame.columns}


def _read_parquet(path: Path) -> dict[str, NDArray[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        return {
            name: column.to_numpy(zero_copy_only=False)
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())
        raise ValueError(f"{path}: cannot be read as parquet: {reason}") from None
    except (pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a parquet table: {reason}") from None


def _by_columns(path: Path, columns: Sequence[str]) -> TableMapping:
    """The shipped mapping with most columns, all of which the table has."""
    shipped = _shipped_tables()
    known = [_mapping(raw, f"mappings/{name}.yaml") for name, raw in shipped.items()]
    fitting = [m for m in known if set(m.columns) <= set(columns)]
    if not fitting:
        nearest = max(known, key=lambda m: len(set(m.columns) & set(columns)))
        missing = [name for name in nearest.columns if name not in columns]
        raise ValueError(
            f"{path.name}: no mapping knows the columns {', '.join(columns)}; nearest: "
            f"{nearest.name}, which also needs {', '.join(missing)}; name one with --mapping"
        )
    return max(fitting, key=lambda m: len(m.columns))


def _rows(
    kernel: TimedKernel, rules: TableMapping, columns: Columns, gpu: GpuProfile, file: str
) -> tuple[list[Measurement], list[int], dict[str, list[int]], NDArray[np.bool_]]:
    """Rows of one kernel, their line numbers, problems by reason, and the lines it spoke for."""
    count = len(next(iter(columns.values())))
    chosen = np.ones(count, dtype=np.bool_)
    for column, wanted in kernel.where.items():
        chosen &= np.array([str(value) == str(wanted) for value in columns[column]])
    places = np.flatnonzero(chosen)
    taken = {name: values[places] for name, values in columns.items()}
    known = {f"peak_{name}": peak for name, peak in gpu.peak_compute.items()}
    problems: dict[str, list[int]] = defaultdict(list)

    def numbers(expression: str | int) -> Array:
        if isinstance(expression, int):
            return np.full(len(places), float(expression))
        return _evaluate(expression, taken, known, f"mapping {rules.name}")

    seconds = numbers(kernel.seconds) * unit_factor(kernel.unit, "time")
    sizes = {name: numbers(value) for name, value in kernel.sizes.items()}
    sms = numbers(gpu.sms if kernel.sms is None else kernel.sms)
    usable = np.ones(len(places), dtype=np.bool_)

    def refuse(bad: NDArray[np.bool_], reason: str) -> None:
        nonlocal usable
        for place in places[bad & usable].tolist():
            problems[reason].append(place + 2)
        usable &= ~bad

    refuse(~np.isfinite(seconds), f"{kernel.seconds} is no number")
    refuse(~(seconds > 0), f"{kernel.seconds} is not positive")
    for name, values in sizes.items():
        refuse(~np.isfinite(values), f"{name} is no number")
        refuse(values < 0, f"{name} is negative")
        with np.errstate(invalid="ignore"):
            fraction = np.abs(values - np.round(values))
        refuse(fraction > ROUNDING, f"{name} is no whole number")
        refuse(values > np.iinfo(np.int32).max, f"{name} is not plausible")
    refuse(~((sms >= 1) & (sms <= gpu.sms)), f"sms is not between 1 and {gpu.sms}")
    rows: list[Measurement] = []
    lines: list[int] = []
    names = sorted(sizes)
    for number in np.flatnonzero(usable).tolist():
        cells = {column: values[number] for column, values in taken.items()}
        dtype = _type(kernel.dtype, cells, rules)
        out_dtype = _type(kernel.out_dtype, cells, rules)
        unknown = next((text for text in (dtype, out_dtype) if text not in _TYPES), None)
        if unknown is not None:
            problems[f"type {unknown!r} is unknown"].append(int(places[number]) + 2)
            continue
        conditions = {
            **{name: text.format_map(cells) for name, text in kernel.conditions.items()},
            "set": kernel.kernel_set.format_map(cells),
            "out_dtype": out_dtype,
        }
        rows.append(
            Measurement(
                kind=kernel.kind,
                sizes=tuple((name, round(float(sizes[name][number]))) for name in names),
                dtype=dtype,
                sms=round(float(sms[number])),
                seconds=float(seconds[number]),
                spread=None,
                source=f"{rules.source} ({file})",
                conditions=tuple(sorted(conditions.items())),
            )
        )
        lines.append(int(places[number]) + 2)
    return rows, lines, dict(problems), chosen


_TYPES = frozenset({"fp8_e4m3", "bfloat16", "float32", "e5m6", "int64", "int32"})


def _type(text: str, cells: Mapping[str, Any], rules: TableMapping) -> str:
    value = str(cells[text]) if text in cells else text
    return rules.dtypes.get(value, value)


def _plausible(
    rows: Sequence[Measurement],
    gpu: GpuProfile,
    *,
    lines: Sequence[int] | None = None,
    first_line: int = 2,
) -> tuple[list[Measurement], dict[str, list[int]]]:
    """Rows whose times can be true on this GPU, and the line numbers of the others by reason."""
    numbers = list(lines) if lines is not None else list(range(first_line, first_line + len(rows)))
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    refused: dict[int, str] = {}
    too_fast_text = f"faster than the peaks of {gpu.name} allow (another unit or GPU?)"
    for place, row in enumerate(rows):
        if row.kind in LINK_KINDS:
            try:
                check_link(row)
            except ValueError as error:
                refused[place] = str(error).partition("sizes: ")[2].partition(";")[0]
                continue
            least = LEAST_OF_PEAK * float(wire_of([row])[0]) / gpu.nvlink_bandwidth
            if row.seconds < least:
                refused[place] = too_fast_text
        if row.kind not in KINDS or {n for n, _ in row.sizes} != set(KINDS[row.kind].sizes):
            continue
        groups[row.kind, row.dtype, row.out_dtype, row.accumulates, row.kernel_set].append(place)
    for places in groups.values():
        batch = batch_of_rows([rows[place] for place in places])
        sms = np.array([rows[place].sms for place in places], dtype=np.float64)
        seconds = np.array([rows[place].seconds for place in places])
        too_fast = seconds < LEAST_OF_PEAK * least_seconds(batch, sms, gpu, memory_share=1.0)
        ratio = seconds / np.maximum(
            ideal_batch_seconds(batch, sms, gpu, DEEPGEMM_TILES), unit_factor("us", "time")
        )
        apart = np.maximum(ratio / np.median(ratio), np.median(ratio) / ratio)
        for place, fast, far in zip(places, too_fast, apart > FAR_OFF, strict=True):
            if fast:
                refused[place] = too_fast_text
            elif far:
                refused[place] = "far off all other rows of its kernel (another unit?)"
    far_off: dict[str, list[int]] = defaultdict(list)
    for place, reason in sorted(refused.items()):
        far_off[reason].append(numbers[place])
    kept = [row for place, row in enumerate(rows) if place not in refused]
    return kept, dict(far_off)


def _warn(path: Path, aside: Mapping[str, Sequence[int]]) -> tuple[tuple[str, ...], int]:
    """Warnings by reason, and the number of lines behind them."""
    warnings = []
    every: set[int] = set()
    for reason, lines in aside.items():
        distinct = sorted(set(lines))
        every.update(distinct)
        named = ", ".join(map(str, distinct[:LINES_NAMED]))
        more = f" and {len(distinct) - LINES_NAMED} more" if len(distinct) > LINES_NAMED else ""
        warnings.append(f"{path.name}: {len(distinct)} x set aside: {reason}: line {named}{more}")
    return tuple(warnings), len(every)


# -- arithmetic of mappings ------------------------------------------------------------------------


def gpus_reached(top_k: Array, experts: Array, gpus: Array) -> Array:
    """Distinct GPUs that a token's experts sit on, all drawn at random.

    G (1 - C(E - E/G, k) / C(E, k)) for k of E experts on G GPUs.
    """
    missed = np.ones_like(experts * top_k * gpus)
    per_gpu = experts / gpus
    for drawn in range(int(np.max(top_k, initial=0))):
        left = np.maximum(experts - per_gpu - drawn, 0.0) / np.maximum(experts - drawn, 1.0)
        missed = np.where(drawn < top_k, missed * left, missed)
    reached: Array = gpus * (1.0 - missed)
    return reached


_BINARY: Mapping[type[ast.operator], Callable[[Array, Array], Array]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.FloorDiv: np.floor_divide,
}
_FUNCTIONS: Mapping[str, Callable[..., Array]] = {
    "min": np.minimum,
    "max": np.maximum,
    "round": np.round,
    "ceil": np.ceil,
    "gpus_reached": gpus_reached,
}


def _evaluate(text: str, columns: Columns, known: Mapping[str, float], where: str) -> Array:
    """Arithmetic over columns: text in, one number a line out; nan where a cell is no number."""
    count = len(next(iter(columns.values())))

    def value(node: ast.expr) -> Array:
        match node:
            case ast.Constant(value=int() | float() as number):
                return np.full(count, float(number))
            case ast.Name(id=name) if name in columns:
                return _numbers(columns[name])
            case ast.Name(id=name) if name in known:
                return np.full(count, known[name])
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return _BINARY[type(op)](value(left), value(right))
            case ast.Call(func=ast.Name(id=name), args=args) if name in _FUNCTIONS:
                return _FUNCTIONS[name](*map(value, args))
        raise ValueError(
            f"{where}: {text!r}: {ast.unparse(node)!r} is not allowed; allowed: columns of the "
            f"table, numbers, + - * / //, {', '.join(_FUNCTIONS)}, {', '.join(known)}"
        )

    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        raise ValueError(f"{where}: {text!r} is no arithmetic") from None
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return value(tree.body)


def _numbers(cells: NDArray[Any]) -> Array:
    """Numbers of a column; nan for a cell that is none."""
    try:
        return cells.astype(np.float64)
    except (ValueError, TypeError, OverflowError):
        return np.array([_number(cell) for cell in cells])


def _number(cell: object) -> float:
    try:
        return float(cell)  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError):
        return math.nan


def kernel_sets(rows: Sequence[Measurement]) -> tuple[str, ...]:
    """Kernel sets of some rows, most rows first."""
    counts = Counter(row.kernel_set for row in rows)
    return tuple(sorted(counts, key=lambda name: (-counts[name], name)))
