"""Write tables as parquet whose schema says the unit of each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.analysis.every_metric import metric_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow

UNIT = b"unit"
"""Key of a field's metadata."""
_ENDINGS = {
    "_bytes_per_s": "bytes/s",
    "_per_second": "1/s",
    "_s": "s",
    "_bytes": "bytes",
    "_share": "share",
    "_tokens": "tokens",
}
_NAMES = {"flops": "FLOP", "bytes": "bytes", "utilisation": "share", "batch": "requests"}


def unit_of(column: str) -> str:
    """The unit of a column: that of its metric, else what its name says; empty where it has none.

    Names of SI columns end in it: "start_s", "size_bytes".
    """
    name = column.rpartition(".")[2]
    metric = metric_of(column)
    if metric is not None and metric.unit:
        return metric.unit
    if name in _NAMES:
        return _NAMES[name]
    return next((unit for ending, unit in _ENDINGS.items() if name.endswith(ending)), "")


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame with the units of its columns."""
    import pyarrow

    _write(pyarrow.Table.from_pandas(frame, preserve_index=False), path)


def write_columns(columns: Mapping[str, Sequence[Any] | np.ndarray], path: Path) -> None:
    """Write columns of numbers or of texts; None and NaN become null."""
    import numpy as np
    import pyarrow

    def array(values: Sequence[Any] | np.ndarray) -> pyarrow.Array:
        # From buffers: given a list, pyarrow imports pandas, which takes longer than all the rest.
        if len(values) and isinstance(values[0], str):
            texts = [text.encode() for text in values]
            ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
            parts = (pyarrow.py_buffer(ends), pyarrow.py_buffer(b"".join(texts)))
            return pyarrow.StringArray.from_buffers(len(texts), *parts)
        if isinstance(values, np.ndarray) and values.dtype.kind == "i":
            return pyarrow.Array.from_buffers(
                pyarrow.int64(), len(values), [None, pyarrow.py_buffer(values.astype(np.int64))]
            )
        numbers = np.array([np.nan if value is None else value for value in values], np.float64)
        known = np.packbits(~np.isnan(numbers), bitorder="little")
        buffers = [pyarrow.py_buffer(known), pyarrow.py_buffer(np.nan_to_num(numbers))]
        return pyarrow.Array.from_buffers(pyarrow.float64(), len(values), buffers)

    arrays = [array(values) for values in columns.values()]
    _write(pyarrow.Table.from_arrays(arrays, list(columns)), path)


def _write(table: pyarrow.Table, path: Path) -> None:
    import pyarrow.parquet

    fields = []
    for field in table.schema:
        unit = unit_of(field.name)
        fields.append(field.with_metadata({UNIT: unit.encode()}) if unit else field)
    schema = pyarrow.schema(fields, metadata=table.schema.metadata)
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(table.columns, schema=schema), path)
