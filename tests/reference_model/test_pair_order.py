"""What a file of an overlapped pair's order says, and what of it is refused."""

import pytest

from reference_model.pair_order import order_text, parse_pair_order
from tests.reference_model.test_pair import order, text


def test_a_file_that_is_read_and_written_is_the_same():
    assert order_text(order(2)) == text(2) + "\n"


def test_an_order_that_leaves_a_part_out_is_refused():
    lines = text(1).splitlines()
    del lines[6]
    with pytest.raises(ValueError, match=r"f: part 3 of forward is \(0, 'combine'\); allowed "
                                         r"\(0, 'mlp'\), of \(layer, segment\)"):  # fmt: skip
        parse_pair_order("\n".join(lines).replace("[7]", "[6]").replace("[1, 2]", "[1]")
                         .replace("[3, 4]", "[3]"), source="f")  # fmt: skip


def test_an_order_that_waits_for_what_comes_later_is_refused():
    with pytest.raises(ValueError, match=r"f, line 1: after \[4\]: allowed 0 to -1"):
        parse_pair_order(text(1).replace('"after": []', '"after": [4]', 1), source="f")
