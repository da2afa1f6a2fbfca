"""How far an operator lies from rows, and what errors say about a prediction so far away."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_rows import made_up

from simulator.hardware.kernels.families import batch_of_rows
from simulator.hardware.kernels.gaussian_process import Process
from simulator.hardware.kernels.reach import (
    BETWEEN,
    BEYOND,
    EDGE,
    GAP,
    REACHES,
    SHAPE,
    SIZE,
    JudgedCut,
    Known,
    cuts,
    left_out,
    together,
)
from simulator.hardware.kernels.roofline import Batch, batch_of_sizes

ROWS = made_up()
"""m = 256 to 16,384 in octaves, of n = 1,536, 4,096, 7,168, 24,576 and k = 2,048, 7,168."""


def products(*sizes: tuple[int, int, int]) -> Batch:
    """Of (m, n, k)."""
    like = batch_of_rows(ROWS[:1]).like
    return batch_of_sizes(like, np.array([(k, m, n) for m, n, k in sizes]))


def rows_but(dropped) -> Known:
    return Known(batch_of_rows([row for row in ROWS if not dropped(dict(row.sizes))]))


def test_an_operator_lies_between_rows_of_its_shape_beyond_all_or_at_a_size_of_none():
    asked = products((3000, 1536, 2048), (128, 1536, 2048), (32768, 1536, 2048), (3000, 2000, 2048))

    assert rows_but(lambda sizes: False).reach(asked).tolist() == [BETWEEN, BEYOND, BEYOND, SIZE]


def test_rows_a_factor_of_four_apart_are_the_furthest_between_which_lies_anything():
    """Without 1,024 rows lie at 512 and 2,048; without 2,048 as well at 512 and 4,096."""
    asked = products((1024, 1536, 2048))

    assert rows_but(lambda sizes: sizes["m"] == 1024).reach(asked).tolist() == [BETWEEN]
    assert rows_but(lambda sizes: sizes["m"] in (1024, 2048)).reach(asked).tolist() == [GAP]


def test_what_a_shape_lacks_other_shapes_may_have_at_its_load():
    """Of n = 1,536 and k = 2,048 rows lie at 512 and at 4,096, further than a factor of four apart,
    and none above 8,192; of n = 4,096 none lie anywhere."""
    asked = products((1024, 1536, 2048), (16384, 1536, 2048), (1024, 4096, 2048))

    def dropped(sizes):
        if sizes["k"] != 2048:
            return False
        return sizes["n"] == 4096 or (sizes["n"] == 1536 and sizes["m"] in (1024, 2048, 16384))

    assert rows_but(dropped).reach(asked).tolist() == [EDGE, EDGE, SHAPE]


def test_a_row_lies_where_it_does_without_its_group():
    """m = 1,024 of the first shape: alone it is between 512 and 2,048 of its shape; with its shape
    left out other shapes have its load; with all of n = 1,536, no row has that; with 1,024 and
    2,048 of all shapes (octaves 10 and 11), no row is near its load."""
    batch = batch_of_rows(ROWS)
    m, n, k = (batch.sizes[:, batch.names.index(name)] for name in ("m", "n", "k"))
    (row,) = np.flatnonzero((m == 1024) & (n == 1536) & (k == 2048))
    groups = {name: groups for name, groups, _ in cuts(batch)}

    found = {
        name: Known(batch).reach_without(groups[name], np.array([row])).tolist()
        for name in ("alike", "shape", "n", "two octaves of load")
    }

    assert found == {
        "alike": [BETWEEN], "shape": [SHAPE], "n": [SIZE], "two octaves of load": [GAP]
    }  # fmt: skip


def test_the_ends_are_the_first_and_the_last_octave_of_load():
    batch = batch_of_rows(ROWS)
    m = batch.sizes[:, batch.names.index("m")]
    ends = next(groups for name, groups, _ in cuts(batch) if name == "ends")

    assert np.unique(m[ends == 0]).tolist() == [256, 512]
    assert np.unique(m[ends == 1]).tolist() == [8192, 16384]


def test_heads_of_one_load_of_attention_are_left_out_together_products_one_by_one():
    assert together(batch_of_rows(ROWS)).tolist() == list(range(56))
    like = batch_of_rows(ROWS[:1])
    decode = Batch(
        replace(like.like, kind="mla_decode"),
        ("heads", "kv_length", "sequences"),
        np.array([[16, 512, 1], [128, 512, 1], [16, 1024, 1], [16, 512, 4]]),
        np.zeros(4),
        np.zeros(4),
    )
    assert together(decode).tolist() == [0, 0, 1, 2]


def test_every_group_has_one_vote_however_many_rows_it_holds():
    """One group errs by 1, 2 and 3 deviations, the other by 10: three rows of a third each, one of
    one. Of three votes, the third group's with them, 1 is full at the third row of the first, 1.2
    are a fifth of the way to the other group, 2.4 are more than there are."""
    part = JudgedCut(
        "shape", SHAPE, np.array([0.2, -0.1, 0.3, 1.0]), np.full(4, 0.1), np.array([0, 0, 0, 1])
    )

    assert part.parts == 2
    assert part.within(1 / 3) == pytest.approx(3.0)
    assert part.within(0.4) == pytest.approx(3.0 + 0.2 * 7.0)
    assert part.within(0.8) == pytest.approx(10.0)


def test_one_more_group_lies_inside_as_often_as_is_asked():
    """Of nine groups that err by 1 to 9 deviations a tenth lies within the eighth in 8 of 10 cases;
    of four, within all of them in 4 of 5, and no deviation holds it in 9 of 10."""
    nine = JudgedCut("shape", SHAPE, np.arange(1.0, 10.0), np.ones(9), np.arange(9))
    four = JudgedCut("shape", SHAPE, np.arange(1.0, 5.0), np.ones(4), np.arange(4))

    assert nine.within(0.8) == pytest.approx(8.0)
    assert nine.within(0.75) == pytest.approx(7.5)
    assert four.within(0.8) == four.within(0.9) == pytest.approx(4.0)


def test_values_that_whole_tables_are_cut_at_are_learned_from_in_halves():
    batch = batch_of_rows(ROWS)
    process = Process(np.log2(batch.sizes.astype(float)), np.zeros(len(batch)))

    class Table:
        def __init__(self):
            self.batch = batch

        def __len__(self):
            return len(batch)

    values = []
    for half in (0, 1):
        parts = [p for p in left_out(process, Table(), half=half) if p.cut == "n"]
        assert {REACHES[part.reach] for part in parts} == {"size"}
        values.append({int(group) for part in parts for group in part.groups})
    assert values[0] | values[1] == {0, 1, 2, 3}
    assert not values[0] & values[1]
