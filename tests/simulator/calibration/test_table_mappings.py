"""Mappings of tables: their conditions, their arithmetic, and which table they are for."""

import numpy as np
import pytest

from simulator.calibration.table_mappings import (
    column_arithmetic,
    gpus_reached,
    lines_where,
    load_table_mapping,
    mapping_for,
)

COLUMNS = {
    "source": np.array(["fa3", "flashinfer", "fa3"], dtype=object),
    "tokens": np.array(["8", "4096", "x"], dtype=object),
}


@pytest.mark.parametrize(
    ("where", "lines"),
    [
        ({}, [True, True, True]),
        ({"source": "fa3"}, [True, False, True]),
        ({"source": "f*"}, [True, True, True]),
        ({"source": ("fa3", "cutlass")}, [True, False, True]),
        ({"tokens": "< 4096"}, [True, False, False]),
        ({"tokens": ">= 8"}, [True, True, False]),
        ({"tokens": 8, "source": "fa3"}, [True, False, False]),
        ({"absent": "x"}, [False, False, False]),
    ],
)
def test_a_line_is_chosen_where_all_conditions_hold(where, lines):
    assert lines_where(COLUMNS, where).tolist() == lines


def test_arithmetic_runs_over_columns_and_known_numbers():
    columns = {"a": np.array(["2", "3"], dtype=object)}
    assert column_arithmetic("ceil(a * peak / 4)", columns, {"peak": 3.0}, "here").tolist() == [
        2.0,
        3.0,
    ]


def test_tokens_reach_fewer_gpus_than_they_choose_experts():
    # Two of four experts on two GPUs: both on one with 2 x 1 / 6, so 2 - 1 / 3.
    reached = gpus_reached(np.array([2.0]), np.array([4.0]), np.array([2.0]))
    assert reached.tolist() == pytest.approx([5 / 3])


def test_two_mappings_with_the_same_columns_ask_which_is_meant():
    mla = load_table_mapping("infersim_mla_decode").model_copy(update={"check": {}})
    other = mla.model_copy(update={"name": "grouped_query_decode"})
    cells = np.array(["1"], dtype=object)
    with pytest.raises(ValueError, match="of infersim_mla_decode and grouped_query_decode; name"):
        mapping_for(dict.fromkeys(mla.columns, cells), (mla, other), {}, "decode.csv")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seconds: {t: us}, unit: us", "not where seconds is"),
        ("seconds: t", "unit: needed beside seconds"),
    ],
)
def test_a_time_has_its_unit_once(tmp_path, line, message):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nformat: table\nsource: x\ncolumns: [m]\nkernels:\n"
        "  - {kind: gemm, dtype: bfloat16, out_dtype: bfloat16, kernel_set: x,\n"
        f"     sizes: {{m: m, n: 1, k: 1}}, {line}}}\n",
        encoding="utf-8",
    )
    with pytest.raises(ValueError, match=message):
        load_table_mapping(str(path))
