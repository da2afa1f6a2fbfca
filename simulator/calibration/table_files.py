"""Read files of measurements as columns: CSV, parquet, and what benchmarks print.

A table keeps its own columns. Printed output of nccl-tests and of DeepEP's tests becomes a table
whose columns are named as the program names them: one line for each printed result, with what the
head of the output says of all of them (operation, ranks, device, version) in every line.
"""

from __future__ import annotations

import csv
import re
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FileColumns = Mapping[str, NDArray[Any]]
"""{column: its cells}, all of one length."""

ENDINGS = (".csv", ".parquet", ".txt", ".log", ".out")
"""Of files in a folder that can hold measurements, besides profiles."""

MOST_BYTES = 2**29
"""Of a table, as a parquet file unpacks; a million measurements take a tenth."""
MOST_ROWS = 2_000_000
MOST_LINES = 100_000
"""Of a table that are read; the largest published one has 76,011."""
_WAY_OUT = f"allowed: at most {MOST_BYTES} bytes and {MOST_ROWS} rows; read a part of the lines"

_NCCL_RESULT = re.compile(
    r"^(?:\[[^\]]*\]<stdout>:)?\s*(\d+)\s+(\d+)\s+([a-z]\w*)\s+(\w+)\s+(-?\d+)"
    r"\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)\s"
)
_NCCL_RANK = re.compile(r"#\s+Rank\s+(\d+)\b.* on\s+(\S+)\s+device\s+\d+\s+\[\S+\]\s+(.*\S)")
_NCCL_OPERATION = re.compile(r"# Collective test starting: (\w+)_perf")
_NCCL_LIBRARY = re.compile(r"nccl-library=(\d+)")
_NCCL_VERSION = re.compile(r"NCCL version (\d+(?:\.\d+)+)")
_NCCL_COLUMNS = (
    "operation", "num_gpus", "hosts", "device", "version",
    "size", "count", "type", "redop", "root", "time", "algbw", "busbw",
)  # fmt: skip

_EP_CONFIG = re.compile(r"\[config\] (.*)")
_EP_PAIR = re.compile(r"(\w+)=(\d+)")
_EP_BEST = re.compile(r"\[tuning\] Best (dispatch|combine)(?: \((FP8|BF16)\))?: SMs (\d+), (.*)")
_EP_RATE = re.compile(r"([\d.]+) GB/s \((RDMA|NVL)\)")
_EP_TIME = re.compile(r"(?:transmit|avg_t|t): ([\d.]+) us")
_EP_LOW_LATENCY = re.compile(
    r"\[rank (\d+)\] Dispatch bandwidth: ([\d.]+) GB/s, avg_t=([\d.]+) us \| "
    r"Combine bandwidth: ([\d.]+) GB/s, avg_t=([\d.]+) us"
)


def every_line_read(path: Path) -> int:
    """Every how many lines of a table are read: 1, but of one of over MOST_LINES more, so that a
    fit to it ends in a minute."""
    _check_size(path)
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            lines = int(pq.read_metadata(path).num_rows)
        except (OSError, ValueError):
            return 1  # read_columns says what is wrong with it
    else:
        with path.open("rb") as file:
            lines = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b""))
    return max(1, -(-lines // MOST_LINES))


def read_columns(path: Path, *, every: int = 1) -> FileColumns:
    """Columns of a CSV (as text), a parquet file (as they are) or printed output, in order.

    Args:
        every: of a table only every so many lines, from the first.

    Raises ValueError, one line, for a file that is none of them.
    """
    _check_size(path)
    if path.suffix == ".parquet":
        return _read_parquet(path, every)
    printed = _read_printed(path)
    if printed is not None:
        return printed
    import pandas as pd

    try:
        frame = pd.read_csv(
            path, dtype=str, keep_default_na=False, encoding="utf-8-sig", compression=None
        )
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    except (ValueError, OverflowError, RecursionError) as error:
        # pandas' parser errors are ValueErrors, some over several lines.
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a CSV table: {reason}") from None
    if every > 1:
        frame = frame.iloc[::every].copy()  # lets go of the lines that are not read
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError(f"{path}: not a CSV table: lines have more cells than the header")
    with path.open(encoding="utf-8-sig", newline="") as text:
        header = [name.strip() for name in next(csv.reader(text), [])]
    twice = [name for name, times in Counter(header).items() if times > 1]
    if twice:
        raise ValueError(f"{path}: column {twice[0]!r} is there more than once")
    return {str(name).strip(): frame[name].to_numpy(dtype=object) for name in frame.columns}


def _check_size(path: Path) -> None:
    """Refuse what is no file, and what would fill the memory."""
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: cannot be read: not a file")
    if status.st_size > MOST_BYTES:
        raise ValueError(f"{path}: {status.st_size} bytes; {_WAY_OUT}")


def _read_parquet(path: Path, every: int) -> dict[str, NDArray[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Not as a data set: folders above such as "device=h100" are no columns.
        file = pq.ParquetFile(path)
        groups = (file.metadata.row_group(n) for n in range(file.metadata.num_row_groups))
        if file.metadata.num_rows > MOST_ROWS or (
            sum(group.total_byte_size for group in groups) > MOST_BYTES
        ):
            raise ValueError(f"{file.metadata.num_rows} rows; {_WAY_OUT}")
        table = file.read()
        return {
            name: column.to_numpy(zero_copy_only=False)[::every]
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())
        raise ValueError(f"{path}: cannot be read as parquet: {reason}") from None
    except (pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a parquet table: {reason}") from None


def _read_printed(path: Path) -> FileColumns | None:
    """Columns of printed output; None where the file holds none that is known."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = [line.rstrip("\n") for line in file if _may_speak(line)]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    for read in (_nccl_tests, _deepep_normal, _deepep_low_latency):
        table = read(lines)
        if table is not None:
            return table
    return None


def _may_speak(line: str) -> bool:
    """Whether a line can be one that the readers of printed output know; few of a table's can."""
    return "#" in line or "[" in line or "nccl" in line.lower() or bool(_NCCL_RESULT.match(line))


def _nccl_tests(lines: Sequence[str]) -> FileColumns | None:
    """Out-of-place results of nccl-tests; None without its heading."""
    if not any("algbw" in line and "busbw" in line and "#" in line for line in lines):
        return None
    operation, version = "", ""
    ranks: dict[str, tuple[str, str]] = {}
    results: list[tuple[str, ...]] = []
    for line in lines:
        if found := _NCCL_OPERATION.search(line):
            operation = found[1]
            ranks = {}
        elif found := _NCCL_RANK.search(line):
            ranks[found[1]] = (found[2], found[3])
        elif found := _NCCL_RESULT.match(line):
            hosts, devices = zip(*ranks.values(), strict=True) if ranks else ((), ())
            head = (
                operation,
                str(len(ranks) or ""),
                str(len(set(hosts)) or ""),
                " and ".join(sorted(set(devices))),
                version,
            )
            results.append((*head, *found.groups()))
        if found := _NCCL_LIBRARY.search(line):
            # 22707 is 2.27.7, as NCCL counts its versions since 2.9.
            number = int(found[1])
            version = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
        elif found := _NCCL_VERSION.search(line):
            version = found[1]
    return _table(_NCCL_COLUMNS, results)


def _deepep_normal(lines: Sequence[str]) -> FileColumns | None:
    """Best results of DeepEP's test_intranode.py and test_internode.py; None without any.

    Columns: what its [config] line states, kernel (dispatch or combine), type (FP8 or BF16), sms,
    rdma_gbps (empty within a node), nvl_gbps, time (us, empty where an earlier form prints none).
    """
    config: dict[str, str] = {}
    results: list[dict[str, str]] = []
    for line in lines:
        if found := _EP_CONFIG.search(line):
            config = dict(_EP_PAIR.findall(found[1]))
        elif found := _EP_BEST.search(line):
            rates = {link: rate for rate, link in _EP_RATE.findall(found[4])}
            time = _EP_TIME.search(found[4])
            results.append(
                {
                    **config,
                    "kernel": found[1],
                    "type": found[2] or "BF16",
                    "sms": found[3],
                    "rdma_gbps": rates.get("RDMA", ""),
                    "nvl_gbps": rates.get("NVL", ""),
                    "time": time[1] if time else "",
                }
            )
    if not results:
        return None
    names = tuple(dict.fromkeys(name for row in results for name in row))
    return _table(names, [tuple(row.get(name, "") for name in names) for row in results])


def _deepep_low_latency(lines: Sequence[str]) -> FileColumns | None:
    """Results by rank of DeepEP's test_low_latency.py; None without any."""
    found = [match for line in lines if (match := _EP_LOW_LATENCY.search(line))]
    if not found:
        return None
    names = ("rank", "dispatch_gbps", "dispatch_avg_t", "combine_gbps", "combine_avg_t")
    return _table(names, [match.groups() for match in found])


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> FileColumns:
    columns = zip(*rows, strict=True) if rows else ((),) * len(names)
    return {name: np.array(cells, dtype=object) for name, cells in zip(names, columns, strict=True)}
