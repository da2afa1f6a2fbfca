"""Tables of several cards, and the medians that are shipped."""

from dataclasses import replace

import pytest
from made_up_rows import made_up

from hardware_profiles.tables import (
    CARDS,
    load_cards,
    load_measurements,
    table_path,
    table_text,
    write_cards,
)
from simulator.calibration.shipping.reference_tables import medians, with_medians


def three_cards():
    """Two rows on three cards: 1, 3 and 2 ms, and 5, 4 and 9 ms, repeated within 1, 2 and 3%."""
    first, second = made_up()[0], made_up()[7]
    return [
        [
            replace(first, seconds=one, spread=spread),
            replace(second, seconds=other, spread=spread),
        ]
        for one, other, spread in ((1e-3, 5e-3, 0.01), (3e-3, 4e-3, 0.02), (2e-3, 9e-3, 0.03))
    ]


def test_a_row_is_the_median_of_the_cards_and_says_so():
    rows = medians(three_cards())

    assert [row.seconds for row in rows] == [2e-3, 5e-3]
    assert [row.spread for row in rows] == [0.02, 0.02]
    assert rows[0].source == f"{made_up()[0].source}; median of 3 cards"


def test_cards_are_read_as_they_were_written_whatever_the_order_of_their_rows(tmp_path):
    cards = three_cards()
    write_cards(tmp_path / "cards.csv", [cards[0], cards[1][::-1], cards[2]])

    found = load_cards(tmp_path / "cards.csv")

    assert [{row.seconds for row in rows} for rows in found] == [
        {1e-3, 5e-3}, {3e-3, 4e-3}, {2e-3, 9e-3},
    ]  # fmt: skip
    assert len({tuple(row.sizes for row in rows) for rows in found}) == 1


def test_a_row_that_one_card_lacks_is_left_out(tmp_path):
    cards = three_cards()
    write_cards(tmp_path / "cards.csv", [cards[0], cards[1][:1], cards[2]])

    assert [[row.seconds for row in rows] for rows in load_cards(tmp_path / "cards.csv")] == [
        [1e-3], [3e-3], [2e-3],
    ]  # fmt: skip


def test_a_file_without_a_card_names_the_columns(tmp_path):
    path = tmp_path / "cards.csv"
    path.write_text("kind,sizes\n")

    with pytest.raises(ValueError, match=r"cards\.csv: columns are \['kind', 'sizes'\], allowed"):
        load_cards(path)


def test_a_median_takes_the_place_of_the_same_work_timed_otherwise():
    """The first row was timed by events before; a third kernel, that no card has, stays."""
    first, second = three_cards()[0]
    before = replace(first, seconds=7e-3, conditions=(*first.conditions, ("timing", "events")))
    other = replace(first, kind="copy", seconds=8e-3)

    rows = with_medians([before, second, other], three_cards())

    assert sorted(row.seconds for row in rows) == [2e-3, 5e-3, 8e-3]


def test_the_shipped_rows_are_the_medians_of_the_kept_cards():
    shipped = load_measurements(table_path("h200_sxm_reference"))
    cards = load_cards(CARDS / "h200_sxm_reference" / "table.csv")

    assert len(medians(cards)) == 2937
    assert table_text(with_medians(shipped, cards)) == table_text(shipped)
