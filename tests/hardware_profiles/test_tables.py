"""Measurement tables: shipped ones parse, wrong ones are one clear error."""

import pytest

from hardware_profiles.fields import ROOT
from hardware_profiles.tables import (
    COLUMNS,
    ELEMENT_TYPES,
    Measurement,
    load_cards,
    load_measurements,
    table_path,
    write_measurements,
)
from reference_model.formats import BITS
from reference_model.trace import KINDS

TABLES = sorted(path.stem for path in (ROOT / "measurements").glob("*.csv"))
HEADER = ",".join(COLUMNS)


@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_a_shipped_table_has_a_known_kind_its_sizes_and_a_source(name):
    rows = load_measurements(table_path(name))
    assert rows
    for row in rows:
        assert {size for size, _ in row.sizes} == set(KINDS[row.kind].sizes), row
        assert row.source
        assert row.kernel_set


@pytest.mark.parametrize("name", TABLES)
def test_writing_a_table_that_was_read_gives_the_same_file(name, tmp_path):
    again = tmp_path / "again.csv"
    write_measurements(again, load_measurements(table_path(name)))
    assert again.read_bytes() == table_path(name).read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"t\.csv: columns are \[\], allowed"),
        ("kind,seconds\n", r"t\.csv: columns are"),
        (f"{HEADER}\ngemm,m=1,fp8_e4m3,132,1e-6,,s\n", r"line 2: 7 cells, needs 8"),
        (f"{HEADER}\ngemm,m=x,fp8_e4m3,132,1e-6,,s,\n", r"line 2: sizes: .*'x'"),
        (f"{HEADER}\ngemm,m,fp8_e4m3,132,1e-6,,s,\n", r"line 2: sizes: 'm' is not name=value"),
        (f"{HEADER}\ngemm,m=-1,fp8_e4m3,132,1e-6,,s,\n", r"line 2: sizes: .*negative"),
        (f"{HEADER}\ngemm,m=1,fp8_e4m3,0,1e-6,,s,\n", r"line 2: sms: 0 is not allowed"),
        (f"{HEADER}\ngemm,m=1,fp8_e4m3,132,0,,s,\n", r"line 2: seconds: '0' is not a positive"),
        (f"{HEADER}\ngemm,m=1,fp8_e4m3,132,nan,,s,\n", r"line 2: seconds: 'nan' is not a positive"),
        (f"{HEADER}\ngemm,m=1,fp8_e4m3,132,1e-6,-1,s,\n", r"line 2: spread: '-1'"),
        (f"{HEADER}\ngemm,m=1,fp8,132,1e-6,,s,\n", r"line 2: dtype: 'fp8' is not an element type"),
        (f"{HEADER}\ngemm,m=1,bfloat16,132,1e-6,,s,out_dtype=bf16\n", r"conditions: 'bf16' is not"),
        (f"{HEADER}\ngemm,m=1,fp8_e4m3,132,1e-6,,s,all_to_all=2\n", r"conditions: all_to_all=2\.0"),
        (f"{HEADER}\ngemm,m=1,fp8_e4m3,132,1e-6,,s,repeats=0\n", r"repeats=0 is not a positive"),
        (f"{HEADER}\ngemm,m=1,fp8_e4m3,132,1e-6,,s,clock_hz=inf\n", r"clock_hz=inf is not a posi"),
        (f"{HEADER}\ncombine,m=1,fp8_e4m3,132,1e-6,,s,nodes=1.5\n", r"nodes=1\.5 is not a whole"),
        (f"{HEADER}\ncombine,m=1,fp8_e4m3,132,1e-6,,s,experts=2.5\n", r"experts=2\.5 is not a "),
    ],
)
def test_a_wrong_table_names_file_line_and_column(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_measurements(path)


def test_a_table_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        load_measurements(tmp_path / "gone.csv")


def test_the_element_types_of_tables_are_those_of_operators():
    assert set(ELEMENT_TYPES) == set(BITS)


def test_a_table_is_read_anew_once_its_text_is_another(tmp_path):
    path = tmp_path / "rows.csv"
    rows = load_measurements(table_path("h800_sxm"))[:2]
    write_measurements(path, rows)
    first = load_measurements(path)
    assert load_measurements(path) is first
    write_measurements(path, rows[:1])
    assert len(load_measurements(path)) == 1


def test_a_line_cut_short_of_a_table_of_cards_is_counted_whole(tmp_path):
    path = tmp_path / "cards.csv"
    header = "kind,sizes,dtype,sms,seconds_1,spread_1,seconds_2,spread_2,source,conditions"
    path.write_text(f"{header}\ngemm,m=1,fp8_e4m3,132,1e-6,,2e-6\n")
    with pytest.raises(ValueError, match=r"^cards\.csv: line 2: 7 cells, needs 10$"):
        load_cards(path)


def row_under(**conditions):
    stated = tuple(sorted(conditions.items()))
    return Measurement("gemm", (), "bfloat16", 132, 1.0, None, "made up", stated)


def test_the_conditions_of_a_row_are_its_fields():
    plain = row_under()
    assert (plain.pair, plain.beside_compute, plain.accumulate) == (False, False, False)
    assert (plain.state, plain.job, plain.layout, plain.nodes) == ("", "", "", None)
    assert (plain.kernels, plain.repeats) == (1.0, 1.0)
    row = row_under(
        pair="yes", beside="compute", accumulate="1", state="sustained", job="prefill",
        layout="low_latency", nodes="4", kernels="2.5", repeats="30",
    )  # fmt: skip
    assert (row.pair, row.beside_compute, row.accumulate) == (True, True, True)
    assert (row.state, row.job, row.layout, row.nodes) == ("sustained", "prefill", "low_latency", 4)
    assert (row.kernels, row.repeats) == (2.5, 30.0)
