"""Read and write tables of measured kernel times: CSV files with the columns of `COLUMNS`.

One row is one kernel at one size under stated conditions. ``sizes`` is text such as
``k=7168;m=4096;n=1536``, names sorted; ``seconds`` is the mean; ``spread`` is the standard
deviation of the repeats over their mean, empty where unknown; ``conditions`` is text such as
``set=infersim;out_dtype=bfloat16``, names sorted:

    set         version of the kernels; rows of different sets never enter one fit
    out_dtype   type of the result
    accumulate  "yes" for a kernel that adds into its result
    pair        "yes" for a compute kernel of an overlapped forward and backward pair
    all_to_all  share of the kernel's time with an all-to-all in flight beside it, 0 where absent
    beside      "compute" for a kernel on the communication SMs while compute has the others
    repeats     launches behind the mean
    kernels     kernels that make one launch of the operator, 1 where absent
    state       "sustained" for an operator timed in turns with the others of a step, at the clock
                that the step has (`clock_hz`; `burst_clock_hz` is that of other rows), "in_order"
                for one timed where it stands in a decode step; a burst of milliseconds where absent
    job         kind of step among whose operators it was timed, such as "prefill"
    nodes       nodes of the expert-parallel group (dispatch and combine)
    nic         line rate that each GPU had between nodes, with its unit
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hardware_profiles.fields import ROOT
from hardware_profiles.whole_files import read_text, write_whole

ELEMENT_TYPES = (
    "bfloat16",
    "e5m6",
    "float16",
    "float32",
    "fp4_e2m1",
    "fp8_e4m3",
    "fp8_e4m3_tensor",
    "int32",
    "int64",
    "int8",
    "mxfp8_e4m3",
    "w4a16_g128",
    "w4a16_g32",
)
"""Types of the elements that a measured kernel reads or writes, and of its product (W4A16: 4-bit
weights in groups of so many, multiplied in BF16)."""

TRANSFER_KINDS = frozenset(
    {"all_gather", "all_reduce", "all_to_all", "peer_copy", "reduce_scatter", "send"}
)
"""Kinds of rows that time a transfer between GPUs of one host, not a kernel of a layer."""
TRANSFER_SIZES = ("bytes", "ranks")
"""Their sizes: the larger of a rank's send and receive buffers, as nccl-tests have it, and GPUs."""

COLUMNS = ("kind", "sizes", "dtype", "sms", "seconds", "spread", "source", "conditions")
_TIMES = COLUMNS.index("seconds")
NUMBERS = frozenset({"burst_clock_hz", "clock_hz", "experts", "kernels", "nodes", "repeats"})
"""Conditions that are positive numbers."""
WHOLE = frozenset({"experts", "nodes"})
"""Those of them that are whole."""

CARDS = ROOT / "measurements" / "cards"
"""A folder for each reference table, of the cards that it or its widths rest on."""

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured kernel time."""

    kind: str
    """Kernel family, a key of reference_model.trace.KINDS."""
    sizes: tuple[tuple[str, int], ...]
    """Sorted (name, value) pairs, as in reference_model.trace.Operator."""
    dtype: str
    """Operand type."""
    sms: int
    """SMs the kernel had for itself."""
    seconds: float
    spread: float | None
    """Standard deviation over mean of the repeats; None where unknown."""
    source: str
    conditions: Pairs
    """Sorted (name, value) pairs."""

    def condition(self, name: str, default: str = "") -> str:
        """Return one condition, or ``default`` where the row does not state it."""
        for known, value in self.conditions:
            if known == name:
                return value
        return default

    @property
    def kernel_set(self) -> str:
        """Version of the kernels, such as "infersim"."""
        return self.condition("set")

    @property
    def out_dtype(self) -> str:
        """Type of the result."""
        return self.condition("out_dtype", self.dtype)

    @property
    def accumulate(self) -> bool:
        """Whether the kernel adds into its result."""
        return self.condition("accumulate") in ("yes", "1")

    @property
    def pair(self) -> bool:
        """Whether it is a compute kernel of an overlapped pair."""
        return self.condition("pair") == "yes"

    @property
    def beside_compute(self) -> bool:
        """Whether it ran on communication SMs while compute had the others."""
        return self.condition("beside") == "compute"

    @property
    def state(self) -> str:
        """How it was timed: "sustained", "in_order", or "" in a burst."""
        return self.condition("state")

    @property
    def job(self) -> str:
        """Kind of step among whose operators it was timed; "" where among none."""
        return self.condition("job")

    @property
    def layout(self) -> str:
        """Layout of dispatch and combine: "low_latency", or "" of normal kernels."""
        return self.condition("layout")

    @property
    def nodes(self) -> int | None:
        """Nodes of the expert-parallel group; None where the row is of none."""
        stated = self.condition("nodes")
        return int(stated) if stated else None

    @property
    def kernels(self) -> float:
        """Kernels that make one launch of the operator."""
        return float(self.condition("kernels", "1"))

    @property
    def repeats(self) -> float:
        """Launches behind the mean."""
        return float(self.condition("repeats", "1"))

    @property
    def all_to_all_share(self) -> float:
        """Share of the time with an all-to-all in flight, 0 to 1."""
        return float(self.condition("all_to_all", "0"))


def table_path(name: str) -> Path:
    """Path of a shipped table, such as "h800_sxm" or "host/h200_sxm_transfers"; any other name with
    a slash is a path itself."""
    shipped = ROOT / "measurements" / f"{name}.csv"
    return Path(name) if "/" in name and not shipped.is_file() else shipped


def kept_cards(name: str) -> list[tuple[Measurement, ...]]:
    """The rows of a shipped reference table on every card that is kept beside it.

    Those of which the table is the median come first, then those that were timed later.
    """
    files = [CARDS / name / "table.csv", CARDS / name / "later.csv"]
    return [card for path in files if path.is_file() for card in load_cards(path)]


def load_measurements(path: Path) -> tuple[Measurement, ...]:
    """Read a table. Raises ValueError naming file, line and column of the first bad value."""
    return _rows(path.name, read_text(path, where=str(path)))


@lru_cache(maxsize=32)
def _rows(file: str, text: str) -> tuple[Measurement, ...]:
    """Rows of the text of a table, the same objects for the same text."""
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, [])
    if tuple(header) != COLUMNS:
        raise ValueError(f"{file}: columns are {header}, allowed: {list(COLUMNS)}")
    return tuple(_row(file, reader.line_num, row) for row in reader)


def load_cards(path: Path) -> tuple[tuple[Measurement, ...], ...]:
    """Read the same rows, in the same order, of each of several GPUs of one type.

    The file has the columns of a table, but `seconds` and `spread` once for each GPU: seconds_1,
    spread_1, seconds_2 and so on. Raises ValueError naming file, line and column of the first bad
    value.
    """
    reader = csv.reader(io.StringIO(read_text(path, where=str(path)), newline=""))
    header = next(reader, [])
    cards = (len(header) - len(COLUMNS)) // 2 + 1
    if header != _columns_of(max(cards, 1)):
        raise ValueError(f"{path.name}: columns are {header}, allowed: {_columns_of(2)} and so on")
    end = _TIMES + 2 * cards
    rows = []
    for cells in reader:
        file, line = path.name, reader.line_num
        if len(cells) != len(header):
            raise ValueError(f"{file}: line {line}: {len(cells)} cells, needs {len(header)}")
        rows.append(
            [
                _row(file, line, [*cells[:_TIMES], *cells[at : at + 2], *cells[end:]])
                for at in range(_TIMES, end, 2)
            ]
        )
    return tuple(zip(*rows, strict=True))


def write_cards(path: Path, tables: Sequence[Sequence[Measurement]]) -> None:
    """Write the rows that all of several GPUs' tables have, each with the first one's source."""
    cells = [{(*row[:_TIMES], row[-1]): row for row in map(_cells, rows)} for rows in tables]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_columns_of(len(tables)))
    for key in sorted(set.intersection(*(set(of) for of in cells))):
        times = [cell for of in cells for cell in of[key][_TIMES : _TIMES + 2]]
        writer.writerow([*key[:_TIMES], *times, *cells[0][key][-2:]])
    write_whole(path, text.getvalue())


def _columns_of(cards: int) -> list[str]:
    times = [f"{name}_{card}" for card in range(1, cards + 1) for name in ("seconds", "spread")]
    return [*COLUMNS[:_TIMES], *times, *COLUMNS[_TIMES + 2 :]]


def write_measurements(path: Path, rows: Iterable[Measurement]) -> None:
    """Write a table. Raises ValueError where it cannot be; what stood there is left then."""
    write_whole(path, table_text(rows))


def table_text(rows: Iterable[Measurement]) -> str:
    """A table as text, sorted, so that the same measurements always give the same file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(sorted(_cells(row) for row in rows))
    return text.getvalue()


def _cells(row: Measurement) -> tuple[str, ...]:
    return (
        row.kind,
        format_pairs(row.sizes),
        row.dtype,
        str(row.sms),
        f"{row.seconds:.6g}",
        "" if row.spread is None else f"{row.spread:.3g}",
        row.source,
        format_pairs(row.conditions),
    )


def format_pairs(pairs: Iterable[tuple[str, object]]) -> str:
    """Write (name, value) pairs as ``k=7168;m=4096``."""
    return ";".join(f"{name}={value}" for name, value in sorted(pairs))


@lru_cache(maxsize=4096)
def _pairs(text: str) -> Pairs:
    """Of a cell; the rows of a table share most of theirs."""
    pairs = [tuple(part.split("=", 1)) for part in text.split(";")] if text else []
    if any(len(pair) != 2 or not pair[0] for pair in pairs):
        raise ValueError(f"{text!r} is not name=value;name=value")
    return tuple(sorted((pair[0], pair[1]) for pair in pairs))


def _check_type(name: str) -> None:
    if name not in ELEMENT_TYPES:
        raise ValueError(f"{name!r} is not an element type; known: {', '.join(ELEMENT_TYPES)}")


def _row(file: str, line: int, cells: list[str]) -> Measurement:
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{file}: line {line}: {len(cells)} cells, needs {len(COLUMNS)}")
    values = dict(zip(COLUMNS, cells, strict=True))
    column = ""
    try:
        column = "sizes"
        sizes = tuple((name, int(value)) for name, value in _pairs(values["sizes"]))
        if any(value < 0 for _, value in sizes):
            raise ValueError(f"{values['sizes']!r} holds a negative size")
        column = "dtype"
        _check_type(values["dtype"])
        column = "sms"
        sms = int(values["sms"])
        if sms < 1:
            raise ValueError(f"{sms} is not allowed: it must be at least 1")
        column = "seconds"
        seconds = float(values["seconds"])
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"{values['seconds']!r} is not a positive number")
        column = "spread"
        spread = float(values["spread"]) if values["spread"] else None
        if spread is not None and not (math.isfinite(spread) and spread >= 0):
            raise ValueError(f"{values['spread']!r} is not a number of 0 or more")
        column = "conditions"
        conditions = _pairs(values["conditions"])
        stated = dict(conditions)
        _check_type(stated.get("out_dtype", values["dtype"]))
        share = float(stated.get("all_to_all", "0"))
        if not 0 <= share <= 1:
            raise ValueError(f"all_to_all={share} is not a share between 0 and 1")
        for name in NUMBERS & stated.keys():
            if not 0 < float(stated[name]) < math.inf:
                raise ValueError(f"{name}={stated[name]} is not a positive number")
        for name in WHOLE & stated.keys():
            if not stated[name].isdecimal():
                raise ValueError(f"{name}={stated[name]} is not a whole number")
    except ValueError as error:
        raise ValueError(f"{file}: line {line}: {column}: {error}") from None
    return Measurement(
        kind=values["kind"],
        sizes=sizes,
        dtype=values["dtype"],
        sms=sms,
        seconds=seconds,
        spread=spread,
        source=values["source"],
        conditions=conditions,
    )
