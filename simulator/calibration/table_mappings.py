"""Say what the columns of a table mean: mappings as data, and which of them a table is for.

A mapping is a YAML file with ``format: table`` (hardware_profiles/mappings, or a user's own). It
names the columns that a table must have and, for each kernel that a line times, its kind, types,
sizes, time and kernel set. Sizes and times are arithmetic over the columns (`+ - * / // min max
round ceil`), with the GPU's `peak_<type>`, `gpus_reached(top_k, experts, gpus)` and the mapping's
`lookups` beside them. docs/own_kernel_tables.md describes the format with an example.

Conditions of `where` are {column: value}: text with `*` for any characters, a list of which one
must hold, or a comparison of numbers such as "< 4096".
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hardware_profiles.fields import ROOT, Profile, TimeValue, read_yaml, to_profile
from hardware_profiles.suggestions import meant_or_known
from hardware_profiles.tables import TRANSFER_KINDS, TRANSFER_SIZES
from reference_model.trace import KINDS
from simulator.calibration.table_files import FileColumns

Array = NDArray[np.float64]
ChosenLines = NDArray[np.bool_]
Wanted = str | int | tuple[str | int, ...]

AGREES = 0.1
"""Share by which a `check` may be off, in the median of the lines."""

_COMPARISON = re.compile(r"^(<=|>=|<|>)\s*(\S+)$")
_COMPARE: Mapping[str, Callable[[Array, float], ChosenLines]] = {
    "<": lambda cells, limit: cells < limit,
    "<=": lambda cells, limit: cells <= limit,
    ">": lambda cells, limit: cells > limit,
    ">=": lambda cells, limit: cells >= limit,
}


class TimedKernel(Profile):
    """One kernel that a line of the table times."""

    kind: str
    dtype: str
    """A type, or the column that names one (`dtypes` translates it)."""
    out_dtype: str
    sizes: dict[str, int | str]
    """{size of the kind: a number or arithmetic over columns}"""
    seconds: str | dict[str, str]
    """Column of the time, or arithmetic over columns; or {column: its unit}, of which the table
    has one."""
    unit: str = ""
    """Unit of `seconds` where that is one column."""
    sms: int | str | None = None
    """SMs that the kernel had; the GPU's where not given."""
    kernel_set: str
    """Version of the kernels; `{column}` is filled in, `{version}` too."""
    where: dict[str, Wanted] = Field(default_factory=dict)
    """What a line must have for this kernel."""
    conditions: dict[str, str] = Field(default_factory=dict)
    part_of: str | None = None
    """Kernels of one module have one time for all: it is shared out by their times at peak, each
    with the mapping's `launch`."""
    launches: int = Field(default=1, ge=1)
    """Kernels that this one stands for in such a module."""
    architecture: str | None = None
    """The only architecture of a GPU where the line times this kernel too."""
    aside: str | None = None
    """Why its share of a module's time is no row."""
    unless_named: str | None = None
    """Why this kernel is taken only where `--sets` names it."""


class TimedModule(Profile):
    """A whole module that a line of the table times, to be held against the sum of its kernels."""

    name: str
    """`{column}` is filled in."""
    job: Literal["prefill", "decode"]
    kernels: tuple[str, ...]
    """Names of the model's kernels that it consists of, with `*`."""
    tokens: str
    context: str
    """Tokens of one sequence."""
    sequences: str
    seconds: str
    """Column of the time, or arithmetic over columns."""
    unit: str
    """Of `seconds`."""
    fp8_cache: bool = False
    """Whether decode reads an FP8 KV cache."""
    where: dict[str, Wanted] = Field(default_factory=dict)
    """What a line must have for this module."""


class SetAside(Profile):
    """Lines that are no kernel time of the model, and why."""

    where: dict[str, Wanted]
    reason: str
    kind: str | None = None
    """The kernels of the lines that this is about; all where not given."""


class Lookup(Profile):
    """A number that goes by the text of a column."""

    column: str
    values: dict[str, float]
    otherwise: float


class TableMapping(Profile):
    """How the lines of one tool's table become measurements."""

    name: str
    format: Literal["table"]
    source: str
    """Where the figures come from; goes into every row."""
    columns: tuple[str, ...]
    """Columns that the table must have; a table with all of them is taken for this one."""
    renamed: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """{column: other names that tables have for it, in whatever case}"""
    where: dict[str, Wanted] = Field(default_factory=dict)
    """What some line must have for the table to be taken for this one."""
    check: dict[str, str] = Field(default_factory=dict)
    """{column: what it must be, within 10% in the median}: tells tables of other kernels with the
    same columns apart."""
    dtypes: dict[str, str] = Field(default_factory=dict)
    """{the table's name of a type: ours}"""
    lookups: dict[str, Lookup] = Field(default_factory=dict)
    """{name in arithmetic: a number that goes by a column}"""
    launch: TimeValue = 0.0
    """What a kernel that does next to nothing takes, of the kernels of a module."""
    aside: tuple[SetAside, ...] = ()
    kernels: tuple[TimedKernel, ...] = ()
    """The kernels that a line times; of one kernel in several sets, the most preferred first."""
    modules: tuple[TimedModule, ...] = ()
    """Whole modules that a line times."""
    unused: str | None = None
    """Why no line of such a table is a kernel time of the model, where that is so."""


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


def shipped_table_mappings() -> tuple[TableMapping, ...]:
    """All shipped mappings for tables, sorted by name."""
    return tuple(_mapping(raw, f"mappings/{name}.yaml") for name, raw in _shipped_tables().items())


def load_table_mapping(name_or_path: str) -> TableMapping:
    """Load a mapping by shipped name or by path; ValueError for anything wrong."""
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return _mapping(read_yaml(Path(name_or_path), where=name_or_path), name_or_path)
    path, where = ROOT / "mappings" / f"{name_or_path}.yaml", f"mappings/{name_or_path}.yaml"
    if not path.is_file():
        meant = meant_or_known(name_or_path, table_mappings(), otherwise="a path to a .yaml file")
        raise ValueError(f"unknown mapping {name_or_path!r}; {meant}")
    return _mapping(read_yaml(path, where=where), where)


def _mapping(raw: dict[str, Any], where: str) -> TableMapping:
    mapping = to_profile(TableMapping, raw, where=where)
    for kernel in mapping.kernels:
        transfer = kernel.kind in TRANSFER_KINDS
        if kernel.kind not in KINDS and not transfer:
            raise ValueError(f"{where}: kernels: kind {kernel.kind!r} is unknown")
        needed = set(TRANSFER_SIZES if transfer else KINDS[kernel.kind].sizes)
        if set(kernel.sizes) != needed:
            raise ValueError(
                f"{where}: kernels: {kernel.kind} needs the sizes "
                f"{', '.join(sorted(needed))}; found "
                f"{', '.join(sorted(kernel.sizes))}"
            )
        if isinstance(kernel.seconds, str) != bool(kernel.unit):
            raise ValueError(
                f"{where}: kernels: {kernel.kind}: unit: needed beside seconds of one column, and "
                "not where seconds is {column: unit}"
            )
        if kernel.aside is not None and kernel.part_of is None:
            raise ValueError(
                f"{where}: kernels: {kernel.kind}: aside: allowed beside part_of only; lines that "
                "are no kernel time go into the mapping's aside"
            )
    return mapping


# -- which mapping a table is for ------------------------------------------------------------------


def with_names_of(mapping: TableMapping, columns: FileColumns) -> FileColumns:
    """The table's columns under the mapping's names, where the table has them under others."""
    by_name = {name.strip().casefold(): name for name in columns}
    known = dict(columns)
    for name, others in mapping.renamed.items():
        found = next((o for o in (name, *others) if o.casefold() in by_name), None)
        if name not in known and found is not None:
            known[name] = columns[by_name[found.casefold()]]
    return known


def missing_columns(mapping: TableMapping, columns: FileColumns) -> list[str]:
    """Columns that the mapping needs and the table has under no name."""
    known = with_names_of(mapping, columns)
    missing = [name for name in mapping.columns if name not in known]
    for kernel in mapping.kernels:
        if not isinstance(kernel.seconds, str) and not set(kernel.seconds) & set(known):
            missing.append(" or ".join(kernel.seconds))
    return list(dict.fromkeys(missing))


def mapping_for(
    columns: FileColumns, mappings: Sequence[TableMapping], known: Mapping[str, float], file: str
) -> TableMapping:
    """The one mapping whose columns, conditions and checks the table fulfils.

    Of several the one with most columns. Raises ValueError, one line, for none, for two with as
    many, and for a table whose cells are not what the mapping makes of them.

    Args:
        known: numbers that arithmetic may name, such as the GPU's peaks.
    """
    way_out = "name one with --mapping"
    fitting = [m for m in mappings if not missing_columns(m, columns)]
    fitting = [m for m in fitting if lines_where(with_names_of(m, columns), m.where).any()]
    if not fitting:
        nearest = max(mappings, key=lambda m: _share_of_columns(m, columns))
        missing = missing_columns(nearest, columns)
        also = f"also needs {', '.join(missing)}" if missing else f"is for {_text(nearest.where)}"
        raise ValueError(
            f"{file}: no mapping knows the columns {', '.join(columns)}; nearest: "
            f"{nearest.name}, which {also}; {way_out}, or state a column that is the same in every "
            "line with --column NAME=VALUE"
        )
    agreeing = [m for m in fitting if not _disagreement(m, columns, known)]
    if not agreeing:
        nearest = max(fitting, key=lambda m: len(m.columns))
        raise ValueError(
            f"{file}: has the columns of mapping {nearest.name}, but "
            f"{_disagreement(nearest, columns, known)}: it may time another kernel; {way_out}"
        )
    most = max(len(m.columns) for m in agreeing)
    best = [m for m in agreeing if len(m.columns) == most]
    if len(best) > 1:
        names = " and ".join(m.name for m in best)
        raise ValueError(f"{file}: has the columns of {names}; {way_out}")
    return best[0]


def _share_of_columns(mapping: TableMapping, columns: FileColumns) -> tuple[float, int]:
    missing = len(missing_columns(mapping, columns))
    return (1 - missing / max(len(mapping.columns), 1), len(mapping.columns))


def _text(where: Mapping[str, Wanted]) -> str:
    return " and ".join(f"{column} {wanted}" for column, wanted in where.items())


def _disagreement(mapping: TableMapping, columns: FileColumns, known: Mapping[str, float]) -> str:
    """Which column is not what the mapping's check says; empty where all are."""
    named = with_names_of(mapping, columns)
    for column, expression in mapping.check.items():
        stated = numbers_of(named[column])
        expected = column_arithmetic(expression, named, known, f"mapping {mapping.name}")
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = stated / expected
        ratio = ratio[np.isfinite(ratio)]
        if len(ratio) and not abs(float(np.median(ratio)) - 1) <= AGREES:
            times = f"{float(np.median(ratio)):.3g}"
            return f"its column {column} is {times} times what that kernel's would be"
    return ""


def lines_where(columns: FileColumns, where: Mapping[str, Wanted]) -> ChosenLines:
    """[lines] whether each fulfils all conditions; none does where a column is not there."""
    chosen = np.ones(len(next(iter(columns.values()), ())), dtype=np.bool_)
    for column, wanted in where.items():
        if column not in columns:
            return np.zeros_like(chosen)
        cells = columns[column]
        values = wanted if isinstance(wanted, tuple) else (wanted,)
        chosen &= np.logical_or.reduce([_matches(cells, value) for value in values])
    return chosen


def _matches(cells: NDArray[Any], wanted: str | int) -> ChosenLines:
    comparison = _COMPARISON.match(wanted) if isinstance(wanted, str) else None
    if comparison:
        with np.errstate(invalid="ignore"):
            return _COMPARE[comparison[1]](numbers_of(cells), float(comparison[2]))
    texts, places = np.unique(cells.astype(str), return_inverse=True)
    found = np.array([fnmatchcase(str(text), str(wanted)) for text in texts], dtype=np.bool_)
    return found[places] if len(texts) else np.zeros(len(cells), dtype=np.bool_)


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


def column_arithmetic(
    text: str, columns: FileColumns, known: Mapping[str, float | Array], where: str
) -> Array:
    """Arithmetic over columns, or a column by its name, whatever it is called: one number for each
    line, nan where a cell is no number."""
    if text in columns:
        return numbers_of(columns[text])
    count = len(next(iter(columns.values())))

    def value(node: ast.expr) -> Array:
        match node:
            case ast.Constant(value=int() | float() as number):
                return np.full(count, float(number))
            case ast.Name(id=name) if name in columns:
                return numbers_of(columns[name])
            case ast.Name(id=name) if name in known:
                return np.zeros(count) + known[name]
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


def numbers_of(cells: NDArray[Any]) -> Array:
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
