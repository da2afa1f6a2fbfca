"""Parquet files that say the unit of each column."""

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from reports.parquet import UNIT, unit_of, write_columns, write_frame


def units(path):
    schema = pyarrow.parquet.read_schema(path)
    return {field.name: (field.metadata or {}).get(UNIT, b"").decode() for field in schema}


@pytest.mark.parametrize(
    ("column", "unit"),
    [
        ("start_s", "s"),
        ("size_bytes", "bytes"),
        ("capacity_bytes_per_s", "bytes/s"),
        ("prompt_tokens", "tokens"),
        ("mfu_causal", "share"),
        ("tflops_per_gpu_causal", "TFLOP/s"),
        ("rank", ""),
    ],
)
def test_a_column_has_the_unit_of_its_metric_or_of_its_name(column, unit):
    assert unit_of(column) == unit


def test_a_frame_is_read_back_with_its_units(tmp_path):
    frame = pd.DataFrame({"rank": [0, 1], "start_s": [0.5, 1.5], "label": ["a", "b"]})
    write_frame(frame, tmp_path / "t.parquet")
    assert units(tmp_path / "t.parquet") == {"rank": "", "start_s": "s", "label": ""}
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), frame)


def test_what_is_not_known_is_null_and_texts_and_whole_numbers_stay(tmp_path):
    columns = {"ttft_s": [1.0, None], "tpot_s": np.array([np.nan, 2.0]),
               "request": np.array([3, 4]), "outcome": ["finished", "rejected"]}  # fmt: skip
    write_columns(columns, tmp_path / "t.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "t.parquet")
    assert table.to_pydict() == {
        "ttft_s": [1.0, None], "tpot_s": [None, 2.0], "request": [3, 4],
        "outcome": ["finished", "rejected"],
    }  # fmt: skip
    assert units(tmp_path / "t.parquet")["tpot_s"] == "s"
